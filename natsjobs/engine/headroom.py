"""Headroom: events stop before the stream is full, so that what runs can still end (design-corrections B8).

Owns what this replica knows of the fill of the events stream, and the decision whether more events may go. From
``FILL`` of ``max_bytes`` on they are refused; the rest is for open and terminal records and tombstones, which are
never asked about here. A job that could not store its first event is not created at all.

How fresh the knowledge is: there is one reader per replica, which works while runs are owned or events are written
here. It looks every ``timing.renew``; at a quarter of the time that the present rate needs to reach the mark; and
after every sixteenth of the reserve that was written here, never more often than ten times a second. What was written
here since the last look is added to what was read, so one replica alone never passes the mark, however fast it is.
Nothing is refused on knowledge older than a tenth of a second: who is about to be refused looks first. A stream
without ``max_bytes`` costs one look per ``timing.renew``. The limits of an account and the size of a disk are not seen
here: the server refuses then.
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

_log = logging.getLogger(__name__)

FILL = 0.9
"""Events are refused from here on, as a part of ``max_bytes``."""
WARN = 0.8
_REARM = 0.75  # below WARN, so that a stream that stays around it does not warn at every look
_SPACING = 0.1
_OVERHEAD = 320  # what a message needs besides its body: subject, headers, the store's own
_SHORT = 1000


class Headroom:
    """The fill of one replica's events stream."""

    def __init__(self, link: Link, *, every: float) -> None:
        """``every``: seconds between two looks when little is written. Nothing is read before the first call."""
        self.state: StreamState | None = None
        """The newest answer."""
        self._link = link
        self._every = every
        self._looked = -math.inf
        self._rate = 0.0  # bytes a second, of all writers together
        self._own = 0  # bytes that went from here and may be missing in `state`
        self._warned = False
        self._hurry: asyncio.Event | None = None
        self._alone = asyncio.Lock()

    async def admit(self, size: int) -> None:
        """Called before an append of events with a body of ``size`` bytes.

        Raises:
            StreamFullError: It would reach into the reserve. Nothing may be sent.
        """
        if self._refuses(size):
            await self._look_again()
            if (full := self._refuses(size)) is not None:
                raise full
        self._own += size + _OVERHEAD
        state = self.state
        if self._hurry is not None and (state is None or 0 < (1 - FILL) / 16 * state.max_bytes < self._own):
            self._hurry.set()

    async def check_create(self) -> None:
        """Called before a job is created.

        Raises:
            StreamFullError: Its first event would be refused.
        """
        if time.monotonic() - self._looked >= self._every or self._refuses(0):
            await self._look_again()
        if (full := self._refuses(0)) is not None:
            raise full

    async def watch(self, active: Callable[[], bool]) -> None:
        """The reader; runs until it is cancelled. ``active``: whether runs are owned here."""
        self._hurry = asyncio.Event()
        while True:
            try:
                async with asyncio.timeout(self._pause()):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            self._hurry.clear()
            if active() or self._own:
                await self._look_again()
            await asyncio.sleep(_SPACING)

    async def _look_again(self) -> None:
        try:
            await self._look()
        except UnavailableError as error:  # then the append itself tells what is wrong
            _log.info("the fill of the stream could not be read: %s", error)

    async def _look(self) -> None:
        """Read the stream's state, unless somebody has just done so."""
        async with self._alone:
            elapsed = time.monotonic() - self._looked
            if elapsed < _SPACING:
                return
            before, own = self.state, self._own
            state = await self._link.events.state()
            self.state, self._looked = state, time.monotonic()
            self._own -= own  # what went meanwhile may be in the answer or not: it counts twice rather than not at all
            grown = state.bytes - before.bytes if before is not None and before.created == state.created else 0
            self._rate = max(0.0, grown / elapsed)
            self._warn(state)

    def _pause(self) -> float:
        state = self.state
        if state is None or state.max_bytes <= 0 or self._rate <= 0:
            return self._every
        room = FILL * state.max_bytes - state.bytes
        return min(self._every, max(0.0, room / self._rate / 4))

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


def fitting(kind: str, data: bytes, why: StreamFullError, *, most: int) -> tuple[str, bytes]:
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
