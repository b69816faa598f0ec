"""Gateways on a real HTTP server, on free loopback ports, and clients that say exactly what a test wants."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any, Protocol

import httpx
import uvicorn
from httpx_sse import ServerSentEvent, aconnect_sse

from natsjobs import JobManager
from natsjobs.http import Gateway, gateway


def everybody(request: Any, stream_id: str | None, action: str) -> str:
    """A hook that lets everybody do everything."""
    return "somebody"


class Served:
    """A gateway that is being served."""

    def __init__(self, app: Gateway, client: httpx.AsyncClient, port: int) -> None:
        self.app = app
        self.client = client
        self.port = port

    async def events(
        self, path: str, *, stop: int | None = None, within: float = 30.0, **headers: str
    ) -> list[ServerSentEvent]:
        """The frames of a response, until it ends or ``stop`` have come."""
        got: list[ServerSentEvent] = []
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with asyncio.timeout(within), aconnect_sse(self.client, "GET", path, headers=named) as source:
            source.response.raise_for_status()
            async with aclosing(source.aiter_sse()) as frames:
                async for frame in frames:
                    got.append(frame)
                    if len(got) == stop:
                        break
        return got

    async def raw(self, request: str | bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection on which these bytes were sent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request if isinstance(request, bytes) else request.encode("latin-1"))
        await writer.drain()
        return reader, writer

    async def answer(self, request: str | bytes, *, within: float = 20.0) -> tuple[int, str]:
        """The status and everything else that a raw request is answered with."""
        reader, writer = await self.raw(request)
        try:
            async with asyncio.timeout(within):
                said = (await reader.read()).decode()
        finally:
            writer.close()
            await writer.wait_closed()
        return int(said.split(" ", 2)[1]), said


class OpenGateway(Protocol):
    """Serves a gateway on a manager."""

    async def __call__(self, jobs: JobManager, *, authorize: Any = everybody, **options: Any) -> Served: ...


def get(path: str, *headers: str, method: str = "GET", body: str = "") -> str:
    """A raw request; the server closes the connection after its answer."""
    lines = [f"{method} {path} HTTP/1.1", "Host: gateway", "Connection: close", *headers]
    return "\r\n".join([*lines, "", body])


def data(frames: list[ServerSentEvent]) -> list[Any]:
    """The values of the ordinary events in default frames."""
    return [json.loads(frame.data)["data"] for frame in frames if frame.event == "message"]


@asynccontextmanager
async def serving(app: Any, **options: Any) -> AsyncIterator[tuple[httpx.AsyncClient, int]]:
    """A client of a real server that runs the app, and its port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)  # requests wait here until the server accepts them: nothing to poll for
        port = listener.getsockname()[1]
        settings = {"ws": "none", "lifespan": "on", "log_level": "critical", "timeout_graceful_shutdown": 5, **options}
        server = uvicorn.Server(uvicorn.Config(app, **settings))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                yield client, port
        finally:
            if isinstance(app, Gateway):
                app.close()
            server.should_exit = True
            await task


@asynccontextmanager
async def gateways() -> AsyncIterator[OpenGateway]:
    """Serves any number of gateways for the length of the block."""
    async with AsyncExitStack() as stack:

        async def start(jobs: JobManager, *, authorize: Callable[..., Any] = everybody, **options: Any) -> Served:
            app = gateway(jobs, authorize=authorize, **options)
            client, port = await stack.enter_async_context(serving(app))
            return Served(app, client, port)

        yield start
