"""Callbacks for the end of a generation, whoever writes it; no subscriber, and no decode of its events.

A watch listens to the live subject of the terminal record only, so an owner does not receive its own events back.
That path may lose messages, so a silent watch is looked after like a reader does (A7; ``patience.Looks``), and after
every reconnect: many watches by two questions to any replica of the stream, which ends there are and how many logs. An
end, or a log that is missing there (an operator's doing), is looked for at the leader, who decides. A generation in
which this replica itself has stored something since has not ended, and nobody is asked.

A run that is about to be owned here is listened on before its record is written (``listen``): until then nobody knows
of it, so whoever registers a callback later has missed nothing, and nothing has to be looked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import random
import time
from collections.abc import Callable, Container, Iterable
from weakref import WeakValueDictionary

from natsjobs.engine import wire
from natsjobs.engine.callbacks import call
from natsjobs.engine.context import Context
from natsjobs.engine.patience import JITTER, Looks
from natsjobs.engine.ports import MOST_NEWEST, Incoming, Interest, StreamMissingError
from natsjobs.engine.terminals import end_event, find_terminal
from natsjobs.errors import ConnectionLostError, UnavailableError
from natsjobs.interfaces import EndCallback
from natsjobs.models import EndReason, EventType

_DELETED = wire.Terminal(EventType.ABORTED, 0, 0, "", EndReason.DELETED, None, b"null")
_TOGETHER = 0.25
"""Looks that are due within this part of ``timing.look`` are made now: one question for many."""
_SETTLED = 2
"""Silent looks from which on a log that is not there is taken for gone: a leader that was just cut off knows no new one
(B3), and a run that is being created may be listened on before its log is open."""


class Ends:
    """All watched generations of one replica."""

    def __init__(
        self,
        context: Context,
        written: Callable[[str, str], float],
        ending: Container[tuple[str, str]] = frozenset(),
    ) -> None:
        """``written``: when this replica last stored an event of a generation, monotonic; 0: never.

        ``ending``: those whose end this replica is storing: it will know at once which one stands.
        """
        self._context = context
        self._written, self._ending = written, ending
        self._watches: dict[tuple[str, str], _Watch] = {}
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        # A heap of those who look together: a watch is stale there that is due at another time by now.
        self._due: list[tuple[float, int, list[_Watch]]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._forget: Callable[[], None] | None = None

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._watches

    async def add(self, stream_id: str, generation: str, callback: EndCallback) -> EndRegistration:
        """Call back once; at once if the generation has already ended."""
        watch = self._watch(stream_id, generation)
        registration = EndRegistration(self, watch, callback)
        watch.registrations.append(registration)
        try:
            await self._open(watch)
            if watch.interest is not None:
                await watch.interest.confirm()
            if not watch.due:
                self._schedule([watch])
            if not watch.newborn:  # what came before is seen too
                self.look_now(watch)
        except BaseException:
            await self.remove(registration)
            raise
        return registration

    async def listen(self, stream_id: str, generation: str) -> None:
        """Nobody knows of this generation yet; its end is listened for until ``deafen``, or until it has come."""
        watch = self._watch(stream_id, generation)
        watch.newborn = True
        await self._open(watch)

    def deafen(self, stream_id: str, generation: str) -> None:
        """It is not owned here, or not any more; with callbacks it is listened for."""
        watch = self._watches.get((stream_id, generation))
        if watch is not None:
            watch.newborn = False
            if not watch.registrations:
                self._drop(watch)

    async def remove(self, registration: EndRegistration) -> None:
        """Drop one callback; the last one ends the watch."""
        watch = registration.watch
        if registration in watch.registrations:
            watch.registrations.remove(registration)
        if not watch.registrations and not watch.newborn:
            self._forget_watch(watch)
            await self._close(watch)

    def fire(self, stream_id: str, generation: str, terminal: wire.Terminal | None) -> None:
        """The end was seen; ``None``: the log is gone without one, which is told like a deletion."""
        watch = self._watches.get((stream_id, generation))
        if watch is None:
            return
        registrations, watch.registrations = watch.registrations, []
        self._drop(watch)
        event = end_event(generation, terminal or _DELETED)
        for registration in registrations:
            registration.fired = True
            # Called now, not in a task: a run that ends because everything closes must hear of it before that.
            left = call(f"an on_end callback of {stream_id}", registration.callback, event)
            if left is not None:
                self._context.spawn(left, "natsjobs on_end callback")

    async def close(self) -> None:
        """End all watches."""
        if self._forget is not None:
            self._forget()
            self._forget = None
        for watch in list(self._watches.values()):
            self._forget_watch(watch)
            await self._close(watch)
        self._due.clear()
        self._set_timer()

    # -- watches ------------------------------------------------------------------------------------------------

    def _watch(self, stream_id: str, generation: str) -> _Watch:
        key = (stream_id, generation)
        watch = self._watches.get(key)
        if watch is None:
            end, look = self._context.subjects.end(stream_id, generation), self._context.config.timing.look
            watch = self._watches[key] = _Watch(self, key, end, look)
        return watch

    async def _open(self, watch: _Watch) -> None:
        async with self._locks.setdefault(watch.key, asyncio.Lock()):
            if watch.interest is not None or watch.closed:
                return
            subject = self._context.subjects.live_end(*watch.key)
            watch.interest = await self._context.link.bus.subscribe(subject, watch.hear, sure=False)
            if self._forget is None:
                self._forget = self._context.link.on_reconnect(self._on_reconnect)

    def _forget_watch(self, watch: _Watch) -> None:
        watch.closed, watch.newborn = True, False
        if self._watches.get(watch.key) is watch:
            del self._watches[watch.key]

    def _drop(self, watch: _Watch) -> None:
        self._forget_watch(watch)
        self._context.spawn(self._close(watch), "natsjobs close watch")

    async def _close(self, watch: _Watch) -> None:
        async with self._locks.setdefault(watch.key, asyncio.Lock()):
            interest, watch.interest = watch.interest, None
            if interest is not None:
                await interest.unsubscribe()

    # -- looking ------------------------------------------------------------------------------------------------

    def _schedule(self, watches: Iterable[_Watch]) -> None:
        """When they look next. Those whose looks are as rare stay together: one entry, and later one question."""
        now, groups = time.monotonic(), dict[float, list[_Watch]]()
        for watch in watches:
            groups.setdefault(watch.looks.latest(), []).append(watch)
        for pause, group in groups.items():
            due = now + pause * random.uniform(*JITTER)  # noqa: S311 - spreads the looks of many, no secret
            for watch in group:
                watch.due = due
            heapq.heappush(self._due, (due, next(self._numbers), group))
            if self._timer is None or self._due[0][2] is group:
                self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due:
            wait = max(0.0, self._due[0][0] - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait, self._on_due)

    def _on_due(self) -> None:
        """Look at as many as fit into one question; there may be thousands, and an event is not to wait for them."""
        self._timer = None
        until, due = time.monotonic() + self._context.config.timing.look * _TOGETHER, list[_Watch]()
        while self._due and self._due[0][0] <= until and len(due) + len(self._due[0][2]) <= MOST_NEWEST:
            at, _, group = heapq.heappop(self._due)
            due += (watch for watch in group if not watch.closed and watch.due == at)
        self._schedule(due)
        self._set_timer()
        if due:
            self._context.spawn(self._look_at(due), "natsjobs ends")

    def _on_reconnect(self) -> None:
        if self._watches:
            self._context.spawn(self._look_at(list(self._watches.values())), "natsjobs ends")

    async def _look_at(self, watches: Iterable[_Watch]) -> None:
        """Look at many."""
        asked = (watch for watch in watches if not self._is_written(watch))
        while part := list(itertools.islice(asked, MOST_NEWEST)):
            began = time.monotonic()
            try:
                doubtful = await self._doubtful(part)
            except StreamMissingError:
                for watch in part:
                    self._context.on_terminal(*watch.key, None)
                continue
            except ConnectionLostError:
                return
            except UnavailableError:
                doubtful = part  # no replica answers, or may: perhaps the leader does
            for watch in part:
                watch.looked = began
            for watch in doubtful:
                if not await self._look(watch):
                    return  # nor does he, and each of the others would wait for that

    async def _doubtful(self, watches: list[_Watch]) -> list[_Watch]:
        """Those that have an end by any replica, or no log; with no answer of a replica each is looked at."""
        ends = {watch.end: watch for watch in watches}
        found = await self._context.link.events.newest(list(ends))
        if found is None:
            return watches
        doubtful = [ends.pop(message.subject) for message in found if message.subject in ends]
        with contextlib.suppress(UnavailableError):  # the ends that are known are not to wait for the next look
            doubtful += await self._without_log([one for one in ends.values() if one.looks.silent >= _SETTLED])
        return doubtful

    async def _without_log(self, watches: list[_Watch]) -> list[_Watch]:
        """Those of which a replica holds no log: by halves, for its answer says how many there are, and not which."""
        if not watches:
            return []
        log_beside = self._context.subjects.log_beside
        there = await self._context.link.events.held([log_beside(watch.end) for watch in watches])
        if there == len(watches):
            return []
        if not there or len(watches) == 1:
            return watches
        half = len(watches) // 2
        return await self._without_log(watches[:half]) + await self._without_log(watches[half:])

    def _is_written(self, watch: _Watch) -> bool:
        """Whether something was stored here since it was last known to go on; now it is known again."""
        before, watch.looked = watch.looked, max(watch.looked, self._written(*watch.key))
        return watch.looked > before

    def heard(self, watch: _Watch) -> None:
        """Something came live."""
        if watch.key not in self._ending:
            self.look_now(watch)

    def look_now(self, watch: _Watch) -> None:
        """Something came, or may have come; whether it is true says the log."""
        if not watch.looking and not watch.closed:
            watch.looking = True
            self._context.spawn(self._look(watch), f"natsjobs end of {watch.key[0]}")

    async def _look(self, watch: _Watch) -> bool:
        """Read the end of one generation at the leader; whether he answers."""
        if watch.closed:
            return True
        subjects, events = self._context.subjects, self._context.link.events
        watch.looking = True
        try:
            message = await events.last(watch.end)
            terminal = await find_terminal(self._context.link, watch.end, message) if message is not None else None
            gone = (
                message is None
                and watch.looks.silent >= _SETTLED
                and await events.last(subjects.scope(*watch.key)) is None
            )
        except StreamMissingError:
            terminal, gone = None, True
        except UnavailableError:
            return False
        finally:
            watch.looking = False
        if terminal is not None or gone:
            self._context.on_terminal(*watch.key, terminal)
        return True


class EndRegistration:
    """Implements ``natsjobs.interfaces.Registration``."""

    __slots__ = ("_ends", "callback", "fired", "watch")

    def __init__(self, ends: Ends, watch: _Watch, callback: EndCallback) -> None:
        self._ends, self.watch, self.callback = ends, watch, callback
        self.fired = False

    async def dispose(self) -> None:
        """Remove just this callback."""
        await self._ends.remove(self)


class _Watch:
    """One generation whose end is waited for."""

    __slots__ = (
        "_ends", "closed", "due", "end", "interest", "key", "looked", "looking", "looks", "newborn", "registrations",
    )  # fmt: skip

    def __init__(self, ends: Ends, key: tuple[str, str], end: str, look: float) -> None:
        self._ends, self.key = ends, key
        self.end = end
        """The subject of its end, kept: putting it together is half of what a look among thousands costs."""
        self.registrations: list[EndRegistration] = []
        self.interest: Interest | None = None
        self.closed = self.looking = False
        self.newborn = False
        """It was listened on before anybody could know of it, and is owned here."""
        self.due = self.looked = 0.0
        self.looks = Looks(look)

    def hear(self, _: Incoming) -> None:
        """Something came live; whether it is true says the log."""
        self._ends.heard(self)
