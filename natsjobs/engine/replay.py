"""From log messages to events: joins parts, drops what was already seen, notices what is missing. Pure.

What is delivered is decided by the index alone; sequences only say where to read (C1). So the same message may
arrive any number of times, live and from pages, and the outcome is every event once, in order, or a gap that the
caller repairs by reading again.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from functools import lru_cache

import msgspec

from natsjobs.engine import garbage, wire
from natsjobs.models import EventType, StreamEvent

_THREE_DIGITS = [f"{number:03d}" for number in range(1000)]


class Batch(msgspec.Struct):
    """Consecutive events of one generation; ``seq`` is where a reader that has these may look for the next.

    Shared by readers: nobody changes it, and what is the same for all of them is put together once.
    """

    index: int
    raws: list[bytes]
    seq: int
    type: EventType = EventType.EVENT
    made: list[str] | None = None
    """What ``cursors`` gave, kept for the next who asks."""

    @property
    def next(self) -> int:
        """Index after the last of them."""
        return self.index + len(self.raws)

    def cursors(self, generation: str) -> list[str]:
        """The cursor of each of them. Nobody may change the list.

        They are put together from what changes with every event and what does not: formatting ten digits costs as much
        as all the rest.
        """
        if self.made is not None:
            return self.made
        hint, count = f"-{self.seq}", len(self.raws)
        thousands, place = divmod(self.index + 1, 1000)
        made: list[str] = []
        while len(made) < count:
            head = _head(generation, thousands)
            made += [f"{head}{digits}{hint}" for digits in _THREE_DIGITS[place : place + count - len(made)]]
            thousands, place = thousands + 1, 0
        self.made = made
        return made

    def events(self, generation: str, start: int, stop: int) -> list[StreamEvent]:
        """The events from index ``start`` to before ``stop``, the last one first."""
        kind, raws, cursors, first = self.type, self.raws, self.cursors(generation), self.index
        made: list[StreamEvent] = []
        put = made.append
        for at in range(stop - 1, start - 1, -1):
            here = at - first
            put(StreamEvent(type=kind, index=at, cursor=cursors[here], generation=generation, raw=raws[here]))
        return made


def joined(batches: Iterable[Batch], generation: str, size: int) -> list[Batch]:
    """The same events in fewer batches, of ``size`` events or a message more: readers take steps for each.

    Takes over the batches, which nobody else may have yet. The cursors stay as they were: each is that of its message.
    """
    made: list[Batch] = []
    for batch in batches:
        cursors = batch.cursors(generation)
        last = made[-1] if made else None
        if last is not None and last.made is not None and len(last.raws) < size and last.type is batch.type:
            last.raws += batch.raws
            last.made += cursors
            last.seq = batch.seq
        else:
            made.append(batch)
    return made


@lru_cache(64)
def _head(generation: str, thousands: int) -> str:
    return f"{generation}-{thousands:07d}"


class Verdict(enum.Enum):
    """What a message that brought no events means."""

    NOTHING = "nothing"
    GAP = "gap"  # something before it is missing
    CLEARED = "cleared"  # the events that come next were removed
    GONE = "gone"  # the log is over and removed
    TERMINAL = "terminal"  # a terminal record in its place


class Replay:
    """The state of one reading of one generation. ``next`` is the index it waits for, ``seq`` the last it looked at."""

    def __init__(self, position: int, seq: int) -> None:
        """Start before event ``position``, with everything up to ``seq`` looked at."""
        self.next = position
        self.seq = seq
        self._parts: tuple[str, ...] = ()
        self._part: tuple[int, str, int] | None = None  # index, writer, pieces

    @property
    def state(self) -> tuple[object, ...]:
        """Equal for two readings of a generation that go on in the same way."""
        return (self.next, self.seq, self._part, len(self._parts))

    def feed(self, seq: int, entry: wire.Entry | None, *, end: bool) -> Batch | Verdict:
        """Take one message of the log. ``end``: it came on the subject of terminal records."""
        newer = seq > self.seq
        if newer:
            self.seq = seq
        if entry is None:
            return Verdict.NOTHING
        kind = entry.type
        if kind == "part" and not end:
            return self._feed_part(seq, entry)
        if kind != "part" and newer:  # what comes late, live or once more, is before the pieces, not between them
            self._part = None
        if end:
            return self._feed_end(entry)
        return self._feed_events(seq, entry) if kind == "events" else self._feed_other(seq, entry)

    def _feed_end(self, entry: wire.Entry) -> Batch | Verdict:
        if entry.type in wire.TERMINAL:
            return Verdict.TERMINAL if entry.index <= self.next else Verdict.GAP
        return Verdict.GONE if entry.type == "gone" else Verdict.NOTHING

    def _feed_events(self, seq: int, entry: wire.Entry) -> Batch | Verdict:
        begin, events = self.next, entry.events
        if entry.index != begin:
            if entry.index > begin:
                return Verdict.GAP
            events = events[begin - entry.index :]
        if not events:
            return Verdict.NOTHING
        self.next = begin + len(events)
        return Batch(begin, list(map(bytes, events)), seq)

    def _feed_part(self, seq: int, entry: wire.Entry) -> Batch | Verdict:
        """Pieces count only when they follow each other directly; an interrupted run is void (B2)."""
        if entry.part is None or entry.index < self.next:
            return Verdict.NOTHING
        if entry.index > self.next:
            return Verdict.GAP
        number, count = entry.part
        run = (entry.index, entry.writer, count)
        if number == 0:
            self._part, self._parts = run, ()
        elif self._part != run or len(self._parts) != number:
            return Verdict.GAP
        self._parts += (msgspec.json.decode(entry.data, type=str),)
        if number < count - 1:
            return Verdict.NOTHING
        joined, kind = "".join(self._parts).encode(), EventType.EVENT
        self._part, self._parts = None, ()
        if not wire.is_json(joined):
            # Every writer counts its index, so it is handed on like a kind that nobody knows (C5).
            garbage.skipped("an event in pieces", f"index {entry.index}", joined)
            joined, kind = b"null", EventType("unreadable")
        batch = Batch(self.next, [joined], seq, kind)
        self.next += 1
        return batch

    def _feed_other(self, seq: int, entry: wire.Entry) -> Batch | Verdict:
        if entry.type == "open":
            return Verdict.NOTHING
        if entry.type == "gone":
            return Verdict.GONE
        if entry.index > self.next:
            return Verdict.CLEARED if entry.type == "cleared" else Verdict.GAP
        if entry.type in {"cleared", "final"} or entry.type in wire.TERMINAL or entry.index < self.next:
            return Verdict.NOTHING
        # A kind of record that a newer version writes: handed on under its own type, its index counts (C5).
        batch = Batch(self.next, [bytes(entry.data)], seq, EventType(entry.type))
        self.next += 1
        return batch
