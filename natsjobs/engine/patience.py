"""How long to try: one loop for everything that may meet an election, a restart or a lost connection.

Owns the back-off between attempts and the moment of giving up. It never repeats an attempt whose outcome is unknown
unless the caller says that a repetition is harmless; deciding what happened is the caller's business.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from natsjobs.engine.ports import StreamMissingError
from natsjobs.errors import PermissionDeniedError, StreamFullError, UnavailableError

T = TypeVar("T")

FIRST_WAIT = 0.02
LONGEST_WAIT = 1.0


class Backoff:
    """Growing pauses with jitter until a deadline."""

    def __init__(self, limit: float, *, first: float = FIRST_WAIT, longest: float = LONGEST_WAIT) -> None:
        """``limit``: seconds from now until ``expired``."""
        self._until = time.monotonic() + limit
        self._wait = first
        self._longest = longest

    @property
    def expired(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self._until

    async def pause(self) -> None:
        """Wait a little longer than last time, never past the deadline by more than one short pause."""
        wait = self._wait * random.uniform(0.75, 1.25)  # noqa: S311 - spreads retries, no secret
        self._wait = min(self._wait * 2, self._longest)
        await asyncio.sleep(max(0.005, min(wait, self._until - time.monotonic())))


async def patiently(attempt: Callable[[], Awaitable[T]], *, limit: float) -> T:
    """The result of a repeatable attempt (a read, or a write that may happen twice), tried for ``limit`` seconds.

    Raises:
        UnavailableError: The last one, when the time is up.
        StreamFullError, StreamMissingError, PermissionDeniedError: At once: waiting changes nothing about them.
    """
    backoff = Backoff(limit)
    while True:
        try:
            return await attempt()
        except (StreamFullError, StreamMissingError, PermissionDeniedError):
            raise
        except UnavailableError:
            if backoff.expired:
                raise
        await backoff.pause()
