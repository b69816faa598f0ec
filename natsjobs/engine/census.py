"""What can be learned of the viewers on all replicas: news of who comes and goes, and how many there are.

Owns how ``{ns}.joined.{stream_id}`` is read and how ``{ns}.presence.{stream_id}`` is asked. It answers nothing and
counts nobody here (``presence`` does), and draws no conclusions: whether all have left decides ``presence``, whether a
run is watched ``audience``. Guarantees that a refused question is never taken for "nobody is there".
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from natsjobs.engine import garbage, wire
from natsjobs.engine.context import Context
from natsjobs.engine.ports import Incoming, Interest, NoReplyError, NoRespondersError

_COLLECT = 0.25


async def follow(context: Context, stream_id: str, joined: Callable[[], None], left: Callable[[], None]) -> Interest:
    """Call back for every join and every leave that is announced after this has returned.

    Raises:
        UnavailableError: The connection is away.
        PermissionDeniedError: This user may not listen there.
    """

    def on_change(message: Incoming) -> None:
        try:
            event = msgspec.json.decode(message.body, type=_Change).event
        except wire.UNREADABLE:
            garbage.skipped("news of a subscriber", message.subject, message.body)
            return
        (joined if event == "join" else left)()

    return await context.link.bus.subscribe(context.subjects.joined(stream_id), on_change)


async def is_deserted(context: Context, stream_id: str) -> bool:
    """Whether no replica has interest in questions about its viewers. Any answer is a no, and so is silence.

    Raises:
        PermissionDeniedError: Nobody was asked.
    """
    try:
        await context.link.bus.request(context.subjects.presence(stream_id), b"{}", timeout=_COLLECT)
    except NoRespondersError:
        return True
    except NoReplyError:
        pass
    return False


class Census:
    """Counts the viewers of all replicas, and remembers for a while who answered."""

    def __init__(self, context: Context) -> None:
        """Empty."""
        self._context = context
        # Who answered last, oldest answer first: (monotonic time, names).
        self._others: dict[str, tuple[float, set[str]]] = {}

    async def ask(self, stream_id: str) -> int | None:
        """Subscribers on all replicas; ``None``: somebody is there, but nobody answered.

        Raises:
            PermissionDeniedError: Nobody was asked.
        """
        expected = self._remembered(stream_id)

        def enough(answers: list[bytes]) -> bool:
            return bool(expected) and expected <= _counts(answers).keys()

        subject = self._context.subjects.presence(stream_id)
        try:
            answers = await self._context.link.bus.gather(subject, b"{}", timeout=_COLLECT, enough=enough)
        except NoRespondersError:
            self._others.pop(stream_id, None)
            return 0
        except NoReplyError:
            return None
        counts = _counts(answers)
        self._others.pop(stream_id, None)
        self._others[stream_id] = (time.monotonic(), set(counts))
        return sum(counts.values()) if counts else None

    def _remembered(self, stream_id: str) -> set[str]:
        """Who answered last: if they do so again, nobody else is waited for. It holds for a lease."""
        horizon = time.monotonic() - self._context.config.timing.lease
        while self._others and (oldest := next(iter(self._others.items())))[1][0] < horizon:
            del self._others[oldest[0]]
        return self._others[stream_id][1] if stream_id in self._others else set()

    def forget(self, stream_id: str) -> None:
        """Nobody is remembered any more."""
        self._others.pop(stream_id, None)


class _Change(msgspec.Struct):
    event: str


class _Count(msgspec.Struct):
    replica: str
    count: int


def _counts(answers: list[bytes]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for answer in answers:
        try:
            found = msgspec.json.decode(answer, type=_Count)
        except wire.UNREADABLE:
            garbage.skipped("a count of subscribers", "an answer", answer)
            continue
        counts[found.replica] = max(found.count, 0)
    return counts
