"""A thousand random resumes and a thousand races of abort and completion, against a real server."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from waiting import check_whole, read_all

TRIALS = 1000
AT_ONCE = 20


@pytest.fixture
def rng() -> random.Random:
    """Random numbers; the seed is printed."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


async def many(trial, count: int = TRIALS) -> None:
    """Run ``trial(n)`` for every n below ``count``, some at the same time."""
    left = iter(range(count))

    async def work() -> None:
        for n in left:
            await trial(n)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())


@pytest.mark.scenario(68)
async def test_a_thousand_resumes_at_random_moments_miss_and_double_nothing(backend, rng):
    """The producer emits as fast as it can on A; on B a reader attaches, leaves at random and resumes."""
    a, b = await backend.replica(), await backend.replica()
    attached_live = 0

    async def trial(n: int) -> None:
        nonlocal attached_live
        stream_id = f"s{n}"
        sent = [f"{n}.{i}" for i in range(rng.randrange(20, 200))]

        async def produce() -> None:
            async with a.manager.start(stream_id, user_id="alice") as run:
                pause = rng.randrange(1, 50)
                for i, event in enumerate(sent):
                    await run.emit(event)
                    if i % pause == 0:
                        await asyncio.sleep(0)

        producing = asyncio.ensure_future(produce())
        try:
            for _ in range(rng.randrange(20)):
                await asyncio.sleep(0)
            got: list = []
            while not got or not got[-1].is_terminal:
                attached_live += not producing.done()
                after = got[-1].cursor if got else None
                async with b.manager.subscribe(stream_id, after=after, wait=20.0) as events:
                    for _ in range(rng.randrange(1, 2 * len(sent))):
                        got.append(await anext(events))
                        if got[-1].is_terminal:
                            break
            check_whole(got, sent)
            assert got[-1].type == "done"
        finally:
            await producing

    async with asyncio.timeout(110):
        await many(trial)
    print(f"{attached_live} attaches while the producer ran")
    assert attached_live >= TRIALS / 2


@pytest.mark.scenario(86)
async def test_a_thousand_races_of_abort_and_completion_have_one_winner_each(backend, rng):
    """One terminal record; the caller of abort learns which it is; exactly one side gets the usage."""
    a, b = await backend.replica(), await backend.replica()
    outcomes: Counter[str] = Counter()

    async def trial(n: int) -> None:
        stream_id = f"s{n}"
        producing = asyncio.Event()
        claimed: list = []

        async def produce() -> None:
            async with a.manager.start(stream_id, user_id=f"user{n}") as run:
                await run.emit("x")
                await run.record_usage({"input_tokens": n})
                producing.set()
                for _ in range(rng.randrange(30)):
                    await asyncio.sleep(0)
                await run.complete("done")
                claimed.extend(await run.claim_usage())

        producer = asyncio.ensure_future(produce())
        try:
            await producing.wait()
            for _ in range(rng.randrange(30)):
                await asyncio.sleep(0)
            result = await (a if rng.random() < 0.3 else b).manager.abort(stream_id, final_event="aborted")
        finally:
            await producer
        events = await read_all(b.manager.subscribe, stream_id)
        ends = [(str(event.type), event.data) for event in events if event.is_terminal]
        assert ends == [("aborted", "aborted") if result.success else ("done", "done")]
        assert (await a.store.get_job(stream_id)).status == ("aborted" if result.success else "complete")
        assert result.reason == (None if result.success else "ended")
        entries = [entry.input_tokens for entry in (*result.collected_usage, *claimed)]
        assert entries == [n]
        assert bool(result.collected_usage) == result.success
        assert await b.store.claim_usage(stream_id) == []
        outcomes["aborted" if result.success else "complete"] += 1

    async with asyncio.timeout(110):
        await many(trial)
    print(dict(outcomes))
    assert outcomes.total() == TRIALS
    assert min(outcomes["aborted"], outcomes["complete"]) > 0
