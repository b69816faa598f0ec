"""Defects that were found by trying to break the promises on a real server; each test is the shortest way there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from backends import NatsBackend, no_tasks_left
from waiting import Calls, Heard, check_whole, eventually, read_all, soon, take

import natsjobs.config
import natsjobs.embedded
from natsjobs.engine import wire
from natsjobs.errors import InvalidEventError, JobClosedError, UnavailableError

DEEP = b"[" * 50_000 + b"]" * 50_000


async def cut_off(call: Callable[[], Awaitable[Any]], after: float) -> bool:
    """Cancel a call after some seconds; whether that hit it."""
    task = asyncio.ensure_future(call())
    await asyncio.sleep(after)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


async def strange(backend: NatsBackend, subject: str, body: bytes, **headers: str) -> None:
    """Store a message that is none of ours."""
    nc = await backend.admin()
    answer = await nc.request(subject, body, timeout=10, headers=headers or None)
    assert "seq" in json.loads(answer.data)


# -- calls that are cut off -------------------------------------------------------------------------------------------


async def test_events_after_a_clearing_that_was_cut_off_are_stored(backend):
    """The tombstone may have landed; the writer's next message must not take it for itself (promise 1)."""
    a, hits = await backend.replica(), 0
    for n in range(150):
        stream_id = f"s{n}"
        await a.store.create_job(stream_id, "alice")
        await a.store.append_chunk(stream_id, "before")
        hits += await cut_off(lambda stream_id=stream_id: a.store.clear_content_state(stream_id), n * 3e-5)
        await a.store.append_chunk(stream_id, "after")
        await a.transport.emit_done(stream_id, None)
        assert [event.data for event in await read_all(a.transport.read, stream_id)][-2:] == ["after", None]
    assert hits


async def test_an_end_that_was_cut_off_is_stored_all_the_same(backend):
    """It was begun, so it may be in the log: the job neither stays running nor can it be written to (promise 5)."""
    a, hits = await backend.replica(backend.config(timing={"sweep": 600.0})), 0
    for n in range(60):
        await a.store.create_job(f"s{n}", "alice")
        hits += await cut_off(lambda n=n: a.transport.emit_done(f"s{n}", "end"), n * 5e-5)
    assert hits

    async def all_ended() -> bool:
        return not await a.store.get_running_jobs()

    await eventually(all_ended, within=8)
    for n in range(60):
        assert [event.data for event in await read_all(a.transport.read, f"s{n}")] == ["end"]


async def test_an_emit_cut_off_in_the_moment_it_gets_room_is_not_queued(backend):
    """Cancelled while waiting: not queued, so whoever tries again does not send it twice (promise 9)."""
    a, cut = await backend.replica(backend.config(limits={"queue_events": 1})), 0
    for n in range(40):
        stream_id = f"s{n}"
        await a.store.create_job(stream_id, "alice")
        await a.transport.emit_chunk(stream_id, "first")
        emitting = asyncio.ensure_future(a.transport.emit_chunk(stream_id, "second"))
        await asyncio.sleep(0)
        line = a.transport.replica.runs.local(stream_id, None)._backlog._line
        while line and not line[0].free.done():  # the moment is one step of the loop long
            await asyncio.sleep(0)
        emitting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await emitting
        cut += emitting.cancelled()
        await a.transport.emit_done(stream_id, None)
        got = [event.data for event in await read_all(a.transport.read, stream_id)][:-1]
        assert got == (["first"] if emitting.cancelled() else ["first", "second"])
    assert cut


async def test_subscribing_that_is_cut_off_leaves_nothing_behind(backend):
    """No interest, and nobody who is counted for ever; checked at the end for interests (promise 12)."""
    a, hits = await backend.replica(), 0
    await a.store.create_job("s", "alice")
    before = sorted(a.interests())  # the run that is owned here is listened on by itself

    async def read() -> None:
        async with a.transport.read("s"):
            pass

    async def subscribe() -> None:
        await (await a.transport.subscribe("s", on_chunk=print)).unsubscribe()

    async def watch() -> None:
        await (await a.transport.on_all_subscribers_left("s", print)).dispose()

    for call in (read, subscribe, watch):
        for n in range(80):
            hits += await cut_off(call, n * 4e-5)
    assert hits
    assert a.transport.get_subscriber_count("s") == 0
    assert a.transport.get_tracked_stream_ids() == []
    assert sorted(a.interests()) == before


