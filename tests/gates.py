"""Stores and transports that answer late or fail, made of real ones: a slow or absent NATS as a run sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import natsjobs


class Gate:
    """A part whose method ``method`` waits at the gate before it is carried out, and may fail there instead."""

    def __init__(self, part: Any, method: str) -> None:
        self._part, self._method = part, method
        self.reached = asyncio.Event()
        self.passed = asyncio.Event()
        self.open = asyncio.Event()
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        return self._through(found) if name == self._method else found

    def _through(self, found: Any) -> Any:
        async def call(*args: Any, **options: Any) -> Any:
            self.reached.set()
            await self.open.wait()
            if self.error is not None:
                raise self.error
            result = await found(*args, **options)
            self.passed.set()
            return result

        return call

    def fail(self, error: Exception) -> None:
        """From now on the method raises."""
        self.error = error
        self.open.set()


@asynccontextmanager
async def gated(replica: Any, method: str, *, part: str = "store") -> AsyncIterator[tuple[Any, Gate]]:
    """A second manager on a replica's parts, with a gate before one method; opened at the end."""
    gate = Gate(getattr(replica, part), method)
    parts = {"store": replica.store, "transport": replica.transport, part: gate}
    try:
        async with natsjobs.JobManager(parts["store"], parts["transport"], config=replica.config) as jobs:
            try:
                yield jobs, gate
            finally:
                gate.open.set()
    finally:
        gate.open.set()
