"""A real HTTP server for an ASGI app, on a free loopback port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import httpx
import uvicorn
from fastapi import FastAPI

Serve: TypeAlias = Callable[[FastAPI], Awaitable[httpx.AsyncClient]]


@asynccontextmanager
async def served(app: FastAPI) -> AsyncGenerator[httpx.AsyncClient, None]:
    """A client of a server that runs the app, and stops it afterwards."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # requests wait here until the server accepts them: nothing to poll for
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(
            uvicorn.Config(app, ws="none", lifespan="on", log_level="warning", timeout_graceful_shutdown=5)
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with httpx.AsyncClient(base_url=url, headers={"X-User": "alice"}, timeout=30) as client:
                yield client
        finally:
            server.should_exit = True
            await serving