async def test_all_left_fires_after_an_earlier_registration_was_cut_off(backend):
    """The half-made watch of a cancelled registration must not stand for a working one (promise 14)."""
    a, hits = await backend.replica(), 0
    for n in range(60):
        left = Calls()
        hits += await cut_off(lambda n=n: a.transport.on_all_subscribers_left(f"s{n}", print), n * 5e-5)
        registration = await a.transport.on_all_subscribers_left(f"s{n}", left)
        if n % 6 == 5:
            await (await a.transport.subscribe(f"s{n}", on_chunk=print)).unsubscribe()
            await left.until(1)
        await registration.dispose()
        await a.transport.cleanup(f"s{n}")
    assert hits


async def test_usage_taken_by_a_claim_that_was_cut_off_is_given_to_the_next(backend):
    """The compare-and-set has happened: nobody else could ever bill these entries."""
    a, hits = await backend.replica(), 0
    for n in range(40):
        job = await a.store.create_job(f"s{n}", "alice")
        for tokens in range(5):
            await a.store.record_usage(f"s{n}", {"input_tokens": tokens}, generation=job.generation)
        claimed: list[Any] = []

        async def claim(n: int = n, claimed: list[Any] = claimed) -> None:
            claimed.extend(await a.store.claim_usage(f"s{n}"))

        hits += await cut_off(claim, n * 1e-4)

        async def all_of_them(claim: Any = claim, claimed: list[Any] = claimed) -> bool:
            await claim()
            return sorted(entry.input_tokens for entry in claimed) == [0, 1, 2, 3, 4]

        await eventually(all_of_them)
    assert hits


async def test_connect_left_by_a_task_that_is_cancelled_again_and_again_leaves_nothing(newest_server):
    """Frameworks repeat a cancellation until the task has ended; the connection is closed all the same."""

    async def application() -> None:
        async with natsjobs.connect(newest_server, config=natsjobs.Config(namespace="left")) as jobs:
            await jobs.store.create_job("s", "alice")
            await jobs.transport.subscribe("s", on_chunk=print)
            entered.set()
            await asyncio.Event().wait()

    for repeated in range(1, 12):
        entered = asyncio.Event()
        running = asyncio.ensure_future(application())
        await entered.wait()
        for _ in range(repeated):
            running.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await running
        await no_tasks_left()


# -- several at once ---------------------------------------------------------------------------------------------------


async def test_append_chunk_gives_each_event_its_own_index_when_the_queue_is_full(backend):
    """Also when several got room at the same time."""
    a = await backend.replica(backend.config(limits={"queue_events": 4}))
    await a.store.create_job("s", "alice")
    indexes = await asyncio.gather(*(a.store.append_chunk("s", i) for i in range(30)))
    await a.transport.emit_done("s", None)
    events = await read_all(a.transport.read, "s")
    assert [events[index].data for index in indexes] == list(range(30))


async def test_following_passes_over_a_log_whose_create_died_before_its_record(backend):
    """An orphan has no end and never gets one: whoever waits in it misses the turns after it (promise 1)."""
    a, b = await backend.replica(), await backend.replica()
    heard = Heard()
    await heard.attach(b.transport, "s")
    async with a.manager.start("s", user_id="alice") as run:
        await run.emit("one")
    async with b.manager.subscribe("s", follow=True) as events:
        assert [event.data for event in await take(events, 2)] == ["one", None]
        orphan = wire.generation_id(run.job.created_at + 1)
        await eventually(lambda: heard.done)
        link = a.transport.replica.context.link
        await link.events.append(
            backend.subjects.log("s", orphan),
            wire.open_body("dead", "x"),
            expect=0,
            scope=backend.subjects.scope("s", orphan),
        )
        await eventually(lambda: time.time() * 1000 > run.job.created_at + 2)
        async with a.manager.start("s", user_id="alice") as run:
            await run.emit("two")
        assert [event.data for event in await take(events, 2)] == ["two", None]
    await eventually(lambda: heard.chunks == ["one", "two"])


