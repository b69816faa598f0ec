"""Events to subscribers: live delivery, order, emitting, and lifetimes."""

from __future__ import annotations

import asyncio
import json

import pytest
from making import start
from waiting import Heard, check_whole, emit_stored, eventually, read_all, soon

import natsjobs
from natsjobs import JobClosedError, JobNotFoundError, NotOpenError

# -- delivery ----------------------------------------------------------------------------------------------------


@pytest.mark.scenario(42, 43)
async def test_subscribers_on_every_replica_get_each_event_once(replica, replica_b):
    """Two on A, two on B: chunks, then the final event."""
    await start(replica)
    heard = [Heard() for _ in range(4)]
    for one, at in zip(heard, (replica, replica, replica_b, replica_b), strict=True):
        await one.attach(at.transport, "s1")
    for value in ("a", {"b": [1]}, None):
        await replica.transport.emit_chunk("s1", value)
    await replica.transport.emit_done("s1", {"final": True})
    for one in heard:
        await one.until(4)
        assert one.all == [("chunk", "a"), ("chunk", {"b": [1]}), ("chunk", None), ("done", {"final": True})]


@pytest.mark.b_writes
async def test_events_may_be_emitted_on_a_replica_that_does_not_own_the_job(replica, replica_b):
    """Subscribers on the owner get them."""
    await start(replica)
    heard = Heard()
    await heard.attach(replica.transport, "s1")
    await replica_b.transport.emit_chunk("s1", 1)
    await replica_b.transport.emit_done("s1", None)
    await heard.until(2)
    assert heard.all == [("chunk", 1), ("done", None)]


@pytest.mark.scenario(44, 46, 99)
async def test_rapid_emits_keep_their_order_and_streams_do_not_mix(replica, replica_b):
    """Five hundred on each of two ids at the same time; the end comes after all of them."""
    heard = {stream_id: Heard() for stream_id in ("s1", "s2")}
    for stream_id, one in heard.items():
        await start(replica, stream_id)
        await one.attach(replica_b.transport, stream_id)

    async def emit(stream_id: str) -> None:
        for n in range(500):
            await replica.transport.emit_chunk(stream_id, [stream_id, n])
        await replica.transport.emit_done(stream_id, None)

    await soon(asyncio.gather(emit("s1"), emit("s2")))
    for stream_id, one in heard.items():
        await one.until(501)
        assert one.chunks == [[stream_id, n] for n in range(500)]
        assert one.all[-1] == ("done", None)
        assert len(one.all) == 501
        check_whole(await read_all(replica_b.manager.subscribe, stream_id), [[stream_id, n] for n in range(500)])


@pytest.mark.scenario(46)
async def test_an_error_comes_after_the_events_before_it(replica, replica_b):
    """Its text goes to on_error; nothing comes after it."""
    await start(replica)
    heard = Heard()
    await heard.attach(replica_b.transport, "s1")
    for n in range(20):
        await replica.transport.emit_chunk("s1", n)
    await replica.transport.emit_error("s1", "it broke")
    await heard.until(21)
    assert heard.all == [*(("chunk", n) for n in range(20)), ("error", "it broke")]
    job = await replica_b.store.get_job("s1")
    assert (job.status, job.error, job.end_reason) == ("error", "it broke", None)


@pytest.mark.scenario(56)
async def test_when_subscribe_returns_nothing_later_is_missed(replica, replica_b):
    """An event emitted in the next moment on another replica, thirty times; also for subscribers at the same time."""
    for n in range(30):
        await start(replica, f"s{n}")
        heard = [Heard(), Heard()]
        subscriptions = await asyncio.gather(*(one.attach(replica_b.transport, f"s{n}") for one in heard))
        await replica.transport.emit_chunk(f"s{n}", "first")
        for one, subscription in zip(heard, subscriptions, strict=True):
            await one.until(1)
            assert one.all == [("chunk", "first")]
            await subscription.unsubscribe()


@pytest.mark.scenario(71)
async def test_a_later_subscriber_gets_only_what_comes_later(replica, replica_b):
    """And the first one is not disturbed."""
    await start(replica)
    first, second = Heard(), Heard()
    await first.attach(replica_b.transport, "s1")
    await replica.transport.emit_chunk("s1", "before")
    await replica.transport.flush("s1")
    await first.until(1)
    await second.attach(replica_b.transport, "s1")
    await replica.transport.emit_chunk("s1", "after")
    await replica.transport.emit_done("s1", None)
    await first.until(3)
    await second.until(2)
    assert first.all == [("chunk", "before"), ("chunk", "after"), ("done", None)]
    assert second.all == [("chunk", "after"), ("done", None)]


