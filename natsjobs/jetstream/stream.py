"""The port ``Stream``: one JetStream stream, by requests on the wire and without a consumer.

Owns how an append, a leader read and a page look on the wire, and what the answers mean. Appends carry their condition
in headers, so the server decides; reads that decide something go to the leader (``STREAM.MSG.GET``), or, when very many
want a newest message, together to a replica that is proven to be as far as he is (``gathering``). Pages come from any
replica (``direct``), those of very many logs from one walk over the stream (``walking``), or from the leader while
replicas are silent: a node that was cut off is asked for half a minute yet. A read is repeated when the connection
breaks under it, a leader read also when nobody answers it: a stream without a leader drops what it is asked, and the
next leader never hears of it. An append never is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, NoReturn, cast

import msgspec

from natsjobs.engine.ports import (
    MOST_NEWEST,
    PAGE,
    PAGE_BYTES,
    Message,
    Newer,
    StreamMissingError,
    StreamState,
    WrongSequenceError,
)
from natsjobs.errors import EventTooLargeError, PermissionDeniedError, StreamFullError, UnavailableError
from natsjobs.jetstream.acks import Ack, Posted, read_ack
from natsjobs.jetstream.answers import Info, T, found_decoder, info_decoder
from natsjobs.jetstream.direct import ALL, MORE, TOO_MANY, Answer, Replicas
from natsjobs.jetstream.faults import NO_MESSAGE, NO_STREAM, RequestFailedError, ServerError, of_server
from natsjobs.jetstream.gathering import Gathering, may_gather
from natsjobs.jetstream.headers import NOBODY, PENDING, UP_TO, marker_of, number_of, seconds_of, status_of
from natsjobs.jetstream.inbox import Waiting
from natsjobs.jetstream.line import Line
from natsjobs.jetstream.walking import Query
from natsjobs.jetstream.wire import ASK_AGAIN, AWAY_WAIT, HEADER_ROOM, Wire

_LOOK_EVERY = 1.0
_OVERLAP = 1_000
"""Subjects of the part before that are asked for once more."""

_encode = msgspec.json.Encoder().encode


class NatsStream:
    """One stream, as one link sees it: implements the port ``Stream``."""

    def __init__(
        self, wire: Wire, name: str, *, prefix: str, request: float, missing: Callable[[], Awaitable[None]]
    ) -> None:
        """``prefix``: of the JetStream API. ``missing`` is awaited when the server does not know the stream."""
        self.name = name
        self.domain: str | None = None
        self._wire = wire
        self._request = request
        self._missing = missing
        self._get = f"{prefix}.STREAM.MSG.GET.{name}"
        self._replicas = Replicas(wire, name, prefix=prefix, request=request)
        self._about = f"{prefix}.STREAM.INFO.{name}"
        self._line = Line(request)
        self._gathering = Gathering(request, barrier=self._barrier, newer=self.newer, spawn=wire.spawn)
        self._looked = -math.inf

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
        """Store one message; its sequence. Raises as the port says, or ``EventTooLargeError`` before it sends."""
        limit = self._wire.max_payload - HEADER_ROOM
        if len(body) > limit:
            raise EventTooLargeError(len(body), limit)
        headers: dict[str, str] = {}
        if expect is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(expect)
            if scope is not None:
                headers["Nats-Expected-Last-Subject-Sequence-Subject"] = scope
        if ttl is not None:
            headers["Nats-TTL"] = str(max(1, math.ceil(ttl)))
        if marker:
            headers["KV-Operation"] = "PURGE"
        if rollup or marker:
            headers["Nats-Rollup"] = "sub"
        doing, started = f"appending to {subject}", time.monotonic()
        try:
            ack: Ack = await self._wire.request(
                subject, body, self._take_ack, limit=self._request, headers=headers, wait=AWAY_WAIT
            )
        except RequestFailedError as error:
            raise self._failed(error, doing, started, subject, write=True) from None
        return await self._stored(ack, doing, started)

    def send(self, subject: str, body: bytes, *, expect: int, scope: str, done: Callable[[int], None]) -> Posted | None:
        """Append without a task, or not at all, as the port says."""
        posted = Posted(done, self._has_stored, self._judge)
        head = (
            f"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: {expect}\r\n"
            f"Nats-Expected-Last-Subject-Sequence-Subject: {scope}\r\n\r\n"
        )
        sent = self._wire.post(subject, body, self._take_ack, posted.ended, limit=self._request, head=head.encode())
        return posted if sent else None

    async def _judge(self, waiting: Waiting) -> int:
        doing = f"appending to {waiting.subject}"
        if isinstance(waiting.error, RequestFailedError):
            raise self._failed(waiting.error, doing, waiting.started, waiting.subject, write=True)
        if waiting.error is not None:
            raise waiting.error
        return await self._stored(waiting.result, doing, waiting.started)

    async def _stored(self, ack: Ack, doing: str, started: float) -> int:
        if not ack.stream and ack.error is None:
            await self._nobody(doing, started, write=True)
        if ack.error is not None:
            raise await self._refused(ack.error, doing, started, write=True)
        self._has_stored()
        return ack.seq

    def _has_stored(self) -> None:
        self._wire.went_well(stored=True)

    async def next(self, subject_filter: str, seq: int = 1) -> Message | None:
        """The first message at or after ``seq`` that matches, read at the leader. Raises as the port says."""
        return await self._read({"seq": max(1, seq), "next_by_subj": subject_filter})

    async def last(self, subject_filter: str, *, alone: bool = False) -> Message | None:
        """The newest message that matches, as the leader has it. Raises as the port says."""
        waited = 0.0
        if not alone and self._in_a_crowd() and may_gather(subject_filter):
            found, waited = await self._gathering.last(subject_filter)
            if found is not None:
                return found
        return await self._read({"last_by_subj": subject_filter}, waited)

    def _in_a_crowd(self) -> bool:
        crowd = self._line.long or self._gathering.waits
        return crowd and self._wire.ready and not (self._gathering.apart or self._replicas.silent)

    async def page(
        self, subject_filter: str, seq: int, *, batch: int = PAGE, max_bytes: int = PAGE_BYTES
    ) -> list[Message]:
        """Up to ``batch`` messages that match, from ``seq`` on, from any replica. Raises as the port says."""
        query = Query(max(1, seq), batch, max_bytes, subject_filter)
        found = await self._direct(self._replicas.page(query))
        if found is not None:
            return found.messages  # no news of the leader: a replica that is cut off from it sends pages, too
        return await self._leader_page(subject_filter, seq, batch, max_bytes)

    async def newest(self, filters: Sequence[str]) -> list[Message] | None:
        """The newest message of each subject that matches, from any replica. Raises as the port says."""
        query = {"multi_last": filters, "batch": PAGE, "max_bytes": PAGE_BYTES}
        found = await self._direct(self._replicas.ask(query), refusals={TOO_MANY, MORE})
        if found is None:
            return None
        page, status = found.messages, found.status
        # 404: nothing matches; behind messages: one was replaced while they were being sent, which ended that.
        return page if status == ALL or (status == 404 and not page) else None

    async def newer(self, filters: Sequence[str], seq: int, *, batch: int = 2 * MOST_NEWEST) -> Newer | None:
        """As ``newest``, of those at or after ``seq``, and how far the replica was. Raises as the port says."""
        query = {"multi_last": filters, "seq": seq, "batch": batch, "max_bytes": PAGE_BYTES}
        found = await self._direct(self._replicas.ask(query), refusals={TOO_MANY, MORE})
        if found is None or found.status not in {ALL, MORE} or (found.status == MORE and not found.messages):
            return None
        upto = number_of(found.end, UP_TO)
        return Newer(found.messages, upto, found.status == ALL) if upto is not None else None

    async def held(self, subjects: Sequence[str]) -> int | None:
        """How many of these hold a message, by any replica. Raises as the port says."""
        # It says with the first message how many come after it. The status says so, too, but 2.11 one less.
        query = {"multi_last": subjects, "batch": 1, "max_bytes": 1}
        found = await self._direct(self._replicas.ask(query), refusals={TOO_MANY, MORE})
        if found is None:
            return None
        if not found.messages:
            return 0 if found.status == 404 else None
        return len(found.messages) + (number_of(found.headers, PENDING) or 0)

    async def _direct(self, asked: Awaitable[Answer | None], *, refusals: Collection[int] = ()) -> Answer | None:
        """What any replica says; ``None``: silence, or too long a question. ``refusals``: statuses, no errors."""
        doing, started = f"reading a page of {self.name}", time.monotonic()
        try:
            found = await asked
        except RequestFailedError as error:
            raise self._failed(error, doing, started, self._replicas.subject) from None
        except EventTooLargeError:
            return None
        status = found.status if found is not None else 0
        if status == NOBODY:
            await self._nobody(doing, started)
        elif status >= 400 and status != 404 and status not in refusals:  # 404: nothing there
            raise await self._refused(ServerError(status, 0, "the request was refused"), doing, started)
        return found

    async def _leader_page(self, subject_filter: str, seq: int, batch: int, max_bytes: int) -> list[Message]:
        page: list[Message] = []
        size = 0
        while len(page) < batch and size < max_bytes:
            message = await self.next(subject_filter, page[-1].seq + 1 if page else seq)
            if message is None:
                break
            page.append(message)
            size += len(message.body)
        return page

    async def subjects(self, subject_filter: str) -> dict[str, int]:
        """Subjects that match and hold messages, with their counts. Raises as the port says."""
        found: dict[str, int] = {}
        offset, known = 0, ""
        while True:
            info = await self._ask({"subjects_filter": subject_filter, "offset": offset})
            part = info.state.subjects or {}
            if offset and not (part and min(part) <= known):  # more were removed meanwhile than two parts overlap
                offset = max(0, offset - max(len(part), _OVERLAP))
                continue
            found.update(part)
            end = offset + len(part)
            if not part or end >= info.total:
                return found
            # The server gives a hundred thousand at most, in their order, and counts anew each time: what is removed
            # meanwhile moves others towards the beginning.
            offset, known = end - min(_OVERLAP, len(part) // 2), max(part)

    async def state(self) -> StreamState:
        """The stream now. Raises as the port says."""
        info = await self._ask(None)
        return StreamState(
            created=info.created,
            last_seq=info.state.last_seq,
            bytes=info.state.bytes,
            max_bytes=info.config.max_bytes,
            now=_seconds(info.ts, self.name) if info.ts else time.time(),
            last_time=_seconds(info.state.last_ts, self.name) if info.state.last_ts else 0.0,
        )

    # -- asking -------------------------------------------------------------------------------------------------------

    async def _read(self, query: dict[str, Any], waited: float = 0.0) -> Message | None:
        found = await self._api(self._get, _encode(query), found_decoder, f"reading {self.name}", waited)
        if (message := found.message) is None:
            return None
        marker = marker_of(message.hdrs) if message.hdrs else None
        return Message(message.subject, message.seq, message.data, _seconds(message.time, self.name), marker)

    async def _ask(self, query: dict[str, Any] | None) -> Info:
        return await self._api(self._about, _encode(query) if query else b"", info_decoder, f"asking about {self.name}")

    async def _barrier(self) -> int | None:
        """The newest sequence at the leader, asked at once; ``None``: the connection broke."""

        def take(body: bytes, headers: bytes) -> Info:
            return Info(error=ServerError(503)) if status_of(headers) else info_decoder.decode(body)

        try:
            limit = min(self._request, max(1.0, self._request / 4))
            info: Info = await self._wire.request(self._about, b"", take, limit=limit)
        except RequestFailedError as error:
            if error.denied or self._wire.ready:
                raise
            return None
        if info.refusal is not None or not info.says_something:
            raise RequestFailedError("the leader does not say how far the stream is", sent=True)
        self._wire.went_well(stored=False)
        return info.state.last_seq

    async def _api(
        self, subject: str, query: bytes, decoder: msgspec.json.Decoder[T], doing: str, waited: float = 0.0
    ) -> T:
        """One request to the leader; the answer, which may say that there is no message but no other error."""

        def take(body: bytes, headers: bytes) -> Any:
            if status := status_of(headers):
                return status
            answer: T = decoder.decode(body)
            if answer.error is None and not answer.says_something:
                raise msgspec.ValidationError("it says neither what was asked nor an error")
            return (answer,)

        started = time.monotonic()
        try:
            taken: Any = await self._repeat(subject, query, take, waited)
        except RequestFailedError as error:
            raise self._failed(error, doing, started, subject) from None
        if not isinstance(taken, tuple):
            await self._nobody(doing, started)
        answer = cast("T", taken[0])
        refused = answer.refusal
        if refused is not None and refused.err_code != NO_MESSAGE:
            raise await self._refused(refused, doing, started)
        self._wire.went_well(stored=False)
        return answer

    async def _repeat(self, subject: str, query: bytes, take: Callable[[bytes, bytes], Any], waited: float) -> Any:
        """A read may be sent again: when the connection broke under it, and every so often without an answer."""
        deadline = math.inf
        while True:
            await self._wire.connected(min(AWAY_WAIT, self._request))  # nobody stands in line for one that is away
            await self._line.enter(waited)
            heard, waited = False, 0.0
            try:
                if not self._wire.ready:
                    continue
                deadline = min(deadline, time.monotonic() + self._request)
                limit = deadline - time.monotonic()
                found = await self._wire.request(subject, query, take, limit=limit, wait=AWAY_WAIT, again=ASK_AGAIN)
                heard = True
            except RequestFailedError as error:
                if not error.sent or error.denied or self._wire.ready or deadline - time.monotonic() < AWAY_WAIT:
                    raise
            else:
                return found
            finally:
                self._line.leave(heard=heard)

    def _take_ack(self, body: bytes, headers: bytes) -> Ack | None:
        return read_ack(body, headers, self.name, self.domain)

    # -- when it fails ------------------------------------------------------------------------------------------------

    def _failed(
        self, error: RequestFailedError, doing: str, started: float, subject: str, *, write: bool = False
    ) -> UnavailableError:
        if error.denied:
            return PermissionDeniedError(doing, subject=subject)
        self._wire.went_wrong(started, write=write)
        return UnavailableError(f"{doing}: {error}", outcome_unknown=write and error.sent)

    async def _refused(self, error: ServerError, doing: str, started: float, *, write: bool = False) -> Exception:
        """What the server's refusal means; a stream that is gone is made anew first, where that is allowed."""
        found = of_server(error, doing)
        if isinstance(found, StreamMissingError):
            await self._missing()
        if isinstance(found, UnavailableError) and not isinstance(found, StreamFullError):
            self._wire.went_wrong(started, write=write)
        elif isinstance(found, WrongSequenceError | StreamFullError):
            self._wire.went_well(stored=False)
        return found

    async def _nobody(self, doing: str, started: float, *, write: bool = False) -> NoReturn:
        """Nobody listens on a subject of the stream: it has no leader, or there is no such stream.

        Raises:
            StreamMissingError: The server says that there is none (asked at most once a second).
            UnavailableError: It has no leader, or that cannot be told.
        """
        self._wire.went_wrong(started, write=write)
        if started - self._looked >= _LOOK_EVERY:
            self._looked = time.monotonic()
            if await self._is_missing():
                await self._missing()
                raise StreamMissingError(f"{doing}: there is no stream {self.name}")
        raise UnavailableError(
            f"{doing}: no stream answers; {self.name} has no leader at the moment, or JetStream is off"
        )

    async def _is_missing(self) -> bool:
        def take(body: bytes, headers: bytes) -> bool:
            error = None if status_of(headers) else info_decoder.decode(body).error
            return error is not None and error.err_code == NO_STREAM

        try:
            return bool(await self._wire.request(self._about, b"", take, limit=min(1.0, self._request)))
        except (RequestFailedError, msgspec.MsgspecError):
            return False


def _seconds(text: str, name: str) -> float:
    try:
        return seconds_of(text)
    except ValueError:
        raise UnavailableError(f"reading {name}: the answer is none of JetStream (time {text!r})") from None
