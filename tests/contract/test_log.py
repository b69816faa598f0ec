"""The log through the store: appending on any replica, and clearing."""

from __future__ import annotations

import asyncio

import pytest
from making import fill, step, text
from waiting import check_whole, read_all, soon, take

from natsjobs import HistoryLostError, JobClosedError, JobNotFoundError

# -- appending ---------------------------------------------------------------------------------------------------


@pytest.mark.b_writes
async def test_append_returns_dense_indexes_and_readers_get_the_events(store, store_b, jobs_b):
    """From 0, on whichever replica; stored when it returns."""
    await store.create_job("s1", "alice")
    assert await fill(store, "s1", "a", {"b": 1}, None) == [0, 1, 2]
    assert await fill(store_b, "s1", [], 1.5) == [3, 4]
    assert await store.append_chunk("s1", "last") == 5
    await store.update_job("s1", status="complete")
    check_whole(await read_all(jobs_b.subscribe, "s1"), ["a", {"b": 1}, None, [], 1.5, "last"])


@pytest.mark.b_writes
async def test_appends_of_two_replicas_at_the_same_time_are_all_stored_once(store, store_b, jobs_b):
    """Each gets an index of its own, and each replica's events keep their order."""
    await store.create_job("s1", "alice")

    async def append(name: str, one) -> list[int]:
        return [await one.append_chunk("s1", [name, n]) for n in range(40)]

    a, b = await soon(asyncio.gather(append("a", store), append("b", store_b)), within=60)
    assert sorted(a + b) == list(range(80))
    assert a == sorted(a)
    assert b == sorted(b)
    await store.update_job("s1", status="complete")
    events = await read_all(jobs_b.subscribe, "s1")
    expected: list = [None] * 80
    for name, indexes in (("a", a), ("b", b)):
        for n, index in enumerate(indexes):
            expected[index] = [name, n]
    check_whole(events, expected)


async def test_appending_to_an_unknown_id_is_an_error(store):
    """JobNotFoundError names it, and no job comes to be."""
    with pytest.raises(JobNotFoundError) as missing:
        await store.append_chunk("nobody", 1)
    assert missing.value.stream_id == "nobody"
    assert await store.get_job("nobody") is None


async def test_appending_to_a_deleted_generation_is_an_error(store, store_b):
    """Also when nothing had been appended before: no log comes back to life."""
    for n, events in enumerate(([], ["x"])):
        job = await store.create_job(f"s{n}", "alice")
        await fill(store, f"s{n}", *events)
        await store_b.delete_job(f"s{n}")
        with pytest.raises((JobClosedError, JobNotFoundError)):
            await store.append_chunk(f"s{n}", "zombie", generation=job.generation)
        with pytest.raises(JobNotFoundError):
            await store.append_chunk(f"s{n}", "zombie")
        assert await store_b.get_content_parts(f"s{n}") is None


@pytest.mark.scenario(49)
async def test_values_come_back_unchanged(store, jobs_b):
    """Nested and empty arrays, null, text beyond ASCII, floats of full precision, control characters."""
    sent = [
        [[], {}, [[]], [None]],
        {"": "", "a b": {"c": [1, 2, {"d": None}]}},
        'Grüße 👋 \u0000 \u2028 \ud7ff \U0010ffff " \\ / \n\r\t',
        0.1 + 0.2,
        1e308,
        5e-324,
        -0.0,
        9_007_199_254_740_993,
        -(2**63),
        2**64 - 1,
        True,
        False,
        None,
        "",
        "x" * 100_000,
    ]
    await store.create_job("s1", "alice")
    await fill(store, "s1", *sent)
    await store.update_job("s1", status="complete")
    events = await read_all(jobs_b.subscribe, "s1")
    check_whole(events, sent)
    assert [repr(event.data) for event in events[:-1]] == [repr(value) for value in sent]


# -- clearing ----------------------------------------------------------------------------------------------------


async def test_clearing_a_running_job_removes_events_and_steps_and_the_job_goes_on(store, store_b, jobs_b):
    """Indexes go on; a reader from the start gets what came after, one that stands behind HistoryLostError."""
    job = await store.create_job("s1", "alice")
    await fill(store, "s1", step("a", 0), text("a", "old"), "x")
    await store.save_run_steps("s1", [{"id": "a"}])
    async with jobs_b.subscribe("s1") as events:
        behind = (await take(events, 1))[0].cursor
    await store.clear_content_state("s1", generation=job.generation)
    for one in (store, store_b):
        assert await one.get_content_parts("s1") is None
        assert await one.get_run_steps("s1") == []
    assert (await store.get_job("s1")).status == "running"
    assert await store.append_chunk("s1", "new") == 3
    await store.update_job("s1", status="complete")
    with pytest.raises(HistoryLostError):
        await read_all(jobs_b.subscribe, "s1", after=behind)
    events = await read_all(jobs_b.subscribe, "s1")
    assert [(event.index, event.data) for event in events] == [(3, "new"), (4, None)]


async def test_a_reader_that_is_behind_a_clearing_hears_of_it(store, jobs_b):
    """In mid-iteration: never a silent gap, never a hang."""
    await store.create_job("s1", "alice")
    await fill(store, "s1", "a")
    async with jobs_b.subscribe("s1") as events:
        await take(events, 1)
        await fill(store, "s1", *range(300))
        await store.clear_content_state("s1")
        await fill(store, "s1", "after")
        got = ["a"]
        try:
            while got[-1] != "after":
                got += [event.data for event in await take(events, 1)]
        except HistoryLostError:
            assert got == ["a", *range(len(got) - 1)]
        else:
            assert got == ["a", *range(300), "after"]


@pytest.mark.b_writes
async def test_clearing_an_ended_job_keeps_its_end_and_its_usage(store, store_b, jobs_b):
    """The terminal record is still read, the usage can still be claimed."""
    await store.create_job("s1", "alice")
    await fill(store, "s1", step("a", 0), text("a", "x"))
    await store.record_usage("s1", {"input_tokens": 3})
    await store.update_job("s1", status="complete", final_event='"end"')
    await store_b.clear_content_state("s1")
    (end,) = await read_all(jobs_b.subscribe, "s1")
    assert (end.type, end.data, end.index) == ("done", "end", 2)
    assert await store.get_content_parts("s1") is None
    assert [entry.input_tokens for entry in await store_b.claim_usage("s1")] == [3]
    assert (await store.get_job("s1")).status == "complete"
