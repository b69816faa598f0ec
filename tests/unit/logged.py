"""Jobs in memory, and when each message of their logs was sent: for tests on a clock of their own."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from natsjobs import Config
from natsjobs.config import Limits, Timing
from natsjobs.memory import MemoryEventTransport, MemoryJobStore, MemorySystem

LINGER = 100.0
EXACT = 2.0
"""What the machine itself may need; the clock of the test adds only what is waited for."""


class Log:
    """A replica with jobs; ``messages``: when each one with events was sent, in seconds since ``start``, its job, how
    many events."""

    def __init__(
        self,
        linger: float = LINGER,
        linger_unwatched: float = 0.0,
        *,
        limits: dict[str, int] | None = None,
        **timing: float,
    ) -> None:
        self.system = MemorySystem()
        timing = {"look": 3000, "sweep": 3000, "linger": linger, "linger_unwatched": linger_unwatched, **timing}
        self.config = Config(timing=Timing(**timing), limits=Limits(**(limits or {})))
        self.store = MemoryJobStore(self.config, system=self.system)
        self.transport = MemoryEventTransport(self.store)
        self.others: list[MemoryJobStore] = []
        self.began = 0.0
        self.messages: list[tuple[float, str, int]] = []
        self.generations: dict[str, str] = {}

    async def start(self, *names: str) -> None:
        """Create the jobs, and begin to count."""
        await self.store.initialize()
        for name in names:
            self.generations[name] = (await self.store.create_job(name, "u")).generation
        events = self.store.link.events
        send = events.send

        def seen(subject: str, body: bytes, **options: object) -> object:
            self.messages.append((self.now, subject.split(".")[-2], body.count(b'"n"')))
            return send(subject, body, **options)  # type: ignore[arg-type]

        events.send = seen  # type: ignore[method-assign, assignment]
        self.began = time.monotonic()

    @property
    def now(self) -> float:
        """Seconds since ``start``."""
        return time.monotonic() - self.began

    async def until(self, at: float) -> None:
        """Let the time pass, until it is this."""
        await asyncio.sleep(self.began + at - time.monotonic())

    async def emit(self, name: str, at: float) -> None:
        """One event at this time."""
        await self.until(at)
        await self.transport.emit_chunk(name, {"n": at})

    async def emit_every(self, pause: float, until: float, name: str = "a") -> None:
        """From now on, and not at that moment itself."""
        at = self.now
        while at < until:
            await self.emit(name, at)
            at += pause

    def since(self, at: float) -> list[tuple[float, int]]:
        """When each message since then was sent, and how many events it holds."""
        return [(sent, count) for sent, _, count in self.messages if sent >= at]

    async def other(self) -> MemoryEventTransport:
        """The transport of another replica."""
        store = MemoryJobStore(self.config, system=self.system)
        self.others.append(store)
        await store.initialize()
        return MemoryEventTransport(store)

    def heard(self) -> list[str]:
        """Joins that this replica listens for."""
        return [subject for subject in self.store.link.interests() if ".joined." in subject]

    async def close(self, *transports: Any) -> None:
        """Leave; nothing may be left."""
        for transport in (*transports, self.transport):
            await transport.destroy()
        for store in (*self.others, self.store):
            await store.destroy()
        left = self.store.link.interests()
        assert not left, f"interests left over: {left}"
