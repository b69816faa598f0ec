"""One connection to the memory system, and when it is away.

Owns the life of a connection: who holds it open, what is under way over it, and whose interests end with it. What
goes over it is the business of ``link`` and ``bus``.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Protocol

from natsjobs.errors import NotOpenError, UnavailableError
from natsjobs.memory.server import Listener, MemoryServer

AWAY = "the link to the memory system is away"


class Stoppable(Listener, Protocol):
    """An interest of a connection."""

    def stop(self) -> None:
        """End it, at once."""
        ...


class Line:
    """One connection, without what goes over it. For tests it can be taken away."""

    def __init__(self, system: MemoryServer) -> None:
        self.system = system
        self.epoch = 0
        """How often the connection went away: what was under way in an earlier one is lost."""
        self.pending: set[asyncio.Future[None]] = set()
        self.own_interests: dict[Stoppable, None] = {}
        self._holders = 0
        self._since: float | None = None
        self._away = False
        self._silent = False
        self._dead = False
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._counter = itertools.count()

    @property
    def max_payload(self) -> int:
        """Largest message, bytes, headers included."""
        return self.system.max_payload

    @property
    def connected_since(self) -> float | None:
        """``time.monotonic()`` since when it is connected; ``None`` while it is away."""
        return self._since

    @property
    def has_interest(self) -> bool:
        """Whether the system still counts this link's interests: connected, or silently cut off."""
        return self._since is not None or self._silent

    def interests(self) -> list[str]:
        """Subjects and filters this link subscribes to now."""
        return [interest.subject for interest in self.own_interests]

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after every ``reconnect``; the returned function removes it."""
        key = next(self._counter)
        self._callbacks[key] = callback

        def remove() -> None:
            self._callbacks.pop(key, None)

        return remove

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Call back in the next turn of the loop."""
        asyncio.get_running_loop().call_soon(callback)

    async def open(self) -> None:
        """Create the streams that are missing. Every call needs its ``close``.

        Raises:
            UnavailableError: The link is away.
        """
        if self._away:
            raise UnavailableError(AWAY)
        self._holders += 1
        self._since = self._since or time.monotonic()
        self.system.opened(self)
        await asyncio.sleep(0)

    async def close(self) -> None:
        """The last one ends all interests and requests of this link, and takes its timers along."""
        if self._holders == 0:
            return
        self._holders -= 1
        if self._holders:
            return
        self._lose()
        self._callbacks.clear()
        for interest in list(self.own_interests):
            interest.stop()
        self.system.closed(self)

    def disconnect(self, *, silent: bool = False) -> None:
        """Take the connection away: its calls fail, nothing is delivered and nothing kept for later.

        ``silent``: as a cut cable, the system still believes in its interests, so requests to them time out.
        """
        self._away, self._silent = True, silent
        self._lose()

    def reconnect(self) -> None:
        """Give it back; the callbacks of ``on_reconnect`` follow in the next turn of the loop."""
        if self._dead or not self._away:
            return
        self._away = self._silent = False
        if self._holders:
            self._since = time.monotonic()
            loop = asyncio.get_running_loop()
            for callback in list(self._callbacks.values()):
                loop.call_soon(callback)

    def kill(self) -> None:
        """End it as SIGKILL ends a process: at once, for good, without a word to anybody."""
        self._dead = True
        self.disconnect()
        self.system.closed(self)

    def check(self, epoch: int | None = None, *, sent: bool = False) -> None:
        """Refuse a call now, or lose its answer when the connection broke since ``epoch``.

        Raises:
            NotOpenError: The link is not open.
            UnavailableError: The connection is away, or was; ``sent``: the call took its effect before.
        """
        if self._holders == 0 and epoch is None:
            raise NotOpenError("the link to the memory system is not open; await its open() first")
        if self._since is None or epoch not in {None, self.epoch}:
            raise UnavailableError(AWAY, outcome_unknown=sent)

    def _lose(self) -> None:
        self._since = None
        self.epoch += 1
        for waiting in self.pending:
            if not waiting.done():
                waiting.set_result(None)
