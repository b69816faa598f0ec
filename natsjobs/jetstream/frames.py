"""What a socket brings, cut into messages: those of our own subscriptions are handed over at once, past nats-py.

nats-py reads through a stream of asyncio: a copy, a future, a step of a task and one more turn of the loop for each
piece that comes, then patterns matched in turn for each message. For a small message that is more than all the rest.

Owns the cutting, and nothing else of a connection. Guarantees the order: nothing is handed over while nats-py still has
bytes to look at. What is not a message of ours (a PING, an error, a message of somebody else's subscription, what is no
NATS at all) goes to nats-py as it came, with the whole messages behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

Deliver: TypeAlias = Callable[[int, bytes, bytes, bytes, bytes], bool]
"""Called with the number of the subscription, subject, reply subject, body and raw headers (``b""``: none).

Must not raise. ``False``: it is not ours, nats-py gets it.
"""

_HEADED = b"HMSG"
_MESSAGES = {b"MSG": 4, _HEADED: 5}
"""How many words a line has that names no reply subject."""


class Frames(asyncio.Protocol):
    """Stands between a socket and the protocol from which nats-py reads."""

    def __init__(self, below: Any, is_idle: Callable[[], bool], deliver: Deliver) -> None:
        """``below``: that protocol; ``is_idle``: whether nats-py has looked at all that it was given."""
        self.below = below
        self._is_idle = is_idle
        self._deliver = deliver
        self._begun = False  # nats-py may be in the middle of a message, of which only it knows where it ends
        self._rest = bytearray()  # the beginning of a message
        self._needed = 0  # so long it is at least; 0: nobody but nats-py can tell what it is

    def data_received(self, data: bytes) -> None:
        """Hand over what is whole, keep the beginning of what is not."""
        ours, rest = self._is_idle(), self._rest
        if not self._begun:
            if not ours:
                self.below.data_received(data)
                return
            self._begun = True
        if rest:
            rest += data
            if len(rest) < self._needed:
                return
            data = bytes(rest)
            rest.clear()
        at = 0
        if ours:
            at = self._cut(data, 0, self._deliver)
            ours = at == len(data) or self._needed > 0
        if not ours:  # whole messages only, so that nats-py has nothing to wait for when it has looked at them
            end = self._cut(data, at, None)
            if end < len(data) and not self._needed:
                end, self._begun = len(data), False
            self.below.data_received(data[at:end])
            at = end
        rest += data[at:]

    def _cut(self, data: bytes, at: int, deliver: Deliver | None) -> int:
        """Go over what is whole, from ``at``, and hand it over; where that ends, and in ``_needed`` why.

        Without ``deliver`` nothing is handed over, and lines that are no messages do not end it.
        """
        size = len(data)
        while at < size:
            start = data.find(b"\r\n", at) + 2
            if start < 2:  # of any length: the INFO of a large cluster names all its servers
                self._needed = size - at + 1
                return at
            words = data[at:start].split()
            kind = words[0] if words else b""
            self._needed = 0
            if kind in _MESSAGES:
                replies = len(words) - _MESSAGES[kind]
                try:
                    end = start + int(words[-1])
                    body = start + int(words[-2]) if kind == _HEADED else start
                    number, reply = int(words[2]), words[3] if replies else b""
                except (ValueError, IndexError):
                    return at
                if not start <= body <= end or not 0 <= replies <= 1:
                    return at
                if end + 2 > size:
                    self._needed = end + 2 - at
                    return at
                if deliver and not deliver(number, words[1], reply, data[body:end], data[start:body]):
                    return at
                at = end + 2
            elif deliver:
                return at
            else:
                at = start
        return at

    def give_back(self) -> None:
        """Give nats-py the beginning that is kept; whoever takes this out of the way calls it."""
        rest = bytes(self._rest)
        self._rest.clear()
        if rest:
            self.below.data_received(rest)

    def eof_received(self) -> bool | None:
        """The peer sends no more, so what has begun will not be whole."""
        self._rest.clear()
        keep_open: bool | None = self.below.eof_received()
        return keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self._rest.clear()
        self.below.connection_lost(exc)

    def pause_writing(self) -> None:
        """The socket takes no more for now."""
        self.below.pause_writing()

    def resume_writing(self) -> None:
        """It takes more again."""
        self.below.resume_writing()
