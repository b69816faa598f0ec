"""Recorded answers of real providers, and very large events, through the whole way: emitted here, read there."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import msgspec
import pytest
from waiting import check_whole, read_all, take, values

from natsjobs import EventTooLargeError

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "transcripts"
TRANSCRIPTS = sorted(FOLDER.glob("*.jsonl"))


async def resumed_at(read, cuts, count):
    """Everything of s1, by a reader that leaves and comes back after each of these indexes."""
    got: list = []
    for cut in cuts:
        async with read("s1", after=got[-1].cursor if got else None, wait=20.0) as events:
            got += await take(events, cut - len(got), within=60)
    return got + await read_all(read, "s1", after=got[-1].cursor if got else None, wait=20.0, within=60)


@pytest.mark.scenario(67)
@pytest.mark.parametrize("path", TRANSCRIPTS or [None], ids=lambda path: path.stem if path else "none")
async def test_a_transcript_arrives_as_it_was_sent(replica, replica_b, path):
    """Live and resumed at random points, on another connection: identical events."""
    if path is None:
        pytest.skip(f"no transcripts in {FOLDER}")
    lines = path.read_bytes().splitlines()
    sent = [json.loads(line) for line in lines]
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    points = range(1, len(sent) + 1)
    cuts = [sorted(rng.sample(points, k=min(len(sent), rng.randrange(1, 6)))) for _ in range(4)]

    async def produce() -> None:
        async with replica.manager.start("s1", user_id="alice") as run:
            for line, event in zip(lines, sent, strict=True):
                await run.emit(event if rng.random() < 0.5 else msgspec.Raw(line))
                if rng.random() < 0.1:
                    await asyncio.sleep(0)

    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        group.create_task(produce())
        readers = [group.create_task(resumed_at(replica_b.manager.subscribe, cut, len(sent))) for cut in cuts]
        readers.append(group.create_task(read_all(replica_b.transport.read, "s1", wait=20.0, within=90)))
    for reader in readers:
        check_whole(reader.result(), sent)
        assert reader.result()[-1].type == "done"
    late = await read_all(replica.manager.subscribe, "s1")
    check_whole(late, sent)
    assert [msgspec.json.decode(event.raw) for event in late[:-1]] == sent


async def test_an_event_above_max_payload_arrives_whole_and_in_its_place(replica, replica_b):
    """Three megabytes between small ones, several times; a reader can resume before and after it."""
    sent = ["a", {"text": "é" * 1_500_000}, "b", "x" * 3_000_000, "y" * 1_048_576, "c"]

    async def produce() -> None:
        async with replica.manager.start("s1", user_id="alice") as run:
            for event in sent:
                await run.emit(event)

    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        group.create_task(produce())
        live = group.create_task(read_all(replica_b.manager.subscribe, "s1", wait=20.0, within=90))
    check_whole(live.result(), sent)
    for event in live.result()[:-1]:
        rest = await read_all(replica.manager.subscribe, "s1", after=event.cursor, within=60)
        check_whole(rest, sent, first=event.index + 1)


async def test_an_event_above_the_limit_is_refused_and_the_job_goes_on(replica, replica_b):
    """Nine megabytes: EventTooLargeError with size and limit, nothing of it is stored."""
    async with replica.manager.start("s1", user_id="alice") as run:
        await run.emit("before")
        with pytest.raises(EventTooLargeError) as refused:
            await run.emit("x" * 9_000_000)
        assert (refused.value.size, refused.value.limit) == (9_000_002, 8_388_608)
        with pytest.raises(EventTooLargeError):
            await replica.store.append_chunk("s1", "x" * 9_000_000)
        await run.emit("after")
    events = await read_all(replica_b.manager.subscribe, "s1")
    assert values(events) == ["before", "after"]
    assert events[-1].type == "done"
