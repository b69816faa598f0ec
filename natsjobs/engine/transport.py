"""``EngineTransport``: the ``EventTransport`` interface on the engine.

Owns the subscribers and callbacks that were made through it, so that two transports on one store are two replicas of
viewers; everything about writing, ending and aborting is shared below, in the replica.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from natsjobs.engine import wire
from natsjobs.engine.jobs import read_record
from natsjobs.engine.presence import Presence
from natsjobs.engine.reader import LogReader
from natsjobs.engine.reading import Reading
from natsjobs.engine.replica import Replica
from natsjobs.engine.subscribing import Handlers, HandlerSubscription
from natsjobs.engine.tails import Tails
from natsjobs.engine.terminals import End, count_events
from natsjobs.errors import InvalidArgumentError, JobClosedError, JobNotFoundError, NotOpenError
from natsjobs.interfaces import Callback, EndCallback, Handler
from natsjobs.models import StreamEvent

_GLANCE = 0.01


class _Disposable(Protocol):
    async def dispose(self) -> None: ...


class EngineTransport:
    """Implements ``natsjobs.interfaces.EventTransport``; see there for what each method means."""

    def __init__(self, replica: Replica) -> None:
        """No I/O; opened by its first use."""
        self.replica = replica
        self._context = replica.context
        self._tails = Tails(self._context)
        self._presence = Presence(self._context, replica.audience)
        self._subscriptions: dict[str, set[HandlerSubscription]] = {}
        self._readers: set[Reading] = set()
        self._registrations: dict[str, list[_Disposable]] = {}
        self._opening = asyncio.Lock()
        self._opened = self._destroyed = False

    async def _open(self, stream_id: object) -> str:
        checked = self._context.check_id(stream_id, "stream_id")
        if not self._opened:
            async with self._opening:
                if not (self._opened or self._destroyed):
                    await self.replica.open(self)
                    self._opened = True
        if self._destroyed:
            raise NotOpenError("this transport was destroyed; make a new one")
        return checked

    # -- reading ------------------------------------------------------------------------------------------------

    def read(
        self,
        stream_id: str,
        *,
        after: str | None = None,
        generation: str | None = None,
        wait: float = 0.0,
        follow: bool = False,
    ) -> Reading:
        """Replay, then live, then the terminal record."""
        return Reading(self, stream_id, after, generation, wait, follow=follow)

    async def subscribe(
        self,
        stream_id: str,
        *,
        on_chunk: Handler,
        on_done: Handler | None = None,
        on_error: Handler | None = None,
        on_aborted: Handler | None = None,
    ) -> HandlerSubscription:
        """Live events from now on, over all later generations, until ``unsubscribe``."""
        await self._open(stream_id)
        handlers = Handlers(on_chunk, on_done, on_error, on_aborted)
        _check_callable("on_chunk", on_chunk)
        for name, handler in (("on_done", on_done), ("on_error", on_error), ("on_aborted", on_aborted)):
            if handler is not None:
                _check_callable(name, handler)
        subscription = HandlerSubscription(
            handlers, lambda: LogReader(self._context, self._tails, stream_id, follow=True), self._forget(stream_id)
        )
        self._subscriptions.setdefault(stream_id, set()).add(subscription)
        try:
            async with self._presence.joining(stream_id) as listen:
                await listen()
                await subscription.attach()  # before it joins: then an owner sends what it held back for nobody
            subscription.joined = True
            try:
                subscription.begin()
            except NotOpenError:
                await self._presence.leave(stream_id)
                raise
        except BaseException:
            await subscription.unsubscribe()
            raise
        return subscription

    def _forget(self, stream_id: str) -> Callable[[HandlerSubscription], Awaitable[None]]:
        async def forget(subscription: HandlerSubscription) -> None:
            known = self._subscriptions.get(stream_id, set())
            known.discard(subscription)
            if not known:
                self._subscriptions.pop(stream_id, None)
            if subscription.joined:
                await self._presence.leave(stream_id)

        return forget

    # -- writing ------------------------------------------------------------------------------------------------

    async def emit_chunk(self, stream_id: str, event: Any, *, generation: str | None = None) -> None:
        """Queue one event and return; waits only for room in the queue."""
        config, runs = self._context.config, self.replica.runs
        raw = wire.encode_event(event, limit=config.limits.event_bytes, enc_hook=config.enc_hook)
        writer = runs.local(stream_id, generation) if self._opened and not self._destroyed else None
        if writer is None:
            writer = await runs.writer(await self._open(stream_id), generation)
        runs.active(stream_id, writer.generation)
        if not writer.offer(raw):
            await writer.put(raw)

    async def flush(self, stream_id: str, *, generation: str | None = None) -> None:
        """Wait until what was queued here before it is stored."""
        await self.replica.runs.flush(await self._open(stream_id), generation)

    async def emit_done(self, stream_id: str, event: Any, *, generation: str | None = None) -> None:
        """End the generation as complete with a final event."""
        config = self._context.config
        raw = wire.encode_event(event, limit=config.limits.event_bytes, enc_hook=config.enc_hook)
        await self._end(stream_id, generation, "done", raw)

    async def emit_error(self, stream_id: str, error: str, *, generation: str | None = None) -> None:
        """End the generation as an error with a text."""
        if not isinstance(error, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgumentError("error", f"must be a string, not {type(error).__name__}")
        await self._end(stream_id, generation, "error", wire.encode_event(error, limit=1 << 40))

    async def _end(self, stream_id: str, generation: str | None, kind: str, raw: bytes) -> None:
        writer = await self.replica.runs.writer(await self._open(stream_id), generation)
        end = End(kind, None, wire.random_token(), raw)
        terminal, _ = await self.replica.runs.end(stream_id, writer.generation, end)
        if terminal.request != end.request:
            raise JobClosedError(stream_id, writer.generation, terminal.status, terminal.reason)

    # -- signals ------------------------------------------------------------------------------------------------

    async def emit_abort(self, stream_id: str, *, generation: str | None = None) -> bool:
        """Signal an abort to all replicas; True: the owner's callbacks have run."""
        try:
            return await self.replica.aborts.signal(await self._open(stream_id), generation)
        except JobNotFoundError:
            return False

    async def on_abort(self, stream_id: str, callback: Callback, *, generation: str | None = None) -> _Disposable:
        """Call back at every abort signal."""
        _check_callable("callback", callback)
        registration = await self.replica.aborts.add(await self._open(stream_id), generation, callback)
        return self._track(stream_id, registration)

    async def on_end(self, stream_id: str, callback: EndCallback, *, generation: str | None = None) -> _Disposable:
        """Call back once with the terminal event."""
        _check_callable("callback", callback)
        await self._open(stream_id)
        if generation is None:
            record = await read_record(self._context, stream_id)
            if record is None:
                raise JobNotFoundError(stream_id)
            generation = record.generation
        tracked = _TrackedEnd(self._registrations, stream_id, callback)
        registration = await self.replica.runs.ends.add(stream_id, generation, tracked.once)
        if not registration.fired:
            tracked.track(registration)
        return tracked

    def _track(self, stream_id: str, registration: _Disposable) -> _Tracked:
        tracked = _Tracked(self._registrations, stream_id)
        tracked.track(registration)
        return tracked

    # -- presence -----------------------------------------------------------------------------------------------

    def get_subscriber_count(self, stream_id: str) -> int:
        """Subscribers on this replica."""
        return self._presence.count(self._context.check_id(stream_id, "stream_id"))

    def is_first_subscriber(self, stream_id: str) -> bool:
        """Whether exactly one is attached on this replica."""
        return self.get_subscriber_count(stream_id) == 1

    async def count_subscribers(self, stream_id: str) -> int:
        """Subscribers on all replicas; may take 0.3 s. Raises UnavailableError when NATS does not answer."""
        return await self._presence.count_all(await self._open(stream_id))

    async def count_events(self, stream_id: str, *, generation: str | None = None) -> int:
        """Events stored so far, by one look at the log's end; not a subscriber."""
        await self._open(stream_id)
        if generation is None:
            record = await read_record(self._context, stream_id)
            if record is None:
                return 0
            generation = record.generation
        return await count_events(self._context, stream_id, self._context.check_id(generation, "generation"))

    async def on_all_subscribers_left(self, stream_id: str, callback: Callback) -> _Disposable:
        """Call back whenever the last subscriber of all replicas has left."""
        _check_callable("callback", callback)
        registration = await self._presence.on_all_left(await self._open(stream_id), callback)
        return self._track(stream_id, registration)

    # -- closing ------------------------------------------------------------------------------------------------

    def get_tracked_stream_ids(self) -> list[str]:
        """Stream ids with local subscribers or callbacks."""
        return sorted(self._presence.stream_ids() | {name for name, found in self._registrations.items() if found})

    async def cleanup(self, stream_id: str) -> None:
        """Drop every local subscriber and callback of the stream id."""
        await self._open(stream_id)
        await self._drop(stream_id)

    async def _drop(self, stream_id: str, patience: float | None = None) -> None:
        for subscription in list(self._subscriptions.get(stream_id, ())):
            await subscription.unsubscribe(patience=patience)
        for reading in [reading for reading in self._readers if reading.stream_id == stream_id]:
            if self._destroyed or not reading.is_entering:  # who is on his way is no subscriber yet, but may join here
                await reading.close()
        for registration in self._registrations.pop(stream_id, []):
            await registration.dispose()
        await self._presence.close(stream_id, patience=patience)

    async def destroy(self) -> None:
        """Close readers, subscriptions and callbacks of this transport; the connection stays.

        Who follows a run that was just ended here (``JobStore.destroy``) gets its end first, within ``timing.abort``.
        """
        if self._destroyed:
            return
        self._destroyed = True
        async with self._opening:  # whoever is just opening it does that first
            opened = self._opened
        if opened:
            patience = self._context.config.timing.abort
            await self._let_hear(patience)
            names = {*self._subscriptions, *self._registrations, *(reading.stream_id for reading in self._readers)}
            await asyncio.gather(*(self._drop(stream_id, patience) for stream_id in names))
            await self._presence.close(patience=patience)
            await self._tails.close()
            await self.replica.close(self)

    async def _let_hear(self, limit: float) -> None:
        """Wait until subscribers have the ends that this replica has written."""
        ended = {generation for _, _, generation in self.replica.runs.retired}
        followers: list[Reading | HandlerSubscription] = [*self._readers]
        followers += [one for subscriptions in self._subscriptions.values() for one in subscriptions]
        deadline = time.monotonic() + limit
        while any(one.lacks(ended) for one in followers) and time.monotonic() < deadline:
            if self._context.link.connected_since is None:
                return
            await asyncio.sleep(_GLANCE)

    # -- for readers --------------------------------------------------------------------------------------------

    async def attach(self, reading: Reading, after: str | None, generation: str | None, wait: float) -> LogReader:
        """Enter one ``read``."""
        if generation is not None:
            self._context.check_id(generation, "generation")
        stream_id = await self._open(reading.stream_id)
        reader = LogReader(self._context, self._tails, stream_id, follow=reading.follow)
        self._readers.add(reading)
        try:
            async with self._presence.joining(stream_id) as listen:
                await reader.start_at(after, generation, wait, listen, self._likely(stream_id))
        except BaseException:
            self._readers.discard(reading)
            await reader.close()
            raise
        return reader

    def _likely(self, stream_id: str) -> str | None:
        """The generation that the record will probably name: the one that is written or followed here."""
        return self.replica.runs.newest(stream_id) or self._tails.newest(stream_id)

    async def detach(self, reading: Reading, reader: LogReader) -> None:
        """Leave it."""
        self._readers.discard(reading)
        try:
            await reader.close()
        finally:
            await self._presence.leave(reading.stream_id)