async def test_subscribing_to_an_id_without_a_job_waits_for_it(replica, replica_b):
    """The first event of the job that comes later is delivered."""
    heard = Heard()
    await heard.attach(replica_b.transport, "s1")
    await start(replica)
    await replica.transport.emit_chunk("s1", "first")
    await replica.transport.emit_done("s1", None)
    await heard.until(2)
    assert heard.all == [("chunk", "first"), ("done", None)]


@pytest.mark.scenario(58, 74)
async def test_a_subscriber_stays_attached_over_generations(replica, replica_b):
    """Each turn's events, from the first on, and each turn's end; nothing of an old generation after the new one."""
    heard = Heard()
    await heard.attach(replica_b.transport, "s1")
    expected = []
    for turn in range(3):
        generation = await start(replica)
        for n in range(5):
            await replica.transport.emit_chunk("s1", [turn, n], generation=generation)
        await replica.transport.emit_done("s1", turn, generation=generation)
        expected += [*(("chunk", [turn, n]) for n in range(5)), ("done", turn)]
    await heard.until(len(expected))
    assert heard.all == expected


@pytest.mark.scenario(58, 74)
@pytest.mark.b_writes
async def test_a_replaced_generation_ends_before_the_next_begins(replica, replica_b):
    """The subscriber hears the old end (aborted), then only the new generation, whatever the old writer tries."""
    heard = Heard()
    await heard.attach(replica_b.transport, "s1")
    old = await start(replica)
    await replica.transport.emit_chunk("s1", "old", generation=old)
    await replica.transport.flush("s1", generation=old)
    await start(replica_b)
    with pytest.raises(JobClosedError):
        await emit_stored(replica.transport, "s1", "late", generation=old)
    await replica_b.transport.emit_chunk("s1", "new")
    await replica_b.transport.emit_done("s1", None)
    await heard.until(4)
    assert heard.all == [("chunk", "old"), ("aborted", None), ("chunk", "new"), ("done", None)]


@pytest.mark.scenario(61)
async def test_the_log_gives_a_first_subscriber_what_was_before_it(replica, replica_b):
    """Events before anybody listened are replayed by ``read``, once, in order."""
    await start(replica)
    await replica.transport.emit_chunk("s1", "created")
    await replica.transport.emit_chunk("s1", "more")
    await replica.transport.flush("s1")
    async with replica_b.transport.read("s1") as events:
        assert [(await soon(anext(events))).data for _ in range(2)] == ["created", "more"]
        await replica.transport.emit_done("s1", None)
        assert (await soon(anext(events))).type == "done"


@pytest.mark.scenario(100)
async def test_what_a_subscriber_has_heard_is_in_the_log(backend, replica, replica_b):
    """A third connection reads at once, from the log, every event that a handler was just given."""
    third = await backend.replica()
    await start(replica)
    behind: list = []
    heard = Heard()

    async def check(value: int) -> None:
        state = await third.store.get_resume_state("s1")
        async with third.transport.read("s1") as events:
            got = [(await soon(anext(events))).index for _ in range(value + 1)]
        behind.append((got[-1], state is not None))

    await replica_b.transport.subscribe("s1", on_chunk=check, on_done=lambda value: heard.all.append(("done", value)))
    for n in range(25):
        await replica.transport.emit_chunk("s1", n)
    await replica.transport.emit_done("s1", None)
    await heard.until(1)
    assert behind == [(n, True) for n in range(25)]


@pytest.mark.scenario(100)
async def test_a_small_queue_makes_the_producer_wait_and_loses_nothing(backend, replica_b):
    """emit_chunk waits for room; all events arrive in order."""
    producer = await backend.replica(backend.config(limits={"queue_events": 2, "queue_bytes": 200}))
    await start(producer)
    for n in range(300):
        await soon(producer.transport.emit_chunk("s1", [n, "x" * 50]))
    await producer.transport.emit_done("s1", None)
    check_whole(await read_all(replica_b.manager.subscribe, "s1"), [[n, "x" * 50] for n in range(300)])


# -- emitting ----------------------------------------------------------------------------------------------------


