"""Presence: how many subscribers a stream id has, on this replica and on all of them.

A replica with local subscribers has interest on ``{ns}.presence.{stream_id}`` and answers its count; a replica without
has none, so nobody there is an answer at once, and a crashed replica stops counting without a message (promise 12).
Joins and leaves are published on ``{ns}.joined.{stream_id}``, apart from the questions: whoever listens for them must
not look like a subscriber (B1). "All left" is never early: no responders twice, half a second apart, and no join
since; silence is "unknown", and zero only after three unanswered questions over a lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from weakref import WeakValueDictionary

from natsjobs.engine import wire
from natsjobs.engine.audience import Audience
from natsjobs.engine.callbacks import call_and_wait
from natsjobs.engine.census import Census, follow
from natsjobs.engine.context import Context
from natsjobs.engine.ports import Incoming, Interest
from natsjobs.errors import PermissionDeniedError
from natsjobs.interfaces import Callback
from natsjobs.tasks import Tasks

_log = logging.getLogger(__name__)

_CONFIRM = 0.5


class Presence:
    """Local subscribers of one transport, counted; and the questions to the others."""

    def __init__(self, context: Context, audience: Audience) -> None:
        """Empty. ``audience`` is told who joins and leaves here."""
        self._context, self._audience = context, audience
        self._census = Census(context)
        # Not the replica id: two transports on one store are two replicas of viewers, and each counts its own.
        self._name = wire.random_token(12)
        self._counts: dict[str, int] = {}
        self._near: dict[str, int] = {}  # how many are here or on their way: as long as there are, questions are heard
        self._interests: dict[str, Interest] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._watches: dict[str, _Watch] = {}

    def count(self, stream_id: str) -> int:
        """Subscribers here."""
        return self._counts.get(stream_id, 0)

    def stream_ids(self) -> set[str]:
        """Stream ids with subscribers or callbacks here."""
        return set(self._counts) | set(self._watches)

    @asynccontextmanager
    async def joining(self, stream_id: str) -> AsyncGenerator[Callable[[], Awaitable[None]]]:
        """Somebody attaches in this block, and when it has ended well every replica that asks can find him.

        What it gives is to be awaited in there: from then on questions are heard, and answered with who is here.
        Nothing is waited for: whoever asks for something behind that has the answer to a later request when he joins.
        """
        self._near[stream_id] = self._near.get(stream_id, 0) + 1
        try:
            yield partial(self._listen, stream_id)
        except BaseException:
            await self._turn_back(stream_id)
            raise
        await self._join(stream_id)

    async def _listen(self, stream_id: str) -> None:
        async with self._lock(stream_id):
            if stream_id not in self._interests and stream_id in self._near:
                subject = self._context.subjects.presence(stream_id)
                bus, answer = self._context.link.bus, partial(self._answer, stream_id)
                self._interests[stream_id] = await bus.subscribe(subject, answer, sure=False)

    async def _turn_back(self, stream_id: str) -> None:
        left = self._near.pop(stream_id, 0) - 1
        if left > 0:
            self._near[stream_id] = left
            return
        async with self._lock(stream_id):
            interest = None if stream_id in self._near else self._interests.pop(stream_id, None)
            if interest is not None:
                await interest.unsubscribe()

    async def _join(self, stream_id: str) -> None:
        """When it fails he has turned back."""
        self._counts[stream_id] = self._counts.get(stream_id, 0) + 1
        self._audience.come(stream_id)
        try:
            await self._listen(stream_id)
            if (interest := self._interests.get(stream_id)) is not None:
                await interest.confirm()
            await self._announce(stream_id, "join")
        except BaseException:
            await self._uncount(stream_id)
            raise

    async def leave(self, stream_id: str) -> None:
        """One less."""
        await self._uncount(stream_id)
        await self._announce(stream_id, "leave")

    async def _uncount(self, stream_id: str) -> None:
        had = self._counts.pop(stream_id, 0)
        if had > 1:
            self._counts[stream_id] = had - 1
        if had:  # else `close` was quicker
            self._audience.go(stream_id)
        await self._turn_back(stream_id)

    def _lock(self, stream_id: str) -> asyncio.Lock:
        return self._locks.setdefault(stream_id, asyncio.Lock())

    async def _announce(self, stream_id: str, what: str) -> None:
        body = wire.ascii_json({"event": what, "replica": self._name, "count": self.count(stream_id)})
        await self._context.link.bus.publish(self._context.subjects.joined(stream_id), body)

    def _answer(self, stream_id: str, message: Incoming) -> None:
        if message.reply:
            body = wire.ascii_json({"replica": self._name, "count": self.count(stream_id)})
            self._context.spawn(self._context.reply(message, body), "natsjobs presence")

    # -- asking -------------------------------------------------------------------------------------------------

    async def count_all(self, stream_id: str) -> int:
        """Subscribers on all replicas; an unknown number of others counts as none.

        Raises:
            UnavailableError: NATS does not answer: nobody knows who is there.
        """
        try:
            found = await self._census.ask(stream_id)
        except PermissionDeniedError as error:
            _log.warning("only the subscribers of %s on this replica are counted: %s", stream_id, error)
            return self.count(stream_id)
        if found is None:
            await self._context.link.records.state()  # is it they who are silent, or NATS?
        return max(found or 0, self.count(stream_id))

    # -- all left -----------------------------------------------------------------------------------------------

    async def on_all_left(self, stream_id: str, callback: Callback) -> LeftRegistration:
        """Call back at the end of every cycle of at least one subscriber."""
        watch = self._watches.get(stream_id)
        if watch is None:
            watch = self._watches[stream_id] = _Watch(self._context, self, self._census, stream_id)
        registration = LeftRegistration(self, stream_id, callback)
        watch.registrations.append(registration)
        try:
            await watch.open()
        except BaseException:
            await self.remove(registration)
            raise
        return registration

    async def remove(self, registration: LeftRegistration) -> None:
        """Drop one callback; idempotent."""
        watch = self._watches.get(registration.stream_id)
        if watch is None or registration not in watch.registrations:
            return
        watch.registrations.remove(registration)
        if not watch.registrations:
            del self._watches[registration.stream_id]
            await watch.close()

    async def close(self, stream_id: str | None = None, *, patience: float | None = None) -> None:
        """Drop callbacks of one stream id, or of all and interest too; ``patience`` as in ``Tasks.close``.

        Whoever is here leaves by himself, and whoever is on his way meanwhile is found as ever.
        """
        for name in [stream_id] if stream_id is not None else {*self._watches, *self._counts, *self._near}:
            watch = self._watches.pop(name, None)
            if watch is not None:
                await watch.close(patience)
            self._census.forget(name)
            if stream_id is None:
                await self._abandon(name)

    async def _abandon(self, name: str) -> None:
        interest = self._interests.pop(name, None)
        if interest is not None:
            await interest.unsubscribe()
        if count := self._counts.pop(name, 0):
            self._audience.go(name, count)
            await self._announce(name, "leave")
        self._near.pop(name, None)


class LeftRegistration:
    """Implements ``natsjobs.interfaces.Registration``."""

    def __init__(self, presence: Presence, stream_id: str, callback: Callback) -> None:
        self._presence, self.stream_id, self.callback = presence, stream_id, callback

    async def dispose(self) -> None:
        """Remove just this callback."""
        await self._presence.remove(self)


class _Watch:
    """Follows joins and leaves of one stream id until the last callback is gone."""

    def __init__(self, context: Context, presence: Presence, census: Census, stream_id: str) -> None:
        self.registrations: list[LeftRegistration] = []
        self._context, self._presence, self._census, self._stream_id = context, presence, census, stream_id
        self._interest: Interest | None = None
        self._forget: Callable[[], None] | None = None
        self._lock = asyncio.Lock()
        self._news = asyncio.Event()
        self._joins = 0
        self._occupied = False
        self._tasks = Tasks()

    async def open(self) -> None:
        async with self._lock:
            if self._interest is not None:
                return
            interest = await follow(self._context, self._stream_id, self._on_join, self._news.set)
            try:
                self._occupied = bool(await self._census.ask(self._stream_id)) or self._occupied
            except BaseException:
                await interest.unsubscribe()
                raise
            self._interest = interest
            self._forget = self._context.link.on_reconnect(self._news.set)
            self._tasks.spawn(self._follow(), name=f"natsjobs presence of {self._stream_id}")

    async def close(self, patience: float | None = None) -> None:
        if self._forget is not None:
            self._forget()
        interest, self._interest = self._interest, None
        if interest is not None:
            await interest.unsubscribe()
        await self._tasks.close(patience=patience)

    def _on_join(self) -> None:
        self._joins += 1
        self._occupied = True
        self._news.set()

    async def _follow(self) -> None:
        """Look after every change, and now and then: a replica that died says nothing."""
        poll = self._context.config.timing.lease / 2
        while True:
            try:
                async with asyncio.timeout(poll if self._occupied else None):
                    await self._news.wait()
            except TimeoutError:
                pass
            self._news.clear()
            try:
                if self._occupied and await self._all_left():
                    self._occupied = False
                    await self._fire()
                elif not self._occupied:
                    self._occupied = bool(await self._census.ask(self._stream_id))
            except PermissionDeniedError as error:  # taken away meanwhile: whether anybody is left is not known
                _log.warning("whether subscribers of %s have left is not known: %s", self._stream_id, error)

    async def _all_left(self) -> bool:
        joins, silent = self._joins, 0
        lease = self._context.config.timing.lease
        answers: list[int | None] = []
        while True:
            if self._presence.count(self._stream_id):
                return False
            count = await self._census.ask(self._stream_id)
            answers.append(count)
            if count or self._joins != joins or self._context.link.connected_since is None:
                return False
            silent = silent + 1 if count is None else 0
            if answers[-2:] == [0, 0] or silent >= 3:
                return self._joins == joins
            await asyncio.sleep(_CONFIRM if count == 0 else lease / 2)

    async def _fire(self) -> None:
        for registration in list(self.registrations):
            await call_and_wait(f"an on_all_subscribers_left callback of {self._stream_id}", registration.callback)