def _check_callable(field: str, value: object) -> None:
    if not callable(value):
        raise InvalidArgumentError(field, f"must be callable, not {type(value).__name__}")


class _Tracked:
    """A registration that ``get_tracked_stream_ids`` knows of and ``cleanup`` disposes."""

    __slots__ = ("_registration", "_stream_id", "_table")

    def __init__(self, table: dict[str, list[_Disposable]], stream_id: str) -> None:
        self._table, self._stream_id = table, stream_id
        self._registration: _Disposable | None = None

    def track(self, registration: _Disposable) -> None:
        """It is made."""
        self._registration = registration
        self._table.setdefault(self._stream_id, []).append(registration)

    def forget(self) -> None:
        """It is over by itself."""
        known = self._table.get(self._stream_id, [])
        if self._registration is not None and self._registration in known:
            known.remove(self._registration)
            if not known:
                self._table.pop(self._stream_id, None)

    async def dispose(self) -> None:
        """Remove just this callback."""
        self.forget()
        if self._registration is not None:
            await self._registration.dispose()


class _TrackedEnd(_Tracked):
    """That of an ``on_end`` callback: one that was called is none that is tracked."""

    __slots__ = ("_callback",)

    def __init__(self, table: dict[str, list[_Disposable]], stream_id: str, callback: EndCallback) -> None:
        super().__init__(table, stream_id)
        self._callback = callback

    def once(self, event: StreamEvent) -> Awaitable[None] | None:
        """The end is here."""
        self.forget()
        return self._callback(event)
