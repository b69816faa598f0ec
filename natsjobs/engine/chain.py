"""One append at a time to one generation, and certainty about what became of it.

Owns the numbers of the next message (expected sequence, index) and the decision after a refusal or a lost
acknowledgement (design-corrections A5): read at the leader the message that took our place, the first after the
expected sequence. The very same bytes: it had landed. A terminal record or a tombstone: fenced. Another
writer's: the position moves behind the tail. None: the same bytes again, because the first try may still land.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from natsjobs.engine import wire
from natsjobs.engine.context import Context
from natsjobs.engine.patience import FINAL, Backoff, patiently
from natsjobs.engine.ports import Message, Sent, StreamMissingError, WrongSequenceError
from natsjobs.engine.terminals import End, Position, find_terminal, position_behind, read_terminal
from natsjobs.errors import (
    EventTooLargeError,
    PermissionDeniedError,
    StreamFullError,
    UnavailableError,
)
from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub

OVERHEAD = 2048  # headers and the JSON around the events
_FENCE_TIME = 1.0  # against a writer at full speed no back-off for this long, or a terminal record never fits (C2)


class FencedError(Exception):
    """Somebody else ended the generation (``terminal``), or its log is gone (``None``)."""

    def __init__(self, terminal: wire.Terminal | None) -> None:
        super().__init__("fenced")
        self.terminal = terminal


class Chain:
    """The end of one generation's log, as one writer sees it. Never two appends at once."""

    def __init__(self, context: Context, stream_id: str, generation: str, position: Position) -> None:
        """Behind ``position``."""
        subjects = context.subjects
        self.writer = wire.random_token()
        self.position = position
        self.log, self.end = subjects.log(stream_id, generation), subjects.end(stream_id, generation)
        self.landed: wire.Terminal | None = None
        """Our own terminal record, when it was found in the log after its acknowledgement had been lost."""
        self._scope = subjects.scope(stream_id, generation)
        self._link, self._config, self._headroom = context.link, context.config, context.headroom
        self._away_since: float | None = None
        self._began = 0.0  # when what is in flight was sent for the first time

    def send(self, body: bytes, done: Callable[[int], None]) -> Sent | None:
        """Append one message of events at once and without a task, in the usual case.

        ``done``: as in ``Stream.send``; ``stored`` follows it, or ``append`` with what this gave. ``None``: nothing
        was sent, ``append`` sends it.
        """
        if self._away_since is not None:
            return None
        self._began = time.monotonic()
        return self._link.events.send(self.log, body, expect=self.position.seq, scope=self._scope, done=done)

    def stored(self, seq: int, after: int) -> None:
        """What was sent is stored; ``after`` is the next index."""
        self.position, self._away_since = Position(seq, after), None
        _count("stored", since=self._began)

    async def append(  # noqa: C901 - one branch per outcome of a write
        self, subject: str, body: bytes, *, after: int, rollup: bool = False, sent: Sent | None = None
    ) -> bool:
        """Append one message that begins at ``position.index``; ``after`` is the next index if it is stored.

        ``sent``: its first try, which is decided and was not simply stored.

        Returns:
            True: stored. False: another writer came first, ``position`` has moved, number again.

        Raises:
            FencedError: Nothing will ever be stored here any more.
            UnavailableError: NATS was away for ``timing.give_up``; if ``outcome_unknown``, try the same bytes again.
            StreamFullError, PermissionDeniedError: At once; nothing was stored, unless ``outcome_unknown``.
            EventTooLargeError: The server takes less than it did; nothing is there. Make it smaller.
            ConnectionLostError: The connection was given, and is closed.
        """
        # Once it has given up, the next call tries once: nobody waits `give_up` twice for the same outage.
        now = time.monotonic()
        self._began = now if sent is None else self._began
        spent = now - (self._away_since or self._began)
        backoff, fast_until = Backoff(self._config.timing.give_up - spent), now + _FENCE_TIME
        unsure = False
        while True:
            refusal: WrongSequenceError | None = None
            try:
                first, sent = sent, None
                seq = await (self._append(subject, body, rollup=rollup) if first is None else first.outcome())
            except WrongSequenceError as error:
                refusal, self._away_since = error, None
                _count("refused")
            except StreamMissingError:
                raise FencedError(None) from None
            except FINAL as error:
                raise _final(error, unsure=unsure) from None
            except EventTooLargeError:  # the server's limit was lowered; an earlier try may have landed before that
                if unsure and (stored := await self._decide(body, after, None)) is not None:
                    return stored
                raise
            except UnavailableError as error:
                _count("undecided" if error.outcome_unknown else "unavailable")
                self._away_since = self._away_since or time.monotonic()
                unsure = unsure or error.outcome_unknown
                if backoff.expired:
                    raise UnavailableError(str(error), outcome_unknown=unsure) from None
            else:
                self.stored(seq, after)
                return True
            if (refusal or unsure) and (stored := await self._decide(body, after, refusal)) is not None:
                if stored:
                    _count("stored", since=self._began)
                return stored
            if refusal is None or refusal.last is None or time.monotonic() > fast_until:
                if refusal is not None and backoff.expired:
                    raise UnavailableError(f"no decision about an append to {subject}", outcome_unknown=True)
                await backoff.pause()

    async def _append(self, subject: str, body: bytes, *, rollup: bool) -> int:
        expect, scope = self.position.seq, self._scope
        return await self._link.events.append(subject, body, expect=expect, scope=scope, rollup=rollup)

    async def _decide(self, body: bytes, after: int, refusal: WrongSequenceError | None) -> bool | None:
        """What took our place? ``None``: undecided."""
        message = await self._leader(lambda: self._link.events.next(self._scope, self.position.seq + 1))
        if message is None:
            if refusal is not None and refusal.last is not None and refusal.last < self.position.seq:
                raise FencedError(None)
            return None
        if message.body == body:  # it names writer and index
            entry = wire.decode(body)
            if entry is not None and entry.type in wire.TERMINAL:
                self.landed = await read_terminal(self._link, message, entry)
            self.position = Position(message.seq, after)
            return True
        # Also another message of ours, whose caller was cancelled or gave up: it is in the log, and this one is not.
        newest = await self._leader(lambda: self._link.events.last(self._scope))
        terminal = await find_terminal(self._link, self.end, newest) if newest is not None else None
        if terminal is not None and terminal.writer == self.writer:
            self.landed = terminal
        if newest is None or terminal is not None:
            raise FencedError(terminal)
        position = await position_behind(self._link, self._scope, newest, self.position)
        if position is None:
            raise FencedError(None)
        self.position = position
        return False

    async def _leader(self, read: Callable[[], Awaitable[Message | None]]) -> Message | None:
        try:
            return await patiently(read, limit=self._config.timing.give_up)
        except StreamMissingError:
            return None

    async def append_parts(self, subject: str, kind: str, raw: bytes) -> int:
        """Append a value in pieces that follow each other; the sequence of piece 0. Raises as ``append`` does.

        An interrupted run of pieces is void and starts again from piece 0 (B2). There must be room for all (B8).
        """
        await self._headroom.admit(len(raw))
        while True:
            limit = self._link.max_payload
            # A piece becomes a JSON string, and quoting at most doubles it.
            pieces = wire.split_text(raw, max(64, (limit - OVERHEAD) // 2))
            index, first = self.position.index, 0
            for number, piece in enumerate(pieces):
                body = wire.part_body(kind, index, self.writer, (number, len(pieces)), first, piece)
                after = index + 1 if kind == "part" and number == len(pieces) - 1 else index
                try:
                    if not await self.append(subject, body, after=after):
                        break
                except EventTooLargeError:
                    if self._link.max_payload >= limit:
                        raise
                    break  # the limit was lowered: in smaller pieces, from the first on
                first = first or self.position.seq
            else:
                return first

    async def append_end(self, end: End, kind: str, data: bytes, *, first: int) -> wire.Terminal | None:
        """Append a terminal record; the one that stands. ``None``: another writer came first. Raises as ``append``.

        ``first``: where the pieces of its data begin that were stored before it; 0: it is in the record itself.
        """
        body = wire.end_body(
            kind,
            self.position.index,
            self.writer,
            previous=self.position.seq,
            reason=end.reason,
            request=end.request,
            data=b"null" if first else data,
            first=first,
        )
        if not await self.append(self.end, body, after=self.position.index):
            return None
        entry = wire.decode(body)
        assert entry is not None
        return self.landed or wire.Terminal.of(entry, self.position.seq, data)


def _count(outcome: str, *, since: float | None = None) -> None:
    if not hub.on:
        return
    hub.add(measures.APPENDS, 1, outcome)
    if since is not None:
        hub.add(measures.APPEND_DURATION, time.monotonic() - since)


def _final(error: UnavailableError, *, unsure: bool) -> UnavailableError:
    if isinstance(error, StreamFullError):
        _count("full")
    elif isinstance(error, PermissionDeniedError):
        _count("denied")
    error.outcome_unknown = unsure  # an earlier attempt may have landed
    return error
