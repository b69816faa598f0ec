"""How long a connection has been failing: since when nobody answers, and since when nothing is stored.

Owns the two judgements by which a client leaves its server (B4). A server that was cut off from the others goes on
talking: as the leader that it was it answers reads with what it holds, for up to 20 s. So answers are not enough where
appends go out and none is stored. Every replica renews its lease, so appends do go out, and others are stored where one
was lost with a leader that was just leaving. Where nothing else is stored for so long (an idle replica, or one that
renews more seldom) that one append moves a client for nothing: a reconnect, against a lease that lapses.

It does not know the connection; that one asks, moves, and begins anew with every server.
"""

from __future__ import annotations

import math
import time


class Spell:
    """Requests of one kind that fail, without one among them that goes well."""

    __slots__ = ("_since", "_well")

    def __init__(self, now: float) -> None:
        self._well = now
        self._since = math.inf

    def well(self, now: float) -> None:
        """One has gone well."""
        self._well, self._since = now, math.inf

    def wrong(self, started: float) -> None:
        """One that was sent at ``started`` has failed; what began first may end last.

        A slow failure among successes says nothing about the time before the last one.
        """
        self._since = min(self._since, max(started, self._well))

    def lasts(self, now: float) -> float:
        """For how many seconds."""
        return now - self._since


class Failing:
    """How the requests to streams go on one server."""

    __slots__ = ("_answers", "_stores")

    def __init__(self) -> None:
        """What was asked on the server before says nothing about this one."""
        now = time.monotonic()
        self._answers, self._stores = Spell(now), Spell(now)

    def well(self, now: float, *, stored: bool) -> None:
        """A stream has answered; ``stored``: that it has stored something."""
        self._answers.well(now)
        if stored:
            self._stores.well(now)

    def wrong(self, started: float, *, write: bool) -> None:
        """A request of ``started`` got no answer of a stream; ``write``: it was an append."""
        self._answers.wrong(started)
        if write:
            self._stores.wrong(started)

    def why(self, now: float, after: float) -> str:
        """What was asked for and has not happened for ``after`` seconds; empty: nothing of that kind."""
        if self._answers.lasts(now) >= after:
            return "no stream has answered"
        if self._stores.lasts(now) >= after:
            return "no stream has stored anything"
        return ""
