"""A gateway under uvicorn: one process that serves HTTP until it is told to stop.

Owns the socket, what the server does to clients that never finish a request or take nothing, and the order of the
end: event streams are sent away first, then the server waits for the rest. Signals are the caller's business.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Generator
from contextlib import closing, contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from natsjobs.errors import ConfigError
from natsjobs.http.app import Gateway
from natsjobs.http.feed import CUT
from natsjobs.tasks import Tasks

_REQUEST = 10.0
"""Seconds in which the head of a request must have arrived on a connection that has none in progress."""
_GRACE = 5


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can connect to it; a name is resolved."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host or "0.0.0.0", None)}  # noqa: S104 - what it means
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: a free one.

    Raises:
        ConfigError: The address cannot be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise ConfigError("host", f"cannot listen on {host}:{port}: {error}") from error


class _Protocol(H11Protocol):
    """uvicorn's, which waits for ever for the head of a request and has no way of closing a connection at once."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.app_state = {**self.app_state, CUT: transport.abort}
        super().connection_made(transport)
        self._wait_for_request()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before and self._patience is not None:
            self._patience.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:
            self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._patience is not None:
            self._patience.cancel()
        super().connection_lost(exc)

    def _wait_for_request(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
        if not self.transport.is_closing():
            self._patience = self.loop.call_later(_REQUEST, self.transport.abort)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: Gateway) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.close()  # else it would wait for jobs to end
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


async def serve(app: Gateway, listener: socket.socket, *, connections: int = 0) -> None:
    """Serve until cancelled; then open event streams are sent away and other requests get time to end.

    Args:
        app: The gateway.
        listener: From ``listen``; closed at the end.
        connections: Open HTTP connections, one more is answered with 503; 0: no limit.
    """
    options: dict[str, Any] = {"http": _Protocol, "ws": "none", "lifespan": "on", "log_config": None}
    config = uvicorn.Config(
        app,
        **options,
        server_header=False,
        access_log=False,
        limit_concurrency=connections or None,
        timeout_graceful_shutdown=_GRACE,
    )
    server = _Server(config, app)
    tasks = Tasks()
    with closing(listener):
        serving = tasks.spawn(server.serve(sockets=[listener]), "the HTTP server")
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            server.should_exit = True
            await asyncio.wait({serving}, timeout=_GRACE + 2)
            raise
        finally:
            await tasks.close()
