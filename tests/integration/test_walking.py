"""Pages of very many logs at once, from servers: as they are asked for alone, whatever goes wrong in the middle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest
from desk_kit import Desk, mapped
from fault_table import Row
from jetstream_kit import BOTH, Proxy, Space, config, server, space
from nats.aio.msg import Msg
from timeline_kit import spying
from waiting import eventually, known, soon, take

import natsjobs
from natsjobs.engine.ports import Message

LOGS = 80
PLACES = 4
STEP = 256


def queries(asked: list[Msg]) -> tuple[list[int], list[str]]:
    """Where the steps of walks began, and which logs were asked for alone."""
    made = [json.loads(msg.data) for msg in asked]
    walked = [query["seq"] for query in made if query.get("next_by_subj") == ">"]
    return walked, [query["next_by_subj"] for query in made if query.get("next_by_subj", ">") != ">"]


async def alone(here: Space, logs: list[str], seq: int = 1) -> list[list[Message]]:
    """A page of each, one after the other."""
    return [await here.link.events.page(log, seq) for log in logs]


async def together(here: Space, logs: list[str], seq: int = 1) -> list[list[Message]]:
    """A page of each, all at once."""
    return await soon(asyncio.gather(*(here.link.events.page(log, seq) for log in logs)))


@BOTH
async def test_pages_of_a_walk_are_those_that_are_asked_for_alone(server_name: str, request: Any, seed: int) -> None:
    """Of every size, with strange headers, removed messages, ends and tombstones between them, and behind the end."""
    chance = Random(seed)
    async with space(request.getfixturevalue(server_name)) as here:
        events, names = here.link.events, here.names
        logs = [names.log(f"j{number}", "g") for number in range(LOGS)]
        js = here.nc.jetstream()
        heads = [
            {},
            {},
            {"KV-Operation": "DEL", "Nats-Subject": "x", "Nats-Sequence": "7"},
            {"Nats-Expected-Stream": names.events_stream},
        ]
        for _ in range(8):
            chance.shuffle(logs)
            await asyncio.gather(
                *(js.publish(log, b"x" * chance.choice([1, 200, 5_000]), headers=chance.choice(heads)) for log in logs)
            )
        for log in logs[:8]:
            await events.append(log, b"gone", rollup=True)
            await events.append(log.replace(".log", ".end"), b"end")
        await events.append(logs[9], b"x" * 600_000)
        await events.append(logs[9], b"behind it")
        for seq in chance.sample(range(1, 8 * LOGS), 60):
            await here.nc.request(f"$JS.API.STREAM.MSG.DELETE.{names.events_stream}", json.dumps({"seq": seq}).encode())
        for seq in (1, chance.randrange(2, 8 * LOGS)):
            truth = await alone(here, logs, seq)
            async with spying(here.nc, "$JS.API.DIRECT.GET.>") as asked:
                assert await together(here, logs, seq) == truth
                await known(here.nc)
            walked, one_by_one = queries(asked)
            assert walked
            assert len(one_by_one) <= PLACES + 2


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Space]:
    """Logs that lie between each other, on a server whose pages go by way of ``asked.*``."""
    with server(tmp_path, mapped("DIRECT.GET")) as running:
        async with space(running.url, config(request=4.0)) as made:
            for number in range(10):
                await asyncio.gather(*(made.link.events.append(log, b"%d" % number) for log in logs_of(made)))
            yield made


def logs_of(here: Space) -> list[str]:
    """All of them."""
    return [here.names.log(f"j{number}", "g") for number in range(LOGS)]


@pytest.fixture
async def desk(here: Space) -> AsyncIterator[Desk]:
    """In the place of the server."""
    made = Desk(here, "DIRECT.GET")
    made.then = made.pass_on
    subscription = await here.nc.subscribe("asked.*", cb=made.hear)
    await known(here.nc)
    yield made
    await subscription.unsubscribe()
    made.leave()


async def _silent(here: Space, desk: Desk, msg: Msg) -> None:
    """No answer."""


async def _cut_short(here: Space, desk: Desk, msg: Msg) -> None:
    first = json.loads(msg.data)["seq"]
    message = await here.link.events.next(f"{here.names.events_prefix}>", first)
    assert message is not None
    head = {"Nats-Subject": message.subject, "Nats-Sequence": str(first), "Nats-Time-Stamp": "2026-01-01T00:00:00Z"}
    await here.nc.publish(msg.reply, message.body, headers=head)


def _status(code: str) -> Any:
    async def answer(here: Space, desk: Desk, msg: Msg) -> None:
        head = f"NATS/1.0 {code}\r\n\r\n"
        await here.nc._send_command(f"HPUB {msg.reply} {len(head)} {len(head)}\r\n{head}\r\n".encode())
        await here.nc.flush()

    return answer


TROUBLE = {
    "a bad request": _status("408 Bad Request"),
    "silence": _silent,
    "something wrong": _status("500 no"),
    "an answer that breaks off": _cut_short,
    "nobody there": _status("503"),
}


@pytest.mark.parametrize(("step", "trouble"), [(1 + number % 2, trouble) for number, trouble in enumerate(TROUBLE)])
async def test_a_step_that_cannot_be_had_is_nobodys_error(here: Space, desk: Desk, trouble: str, step: int) -> None:
    """All read on, from what they have: each asks for himself what he would have asked for without a walk."""
    logs, steps = logs_of(here), 0

    async def then(msg: Msg) -> None:
        nonlocal steps
        walks = json.loads(msg.data)["next_by_subj"] == ">"
        steps += walks
        await (TROUBLE[trouble](here, desk, msg) if walks and steps >= step else desk.pass_on(msg))

    truth = await alone(here, logs)
    desk.then = then
    pages = await together(here, logs)
    assert step <= steps <= step + 1
    for log, page, all_of_it in zip(logs, pages, truth, strict=True):
        assert page
        rest = await here.link.events.page(log, page[-1].seq + 1) if len(page) < len(all_of_it) else []
        assert [(one.seq, one.body) for one in [*page, *rest]] == [(one.seq, one.body) for one in all_of_it]


async def test_what_a_replica_lacks_that_lags_only_the_leader_says(here: Space, desk: Desk) -> None:
    """A step of another replica may end before the one before it did: nobody's page has a hole by that."""
    logs, steps = logs_of(here), 0

    async def then(msg: Msg) -> None:
        nonlocal steps
        walks = json.loads(msg.data)["next_by_subj"] == ">"
        steps += walks
        await (_status("404 Message Not Found")(here, desk, msg) if walks and steps == 2 else desk.pass_on(msg))

    truth = await alone(here, logs)
    late = here.names.log("late", "g")
    await here.link.events.append(late, b"late")
    desk.then = then
    *pages, empty = await together(here, [*logs, late])
    assert (steps, empty) == (2, [])
    for page, all_of_it in zip(pages, truth, strict=True):
        assert page == all_of_it[: len(page)]
        assert len(page) in {3, 4, 10}


