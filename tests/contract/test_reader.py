"""Readers: from any cursor, at any moment, on any replica: every event once, in order, one end, or a typed answer."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest
from waiting import Calls, Heard, check_whole, eventually, read_all, soon, take, values

from natsjobs import (
    EndReason,
    GenerationReplacedError,
    HistoryLostError,
    InvalidCursorError,
    JobNotFoundError,
    NotOpenError,
    ResumeError,
    to_dict,
)


async def write(replica, events, stream_id="s1", *, end=True):
    """A job with these events; ended with "end" unless told otherwise. Its generation."""
    job = await replica.store.create_job(stream_id, "alice")
    for event in events:
        await replica.transport.emit_chunk(stream_id, event, generation=job.generation)
    await replica.transport.flush(stream_id, generation=job.generation)
    if end:
        await replica.transport.emit_done(stream_id, "end", generation=job.generation)
    return job.generation


@pytest.fixture(params=["subscribe", "read"])
def read(request, replica_b):
    """Both doors to a reader, on replica B."""
    return replica_b.manager.subscribe if request.param == "subscribe" else replica_b.transport.read


# -- the whole --------------------------------------------------------------------------------------------------


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
        check_whole(await soon(_rest(events)), list(range(12)))


async def _rest(events):
    return [event async for event in events]


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
    viewer = await backend.replica(backend.config(limits={"reader_events": 8}))
    sent = [[n, "x" * 100] for n in range(1000)]
    await replica.store.create_job("s1", "alice")
    async with viewer.manager.subscribe("s1") as slow:
        quick = asyncio.ensure_future(read_all(viewer.manager.subscribe, "s1"))
        for value in sent:
            await replica.transport.emit_chunk("s1", value)
        await replica.transport.emit_done("s1", None)
        check_whole(await quick, sent)
        check_whole(await soon(_rest(slow)), sent)


# -- waiting and following --------------------------------------------------------------------------------------


@pytest.mark.scenario(64)
async def test_wait_waits_for_a_job_that_is_not_there_yet(replica, read):
    """Entered when it exists; all of its events."""
    reading = asyncio.ensure_future(read_all(read, "s1", wait=20.0))
    with pytest.raises(JobNotFoundError):
        await read_all(read, "s1", wait=0.05)
    assert not reading.done()
    await write(replica, ["a", "b"])
    check_whole(await reading, ["a", "b"])


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


# -- typed answers ----------------------------------------------------------------------------------------------


async def test_an_unknown_id_is_an_error_on_entering(read):
    """Not on calling, and at once without ``wait``."""
    reader = read("nobody")
    with pytest.raises(JobNotFoundError) as missing:
        async with reader:
            pytest.fail("entered")
    assert missing.value.stream_id == "nobody"


@pytest.mark.parametrize(
    "garbage",
    ["", "x", "0", "-1", "....", "a.b.c", "{}", "null", "\x00", "ü", "1" * 10_000, " ", "=41", "%00", "☃" * 50],
)
async def test_garbage_is_no_cursor(replica, read, garbage):
    """InvalidCursorError, which is a ValueError, on entering."""
    await write(replica, ["a"])
    with pytest.raises(InvalidCursorError) as refused:
        await read_all(read, "s1", after=garbage)
    assert isinstance(refused.value, ValueError)


async def test_a_cursor_that_was_changed_gives_a_typed_answer_or_the_truth(replica, read):
    """One character changed or cut: an error of resuming, or exactly the events after an index."""
    await write(replica, list(range(20)))
    whole = await read_all(read, "s1")
    cursor = whole[10].cursor
    changed = {cursor[:-1], cursor + "0", cursor[1:], cursor.upper(), cursor[::-1]} - {cursor}
    changed |= {cursor[:n] + ("1" if cursor[n] != "1" else "2") + cursor[n + 1 :] for n in range(len(cursor))}
    for one in sorted(changed):
        try:
            got = await read_all(read, "s1", after=one)
        except ResumeError:
            continue
        assert got == whole[len(whole) - len(got) :]


async def test_the_cursor_of_a_replaced_generation_names_the_newest(replica, replica_b, read):
    """Also the terminal cursor of the old one."""
    await write(replica, ["a"])
    cursors = [event.cursor for event in await read_all(read, "s1")]
    new = await write(replica_b, ["b"])
    for cursor in cursors:
        with pytest.raises(GenerationReplacedError) as replaced:
            await read_all(read, "s1", after=cursor)
        assert (replaced.value.stream_id, replaced.value.generation) == ("s1", new)


async def test_naming_another_generation_names_the_newest(replica, read):
    """An old one, or one that never was."""
    old = await write(replica, ["a"])
    new = await write(replica, ["b"])
    with pytest.raises(GenerationReplacedError) as replaced:
        await read_all(read, "s1", generation=old)
    assert replaced.value.generation == new
    with pytest.raises(ResumeError):
        await read_all(read, "s1", generation="never")


async def test_a_cursor_of_another_job_is_a_typed_error(replica, read):
    """Never the events of this one."""
    await write(replica, ["a"], "s1")
    await write(replica, ["b"], "s2")
    cursor = (await read_all(read, "s2"))[0].cursor
    with pytest.raises(ResumeError):
        await read_all(read, "s1", after=cursor)


async def test_a_cursor_of_a_deleted_job_has_lost_its_history(replica, read):
    """Without the cursor the id is simply unknown."""
    await write(replica, ["a", "b"])
    cursor = (await read_all(read, "s1"))[0].cursor
    await replica.store.delete_job("s1")
    with pytest.raises(HistoryLostError) as lost:
        await read_all(read, "s1", after=cursor)
    assert lost.value.stream_id == "s1"
    with pytest.raises(JobNotFoundError):
        await read_all(read, "s1")


async def test_four_distinct_answers(backend):
    """After completion, after expiry, with garbage, with the cursor of the previous generation."""
    config = backend.config(retention={"finished": 1.0})
    a, b = await backend.replica(config), await backend.replica(config)
    read = b.manager.subscribe
    await a.store.create_job("s1", "alice")
    await a.store.append_chunk("s1", "a")
    async with read("s1") as events:
        (first,) = await take(events, 1)
        await a.store.update_job("s1", status="complete")
        (end,) = await soon(_rest(events))

    async def gone() -> bool:
        await a.store.cleanup()
        return not await a.store.has_job("s1")

    await eventually(gone, within=30)
    for cursor in (first.cursor, end.cursor):
        with pytest.raises(HistoryLostError):
            await read_all(read, "s1", after=cursor)
    with pytest.raises(JobNotFoundError):
        await read_all(read, "s1")
    with pytest.raises(InvalidCursorError):
        await read_all(read, "s1", after="garbage")
    await a.store.create_job("s1", "alice")
    with pytest.raises(GenerationReplacedError):
        await read_all(read, "s1", after=first.cursor)


# -- ends -------------------------------------------------------------------------------------------------------


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


# -- manners ----------------------------------------------------------------------------------------------------


async def test_a_reader_knows_its_job_and_its_cursor(replica, read):
    """The job as on entering; the cursor of the last event given, None before the first."""
    await write(replica, ["a", "b"])
    async with read("s1") as events:
        assert events.job == await replica.store.get_job("s1")
        assert events.cursor is None
        first = await anext(events)
        assert events.cursor == first.cursor
    async with read("s1", after=first.cursor) as events:
        assert events.cursor is None
        second = await anext(events)
        assert (second.data, events.cursor) == ("b", second.cursor)


async def test_a_second_loop_goes_on_where_the_first_stopped(replica, read):
    """One iterator; after its end every loop is over at once."""
    await write(replica, [0, 1, 2, 3])
    got = []
    async with read("s1") as events:
        async for event in events:
            got.append(event.data)
            if event.data == 1:
                break
        got += [event.data async for event in events]
        async for _ in events:
            pytest.fail("gave something after the end")
    assert got == [0, 1, 2, 3, "end"]


async def test_a_cancelled_wait_loses_nothing(replica, read):
    """Time-outs around ``__anext__`` again and again, as a gateway does for its heartbeats."""
    await replica.store.create_job("s1", "alice")
    got: list = []
    async with read("s1") as events:

        async def produce() -> None:
            for n in range(40):
                await replica.transport.emit_chunk("s1", n)
                await replica.transport.flush("s1")
                await asyncio.sleep(0.003)
            await replica.transport.emit_done("s1", None)

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(produce())
            timeouts = 0
            while not got or not got[-1].is_terminal:
                try:
                    async with asyncio.timeout(0.002):
                        got.append(await anext(events))
                except TimeoutError:
                    timeouts += 1
    assert timeouts
    check_whole(got, list(range(40)))


async def test_a_reader_may_be_used_in_different_tasks(replica, read):
    """Entered in one, iterated in two more, left in another."""
    await write(replica, list(range(6)))
    reader = read("s1")
    events = await asyncio.ensure_future(reader.__aenter__())
    first = await asyncio.ensure_future(take(events, 3))
    rest = await asyncio.ensure_future(_rest(events))
    await asyncio.ensure_future(reader.__aexit__(None, None, None))
    check_whole(first + rest, list(range(6)))


async def test_a_reader_that_was_left_says_so(replica, read):
    """NotOpenError, not silence; also for a wait that was going on elsewhere."""
    await write(replica, ["a"], end=False)
    async with read("s1") as events:
        await take(events, 1)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
    with pytest.raises(NotOpenError):
        await soon(waiting)
    with pytest.raises(NotOpenError):
        await soon(anext(events))


async def test_a_reader_of_a_closed_manager_says_so(backend, replica):
    """Leaving the manager closes its readers."""
    viewer = await backend.replica()
    await write(replica, ["a"], end=False)
    async with viewer.manager.subscribe("s1") as events:
        await take(events, 1)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        await viewer.close()
        with pytest.raises(NotOpenError):
            await soon(waiting)


@pytest.mark.scenario(69)
async def test_leaving_early_releases_at_once_and_touches_nobody_else(replica, replica_b, read):
    """The count goes down, the interests go away, another reader and a subscriber go on."""
    await write(replica, list(range(100)), end=False)
    idle = sorted(replica_b.interests())
    heard = Heard()
    async with replica_b.manager.subscribe("s1") as other:
        await heard.attach(replica_b.transport, "s1")
        before = sorted(replica_b.interests())
        async with read("s1") as events:
            await take(events, 5)
            assert replica_b.transport.get_subscriber_count("s1") == 3
        assert replica_b.transport.get_subscriber_count("s1") == 2
        assert sorted(replica_b.interests()) == before
        await replica.transport.emit_chunk("s1", 100)
        await replica.transport.emit_done("s1", None)
        check_whole(await soon(_rest(other)), list(range(101)))
        await heard.until(2)
    await replica_b.transport.cleanup("s1")
    await eventually(lambda: sorted(replica_b.interests()) == idle)


async def test_a_storm_of_readers_leaves_nothing_behind(replica, replica_b):
    """Two hundred come and go, some at the end, some in the middle, some on errors: the interests are as before."""
    await write(replica, list(range(20)), end=False)
    before = sorted(replica_b.interests())

    async def come_and_go(n: int) -> None:
        if n % 4 == 3:
            with pytest.raises(ResumeError):
                await read_all(replica_b.manager.subscribe, "s1", after="garbage")
            return
        async with replica_b.manager.subscribe("s1") as events:
            await take(events, n % 20)

    await soon(asyncio.gather(*(come_and_go(n) for n in range(200))), within=60)
    assert replica_b.transport.get_subscriber_count("s1") == 0
    await eventually(lambda: sorted(replica_b.interests()) == before)


@pytest.mark.scenario(47, 48)
async def test_a_lost_connection_is_no_gap_for_its_readers(replica, replica_b):
    """The viewers' connection drops again and again while events flow: every event once, in order."""
    sent = list(range(600))
    await replica.store.create_job("s1", "alice")
    heard: list = []
    async with replica_b.manager.subscribe("s1") as events:

        async def produce() -> None:
            for n in sent:
                await replica.transport.emit_chunk("s1", n)
                if n % 10 == 0:
                    await replica.transport.flush("s1")
            await replica.transport.emit_done("s1", None)

        async with asyncio.timeout(90), asyncio.TaskGroup() as group:
            group.create_task(produce())
            async for event in events:
                heard.append(event)
                if event.index in {50, 200, 201, 450}:
                    await replica_b.drop_connection()
    check_whole(heard, sent)


