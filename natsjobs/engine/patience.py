"""How long to try, and how often to look: the pauses of everything that waits for NATS.

Owns the back-off between attempts, the moment of giving up, and the schedule of those who follow something and hear
nothing (A7). It never repeats an attempt whose outcome is unknown unless the caller says that a repetition is
harmless; deciding what happened is the caller's business. ``FINAL`` is the one list of errors that are not waited for.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, TypeVar

from natsjobs.engine.ports import StreamMissingError
from natsjobs.errors import ConnectionLostError, PermissionDeniedError, StreamFullError, UnavailableError

T = TypeVar("T")

FINAL: Final = (StreamFullError, PermissionDeniedError, ConnectionLostError)
"""The forms of ``UnavailableError`` that no waiting mends: whoever tries again and again leaves these to its caller."""

FIRST_WAIT = 0.02
LONGEST_WAIT = 1.0
SOON = 0.3
"""The first look after an attach or a repair: what the live path lost in that moment shows by then."""
SLOWEST = 5
"""Looks at something silent get this many times rarer than ``timing.look``, and no rarer."""
_ALIKE: Final = 10
"""From this look on they come as rarely as ever, and so does what is special about every fifth and tenth."""
JITTER: Final = (0.82, 1.0)
"""The part of ``Looks.latest`` after which a look is made: spreads the looks of many."""


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


class Seldom:
    """For what would be said at every try: once, and then every ``every`` seconds."""

    def __init__(self, every: float = 300.0) -> None:
        """Nothing was said yet."""
        self._every = every
        self._said: dict[Hashable, float] = {}

    def may_say(self, about: Hashable) -> bool:
        """Whether it is time to say something of this; then it was said."""
        now = time.monotonic()
        if now < self._said.get(about, -math.inf) + self._every:
            return False
        self._said.pop(about, None)
        self._said[about] = now
        while self._said and self._said[oldest := next(iter(self._said))] + self._every <= now:
            del self._said[oldest]
        return True


class Looks:
    """When to look again at something that is followed, while nothing comes (A7).

    Once more after ``SOON``, then every ``look`` seconds, doubling up to ``SLOWEST`` times that, with jitter.
    """

    __slots__ = ("_look", "_step")

    def __init__(self, look: float) -> None:
        """``look``: ``timing.look``. Begins as after ``again``."""
        self._look = look
        self._step = -1

    @property
    def silent(self) -> int:
        """How many looks were due since something came; 0: the next is the first."""
        return max(self._step, 0)

    @property
    def proves(self) -> bool:
        """Whether this look, as every fifth, has to find again what was already seen (B11)."""
        return self._step % 5 == 1

    @property
    def alone(self) -> bool:
        """Whether this look, as every tenth, is made at the leader, whatever a replica would say."""
        return self._step % 10 == 6  # one that proves: that is an index for the leader, no search

    @property
    def phase(self) -> int:
        """The same for two whose next looks are alike from now on."""
        step = self._step
        return step if step < _ALIKE else _ALIKE + step % 10

    def go_on(self, other: Looks) -> None:
        """Be where ``other`` is."""
        self._step = other._step

    def again(self) -> None:
        """Attached, or repaired a gap: the next look comes soon."""
        self._step = -1

    def news(self) -> None:
        """Something came: it is not silent."""
        self._step = 0

    def next(self) -> float:
        """Seconds until the next look; the one after it comes later."""
        return self.latest() * random.uniform(*JITTER)  # noqa: S311 - spreads the looks of many, no secret

    def latest(self) -> float:
        """As ``next``, without jitter and never less: for who makes the looks of many at once, and spreads them."""
        step, self._step = self._step, self._step + 1
        return 1.1 * (SOON if step < 0 else self._look * min(2 ** min(step, 10), SLOWEST))


async def patiently(attempt: Callable[[], Awaitable[T]], *, limit: float) -> T:
    """The result of a repeatable attempt (a read, or a write that may happen twice), tried for ``limit`` seconds.

    Raises:
        UnavailableError: The last one, when the time is up.
        StreamFullError, StreamMissingError, PermissionDeniedError, ConnectionLostError: At once: waiting mends none.
    """
    backoff = Backoff(limit)
    while True:
        try:
            return await attempt()
        except (*FINAL, StreamMissingError):
            raise
        except UnavailableError:
            if backoff.expired:
                raise
        await backoff.pause()
