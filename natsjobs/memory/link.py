"""One connection to the memory system: the ports ``Link`` and ``Stream``; ``bus`` has the others.

A call takes its effect when it is made and its answer travels, so one that is cancelled, or whose link goes away
(``line``), while it waits has happened all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from natsjobs.engine.ports import MOST_NEWEST, PAGE, PAGE_BYTES, Message, Newer, StreamState, WrongSequenceError
from natsjobs.errors import EventTooLargeError, UnavailableError
from natsjobs.memory.bus import MemoryBus
from natsjobs.memory.line import Line
from natsjobs.memory.server import MemoryServer
from natsjobs.memory.stream import StreamStore

_HEADERS = 1024
"""Room that ``Stream.append`` keeps for headers below ``max_payload``."""


class MemoryLink(Line):
    """One connection to a memory system: implements the port ``Link``."""

    def __init__(self, system: MemoryServer) -> None:
        super().__init__(system)
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

    def __init__(self, link: Line, name: str) -> None:
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

    async def last(self, subject_filter: str, *, alone: bool = False) -> Message | None:  # noqa: ARG002 - no replicas
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
        found = self._newest(filters)
        await self._answer()
        return found if len(found) <= PAGE and sum(len(message.body) for message in found) <= PAGE_BYTES else None

    async def newer(self, filters: Sequence[str], seq: int, *, batch: int = 2 * MOST_NEWEST) -> Newer | None:
        """The newest message of each subject that matches and is at or after ``seq``, and the newest sequence."""
        found, upto = self._newest(filters), self._store().state().last_seq
        await self._answer()
        later = [message for message in found if message.seq >= seq]
        size, page = 0, list[Message]()
        for message in later:
            if len(page) == batch or (page and size > PAGE_BYTES):
                break
            page.append(message)
            size += len(message.body)
        return Newer(page, upto, len(page) == len(later)) if found else None

    def _newest(self, filters: Sequence[str]) -> list[Message]:
        store = self._store()
        subjects = {subject for one in filters for subject in store.subjects(one)}
        found = [message for subject in subjects if (message := store.last(subject)) is not None]
        return sorted(found, key=lambda message: message.seq)

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
