"""A clock that runs only when nothing else does, for the system that lives in this process.

Owns ``time.monotonic``, ``time.time`` and the event loop while ``Virtual`` is entered: whenever the loop would sleep,
the clock moves on instead, and stands still while code runs, but for a moment per turn of the loop. So minutes of
leases, looks and retention pass in no time, in the order in which they would have passed, and a busy machine changes
nothing of it: what failed once fails again. Of no use where something outside the process answers.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

_TURN = 20e-6
"""What a turn of the loop takes, seconds: somebody who waits without sleeping must see the time pass."""


class _Selector(selectors.DefaultSelector):
    def __init__(self, clock: Virtual) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found:
            assert timeout is not None, "nothing will ever happen again"
            self._clock.passed += max(0.0, timeout)
        self._clock.passed += self._clock.turn
        return found


class Virtual:
    """Runs coroutines on its own clock. ``turn``: how long a turn of the loop takes there, seconds."""

    def __init__(self, turn: float = _TURN) -> None:
        self.turn = turn
        self.passed = 0.0

    def __enter__(self) -> Self:
        self._real = time.monotonic, time.time
        began, today = time.monotonic(), time.time()
        time.monotonic = lambda: began + self.passed  # type: ignore[assignment]
        time.time = lambda: today + self.passed  # type: ignore[assignment]
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