async def test_an_abort_does_not_wait_for_a_callback_of_its_own_replica_that_hangs(backend):
    """The owner is busy: after ``timing.abort`` the job is aborted all the same (promise 6)."""
    a = await backend.replica(backend.config(timing={"abort": 0.3}))
    await a.store.create_job("s", "alice")
    await a.transport.on_abort("s", asyncio.Event().wait)
    result = await soon(a.manager.abort("s"), within=5)
    assert result.success
    assert not result.acknowledged
    assert (await a.store.get_job("s")).status == "aborted"


async def test_with_nats_away_nobody_waits_for_the_time_outs_of_others():
    """Registering for one stream id does not queue behind the others, each of which takes ``timing.request``."""
    config = natsjobs.Config(timing=natsjobs.config.Timing(request=1.0))
    with natsjobs.embedded.server() as server:
        connected = natsjobs.connect(server.url, config=config)
        jobs = await connected.__aenter__()
        await jobs.transport.count_subscribers("s")
    registering = (jobs.transport.on_abort(f"s{n}", print) for n in range(20))
    failures = await soon(asyncio.gather(*registering, return_exceptions=True), within=8)
    assert all(isinstance(failure, UnavailableError) for failure in failures)
    await soon(connected.__aexit__(None, None, None))


async def test_a_subscription_whose_handler_is_slow_to_stop_leaves_when_unsubscribing_is_cut_off(backend):
    """It is not counted for ever."""
    a, at_work, go_on = await backend.replica(), asyncio.Event(), asyncio.Event()

    async def stubborn(_: object) -> None:
        at_work.set()
        while not go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go_on.wait()

    await a.store.create_job("s", "alice")
    subscription = await a.transport.subscribe("s", on_chunk=stubborn)
    await a.transport.emit_chunk("s", 1)
    await at_work.wait()
    assert await cut_off(subscription.unsubscribe, 0.05)
    go_on.set()
    assert a.transport.get_subscriber_count("s") == 0


# -- what others wrote -------------------------------------------------------------------------------------------------


async def test_a_stranger_s_message_at_the_tail_does_not_reset_the_index(backend):
    """Another replica's writer counts what is before it; else its events would be taken for old ones and lost."""
    a, b, c = [await backend.replica() for _ in range(3)]
    job = await a.store.create_job("s", "alice")
    log = backend.subjects.log("s", job.generation)
    for i in range(5):
        await a.store.append_chunk("s", i)
    await strange(backend, log, b"garbage \xff")
    assert await b.store.append_chunk("s", 5) == 5
    await strange(backend, log, b"garbage \xff")
    assert await a.store.append_chunk("s", 6) == 6
    await strange(backend, log, b"garbage \xff")
    assert (await c.manager.abort("s")).success
    check_whole(await read_all(b.transport.read, "s"), list(range(7)))


async def test_a_stranger_s_message_behind_the_end_opens_nothing(backend):
    """The end stays the end for a writer that has not seen it (promises 3 and 4)."""
    a, b = await backend.replica(), await backend.replica()
    job = await a.store.create_job("s", "alice")
    await a.store.append_chunk("s", 0)
    scope = backend.subjects.scope("s", job.generation)
    link = a.transport.replica.context.link
    last = await link.events.last(scope)
    body = wire.end_body("done", 1, "x", previous=last.seq, reason=None, request=None, data=b"null")
    await link.events.append(backend.subjects.end("s", job.generation), body, expect=last.seq, scope=scope)
    await strange(backend, backend.subjects.log("s", job.generation), b"garbage")
    for replica in (b, a):
        with pytest.raises(JobClosedError):
            await replica.store.append_chunk("s", "late", generation=job.generation)
        event = await replica.store.end_job("s", generation=job.generation, status="aborted")
        assert event.type == "done"
    check_whole(await read_all(b.transport.read, "s"), [0])


