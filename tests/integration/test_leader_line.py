"""Reads at a leader: so many at a time, and none is late because others were asked for before it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from desk_kit import Desk, away, leave_the_line, mapped
from jetstream_kit import Space, config, server, space
from nats.aio.msg import Msg
from waiting import eventually, known, soon, take

import natsjobs
from natsjobs.engine.ports import Message
from natsjobs.errors import UnavailableError

AT_ONCE = 32
"""Reads of one stream that are under way at most."""
MANY = 400
REQUEST = 1.0


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Space]:
    """A log of some messages, on a server whose leader reads go by way of ``asked.*``."""
    with server(tmp_path, mapped("STREAM.MSG.GET")) as running:
        async with space(running.url, config(request=REQUEST)) as made:
            for number in range(1, MANY + 1):
                await made.append(str(number).encode())
            yield made


@pytest.fixture
async def desk(here: Space) -> AsyncIterator[Desk]:
    """In the place of the leader."""
    made = Desk(here, "STREAM.MSG.GET")
    subscription = await here.nc.subscribe("asked.*", cb=made.hear)
    await known(here.nc)
    yield made
    await subscription.unsubscribe()
    made.leave()


def reads(here: Space, count: int = MANY) -> list[asyncio.Task[Message | None]]:
    """Somebody at each of ``count`` places of the log."""
    return [asyncio.create_task(here.link.events.next(here.log, 1 + n)) for n in range(count)]


def slow(desk: Desk, pause: float) -> None:
    """From now on the leader takes so long for each answer."""
    turn = asyncio.Lock()

    async def slowly(msg: Msg) -> None:
        async with turn:
            await asyncio.sleep(pause)  # its pace
            await desk.pass_on(msg)

    desk.then = slowly


async def test_no_read_is_late_because_many_were_asked_for_at_once(here: Space, desk: Desk) -> None:
    """Whoever stands in line is not late: the last is answered three times as late as a request may be."""
    slow(desk, 3 * REQUEST / MANY)
    found = await soon(asyncio.gather(*reads(here)))
    assert [message.seq for message in found] == list(range(1, MANY + 1))


async def test_many_readers_attach_to_a_slow_leader(here: Space, desk: Desk) -> None:
    """All at once, each with several questions, more than it answers in the time of all their attempts."""
    desk.then = desk.pass_on
    async with AsyncExitStack() as stack:
        jobs = await stack.enter_async_context(natsjobs.connect(nc=here.nc, config=here.config))
        names = [f"s{number}" for number in range(MANY)]
        for name in names:
            await (await stack.enter_async_context(jobs.start(name, user_id="u"))).emit(name)
        viewer = await stack.enter_async_context(natsjobs.connect(nc=here.nc, config=here.config))
        slow(desk, 6 * REQUEST / (2 * MANY))
        async with asyncio.timeout(60):
            readers = await asyncio.gather(*(stack.enter_async_context(viewer.subscribe(name)) for name in names))
            for name, reader in zip(names, readers, strict=True):
                assert [event.data for event in await take(reader, 1)] == [name]
        desk.then = desk.pass_on


async def test_so_many_reads_are_under_way_at_a_time_each_in_its_turn(here: Space, desk: Desk) -> None:
    """Thousands that wait at the server would hold up everything else there."""
    asking = reads(here)
    for answered in range(5):
        await eventually(lambda answered=answered: len(desk.asked) >= AT_ONCE + answered)
        assert await desk.all_here() == list(range(1, AT_ONCE + answered + 1))
        await desk.pass_on(desk.asked[answered])
        found = await soon(asking[answered])
        assert found is not None
        assert found.seq == answered + 1
    desk.then = desk.pass_on
    for msg in desk.asked[5:]:
        await desk.pass_on(msg)
    await soon(asyncio.gather(*asking))


async def test_a_leader_that_answers_nobody_keeps_nobody_in_the_line(here: Space, desk: Desk) -> None:
    """Each is told after the time of a request, or of two if he was sent then; not after that of all before him."""
    found = await soon(asyncio.gather(*reads(here, 10 * AT_ONCE), return_exceptions=True))
    assert {type(one) for one in found} == {UnavailableError}
    sent = set(await desk.all_here())  # those who had a place at first, and those who got it from them at the end
    assert AT_ONCE <= len(sent) <= 2 * AT_ONCE


async def test_whoever_is_cancelled_takes_no_place_in_the_line(here: Space, desk: Desk) -> None:
    """Neither who waits for his turn nor who waits for the answer; and the turn goes to the next."""
    await leave_the_line(desk, lambda: reads(here), AT_ONCE, MANY)


async def test_nobody_stands_in_line_for_a_connection_that_is_away(tmp_path: Path) -> None:
    """They wait for it together: with some at a time the last would hear of an outage minutes later."""
    async with away(tmp_path, lambda here: reads(here, 20 * AT_ONCE)) as here:
        assert await soon(here.link.events.next(here.log, 1)) is not None
