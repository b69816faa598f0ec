"""How a log stands: read from its newest message, at the leader.

Owns the meaning of a newest message (a terminal record, a tombstone, somebody else's bytes), joining a final event that
was stored in pieces, whether a log still reaches as far as it did, and the form in which readers get an end. It writes
nothing, and what it reads may be old (B3): only an append decides.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import msgspec

from natsjobs.engine import wire
from natsjobs.engine.context import Context
from natsjobs.engine.patience import patiently
from natsjobs.engine.ports import Link, Message, StreamMissingError
from natsjobs.models import EndReason, EventType, StreamEvent

_PATIENCE = 10.0  # as long as an election may take
_PROOFS = 3  # a history is declared lost only when this many reads at the leader agree (B3: one may be old)


class Position(msgspec.Struct, frozen=True):
    """Where a log stands: the sequence and the index that the next append has to name."""

    seq: int
    index: int


class End(msgspec.Struct, frozen=True):
    """A terminal record that somebody wants to write."""

    kind: str
    reason: EndReason | None
    request: str | None
    data: bytes
    fields: dict[str, Any] = {}
    """What else the job record is to say when this one stands, in its wire form."""


def position_after(message: Message, index: int) -> Position | None:
    """Where a log stands whose newest message is this; ``None``: it is over. ``index``: behind what is not ours."""
    entry = wire.decode(message.body)
    if entry is None:
        return Position(message.seq, index)
    return None if entry.type == "gone" else Position(message.seq, entry.next_index)


async def position_behind(link: Link, scope: str, newest: Message, start: Position) -> Position | None:
    """As ``position_after``; what is not ours says no index, so then everything since ``start`` is counted."""
    if wire.decode(newest.body) is not None:
        return position_after(newest, start.index)
    seq, index = start.seq, start.index
    while seq < newest.seq:
        page = await patiently(partial(link.events.page, scope, seq + 1), limit=_PATIENCE)
        if not page:  # a replica that lags
            first = await patiently(partial(link.events.next, scope, seq + 1), limit=_PATIENCE)
            if first is None:
                break
            page = [first]
        for message in page:
            found = position_after(message, index)
            if found is None:
                return None
            seq, index = found.seq, found.index
    return Position(max(seq, newest.seq), index)


async def count_events(context: Context, stream_id: str, generation: str) -> int:
    """How many events a log has had so far; 0 when nothing of it is left."""
    events, scope = context.link.events, context.subjects.scope(stream_id, generation)
    try:
        newest = await patiently(partial(events.last, scope), limit=context.patience)
        if newest is None:
            return 0
        found = await position_behind(context.link, scope, newest, Position(0, 0))
    except StreamMissingError:
        return 0
    return 0 if found is None else found.index


async def find_terminal(link: Link, end_subject: str, newest: Message) -> wire.Terminal | None:
    """The terminal record of a log whose newest message is ``newest``, also behind a tombstone."""
    entry = wire.decode(newest.body)
    if entry is None or entry.type in {"gone", "cleared"}:  # what is not ours ends nothing, and hides no end
        behind = await patiently(lambda: link.events.last(end_subject), limit=_PATIENCE)
        if behind is None:
            return None
        newest, entry = behind, wire.decode(behind.body)
        if entry is None:
            return await _first_terminal(link, end_subject, newest.seq)
    if entry.type not in wire.TERMINAL or newest.subject != end_subject:
        return None
    return await read_terminal(link, newest, entry)


async def _first_terminal(link: Link, end_subject: str, until: int) -> wire.Terminal | None:
    """The terminal record on a subject where somebody else has written behind it."""
    seq = 1
    while seq <= until:
        message = await patiently(partial(link.events.next, end_subject, seq), limit=_PATIENCE)
        if message is None:
            return None
        entry = wire.decode(message.body)
        if entry is not None and entry.type in wire.TERMINAL:
            return await read_terminal(link, message, entry)
        seq = message.seq + 1
    return None


def end_event(generation: str, terminal: wire.Terminal) -> StreamEvent:
    """A terminal record as readers get it."""
    return StreamEvent(
        type=EventType(terminal.type),
        index=terminal.index,
        cursor=str(wire.Cursor(generation, terminal.index + 1, terminal.seq)),
        generation=generation,
        raw=terminal.raw,
        end_reason=terminal.reason,
    )


async def read_terminal(link: Link, message: Message, entry: wire.Entry) -> wire.Terminal:
    """A terminal record with its data, also when that was stored in pieces before it."""
    if not entry.first:
        return wire.Terminal.of(entry, message.seq)
    pieces: list[str] = []
    seq = entry.first
    while seq < message.seq:
        stored = await patiently(partial(link.events.next, message.subject, seq), limit=_PATIENCE)
        if stored is None:
            break
        piece = wire.decode(stored.body)
        if piece is not None and piece.type == "final" and piece.writer == entry.writer:
            pieces.append(msgspec.json.decode(piece.data, type=str))
        seq = stored.seq + 1
    return wire.Terminal.of(entry, message.seq, "".join(pieces).encode())


async def still_reaches(link: Link, scope: str, seq: int) -> bool:
    """Whether the log of ``scope``, which had a message at ``seq``, has one there or behind it."""
    for attempt in range(_PROOFS):
        if attempt:
            await asyncio.sleep(0.2 * 5**attempt)
        try:
            if seq == 0 or await link.events.next(scope, seq) is not None:
                return True
        except StreamMissingError:
            pass
    return False
