"""``Wire``: requests and interests over one NATS connection at a time.

Owns what is sent and the interests that must survive a new connection; how the connection is kept is its base's
business (``connection``), what comes back is the inbox's. It knows nothing of streams; the ports stand on it.

Guarantees: nothing is kept while the connection is away and sent later (B9); nothing larger than the server's limit is
sent (it would close the connection for good); a request ends at its deadline, when the connection breaks, or when the
server says that a permission is missing, whatever is first; no handler's error reaches nats-py.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import lru_cache
from typing import Any

from natsjobs.errors import EventTooLargeError, InvalidArgumentError, UnavailableError
from natsjobs.jetstream.connection import Connection, too_many
from natsjobs.jetstream.faults import RequestFailedError, translated
from natsjobs.jetstream.headers import header_bytes
from natsjobs.jetstream.inbox import Take, Then, WireInterest

HEADER_ROOM = 1024
"""What is left for headers below ``max_payload``."""
AWAY_WAIT = 1.0
"""How long a stream request waits for a lost connection before it fails."""
ASK_AGAIN = 1.0
"""A read that nobody answers is asked again this often: a new leader never hears what was asked before it."""
_LONGEST_SUBJECT = 3_900  # a control line over 4,096 bytes closes the connection for good
_BAD_SUBJECT = re.compile(r"[\s\x00]|^$")


@lru_cache(maxsize=8192)
def _is_subject(subject: str) -> bool:
    return len(subject) <= _LONGEST_SUBJECT and not _BAD_SUBJECT.search(subject)


class Wire(Connection):
    """What is sent over a connection."""

    def spawn(self, coro: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """In a task that ends with the link at the latest. Raises ``RuntimeError`` once that is being closed."""
        return self._tasks.spawn(coro, name)

    # -- sending ------------------------------------------------------------------------------------------------------

    def check(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Refuse what must not be sent.

        Raises:
            EventTooLargeError: Body and headers are over the server's limit.
            InvalidArgumentError: No subject.
        """
        limit = self.max_payload
        if len(body) + 4096 > limit:  # rarely: so the exact size need not be known
            size = len(body) + (len(header_bytes(headers)) if headers else 0)
            if size > limit:
                raise EventTooLargeError(size, limit, field="message")
        if not _is_subject(subject):
            raise InvalidArgumentError("subject", f"{subject[:200]!r} is no NATS subject")

    async def publish(self, subject: str, body: bytes) -> None:
        """Send and forget; while the connection is away, or there is none (any more), only forget."""
        if self._tap is None:
            return
        self.check(subject, body)
        if self.ready and not self._tap.crowded:
            self._published.append(subject)
            with translated(f"publishing to {subject}"):
                await self._tap.send(subject, body)

    async def request(
        self,
        subject: str,
        body: bytes,
        take: Take,
        *,
        limit: float,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
        again: float = math.inf,
        longest: float = 0.0,
    ) -> Any:
        """Send, and give the answers to ``take`` until it returns something; that.

        ``wait``: how long to wait for a connection that is away, within ``limit``. ``again``: while there is no answer
        send once more every so many seconds; ``take`` must bear several answers. ``longest``: every answer that is not
        the last gives it ``limit`` seconds more, up to so many in all.

        Raises:
            RequestFailedError: It could not be sent, or nothing came in ``limit`` seconds.
            ConnectionLostError: The connection was given, and is closed.
            EventTooLargeError: Too large; nothing was sent.
        """
        self.check(subject, body, headers)
        deadline = time.monotonic() + limit
        tap = await self._ready(min(wait, limit))
        waiting = self._inbox.expect(subject, take, deadline - time.monotonic(), again=again)
        waiting.longest = longest
        assert waiting.future is not None

        reply = self._inbox.prefix + waiting.token

        async def send() -> None:
            with translated(f"sending to {subject}"):
                await tap.send(subject, body, reply=reply, headers=headers)

        waiting.unheard = lambda: self._tasks.spawn(send(), "natsjobs ask again")
        try:
            if tap.direct:  # one step, in which nothing of nats-py can fail
                tap.push(subject, body, reply, header_bytes(headers) if headers else b"")
            else:
                await send()
            return await waiting.future
        finally:
            self._inbox.done(waiting)

    def post(self, subject: str, body: bytes, take: Take, then: Then, *, limit: float, head: bytes) -> bool:
        """As ``request`` for who needs not wait to send it: ``then`` is called when it has ended.

        ``head``: raw headers. ``False``: it cannot be sent right now, or not at all; ``request`` waits, or says why.
        """
        tap = self._tap
        if tap is None or not (tap.direct and self.ready) or tap.crowded or not _is_subject(subject):
            return False
        if len(body) + max(HEADER_ROOM, len(head)) > tap.nc.max_payload:
            return False
        waiting = self._inbox.expect(subject, take, limit, then=then)
        tap.push(subject, body, self._inbox.prefix + waiting.token, head)
        return True

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Call back once this turn of the loop is over, before what it has made is written."""
        if self._tap is not None and self._tap.direct:
            self._tap.at_turn_end(callback)
        else:
            asyncio.get_running_loop().call_soon(callback)

    async def round_trip(self, limit: float) -> float:
        """Seconds in which the server has processed all that was sent so far.

        Raises:
            UnavailableError: It has not, within ``limit`` seconds.
        """
        began = time.monotonic()
        try:
            answered = await (await self._ready(limit)).barrier(limit)
        except RequestFailedError:
            answered = False
        if not answered:
            raise UnavailableError(
                f"the server has not answered within {limit:g} s; look at its log, its load and the network to it"
            )
        return time.monotonic() - began

    # -- interests ----------------------------------------------------------------------------------------------------

    async def subscribe(self, interest: WireInterest, *, limit: float, sure: bool = True) -> None:
        """Take up an interest: sent when this returns, and known to the server if that is waited for (``sure``).

        Raises:
            UnavailableError: The connection is away for longer than ``limit`` seconds.
            PermissionDeniedError: The server refused it.
        """
        deadline = time.monotonic() + limit
        self._interests.add(interest)
        try:
            try:
                tap = await self._ready(limit)
            except RequestFailedError as error:
                raise UnavailableError(f"subscribing to {interest.subject}: {error}") from None
            interest.before = self._inbox.asked
            with translated(f"subscribing to {interest.subject}"):
                await interest.attach(tap)
            if sure:
                await self.confirm(interest, limit=deadline - time.monotonic())
        except BaseException:
            await interest.unsubscribe()
            raise

    async def confirm(self, interest: WireInterest, *, limit: float) -> None:
        """Wait until the server knows of an interest: not at all, if it has answered what was asked later.

        Raises as ``subscribe`` does; the interest stays.
        """
        if not interest.refused:
            await self._sure(interest.subject, interest.started, time.monotonic() + limit, before=interest.before)
        if interest.refused:  # before that, or while it waited
            raise too_many(interest.subject)
        interest.confirmed = True
