"""When events that are held back leave: at moments that all writers of a replica share.

Owns the timers of these moments. Whoever holds events joins the last moment before they must go, so writers that would
each wake the process by themselves leave together: one wake-up, one write to the socket, and their acknowledgements
come back together. Guarantees that nobody leaves later than asked for, or more than a fifth of the linger earlier, that
a moment costs by those who are in it and not by those who run, and that no timer is left when nobody is.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

_MOMENTS = 5
"""In one linger. With fewer more writers leave together, and each of them with fewer events in a message."""


class Held(Protocol):
    """Who holds events back."""

    def leave(self) -> None:
        """The moment has come."""
        ...


class Moment:
    """One moment and those who leave at it."""

    def __init__(self, moments: dict[int, Moment], number: int, wait: float) -> None:
        """Use ``Linger.join``."""
        self._moments, self._number = moments, number
        self._held: dict[Held, None] = {}
        self._timer = asyncio.get_running_loop().call_later(wait, self._come)

    def add(self, held: Held) -> None:
        """Let it leave then."""
        self._held[held] = None

    def discard(self, held: Held) -> None:
        """It leaves otherwise, or never."""
        self._held.pop(held, None)
        if not self._held:
            self._timer.cancel()
            self._moments.pop(self._number, None)

    def _come(self) -> None:
        self._moments.pop(self._number, None)
        held, self._held = self._held, {}
        for one in held:
            one.leave()


class Linger:
    """The moments of one replica."""

    def __init__(self, linger: float) -> None:
        """``linger``: seconds."""
        self._step = linger / _MOMENTS
        self._moments: dict[int, Moment] = {}

    def join(self, held: Held, latest: float) -> Moment | None:
        """Leave at the last moment before ``latest`` (``time.monotonic()``); ``None``: that is now."""
        number = int(latest / self._step)
        moment = self._moments.get(number)
        if moment is None:
            wait = number * self._step - time.monotonic()
            if wait <= 0:
                return None
            moment = self._moments[number] = Moment(self._moments, number, wait)
        moment.add(held)
        return moment
