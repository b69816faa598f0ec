"""The socket below nats-py: found, ended when nobody else would, and read past nats-py's own reading.

Owns where private names of nats-py and of asyncio's streams lead to it; where one of them is missing there is no socket
to be had, and nats-py reads and writes as ever. Knows nothing of what is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from nats.aio.client import Client

from natsjobs.jetstream.frames import Deliver, Frames

_BETWEEN = 1
"""nats-py's parser expects a line next, not the rest of a message."""


def socket_of(nc: Client) -> asyncio.Transport | None:
    """The socket of a client; ``None``: it has none, or one of another kind (a websocket)."""
    inner: Any = nc
    writer = getattr(getattr(inner, "_transport", None), "_io_writer", None)
    return getattr(writer, "transport", None)


def drop_socket(nc: Client) -> None:
    """End the socket of a client now, whatever it has not sent; nats-py may not know of it, or wait for it too long."""
    socket = socket_of(nc)
    if socket is not None:
        socket.abort()


def read_past(nc: Client, deliver: Deliver) -> None:
    """Hand messages over as its present socket brings them, once nats-py has looked at all that came before."""
    socket, is_idle = socket_of(nc), _idleness(nc)
    if socket is None or is_idle is None or socket.is_closing():
        return
    below = socket.get_protocol()
    if not isinstance(below, Frames):
        socket.set_protocol(Frames(below, is_idle, deliver))


def read_no_more(nc: Client) -> None:
    """Let nats-py read again; what somebody else has put above ours stays, and ours below it passes everything on."""
    socket = socket_of(nc)
    frames = socket.get_protocol() if socket is not None else None
    if socket is not None and isinstance(frames, Frames):
        socket.set_protocol(frames.below)
        frames.give_back()


def _idleness(nc: Client) -> Callable[[], bool] | None:
    """Whether nats-py waits for bytes, in the middle of nothing; ``None``: it cannot be told."""
    inner: Any = nc
    reader, parser = getattr(inner._transport, "_io_reader", None), getattr(inner, "_ps", None)
    if not hasattr(reader, "_waiter") or not hasattr(parser, "buf") or not hasattr(parser, "state"):
        return None
    stream: Any = reader
    state: Any = parser

    def is_idle() -> bool:
        waiter = stream._waiter
        return waiter is not None and not waiter.done() and not state.buf and state.state == _BETWEEN

    return is_idle
