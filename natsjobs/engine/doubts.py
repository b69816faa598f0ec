"""The log does not have what a reader wants of it: for how long that is not believed.

One answer proves nothing: a sequence may have been a wrong hint, and a replica, or a leader that was replaced, may
answer from the past (B3). Owns the number of proofs and the pauses between them; what is doubted is the reader's
business.
"""

from __future__ import annotations

import asyncio
import contextlib
from copy import copy
from typing import NoReturn

from natsjobs.engine import wire
from natsjobs.engine.context import Context
from natsjobs.engine.jobs import read_record
from natsjobs.engine.patience import Backoff, patiently
from natsjobs.engine.ports import StreamMissingError
from natsjobs.engine.tail import Tail
from natsjobs.errors import (
    ConnectionLostError,
    GenerationReplacedError,
    HistoryLostError,
    NatsJobsError,
    UnavailableError,
)

_PROOFS = 4
_STALE_READ = (0.05, 0.2, 0.5)


class Doubts:
    """What has been missed in a row, of one generation."""

    def __init__(self) -> None:
        self._count, self._until = 0, 0.0

    @property
    def last(self) -> bool:
        """The next one is a proof."""
        return self._count + 1 >= _PROOFS

    async def pause(self) -> None:
        """Once the hint was wrong, then a read was old: longer each time. Cancelled: it counts only when it is over."""
        # By the clock: a caller with short time-outs neither shortens the proof nor puts it off for ever.
        now = asyncio.get_running_loop().time()
        self._until = self._until or now + (0.05 * 4 ** (self._count + 1) if self._count else 0)
        await asyncio.sleep(max(0.0, self._until - now))
        self._count, self._until = self._count + 1, 0.0


async def catch_up(context: Context, stream_id: str, tail: Tail, position: int) -> None:
    """A cursor can be ahead of what this replica has heard; only the leader can say that there is no more.

    Raises:
        HistoryLostError: There is no more.
        UnavailableError: NATS does not answer.
    """
    events, scope = context.link.events, context.subjects.scope(stream_id, tail.generation)
    backoff, doubts = Backoff(context.patience), iter(_STALE_READ)
    while position > tail.next:
        more = None
        with contextlib.suppress(StreamMissingError):
            more = await patiently(lambda: events.next(scope, tail.seq + 1), limit=context.patience)
        if more is not None:
            if backoff.expired:
                raise UnavailableError(f"reading {stream_id}: this replica does not catch up with its log")
            tail.look_now()
            await backoff.pause()
        elif (pause := next(doubts, None)) is not None:
            await asyncio.sleep(pause)  # an old leader's answer can be behind what this cursor has seen (B3)
        else:
            raise HistoryLostError(stream_id, "the log ends before this cursor")


async def cleared_start(context: Context, stream_id: str, generation: str, position: int) -> tuple[int, int] | None:
    """Index and sequence from which a log goes on that was cleared beyond ``position``; ``None``: it was not.

    Whoever reads from the start reads from there; only a cursor can lose history.

    Raises:
        UnavailableError: NATS does not answer.
    """
    subject = context.subjects.log(stream_id, generation)
    first = await patiently(lambda: context.link.events.next(subject), limit=context.patience)
    entry = wire.decode(first.body) if first is not None else None
    if first is None or entry is None or entry.type != "cleared" or entry.index <= position:
        return None
    return entry.index, first.seq


async def raise_lost(context: Context, stream_id: str, generation: str, lost: NatsJobsError) -> NoReturn:
    """Say what it means to a reader that the tail has lost its log, of which nothing more is to be read.

    Raises:
        ConnectionLostError: The connection was given, and is closed.
        GenerationReplacedError: A newer generation has begun.
        HistoryLostError: It was removed.
    """
    if isinstance(lost, ConnectionLostError):
        raise copy(lost)
    try:
        record = await read_record(context, stream_id)
    except UnavailableError:
        record = None
    if record is not None and record.generation != generation:
        raise GenerationReplacedError(stream_id, record.generation)
    raise HistoryLostError(stream_id, "the log is gone") from lost
