"""The block around a reader that ``JobManager.subscribe`` gives: the manager can close it while somebody iterates.

It adds closing to the transport's reader and nothing else; order, replay and the end are the reader's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Protocol, TypeVar, cast

from natsjobs.errors import NotOpenError
from natsjobs.interfaces import EventReader
from natsjobs.manager.interrupt import Interrupt
from natsjobs.models import Job, StreamEvent

_T = TypeVar("_T")

_LEFT = "this reader was left or its JobManager closed; subscribe again with after=cursor to go on"


class _Ready(Protocol):
    """A reader with a ``hand`` says what it has there: that needs no waiting, so nothing that could be interrupted."""

    @property
    def hand(self) -> list[StreamEvent]:
        """Events that are here, the next one last; always the same list."""
        ...

    def fill(self) -> bool:
        """Put what is here into the empty ``hand``; whether there was anything."""
        ...

    def idle(self) -> Awaitable[None] | None:
        """What ends when something is new, or it is closed, if it is awaited at once; ``None``: do not wait."""
        ...


class ReaderBlock:
    """``async with`` around a reader, and the reader itself."""

    def __init__(
        self,
        inner: AbstractAsyncContextManager[EventReader, None],
        readers: set[ReaderBlock],
        require_open: Callable[[], None],
    ) -> None:
        self._inner = inner
        self._readers = readers
        self._require_open = require_open
        self._reader: EventReader | None = None
        self._hand: list[StreamEvent] = []
        self._ready: _Ready | None = None
        self._closed = False
        self._released = False
        self._busy = False  # somebody waits for the next event
        self._waiting: asyncio.Task[Any] | None = None  # who it is, while that could be interrupted
        self._before = 0
        self._interrupt: Interrupt | None = None
        self._idle = asyncio.Event()

    async def __aenter__(self) -> EventReader:
        self._require_open()
        if self._reader is not None or self._closed:
            raise NotOpenError("this subscription was already entered; call subscribe() again")
        self._readers.add(self)
        try:
            self._reader = await self._unless_closed(self._inner.__aenter__)
        except BaseException:
            self._readers.discard(self)
            raise
        # Not `isinstance`: that asks for every name of a protocol, 50 µs for each reader that comes.
        if hasattr(self._reader, "hand") and not self._closed:
            self._ready = cast("_Ready", self._reader)
            self._hand = self._ready.hand
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._exit()

    def __aiter__(self) -> EventReader:
        return self

    async def __anext__(self) -> StreamEvent:
        if self._hand and not self._busy:
            return self._hand.pop()
        ready = self._ready
        if not (self._closed or self._busy) and ready is not None and (news := ready.idle()) is not None:
            # This is what every wake-up goes through. Closing the reader ends it: nothing has to be interrupted.
            self._busy = True
            try:
                await news
            finally:
                self._busy = False
            if not self._closed and ready.fill():
                return self._hand.pop()
        if self._closed or self._reader is None:
            raise NotOpenError(_LEFT)
        return await self._unless_closed(self._reader.__anext__)

    async def _unless_closed(self, call: Callable[[], Awaitable[_T]]) -> _T:
        task = asyncio.current_task()
        if task is None or self._busy:
            raise RuntimeError("a reader is used by one task at a time; subscribe once per task")
        self._busy, self._waiting, self._before = True, task, task.cancelling()
        try:
            return await call()
        except asyncio.CancelledError:
            if self._interrupt is not None and not self._interrupt.by_others:
                raise NotOpenError(_LEFT) from None
            raise
        finally:
            self._busy, self._waiting = False, None
            if self._interrupt is not None:
                self._idle.set()
                if (cut := await self._interrupt.release()) is not None:
                    raise cut

    @property
    def job(self) -> Job:
        """The job as it was when the reader was entered (with ``follow``: of the generation being read)."""
        return self._entered.job

    @property
    def cursor(self) -> str | None:
        """The cursor of the event given last; ``None`` before the first."""
        return self._entered.cursor

    @property
    def stored(self) -> int:
        """How many events the generation has, as far as is known here."""
        return self._entered.stored

    @property
    def _entered(self) -> EventReader:
        if self._reader is None:
            raise NotOpenError("this reader is not open; enter it first: async with jobs.subscribe(...) as events")
        return self._reader

    def lacks(self, ends: Mapping[str, str]) -> bool:
        """Whether somebody reads one of these generations (with the cursors of their ends) and has not got its end."""
        if self._closed or self._reader is None or not (self._busy or self._reader.cursor is not None):
            return False
        generation = self._reader.job.generation
        return generation in ends and self._reader.cursor != ends[generation]

    async def close(self) -> None:
        """The manager is left: whoever waits for the next event gets ``NotOpenError``."""
        self._closed, self._hand = True, []
        if self._waiting is not None:
            self._interrupt = Interrupt("the JobManager was closed")
            self._interrupt.arm(self._waiting, before=self._before)
            self._interrupt.fire()
            await self._idle.wait()
        await self._exit()

    async def _exit(self) -> None:
        self._closed, self._hand = True, []
        self._readers.discard(self)
        if self._reader is not None and not self._released:
            self._released = True
            await self._inner.__aexit__(None, None, None)