async def test_a_producer_that_never_waits_lets_others_run(backend, replica, replica_b):
    """With room for all of it: whoever encodes as fast as it can keeps neither leases nor other runs waiting."""
    busy = await backend.replica(backend.config(limits={"queue_events": 100_000, "queue_bytes": 1 << 30}))
    generation = await start(replica)
    await emit_stored(busy.transport, "s1", 0, generation=generation)
    turns, done = [0], asyncio.Event()

    async def other() -> None:
        while not done.is_set():
            turns[0] += 1
            await asyncio.sleep(0)

    async def produce(values: range) -> None:
        for n in values:
            await busy.transport.emit_chunk("s1", n, generation=generation)

    watching = asyncio.create_task(other())
    await soon(produce(range(1, 3000)))
    assert turns[0] >= 10
    done.set()
    await watching
    await busy.transport.flush("s1", generation=generation)
    await replica.transport.emit_done("s1", None)
    check_whole(await read_all(replica_b.transport.read, "s1"), list(range(3000)))


@pytest.mark.b_writes
async def test_a_loss_that_nobody_was_told_of_is_told_however_late(replica, replica_b):
    """An event was taken after the job had ended elsewhere: the next call hears of it, also minutes later."""
    generation = await start(replica)
    await emit_stored(replica_b.transport, "s1", 1, generation=generation)
    await replica.transport.emit_done("s1", None)
    await replica_b.transport.emit_chunk("s1", 2, generation=generation)
    runs = replica_b.transport.replica.runs
    writer = runs.local("s1", generation)
    await eventually(lambda: writer.closed)
    writer.last_stored -= 3600
    await runs.forget_idle()
    for _ in range(2):
        with pytest.raises(JobClosedError):
            await replica_b.transport.flush("s1", generation=generation)


async def test_what_was_emitted_is_stored_before_a_replica_closes(backend, replica):
    """Also where the job is another replica's, and the linger still holds it back."""
    generation = await start(replica)
    other = await backend.replica(backend.config(timing={"linger": 1.0}))
    await emit_stored(other.transport, "s1", 0, generation=generation)
    for value in (1, 2):
        await other.transport.emit_chunk("s1", value, generation=generation)
    await other.close()
    await replica.transport.emit_done("s1", None)
    check_whole(await read_all(replica.transport.read, "s1"), [0, 1, 2])


async def test_flush_waits_until_what_was_queued_is_stored(replica, replica_b):
    """Afterwards another replica reads it."""
    generation = await start(replica)
    await replica.transport.flush("s1")
    for n in range(50):
        await replica.transport.emit_chunk("s1", n)
    await replica.transport.flush("s1", generation=generation)
    async with replica_b.transport.read("s1") as events:
        assert [(await soon(anext(events))).data for _ in range(50)] == list(range(50))


async def test_changing_an_event_after_it_was_emitted_does_not_matter(replica, replica_b):
    """It was encoded before the call returned; readers get JSON, a tuple as a list."""
    await start(replica)
    heard = Heard()
    await heard.attach(replica.transport, "s1")
    event = {"list": [1], "tuple": (1, 2)}
    await replica.transport.emit_chunk("s1", event)
    event["list"].append(2)
    await replica.transport.emit_done("s1", event)
    event["list"].append(3)
    await heard.until(2)
    assert heard.all == [("chunk", {"list": [1], "tuple": [1, 2]}), ("done", {"list": [1, 2], "tuple": [1, 2]})]


async def test_emitting_to_an_unknown_id_is_an_error(transport):
    """All three, and nothing comes to be."""
    for emit in (
        transport.emit_chunk("nobody", 1),
        transport.emit_done("nobody", 1),
        transport.emit_error("nobody", "x"),
    ):
        with pytest.raises(JobNotFoundError) as missing:
            await emit
        assert missing.value.stream_id == "nobody"


@pytest.mark.parametrize("end", ["done", "error"])
async def test_after_the_terminal_record_every_emit_is_closed(replica, replica_b, end):
    """Here and on the other replica, with the generation and without; the end that stands stays."""
    generation = await start(replica)
    if end == "done":
        await replica.transport.emit_done("s1", "first")
    else:
        await replica.transport.emit_error("s1", "first")
    for one in (replica, replica_b):
        for given in (None, generation):
            with pytest.raises(JobClosedError) as closed:
                await emit_stored(one.transport, "s1", "late", generation=given)
            assert closed.value.status == ("complete" if end == "done" else "error")
            with pytest.raises(JobClosedError):
                await one.transport.emit_done("s1", "late", generation=given)
            with pytest.raises(JobClosedError):
                await one.transport.emit_error("s1", "late", generation=given)
    (event,) = await read_all(replica_b.manager.subscribe, "s1")
    assert (event.type, event.data) == (end, "first")
    job = await replica_b.store.get_job("s1")
    assert job.status == ("complete" if end == "done" else "error")
    assert await replica.store.get_active_job_ids_by_user("alice") == []


