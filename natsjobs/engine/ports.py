"""The ports: what the engine needs from a message system, and nothing more.

``Stream`` is one JetStream stream as the engine sees it: an append-only log of (subject, body) with per-subject
compare-and-set, server time, per-message TTL and rollup. ``Bus`` is core NATS: fire-and-forget subjects with
interest, so that a request without a responder fails at once. ``Link`` is one connection that holds two streams
(``events`` and ``records``, the latter being the stream below the KV bucket) and a bus.

Guarantees every implementation gives:

- ``append`` with ``expect`` succeeds for at most one of any number of racing writers, and what it acknowledged is in
  the stream. What it did not acknowledge may be there all the same (``UnavailableError.outcome_unknown``).
- A message that was appended is published on ``live_prefix`` + the rest of its subject *after* it is stored; that
  delivery may be lost, and is never doubled or reordered per subject on one connection.
- Handlers are plain functions, called one at a time per subscription, in order of arrival; they must not block.
- ``Incoming.reply`` is an inbox: never a subject of the namespace or of the server's API, nor anything else that a
  stranger would like us to publish to.
- Errors are those of ``natsjobs.errors`` and the four below; nothing else escapes. A ``ConnectionLostError`` is an
  ``UnavailableError`` that waiting does not mend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import msgspec

from natsjobs.errors import UnavailableError

PAGE, PAGE_BYTES = 64, 524_288
"""What one answer holds at most: a page holds the stream while it is read (A9)."""
MOST_NEWEST = 256
"""Filters in one question about many. With the longest names they may be too many for a message: see ``Stream``."""


class WrongSequenceError(Exception):
    """A compare-and-set was refused: NATS error 10071 or 10164.

    ``last`` is the true last sequence when the server named it; ``None`` (10164) means that another append is still
    in flight, so nothing can be concluded yet.
    """

    def __init__(self, last: int | None) -> None:
        super().__init__(f"wrong last sequence: {last}")
        self.last = last


class NoRespondersError(Exception):
    """Nobody has interest in the subject of a request."""


class NoReplyError(Exception):
    """Somebody has interest, but nobody answered in time."""


class StreamMissingError(UnavailableError):
    """The stream does not exist (any more): NATS error 10059. Whoever does not expect it hears "unavailable"."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """A stored message. ``time``: when the server stored it, seconds since the epoch on the server's clock.

    ``marker`` is set on what a removal left behind: ``"PURGE"`` or ``"DEL"`` (a client's), ``"MaxAge"`` (a TTL's).
    """

    subject: str
    seq: int
    body: bytes
    time: float
    marker: str | None = None


class Incoming(msgspec.Struct, frozen=True, gc=False):
    """A message from the bus. ``seq`` is its stream sequence when it was republished by a stream, else 0.

    ``marker`` as in ``Message``, for republished markers. ``reply`` is the inbox that waits for an answer, or ``""``.
    """

    subject: str
    body: bytes
    reply: str
    seq: int
    marker: str | None = None


class StreamState(msgspec.Struct, frozen=True):
    """A stream at one moment. ``created`` changes when it is re-created; ``now`` is the server's clock, seconds."""

    created: str
    last_seq: int
    bytes: int
    max_bytes: int
    now: float
    last_time: float
    """When the newest message was stored, as its ``Message.time`` says; before there was any: at most 0."""


class Newer(msgspec.Struct, frozen=True):
    """What one replica says of many subjects at once: ``Stream.newer``."""

    messages: list[Message]
    """Oldest first."""
    upto: int
    """The newest sequence of the stream, as this replica knew it."""
    whole: bool
    """Nothing is missing; else, and then there is a message, the question is asked again from behind the last."""


BusHandler: TypeAlias = Callable[[Incoming], None]


class Interest(Protocol):
    """A bus subscription."""

    async def confirm(self) -> None:
        """Wait until the system knows of it, after ``subscribe`` with ``sure=False``. The interest stays.

        It takes no time when something that was asked later was answered: commands of one link are taken in order.

        Raises:
            UnavailableError: The connection is away.
            PermissionDeniedError: This user may not listen there.
        """
        ...

    async def unsubscribe(self) -> None:
        """Stop; idempotent; when it returns the handler is not called any more."""
        ...


