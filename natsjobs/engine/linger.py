"""When events that are held back leave: at moments that all writers of a replica share.

Owns the timers of these moments (``Linger``), and which of them a writer waits for (``Pace``). Whoever holds events
joins the last moment before they must go, so writers that would each wake the process by themselves leave together: one
wake-up, one write to the socket, and their acknowledgements come back together. Guarantees that nobody leaves later
than asked for, or more than a fifth of the linger earlier, that a moment costs by those who are in it and not by those
who run, and that no timer is left when nobody is.
"""

from __future__ import annotations

import asyncio
import math
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
        self.seconds = linger
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


class Pace:
    """How long one writer collects, and the moment it waits for, if it does."""

    __slots__ = ("_began", "_held", "_sent_at", "linger", "moment")

    def __init__(self, linger: Linger, held: Held) -> None:
        """Nothing was sent yet, so nothing is held. ``held``: the writer, who leaves when its moment has come."""
        self._held = held
        self.linger = linger
        self.moment: Moment | None = None
        self._sent_at = -math.inf
        self._began = 0.0

    def begin(self) -> None:
        """The first event came that is not on its way: what follows waits with it, and no longer than it does."""
        self._began = time.monotonic()

    def holds(self) -> bool:
        """Whether what is queued has to wait, because something was sent a moment ago. ``Held.leave`` ends that."""
        if time.monotonic() - self._sent_at >= self.linger.seconds:
            return False
        self.moment = self.moment or self.linger.join(self._held, self._began + self.linger.seconds)
        return self.moment is not None

    def sent(self) -> bool:
        """Everything that may leave now leaves now; whether it was held and did not wait for its moment."""
        held = self.let_go()
        self._sent_at = time.monotonic()
        return held

    def over(self) -> None:
        """The moment has come: nothing holds what is queued, until something is sent."""
        self.moment = None
        self._sent_at = -math.inf

    def let_go(self) -> bool:
        """It waits no more; whether it did."""
        moment, self.moment = self.moment, None
        if moment is not None:
            moment.discard(self._held)
        return moment is not None

    def change(self, linger: Linger) -> bool:
        """Another linger from now on; whether what was held for a longer one is to leave now."""
        hurry = self.moment is not None and linger.seconds < self.linger.seconds
        self.linger = linger
        if hurry:
            self.let_go()
            self.over()
        return hurry
