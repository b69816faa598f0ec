"""Headroom: events stop before the stream is full, so that what runs can still end (design-corrections B8).

Owns what this replica knows of the fill of the events stream, and the decision whether more events may go. From
``FILL`` of ``max_bytes`` on they are refused; the rest is for open and terminal records and tombstones, which are
never asked about here. A job that could not store its first event is not created at all.

How fresh the knowledge is: one reader per replica looks every ``timing.renew`` while runs are owned or events are
written here. Between two looks a writer waits for another one after an eighth of the reserve was written here, and
when a quarter of the time has passed that the stream, at the rate of all writers, needs to reach the mark. What was
written here since the last look counts too. So one replica never passes the mark, however fast it is; eight replicas
that start at full speed in the same moment fill the reserve at worst, and any number of them passes it by what they
write together in ``_SHORTEST``. Nothing is refused on old knowledge: who is about to be refused looks first. The
limits of an account and the size of a disk are not seen here: the server refuses then.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable

import msgspec

from natsjobs.engine.ports import Link, StreamState
from natsjobs.errors import StreamFullError, UnavailableError
from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub

_log = logging.getLogger(__name__)

FILL = 0.9
"""Events are refused from here on, as a part of ``max_bytes``."""
WARN = 0.8
_REARM = 0.75  # below WARN, so that a stream that stays around it does not warn at every look
_SHARE = 8
_SHORTEST = 0.05
_OVERHEAD = 320  # what a message needs besides its body: subject, headers, the store's own
_SHORT = 1000
_FRESH = 3.0


class Headroom:
    """The fill of one replica's events stream."""

    def __init__(self, link: Link, *, every: float) -> None:
        """``every``: seconds between two looks when little is written. Nothing is read before the first call."""
        self.state: StreamState | None = None
        """The newest answer."""
        self._link = link
        self._every = every
        self._asked = -math.inf  # when the newest answer was asked for
        self._due = -math.inf
        self._own = 0  # bytes that went from here and may be missing in `state`
        self._warned = False
        self._alone = asyncio.Lock()

    @property
    def fresh(self) -> StreamState | None:
        """The newest answer, as long as it is asked for again and again; else it may be long out of date."""
        return self.state if time.monotonic() - self._asked < _FRESH * self._every else None

    async def admit(self, size: int) -> None:
        """Called before an append of events with a body of ``size`` bytes.

        Raises:
            StreamFullError: It would reach into the reserve. Nothing may be sent.
        """
        if self.admits(size):
            return
        if self._is_due(size):
            await self._look()
        if self._refuses(size):
            await self._look()
            if (full := self._refuses(size)) is not None:
                hub.add(measures.APPENDS, 1, "full")
                raise full
        self._own += size + _OVERHEAD

    def admits(self, size: int) -> bool:
        """As ``admit`` where nothing has to be read for it; ``False``: nothing was admitted, ``admit`` must decide."""
        if self._is_due(size) or self._refuses(size):
            return False
        self._own += size + _OVERHEAD
        return True

    async def check_create(self) -> None:
        """Called before a job is created.

        Raises:
            StreamFullError: Its first event would be refused.
        """
        if time.monotonic() >= self._due or self._refuses(0):
            await self._look()
        if (full := self._refuses(0)) is not None:
            raise full

    async def watch(self, active: Callable[[], bool]) -> None:
        """The reader; runs until it is cancelled. ``active``: whether runs are owned here."""
        while True:
            await asyncio.sleep(self._every)
            if active() or self._own:
                await self._look()

    def _is_due(self, size: int) -> bool:
        state = self.state
        if state is None or state.max_bytes <= 0:
            return state is None and time.monotonic() >= self._due
        return time.monotonic() >= self._due or self._own + size > (1 - FILL) / _SHARE * state.max_bytes

    async def _look(self) -> None:
        """Read the stream's state, unless somebody else has asked for it since this was called."""
        called = time.monotonic()
        async with self._alone:
            if self._asked >= called:
                return
            before, own, asked = self.state, self._own, time.monotonic()
            self._due = asked + self._every
            try:
                state = await self._link.events.state()
            except UnavailableError as error:  # then the append itself tells what is wrong
                _log.info("the fill of the stream could not be read: %s", error)
                return
            if before is not None and before.created == state.created and state.bytes > before.bytes:
                rate = (state.bytes - before.bytes) / max(asked - self._asked, 1e-3)
                room = max(0.0, FILL * state.max_bytes - state.bytes)
                self._due = asked + min(self._every, max(_SHORTEST, room / rate / 4))
            self.state, self._asked = state, asked
            self._own -= own  # what went meanwhile may be in the answer or not: it counts twice rather than not at all
            self._warn(state)

    def _refuses(self, size: int) -> StreamFullError | None:
        state = self.state
        if state is None or state.max_bytes <= 0:
            return None
        held = state.bytes + self._own
        if held + size < FILL * state.max_bytes:
            return None
        return StreamFullError(
            f"the events stream holds {held:,} of its max_bytes of {state.max_bytes:,}, and from {FILL:.0%} on "
            "it takes no more events, so that running jobs can end; raise it (`nats stream edit --max-bytes`), or "
            "shorten retention.finished or retention.log; logs of ended jobs go by themselves and make room",
            size=held,
            limit=state.max_bytes,
        )

    def _warn(self, state: StreamState) -> None:
        part = state.bytes / state.max_bytes if state.max_bytes > 0 else 0.0
        if part >= WARN and not self._warned:
            _log.warning(
                "the events stream is %.0f %% full (%d of %d bytes); from %.0f %% on events are refused: raise "
                "max_bytes or shorten the retention", 100 * part, state.bytes, state.max_bytes, 100 * FILL,
            )  # fmt: skip
        self._warned = part >= WARN or (self._warned and part >= _REARM)


def fitting(kind: str, data: bytes, why: UnavailableError, *, most: int) -> tuple[str, bytes]:
    """Kind and data of a terminal record of at most ``most`` bytes, for a generation whose events were refused.

    It is not done: events of it are missing. An error keeps its first words, an abort loses a large final event.
    """
    if kind == "done":
        return "error", msgspec.json.encode(f"the last events could not be stored: {why}")
    if len(data) <= most:
        return kind, data
    _log.warning("a final event of %d bytes was left out: %s", len(data), why)
    if kind == "error":
        return kind, msgspec.json.encode(f"{msgspec.json.decode(data, type=str)[:_SHORT]}…")
    return kind, b"null"
