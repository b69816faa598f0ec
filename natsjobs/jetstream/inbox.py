"""Answers and where they go: one inbox per link, a token per request, and the interests below it all.

Owns the requests that wait, and the permissions that were denied lately, which the server tells to nobody in
particular. It sends nothing. Guarantees that a request that waits is ended by whatever comes first.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec
from nats.aio.subscription import Subscription

from natsjobs.engine import garbage
from natsjobs.jetstream.faults import RequestFailedError
from natsjobs.jetstream.tap import Handler, Tap

Take: TypeAlias = Callable[[bytes, bytes], Any]
"""Called with body and raw headers of each answer; anything but ``None`` is the result of the request."""


Then: TypeAlias = Callable[["Waiting"], None]
"""Called with a request that has ended; must neither block nor raise."""

_SWEEPS = 0.01
"""Requests end no more than this after their deadline: one timer looks after all of them."""


def _nothing() -> None:
    """Nobody asks again."""


class Waiting:
    """One request that waits for its answers: with a future, or with a function that is called at its end."""

    __slots__ = (
        "again",
        "deadline",
        "due",
        "error",
        "future",
        "heard",
        "limit",
        "longest",
        "number",
        "result",
        "started",
        "subject",
        "take",
        "then",
        "token",
        "unheard",
    )

    def __init__(self, number: int, subject: str, take: Take, limit: float, again: float, then: Then | None) -> None:
        self.number = number
        self.token = str(number)
        self.subject = subject
        self.take = take
        self.heard = False
        self.started = time.monotonic()
        self.limit = limit
        self.deadline = self.started + limit
        self.longest = 0.0
        """Every answer that is not the last puts the deadline off, up to so many seconds after ``started``."""
        self.again = again
        self.unheard: Callable[[], object] = _nothing
        """Called every ``again`` seconds as long as there is no answer."""
        self.due = self.started + min(limit, again)
        """When it has to be looked at next."""
        self.result: Any = None
        self.error: Exception | None = None
        self.then = then
        self.future: asyncio.Future[Any] | None = None
        if then is None:
            self.future = asyncio.get_running_loop().create_future()

    @property
    def over(self) -> bool:
        """Whether it has ended, or nobody waits for it any more."""
        if self.future is not None:
            return self.future.done()
        return self.result is not None or self.error is not None

    def end(self, result: Any, error: Exception | None = None) -> None:
        """It has ended; must not be ``over``."""
        self.result, self.error = result, error
        if self.then is not None:
            then, self.then = self.then, None  # it holds us: a circle would be left to the garbage collector
            then(self)
        elif self.future is not None and error is not None:
            self.future.set_exception(error)
        elif self.future is not None:
            self.future.set_result(result)


class Inbox:
    """The requests of one link that wait."""

    def __init__(self) -> None:
        self.prefix = ""
        self.asked = 0
        """How many requests were made: what is sent now comes before the next one."""
        self.heard = 0
        """The newest request that was answered: the server has processed what was sent before it."""
        self._waiting: dict[str, Waiting] = {}
        self._denials: deque[tuple[float, str]] = deque(maxlen=32)
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf  # when the timer looks

    def __len__(self) -> int:
        return len(self._waiting)

    def expect(
        self, subject: str, take: Take, limit: float, *, again: float = math.inf, then: Then | None = None
    ) -> Waiting:
        """A request is about to be sent; its answers go to ``prefix`` + ``token``.

        ``then`` is called at its end; without it there is a future, and ``done`` must follow.
        """
        self.asked += 1
        waiting = Waiting(self.asked, subject, take, limit, again, then)
        self._waiting[waiting.token] = waiting
        if waiting.due < self._due:
            self._look_at(waiting.due)
        return waiting

    def done(self, waiting: Waiting) -> None:
        """Nobody waits for it any more."""
        self._waiting.pop(waiting.token, None)
        future = waiting.future
        if future is not None and not future.cancel() and not future.cancelled():
            future.exception()  # seen, so that an error that came with a cancellation is no warning

    def answered(self, subject: str, _reply: str, body: bytes, headers: bytes) -> None:
        """A message came to the inbox."""
        waiting = self._waiting.get(subject[len(self.prefix) :])
        if waiting is None or waiting.over:
            return
        waiting.heard = True
        self.heard = max(self.heard, waiting.number)
        try:
            result = waiting.take(body, headers)
        except (msgspec.MsgspecError, RecursionError) as error:
            garbage.skipped("an answer", f"{waiting.subject}: {error}", body)  # the true one may still come
        except Exception as error:  # noqa: BLE001 - it belongs to the one who waits
            self._end(waiting, None, error)
        else:
            if result is not None:
                self._end(waiting, result)
            elif waiting.longest > waiting.limit:
                waiting.deadline = min(time.monotonic() + waiting.limit, waiting.started + waiting.longest)

    def lost(self, why: str) -> None:
        """No answer will come to anybody."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = None, math.inf
        for waiting in list(self._waiting.values()):
            self._end(waiting, None, RequestFailedError(why, sent=True))

    def denied(self, violation: str) -> bool:
        """The server refused something that this connection sent; whether somebody waits for an answer to it."""
        self._denials.append((time.monotonic(), violation))
        concerned = [waiting for waiting in self._waiting.values() if names(violation, waiting.subject)]
        for waiting in concerned:
            self._end(waiting, None, RequestFailedError(violation, sent=False, denied=True))
        return bool(concerned)

    def denial(self, started: float, subject: str | None = None) -> str | None:
        """The last violation since ``started``, of this subject or of any."""
        for at, violation in reversed(self._denials):
            if at >= started and (subject is None or names(violation, subject)):
                return violation
        return None

    def _end(self, waiting: Waiting, result: Any, error: Exception | None = None) -> None:
        if not waiting.over:
            if waiting.then is not None:
                self._waiting.pop(waiting.token, None)
            waiting.end(result, error)

    def _look_at(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = asyncio.get_running_loop().call_later(max(0.0, due - time.monotonic()), self._sweep)

    def _sweep(self) -> None:
        """End what is beyond its deadline, and let those ask again whom nobody has answered."""
        self._timer, self._due = None, math.inf
        now = time.monotonic()
        for waiting in [waiting for waiting in self._waiting.values() if waiting.due <= now]:
            if waiting.deadline <= now:
                violation = self.denial(waiting.started)
                meanwhile = f"; meanwhile NATS reported: {violation}" if violation else ""
                self._end(waiting, None, RequestFailedError(f"no answer in time{meanwhile}", sent=True))
                continue
            if not waiting.heard and not waiting.over:
                waiting.unheard()
            waiting.due = waiting.deadline if waiting.heard else min(waiting.deadline, now + waiting.again)
        left = min((waiting.due for waiting in self._waiting.values() if not waiting.over), default=math.inf)
        if left < self._due:
            self._look_at(max(left, now + _SWEEPS))


class WireInterest:
    """A subscription that outlives the connection it was made on."""

    __slots__ = ("_forget", "_handler", "_on", "_tap", "active", "before", "confirmed", "refused", "started", "subject")

    def __init__(self, subject: str, handler: Handler | None, forget: Callable[[WireInterest], None]) -> None:
        """``forget`` is called when it is over, so that nobody makes it again."""
        self.subject = subject
        self.active = True
        self._handler = handler
        self._forget = forget
        self._tap: Tap | None = None
        self._on: Subscription | None = None
        self.started = time.monotonic()
        self.before = 0
        """``Inbox.asked`` when it was sent: an answer to a later request proves that the server knows of it."""
        self.confirmed = False
        """Somebody has waited until the server knew of it."""
        self.refused = False
        """The server takes no more, and does not know of this one: it is not made again."""

    def is_known(self, heard: float) -> bool:
        """Whether the server has known of it; ``heard``: ``Inbox.heard``."""
        return self.confirmed or heard > self.before

    def refuse(self) -> None:
        """It is over, and whoever waits for it is to hear why."""
        self.refused, self.active = True, False
        self._forget(self)

    def deliver(self, subject: str, reply: str, body: bytes, headers: bytes) -> None:
        """Hand one message over, unless it was unsubscribed."""
        if self.active and self._handler is not None:
            self._handler(subject, reply, body, headers)

    async def attach(self, tap: Tap) -> None:
        """Subscribe on this connection; the one before it is gone."""
        if self._tap is tap:
            return
        self._tap = tap
        try:
            self._on = await tap.subscribe(self.subject, self.deliver)
        except BaseException:
            self._tap = None
            raise
        if not self.active:
            await self.unsubscribe()

    async def again(self) -> None:
        """Subscribe once more on the same connection: the server has dropped it."""
        tap, on = self._tap, self._on
        if tap is not None and on is not None:
            self._tap = self._on = None
            await tap.unsubscribe(on)
            if self._tap is None:  # else a new connection was quicker
                await self.attach(tap)

    async def unsubscribe(self) -> None:
        """Stop; twice is fine. The handler is not called any more, from the moment of the call on."""
        self.active = False
        self._forget(self)
        on, self._on = self._on, None
        if on is not None and self._tap is not None:
            await self._tap.unsubscribe(on)


def names(violation: str, subject: str) -> bool:
    """Whether a violation, as nats-py tells it, is of this subject."""
    return f'"{subject.lower()}"' in violation
