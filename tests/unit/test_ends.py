"""The quiet look of those who wait for an end: whom it asks when replicas do not answer."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from virtual_time import Virtual

from natsjobs import Config, UnavailableError
from natsjobs.engine import wire
from natsjobs.engine.context import Context
from natsjobs.engine.ends import Ends
from natsjobs.engine.ports import MOST_NEWEST, Message
from natsjobs.errors import NatsJobsError
from natsjobs.memory import MemorySystem


@pytest.fixture
def clock() -> Iterator[Virtual]:
    """Waiting takes no time."""
    with Virtual() as clock:
        yield clock


@pytest.mark.parametrize("error", [UnavailableError("nobody answers"), None])
def test_an_end_is_seen_also_when_no_replica_can_be_asked(clock: Virtual, error: NatsJobsError | None) -> None:
    """Each watch looks at the leader then, who has it."""

    async def scene() -> None:
        system = MemorySystem()
        link = system.link()
        await link.open()
        context = Context(link, Config())
        ends, ended = Ends(context, lambda *_: 0.0), list[str]()
        context.on_terminal = lambda stream_id, *_: ended.append(stream_id)

        async def nobody(*_: Any) -> None:
            if error is not None:
                raise error

        link.events.newest = nobody  # type: ignore[method-assign, assignment]
        end = wire.end_body("done", 0, "w", previous=2, reason=None, request=None, data=b"null")
        for name in ("s0", "s1", "s2"):
            await link.events.append(context.subjects.log(name, "g"), b"x")
            await ends.listen(name, "g")
            ends._schedule([ends._watches[name, "g"]])
        for watch in ends._watches.values():
            assert watch.interest is not None
            await watch.interest.unsubscribe()
        await link.events.append(context.subjects.end("s1", "g"), end)
        await asyncio.sleep(10.0)
        assert set(ended) == {"s1"}
        await ends.close()
        await context.tasks.close()
        await link.close()

    clock.run(scene())


def test_who_looks_together_goes_on_together_and_no_question_holds_them_all(clock: Virtual) -> None:
    """Of 1,000 quiet runs each is looked at in time, by few questions, and between two of them others have a turn."""

    async def scene() -> None:
        link = MemorySystem().link()
        await link.open()
        context = Context(link, Config())
        written, asked = Counter[float](), list[tuple[float, set[str]]]()
        newest = link.events.newest

        def look_up(*_: str) -> float:
            written[time.monotonic()] += 1  # it stands still within a turn of the loop
            return 0.0

        async def count(filters: Sequence[str]) -> list[Message] | None:
            asked.append((time.monotonic(), set(filters)))
            await newest(filters[:1])
            return []

        link.events.newest = count  # type: ignore[method-assign]
        ends = Ends(context, look_up)
        names = [f"s{number}" for number in range(1_000)]
        for name in names:
            await link.events.append(context.subjects.log(name, "g"), b"x")
            await ends.listen(name, "g")
            ends._schedule([ends._watches[name, "g"]])
        await asyncio.sleep(60.0)
        asked.clear()
        written.clear()
        began = time.monotonic()
        await asyncio.sleep(45.0)
        for name in names:
            at = [when for when, filters in asked if context.subjects.end(name, "g") in filters]
            gaps = [after - before for before, after in pairwise([began, *at, time.monotonic()])]
            assert max(gaps) <= 11.1, name
        assert max(len(filters) for _, filters in asked) <= MOST_NEWEST
        assert len(asked) <= 2 * len(names) / MOST_NEWEST * 45 / 9
        assert max(len(group) for _, _, group in ends._due) <= MOST_NEWEST
        ends._on_reconnect()
        await asyncio.sleep(5.0)
        assert max(written.values()) <= MOST_NEWEST
        await ends.close()
        await context.tasks.close()
        await link.close()

    clock.run(scene())
