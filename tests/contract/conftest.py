"""Every contract test runs on every backend; a test asks for replicas and never knows which backend it is on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from backends import Backend, GuardedBackend, MemoryBackend, NatsBackend, Replica
from gateways import OpenGateway, Served, gateways

SERVERS = {"nats-2.15": "permissions_server", "nats-2.11": "oldest_server"}
"""The newest server runs with the permissions of ``deploy/nats``, the oldest with none: everybody may do everything."""


@pytest.fixture(params=["memory", *SERVERS])
def backend_name(request: pytest.FixtureRequest) -> str:
    """Which backend this run of the test is on."""
    return str(request.param)


@pytest.fixture
def server_url(request: pytest.FixtureRequest, backend_name: str) -> str | None:
    """The real server below the backend, if there is one."""
    return request.getfixturevalue(SERVERS[backend_name]) if backend_name in SERVERS else None


@pytest.fixture
async def backend(backend_name: str, server_url: str | None) -> AsyncIterator[Backend]:
    """A namespace of its own; at the end nothing may be left of the test."""
    backend: Backend
    if server_url is None:
        backend = MemoryBackend()
    else:
        made = GuardedBackend if SERVERS[backend_name] == "permissions_server" else NatsBackend
        backend = made(backend_name, server_url)
    async with backend:
        yield backend


@pytest.fixture
async def replica(backend: Backend) -> Replica:
    """Replica A."""
    return await backend.replica()


@pytest.fixture
async def replica_b(backend: Backend, request: pytest.FixtureRequest) -> Replica:
    """Replica B: another process on the same server. A gateway, unless the test is marked ``b_writes``."""
    writes = request.node.get_closest_marker("b_writes") is not None
    return await backend.replica(role="worker" if writes else "gateway")


@pytest.fixture
def jobs(replica: Replica) -> Any:
    """The JobManager of replica A."""
    return replica.manager


@pytest.fixture
def jobs_b(replica_b: Replica) -> Any:
    """The JobManager of replica B."""
    return replica_b.manager


@pytest.fixture
def store(replica: Replica) -> Any:
    """The JobStore of replica A."""
    return replica.store


@pytest.fixture
def store_b(replica_b: Replica) -> Any:
    """The JobStore of replica B."""
    return replica_b.store


@pytest.fixture
def transport(replica: Replica) -> Any:
    """The EventTransport of replica A."""
    return replica.transport


@pytest.fixture
def transport_b(replica_b: Replica) -> Any:
    """The EventTransport of replica B."""
    return replica_b.transport


@pytest.fixture
async def open_gateway(backend: Backend) -> AsyncIterator[OpenGateway]:
    """Call it with a manager: a gateway on a real HTTP server, stopped before its replica is."""
    async with gateways() as start:
        yield start


@pytest.fixture
async def gate(open_gateway: OpenGateway, jobs: Any) -> Served:
    """A gateway on replica A that lets everybody do everything."""
    return await open_gateway(jobs)
