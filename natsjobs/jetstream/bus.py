"""The port ``Bus``: core subjects over the wire, at most once, nothing stored and nothing sent late."""

from __future__ import annotations

from collections.abc import Callable

from natsjobs.engine import garbage
from natsjobs.engine.ports import BusHandler, Incoming, NoReplyError, NoRespondersError
from natsjobs.errors import ConnectionLostError, PermissionDeniedError
from natsjobs.jetstream.faults import RequestFailedError
from natsjobs.jetstream.headers import NOBODY, marker_of, number_of, status_of
from natsjobs.jetstream.inbox import WireInterest
from natsjobs.jetstream.wire import Wire


class NatsBus:
    """Core subjects as one link sees them: implements the port ``Bus``."""

    def __init__(self, wire: Wire, namespace: str, *, request: float) -> None:
        """``request``: how long ``subscribe`` may take."""
        self._wire = wire
        self._no_inboxes = ("$", f"{namespace}.")  # whatever inboxes begin with: a namespace may begin with "_" too
        self._request = request

    async def publish(self, subject: str, body: bytes) -> None:
        """Send and forget; while the connection is away, only forget.

        Raises:
            EventTooLargeError: Larger than the server takes; nothing was sent.
        """
        await self._wire.publish(subject, body)

    async def subscribe(self, subject: str, handler: BusHandler) -> WireInterest:
        """Call ``handler`` for every message that is published after this has returned.

        Raises:
            UnavailableError: The connection is away for longer than ``timing.request``.
            PermissionDeniedError: The server refused it.
        """

        def receive(subject: str, reply: str, body: bytes, headers: bytes) -> None:
            if reply and (reply.startswith(self._no_inboxes) or not self._wire.is_inbox(reply)):
                garbage.skipped("a request", f"its answer would go to {reply}", body)
                reply = ""
            if not headers:
                handler(Incoming(subject, body, reply, 0))
                return
            seq = number_of(headers, b"Nats-Sequence")
            handler(Incoming(subject, body, reply, seq or 0, marker_of(headers)))

        return await self._wire.subscribe(subject, receive, limit=self._request)

    async def request(self, subject: str, body: bytes, *, timeout: float) -> bytes:
        """The first answer. Raises as the port says."""

        def take(body: bytes, headers: bytes) -> tuple[bytes, int]:
            return body, status_of(headers)

        try:
            answer, status = await self._wire.request(subject, body, take, limit=timeout)
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
            status = await self._wire.request(subject, body, take, limit=timeout)
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
