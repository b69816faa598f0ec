"""A namespace on the newest server: what most integration tests begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from backends import NatsBackend
from timeline_kit import Timelines


@pytest.fixture
async def backend(newest_server: str) -> AsyncIterator[NatsBackend]:
    """A namespace of its own; at the end no task, interest or consumer may be left."""
    async with NatsBackend("nats", newest_server) as backend:
        yield backend


@pytest.fixture
async def many(newest_server: str) -> AsyncIterator[Timelines]:
    """The same, with replicas that a test can interfere with."""
    async with Timelines("nats", newest_server) as many:
        yield many
