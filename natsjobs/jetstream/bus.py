"""The port ``Bus``: core subjects over the wire, at most once, nothing stored and nothing sent late."""

from __future__ import annotations

from collections.abc import Callable

from natsjobs.engine import garbage
from natsjobs.engine.ports import BusHandler, Incoming, NoReplyError, NoRespondersError
from natsjobs.errors import ConnectionLostError, PermissionDeniedError
from natsjobs.jetstream.faults import RequestFailedError
from natsjobs.jetstream.headers import NOBODY, SEQUENCE, marker_of, number_of, status_of
from natsjobs.jetstream.inbox import WireInterest
from natsjobs.jetstream.wire import Wire


class NatsInterest(WireInterest):
    """A subscription on the bus: implements the port ``Interest``."""

    __slots__ = ("_bus", "_hear")

    def __init__(self, bus: NatsBus, subject: str, handler: BusHandler) -> None:
        """Sent by ``NatsBus.subscribe``."""
        super().__init__(subject, None, bus.wire.forget)
        self._bus = bus
        self._hear = handler

    def deliver(self, subject: str, reply: str, body: bytes, headers: bytes) -> None:
        """Hand one message over, unless it was unsubscribed.

        A reply subject that is no inbox is left out: whoever may ask a question must not choose what we publish to.
        """
        if not self.active:
            return
        bus = self._bus
        if reply and (reply.startswith(bus.no_inboxes) or not bus.wire.is_inbox(reply)):
            garbage.skipped("a request", f"its answer would go to {reply}", body)
            reply = ""
        if not headers:
            self._hear(Incoming(subject, body, reply, 0))
            return
        seq = number_of(headers, SEQUENCE)
        self._hear(Incoming(subject, body, reply, seq or 0, marker_of(headers)))

    async def confirm(self) -> None:
        """Wait until the server knows of it. Raises as ``NatsBus.subscribe`` does; the interest stays."""
        await self._bus.wire.confirm(self, limit=self._bus.limit)


class NatsBus:
    """Core subjects as one link sees them: implements the port ``Bus``."""

    def __init__(self, wire: Wire, namespace: str, *, request: float) -> None:
        """``request``: how long ``subscribe`` may take."""
        self.wire = wire
        self.limit = request
        self.no_inboxes = ("$", f"{namespace}.")  # whatever inboxes begin with: a namespace may begin with "_" too

    async def publish(self, subject: str, body: bytes) -> None:
        """Send and forget; while the connection is away, only forget.

        Raises:
            EventTooLargeError: Larger than the server takes; nothing was sent.
        """
        await self.wire.publish(subject, body)

    async def subscribe(self, subject: str, handler: BusHandler, *, sure: bool = True) -> NatsInterest:
        """Call ``handler`` for every message that is published after this has returned.

        Raises:
            UnavailableError: The connection is away for longer than ``timing.request``.
            PermissionDeniedError: The server refused it.
        """
        interest = NatsInterest(self, subject, handler)
        await self.wire.subscribe(interest, limit=self.limit, sure=sure)
        return interest

    async def request(self, subject: str, body: bytes, *, timeout: float) -> bytes:
        """The first answer. Raises as the port says."""

        def take(body: bytes, headers: bytes) -> tuple[bytes, int]:
            return body, status_of(headers)

        try:
            answer, status = await self.wire.request(subject, body, take, limit=timeout)
        except (RequestFailedError, ConnectionLostError) as error:
            raise _unanswered(error, subject) from None
        if status == NOBODY:
            raise NoRespondersError(subject)
        return bytes(answer)

    async def gather(
        self, subject: str, body: bytes, *, timeout: float, enough: Callable[[list[bytes]], bool] | None = None
    ) -> list[bytes]:
        """All answers in ``timeout`` seconds, or until ``enough(answers)``. Raises as the port says."""
        answers: list[bytes] = []

        def take(body: bytes, headers: bytes) -> int | None:
            if status_of(headers) == NOBODY:
                return NOBODY
            answers.append(body)
            return 200 if enough is not None and enough(answers) else None

        try:
            status = await self.wire.request(subject, body, take, limit=timeout)
        except (RequestFailedError, ConnectionLostError) as error:
            if not answers:
                raise _unanswered(error, subject) from None
            status = 0
        if status == NOBODY and not answers:
            raise NoRespondersError(subject)
        return answers


def _unanswered(error: RequestFailedError | ConnectionLostError, subject: str) -> Exception:
    """Silence, unless nobody was asked because this user may not."""
    if isinstance(error, RequestFailedError) and error.denied:
        return PermissionDeniedError("asking", subject=subject)
    return NoReplyError(f"{subject}: {error}")
