"""Interests that a server has dropped under a living connection: who may not subscribe any more is told, and is deaf.

Permissions change while connections live (a reload, a new token). What was dropped then nobody makes again when the
permission is back, neither the server nor nats-py; without its inbox a replica would hear no answer ever again. Owns
which interests that are, and that they are made again until the server takes them. What else is refused is told to
whoever has asked, and is his business.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Callable, Collection

from natsjobs.errors import NatsJobsError
from natsjobs.jetstream.faults import translated
from natsjobs.jetstream.inbox import WireInterest
from natsjobs.jetstream.tap import Tap

_log = logging.getLogger(__name__)

_FIRST, _LONGEST = 0.5, 30.0
"""Until they are made again, seconds: rarer each time, as a server writes each refusal into its log."""
_ANSWER = 5.0
_SUBSCRIPTION = re.compile(r'permissions violation for subscription to "([^"]+)"')


class Dropped:
    """Of one link."""

    def __init__(
        self, interests: Collection[WireInterest], tap: Callable[[], Tap | None], back: Callable[[], None]
    ) -> None:
        """``tap``: the connection, while there is one. ``back`` is called when something is heard again."""
        self._interests, self._tap, self._back = interests, tap, back
        self._refused: dict[str, float] = {}  # subject, as nats-py tells it, and when that was

    def note(self, violation: str) -> bool:
        """What the server said; whether it has refused a subscription. ``make_again`` sees to that."""
        found = _SUBSCRIPTION.search(violation)
        if found is not None:
            self._refused[found[1]] = time.monotonic()
        return found is not None

    async def make_again(self) -> None:
        """Until the server refuses none of them any more."""
        pause = _FIRST
        while self._refused:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST)
            if (tap := self._tap()) is None:
                self._refused.clear()  # nats-py makes all of them with the next connection, and is told then
            elif dropped := self._take():
                _log.warning("NATS has dropped subscriptions for want of a permission; %d are made again", len(dropped))
                try:
                    with translated("subscribing again"):
                        for interest in dropped:
                            await interest.again()
                except NatsJobsError as error:  # the connection is being closed: with the next one all are made
                    _log.info("dropped subscriptions are not made again: %s", error)
                    continue
                await tap.barrier(_ANSWER)  # refusals come before the answer that they were processed
                if any(self._refused_at(one) == -math.inf for one in dropped):
                    self._back()

    def _take(self) -> list[WireInterest]:
        """Those that were there when they were refused."""
        found = [one for one in self._interests if one.started < self._refused_at(one)]
        self._refused.clear()
        return found

    def _refused_at(self, interest: WireInterest) -> float:
        return self._refused.get(interest.subject.lower(), -math.inf)