class Sent(Protocol):
    """An append that is on its way, of ``Stream.send``."""

    async def outcome(self) -> int:
        """Once ``done`` was called: the sequence. Raises as ``Stream.append`` does."""
        ...


class Stream(Protocol):
    """One stream. Sequences start at 1; a filter is a subject that may hold NATS wildcards.

    ``newest``, ``newer`` and ``held`` ask about many at once. A question that is longer than ``Link.max_payload``
    is answered like one that no replica answers, by ``None``: fewer may be asked about, or the leader.
    """

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
        """Store one message; its sequence.

        Args:
            subject: Where; inside this stream.
            body: What; at most ``Link.max_payload`` less 1 KiB.
            expect: Only if the last sequence of ``scope`` is this; 0: nothing there.
            scope: The filter that ``expect`` speaks of; ``None``: the subject itself.
            ttl: The message goes by itself after this many seconds (rounded up to whole ones); ``None``: stays.
            rollup: Replace all earlier messages of the subject by this one.
            marker: It marks a removal (the KV operation PURGE); implies ``rollup``.

        Raises:
            WrongSequenceError: ``expect`` did not hold. Nothing was stored by this attempt.
            StreamFullError: The stream or account is full. Nothing was stored.
            UnavailableError: No answer or no leader; see ``outcome_unknown``.
            PermissionDeniedError: This user may not write to the subject. Nothing was stored.
            StreamMissingError: No such stream. Nothing was stored.
            EventTooLargeError: Body and headers exceed ``Link.max_payload``. Nothing was sent.
        """
        ...

    def send(self, subject: str, body: bytes, *, expect: int, scope: str, done: Callable[[int], None]) -> Sent | None:
        """``append`` for those who have nothing to wait for: sent at once and without a task, or not at all.

        ``done`` is called once, later, with the sequence; with 0 when it was not simply stored: ``Sent.outcome`` says
        what happened. It must neither block nor raise.

        Returns:
            ``None``: Nothing was sent, and ``done`` will not be called; ``append`` waits for what is missing, or says
            what is wrong.
        """
        ...

    async def next(self, subject_filter: str, seq: int = 1) -> Message | None:
        """The first message at or after ``seq`` that matches, read at the leader.

        Raises:
            UnavailableError: No answer or no leader.
            StreamMissingError: No such stream.
        """
        ...

    async def last(self, subject_filter: str, *, alone: bool = False) -> Message | None:
        """The newest message that matches, as the leader has it. Raises as ``next`` does.

        Whatever was acknowledged before this was called is seen. When very many ask at once, a replica may answer that
        is proven to be as far as the leader was after that; that there is no message is for the leader alone to say.
        ``alone``: he is read himself, whatever replicas would say.
        """
        ...

    async def page(
        self, subject_filter: str, seq: int, *, batch: int = PAGE, max_bytes: int = PAGE_BYTES
    ) -> list[Message]:
        """Up to ``batch`` messages that match, from ``seq`` on, in order, from any replica (it may lag behind).

        At least one message comes when there is one, however large. An empty list says nothing (ask the leader).
        Raises as ``next`` does.
        """
        ...

    async def newest(self, filters: Sequence[str]) -> list[Message] | None:
        """The newest message of each subject that matches one of these, oldest first, from any replica (it may lag).

        Its cost is that of what matches, however large the stream is; a page's is that of what lies between. At most
        ``MOST_NEWEST`` filters; a page is asked for. What is missing says nothing: of more than a page the newest ones
        are missing, which whoever needs all sees by the leader's last one. ``None``: no replica has given it, or it is
        known to be too much: of fewer filters perhaps it is not. Raises as ``next`` does.
        """
        ...

    async def newer(self, filters: Sequence[str], seq: int, *, batch: int = 2 * MOST_NEWEST) -> Newer | None:
        """As ``newest``, but of those alone that are at or after ``seq``, and with how far this replica was.

        At most ``MOST_NEWEST`` filters; the oldest ``batch`` messages come. ``None``: no replica said, or nothing
        matches at all, or, of a thousand subjects and more, it is too much. Raises as ``next`` does.
        """
        ...

    async def held(self, subjects: Sequence[str]) -> int | None:
        """How many of these hold a message, by any replica (it may lag): at most ``MOST_NEWEST``, without wildcards.

        The server looks at its index, and one message travels, however many there are. Fewer than there should be is
        no proof, but a reason to ask the leader. ``None``: no replica said. Raises as ``next`` does.
        """
        ...

    async def subjects(self, subject_filter: str) -> dict[str, int]:
        """Subjects that match and hold messages, with their counts. Raises as ``next`` does."""
        ...

    async def state(self) -> StreamState:
        """The stream now, at the leader. Raises as ``next`` does."""
        ...