async def test_done_is_in_the_record_too(replica, replica_b):
    """Complete with the final event as JSON text."""
    await start(replica)
    await replica.transport.emit_done("s1", {"final": [1, None]})
    job = await replica_b.store.get_job("s1")
    assert (job.status, job.error, job.end_reason) == ("complete", None, None)
    assert json.loads(job.final_event) == {"final": [1, None]}
    assert job.completed_at is not None


async def test_ends_at_the_same_time_have_one_winner(replica, replica_b):
    """Through both doors, on both replicas: one is stored, the others hear that it is closed."""
    for n in range(10):
        stream_id = f"s{n}"
        await start(replica, stream_id)
        answers = await soon(
            asyncio.gather(
                replica.transport.emit_done(stream_id, "done"),
                replica_b.transport.emit_error(stream_id, "error"),
                replica.store.update_job(stream_id, status="aborted"),
                replica_b.store.update_job(stream_id, status="complete"),
                return_exceptions=True,
            )
        )
        unexpected = [a for a in answers if isinstance(a, BaseException) and not isinstance(a, JobClosedError)]
        assert not unexpected
        won = [kind for kind, answer in zip(("done", "error", "aborted", "done"), answers, strict=True) if _won(answer)]
        (end,) = await read_all(replica.manager.subscribe, stream_id)
        assert [str(end.type)] == won
        status = {"done": "complete", "error": "error", "aborted": "aborted"}[str(end.type)]
        for one in (replica, replica_b):
            assert (await one.store.get_job(stream_id)).status == status


def _won(answer):
    return answer is None or answer is True


# -- lifetimes ---------------------------------------------------------------------------------------------------


async def test_destroy_closes_and_leaves_the_connection(backend, replica, replica_b):
    """Nothing is delivered any more, calls say that it is not open; twice is fine; the store goes on."""
    await start(replica)
    heard, far = Heard(), Heard()
    await heard.attach(replica.transport, "s1")
    await far.attach(replica_b.transport, "s1")
    async with replica.transport.read("s1") as events:
        await replica.transport.destroy()
        with pytest.raises(NotOpenError):
            await soon(anext(events))
    await replica.transport.destroy()
    assert replica.transport.get_tracked_stream_ids() == []
    with pytest.raises(NotOpenError):
        await replica.transport.emit_chunk("s1", 1)
    with pytest.raises(NotOpenError):
        await heard.attach(replica.transport, "s1")
    await replica.store.append_chunk("s1", "x")
    await far.until(1)
    assert heard.all == []


async def test_a_transport_alone_serves_viewers(backend, replica):
    """Without a store that was initialized, as in a gateway: it opens at its first call."""
    gateway = await backend.replica(opened=False, role="gateway")
    await start(replica)
    await replica.store.append_chunk("s1", "a")
    heard = Heard()
    await heard.attach(gateway.transport, "s1")
    async with gateway.transport.read("s1") as events:
        assert (await soon(anext(events))).data == "a"
        await replica.transport.emit_done("s1", "end")
        assert (await soon(anext(events))).data == "end"
    await heard.until(1)
    assert heard.all == [("done", "end")]


async def test_two_transports_on_one_memory_store_are_two_replicas_of_viewers(backend_name, server_url):
    """As the interface says of the memory pair."""
    if backend_name != "memory":
        pytest.skip("speaks of the memory pair only")
    store = natsjobs.MemoryJobStore()
    await store.initialize()
    one, two = natsjobs.MemoryEventTransport(store), natsjobs.MemoryEventTransport(store)
    await store.create_job("s1", "alice")
    heard = Heard()
    await heard.attach(two, "s1")
    assert (one.get_subscriber_count("s1"), two.get_subscriber_count("s1")) == (0, 1)
    assert await one.count_subscribers("s1") == 1
    await one.emit_chunk("s1", 1)
    await one.emit_done("s1", None)
    await heard.until(2)
    assert heard.all == [("chunk", 1), ("done", None)]
    await one.destroy()
    await two.destroy()
    await store.destroy()
