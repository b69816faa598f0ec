"""Slow looks and a live path that loses: whatever meets whatever, every event once and in order. By chance, repeatable.

The clock is virtual, so a look may take seconds: longer than the pause between looks, or between two events.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from typing import Any, TypeVar

import pytest
from virtual_time import Virtual
from waiting import check_whole

from natsjobs import Config, MemoryEventTransport, MemoryJobStore, StreamEvent
from natsjobs.config import Timing
from natsjobs.engine.subjects import Subjects
from natsjobs.memory import MemoryLink, MemorySystem

_T = TypeVar("_T")
_ASKED = {"next", "last", "page", "newer"}
_SLOWEST = 5.0
_EVENTS = 60
_BIG = 30_000
"""Bytes and more: in pieces, the others not."""
_SILENCE = 90.0
"""After so long everything is there, by a look or two: each of them may need several answers."""


class Slow:
    """A stream whose answers take their time on the way back."""

    def __init__(self, stream: Any, chance: random.Random) -> None:
        self._stream, self._chance = stream, chance

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._stream, name)
        return found if name not in _ASKED else lambda *args, **options: self._later(found(*args, **options))

    async def _later(self, answer: Awaitable[_T]) -> _T:
        found = await answer
        await asyncio.sleep(self._chance.choice([0.0, 0.01, 0.3, _SLOWEST]) * self._chance.random())
        return found


class Halting:
    """A stream of an owner that pauses between the pieces of an event."""

    def __init__(self, stream: Any, chance: random.Random) -> None:
        self._stream, self._chance = stream, chance

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def append(self, subject: str, body: bytes, **options: Any) -> int:
        """Some of them are late."""
        if b'"part"' in body:
            await asyncio.sleep(self._chance.choice([0.0, 0.0, 0.01, 1.0]) * self._chance.random())
        stored: int = await self._stream.append(subject, body, **options)
        return stored


class Lossy:
    """A bus on which some of what comes live is lost, and some of it is late."""

    def __init__(self, bus: Any, live: str, chance: random.Random, lost: float) -> None:
        self._bus, self._live, self._chance, self._lost = bus, live, chance, lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def subscribe(self, subject: str, handler: Any, *, sure: bool = True) -> Any:
        """With losses for what is live."""
        at = 0.0

        def hear(message: Any) -> None:
            nonlocal at
            if self._chance.random() >= self._lost:
                loop = asyncio.get_running_loop()
                at = max(at, loop.time() + self._chance.choice([0.0, 0.02, 1.0]) * self._chance.random())
                loop.call_at(at, handler, message)

        return await self._bus.subscribe(subject, hear if subject.startswith(self._live) else handler, sure=sure)


async def _reads_all(seed: int) -> None:
    chance = random.Random(seed)
    system = MemorySystem(max_payload=8_192)
    config = Config(timing=Timing(linger=0.0, linger_unwatched=0.0))
    store = MemoryJobStore(config, system=system)
    owner = MemoryEventTransport(store)
    store.link._events = Halting(store.link.events, chance)  # type: ignore[assignment]
    viewing = MemoryJobStore(config, system=system)
    link: MemoryLink = viewing.link
    live, lost = Subjects(system.namespace).live_prefix, chance.choice([0, 0.1, 0.5])
    link._events = Slow(link.events, chance)  # type: ignore[assignment]
    link._bus = Lossy(link.bus, live, chance, lost)  # type: ignore[assignment]
    viewer = MemoryEventTransport(viewing)
    await store.initialize()
    await viewing.initialize()
    job = await store.create_job("s", "u")
    sent = [f"{number}" * chance.choice([1, 1, 1, 1, _BIG]) for number in range(_EVENTS)]
    got: list[StreamEvent] = []

    async def read() -> None:
        async with viewer.read("s") as events:
            async for event in events:
                got.append(event)  # noqa: PERF401 - as far as it came is what the test looks at

    reading = asyncio.ensure_future(read())
    for number, event in enumerate(sent, 1):
        await owner.emit_chunk("s", event, generation=job.generation)
        await asyncio.sleep(chance.choice([0.0, 0.0, 0.01, 0.5, 3.0]) * chance.random())
        if chance.random() < 0.1:
            await asyncio.sleep(_SILENCE)
            assert len(got) == number
    await owner.emit_done("s", "end", generation=job.generation)
    await reading
    check_whole(got, sent)
    await viewing.destroy()
    await store.destroy()


@pytest.mark.parametrize("seed", range(40))
def test_every_event_once_and_in_order(seed: int) -> None:
    """Whatever an answer tells of has perhaps come live before it is here, in part or whole."""
    with Virtual() as clock:
        clock.run(_reads_all(seed))
