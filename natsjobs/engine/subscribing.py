"""Handlers for live events: a reader that follows all generations, and calls back one event at a time, in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

from natsjobs.engine import garbage, wire
from natsjobs.engine.callbacks import call_and_wait
from natsjobs.engine.reader import LogReader
from natsjobs.errors import (
    ConnectionLostError,
    NotOpenError,
    PermissionDeniedError,
    ResumeError,
    UnavailableError,
)
from natsjobs.interfaces import Handler
from natsjobs.models import EventType, StreamEvent
from natsjobs.tasks import Tasks

_log = logging.getLogger(__name__)

_DENIED_PAUSE = 5.0


class Handlers:
    """What to call for which event."""

    def __init__(
        self, on_chunk: Handler, on_done: Handler | None, on_error: Handler | None, on_aborted: Handler | None
    ) -> None:
        """Handlers may be plain or async."""
        self._table: dict[str, Handler | None] = {
            EventType.EVENT.value: on_chunk,
            EventType.DONE.value: on_done,
            EventType.ERROR.value: on_error,
            EventType.ABORTED.value: on_aborted or on_done,
        }

    async def call(self, event: StreamEvent) -> None:
        """Call one handler; one that raises is logged and loses nothing of later events."""
        handler = self._table.get(event.type.value)
        if handler is not None:
            try:
                event.data  # noqa: B018 - decoded here, and kept
            except wire.UNREADABLE as error:
                garbage.skipped("an event", f"index {event.index} of {event.generation}: {error}", event.raw)
                return
            what = f"a handler of event {event.index} of generation {event.generation}"
            await call_and_wait(what, handler, event.data)


class HandlerSubscription:
    """Implements ``natsjobs.interfaces.Subscription``."""

    def __init__(
        self,
        handlers: Handlers,
        reader: Callable[[], LogReader],
        forget: Callable[[HandlerSubscription], Awaitable[None]],
    ) -> None:
        """``forget`` is told once that this subscriber has left."""
        self._handlers, self._new_reader, self._forget = handlers, reader, forget
        self._reader: LogReader | None = None
        self._tasks = Tasks()
        self._left = self._calling = False
        self.joined = False
        """Whether it counts as a subscriber: ``forget`` has to undo that."""

    async def attach(self) -> None:
        """When it returns nothing later is missed. No handler is called before ``begin``."""
        reader = self._new_reader()
        try:
            await reader.start_live()
            self._check()
        except BaseException:
            await reader.close()
            raise
        self._reader = reader

    def begin(self) -> None:
        """Call the handlers, for what has come since ``attach`` first.

        Raises:
            NotOpenError: Whoever owns it has closed it meanwhile.
        """
        self._check()
        self._tasks.spawn(self._run(), name="the handlers of a subscription")

    def _check(self) -> None:
        if self._left:
            raise NotOpenError("this transport was closed, or cleaned up, while the subscription was being made")

    async def _run(self) -> None:
        while not self._left and self._reader is not None:
            reader = self._reader
            try:
                async for event in reader:
                    self._calling = True
                    await self._handlers.call(event)
                    self._calling = False
                    if self._left:
                        return
            except NotOpenError:
                return
            except ResumeError as error:
                _log.warning("a subscription missed events that are no longer in the log, and goes on live: %s", error)
                await self._restart(reader)
            except ConnectionLostError as error:
                _log.error("a subscription has ended, its handlers hear nothing more: %s", error)
                return
            except PermissionDeniedError as error:
                _log.warning("a subscription stands still: %s", error)
                await asyncio.sleep(_DENIED_PAUSE)
            except UnavailableError as error:
                _log.info("a subscription waits for NATS: %s", error)
                await asyncio.sleep(0.2)

    async def _restart(self, reader: LogReader) -> None:
        await reader.close()
        lost = reader.generation
        while not self._left:
            self._reader = self._new_reader()
            try:
                await self._reader.start_live(after=lost)
            except ConnectionLostError:
                return  # the next read of this reader says so
            except (ResumeError, UnavailableError) as error:
                _log.info("a subscription waits: %s", error)
                await self._reader.close()
                await asyncio.sleep(_DENIED_PAUSE if isinstance(error, PermissionDeniedError) else 0.2)
            else:
                return

    def lacks(self, ended: Collection[str]) -> bool:
        """Whether one of these generations is being followed, and its end was not handled yet."""
        return self._reader is not None and (self._reader.lacks(ended) or self._calling)

    async def unsubscribe(self, *, patience: float | None = None) -> None:
        """Detach; idempotent. When it returns no handler runs any more, but the one that called it.

        ``patience``: not longer than this for a handler that ignores that it is cancelled; ``None``: for ever.
        """
        if self._left:
            return
        self._left = True
        try:
            await self._tasks.close(patience=patience)
        finally:
            try:
                if self._reader is not None:
                    await self._reader.close()
            finally:
                await self._forget(self)
