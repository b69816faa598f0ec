"""Pages that very many want at once, from one walk over a stream: whatever happens meanwhile, none has a hole.

The stream is a list here, so that much can happen in little time. That a server gives the same is tested with servers.
"""

from __future__ import annotations

import asyncio
import random
import sys
from bisect import bisect_left
from collections.abc import Callable

import pytest
from waiting import eventually, soon

from natsjobs.engine.ports import Message
from natsjobs.jetstream.pages import PageLine
from natsjobs.jetstream.walking import Query, Step
from natsjobs.tasks import Tasks

PLACES, CROWD, STEP, PAGE, REACH = 4, 16, 256, 64, 4096
ALL = ">"


class Stream:
    """Messages of many logs; with the line of one link, whose questions it answers."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.removed: set[int] = set()
        self.last = 0
        self.tasks = Tasks()
        self.line = PageLine(self.walk_on, self.tasks.spawn)
        self.steps: list[int] = []
        """Where the steps of walks began."""
        self.alone: list[int] = []
        """Where pages began that were asked for alone."""
        self.given = 0
        """Pages of walks."""
        self.under_way = 0
        self.answers: Callable[[Query], Step | None] = self.answer
        self.pass_on = asyncio.Event()
        """No step is answered before."""
        self.pass_on.set()
        self.pass_alone = asyncio.Event()
        """No page is answered that was asked for alone."""
        self.pass_alone.set()

    def add(self, log: str, size: int = 10, *, gap: int = 0) -> None:
        """One more message. ``gap``: so many before it are not there any more."""
        self.last += 1 + gap
        self.messages.append(Message(log, self.last, b"x" * size, 0.0))

    def remove(self, message: Message) -> None:
        """One less."""
        self.messages.remove(message)
        self.removed.add(message.seq)

    def found(self, query: Query, upto: float = float("inf")) -> list[Message]:
        """As a server answers that has so much."""
        page: list[Message] = []
        size, log = 0, query.next_by_subj
        start = bisect_left(self.messages, query.seq, key=lambda message: message.seq)
        for message in self.messages[start:]:
            if len(page) == query.batch or size >= query.max_bytes or message.seq > upto:
                break
            if log in {ALL, message.subject} or (log.endswith("*") and message.subject.startswith(log[:-1])):
                page.append(message)
                size += len(message.subject) + len(message.body)
        return page

    def answer(self, query: Query) -> Step:
        """Of a replica that has everything."""
        page = self.found(query)
        return Step(page, whole=not page or page[-1].seq == self.last)

    async def walk_on(self, query: Query) -> Step | None:
        """One step."""
        assert query.next_by_subj == ALL
        self.steps.append(query.seq)
        await self.pass_on.wait()
        await asyncio.sleep(0)
        return self.answers(query)

    async def page(self, log: str, seq: int = 1, batch: int = PAGE, max_bytes: int = 524_288) -> list[Message]:
        """A page, by way of the line."""
        query = Query(seq, batch, max_bytes, log)
        if (page := await self.line.enter(query)) is not None:
            self.given += 1
            return page
        self.under_way += 1
        self.alone.append(seq)
        assert self.under_way <= PLACES
        try:
            await self.pass_alone.wait()
            await asyncio.sleep(0)
            return self.found(query)
        finally:
            self.under_way -= 1
            self.line.leave()

    async def pages(self, logs: list[str], seq: int = 1) -> list[list[Message]]:
        """One of each of them, all at once."""
        return await soon(asyncio.gather(*(self.page(log, seq) for log in logs)))


def interleaved(count: int, each: int) -> tuple[Stream, list[str]]:
    """So many logs that lie between each other."""
    stream, logs = Stream(), [f"log.{number}" for number in range(count)]
    for _ in range(each):
        for log in logs:
            stream.add(log)
    return stream, logs


def whole(stream: Stream, log: str) -> list[Message]:
    """All of a log."""
    return [message for message in stream.messages if message.subject == log]


async def test_very_many_have_their_pages_by_one_walk() -> None:
    """The stream is read once, however many logs there are; only those who found a place have asked themselves."""
    stream, logs = interleaved(200, 50)
    assert await stream.pages(logs) == [whole(stream, log) for log in logs]
    assert (len(stream.alone), stream.steps) == (PLACES, [1 + STEP * step for step in range(40)])


async def test_a_few_ask_each_for_himself() -> None:
    """Nobody waits for a walk because some others want a page at the same time."""
    stream, logs = interleaved(PLACES + CROWD, 50)
    assert await stream.pages(logs) == [whole(stream, log) for log in logs]
    assert (len(stream.alone), stream.steps) == (len(logs), [])


async def test_what_is_not_one_log_is_asked_for_alone() -> None:
    """A walk cannot tell whose messages those would be."""
    stream, logs = interleaved(100, 5)
    assert len(set(map(len, await stream.pages([f"{log}*" for log in logs[10:]])))) == 1
    assert stream.steps == []


async def test_pages_are_as_long_as_they_may_be_and_longer_logs_go_on_in_the_same_walk() -> None:
    """By number and by bytes; the next page is read where this one ends, of what has already come if it has."""
    stream, logs = interleaved(100, 150)
    large = ["large"] * 2
    for log in large:
        for _ in range(5):
            stream.add(log, 200_000)

    async def read(log: str) -> list[int]:
        found, sizes, seq = list[Message](), list[int](), 1
        while page := await stream.page(log, seq):
            found += page
            seq = page[-1].seq + 1
            sizes.append(len(page))
        assert found == whole(stream, log)
        return sizes

    read_all = await soon(asyncio.gather(*(read(log) for log in logs + large)))
    assert read_all == [[64, 64, 22]] * 100 + [[3, 3, 3, 1]] * 2
    assert len(stream.steps) < 2 * 15_000 / STEP + 20


async def test_whoever_comes_meanwhile_joins_the_walk() -> None:
    """And has what came before him; but whoever finds a place free asks for himself, at once."""
    stream, logs = interleaved(60, 50)
    stream.pass_on.clear()
    asking = [asyncio.ensure_future(stream.page(log)) for log in logs[:50]]
    await eventually(lambda: stream.steps and stream.under_way == 0)
    for _ in range(4):
        stream.pass_on.set()
        await asyncio.sleep(0)
        stream.pass_on.clear()
        await asyncio.sleep(0)
    steps = len(stream.steps)
    assert not any(one.done() for one in asking[PLACES:])
    assert await soon(stream.page("log.59")) == whole(stream, "log.59")
    later = [asyncio.ensure_future(stream.page(log)) for log in logs[50:]]
    await asyncio.sleep(0)
    stream.pass_on.set()
    assert await soon(asyncio.gather(*asking, *later)) == [whole(stream, log) for log in logs]
    assert len(stream.alone) == 2 * PLACES + 1
    assert steps > 1
    assert stream.steps == [1 + STEP * step for step in range(12)]


async def test_very_many_at_places_of_one_log_are_no_more_work_than_as_many_of_their_own() -> None:
    """A message is looked at for those whose page it fills, not for each who waits: that held a loop for seconds."""
    stream, reads = Stream(), 400
    for _ in range(reads + PAGE):
        stream.add("log")
    calls = 0

    def count(_frame: object, event: str, _value: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        pages = await soon(asyncio.gather(*(stream.page("log", 1 + place) for place in range(reads))))
    finally:
        sys.setprofile(None)
    assert pages == [stream.messages[place : place + PAGE] for place in range(reads)]
    assert stream.given == reads - PLACES
    assert calls < 300 * reads


async def test_whoever_begins_far_ahead_does_not_wait_for_a_walk() -> None:
    """Nor does the walk go where only a few want something."""
    stream, logs = interleaved(60, 200)
    stream.pass_on.clear()
    walking = [asyncio.ensure_future(stream.page(log)) for log in logs]
    await eventually(lambda: stream.steps and stream.under_way == 0)
    far = [asyncio.ensure_future(stream.page(log, REACH + 2)) for log in logs[: 3 * PLACES]]
    await soon(asyncio.wait(far))
    assert [one.result()[0].seq for one in far] == [REACH + 2 + (n - REACH - 1) % 60 for n in range(3 * PLACES)]
    assert not any(one.done() for one in walking[PLACES:])
    stream.pass_on.set()
    await soon(asyncio.gather(*walking))


async def test_only_what_a_walk_has_not_left_behind_is_read_there() -> None:
    """Pages of earlier messages, and of several logs, are asked for alone; what is here already is given at once."""
    stream, logs = interleaved(60, 30)
    start = stream.last + 1
    for log in [*logs * 3, *["many"] * PAGE, *logs]:
        stream.add(log)
    for log in [*["large"] * 3, *logs * 20]:
        stream.add(log, 200_000 if log == "large" else 10)
    stream.pass_on.clear()
    waiting = [asyncio.ensure_future(stream.page(log, start)) for log in [*logs, "large"]]
    await eventually(lambda: stream.steps and stream.under_way == 0)
    for step in (2, 3):
        stream.pass_on.set()
        await eventually(lambda step=step: len(stream.steps) == step, pause=0)
        stream.pass_on.clear()
    assert [message.subject for message in await soon(waiting[-1])] == ["large"] * 3
    assert not any(one.done() for one in waiting[PLACES:-1])
    stream.pass_alone.clear()
    places = [asyncio.ensure_future(stream.page(log)) for log in logs[:PLACES]]
    await eventually(lambda: stream.under_way == PLACES)
    assert await soon(stream.page("many", start)) == whole(stream, "many")
    early = [asyncio.ensure_future(stream.page(*place)) for place in (("log.7", 1), ("log.8*", start))]
    await asyncio.sleep(0)
    stream.pass_on.set()
    await soon(asyncio.gather(*waiting))
    assert not any(one.done() for one in early)
    stream.pass_alone.set()
    eighth = [message for message in whole(stream, "log.8") if message.seq >= start]
    assert await soon(asyncio.gather(*early)) == [whole(stream, "log.7"), eighth]
    await soon(asyncio.gather(*places))


async def test_the_next_walk_follows_without_anybody_who_comes() -> None:
    """For another crowd that stands in line, elsewhere in the stream."""
    stream, logs = interleaved(60, 200)
    stream.pass_alone.clear()
    asking = [asyncio.ensure_future(stream.page(log, seq)) for log in logs for seq in (1, 10_021)]
    await soon(asyncio.wait(asking[PLACES:]))
    assert [one.result()[0].seq for one in asking[PLACES:]] == [
        seq + number for number in range(PLACES // 2, 60) for seq in (1, 10_021)
    ]
    assert len(stream.alone) == PLACES
    stream.pass_alone.set()
    await soon(asyncio.gather(*asking))


async def test_whoever_comes_when_a_walk_was_given_up_has_the_next_one() -> None:
    """It did not pay for those before; among so many more it does."""
    stream, logs = interleaved(500, 10)
    asking = [asyncio.ensure_future(stream.page(log)) for log in logs[:40]]
    await soon(asyncio.wait(asking[PLACES:], return_when=asyncio.FIRST_COMPLETED))
    assert await stream.pages(logs[40:]) == [whole(stream, log) for log in logs[40:]]
    await soon(asyncio.gather(*asking))
    assert len(stream.alone) < 4 * PLACES


async def test_a_place_that_was_given_to_somebody_who_leaves_goes_to_the_next() -> None:
    """In the same moment, in which he cannot have taken it."""
    line, query = Stream().line, Query(1, PAGE, 524_288, "log")
    for _ in range(PLACES):
        assert await line.enter(query) is None
    entering = asyncio.ensure_future(line.enter(query))
    await asyncio.sleep(0)
    line.leave()
    entering.cancel()
    await asyncio.wait({entering})
    assert await soon(line.enter(query)) is None


async def test_a_walk_begins_where_the_crowd_is() -> None:
    """A few who want something far before it have not the stream read for them."""
    stream, logs = interleaved(60, 200)
    found = await stream.pages(logs[: 2 * PLACES])
    asking = asyncio.gather(*(stream.page(log) for log in logs[: 2 * PLACES]))
    assert [page[0].seq for page in await stream.pages(logs, 10_021)] == list(range(10_021, 10_081))
    assert await asking == found
    assert min(stream.steps) == 10_021


async def test_a_walk_that_does_not_pay_is_given_up() -> None:
    """Of logs that lie between many others; it is not tried again for the same few, but for twice as many it is."""
    stream, logs = interleaved(500, 10)
    found = await stream.pages(logs[300:360])
    assert found == [whole(stream, log) for log in logs[300:360]]
    assert (len(stream.alone), len(stream.steps)) == (60, 1)
    found = await stream.pages(logs)
    assert found == [whole(stream, log) for log in logs]
    assert len(stream.alone) == 60 + PLACES
    start, stream.steps, more = stream.last + 1, [], [f"more.{number}" for number in range(30)]
    await stream.pages(logs[300:360])
    for log in more * 5:
        stream.add(log)
    assert await stream.pages(more, start) == [whole(stream, log) for log in more]
    assert stream.steps == [1, start]  # nobody stood in line any more: so few are a crowd again


async def test_a_walk_that_did_not_pay_is_not_repeated_because_others_stand_in_line() -> None:
    """They want pages here and there in the stream: for them there is nothing to walk for."""
    stream, logs = interleaved(500, 10)
    far = [f"far.{number}" for number in range(60)]
    for log in far:
        stream.add(log, gap=2 * REACH)
    stream.pass_alone.clear()
    asking = [asyncio.ensure_future(stream.page(log)) for log in logs[300:340]]
    asking += [asyncio.ensure_future(stream.page(log, whole(stream, log)[0].seq)) for log in far]
    await eventually(lambda: stream.steps and not len(stream.tasks))
    stream.pass_alone.set()
    found = await soon(asyncio.gather(*asking))
    assert found == [whole(stream, log) for log in [*logs[300:340], *far]]
    assert stream.steps == [1]


async def test_a_walk_holds_only_so_much() -> None:
    """Who has something then goes on from there, in another one; who has nothing asks for himself."""
    stream, logs = interleaved(100, 20)
    stream.messages = [Message(one.subject, one.seq, b"x" * 20_000, 0.0) for one in stream.messages]
    stream.add("late")
    found = await stream.pages([*logs, "late"])
    held = [sum(len(message.body) for message in page) for page in found[PLACES:]]
    assert 15_000_000 < sum(held) < 17_500_000
    for log, page in zip(logs, found, strict=False):
        assert page == whole(stream, log)[: len(page)]
        assert page
    assert found[-1] == whole(stream, "late")


@pytest.mark.parametrize("steps", [0, 1, 3])
async def test_when_no_step_is_to_be_had_all_have_what_there_is_or_ask_for_themselves(steps: int) -> None:
    """A replica was silent, or refused, or the connection broke: none of that is an error of those who wait."""
    stream, logs = interleaved(60, 50)
    stream.add("late")
    stream.answers = lambda query: stream.answer(query) if len(stream.steps) <= steps else None
    found = await stream.pages([*logs, "late"])
    for log, page in zip([*logs, "late"], found, strict=True):
        assert page == whole(stream, log)[: len(page)]
        assert page
    assert found[-1] == whole(stream, "late")
    assert len(stream.alone) == (PLACES + 1 if steps else 61)


async def test_a_step_that_brings_nothing_and_is_not_the_last_ends_a_walk() -> None:
    """The next one would be the same, and so on for ever."""
    stream, logs = interleaved(60, 50)
    stream.answers = lambda query: stream.answer(query) if len(stream.steps) < 2 else Step([], whole=False)
    for log, page in zip(logs, await stream.pages(logs), strict=True):
        assert page == whole(stream, log)[: len(page)]
        assert page
    assert len(stream.steps) == 2


async def test_an_empty_page_is_given_only_where_the_stream_ends() -> None:
    """Which a replica that lags says too early: whoever has something is not told so, the others ask the leader."""
    stream, logs = interleaved(60, 50)
    stream.add("late")
    stream.answers = lambda query: Step(stream.found(query, upto=700), whole=len(stream.found(query, upto=700)) < STEP)
    found = await stream.pages([*logs, "late"])
    assert found[-1] == []
    assert [len(page) for page in found[PLACES:-1]] == [12 - (number >= 40) for number in range(PLACES, 60)]
    assert len(stream.alone) == PLACES


async def test_whoever_is_cancelled_takes_nothing_from_the_others() -> None:
    """Nor leaves a place taken; and for nobody no walk goes on."""
    stream, logs = interleaved(60, 50)
    stream.pass_on.clear()
    asking = [asyncio.ensure_future(stream.page(log)) for log in logs]
    await eventually(lambda: stream.steps and stream.under_way == 0)
    for one in asking[::2]:
        one.cancel()
    stream.pass_on.set()
    await soon(asyncio.wait(asking))
    assert [one.result() for one in asking[1::2]] == [whole(stream, log) for log in logs[1::2]]
    stream.steps.clear()
    stream.pass_on.clear()
    asking = [asyncio.ensure_future(stream.page(log)) for log in logs]
    await eventually(lambda: stream.steps and stream.under_way == 0)
    for one in asking:
        one.cancel()
    stream.pass_on.set()
    await soon(asyncio.wait(asking))
    await eventually(lambda: not len(stream.tasks))
    assert len(stream.steps) == 1
    assert await stream.pages(logs[:PLACES]) == [whole(stream, log) for log in logs[:PLACES]]


async def test_a_walk_that_is_ended_from_outside_leaves_nobody_waiting() -> None:
    """The link is being closed: whoever stands in line is told so when he asks."""
    stream, logs = interleaved(60, 50)
    stream.pass_on.clear()
    asking = [asyncio.ensure_future(stream.page(log)) for log in logs]
    await eventually(lambda: stream.steps and stream.under_way == 0)
    await stream.tasks.close()
    found = await soon(asyncio.gather(*asking))
    assert found == [whole(stream, log) for log in logs]
    assert await stream.pages(logs) == found  # and no other one begins


async def test_by_chance(seed: int) -> None:
    """Whatever meets whatever, no page has a hole, everybody has one, and many have theirs from walks."""
    given = asked = 0
    for number in range(25):
        chance = Chance(random.Random(f"{seed} {number}"))
        await chance.happen()
        given, asked = given + chance.stream.given, asked + len(chance.stream.alone)
    assert given > asked / 4


class Chance:
    """Readers of random logs, while messages come and go, replicas lag and fail, and readers are cancelled."""

    def __init__(self, chance: random.Random) -> None:
        self.stream, self.chance = Stream(), chance
        self.stream.answers = self.answer
        self.logs = [f"log.{number}" for number in range(chance.choice([5, 30, 100]))]
        self.sizes = chance.choice([[10], [10, 3000, 100_000]])
        self.gaps = chance.choice([[0], [0, 0, 1, 40]])
        self.failing, self.lagging, self.removing = (chance.choice([0.0, 0.0, 0.1]) for _ in range(3))
        self.over = False

    async def happen(self) -> None:
        """All of it."""
        chance, stream = self.chance, self.stream
        self.grow(chance.choice([100, 1500]))
        changing = asyncio.ensure_future(self.change())
        await soon(asyncio.gather(*(self.read(chance.choice(self.logs)) for _ in range(chance.choice([10, 60, 150])))))
        self.over = True
        await changing
        await eventually(lambda: not len(stream.tasks))
        await stream.pages(self.logs[:PLACES])
        assert stream.under_way == 0

    def grow(self, count: int) -> None:
        """So many messages more."""
        for _ in range(count):
            self.stream.add(*map(self.chance.choice, (self.logs, self.sizes)), gap=self.chance.choice(self.gaps))

    def answer(self, query: Query) -> Step | None:
        """Of this replica or that."""
        chance, stream = self.chance, self.stream
        if chance.random() < self.failing:
            return None
        upto = stream.last - chance.randrange(1, 400) if chance.random() < self.lagging else stream.last
        page = stream.found(Query(query.seq, chance.choice([1, 7, STEP, STEP, STEP]), query.max_bytes, ALL), upto)
        return Step(page, whole=not page or page[-1].seq >= upto)

    async def change(self) -> None:
        """What comes and goes meanwhile."""
        while not self.over:
            self.grow(self.chance.randrange(20))
            if self.chance.random() < self.removing:
                log = self.chance.choice(self.logs)
                for message in self.chance.choice([whole(self.stream, log), self.stream.messages[:20]]):
                    self.stream.remove(message)
            await asyncio.sleep(0)

    async def read(self, log: str) -> None:
        """A few pages of a log, from somewhere on."""
        await asyncio.sleep(0)
        chance, stream = self.chance, self.stream
        seq = chance.choice([1, 1, 1, chance.randrange(1, stream.last + 300)])
        for _ in range(chance.randrange(1, 5)):
            batch, most = chance.choice([1, PAGE, PAGE]), chance.choice([20_000, 524_288])
            before = {message.seq for message in whole(stream, log) if message.seq >= seq}
            asking = asyncio.ensure_future(stream.page(log, seq, batch, most))
            if chance.random() < 0.1:
                await asyncio.sleep(0)
                asking.cancel()
                await asyncio.wait({asking})
                continue
            page = await asking
            seqs = [message.seq for message in page]
            assert seqs == sorted(set(seqs))
            assert all(message.subject == log and message.seq >= seq for message in page)
            assert len(page) <= batch
            assert sum(len(log) + len(message.body) for message in page[:-1]) < most
            if page or not self.lagging:
                end = seqs[-1] if page else stream.last
                assert not {one for one in before if one <= end} - set(seqs) - stream.removed
            seq = seqs[-1] + 1 if page else seq
