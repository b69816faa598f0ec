"""Readers of one log on one replica: they share what is read, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from making import rest, write
from waiting import check_whole, eventually, soon, take, values

from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub


class Pages:
    """Counts the pages that are read."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, measure, value, labels):
        """As an exporter."""
        del labels
        if measure is measures.PAGES:
            self.count += int(value)


@pytest.fixture
def pages():
    """Pages read while the test runs."""
    counter = Pages()
    detach = hub.attach(counter)
    yield counter
    detach()


class Gate:
    """Holds up pages on their way to a replica, and counts them."""

    def __init__(self, replica, monkeypatch) -> None:
        self._stream = replica.transport.replica.context.link.events
        self._page = self._stream.page
        self.asked = 0
        self.open = asyncio.Event()
        monkeypatch.setattr(self._stream, "page", self._held)

    async def _held(self, *args, **options):
        self.asked += 1
        await self.open.wait()
        return await self._page(*args, **options)


async def test_readers_at_one_place_of_a_log_read_it_once(replica, replica_b, pages):
    """Twenty at the start of a log that nobody here has heard: not one page each."""
    await write(replica, list(range(300)))
    async with contextlib.AsyncExitStack() as stack:
        readers = await asyncio.gather(
            *(stack.enter_async_context(replica_b.manager.subscribe("s1")) for _ in range(20))
        )
        for found in await soon(asyncio.gather(*(rest(reader) for reader in readers))):
            check_whole(found, list(range(300)))
    assert pages.count < 6


async def test_what_one_reader_does_to_an_event_no_other_sees(replica, replica_b):
    """From the same page, and from the same live message."""
    generation = await write(replica, [{"n": 0}], end=False)
    async with replica_b.manager.subscribe("s1") as one, replica_b.manager.subscribe("s1") as other:
        for number in range(2):
            (mine,), (theirs,) = await take(one, 1), await take(other, 1)
            mine.data["n"] = "changed"
            assert mine.data == {"n": "changed"}
            assert theirs.data == {"n": number}
            await replica.transport.emit_chunk("s1", {"n": number + 1}, generation=generation)


async def test_a_reader_that_is_cancelled_takes_nothing_from_those_who_share_its_page(replica, replica_b, monkeypatch):
    """The page was asked for once, on behalf of the one that is gone."""
    await write(replica, list(range(50)))
    gate = Gate(replica_b, monkeypatch)

    async def read():
        async with replica_b.manager.subscribe("s1") as events:
            return await rest(events)

    first = asyncio.create_task(read())
    await eventually(lambda: gate.asked == 1)
    second = asyncio.create_task(read())
    await eventually(lambda: replica_b.transport.replica.context.readers == 2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.open.set()
    check_whole(await soon(second), list(range(50)))
    assert gate.asked == 1


async def test_a_reader_that_is_left_while_its_page_is_read_leaves_nothing(replica, replica_b, monkeypatch):
    """The last reader ends the request; nobody waits for its answer."""
    await write(replica, list(range(50)))
    gate = Gate(replica_b, monkeypatch)
    block = replica_b.manager.subscribe("s1")
    entering = asyncio.create_task(block.__aenter__())
    await eventually(lambda: gate.asked == 1)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    await eventually(lambda: not [task for task in asyncio.all_tasks() if "page" in task.get_name()])


async def test_the_next_page_comes_while_one_is_given_out_and_no_further(replica, replica_b, monkeypatch):
    """Asked for in the middle of a page, one at a time: a reader that stands still holds two at most."""
    generation = await write(replica, [], end=False)
    for number in range(200):  # a message each, so that it is several pages
        await replica.transport.emit_chunk("s1", number, generation=generation)
        await replica.transport.flush("s1", generation=generation)
    gate = Gate(replica_b, monkeypatch)
    gate.open.set()
    async with replica_b.manager.subscribe("s1") as events:
        found = await take(events, 20)
        assert gate.asked == 1
        found += await take(events, 20)
        await eventually(lambda: gate.asked == 2)
        found += await take(events, 10)
        assert gate.asked == 2
        found += await take(events, 150)
    assert values(found) == list(range(200))


async def test_a_reader_that_always_has_something_lets_others_run(replica, replica_b):
    """Thousands of events that are all here: not a thousand of them in one go."""
    await write(replica, list(range(5000)))
    turns = 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    most = run = seen = 0
    async with replica_b.manager.subscribe("s1") as events:
        async for _ in events:
            run = run + 1 if turns == seen else 1
            seen, most = turns, max(most, run)
    task.cancel()
    assert most < 1000


async def test_readers_of_a_live_job_may_each_change_what_they_got(replica, replica_b):
    """The events are made once for all who wait for them, and each gets its own: also the first, and one that lags."""
    generation = await write(replica, [], end=False)
    async with contextlib.AsyncExitStack() as stack:
        *live, lagging = [await stack.enter_async_context(replica_b.manager.subscribe("s1")) for _ in range(4)]
        waiting = [asyncio.ensure_future(take(reader, 6)) for reader in live]
        for number in range(6):
            await replica.transport.emit_chunk("s1", {"n": number, "who": "nobody"}, generation=generation)
            if number % 2:
                await replica.transport.flush("s1", generation=generation)
        taken = await soon(asyncio.gather(*waiting))
        for name, events in enumerate(taken):
            for event in events:
                assert event.data == {"n": event.index, "who": "nobody"}
                event.data["who"] = name
        taken.append(await soon(take(lagging, 6)))
        assert [[event.data["who"] for event in events] for events in taken] == [
            *([name] * 6 for name in range(3)),
            ["nobody"] * 6,
        ]
        assert len({tuple(event.cursor for event in events) for events in taken}) == 1
        assert taken[0] == taken[1] == taken[3]


async def test_a_reader_that_leaves_wakes_no_other(replica, replica_b):
    """A thousand that leave at once would otherwise wake each other half a million times."""
    await write(replica, [], end=False)
    async with contextlib.AsyncExitStack() as stack:
        blocks = [replica_b.transport.read("s1") for _ in range(3)]
        readers = [await stack.enter_async_context(block) for block in blocks]
        waiting = [asyncio.create_task(anext(reader)) for reader in readers]
        await eventually(lambda: all(reader._bell.callback is not None for reader in readers))
        before = [reader._bell.callback for reader in readers]
        await blocks[0].__aexit__(None, None, None)
        with pytest.raises(Exception, match="closed"):
            await waiting[0]
        assert [reader._bell.callback for reader in readers] == [None, *before[1:]]
        for task in waiting[1:]:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_what_a_page_brings_is_given_also_when_nothing_of_it_was_heard(replica, replica_b, monkeypatch):
    """A page can be ahead of what this replica knows: more than one turn's worth of it is given without a look."""
    generation = await write(replica, [], end=False)
    for number in range(70):  # a message each: more than a page
        await replica.transport.emit_chunk("s1", number, generation=generation)
        await replica.transport.flush("s1", generation=generation)
    async with replica_b.manager.subscribe("s1") as events:
        await replica_b.lose_live_messages()
        never = asyncio.Event()

        async def look(*_):
            await never.wait()

        monkeypatch.setattr(replica_b.transport.replica.context.link.events, "next", look)
        for number in range(70, 900):
            await replica.transport.emit_chunk("s1", number, generation=generation)
        await replica.transport.flush("s1", generation=generation)
        assert values(await take(events, 900)) == list(range(900))