@pytest.mark.scenario(47)
async def test_the_last_record_lost_on_the_live_path_is_found(replica, replica_b):
    """The connection drops just before the end, so its live copy may never arrive: the reader still ends."""
    await write(replica, ["a"], end=False)
    async with replica_b.manager.subscribe("s1") as events:
        await take(events, 1)
        await replica_b.drop_connection()
        await replica.transport.emit_done("s1", "end")
        (end,) = await soon(_rest(events), within=30)
    assert end.data == "end"


@pytest.mark.scenario(47)
async def test_whatever_is_lost_on_the_live_path_is_read_from_the_log(replica, replica_b):
    """No live copy arrives any more and nobody says so: events and the end come all the same."""
    await write(replica, ["a"], end=False)
    heard = Heard()
    await heard.attach(replica_b.transport, "s1")
    ended = Calls()
    await replica_b.transport.on_end("s1", ended)
    async with replica_b.manager.subscribe("s1") as events:
        await take(events, 1)
        await replica_b.lose_live_messages()
        for n in range(5):
            await replica.store.append_chunk("s1", n)
        assert values(await take(events, 5, within=30)) == list(range(5))
        await replica.transport.emit_done("s1", "end")
        (end,) = await soon(_rest(events), within=30)
    assert end.data == "end"
    await heard.until(6)
    assert heard.all == [*(("chunk", n) for n in range(5)), ("done", "end")]
    await ended.until(1)
