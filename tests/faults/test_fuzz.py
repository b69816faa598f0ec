"""Garbage from somebody else, everywhere: skipped and counted, or a typed error, and the job beside it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from backends import Backend, MemoryBackend, NatsBackend, Replica
from exploring import explore
from fault_table import Row
from fuzzing import Watch, anything, entries, headers, one_of, records, requests, vandal_of
from hypothesis import strategies as st
from virtual_time import Virtual
from waiting import Calls, Heard, check_whole, values

from natsjobs import InvalidCursorError, NatsJobsError
from natsjobs.engine import garbage, wire
from natsjobs.jetstream.headers import status_of
from natsjobs.memory import MemorySystem

TIMING = {"give_up": 8.0, "request": 2.0, "sweep": 600.0}
_MOST_WARNINGS = 40
"""However much garbage comes within the seconds that one example takes."""


@dataclass(frozen=True)
class Attack:
    """One piece of garbage and where it goes."""

    target: str
    body: bytes
    head: bytes = b""


LOGS = ("bad.log", "bad.end", "turn.log", "turn.end", "deaf.log")
KEYS = (
    "job.bad", "job.other", "job.x.y", "job.=ZZ", "active.alice.bad", "active.alice.good", "active.alice.other",
    "active.u", "owner.ghost", "owner." + "o" * 3800, "steps.good.G", "steps.bad.B", "usage.good.G.forged",
    "usage.bad.B.forged", "weird.kind",
)  # fmt: skip
CORE = (
    "abort.good", "abort.bad", "joined.good", "presence.good", "owner.A", "owner.B", "wake.good", "live.good.G.end",
    "live.bad.B.end", "kv.owner.A", "kv.owner.ghost", "kv.job.good", "live.good.x\udcff.log", "live.good.G",
)  # fmt: skip


def foreign(body: bytes) -> bytes:
    """Nothing that a writer of ours could have written: forging such is a matter of permissions."""
    return body if wire.decode(body) is None else body[:-1]


def _attacks(targets: tuple[str, ...], bodies: st.SearchStrategy[bytes]) -> st.SearchStrategy[Attack]:
    return st.builds(Attack, one_of(targets), bodies, st.one_of(st.just(b""), headers))


GARBAGE = st.one_of(
    _attacks(("good.log", "good.end", "live.good.G.log"), entries.map(foreign)),
    _attacks(LOGS, entries),
    _attacks(KEYS, records),
    _attacks(CORE, requests),
)


class Scene:
    """A good job that is produced, read and watched while garbage comes, and a bad one that gets it all."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.sent: list[Any] = []

    async def open(self) -> None:
        """Start both jobs, and everything that can listen."""
        config = self.backend.config(timing=TIMING)
        self.a, self.b = await self.backend.replica(config), await self.backend.replica(config)
        self.good = await self.a.store.create_job("good", "alice")
        self.bad = await self.a.store.create_job("bad", "alice")
        self.heard, self.ended, self.aborts = Heard(), Calls(), Calls()
        await self.heard.attach(self.a.transport, "good")
        await self.b.transport.on_end("good", self.ended)
        await self.a.transport.on_abort("good", self.aborts)
        await self.a.transport.on_all_subscribers_left("good", lambda: None)
        await self.a.store.append_chunk("bad", "b0")
        await self.emit()
        self.reading = [
            self._read(self.b, follow=False),
            self._read(self.b, follow=True),
            self._read(self.a, follow=False),
        ]
        self.tasks = [asyncio.ensure_future(one) for one in self.reading]

    async def _read(self, replica: Replica, *, follow: bool) -> list[Any]:
        events = []
        async with replica.manager.subscribe("good", follow=follow) as reader:
            async for event in reader:
                events.append(event)
                if event.is_terminal and event.generation == self.good.generation:
                    return events
        return events

    async def emit(self) -> None:
        """One more event of the good job."""
        self.sent.append({"n": len(self.sent)})
        await self.a.transport.emit_chunk("good", self.sent[-1])

    def subject(self, target: str) -> str:
        """Where an attack goes."""
        names = self.backend.subjects
        places = {
            "good.log": names.log("good", self.good.generation),
            "good.end": names.end("good", self.good.generation),
            "bad.log": names.log("bad", self.bad.generation),
            "bad.end": names.end("bad", self.bad.generation),
            "turn.log": names.log("good", "zzz"),
            "turn.end": names.end("good", f"{self.good.generation}0"),
            "deaf.log": f"{names.events_prefix}good.=ZZ.log",
        }
        if target in places:
            return places[target]
        ids = {"A": self.a.store.replica_id, "B": self.b.store.replica_id}
        kind = target.partition(".")[0]
        if target.startswith("owner.") and target[6:] in ids:
            return names.owner(ids[target[6:]])
        text = target.replace(".G", f".{self.good.generation}").replace(".B", f".{self.bad.generation}")
        return f"{names.record_prefix}{text}" if target in KEYS and kind != "live" else f"{names.namespace}.{text}"

    async def everything(self) -> None:
        """Every call that reads what was damaged: an answer or a typed error, in bounded time."""
        store, manager = self.b.store, self.b.manager
        calls: list[Callable[[], Awaitable[Any]]] = [
            store.cleanup, store.list_jobs, store.get_running_jobs, store.get_job_count,
            lambda: store.get_active_job_ids_by_user("alice"),
            lambda: self.b.transport.count_subscribers("good"), lambda: self.b.transport.emit_abort("other"),
        ]  # fmt: skip
        for name in ("bad", "other", "good"):
            methods = store.get_job, store.get_resume_state, store.get_content_parts, store.get_run_steps
            calls += [partial(method, name) for method in (*methods, store.get_collected_usage)]
        calls += [lambda: self._glance("bad"), lambda: manager.claim_usage("bad"), lambda: manager.abort("bad")]
        for call in calls:
            try:
                async with asyncio.timeout(20):
                    await call()
            except NatsJobsError:
                pass

    async def _glance(self, stream_id: str) -> None:
        async with self.b.manager.subscribe(stream_id) as reader:
            try:
                async with asyncio.timeout(0.3):
                    async for _ in reader:
                        pass
            except TimeoutError:
                pass

    async def finish(self) -> None:
        """The good job ends whole for everybody, and a new turn of the bad one is as good as any."""
        await self.emit()
        for job in (await self.b.store.get_job("good"),):
            assert job is not None
            assert (job.status, job.generation) == ("running", self.good.generation)
        await self.a.transport.emit_done("good", "end")
        for task in self.tasks:
            check_whole(await asyncio.wait_for(task, 20), self.sent)
        await self.heard.until(len(self.sent) + 1)
        assert self.heard.all == [*(("chunk", one) for one in self.sent), ("done", "end")]
        await self.ended.until(1)
        again = await self.b.store.create_job("bad", "alice")
        for n in range(3):
            await self.b.store.append_chunk("bad", n, generation=again.generation)
        await self.b.transport.emit_done("bad", None)
        async with asyncio.timeout(20), self.a.manager.subscribe("bad") as reader:
            check_whole([event async for event in reader], [0, 1, 2])
        async with asyncio.timeout(20), self.b.manager.subscribe("good") as reader:
            assert values([event async for event in reader]) == self.sent

    async def close(self) -> None:
        """Leave."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def attacked(backend: Backend, attacks: list[Attack], row: Row, *, answers: list[Attack] | None = None) -> None:
    """One scene with all of these attacks."""
    before, vandal, scene = garbage.counts.total(), vandal_of(backend), Scene(backend)
    with Watch() as watch:
        try:
            await scene.open()
            if answers:
                for replica in (scene.a, scene.b):
                    forge(replica, answers)
            for attack in attacks:
                subject = scene.subject(attack.target)
                store = subject.startswith((backend.subjects.events_prefix, backend.subjects.record_prefix))
                await (vandal.store if store else vandal.say)(subject, attack.body, attack.head)
                await scene.emit()
            await scene.everything()
            await scene.finish()
            await scene.close()
        finally:
            await vandal.close()
            await backend.close()
        assert not watch.errors, watch.errors[:3]
        assert watch.warnings <= _MOST_WARNINGS, f"{watch.warnings} warnings"
    row.fault("pieces of garbage", len(attacks) + len(answers or []))
    row.notes["counted"] = row.notes.get("counted", 0) + garbage.counts.total() - before
    row.notes["warned"] = row.notes.get("warned", 0) + watch.warnings


def forge(replica: Replica, answers: list[Attack]) -> None:
    """Before each true answer to a request of this replica comes a forged one."""
    inbox: Any = replica.store.replica.context.link._wire._inbox
    expect, turn = inbox.expect, iter(range(1 << 30))

    def forged(subject: str, *rest: Any, **options: Any) -> Any:
        waiting = expect(subject, *rest, **options)
        attack = answers[next(turn) % len(answers)]
        if subject.startswith("$JS") or ".events." in subject or "$KV" in subject:
            asyncio.get_running_loop().call_soon(
                inbox.answered, inbox.prefix + waiting.token, "", attack.body, attack.head
            )
        return waiting

    inbox.expect = forged


def test_garbage_in_memory_harms_nobody(row: Row, seed: int, long: bool) -> None:
    """In every subject and key, between the events of a good job."""

    def trial(attacks: list[Attack]) -> None:
        with Virtual() as clock:
            backend = MemoryBackend()
            backend.system = MemorySystem(clock=lambda: time.time())
            clock.run(attacked(backend, attacks, row))

    explore(seed, 3_000 if long else 25, st.lists(GARBAGE, min_size=10, max_size=40), trial)


def test_garbage_on_a_server_harms_nobody(row: Row, seed: int, long: bool, newest_server: str) -> None:
    """As in memory, and with headers that no client library would send."""

    def trial(attacks: list[Attack]) -> None:
        asyncio.run(attacked(NatsBackend("nats", newest_server), attacks, row))

    explore(seed, 1_000 if long else 10, st.lists(GARBAGE, min_size=10, max_size=40), trial)


def test_answers_that_are_none_are_passed_over(row: Row, seed: int, long: bool, newest_server: str) -> None:
    """Garbage in the inbox, before every true answer of JetStream: acknowledgements, messages, pages, infos."""

    def honest(attack: Attack) -> Attack:
        """A refusal, or that nobody is there, would be forged rather than garbage."""
        return Attack(
            "inbox", attack.body.replace(b'"error"', b'"eror"'), b"" if status_of(attack.head) else attack.head
        )

    def trial(answers: list[Attack]) -> None:
        asyncio.run(attacked(NatsBackend("nats", newest_server), [], row, answers=answers))

    garbage_answers = _attacks(("inbox",), requests).map(honest)
    explore(seed, 500 if long else 5, st.lists(garbage_answers, min_size=1, max_size=20), trial)


def test_cursors_that_are_none_are_refused_by_name(row: Row, seed: int, long: bool) -> None:
    """Whatever text it is: an InvalidCursorError, or a cursor that reads back as itself."""
    good = str(wire.Cursor(wire.generation_id(1), 3, 7))
    cuts = st.integers(0, len(good)).flatmap(lambda n: st.text(max_size=3).map(lambda t: good[:n] + t + good[n + 1 :]))

    def trial(text: Any) -> None:
        row.fault("cursors")
        with contextlib.suppress(InvalidCursorError):
            assert str(wire.Cursor.parse(text)) == text

    explore(seed, 20_000 if long else 300, st.one_of(st.text(), cuts, anything, st.none(), st.integers()), trial)
