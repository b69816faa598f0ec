"""What happens in the demo, in three acts: resume after a kill, abort from elsewhere, a worker that dies.

Owns the script: which process gets which command when, and how long it may take. It moves on when a report says that
something has happened, never because time went by; the short pauses are for people to see something.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from natsjobs.cli.demo import source
from natsjobs.cli.demo.actors import Actor, Cast
from natsjobs.cli.demo.ledger import Ledger, Measure, Record
from natsjobs.cli.demo.screen import Scene

BROWSERS = ("browser 1", "browser 2")
LEASE = 3.0
RENEW = 1.0
ABORT_LIMIT = 2.0

_FIRST, _SECOND = BROWSERS
_ANSWER_SECONDS = 8.0
_SLOWEST = 0.3
_PACE = 0.025
_ENOUGH = 70
_JOIN_AT, _KILL_AT = 0.15, 0.45
_AWAY = 0.7
_PATIENCE = 15.0


class BrokenPlayError(Exception):
    """Something that had to happen did not; says what."""


class Play:
    """One performance. ``ledger`` is what came of it."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str], events: Sequence[Any]) -> None:
        """Args: what every role is started with, its environment, and the events that the worker will stream."""
        self.ledger = Ledger()
        self.scene = Scene(panes=Scene.empty(BROWSERS))
        self.pids: list[int] = []
        self._cast = Cast(arguments, env, self._take)
        self._events = len(events)
        self._texts = all(source.is_chat(event) for event in events)
        self._news = asyncio.Event()
        self._broken: str | None = None
        self._active: dict[str, bool] = {}

    async def perform(self) -> None:
        """All three acts. What does not hold is in the ledger; every process has ended when this returns."""
        complete = False
        try:
            worker, one, two = await self._open()
            one = await self._resume(worker, one, two)
            await self._abort(worker, one, two)
            await self._crash(worker, one, two)
            complete = self.ledger.finished = True
        except BrokenPlayError as exc:
            self.ledger.failures.append(str(exc))
            self.scene.say(str(exc), "bold red")
        finally:
            await self._cast.close(now=not complete)

    # -- the acts -----------------------------------------------------------------------------------------------

    async def _open(self) -> tuple[Actor, Actor, Actor]:
        names = (("worker", "worker"), ("viewer", "replica A"), ("viewer", "replica B"))
        actors = [await self._start(role, name) for role, name in names]
        await self._until(lambda: all(actor.ready for actor in actors), _PATIENCE, "worker and replicas are connected")
        self.scene.say("worker, replica A and replica B run: " + ", ".join(f"pid {actor.pid}" for actor in actors))
        worker, one, two = actors
        return worker, one, two

    async def _resume(self, worker: Actor, one: Actor, two: Actor) -> Actor:
        record = self._act("1 of 3: a replica dies", "demo-answer", "replica killed, resumed", "done")
        first = record.view(_FIRST)
        total = self._events
        self.scene.progress = lambda: (len(first.received), total, f"{len(first.received)}/{total} events")
        self._attach(one, record, _FIRST, "replica A")
        pace = min(_SLOWEST, _ANSWER_SECONDS / total)
        worker.tell("produce", record.stream_id, interval=pace, endless=False)
        await self._until(lambda: len(first.received) > _JOIN_AT * total, _PATIENCE, "browser 1 gets the first events")
        self._attach(two, record, _SECOND, "replica B")
        self.scene.say(f"browser 2 joins late at replica B: {len(first.received)} events are replayed to it")
        await self._until(lambda: len(first.received) > _KILL_AT * total, _PATIENCE, "browser 1 gets the middle")

        one.kill()
        await self._until(lambda: one.gone, _PATIENCE, "replica A is gone")
        self.ledger.check(first.end_type is None, "replica A was killed too late: the answer had ended")
        cursor, missed_from = first.cursor, len(record.emitted)
        self._place(_FIRST, "no connection", "bold red")
        self.scene.say(
            f"replica A killed (SIGKILL); browser 1 is left with event {len(first.received) - 1}", "bold red"
        )
        restarted = await self._start("viewer", "replica A")
        await asyncio.sleep(_AWAY)
        missed = len(record.emitted) - missed_from
        self._attach(two, record, _FIRST, "replica B", after=cursor)
        self.scene.say(
            f"browser 1 resumes on replica B from its cursor; it missed about {missed} events", "bold yellow"
        )
        self.scene.say(f"meanwhile replica A is started again: pid {restarted.pid}")
        await self._until(lambda: self._ended(record) and record.left, _ANSWER_SECONDS + _PATIENCE, "the answer ends")
        self.scene.say(f"the answer is complete: {len(record.emitted)} events", "green")
        await self._until(lambda: restarted.ready, _PATIENCE, "replica A is connected again")
        return restarted

    async def _abort(self, worker: Actor, one: Actor, two: Actor) -> None:
        title = "aborted elsewhere"
        record = self._act("2 of 3: somebody presses stop", "demo-abort", title, "aborted", "abort")
        await self._watch(worker, one, two, record)
        self.scene.say("stop is pressed on replica A, which does not run the job", "bold yellow")
        begin = time.monotonic()
        one.tell("abort", record.stream_id)
        await self._until(
            lambda: record.abort and record.left and self._ended(record), _PATIENCE, "the abort reaches everybody"
        )
        result, left = record.abort or {}, record.left or {}
        seen = max(view.ended_at or 0.0 for view in record.views.values())
        self._measure("abort: the caller has the result", record.abort_at, begin, ABORT_LIMIT)
        self._measure("abort: the worker was interrupted", record.left_at, begin, ABORT_LIMIT)
        self._measure("abort: both browsers saw it", seen, begin, ABORT_LIMIT)
        self.ledger.check(result.get("success"), f"the abort was refused: {result.get('reason')}")
        self.ledger.check(result.get("acknowledged"), "the owner did not confirm the abort")
        self.ledger.check(left.get("aborted"), f"the worker's run ended as {left.get('status')}, not by the abort")
        if self._texts:
            same = all(result.get("text") == "".join(view.text) for view in record.views.values())
            self.ledger.check(same, "the text that the abort returned is not what the browsers saw")
        self.scene.say(
            f"aborted: the worker confirmed, the caller has {len(result.get('text', ''))} characters", "green"
        )
        await asyncio.sleep(_AWAY)

    async def _crash(self, worker: Actor, one: Actor, two: Actor) -> None:
        record = self._act("3 of 3: the worker dies", "demo-crash", "worker killed", "error", "owner_lost")
        await self._watch(worker, one, two, record)
        worker.kill()
        begin = time.monotonic()
        self.scene.say(f"worker killed (SIGKILL); its lease is {LEASE:g} s", "bold red")
        self.scene.progress = lambda: (
            time.monotonic() - begin,
            LEASE,
            f"{time.monotonic() - begin:.1f} of {LEASE:g} s",
        )
        await self._until(lambda: self._ended(record), LEASE + _PATIENCE, "the browsers see that the worker is dead")
        seen = max(view.ended_at or 0.0 for view in record.views.values())
        took = self._measure("crash: both browsers saw the end", seen, begin, LEASE)
        self.scene.progress = lambda: (took, LEASE, f"{took:.1f} of {LEASE:g} s")
        self.scene.say(f"both browsers got the end {took:.2f} s after the kill", "green")
        two.tell("active", record.stream_id)
        await self._until(lambda: record.stream_id in self._active, _PATIENCE, "replica B lists the active jobs")
        self.ledger.check(not self._active[record.stream_id], "the dead worker's job is still listed as active")

    # -- parts of acts ------------------------------------------------------------------------------------------

    async def _start(self, role: str, name: str) -> Actor:
        actor = await self._cast.start(role, name)
        self.pids.append(actor.pid)
        return actor

    def _act(self, act: str, stream_id: str, title: str, end_type: str, end_reason: str | None = None) -> Record:
        self.scene.act = act
        self.scene.clear()
        return self.ledger.open(Record(stream_id, title, end_type, end_reason))

    def _attach(self, actor: Actor, record: Record, browser: str, where: str, after: str | None = None) -> None:
        record.view(browser)
        self._place(browser, where, "green")
        actor.tell("view", record.stream_id, browser=browser, after=after)

    def _place(self, browser: str, where: str, style: str) -> None:
        self.scene.panes[browser].where, self.scene.panes[browser].style = where, style

    async def _watch(self, worker: Actor, one: Actor, two: Actor, record: Record) -> None:
        """Both browsers watch a generation that never ends by itself, until they have seen enough of it."""
        self._attach(one, record, _FIRST, "replica A")
        self._attach(two, record, _SECOND, "replica B")
        views = list(record.views.values())
        self.scene.progress = lambda: (len(views[0].received), _ENOUGH, f"{len(views[0].received)} events")
        self.scene.say("a new generation starts; both browsers watch")
        worker.tell("produce", record.stream_id, interval=_PACE, endless=True)
        await self._until(lambda: all(len(v.received) >= _ENOUGH for v in views), _PATIENCE, "the browsers get events")

    def _ended(self, record: Record) -> bool:
        return all(view.end_type is not None for view in record.views.values())

    def _measure(self, name: str, at: float | None, begin: float, limit: float) -> float:
        took = None if at is None else at - begin
        self.ledger.measures.append(Measure(name, took, limit))
        return took or 0.0

    # -- reports ------------------------------------------------------------------------------------------------

    def _take(self, report: dict[str, Any]) -> None:
        self._news.set()
        if report["is"] == "failed":
            self._broken = self._broken or f"{report['what']} of {report['id']} failed: {report['error']}"
        elif report["is"] == "active":
            self._active[report["id"]] = report["active"]
        elif record := self.ledger.records.get(report["id"]):
            text = source.shown(report["value"]) if report["is"] == "event" else ""
            record.take(report, time.monotonic(), text)
            if report["is"] == "event":
                self.scene.panes[report["browser"]].add(text)
            elif report["is"] == "end":
                self._place(report["browser"], f"ended: {report['reason'] or report['type']}", "cyan")

    async def _until(self, holds: Callable[[], object], seconds: float, what: str) -> None:
        """Wait for reports until it holds.

        Raises:
            BrokenPlayError: Not in time, or a process failed or ended before.
        """
        try:
            async with asyncio.timeout(seconds):
                while not holds():
                    if broken := self._broken or self._cast.unexpected:
                        raise BrokenPlayError(broken)
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise BrokenPlayError(f"waited {seconds:g} s in vain until {what}") from None
