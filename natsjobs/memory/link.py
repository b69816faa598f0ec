"""One connection to the memory system: the ports ``Link``, ``Stream``, ``Bus`` and ``Interest``.

Owns the timing of a network and what happens while the connection is away. What is published reaches handlers in a
later turn of the loop, never inside the call; a call takes its effect when it is made and its answer travels, so one
that is cancelled, or whose link goes away, while it waits has happened all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Sequence

from natsjobs.engine.ports import (
    PAGE,
    PAGE_BYTES,
    BusHandler,
    Incoming,
    Message,
    NoReplyError,
    NoRespondersError,
    StreamState,
    WrongSequenceError,
)
from natsjobs.errors import EventTooLargeError, NotOpenError, UnavailableError
from natsjobs.memory.server import MemoryServer
from natsjobs.memory.stream import StreamStore

_AWAY = "the link to the memory system is away"
_HEADERS = 1024
"""Room that ``Stream.append`` keeps for headers below ``max_payload``."""


class MemoryLink:
    """One connection to a memory system: implements the port ``Link``. For tests it can be taken away."""

    def __init__(self, system: MemoryServer) -> None:
        self.system = system
        self.epoch = 0
        """How often the connection went away: what was under way in an earlier one is lost."""
        self.pending: set[asyncio.Future[None]] = set()
        self.own_interests: dict[MemoryInterest, None] = {}
        self._holders = 0
        self._since: float | None = None
        self._away = False
        self._silent = False
        self._dead = False
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._counter = itertools.count()
        self._events = MemoryStream(self, "events")
        self._records = MemoryStream(self, "records")
        self._bus = MemoryBus(self)

    @property
    def events(self) -> MemoryStream:
        """The stream of events."""
        return self._events

    @property
    def records(self) -> MemoryStream:
        """The stream of records."""
        return self._records

    @property
    def bus(self) -> MemoryBus:
        """Core subjects."""
        return self._bus

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
            raise UnavailableError(_AWAY)
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
            raise UnavailableError(_AWAY, outcome_unknown=sent)

    def _lose(self) -> None:
        self._since = None
        self.epoch += 1
        for waiting in self.pending:
            if not waiting.done():
                waiting.set_result(None)


class _MemorySent:
    """An append that was sent: implements the port ``Sent``."""

    seq = 0
    error: Exception | None = None

    async def outcome(self) -> int:
        if self.error is not None:
            raise self.error
        return self.seq


class MemoryStream:
    """A stream as one link sees it: implements the port ``Stream``."""

    def __init__(self, link: MemoryLink, name: str) -> None:
        self._link = link
        self._name = name

    async def append(
        self,
        subject: str,
        body: bytes,
        *,
        expect: int | None = None,
        scope: str | None = None,
        ttl: float | None = None,
        rollup: bool = False,
        marker: bool = False,
    ) -> int:
        """Store one message; its sequence. Raises as the port says, and ``EventTooLargeError``."""
        limit = self._link.max_payload - _HEADERS
        if len(body) > limit:
            raise EventTooLargeError(len(body), limit)
        store = self._store()
        seq = store.append(subject, body, expect=expect, scope=scope, ttl=ttl, rollup=rollup, marker=marker)
        self._link.system.arm()
        await self._answer(sent=True)
        return seq

    def send(
        self, subject: str, body: bytes, *, expect: int, scope: str, done: Callable[[int], None]
    ) -> _MemorySent | None:
        """Append without a task, as the port says: stored at once, the answer travels."""
        link = self._link
        if link.connected_since is None or len(body) > link.max_payload - _HEADERS:
            return None
        epoch, sent = link.epoch, _MemorySent()
        try:
            store = self._store()
            sent.seq = store.append(subject, body, expect=expect, scope=scope, ttl=None, rollup=False, marker=False)
        except (WrongSequenceError, UnavailableError) as error:
            sent.error = error
        link.system.arm()

        def answered() -> None:
            if sent.error is None:
                try:
                    link.check(epoch, sent=True)
                except UnavailableError as error:
                    sent.error = error
            done(sent.seq if sent.error is None else 0)

        asyncio.get_running_loop().call_soon(answered)
        return sent

    async def next(self, subject_filter: str, seq: int = 1) -> Message | None:
        """The first message at or after ``seq`` that matches."""
        found = self._store().page(subject_filter, seq, 1)
        await self._answer()
        return found[0] if found else None

    async def last(self, subject_filter: str) -> Message | None:
        """The newest message that matches."""
        found = self._store().last(subject_filter)
        await self._answer()
        return found

    async def page(self, subject_filter: str, seq: int, *, batch: int = 64, max_bytes: int = 524_288) -> list[Message]:
        """Up to ``batch`` messages that match, from ``seq`` on, in order."""
        found = self._store().page(subject_filter, seq, batch, max_bytes)
        await self._answer()
        return found

    async def newest(self, filters: Sequence[str]) -> list[Message] | None:
        """The newest message of each subject that matches, oldest first."""
        store = self._store()
        subjects = {subject for one in filters for subject in store.subjects(one)}
        found = [message for subject in subjects if (message := store.last(subject)) is not None]
        await self._answer()
        whole = len(found) <= PAGE and sum(len(message.body) for message in found) <= PAGE_BYTES
        return sorted(found, key=lambda message: message.seq) if whole else None

    async def held(self, subjects: Sequence[str]) -> int:
        """How many of these hold a message."""
        store = self._store()
        found = sum(bool(store.subjects(subject)) for subject in subjects)
        await self._answer()
        return found

    async def subjects(self, subject_filter: str) -> dict[str, int]:
        """Subjects that match and hold messages, with their counts."""
        found = self._store().subjects(subject_filter)
        await self._answer()
        return found

    async def state(self) -> StreamState:
        """The stream now."""
        found = self._store().state()
        await self._answer()
        return found

    def _store(self) -> StreamStore:
        self._link.check()
        return self._link.system.store(self._name)

    async def _answer(self, *, sent: bool = False) -> None:
        """The answer travels: others get their turn, and it may be lost with the link."""
        epoch = self._link.epoch
        await asyncio.sleep(0)
        self._link.check(epoch, sent=sent)


class MemoryInterest:
    """One subscription of one link: implements the port ``Interest``."""

    def __init__(self, link: MemoryLink, subject: str, handler: BusHandler) -> None:
        self.subject = subject
        self._link = link
        self._handler = handler
        self._active = True
        link.system.add_interest(self)
        link.own_interests[self] = None

    def deliver(self, incoming: Incoming) -> bool:
        """Hand over in a later turn of the loop; whether the system counts this as an interest."""
        if self._link.connected_since is not None:
            asyncio.get_running_loop().call_soon(self._handle, incoming, self._link.epoch)
        return self._link.has_interest

    def stop(self) -> None:
        """What ``unsubscribe`` does, at once."""
        self._active = False
        self._link.own_interests.pop(self, None)
        self._link.system.remove_interest(self)

    async def confirm(self) -> None:
        """The system knows of it from the moment of ``subscribe`` on. Raises as that does."""
        self._link.check()

    async def unsubscribe(self) -> None:
        """Stop; when it returns the handler is not called any more."""
        self.stop()

    def _handle(self, incoming: Incoming, epoch: int) -> None:
        if self._active and self._link.epoch == epoch:
            self._handler(incoming)


class MemoryBus:
    """Core subjects as one link sees them: implements the port ``Bus``.

    Nobody can name a reply subject here: a request carries the inbox that was made for it, everything else none.
    """

    def __init__(self, link: MemoryLink) -> None:
        self._link = link

    async def publish(self, subject: str, body: bytes) -> None:
        """Send and forget."""
        self._send(Incoming(subject, body, "", 0))
        await asyncio.sleep(0)

    async def subscribe(self, subject: str, handler: BusHandler, *, sure: bool = True) -> MemoryInterest:
        """Call ``handler`` for every message, from the moment of the call on.

        Raises:
            UnavailableError: The connection is away.
        """
        self._link.check()
        interest = MemoryInterest(self._link, subject, handler)
        if sure:
            await asyncio.sleep(0)
        return interest

    async def request(self, subject: str, body: bytes, *, timeout: float) -> bytes:
        """The first answer. Raises as the port says."""
        answers = await self.gather(subject, body, timeout=timeout, enough=bool)
        return answers[0]

    async def gather(
        self, subject: str, body: bytes, *, timeout: float, enough: Callable[[list[bytes]], bool] | None = None
    ) -> list[bytes]:
        """All answers in ``timeout`` seconds, or until ``enough(answers)``. Raises as the port says."""
        if self._link.connected_since is None:
            with contextlib.suppress(UnavailableError):
                self._link.check()
            await asyncio.sleep(0)
            raise NoReplyError(f"{subject}: {_AWAY}")
        answers: list[bytes] = []
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def hear(incoming: Incoming) -> None:
            answers.append(incoming.body)
            if enough and not done.done() and enough(answers):
                done.set_result(None)

        inbox = MemoryInterest(self._link, f"_INBOX.memory.{next(self._link.system.inboxes)}", hear)
        self._link.pending.add(done)
        try:
            if not self._send(Incoming(subject, body, inbox.subject, 0)):
                await asyncio.sleep(0)
                raise NoRespondersError(subject)
            async with asyncio.timeout(timeout):
                await done
        except TimeoutError:
            pass
        finally:
            self._link.pending.discard(done)
            inbox.stop()
        if not answers:
            raise NoReplyError(subject)
        return answers

    def _send(self, incoming: Incoming) -> bool:
        """Whether somebody has interest; while the connection is away nothing is sent."""
        if len(incoming.body) > self._link.max_payload:
            raise EventTooLargeError(len(incoming.body), self._link.max_payload, field="message")
        return self._link.connected_since is not None and self._link.system.route(incoming)
