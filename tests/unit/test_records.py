"""How a list is read that one answer does not hold: what is asked, and whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import pytest

from natsjobs import UnavailableError
from natsjobs.engine.ports import Message
from natsjobs.engine.records import Records
from natsjobs.memory import MemoryLink, MemorySystem

MANY = 200
KEYS = "$KV.natsjobs_jobs.job.>"


class Bucket:
    """The stream below a bucket of the memory system; it counts what it is asked."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.asked = Counter[str]()
        self.answer: Callable[[list[Message] | None], list[Message] | None] = lambda found: found

    async def last(self, name: str) -> Message | None:
        """One key, or the barrier, at the leader."""
        self.asked["barrier" if name == KEYS else "leader"] += 1
        found: Message | None = await self._stream.last(name)
        return found

    async def subjects(self, name: str) -> dict[str, int]:
        """All keys."""
        found: dict[str, int] = await self._stream.subjects(name)
        return found

    async def newest(self, names: Sequence[str]) -> list[Message] | None:
        """A page of keys."""
        self.asked["page"] += 1
        return self.answer(await self._stream.newest(names))


@pytest.fixture
async def link() -> AsyncIterator[MemoryLink]:
    """To a system of its own."""
    link = MemorySystem().link()
    await link.open()
    yield link
    await link.close()


async def listed(link: MemoryLink, sizes: Sequence[int], bucket: Bucket | None = None) -> Counter[str]:
    """List records of these sizes; what was asked for that."""
    for number, size in enumerate(sizes):
        await link.records.append(f"$KV.natsjobs_jobs.job.u.j{number}", b'{"x":"%s"}' % (b"x" * size))
    bucket = bucket or Bucket(link.records)
    link._records = bucket  # type: ignore[assignment]
    slots = await Records(link, patience=5.0, give_up=5.0).list(KEYS)
    assert [slot.key.rpartition(".j")[2] for slot in slots] == [str(number) for number in range(len(sizes))]
    return bucket.asked


async def test_large_records_are_read_in_smaller_pages(link: MemoryLink) -> None:
    """As many at a time as fit into an answer; none of them by itself."""
    asked = await listed(link, [9_000] * MANY)
    assert asked["leader"] == 0
    assert asked["page"] < MANY / 10


async def test_one_huge_record_makes_only_itself_slow(link: MemoryLink) -> None:
    """It is read at the leader, and behind it pages grow again."""
    asked = await listed(link, [10] * 90 + [600_000] + [10] * MANY)
    assert asked["leader"] == 1
    assert asked["page"] < 24


async def test_a_replica_that_lags_or_fails_is_asked_again_and_then_the_leader(link: MemoryLink) -> None:
    """It is not asked for less: that brings it no further."""
    bucket = Bucket(link.records)
    bucket.answer = lambda _: []
    assert await listed(link, [10] * 70, bucket) == {"barrier": 8, "page": 7, "leader": 70}
    bucket.asked.clear()

    def fail(_: list[Message] | None) -> list[Message] | None:
        raise UnavailableError("nobody answers")

    bucket.answer = fail
    assert len(await Records(link, patience=5.0, give_up=5.0).list(KEYS)) == 70
    assert bucket.asked == {"barrier": 8, "page": 7, "leader": 70}


async def test_nothing_that_stays_is_missed_while_it_is_visited(link: MemoryLink) -> None:
    """Keys change, go and come between the pages, some of them large: each that stays is handed over once."""
    append, key = link.records.append, "$KV.natsjobs_jobs.job.j{}".format
    for number in range(MANY):
        await append(key(number), b"%d" % number + b"x" * (400_000 if number % 50 == 7 else 0))
    bucket = Bucket(link.records)
    link._records = bucket  # type: ignore[assignment]
    found, pages = Counter[str](), 0

    def take(page: Iterable[Message]) -> None:
        nonlocal pages
        pages += 1
        found.update(message.subject for message in page)

    ask, number = bucket.newest, 0

    async def newest(names: Sequence[str]) -> list[Message] | None:
        nonlocal number
        for _ in range(5):
            number = (number + 3) % MANY  # 7 and 3: all of them, sooner or later
            if number % 10 == 0:
                await append(key(number), b"", marker=True, ttl=3600)
            else:
                await append(key(number), b"again")
            await append(key(f"new{number}"), b"new")
        return await ask(names)

    bucket.newest = newest  # type: ignore[method-assign]
    await Records(link, patience=5.0, give_up=5.0).visit(KEYS, take)
    assert pages > 3
    assert {key(number) for number in range(MANY) if number % 10} <= found.keys()
    assert set(found.values()) == {1}
