"""Core subjects of the memory system as one connection sees them: the ports ``Bus`` and ``Interest``.

What is published reaches handlers in a later turn of the loop, never inside the call.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from natsjobs.engine.ports import BusHandler, Incoming, NoReplyError, NoRespondersError
from natsjobs.errors import EventTooLargeError, UnavailableError
from natsjobs.memory.line import AWAY, Line


class MemoryInterest:
    """One subscription of one link: implements the port ``Interest``."""

    def __init__(self, link: Line, subject: str, handler: BusHandler) -> None:
        self.subject = subject
        self._link = link
        self._handler = handler
        self._active = True
        link.system.add_interest(self)
        link.own_interests[self] = None

    def deliver(self, incoming: Incoming) -> bool:
        """Hand over in a later turn of the loop; whether the system counts this as an interest."""
        if self._link.connected_since is not None:
            asyncio.get_running_loop().call_soon(self._handle, incoming, self._link.epoch)
        return self._link.has_interest

    def stop(self) -> None:
        """What ``unsubscribe`` does, at once."""
        self._active = False
        self._link.own_interests.pop(self, None)
        self._link.system.remove_interest(self)

    async def confirm(self) -> None:
        """The system knows of it from the moment of ``subscribe`` on. Raises as that does."""
        self._link.check()

    async def unsubscribe(self) -> None:
        """Stop; when it returns the handler is not called any more."""
        self.stop()

    def _handle(self, incoming: Incoming, epoch: int) -> None:
        if self._active and self._link.epoch == epoch:
            self._handler(incoming)


class MemoryBus:
    """Core subjects as one link sees them: implements the port ``Bus``.

    Nobody can name a reply subject here: a request carries the inbox that was made for it, everything else none.
    """

    def __init__(self, link: Line) -> None:
        self._link = link

    async def publish(self, subject: str, body: bytes) -> None:
        """Send and forget."""
        self._send(Incoming(subject, body, "", 0))
        await asyncio.sleep(0)

    async def subscribe(self, subject: str, handler: BusHandler, *, sure: bool = True) -> MemoryInterest:
        """Call ``handler`` for every message, from the moment of the call on.

        Raises:
            UnavailableError: The connection is away.
        """
        self._link.check()
        interest = MemoryInterest(self._link, subject, handler)
        if sure:
            await asyncio.sleep(0)
        return interest

    async def request(self, subject: str, body: bytes, *, timeout: float) -> bytes:
        """The first answer. Raises as the port says."""
        answers = await self.gather(subject, body, timeout=timeout, enough=bool)
        return answers[0]

    async def gather(
        self, subject: str, body: bytes, *, timeout: float, enough: Callable[[list[bytes]], bool] | None = None
    ) -> list[bytes]:
        """All answers in ``timeout`` seconds, or until ``enough(answers)``. Raises as the port says."""
        if self._link.connected_since is None:
            with contextlib.suppress(UnavailableError):
                self._link.check()
            await asyncio.sleep(0)
            raise NoReplyError(f"{subject}: {AWAY}")
        answers: list[bytes] = []
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def hear(incoming: Incoming) -> None:
            answers.append(incoming.body)
            if enough and not done.done() and enough(answers):
                done.set_result(None)

        inbox = MemoryInterest(self._link, f"_INBOX.memory.{next(self._link.system.inboxes)}", hear)
        self._link.pending.add(done)
        try:
            if not self._send(Incoming(subject, body, inbox.subject, 0)):
                await asyncio.sleep(0)
                raise NoRespondersError(subject)
            async with asyncio.timeout(timeout):
                await done
        except TimeoutError:
            pass
        finally:
            self._link.pending.discard(done)
            inbox.stop()
        if not answers:
            raise NoReplyError(subject)
        return answers

    def _send(self, incoming: Incoming) -> bool:
        """Whether somebody has interest; while the connection is away nothing is sent."""
        if len(incoming.body) > self._link.max_payload:
            raise EventTooLargeError(len(incoming.body), self._link.max_payload, field="message")
        return self._link.connected_since is not None and self._link.system.route(incoming)
