"""The newest events of one generation: what its readers on this replica share.

Pure. Owns which batches are kept, bounded, by index (the oldest go first, and the newest stays however large it is),
and the newest one made into events for all who wait for it. Guarantees that the window is dense.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from operator import attrgetter

from natsjobs.engine.replay import Batch
from natsjobs.models import StreamEvent

_BYTES = 8_388_608
_SHARED = 256  # a message with more events is not put together for all readers at once
_index_of = attrgetter("index")


class Window:
    """Batches that follow each other."""

    def __init__(self, limit: int) -> None:
        """``limit``: events."""
        self._limit = limit
        self._batches: deque[Batch] = deque()
        self._events = self._bytes = self._next = 0

    @property
    def start(self) -> int | None:
        """Index of the oldest event; ``None``: empty."""
        return self._batches[0].index if self._batches else None

    def find(self, index: int) -> Batch | None:
        """The batch that holds ``index``; ``None``: not (yet, or any more) here."""
        batches = self._batches
        if not batches or index >= self._next:
            return None
        newest = batches[-1]  # what readers at the live edge want
        if newest.index <= index:
            return newest
        if index < batches[0].index:
            return None
        return batches[bisect_right(batches, index, key=_index_of) - 1]

    def add(self, batch: Batch) -> None:
        """Keep a batch that follows the newest, as long as there is room."""
        batches = self._batches
        if batches:
            batches[-1].made = None  # who is at the live edge needs it no more
        batches.append(batch)
        self._next = batch.next
        self._events += len(batch.raws)
        self._bytes += sum(map(len, batch.raws))
        while len(batches) > 1 and (self._events > self._limit or self._bytes > _BYTES):
            old = batches.popleft()
            self._events -= len(old.raws)
            self._bytes -= sum(map(len, old.raws))

    def clear(self) -> None:
        """Forget all."""
        self._batches.clear()
        self._events = self._bytes = 0


class News:
    """What has just come live, made into events once where several readers wait for exactly this."""

    __slots__ = ("batch", "events")

    def __init__(self) -> None:
        """Nothing has come."""
        self.batch: Batch | None = None
        """``None`` too where it is not worth it: each reader finds it in the window."""
        self.events: list[StreamEvent] = []
        """Of ``batch``, the last one first: copied by readers, and never given themselves."""

    def show(self, batch: Batch, generation: str, *, readers: int) -> None:
        """This has come."""
        if readers > 1 and len(batch.raws) <= _SHARED:
            self.batch, self.events = batch, batch.events(generation, batch.index, batch.next)
        else:
            self.batch, self.events = None, []
