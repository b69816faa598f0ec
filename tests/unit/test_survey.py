"""What a sweep takes for a record or an entry, and that nobody waits while it goes through thousands."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from virtual_time import Virtual

from natsjobs import Config, UserMessage
from natsjobs.config import Retention, Timing
from natsjobs.engine import garbage, wire
from natsjobs.engine import survey as survey_module
from natsjobs.engine.appender import Appender
from natsjobs.engine.context import Context
from natsjobs.engine.jobs import record_of
from natsjobs.engine.ports import PAGE, Message
from natsjobs.engine.records import slot_of
from natsjobs.engine.survey import Survey
from natsjobs.memory import MemoryJobStore, MemorySystem

GOOD = {"streamId": "s", "userId": "u", "status": "running", "createdAt": 7, "generation": "g", "owner": "o"}
BODIES: dict[str, bytes] = {
    "as written": b"",
    "all fields": json.dumps(
        {**GOOD, "write": "w", "finalSeq": 7, "metadata": {"a": [1]}, "iconURL": "i", "userMessage": {"messageId": "m"}}
    ).encode(),
    "of a later version": b'"later":{"x":[1,2]}',
    "a later user message": b'"userMessage":{"messageId":"m","later":1}',
    "a status of a later version": b'"status":"requires_action"',
    "a trace": b'"trace":{"traceparent":"00-1-2-01"}',
    "ended": b'"status":"aborted"',
    "nobody's": b'"owner":null',
    "another write": b'"write":5',
    "a sequence that is none": b'"finalSeq":"x"',
    "spaces": b'"sender" : "x" ',
    "twice": b'"owner":"p","owner":"q"',
    "twice, once wrong": b'"owner":5,"owner":"q"',
    "a large number": b'"lastActiveAt":123456789012345678901234567890',
    "a number out of range": b'"later":1e400',
    "a number out of range inside": b'"userMessage":{"messageId":"m","later":1e400}',
    "a fraction": b'"createdAt":1.0',
    "negative": b'"createdAt":-1',
    "no status": b'"status":null',
    "a generation that is none": b'"generation":"a.b"',
    "another stream id": b'"streamId":"other"',
    "too long an owner": b'"owner":"%s"' % (b"x" * 300),
    "no owner at all": b'"owner":""',
    "deep": b'"metadata":{"a":%s1%s}' % (b"[" * 300, b"]" * 300),
    "wide": b'"metadata":{"a":[%s[]]}' % (b"[]," * 300),
    "deep and unknown": b'"later":%s%s' % (b"[" * 300, b"]" * 300),
    "half a character": b'"sender":"\\ud800"',
    "no UTF-8": b'"sender":"\xff"',
    "no UTF-8 in what is unknown": b'"later":"\xff"',
    "another alphabet": '"sender":"ä"'.encode(),
    "a list": b"[]",
    "no JSON": b"{nothing",
    "nothing": b"",
}


def body_of(name: str) -> bytes:
    """A record with these fields behind the usual ones, or these bytes."""
    given = BODIES[name]
    if name == "nothing" or given[:1] in {b"[", b"{"}:
        return given
    return json.dumps(GOOD).encode()[:-1] + (b"," + given if given else b"") + b"}"


@pytest.fixture
async def context() -> AsyncIterator[Context]:
    """On a system of its own."""
    link = MemorySystem().link()
    await link.open()
    context = Context(link, Config())
    yield context
    await context.tasks.close()
    await link.close()


def counted(work: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    """What it gives, and what it has counted as garbage."""
    before = garbage.counts.copy()
    found = work()
    return found, dict(garbage.counts - before)


@pytest.mark.parametrize("marker", [None, "PURGE"])
@pytest.mark.parametrize("name", BODIES)
def test_a_record_is_what_every_other_reader_takes_for_one(name: str, marker: str | None) -> None:
    """Whatever stands in it: the same fields, or the same garbage."""
    message = Message("$KV.natsjobs_jobs.job.s", 9, body_of(name), 5.0, marker)
    link = MemorySystem().link()
    survey = Survey(Context(link, Config()))
    record, skipped = counted(lambda: record_of(slot_of(message)))
    _, also = counted(lambda: survey._take_records([message]))
    assert also == skipped
    assert (record is None) == (not survey.records)
    for seen in survey.records.values():
        job = record.job
        assert (seen.stream_id, seen.generation, seen.user_id) == (job.stream_id, job.generation, job.user_id)
        assert (seen.owner, seen.ended, seen.seq, seen.time) == (job.owner, job.status.is_terminal, 9, 5.0)


async def test_what_the_store_writes_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every field that it has, and with a trace: what is looked at more closely costs several times as much."""
    system = MemorySystem()
    store = MemoryJobStore(system=system)
    await store.initialize()
    await store.create_job("s", "u", "c")
    await store.update_job("s", sender="x", icon_url="i", metadata={"a": [1]}, user_message=UserMessage(message_id="m"))
    context = Context(store.link, Config())
    written = await messages(context, "job")
    traced = json.loads(written[0].body) | {"trace": {"traceparent": "00-1-2-01"}}
    written.append(Message(written[0].subject, 9, json.dumps(traced).encode(), 5.0))
    for message in written:
        assert survey_module._usual(message) is not None
    [entry] = await messages(context, "active")
    assert survey_module._is_entry(entry, traced["generation"])
    await store.destroy()


