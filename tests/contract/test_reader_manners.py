"""How readers behave: cursors, loops, cancelled waits, tasks, leaving, and connections that break."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from making import rest, write
from waiting import Calls, Heard, check_whole, eventually, read_all, soon, take, values

from natsjobs import (
    NotOpenError,
    ResumeError,
)


@pytest.fixture(params=["subscribe", "read"])
def read(request, replica_b):
    """Both doors to a reader, on replica B."""
    return replica_b.manager.subscribe if request.param == "subscribe" else replica_b.transport.read


# -- manners -----------------------------------------------------------------------------------------------------


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
    last = await asyncio.ensure_future(rest(events))
    await asyncio.ensure_future(reader.__aexit__(None, None, None))
    check_whole(first + last, list(range(6)))


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


async def test_what_was_not_given_when_a_reader_was_left_is_not_given(replica, read):
    """Events that were here already, too; the cursor is that of the one given last, so nothing is missed after it."""
    await write(replica, list(range(10)))
    async with read("s1") as events:
        for n in range(4):
            event = await anext(events)
            assert (event.data, events.cursor) == (n, event.cursor)
    assert events.cursor == event.cursor
    with pytest.raises(NotOpenError):
        await soon(anext(events))
    async with read("s1", after=events.cursor) as events:
        check_whole(await rest(events), list(range(10)), first=4)


async def test_waits_that_were_cancelled_leave_nothing_behind(replica, replica_b, read):
    """A heartbeat every second on a job that is quiet for hours: nobody keeps a note for each."""
    await write(replica, ["a"], end=False)
    async with read("s1") as events:
        await take(events, 1)
        for _ in range(20):
            waiting = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        (tail,) = replica_b.transport._tails._tails.values()
        assert [bell.callback for bell in tail.bells._bells] == [None]
    assert not tail.bells._bells


async def test_a_reader_that_went_on_to_the_next_turn_is_not_woken_for_the_one_before(replica, replica_b):
    """Another reader may hold that log for hours; it keeps nothing of those who have left it."""
    await write(replica, ["a"])
    async with replica_b.manager.subscribe("s1") as stays, replica_b.manager.subscribe("s1", follow=True) as follows:
        await take(stays, 1)
        (tail,) = replica_b.transport._tails._tails.values()
        assert len(tail.bells._bells) == 2
        assert [event.data for event in await take(follows, 2)] == ["a", "end"]
        await write(replica, ["b"])
        assert values(await take(follows, 1)) == ["b"]
        assert len(tail.bells._bells) == 1
        assert [event.data for event in await take(stays, 1)] == ["end"]


async def test_a_reader_is_used_by_one_task_at_a_time(replica, replica_b):
    """The second one is told; the first one waits on and gets what comes."""
    generation = await write(replica, ["a"], end=False)
    async with replica_b.manager.subscribe("s1") as events:
        await take(events, 1)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one task at a time"):
            await anext(events)
        await replica.transport.emit_chunk("s1", "b", generation=generation)
        assert (await soon(waiting)).data == "b"


async def test_two_tasks_at_one_reader_of_the_transport_mix_up_nothing(replica, replica_b):
    """They should not, and nobody stops them there: between them they get every event once, in order."""
    await write(replica, [], end=False)
    async with replica_b.transport.read("s1") as events:
        (tail,) = replica_b.transport._tails._tails.values()
        tail._held, tail._doubtful = [], True  # as in the look after a reconnect: what comes meanwhile is told at once
        waiting = [asyncio.ensure_future(anext(events)) for _ in range(2)]
        for message in ((0, 1, 2), (3, 4, 5)):
            for value in message:
                await replica.transport.emit_chunk("s1", value)
            await replica.transport.flush("s1")
        await eventually(lambda: len(tail._held) == 2)
        tail._release()
        got = [await soon(one) for one in waiting]
        assert sorted(values(got)) == [0, 1]
        assert values(await take(events, 4)) == [2, 3, 4, 5]


async def test_a_reader_of_a_closed_manager_says_so(backend, replica):
    """Leaving the manager closes its readers."""
    viewer = await backend.replica(role="gateway")
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
        check_whole(await soon(rest(other)), list(range(101)))
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
        (end,) = await soon(rest(events), within=30)
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
        (end,) = await soon(rest(events), within=30)
    assert end.data == "end"
    await heard.until(6)
    assert heard.all == [*(("chunk", n) for n in range(5)), ("done", "end")]
    await ended.until(1)


async def test_short_time_outs_do_not_make_old_answers_a_lost_history(backend):
    """A leader that was deposed shows an old log for a while: how often the reader is asked proves nothing."""
    a = await backend.replica(backend.config(limits={"reader_events": 2}))
    await a.store.create_job("s1", "alice")
    async with a.transport.read("s1") as events:
        for n in range(10):
            await a.store.append_chunk("s1", n)  # the window holds the last ones only
        stream = a.store.replica.context.link.events
        until = time.monotonic() + 0.6
        page, following = stream.page, stream.next

        async def old_page(*args, **options):
            return await page(*args, **options) if time.monotonic() > until else []

        async def old_next(*args, **options):
            return await following(*args, **options) if time.monotonic() > until else None

        stream.page, stream.next = old_page, old_next
        try:
            got = []
            while not got:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.01):
                        got.append(await anext(events))
        finally:
            stream.page, stream.next = page, following
        assert got[0].index == 0
