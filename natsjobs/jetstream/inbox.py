"""Answers and where they go: one inbox per link, a token per request, and the interests below it all.

Owns the requests that wait, and the permissions that were denied lately, which the server tells to nobody in
particular. It sends nothing. Guarantees that a request that waits is ended by whatever comes first.
"""

from __future__ import annotations

import asyncio
import itertools
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


class Waiting:
    """One request that waits for its answers."""

    __slots__ = ("future", "heard", "started", "subject", "take", "timer", "token")

    def __init__(self, token: str, subject: str, take: Take) -> None:
        self.token = token
        self.subject = subject
        self.take = take
        self.heard = False
        self.started = time.monotonic()
        self.timer: asyncio.TimerHandle | None = None
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def fail(self, error: RequestFailedError) -> None:
        """End it, unless it has ended."""
        if not self.future.done():
            self.future.set_exception(error)


class Inbox:
    """The requests of one link that wait."""

    def __init__(self) -> None:
        self.prefix = ""
        self._tokens = itertools.count(1)
        self._waiting: dict[str, Waiting] = {}
        self._denials: deque[tuple[float, str]] = deque(maxlen=32)

    def __len__(self) -> int:
        return len(self._waiting)

    def expect(self, subject: str, take: Take, limit: float) -> Waiting:
        """A request is about to be sent; its answers go to ``prefix`` + ``token``. ``done`` must follow."""
        waiting = Waiting(str(next(self._tokens)), subject, take)
        self._waiting[waiting.token] = waiting
        waiting.timer = asyncio.get_running_loop().call_later(max(0.0, limit), self._timed_out, waiting)
        return waiting

    def done(self, waiting: Waiting) -> None:
        """Nobody waits for it any more."""
        if waiting.timer is not None:
            waiting.timer.cancel()
        self._waiting.pop(waiting.token, None)
        if not waiting.future.cancel() and not waiting.future.cancelled():
            waiting.future.exception()  # seen, so that an error that came with a cancellation is no warning

    def answered(self, subject: str, _reply: str, body: bytes, headers: bytes) -> None:
        """A message came to the inbox."""
        waiting = self._waiting.get(subject[len(self.prefix) :])
        if waiting is None or waiting.future.done():
            return
        waiting.heard = True
        try:
            result = waiting.take(body, headers)
        except (msgspec.MsgspecError, RecursionError) as error:
            garbage.skipped("an answer", f"{waiting.subject}: {error}", body)  # the true one may still come
        except Exception as error:  # noqa: BLE001 - it belongs to the one who waits
            waiting.future.set_exception(error)
        else:
            if result is not None:
                waiting.future.set_result(result)

    def lost(self, why: str) -> None:
        """No answer will come to anybody."""
        for waiting in list(self._waiting.values()):
            waiting.fail(RequestFailedError(why, sent=True))

    def denied(self, violation: str) -> bool:
        """The server refused something that this connection sent; whether somebody waits for an answer to it."""
        self._denials.append((time.monotonic(), violation))
        concerned = [waiting for waiting in self._waiting.values() if names(violation, waiting.subject)]
        for waiting in concerned:
            waiting.fail(RequestFailedError(violation, sent=False, denied=True))
        return bool(concerned)

    def denial(self, started: float, subject: str | None = None) -> str | None:
        """The last violation since ``started``, of this subject or of any."""
        for at, violation in reversed(self._denials):
            if at >= started and (subject is None or names(violation, subject)):
                return violation
        return None

    def _timed_out(self, waiting: Waiting) -> None:
        violation = self.denial(waiting.started)
        meanwhile = f"; meanwhile NATS reported: {violation}" if violation else ""
        waiting.fail(RequestFailedError(f"no answer in time{meanwhile}", sent=True))


class WireInterest:
    """A subscription that outlives the connection it was made on: implements the port ``Interest``."""

    def __init__(self, subject: str, handler: Handler, forget: Callable[[WireInterest], None]) -> None:
        """``forget`` is called when it is over, so that nobody makes it again."""
        self.subject = subject
        self._handler: Handler | None = handler
        self._forget = forget
        self._tap: Tap | None = None
        self._on: tuple[Tap, Subscription] | None = None

    def deliver(self, subject: str, reply: str, body: bytes, headers: bytes) -> None:
        """Hand one message over, unless it was unsubscribed."""
        if self._handler is not None:
            self._handler(subject, reply, body, headers)

    async def attach(self, tap: Tap) -> None:
        """Subscribe on this connection; the one before it is gone."""
        if self._tap is tap:
            return
        self._tap = tap
        try:
            self._on = (tap, await tap.subscribe(self.subject, self.deliver))
        except BaseException:
            self._tap = None
            raise
        if self._handler is None:
            await self.unsubscribe()

    async def unsubscribe(self) -> None:
        """Stop; twice is fine. The handler is not called any more, from the moment of the call on."""
        self._handler = None
        self._forget(self)
        on, self._on = self._on, None
        if on is not None:
            await on[0].unsubscribe(on[1])


def names(violation: str, subject: str) -> bool:
    """Whether a violation, as nats-py tells it, is of this subject."""
    return f'"{subject.lower()}"' in violation