async def test_of_two_keys_with_one_record_the_newer_counts(context: Context) -> None:
    """A stranger has put it there; a list of both would hold it as well."""
    for key, generation in (("s", "g1"), ("x.job.s", "g3"), ("y.job.s", "g2")):
        body = json.dumps({**GOOD, "generation": generation}).encode()
        await context.link.records.append(f"$KV.natsjobs_jobs.job.{key}", body)
    for order in (1, -1):
        survey = Survey(context)
        survey._take_records((await messages(context, "job"))[::order])
        assert [seen.generation for seen in survey.records.values()] == ["g2"]


async def messages(context: Context, kind: str) -> list[Message]:
    """All of a kind."""
    found: list[Message] = []
    await context.records.visit(context.subjects.records(kind), found.extend)
    return found


async def test_the_index_is_kept_where_it_differs_from_the_records(context: Context) -> None:
    """Entries of running jobs as they should be are forgotten at once, whoever wrote them; a marker is no entry."""
    records, subjects = context.link.records, context.subjects
    for name in ("well", "later", "older", "missing", "removed", "broken", "ended"):
        status = "complete" if name == "ended" else "running"
        body = json.dumps({**GOOD, "streamId": name, "status": status}).encode()
        await records.append(subjects.record("job", name), body)
    entries = {
        ("u", "well"): b'{"generation":"g","owner":"o","tenantId":null,"write":"w"}',
        ("u", "later"): b'{"generation":"g","more":{"x":1}}',
        ("u", "older"): b'{"generation":"f"}',
        ("u", "broken"): b"{",
        ("u", "ended"): b'{"generation":"g"}',
        ("u", "never"): b'{"generation":"g"}',
        ("other", "well"): b'{"generation":"g"}',
    }
    for ids, body in entries.items():
        await records.append(subjects.record("active", *ids), body)
    await records.append(subjects.record("active", "u", "removed"), b'{"generation":"g"}', marker=True)
    survey = Survey(context)
    before = garbage.counts["a key of the bucket"]
    await survey.look()
    assert garbage.counts["a key of the bucket"] == before + 1
    assert {seen.stream_id for seen in survey.unlisted.values()} == {"older", "missing", "removed", "broken"}
    odd = {subjects.split_record(slot.key) for slot in survey.odd}
    assert odd == {
        ("active", "u", "older"),
        ("active", "u", "ended"),
        ("active", "u", "never"),
        ("active", "other", "well"),
    }
    assert {seen.stream_id for seen in survey.running} == survey.records.keys() - {"ended"}


# -- in small steps -------------------------------------------------------------------------------------------------

JOBS = 1_000
STEP = 128


