"""What a question about a user's running jobs asks, and that replicas are believed no further than they prove."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from natsjobs import UnavailableError
from natsjobs.engine.ports import MOST_NEWEST, Newer
from natsjobs.memory import MemoryJobStore

Answer = Callable[[], Awaitable[Newer | None]]
NAMES = [f"s{number}" for number in range(10)]


class Asked:
    """The bucket of a store; it counts what it is asked, and says of many keys what a test wants."""

    def __init__(self, store: MemoryJobStore) -> None:
        self.counts = Counter[str]()
        self.answer: Callable[[int, Answer], Awaitable[Newer | None]] = lambda _, ask: ask()
        self._stream: Any = store.link.records
        store.link._records = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        self.counts[name] += 1
        return getattr(self._stream, name)

    async def newer(self, filters: Sequence[str], seq: int, *, batch: int = 2 * MOST_NEWEST) -> Newer | None:
        """A question to a replica."""
        self.counts["newer"] += 1
        return await self.answer(self.counts["newer"], lambda: self._stream.newer(filters, seq, batch=batch))


@pytest.fixture
async def store() -> AsyncIterator[MemoryJobStore]:
    """With ten running jobs of a user."""
    store = MemoryJobStore()
    await store.initialize()
    for name in NAMES:
        await store.create_job(name, "alice")
    yield store
    await store.destroy()


async def test_a_users_running_jobs_are_three_questions(store: MemoryJobStore) -> None:
    """However many they are; and two, where there are none."""
    asked = Asked(store)
    assert await store.get_active_job_ids_by_user("alice") == NAMES
    assert asked.counts == {"state": 1, "newer": 2}
    asked.counts.clear()
    assert await store.get_active_job_ids_by_user("bob") == []
    assert asked.counts == {"state": 1, "newer": 1}


def old(found: Newer, by: int) -> Newer:
    """What a replica says that is so many messages behind."""
    upto = found.upto - by
    return Newer([message for message in found.messages if message.seq <= upto], upto, whole=found.whole)


@pytest.mark.parametrize("says", ["old", "old for a moment", "nothing", "refused", "of some"])
async def test_what_a_replica_does_not_prove_the_leader_says(store: MemoryJobStore, says: str) -> None:
    """Of the entries and of the records: those of jobs that have ended meanwhile are gone, and no others."""
    asked = Asked(store)
    for name in NAMES[::3]:
        await store.update_job(name, status="complete")

    async def answer(number: int, ask: Answer) -> Newer | None:
        found = await ask()
        if says == "refused":
            raise UnavailableError("not now")
        if says == "nothing" or found is None:
            return None
        if says == "of some":
            return Newer(found.messages[:2], found.upto, whole=False)
        return old(found, 5) if says == "old" or number % 2 else found

    asked.answer = answer
    running = [name for name in NAMES if name not in NAMES[::3]]
    asked.counts.clear()
    assert await store.get_active_job_ids_by_user("alice") == running
    leader = {"old": 1 + 6, "old for a moment": 0, "nothing": 1 + 6, "refused": 1 + 6, "of some": 1 + 4}
    assert asked.counts["last"] == leader[says]


async def test_a_record_is_read_no_older_than_its_entry(store: MemoryJobStore) -> None:
    """By a replica that is behind the one that gave the entry: a job of which it knows nothing is not removed."""
    asked = Asked(store)

    async def answer(number: int, ask: Answer) -> Newer | None:
        if number > 1:
            found = await ask()
            assert found is not None
            return old(found, 2)  # its record and its entry: as far as the leader was at the beginning
        for _ in range(10):
            await asyncio.sleep(0)
        await store.create_job("late", "alice")
        return await ask()

    asked.answer = answer
    assert await store.get_active_job_ids_by_user("alice") == [*NAMES, "late"]
    assert asked.counts["newer"] > 2, "another replica was asked"
