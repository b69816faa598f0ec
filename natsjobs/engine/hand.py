"""What a reader has in its hand: the events that were read already, from the shared window or from pages of the log.

Owns the position in a generation and the events that were taken up and not given, and knows what to wait for when
there are none. Guarantees that the cursor is that of the event given last, at every moment, and that after so many
events in a row it gives none until others have had their turn.

Here is all that is done for every event of every reader, so it is laid out to take few steps, and few objects: with a
thousand readers in a process, what is touched at a wake-up costs more than what is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from natsjobs.engine.bell import Bell
from natsjobs.engine.pages import Ahead
from natsjobs.engine.replay import Batch
from natsjobs.engine.tail import Tail
from natsjobs.models import StreamEvent

BURST = 256
"""So many events in a row, then others have their turn."""
_own: Callable[[StreamEvent], StreamEvent] = cast("Any", StreamEvent).__copy__
"""Copies an event, without its data: that is decoded for each who asks for it."""


class Hand:
    """Base of a reader, which enters generations, reads pages and decides what comes when the hand is empty."""

    def __init__(self) -> None:
        """Empty, in no generation."""
        self.hand: list[StreamEvent] = []
        """Events that are here, the next one last: taking it out with ``pop`` is giving it. Always the same list."""
        self._tail: Tail | None = None
        self._generation = ""
        self._given: str | None = None  # the generation that was read to its end, while the next has not been entered
        self._closed = False
        self._fresh = False  # reading a generation from its start, and nothing was taken up yet
        self._position = self._seq = 0  # of what is behind the hand; the hint where to look for it
        self._cursor: str | None = None  # of the last event that was taken up
        self._burst = 0  # how many were put into it since others had their turn
        self._batch: Batch | None = None
        self._until = 0  # the index after it
        self._ahead: Ahead | None = None
        self._paging = False  # that may hold something; who reads live need not look
        self._bell = Bell()

    @property
    def cursor(self) -> str | None:
        """The cursor of the event given last."""
        left = len(self.hand)
        if not left or self._batch is None:
            return self._cursor
        # Whoever fills the hand takes one out at once, so the one given last is of the same batch.
        return self._batch.cursors(self._generation)[self._position - left - 1 - self._batch.index]

    def fill(self) -> bool:
        """Put what was read already into the ``hand``, which is empty. ``True``: it did; take one out at once.

        Each reader gets events of its own: their data can be changed.
        """
        tail, position = self._tail, self._position
        if tail is None or self._closed or self._burst >= BURST:
            return False
        batch = tail.news.batch
        if batch is not None and batch.index == position and not self._paging:  # who waits for news goes this way
            stop = self._until = batch.next
            self._batch, self._seq, self._fresh = batch, batch.seq, False
            self.hand += map(_own, tail.news.events)
        else:
            batch = self._find_batch(tail, position)
            if batch is None:
                return False
            stop = min(batch.next, position + BURST)
            self.hand += batch.events(self._generation, position, stop)
        self._burst += stop - position
        self._position, self._cursor = stop, self.hand[0].cursor
        return True

    def idle(self) -> Bell | None:
        """What to wait for, at once, before ``fill`` is tried again; ``None``: there is more to do than to wait."""
        tail, position = self._tail, self._position
        if tail is None or self._given is not None or position < self._until:
            return None
        if self._paging and self._ahead is not None and self._ahead.batches:
            return None
        if not tail.quiet(position):
            return None
        self._burst = 0
        return tail.bells.spare() if self._bell.taken else self._bell

    def _find_batch(self, tail: Tail, position: int) -> Batch | None:
        """What was read already: the rest of a batch, the shared window, or pages of the log."""
        if position < self._until:
            return self._batch
        batch = tail.take(position)
        if self._paging and self._ahead is not None:
            if batch is None:
                batch = self._ahead.take(position, tail.next)
            else:
                self._ahead.drop(tail.next)
                self._paging = bool(self._ahead.held)
        if batch is None:
            return None
        self._batch, self._until = batch, batch.next
        self._seq, self._fresh = batch.seq, False
        return batch

    def _empty(self) -> None:
        """Give nothing more: what is in the hand was not given."""
        self._cursor, self._position = self.cursor, self._position - len(self.hand)
        self.hand.clear()
        self._batch, self._until = None, 0