class Counting(dict[Any, Any]):
    """A dictionary that says how often it was asked since somebody else had a turn."""

    asked = most = 0

    def __contains__(self, key: object) -> bool:
        self.count()
        return super().__contains__(key)

    def count(self) -> None:
        """Once more."""
        self.asked += 1
        self.most = max(self.most, self.asked)

    def counted(self, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Each call is once more."""

        def counting(value: Any) -> Any:
            self.count()
            return call(value)

        return counting

    async def turns(self) -> None:
        """Somebody else, who wants to go on all the time."""
        while True:
            self.asked = 0
            await asyncio.sleep(0)


@pytest.fixture
def clock() -> Iterator[Virtual]:
    """Waiting takes no time."""
    with Virtual() as clock:
        yield clock


def test_thousands_are_gone_through_in_small_steps(clock: Virtual, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two turns of the loop a sweep and a tick look at a few jobs only: no event waits for all of them."""

    async def scene() -> None:
        store = MemoryJobStore(Config())
        await store.initialize()
        await asyncio.gather(*(store.create_job(f"s{number}", "u") for number in range(JOBS)))
        replica = store.replica
        counting = Counting(replica.runs.owned)
        other = asyncio.ensure_future(counting.turns())
        with monkeypatch.context() as patch:
            patch.setattr(replica.runs, "owned", counting)
            assert await replica.upkeep.sweep() == 0
            assert counting.most == STEP, "owned runs are looked up for each record"
            counting.most = 0
            patch.setattr(replica.context.subjects, "split_event", lambda _: counting.count())
            await replica.upkeep.sweep()
            assert counting.most == STEP, "logs"
        with monkeypatch.context() as patch:
            patch.setattr(wire, "decode_object", counting.counted(wire.decode_object))
            for what in (store.list_jobs(), replica.liveness._reap("nobody")):
                counting.most = 0
                assert len(await what or range(JOBS)) == JOBS
                assert 0 < counting.most <= PAGE
        other.cancel()
        await store.destroy()

    clock.run(scene())


def test_a_tick_asks_nothing_of_the_writers_of_owned_runs(clock: Virtual, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be thousands that are quiet; those of runs that have ended go, a few in a step."""

    async def scene() -> None:
        store = MemoryJobStore(Config())
        await store.initialize()
        await asyncio.gather(*(store.create_job(f"s{number}", "u") for number in range(JOBS)))
        runs = store.replica.runs
        counting = Counting({})
        other = asyncio.ensure_future(counting.turns())
        monkeypatch.setattr(Appender, "owes", property(lambda _: counting.count()))
        monkeypatch.setattr(Appender, "idle", property(lambda _: True))
        await runs.forget_idle()
        assert counting.most == 0
        over = list(runs.owned)
        for key in over:
            runs.disown(*key)
            runs.local(*key).last_stored -= 3600  # type: ignore[union-attr]
        await runs.forget_idle()
        assert counting.most == STEP
        assert not any(runs.local(*key) for key in over)
        other.cancel()
        await store.destroy()

    clock.run(scene())


def test_a_tick_keeps_a_writer_that_begins_to_owe_while_it_goes_on(
    clock: Virtual, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next call on it is to hear that its events were not stored, whichever step the tick has come to."""

    async def scene() -> None:
        store = MemoryJobStore(Config())
        await store.initialize()
        await asyncio.gather(*(store.create_job(f"s{number}", "u") for number in range(3 * STEP)))
        runs, owing, keys = store.replica.runs, set[str](), list(store.replica.runs.owned)
        monkeypatch.setattr(Appender, "owes", property(lambda writer: writer.stream_id in owing))
        for key in keys:
            runs.disown(*key)
            runs.local(*key).last_stored -= 3600  # type: ignore[union-attr]
        tick = asyncio.ensure_future(runs.forget_idle())
        while not tick.done():
            owing.update([key[0] for key in keys if key[0] not in owing and runs.local(*key)][:1])
            await asyncio.sleep(0)
        kept = {key[0] for key in keys if runs.local(*key)}
        assert len(owing) > 2
        assert owing == kept
        await store.destroy()

    clock.run(scene())


def test_a_run_is_looked_at_a_few_times_within_the_limit_and_not_at_every_tick(
    clock: Virtual, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a tick costs among many runs is for nothing else; one without activity ends a little behind the limit."""

    async def scene() -> None:
        config = Config(retention=Retention(running=640.0), timing=Timing(renew=1.0))
        store = MemoryJobStore(config, system=MemorySystem(clock=lambda: time.time()))
        await store.initialize()
        await store.create_job("s", "u")
        runs, looked, began = store.replica.runs, list[float](), time.monotonic()

        class Watched(dict[Any, Any]):
            def items(self) -> Any:
                looked.append(time.monotonic())
                return super().items()

        monkeypatch.setattr(runs, "owned", Watched(runs.owned))
        await asyncio.sleep(100.0)
        assert 9 <= len(looked) <= 11
        await asyncio.sleep(640.0 - (time.monotonic() - began) + 12.0)
        assert (await store.get_job("s")).end_reason == "expired"  # type: ignore[union-attr]
        await store.destroy()

    clock.run(scene())
