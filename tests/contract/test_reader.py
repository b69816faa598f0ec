"""Readers: from any cursor, at any moment, on any replica: every event once, in order, and one end."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest
from making import rest, write
from waiting import check_whole, eventually, read_all, soon, take, values

from natsjobs import (
    EndReason,
    JobNotFoundError,
    to_dict,
)


@pytest.fixture(params=["subscribe", "read"])
def read(request, replica_b):
    """Both doors to a reader, on replica B."""
    return replica_b.manager.subscribe if request.param == "subscribe" else replica_b.transport.read


# -- the whole ---------------------------------------------------------------------------------------------------


@pytest.mark.scenario(61)
async def test_a_reader_replays_and_ends_after_the_terminal_record(replica, read):
    """Index, cursor, generation, type and raw bytes of each event."""
    sent = [{"n": n, "text": "é"} for n in range(10)]
    generation = await write(replica, sent)
    events = await read_all(read, "s1")
    check_whole(events, sent)
    *body, end = events
    assert [event.type for event in body] == ["event"] * 10
    assert (end.type, end.data, end.end_reason) == ("done", "end", None)
    assert {event.generation for event in events} == {generation}
    assert [msgspec.json.decode(event.raw) for event in events] == [*sent, "end"]
    cursors = [event.cursor for event in events]
    assert all(isinstance(cursor, str) and cursor.isascii() and cursor.isprintable() for cursor in cursors)
    assert cursors == sorted(cursors)
    assert len(set(cursors)) == len(cursors)
    wire = to_dict(body[0])
    assert (wire["type"], wire["index"], wire["data"]) == ("event", 0, sent[0])


@pytest.mark.scenario(62, 63)
async def test_replay_and_live_join_without_a_seam(replica, read):
    """Two events before, ten after, one end."""
    await write(replica, [0, 1], end=False)
    async with read("s1") as events:
        for n in range(2, 12):
            await replica.transport.emit_chunk("s1", n)
        await replica.transport.emit_done("s1", None)
        check_whole(await soon(rest(events)), list(range(12)))


async def test_a_reader_after_any_cursor_gets_exactly_the_rest(replica, read):
    """Of every event, on a job that has ended; after the terminal one nothing."""
    sent = list(range(30))
    await write(replica, sent)
    whole = await read_all(read, "s1")
    for event in whole[:-1]:
        assert await read_all(read, "s1", after=event.cursor) == whole[event.index + 1 :]
    assert await read_all(read, "s1", after=whole[-1].cursor) == []


async def test_the_generation_may_be_named(replica, read):
    """The newest: fine."""
    generation = await write(replica, ["a"])
    check_whole(await read_all(read, "s1", generation=generation), ["a"])


@pytest.mark.scenario(65, 69)
async def test_readers_at_the_same_time_on_two_replicas_are_each_complete(replica, replica_b):
    """Attached one after the other while events flow; one is cancelled midway, and takes nothing from the others."""
    sent = [f"<{n}>" for n in range(400)]
    await replica.store.create_job("s1", "alice")
    doors = [replica.manager.subscribe, replica_b.manager.subscribe, replica_b.transport.read]
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        readers = []
        for n, value in enumerate(sent):
            await replica.transport.emit_chunk("s1", value)
            if n % 40 == 0:
                readers.append(group.create_task(read_all(doors[n % 3], "s1")))
                await asyncio.sleep(0)
        doomed = readers.pop(2)
        doomed.cancel()
        await replica.transport.emit_done("s1", None)
    for reader in readers:
        check_whole(reader.result(), sent)


@pytest.mark.scenario(66)
async def test_a_late_reader_gets_the_first_event_first_and_once(replica, read):
    """Whatever the first event is: created."""
    await write(replica, [{"created": True}, "a"], end=False)
    async with read("s1") as events:
        assert values(await take(events, 2)) == [{"created": True}, "a"]
        await replica.transport.emit_chunk("s1", "b")
        assert values(await take(events, 1)) == ["b"]


@pytest.mark.scenario(67)
async def test_leaving_and_coming_back_doubles_and_loses_nothing(replica, read):
    """Eight times, with events before, between and after; an event while nobody is there as well."""
    await replica.store.create_job("s1", "alice")
    sent: list = []
    got: list = []
    cursor = None

    async def emit() -> None:
        sent.append(len(sent))
        await replica.transport.emit_chunk("s1", sent[-1])
        await replica.transport.flush("s1")

    await emit()
    for _ in range(8):
        async with read("s1", after=cursor) as events:
            await emit()
            got += values(await take(events, len(sent) - len(got)))
            cursor = events.cursor
        await emit()
    await replica.transport.emit_done("s1", None)
    got += values(await read_all(read, "s1", after=cursor))
    assert got == sent


@pytest.mark.scenario(68)
async def test_attaching_at_random_moments_at_full_speed(replica, read):
    """Forty readers with random cursors while the producer emits as fast as it can."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    sent = list(range(4000))
    await replica.store.create_job("s1", "alice")

    async def produce() -> None:
        for n in sent:
            await replica.transport.emit_chunk("s1", n)
            if n % 10 == 0:
                await asyncio.sleep(0)
        await replica.transport.emit_done("s1", None)

    async def resume() -> None:
        async with asyncio.timeout(60):
            async with read("s1") as events:
                first = [await anext(events) for _ in range(rng.randrange(1, 500))]
            check_whole(first + await read_all(read, "s1", after=first[-1].cursor), sent)

    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        producing = group.create_task(produce())
        for _ in range(40):
            group.create_task(resume())
            await asyncio.sleep(rng.random() * 0.02)
        await producing


