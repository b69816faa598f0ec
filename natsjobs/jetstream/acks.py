"""Acknowledgements of appends: read from the wire, and kept for who was not there when one came.

Owns which acknowledgement counts as that of a stream. What a refusal means is the stream's business.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import cast

import msgspec

from natsjobs.engine import garbage
from natsjobs.jetstream.faults import ServerError
from natsjobs.jetstream.headers import status_of
from natsjobs.jetstream.inbox import Waiting

_log = logging.getLogger(__name__)


class Ack(msgspec.Struct, frozen=True):
    """What the server says about an append; nothing at all: nobody listens on the subject."""

    stream: str = ""
    seq: int = 0
    domain: str = ""
    error: ServerError | None = None


_ack = msgspec.json.Decoder(Ack)


def read_ack(body: bytes, headers: bytes, stream: str, domain: str | None) -> Ack | None:
    """The acknowledgement of this stream; ``None``: it is none, the true one may still come.

    Raises:
        msgspec.MsgspecError: It cannot be read.
    """
    if headers and status_of(headers):
        return Ack()
    ack = _ack.decode(body)
    if ack.error is None:
        if ack.seq < 1 or not ack.stream:
            garbage.skipped("an acknowledgement", stream, body)
            return None
    elif not ack.stream or (ack.stream == stream and not ack.domain):
        return ack  # refusals do not name the domain, and some not the stream
    if ack.stream == stream and (domain is None or ack.domain == domain):
        return ack
    _log.warning(
        "stream %s in domain %r also stores what is meant for %s in %r; two domains must not share a namespace",
        ack.stream, ack.domain, stream, domain,
    )  # fmt: skip
    return None


class Posted:
    """An append that was sent without waiting: implements the port ``Sent``."""

    __slots__ = ("_done", "_judge", "_stored", "_waiting")

    def __init__(
        self, done: Callable[[int], None], stored: Callable[[], None], judge: Callable[[Waiting], Awaitable[int]]
    ) -> None:
        """``done`` as in ``Stream.send``; ``stored`` is called when it is; ``judge`` says what else became of it."""
        self._done, self._stored, self._judge = done, stored, judge
        self._waiting: Waiting | None = None

    def ended(self, waiting: Waiting) -> None:
        """The request has its answer, or will have none."""
        self._waiting = waiting
        ack = cast("Ack | None", waiting.result)
        if ack is not None and ack.stream and ack.error is None:
            self._stored()
            self._done(ack.seq)
        else:
            self._done(0)

    async def outcome(self) -> int:
        """Its sequence. Raises as ``Stream.append`` does."""
        assert self._waiting is not None, "asked before it was decided"
        return await self._judge(self._waiting)
