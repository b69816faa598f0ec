"""What the programs' tests share: a namespace per test, both backends, two replicas, a real HTTP server."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest
from fastapi import FastAPI
from serving import Serve, served

import natsjobs
from natsjobs.memory import MemorySystem


@pytest.fixture
def config() -> natsjobs.Config:
    """Settings with a namespace of this test's own, so that tests share one server and nothing else."""
    return natsjobs.Config(namespace=f"app-{uuid.uuid4().hex[:12]}")


@pytest.fixture(params=["memory", "nats"])
async def jobs(
    request: pytest.FixtureRequest, natsjobs_server: str, config: natsjobs.Config
) -> AsyncIterator[natsjobs.JobManager]:
    """One replica, once in memory and once on the real server."""
    server = natsjobs_server if request.param == "nats" else "memory://"
    async with natsjobs.connect(server, config=config) as manager:
        yield manager


@pytest.fixture(params=["memory", "nats"])
async def replicas(
    request: pytest.FixtureRequest, natsjobs_server: str, config: natsjobs.Config
) -> AsyncIterator[list[natsjobs.JobManager]]:
    """Two replicas of one service, once in memory and once on the real server."""
    async with AsyncExitStack() as stack:
        if request.param == "nats":
            yield [await stack.enter_async_context(natsjobs.connect(natsjobs_server, config=config)) for _ in "ab"]
            return
        system = MemorySystem(config.namespace)
        managers: list[natsjobs.JobManager] = []
        for _ in "ab":
            store = natsjobs.MemoryJobStore(config, system=system)
            transport = natsjobs.MemoryEventTransport(store)
            stack.push_async_callback(store.destroy)
            stack.push_async_callback(transport.destroy)
            manager = natsjobs.JobManager(store, transport, config=config)
            managers.append(await stack.enter_async_context(manager))
        yield managers


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Call it with an app: a client of a real server, stopped when the test ends."""
    async with AsyncExitStack() as stack:

        async def start(app: FastAPI) -> httpx.AsyncClient:
            return await stack.enter_async_context(served(app))

        yield start