async def test_a_reader_that_is_slow_gets_everything_and_holds_up_nobody(backend, replica):
    """Bounded memory: with room for eight events it re-reads from the log; a quick one is not held up."""
    viewer = await backend.replica(backend.config(limits={"reader_events": 8}), role="gateway")
    sent = [[n, "x" * 100] for n in range(1000)]
    await replica.store.create_job("s1", "alice")
    async with viewer.manager.subscribe("s1") as slow:
        quick = asyncio.ensure_future(read_all(viewer.manager.subscribe, "s1"))
        for value in sent:
            await replica.transport.emit_chunk("s1", value)
        await replica.transport.emit_done("s1", None)
        check_whole(await quick, sent)
        check_whole(await soon(rest(slow)), sent)


# -- waiting and following ---------------------------------------------------------------------------------------


@pytest.mark.scenario(64)
async def test_wait_waits_for_a_job_that_is_not_there_yet(replica, read):
    """Entered when it exists; all of its events."""
    reading = asyncio.ensure_future(read_all(read, "s1", wait=20.0))
    with pytest.raises(JobNotFoundError):
        await read_all(read, "s1", wait=0.05)
    assert not reading.done()
    await write(replica, ["a", "b"])
    check_whole(await reading, ["a", "b"])


@pytest.mark.b_writes
async def test_following_goes_on_with_the_next_generation(replica, replica_b, read):
    """Each with its own job and its own end; it never ends by itself."""
    first = await write(replica, ["a"])
    async with read("s1", follow=True) as events:
        got = await take(events, 2)
        assert events.job.generation == first
        second = await write(replica_b, ["b", "c"])
        got += await take(events, 3)
        assert events.job.generation == second
        pending = asyncio.ensure_future(anext(events))
        third = await write(replica, [], end=False)
        await replica_b.store.create_job("s1", "alice")
        got.append(await soon(pending))
    assert [(event.type, event.data, event.generation) for event in got] == [
        ("event", "a", first),
        ("done", "end", first),
        ("event", "b", second),
        ("event", "c", second),
        ("done", "end", second),
        ("aborted", None, third),
    ]


async def test_following_after_an_old_cursor_first_gives_its_rest(replica, read):
    """The rest of the earlier generation, its end, then the newest."""
    await write(replica, ["a", "b"])
    cursor = (await read_all(read, "s1"))[0].cursor
    await write(replica, ["c"])
    async with read("s1", after=cursor, follow=True) as events:
        got = await take(events, 4)
    assert [event.data for event in got] == ["b", "end", "c", "end"]


async def test_following_after_a_terminal_cursor_waits_for_the_next_generation(replica, read):
    """Nothing of the old one is given again."""
    await write(replica, ["a"])
    cursor = (await read_all(read, "s1"))[-1].cursor
    async with read("s1", after=cursor, follow=True) as events:
        waiting = asyncio.ensure_future(anext(events))
        await write(replica, ["b"])
        assert (await soon(waiting)).data == "b"


# -- ends --------------------------------------------------------------------------------------------------------


@pytest.mark.scenario(78)
async def test_an_error_before_any_client_is_what_late_clients_get(replica, replica_b):
    """On the same replica and on another; the job is still there."""
    await replica.store.create_job("s1", "alice")
    await replica.transport.emit_error("s1", "no such model")
    for one in (replica, replica_b):
        (end,) = await read_all(one.manager.subscribe, "s1")
        assert (end.type, end.data, end.index) == ("error", "no such model", 0)
        assert (await one.store.get_job("s1")).error == "no such model"


@pytest.mark.scenario(91)
async def test_a_reader_of_a_job_that_expires_is_told(backend):
    """A run that hangs is interrupted, its readers end with EXPIRED, nothing of it stays."""
    config = backend.config(retention={"running": 1.5})
    a, b = await backend.replica(config), await backend.replica(config)

    async def hang(run) -> None:
        await run.emit("x")
        await asyncio.Event().wait()

    await a.manager.spawn("s1", hang, user_id="alice")
    events = await read_all(b.manager.subscribe, "s1")
    assert (events[-1].type, events[-1].end_reason) == ("error", EndReason.EXPIRED)
    await eventually(lambda: _ended_as(b, EndReason.EXPIRED))  # the log decides, the record follows
    assert await soon(a.manager.drain(10)) == 0


async def _ended_as(replica, reason):
    job = await replica.store.get_job("s1")
    return job.status.is_terminal and job.end_reason == reason
