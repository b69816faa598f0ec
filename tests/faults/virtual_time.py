"""A clock that runs only when nothing else does, for the system that lives in this process.

Owns ``time.monotonic``, ``time.time`` and the event loop while ``Virtual`` is entered: whenever the loop would sleep,
the clock moves on instead. So minutes of leases, looks and retention pass in no time, in the order in which they would
have passed. Of no use where something outside the process answers.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self


class _Selector(selectors.DefaultSelector):
    def __init__(self, clock: Virtual) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found:
            assert timeout is not None, "nothing will ever happen again"
            self._clock.offset += max(0.0, timeout)
        return found


class Virtual:
    """Runs coroutines on its own clock."""

    def __enter__(self) -> Self:
        self.offset = 0.0
        self._real = time.monotonic, time.time
        monotonic, wall = self._real
        time.monotonic = lambda: monotonic() + self.offset  # type: ignore[assignment]
        time.time = lambda: wall() + self.offset  # type: ignore[assignment]
        self._runner = asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(_Selector(self)))
        self._runner.__enter__()
        return self

    def run(self, coro: Coroutine[Any, Any, Any]) -> Any:
        """As ``asyncio.Runner.run``."""
        return self._runner.run(coro)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, error, trace)
        time.monotonic, time.time = self._real  # type: ignore[assignment]
