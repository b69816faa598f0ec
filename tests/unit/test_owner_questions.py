"""How an owner is asked which of its runs it has: few questions, and none that is too long for any server."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from natsjobs import Config
from natsjobs.engine.context import Context
from natsjobs.engine.liveness import Liveness
from natsjobs.engine.ports import NoRespondersError
from natsjobs.memory import MemorySystem

SMALLEST = 32_768 - 1_024  # max_payload, and room for headers


class Owner:
    """A bus on which one owner has every other run; it keeps what it was asked."""

    def __init__(self, silent_after: int = 1_000_000) -> None:
        self.sizes: list[int] = []
        self._silent_after = silent_after

    async def request(self, subject: str, body: bytes, *, timeout: float) -> bytes:
        """Answer as an owner does."""
        asked: list[Any] = msgspec.json.decode(body)["runs"]
        self.sizes.append(len(body))
        if len(self.sizes) > self._silent_after:
            raise NoRespondersError
        answer = msgspec.json.encode({"replica": "o", "missing": asked[::2], "runs": 7})
        self.sizes.append(len(answer))
        return answer


def asking(owner: Owner) -> Liveness:
    """A judge on that bus."""
    link = MemorySystem().link()
    link._bus = owner  # type: ignore[assignment]
    return Liveness(Context(link, Config()), None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["s{}", "\x01" * 250 + "{}", '"' * 250 + "{}", "ä" * 120 + "{}"])
async def test_no_question_and_no_answer_is_too_long(name: str) -> None:
    """Whatever the ids are; and each run is asked about once."""
    runs = [(name.format(number), "g" * 64) for number in range(1_000)]
    owner = Owner()
    missing = await asking(owner).missing_runs("o", runs)
    assert max(owner.sizes) < SMALLEST
    assert missing is not None
    assert set(missing) <= set(runs)
    assert len(missing) == len(set(missing)) >= len(runs) // 2


async def test_ten_thousand_runs_are_few_questions() -> None:
    """And none is a question, too: whether the owner is there. Who is silent once is not asked on."""
    runs = [(f"conversation-{number}", "1k8373o3ta2ml766ikg") for number in range(10_000)]
    owner = Owner()
    await asking(owner).missing_runs("o", runs)
    assert len(owner.sizes) / 2 < 30
    assert await asking(owner).missing_runs("o", []) == []
    owner = Owner(silent_after=2)
    assert await asking(owner).missing_runs("o", runs) is None
    assert len(owner.sizes) == 3, "a question, its answer, and one that has none"
