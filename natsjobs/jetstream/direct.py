"""Pages from any replica of a stream: batch direct gets, and what it means when nobody answers one.

Owns how long an answer may take, and the judgement that replicas are silent. Pages stand in a line, where very many are
read together (``pages``); their time begins when they are sent. A page whose messages keep arriving is not late.
Questions about many subjects stand in no line: a server answers them from its index, a list is not to wait for pages of
logs, and who asks many of them, as looks do, keeps few under way himself.

Guarantees that nobody stands in line for a connection that is away, and that one silent page says nothing about
replicas as long as others are answered in their order: the server is busy then. What pages mean, and what errors do, is
the stream's business.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque

import msgspec

from natsjobs.engine import garbage
from natsjobs.engine.ports import Message
from natsjobs.errors import NatsJobsError
from natsjobs.jetstream.faults import RequestFailedError
from natsjobs.jetstream.headers import PENDING, marker_of, number_of, status_of, stored_of
from natsjobs.jetstream.pages import PageLine
from natsjobs.jetstream.walking import Query, Step
from natsjobs.jetstream.wire import AWAY_WAIT, Wire

_log = logging.getLogger(__name__)


class Answer(msgspec.Struct):
    """What a replica has sent up to now."""

    messages: list[Message]
    """In order and without a hole as far as they go."""
    status: int = 0
    """Behind them; 0: none came."""
    headers: bytes = b""
    """Of the last message."""
    end: bytes = b""
    """Of the status behind them."""


ALL, TOO_MANY, _NOTHING = 204, 413, 404
MORE = 299
"""Ours: that was all of this page, and there is more."""

_LEADER_ONLY = 10.0
"""After replicas were silent, pages come from the leader for this long."""
_OVERTAKEN = 3
"""Silent pages, each asked for before one that was answered, in so many seconds: a replica does not answer."""

_encode = msgspec.json.Encoder().encode


class Replicas:
    """All replicas of one stream, as one link hears them."""

    def __init__(self, wire: Wire, name: str, *, prefix: str, request: float) -> None:
        """``prefix``: of the JetStream API. ``request``: how long a page may take that keeps arriving."""
        self._name = name
        self.subject = f"{prefix}.DIRECT.GET.{name}"
        self._wire = wire
        self._line = PageLine(self._walk_on, wire.spawn)
        self._longest = request
        self._limit = min(request, max(1.0, request / 4))
        self._heard = self._answered = -math.inf  # when a message came last; when that was sent which has its answer
        self._silent = -math.inf
        self._missed: deque[float] = deque(maxlen=_OVERTAKEN)

    @property
    def silent(self) -> bool:
        """Whether nobody answered a page lately: none is asked for then."""
        return time.monotonic() - self._silent < _LEADER_ONLY

    async def ask(self, query: object) -> Answer | None:
        """The answer to one question; ``None``: silence, which says nothing about the leader.

        Raises:
            RequestFailedError: It could not be sent, or was denied, or connections broke under it again and again.
        """
        return await self._ask(_encode(query), None)

    async def page(self, query: Query) -> Answer | None:
        """As ``ask``, when it is this one's turn in the line of pages."""
        return await self._ask(_encode(query), query)

    async def _ask(self, encoded: bytes, in_line: Query | None) -> Answer | None:
        first = math.inf
        while True:
            await self._wire.connected(AWAY_WAIT)
            if in_line is not None and (page := await self._line.enter(in_line)) is not None:
                return Answer(page)
            try:
                if self.silent:
                    return None
                if not self._wire.ready:
                    continue  # it broke while this one stood in line: all wait for it at once
                first = min(first, time.monotonic())
                return await self._attempt(encoded)
            except RequestFailedError as error:
                if error.denied or self._wire.ready or time.monotonic() - first > self._longest:
                    raise
            finally:
                if in_line is not None:
                    self._line.leave()

    async def _walk_on(self, query: Query) -> Step | None:
        """What a replica says of a stretch of the stream; ``None``: whoever waits for it had better ask for himself."""
        if self.silent or not self._wire.ready:
            return None
        try:
            found = await self._attempt(_encode(query))
        except (RequestFailedError, NatsJobsError) as error:
            _log.info("reading pages of %s one by one: %s", self._name, error)
            return None
        if found is None or found.status not in {ALL, MORE, _NOTHING}:
            return None  # one that broke off is none either: the next might do so as well
        return Step(found.messages, whole=found.status != MORE)

    async def _attempt(self, query: bytes) -> Answer | None:
        answer = Answer([])
        started = time.monotonic()
        try:
            await self._receive(query, answer)
        except RequestFailedError as error:
            if answer.messages:
                return answer
            if not error.sent or error.denied or not self._wire.ready:
                raise
            self._miss(started)
            return None
        self._heard, self._answered = time.monotonic(), max(self._answered, started)
        return answer

    async def _receive(self, query: bytes, answer: Answer) -> None:
        def take(body: bytes, headers: bytes) -> int | None:
            if (message := _message(body, headers)) is not None:
                self._heard = time.monotonic()
                answer.messages.append(message)  # also one that somebody stored with a status line of his own
                answer.headers = headers
                return None
            if status := status_of(headers):
                answer.end = headers
                return MORE if status == ALL and number_of(headers, PENDING) else status
            garbage.skipped("an answer", self.subject, body)
            return None

        answer.status = await self._wire.request(
            self.subject, query, take, limit=self._limit, longest=self._longest, wait=AWAY_WAIT
        )

    def _miss(self, started: float) -> None:
        """Nobody has answered a page that was asked for at ``started``."""
        now = time.monotonic()
        if self._answered > started:
            self._missed.append(now)
        often = len(self._missed) == _OVERTAKEN and now - self._missed[0] < _LEADER_ONLY
        if often or self._heard < started:
            _log.info("no replica of %s sends pages; reading at the leader", self._name)
            self._silent = now
            self._missed.clear()


def _message(body: bytes, headers: bytes) -> Message | None:
    if (stored := stored_of(headers)) is None:
        return None
    subject, seq, at = stored
    return Message(subject, seq, body, at, marker_of(headers))