class Bus(Protocol):
    """Core subjects: at most once, nothing stored."""

    async def publish(self, subject: str, body: bytes) -> None:
        """Send and forget. While the connection is away nothing is sent and nothing raised (no late delivery, B9)."""
        ...

    async def subscribe(self, subject: str, handler: BusHandler, *, sure: bool = True) -> Interest:
        """Call ``handler`` for every message; the interest survives reconnects.

        ``sure=False`` does not wait until the system knows of it: what is asked next comes behind it all the same, so
        whoever has the answer to that has only to call ``Interest.confirm``, which waits for nothing then.

        Raises:
            UnavailableError: The connection is away.
            PermissionDeniedError: This user may not listen there (with ``sure=False``: ``confirm`` says so).
        """
        ...

    async def request(self, subject: str, body: bytes, *, timeout: float) -> bytes:
        """The first answer.

        Raises:
            NoRespondersError: At once, when nobody has interest.
            NoReplyError: Nobody answered in ``timeout`` seconds, or the connection is away.
            PermissionDeniedError: This user may not ask; nobody was asked.
        """
        ...

    async def gather(
        self, subject: str, body: bytes, *, timeout: float, enough: Callable[[list[bytes]], bool] | None = None
    ) -> list[bytes]:
        """All answers that arrive in ``timeout`` seconds, or until ``enough(answers)``.

        Raises:
            NoRespondersError: At once, when nobody has interest.
            NoReplyError: There was interest and no answer at all, or the connection is away.
            PermissionDeniedError: This user may not ask; nobody was asked.
        """
        ...


class Link(Protocol):
    """One connection to the message system.

    It is shared by a store and its transports, so ``open`` and ``close`` count: the last ``close`` releases. Before
    ``open`` and after that every call raises ``NotOpenError``, but ``Bus.publish``, which is silent.
    """

    @property
    def events(self) -> Stream:
        """The stream ``{ns}_events``."""
        ...

    @property
    def records(self) -> Stream:
        """The stream below the bucket ``{ns}_jobs``; its subjects are ``$KV.{ns}_jobs.{key}``."""
        ...

    @property
    def bus(self) -> Bus:
        """Core subjects."""
        ...

    @property
    def max_payload(self) -> int:
        """Largest message the server takes, bytes, headers included."""
        ...

    @property
    def connected_since(self) -> float | None:
        """``time.monotonic()`` since when the connection is unbroken and requests succeed; ``None``: it is away."""
        ...

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after every reconnect, once requests can be sent again; the returned function removes it.

        So it does when interests that the server had dropped are heard again (a permission came back). Also once when
        the connection was given and is closed for good: whoever looks then gets ConnectionLostError.
        """
        ...

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Call back once, when this turn of the loop is over and what it has made is about to leave.

        What the callback sends leaves with it. It must neither block nor raise.
        """
        ...

    async def open(self) -> None:
        """Connect if needed; create or check stream and bucket.

        Raises:
            UnsupportedServerError: The server is too old, or an existing stream or bucket has other settings.
            UnavailableError: No answer.
        """
        ...

    async def close(self) -> None:
        """One holder less; the last releases what was opened here, not a connection that was given."""
        ...