async def test_a_walk_goes_on_beside_everything_else(here: Space, desk: Desk) -> None:
    """While no step of it is answered a page alone is, and so are a look and a question for newest messages."""
    logs, held = logs_of(here), asyncio.Event()

    async def then(msg: Msg) -> None:
        if json.loads(msg.data).get("next_by_subj") == ">":
            await held.wait()
        await desk.pass_on(msg)

    desk.then = then
    asking = [asyncio.ensure_future(here.link.events.page(log, 1)) for log in logs]
    await soon(asyncio.wait(asking[:PLACES]))
    assert [len(await soon(here.link.events.page(log, 1))) for log in logs[:5]] == [10] * 5
    assert await soon(here.link.events.newer(logs[:5], 1)) is not None
    assert await soon(here.link.events.next(logs[0], 2)) is not None
    assert not any(one.done() for one in asking[PLACES:])
    held.set()
    assert [len(page) for page in await soon(asyncio.gather(*asking))] == [10] * LOGS


async def test_very_many_readers_at_once_have_every_event_once_in_order(
    here: Space, desk: Desk, row: Row, seed: int
) -> None:
    """From one walk; and while owners write on, connections break and some leave early."""
    url, chance, settings, each = here.nc.connected_url.geturl(), Random(seed), config(request=40.0), 25
    async with AsyncExitStack() as stack:
        jobs = await stack.enter_async_context(natsjobs.connect(url, config=settings))
        runs = [await stack.enter_async_context(jobs.start(f"j{number}", user_id="u")) for number in range(LOGS)]
        numbers = dict.fromkeys(range(LOGS), 0)
        proxy = await stack.enter_async_context(Proxy(int(url.rpartition(":")[2])))
        viewer = await stack.enter_async_context(natsjobs.connect(proxy.url, config=settings))

        async def write(upto: int) -> None:
            while left := [number for number, count in numbers.items() if count < upto]:
                for number in chance.sample(left, min(20, len(left))):
                    await runs[number].emit(numbers[number])
                    numbers[number] += 1
                await asyncio.gather(*(run.flush() for run in runs))

        async def read(number: int, count: int) -> None:
            async with viewer.subscribe(f"j{number}") as events:
                got = [event.data for event in await take(events, count, within=60)]
            row.viewer(range(count), got)
            assert got == list(range(count))

        def read_all() -> asyncio.Future[Any]:
            counts = [each if number % 4 else chance.randrange(1, each) for number in numbers]
            return asyncio.gather(*(read(number, count) for number, count in enumerate(counts)))

        await write(each - 5)
        all_here = asyncio.Event()

        async def then(msg: Msg) -> None:
            if "next_by_subj" in json.loads(msg.data):
                await all_here.wait()
            await desk.pass_on(msg)

        desk.asked.clear()
        desk.then = then
        reading = read_all()
        await eventually(
            lambda: sum(task.get_name().startswith("natsjobs page") for task in asyncio.all_tasks()) == LOGS
        )
        all_here.set()
        writing = asyncio.ensure_future(write(each))
        await reading
        steps, one_by_one = queries(desk.asked)
        assert LOGS * (each - 5) / STEP <= len(steps) <= LOGS * (each + 5) / STEP + 1
        assert len(one_by_one) < LOGS / 2
        reading = read_all()
        for _ in range(3):
            await asyncio.sleep(chance.random() / 5)  # the moment at which it breaks
            proxy.drop()
            row.fault("connection dropped")
        await asyncio.gather(reading, writing)
        row.whole()
