"""The block around a reader that ``JobManager.subscribe`` gives: the manager can close it while somebody iterates.

It adds closing to the transport's reader and nothing else; order, replay and the end are the reader's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

from natsjobs.errors import NotOpenError
from natsjobs.interfaces import EventReader
from natsjobs.manager.interrupt import Interrupt
from natsjobs.models import Job, StreamEvent

_T = TypeVar("_T")

_LEFT = "this reader was left or its JobManager closed; subscribe again with after=cursor to go on"


@runtime_checkable
class _Ready(Protocol):
    """A reader that says what it has at hand: its events need no waiting, so nothing that could be interrupted."""

    @property
    def hand(self) -> Iterator[StreamEvent | None]:
        """The events that are here; ``None``: await ``more``."""
        ...

    async def more(self) -> StreamEvent:
        """The next event, when ``hand`` gave none. Raises as ``EventReader.__anext__`` does."""
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
        self._hand: Iterator[StreamEvent | None] = iter(())
        self._more: Callable[[], Awaitable[StreamEvent]] | None = None
        self._closed = False
        self._released = False
        self._waiting: asyncio.Task[Any] | None = None
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
        if isinstance(self._reader, _Ready) and not self._closed:
            self._hand, self._more = self._reader.hand, self._reader.more
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._exit()

    def __aiter__(self) -> EventReader:
        return self

    async def __anext__(self) -> StreamEvent:
        if self._waiting is None and (event := next(self._hand, None)) is not None:
            return event
        if self._closed or self._reader is None:
            raise NotOpenError(_LEFT)
        return await self._unless_closed(self._more or self._reader.__anext__)

    async def _unless_closed(self, call: Callable[[], Awaitable[_T]]) -> _T:
        task = asyncio.current_task()
        if task is None or self._waiting is not None:
            raise RuntimeError("a reader is used by one task at a time; subscribe once per task")
        # This runs at every wake-up: what an interrupt needs is only noted here.
        self._waiting, self._before = task, task.cancelling()
        try:
            return await call()
        except asyncio.CancelledError:
            if self._interrupt is not None and not self._interrupt.by_others:
                raise NotOpenError(_LEFT) from None
            raise
        finally:
            self._waiting = None
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
        if self._closed or self._reader is None or (self._waiting is None and self._reader.cursor is None):
            return False
        generation = self._reader.job.generation
        return generation in ends and self._reader.cursor != ends[generation]

    async def close(self) -> None:
        """The manager is left: whoever waits for the next event gets ``NotOpenError``."""
        self._closed, self._hand = True, iter(())
        if self._waiting is not None:
            self._interrupt = Interrupt("the JobManager was closed")
            self._interrupt.arm(self._waiting, before=self._before)
            self._interrupt.fire()
            await self._idle.wait()
        await self._exit()

    async def _exit(self) -> None:
        self._closed, self._hand = True, iter(())
        self._readers.discard(self)
        if self._reader is not None and not self._released:
            self._released = True
            await self._inner.__aexit__(None, None, None)
