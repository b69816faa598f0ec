"""``Reading``: the block around a reader that ``EventTransport.read`` gives out.

Owns one reader from entering to leaving; how it attaches and detaches is the transport's business. Guarantees that a
transport that is destroyed ends it at any time: who waits for the next event, or is only on the way in, gets
``NotOpenError``, and nothing of the reader is left when ``close`` returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from types import TracebackType
from typing import Any, Protocol

from natsjobs.engine.reader import LogReader
from natsjobs.errors import NotOpenError
from natsjobs.interfaces import EventReader
from natsjobs.tasks import Latch


class _Transport(Protocol):
    async def attach(self, reading: Reading, after: str | None, generation: str | None, wait: float) -> LogReader: ...

    async def detach(self, reading: Reading, reader: LogReader) -> None: ...


class Reading:
    """Entered once."""

    def __init__(
        self,
        transport: _Transport,
        stream_id: str,
        after: str | None,
        generation: str | None,
        wait: float,
        *,
        follow: bool,
    ) -> None:
        """Nothing happens before it is entered."""
        self.stream_id, self.follow = stream_id, follow
        self._transport, self._after, self._generation, self._wait = transport, after, generation, wait
        self._reader: LogReader | None = None
        self._entering: asyncio.Task[Any] | None = None
        self._entered = Latch()  # or failed to
        self._cut = False

    async def __aenter__(self) -> EventReader:
        if self._reader is not None or self._entering is not None:
            raise NotOpenError("this context manager was already entered; call subscribe() again")
        task = asyncio.current_task()
        assert task is not None
        before = task.cancelling()
        self._entering, self._entered, self._cut = task, Latch(), False
        try:
            self._reader = await self._transport.attach(self, self._after, self._generation, self._wait)
        except asyncio.CancelledError:
            if not self._cut or task.cancelling() > before + 1:  # others want that, too
                raise
            raise NotOpenError(
                "this transport was closed while this reader was being attached; subscribe on another one"
            ) from None
        finally:
            self._entering = None
            if self._cut:
                task.uncancel()
            self._entered.set()
        return self._reader

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def is_entering(self) -> bool:
        """Whether it is on its way in."""
        return self._entering is not None

    def lacks(self, ended: Collection[str]) -> bool:
        """Whether one of these generations is being read, and its end was not given yet."""
        return self._reader is not None and self._reader.cursor is not None and self._reader.lacks(ended)

    async def close(self) -> None:
        """Detach; idempotent. Where it attaches there is no telling, so that is cut short as a cancellation does it."""
        if self._entering is not None:
            if not self._cut:
                self._cut = True
                self._entering.cancel()
            await self._entered.wait()
        reader, self._reader = self._reader, None
        if reader is not None:
            await self._transport.detach(self, reader)