@pytest.mark.parametrize(
    "body",
    [
        b'{"type":"part","index":2,"writer":"x","part":[0,2],"data":123}',
        b'{"type":"part","index":2,"writer":"x","data":"[1]"}',
        b'{"type":"final","index":2,"part":[0,1],"data":7}',
        b'{"type":"events","index":99999999999999999999999,"events":[1]}',
        b'{"type":"events","index":2,"events":' + DEEP,
        DEEP,
    ],
    ids=["piece-no-text", "piece-no-number", "final-no-text", "huge-index", "deep-event", "deep"],
)
async def test_a_body_that_cannot_be_ours_harms_no_reader_and_no_writer(backend, body):
    """It is skipped, live and in replay."""
    a, b = await backend.replica(), await backend.replica()
    job = await a.store.create_job("s", "alice")
    for i in range(2):
        await a.store.append_chunk("s", i)
    async with b.transport.read("s") as events:
        first = await take(events, 2)
        await strange(backend, backend.subjects.log("s", job.generation), body)
        await a.store.append_chunk("s", 2)
        await a.transport.emit_done("s", None)
        check_whole(first + await take(events, 2), [0, 1, 2])
    check_whole(await read_all(a.transport.read, "s"), [0, 1, 2])


async def test_an_event_too_deep_for_some_reader_is_refused_when_it_is_emitted(backend):
    """A reader whose own stack is deeper than the producer's could not open it, and would lose all of its message."""
    a = await backend.replica()
    await a.store.create_job("s", "alice")
    fine, deep = json.loads('[{"x":' * 100 + '"a"' + "}]" * 100), json.loads("[" * 600 + "]" * 600)
    await a.transport.emit_chunk("s", fine)
    with pytest.raises(InvalidEventError, match="deep"):
        await a.transport.emit_chunk("s", deep)
    await a.transport.emit_chunk("s", ["[" * 3000, {"wide": [[]] * 3000}])
    await a.transport.emit_done("s", None)
    assert len(await read_all(a.transport.read, "s")) == 3


async def test_answers_and_joins_nested_too_deeply_are_no_answers(backend):
    """Counting goes on with the others, and a watch does not die of it."""
    a, admin, left = await backend.replica(), await backend.admin(), Calls()
    deep = b'{"replica":"x","count":1,"event":"join","more":' + DEEP + b"}"

    async def answer(message: Any) -> None:
        await admin.publish(message.reply, deep)

    asked = await admin.subscribe(backend.subjects.presence("s"), cb=answer)
    await admin.flush()
    assert await a.transport.count_subscribers("s") == 0
    await a.transport.on_all_subscribers_left("s", left)
    await admin.publish(backend.subjects.joined("s"), deep)
    await asked.unsubscribe()
    await admin.flush()
    await (await a.transport.subscribe("s", on_chunk=print)).unsubscribe()
    await left.until(1)


async def test_a_usage_entry_that_is_none_keeps_nobody_from_claiming_the_others(backend):
    """It used to be claimed with them, and to take them along."""
    a = await backend.replica()
    job = await a.store.create_job("s", "alice")
    await a.store.record_usage("s", {"input_tokens": 3})
    await backend.put_record({"input_tokens": "many"}, "usage", "s", job.generation, "strange")
    result = await a.manager.abort("s")
    assert [entry.input_tokens for entry in result.collected_usage] == [3]


async def test_records_that_are_none_do_not_stop_a_create(backend):
    """Neither one that names another job, whose end would be waited for for ever, nor a garbled removal."""
    a = await backend.replica()
    await strange(backend, backend.subjects.record("job", "left"), b'{"createdAt":"x"}', **{"KV-Operation": "PURGE"})
    assert (await soon(a.store.create_job("left", "alice"))).status == "running"
    base = {"userId": "u", "status": "running", "createdAt": 5}
    for more in ({"streamId": "other", "generation": "g"}, {"streamId": "s", "generation": "g.g *"}):
        await backend.put_record({**base, **more}, "job", "s")
        assert await a.store.get_job("s") is None
        assert (await soon(a.store.create_job("s", "alice"))).status == "running"


async def test_live_objects_of_jobs_that_have_ended_are_not_held_for_ever(backend):
    """They go when the record does; a server sees no end of conversations."""
    a = await backend.replica(backend.config(retention={"finished": 1.0}, timing={"renew": 0.2}))
    for n in range(20):
        await a.store.create_job(f"s{n}", "alice")
        a.store.set_content_parts(f"s{n}", [{"type": "text", "text": "long"}])
        a.store.set_collected_usage(f"s{n}", [])
        await a.transport.emit_done(f"s{n}", None)
    assert a.store.replica.content._parts
    await eventually(lambda: not (a.store.replica.content._parts or a.store.replica.ledger._lists))
