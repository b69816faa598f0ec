"""One stream, as a server holds it: messages by sequence, per-subject order, expiry, rollup, and what it republishes.

Owns storing and nothing of connections: every call is plain, immediate and atomic. Expiry is decided by the injected
clock at every call; ``expire`` at ``next_deadline`` makes it punctual. Memory is that of the messages that are there.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator

import msgspec

from natsjobs.engine.ports import Incoming, Message, StreamState, WrongSequenceError
from natsjobs.errors import StreamFullError, UnavailableError
from natsjobs.memory.tree import SubjectTree, matches

_FEW = 16
"""Filters with at most this many subjects are read subject by subject, the others by a scan in stream order."""


class StreamSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream is configured to do.

    ``newest_only``: one message per subject (a bucket of history 1). ``marker_ttl``: a message whose TTL ends leaves
    a marker for so long; ``None``: it leaves nothing. ``max_age`` in seconds; ``max_bytes`` -1: no limit.
    """

    prefix: str
    republish_prefix: str
    newest_only: bool = False
    marker_ttl: float | None = None
    max_age: float | None = None
    max_bytes: int = -1


class StreamStore:
    """The messages of one stream. ``republish`` is called for every message, after it is stored."""

    def __init__(
        self, settings: StreamSettings, clock: Callable[[], float], republish: Callable[[Incoming], object]
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._republish = republish
        self._created = f"{clock():.9f}-{id(self):x}"
        self._last, self._last_time = 0, 0.0
        self._bytes = 0
        self._messages: dict[int, Message] = {}
        self._subjects: SubjectTree[list[int]] = SubjectTree()
        self._order: list[int] = []  # ascending; removed ones stay until _compact
        self._oldest = 0  # everything before this place of _order is removed
        self._deadlines: list[tuple[float, int]] = []  # a heap; removed messages stay in it until _compact

    @property
    def next_deadline(self) -> float | None:
        """When the next TTL may end, on the clock of this store."""
        return self._deadlines[0][0] if self._deadlines else None

    def append(
        self,
        subject: str,
        body: bytes,
        *,
        expect: int | None,
        scope: str | None,
        ttl: float | None,
        rollup: bool,
        marker: bool,
    ) -> int:
        """As ``Stream.append`` of the ports."""
        self.expire()
        if not subject.startswith(self._settings.prefix):
            raise UnavailableError(f"no stream takes the subject {subject!r}")
        if expect is not None:
            newest = self.last(scope or subject)
            last = newest.seq if newest else 0
            if last != expect:
                raise WrongSequenceError(last)
        self._check_room(subject, body)
        return self._store(subject, body, "PURGE" if marker else None, ttl, replace=rollup or marker)

    def limit(self, max_bytes: int) -> None:
        """Another ``max_bytes``, as an operator would set it; what is there stays."""
        self._settings = msgspec.structs.replace(self._settings, max_bytes=max_bytes)

    def _check_room(self, subject: str, body: bytes) -> None:
        """As a server with discard new: in a bucket a smaller value still takes the place of a larger one."""
        limit, size = self._settings.max_bytes, _size(subject, body)
        if not 0 <= limit < self._bytes + size:
            return
        if self._settings.newest_only and (seqs := self._subjects.get(subject)):
            old = self._messages[seqs[-1]]
            if _size(old.subject, old.body) > size:
                return
        raise StreamFullError(
            f"the stream of {self._settings.prefix}> is at its limit of {limit} bytes", size=self._bytes, limit=limit
        )

    def page(self, subject_filter: str, seq: int, batch: int, max_bytes: float = math.inf) -> list[Message]:
        """As ``Stream.page`` of the ports."""
        self.expire()
        page: list[Message] = []
        size = 0
        for message in self._from(subject_filter, seq, batch):
            size += _size(message.subject, message.body)
            if page and size > max_bytes:
                break
            page.append(message)
            if len(page) == batch:
                break
        return page

    def last(self, subject_filter: str) -> Message | None:
        """As ``Stream.last`` of the ports."""
        self.expire()
        found = self._subjects.below(subject_filter, _FEW + 1)
        if len(found) <= _FEW:
            return self._messages[max(seqs[-1] for _, seqs in found)] if found else None
        present = (m for seq in reversed(self._order) if (m := self._messages.get(seq)))
        return next((m for m in present if matches(subject_filter, m.subject)), None)

    def subjects(self, subject_filter: str) -> dict[str, int]:
        """As ``Stream.subjects`` of the ports."""
        self.expire()
        return {subject: len(seqs) for subject, seqs in self._subjects.below(subject_filter)}

    def state(self) -> StreamState:
        """As ``Stream.state`` of the ports."""
        self.expire()
        return StreamState(
            created=self._created,
            last_seq=self._last,
            bytes=self._bytes,
            max_bytes=self._settings.max_bytes,
            now=self._clock(),
            last_time=self._last_time,
        )

    def expire(self) -> None:
        """Remove what is too old by now, and leave the markers that are due."""
        now = self._clock()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, seq = heapq.heappop(self._deadlines)
            message = self._messages.get(seq)
            if message is None:
                continue
            self._remove(message)
            marker_ttl = self._settings.marker_ttl
            # A marker leaves no marker of its own: a removed key would otherwise never be gone.
            if marker_ttl is not None and message.marker is None and self._subjects.get(message.subject) is None:
                self._store(message.subject, b"", "MaxAge", marker_ttl, replace=False)
        if (max_age := self._settings.max_age) is None:
            return
        while self._oldest < len(self._order):
            message = self._messages.get(self._order[self._oldest])
            if message and message.time + max_age > now:
                return
            self._oldest += 1
            if message:
                self._remove(message)

    def _from(self, subject_filter: str, seq: int, batch: int) -> Iterator[Message]:
        found = self._subjects.below(subject_filter, _FEW + 1)
        if len(found) > _FEW:
            for index in range(bisect_left(self._order, seq), len(self._order)):
                message = self._messages.get(self._order[index])
                if message and matches(subject_filter, message.subject):
                    yield message
            return
        starts = [(seqs, bisect_left(seqs, seq)) for _, seqs in found]
        for place in sorted(s for seqs, start in starts for s in seqs[start : start + batch]):
            yield self._messages[place]

    def _store(self, subject: str, body: bytes, marker: str | None, ttl: float | None, *, replace: bool) -> int:
        now = self._clock()
        self._last, self._last_time = self._last + 1, now
        message = Message(subject, self._last, body, now, marker)
        if replace or self._settings.newest_only:
            for seq in list(self._subjects.get(subject) or ()):
                self._remove(self._messages[seq])
        seqs = self._subjects.get(subject)
        if seqs is None:
            self._subjects.put(subject, seqs := [])
        seqs.append(self._last)
        self._messages[self._last] = message
        self._order.append(self._last)
        self._bytes += _size(subject, body)
        if ttl is not None:
            heapq.heappush(self._deadlines, (now + max(1, math.ceil(ttl)), self._last))
        name = self._settings.republish_prefix + subject.removeprefix(self._settings.prefix)
        self._republish(Incoming(name, body, "", self._last, marker))
        return self._last

    def _remove(self, message: Message) -> None:
        del self._messages[message.seq]
        self._bytes -= _size(message.subject, message.body)
        seqs = self._subjects.get(message.subject) or []
        del seqs[bisect_left(seqs, message.seq)]
        if not seqs:
            self._subjects.remove(message.subject)
        if len(self._order) > 2 * len(self._messages) + 64:
            self._compact()

    def _compact(self) -> None:
        self._order = list(self._messages)
        self._oldest = 0
        self._deadlines = [entry for entry in self._deadlines if entry[1] in self._messages]
        heapq.heapify(self._deadlines)


def _size(subject: str, body: bytes) -> int:
    return len(subject) + len(body) + 30  # about what a file store adds per message
