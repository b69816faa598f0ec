"""What others fell into, by number: that each has its test, and those tests that stand nowhere else."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import sys
import urllib.request
from collections import Counter
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from fault_table import Row
from listening import free_port
from nodes import Node, Space, admin, api, program
from pitfalls import LEFT_OUT, SHOWN_BY, TOTAL
from stored import stored
from waiting import check_whole, eventually, read_all, soon
from wires import Wire

from natsjobs import JobClosedError, JobManager

ROOT = Path(__file__).resolve().parents[2]


def test_every_pitfall_has_its_test():
    """A number is shown by tests that exist, or left out with a reason."""
    assert sorted(SHOWN_BY.keys() | LEFT_OUT.keys()) == list(range(1, TOTAL + 1))
    assert not SHOWN_BY.keys() & LEFT_OUT.keys()
    for name in (name for names in SHOWN_BY.values() for name in names):
        file, _, function = name.partition("::")
        assert re.search(rf"^(async )?def {function}\(", (ROOT / file).read_text(), re.MULTILINE), name


async def test_turns_that_replace_each_other_at_full_speed_never_mix(node: Node, row: Row):
    """Every old writer goes on until it is told; a following reader sees each turn alone, dense, with its one end."""
    space, turns = node.space, 25
    async with AsyncExitStack() as stack:
        nc = await stack.enter_async_context(admin(space))
        writers = [await stack.enter_async_context(space.replica()) for _ in range(2)]
        reading = await stack.enter_async_context(space.replica())
        attempts: Counter[int] = Counter()

        async def write(turn: int, manager: JobManager, generation: str) -> None:
            with suppress(JobClosedError):  # the only way out
                while True:
                    await manager.transport.emit_chunk("s", [turn, attempts[turn]], generation=generation)
                    attempts[turn] += 1
                    await asyncio.sleep(0)

        async def follow() -> list[Any]:
            seen: list[Any] = []
            ends = 0
            async with reading.subscribe("s", wait=10.0, follow=True) as events:
                while ends < turns:
                    seen.append(await anext(events))
                    ends += seen[-1].is_terminal
            return seen

        following = asyncio.create_task(follow())
        async with asyncio.TaskGroup() as group:
            for turn in range(turns):
                manager = writers[turn % 2]
                job = await manager.store.create_job("s", "alice")
                row.fault("replaced while it wrote")
                group.create_task(write(turn, manager, job.generation))
                await eventually(lambda turn=turn: attempts[turn] > 20)
            await manager.store.update_job("s", status="complete")
        seen = await soon(following)
        # A create that has to end a running predecessor first throws away the log that it had opened: no end, no event.
        logs = [log for _, log in sorted((await stored(nc, space))["s"].items()) if log.numbers or log.ends]
        assert len(logs) == turns
        row.emitted = sum(attempts.values())
        read = [list(events) for _, events in itertools.groupby(seen, key=lambda event: event.generation)]
        assert len(read) == turns
        for turn, (log, (*body, end)) in enumerate(zip(logs, read, strict=True)):
            assert set(log.numbers) <= {turn}
            assert len(log.ends) == 1
            assert not log.after_end
            assert end.is_terminal
            assert {event.data[0] for event in body} <= {turn}
            row.viewer(range(len(log.numbers)), [event.data[1] for event in body])
        row.whole()


@pytest.mark.timeout(240)
async def test_a_log_of_90_megabytes_is_replayed_in_bounded_memory(node: Node, row: Row):
    """A process that reads it from the start needs a small part of it, and no message is large."""
    space, size, count = node.space, 90_000, 1000
    padding = "x" * size
    async with AsyncExitStack() as stack:
        nc = await stack.enter_async_context(admin(space))
        jobs = await stack.enter_async_context(space.replica())
        async with jobs.start("s", user_id="alice") as run:
            for number in range(count):
                await run.emit([number, padding])
        row.emitted = row.acknowledged = count
        replayer, environment = program("replayer.py")
        arguments = (sys.executable, replayer, node.url, space.namespace, "s")
        process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE, env=environment)
        said, _ = await soon(process.communicate(), within=120)
        cost = json.loads(said)
        row.seen, row.lost = cost["events"], count - cost["events"]
        row.notes |= {"MB": round(cost["bytes"] / 1e6), "grown MB": round(cost["grown"] / 1e6, 1)}
        row.notes["took s"] = round(cost["took"], 1)
        assert (cost["events"], cost["end"]) == (count, "done")
        assert cost["bytes"] > 90e6 - count
        assert cost["grown"] < 40e6
        state = (await api(nc, f"STREAM.INFO.{space.subjects.events_stream}"))["state"]
        row.notes["kB per message"] = round(state["bytes"] / state["messages"] / 1000)
        assert state["bytes"] / state["messages"] < 300_000


async def test_a_delete_and_a_create_in_the_same_moment_leave_one_truth(node: Node, row: Row, seed: int):
    """Either the new turn lives in every respect, or there is no job: never a record without a log, nor the reverse."""
    rng, space, trials = random.Random(seed), node.space, 150
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(space.replica()) for _ in range(2)]
        outcomes: Counter[str] = Counter()

        async def delete(name: str, after: float) -> None:
            await asyncio.sleep(after)  # anywhere in the create, which takes several steps
            await one.store.delete_job(name)

        async def trial(name: str) -> None:
            if rng.random() < 0.7:
                await one.store.create_job(name, "alice")
                await one.store.append_chunk(name, "old")
            _, made = await asyncio.gather(delete(name, rng.uniform(0, 0.02)), two.store.create_job(name, "alice"))
            row.fault("delete beside create")
            for store in (one.store, two.store):
                left = await store.get_job(name)
                assert left is None or left == made
            if left is None:
                outcomes["deleted"] += 1
                with pytest.raises(JobClosedError):
                    await two.store.append_chunk(name, "late", generation=made.generation)
            else:
                outcomes["lives"] += 1
                await two.store.append_chunk(name, "new", generation=made.generation)
                await two.store.update_job(name, status="complete")
                check_whole(await read_all(one.subscribe, name), ["new"])

        for first in range(0, trials, 10):
            await asyncio.gather(*(trial(f"s{number}") for number in range(first, first + 10)))
        row.notes |= outcomes
        assert await one.active("alice") == []
        assert min(outcomes["lives"], outcomes["deleted"]) > 0


async def test_a_reconnect_storm_of_200_readers_leaves_nothing_behind(tmp_path: Path, row: Row):
    """Their connection breaks again and again while they follow; then they leave: the server has what it had before."""
    monitor = free_port()
    node = Node(tmp_path, f'jetstream: {{store_dir: "$STORE"}}\nhttp: "127.0.0.1:{monitor}"\n')
    node.launch()
    await node.ready()
    space = node.space
    try:
        async with AsyncExitStack() as stack:
            nc = await stack.enter_async_context(admin(space))
            wire = await stack.enter_async_context(Wire(node.port))
            writing = await stack.enter_async_context(space.replica())
            reading = await stack.enter_async_context(space.by(wire.url).replica())
            await settled(monitor)
            before, tasks = subscriptions(monitor), len(asyncio.all_tasks())
            await writing.store.create_job("s", "alice")
            sent = 0
            got: list[list[int]] = [[] for _ in range(200)]

            async def read(mine: list[int]) -> None:
                async with reading.subscribe("s") as events:
                    async for event in events:
                        if event.is_terminal:
                            return
                        mine.append(event.data)

            readers = [asyncio.create_task(read(mine)) for mine in got]
            for _ in range(10):
                wire.drop()
                row.fault("200 readers' connection dropped")
                for _ in range(20):
                    await writing.transport.emit_chunk("s", sent)
                    sent += 1
                await writing.transport.flush("s")
                await eventually(lambda sent=sent: all(len(mine) == sent for mine in got), within=60)
            assert sum(subscriptions(monitor).values()) > sum(before.values())
            for reader in readers[:100]:
                reader.cancel()
            await writing.transport.emit_done("s", None)
            await asyncio.wait(readers, timeout=30)
            for mine in got:
                row.viewer(range(sent), mine)
            row.emitted = row.acknowledged = sent
            row.whole()
            await eventually(lambda: subscriptions(monitor) == before, what=f"{before} again")
            await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
            assert await consumers(nc, space) == 0
            assert await reading.count_subscribers("s") == 0
    finally:
        node.stop()


def subscriptions(monitor: int) -> Counter[str]:
    """Every subject that somebody is subscribed to on the server, without the tokens that are random."""
    with urllib.request.urlopen(f"http://127.0.0.1:{monitor}/connz?subs=1", timeout=5) as answer:
        found = json.load(answer)
    return Counter(name for one in found["connections"] for name in one.get("subscriptions_list", ()))


async def settled(monitor: int) -> None:
    """Wait until the subscriptions that opening makes are all there."""
    last: list[Any] = [None]

    def same() -> bool:
        now = subscriptions(monitor)
        last.append(now)
        return len(last) > 20 and last[-20:].count(now) == 20

    await eventually(same)


async def consumers(nc: Any, space: Space) -> int:
    """How many consumers the streams have."""
    names = (space.subjects.events_stream, space.subjects.records_stream)
    return sum([(await api(nc, f"CONSUMER.NAMES.{name}"))["total"] for name in names])
