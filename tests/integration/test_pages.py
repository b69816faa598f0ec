"""Pages from replicas: a few under way at a time, and what the silence of one means while others are answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from desk_kit import Desk, away, leave_the_line, mapped
from jetstream_kit import Space, config, server, space
from nats.aio.msg import Msg
from timeline_kit import spying
from waiting import eventually, known, soon

from natsjobs.engine.ports import Message

AT_ONCE = 4
"""Pages of one stream that are under way at most."""
MANY = 12


@pytest.fixture
def limits() -> float:
    """``timing.request``: a page waits a quarter of it for the next message, but a second at least."""
    return 4.0


@pytest.fixture
async def here(tmp_path: Path, limits: float) -> AsyncIterator[Space]:
    """A log of as many messages as pages are asked for, on a server whose pages go by way of ``asked.*``."""
    with server(tmp_path, mapped("DIRECT.GET")) as running:
        async with space(running.url, config(request=limits)) as made:
            for number in range(1, MANY + 1):
                await made.append(str(number).encode())
            yield made


@pytest.fixture
async def desk(here: Space) -> AsyncIterator[Desk]:
    """In the place of the server."""
    made = Desk(here, "DIRECT.GET")
    subscription = await here.nc.subscribe("asked.*", cb=made.hear)
    await known(here.nc)
    yield made
    await subscription.unsubscribe()
    made.leave()


def pages(here: Space, count: int = MANY) -> list[asyncio.Task[list[Message]]]:
    """Readers at ``count`` places of the log, each of which wants one message."""
    return [asyncio.create_task(here.link.events.page(here.log, 1 + n, batch=1)) for n in range(count)]


async def test_a_few_pages_are_under_way_at_a_time_each_in_its_turn(here: Space, desk: Desk) -> None:
    """Hundreds that wait at the server would hold up everything else there, and count as silent."""
    asking = pages(here)
    for answered in range(MANY):
        under_way = min(AT_ONCE + answered, MANY)
        await eventually(lambda under_way=under_way: len(desk.asked) >= under_way)
        assert await desk.all_here() == list(range(1, under_way + 1))
        await desk.pass_on(desk.asked[answered])
        assert [message.seq for message in await soon(asking[answered])] == [answered + 1]


async def test_the_time_of_a_page_begins_when_it_is_sent(here: Space, desk: Desk) -> None:
    """Whoever stands in line is not late, however long the line is; the leader is not asked in his place."""

    async def slowly(msg: Msg) -> None:
        await asyncio.sleep(0.6)  # the pace of the server: three turns of it are more than a page may be silent
        await desk.pass_on(msg)

    desk.then = slowly
    async with spying(here.nc, "$JS.API.STREAM.MSG.GET.>") as at_leader:
        found = await soon(asyncio.gather(*pages(here)))
        await known(here.nc)
    assert [message.seq for page in found for message in page] == list(range(1, MANY + 1))
    assert (await desk.all_here(), at_leader) == (list(range(1, MANY + 1)), [])


async def test_one_silent_page_says_nothing_while_others_are_answered(here: Space, desk: Desk) -> None:
    """Only that one is read at the leader; if all went there, it would be asked message by message by everybody."""

    async def but_the_first(msg: Msg) -> None:
        if msg is not desk.asked[0]:
            await desk.pass_on(msg)

    desk.then = but_the_first
    async with spying(here.nc, "$JS.API.STREAM.MSG.GET.>") as at_leader:
        silent, *_ = pages(here, 1)
        await eventually(lambda: desk.asked)
        while not silent.done():
            assert [message.seq for message in await soon(pages(here, 2)[1])] == [2]
            await asyncio.sleep(0.02)
        assert [message.seq for message in await silent] == [1]
        before = len(desk.asked)
        assert [message.seq for message in await soon(here.link.events.page(here.log, 3, batch=1))] == [3]
        assert len(desk.asked) == before + 1
        await known(here.nc)
    assert [json.loads(msg.data)["seq"] for msg in at_leader] == [1]


async def test_replicas_that_are_silent_again_and_again_are_left_alone(here: Space, desk: Desk) -> None:
    """B3: of three nodes one was cut off, and takes its share of the questions; nobody waits for it for ever."""

    async def but_some(msg: Msg) -> None:
        if json.loads(msg.data)["seq"] not in {3, 6, 9}:  # behind each of them another is answered
            await desk.pass_on(msg)

    desk.then = but_some
    found = await soon(asyncio.gather(*pages(here)))
    assert [message.seq for page in found for message in page] == list(range(1, MANY + 1))
    before = len(desk.asked)
    assert [message.seq for message in await soon(here.link.events.page(here.log, 3, batch=1))] == [3]
    assert len(desk.asked) == before


@pytest.mark.parametrize("limits", [8.0])
async def test_a_page_whose_messages_keep_arriving_is_not_given_up(here: Space, desk: Desk) -> None:
    """It may take longer in all than one that is silent may be."""

    async def trickle(msg: Msg) -> None:
        for seq in range(1, 6):
            await asyncio.sleep(0.5)  # the pace of a slow wire: all of it is more than a page may be silent
            await desk.send(msg, seq)
        await desk.pass_on(msg, seq=MANY + 1)  # which ends it

    desk.then = trickle
    async with spying(here.nc, "$JS.API.STREAM.MSG.GET.>") as at_leader:
        page = await soon(here.link.events.page(here.log, 1))
        await known(here.nc)
    assert ([message.seq for message in page], at_leader) == ([1, 2, 3, 4, 5], [])


async def test_whoever_is_cancelled_takes_no_place_in_the_line(here: Space, desk: Desk) -> None:
    """Neither who waits for his turn nor who waits for the answer; and the turn goes to the next."""
    asked, left = await leave_the_line(desk, lambda: pages(here), AT_ONCE, MANY)
    assert asked == left


async def test_nobody_stands_in_line_for_a_connection_that_is_away(tmp_path: Path) -> None:
    """They wait for it together: with a few at a time the last would hear of an outage minutes later."""
    async with away(tmp_path, lambda here: pages(here, 20 * AT_ONCE)) as here:
        assert len(await soon(here.link.events.page(here.log, 1))) == 1
