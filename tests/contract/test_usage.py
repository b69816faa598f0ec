"""Token usage: recorded durably, claimed exactly once, spent exactly once."""

from __future__ import annotations

import asyncio

import pytest
from waiting import eventually, soon

from natsjobs import InvalidIdError, JobClosedError, JobNotFoundError, SpendError, UsageMetadata, to_dict
from natsjobs.usage import spend_collected_usage


def tokens(entries):
    """The input tokens, which tests use as names of entries."""
    return sorted(entry.input_tokens for entry in entries)


async def test_recorded_usage_is_durable_at_once_and_has_an_id(store, store_b):
    """Read on another replica, with the provider's own fields; the id stays the same for ever."""
    await store.create_job("s1", "alice")
    await store.record_usage("s1", {"input_tokens": 1, "output_tokens": 2, "model": "m", "agentId": "a", "deep": [1]})
    await store.record_usage("s1", UsageMetadata(input_tokens=3, provider="p", extra={"usage_type": "title"}))
    read = await store_b.get_collected_usage("s1")
    assert tokens(read) == [1, 3]
    first, second = sorted(read, key=lambda entry: entry.input_tokens)
    assert (first.output_tokens, first.model, first.extra) == (2, "m", {"agentId": "a", "deep": [1]})
    assert (second.provider, second.extra) == ("p", {"usage_type": "title"})
    assert first.id
    assert second.id
    assert first.id != second.id
    assert to_dict(first) == {
        "id": first.id,
        "input_tokens": 1,
        "output_tokens": 2,
        "model": "m",
        "agentId": "a",
        "deep": [1],
    }
    claimed = await store.claim_usage("s1")
    assert sorted(claimed, key=lambda entry: entry.input_tokens) == [first, second]


async def test_cache_tokens_are_kept_in_the_form_they_came(store, store_b):
    """OpenAI's details and Anthropic's fields; the properties read both."""
    await store.create_job("s1", "alice")
    await store.record_usage("s1", {"input_tokens": 1, "input_token_details": {"cache_creation": 5, "cache_read": 6}})
    await store.record_usage("s1", {"input_tokens": 2, "cache_creation_input_tokens": 7, "cache_read_input_tokens": 8})
    one, two = sorted(await store_b.claim_usage("s1"), key=lambda entry: entry.input_tokens)
    assert one.input_token_details == {"cache_creation": 5, "cache_read": 6}
    assert (one.cache_creation, one.cache_read) == (5, 6)
    assert (two.cache_creation_input_tokens, two.cache_read_input_tokens) == (7, 8)
    assert (two.cache_creation, two.cache_read) == (7, 8)


async def test_a_claim_empties_what_can_be_claimed(store, store_b):
    """Once claimed it is neither listed nor claimed again, anywhere; later entries are."""
    await store.create_job("s1", "alice")
    assert await store.claim_usage("s1") == []
    await store.record_usage("s1", {"input_tokens": 1})
    assert tokens(await store_b.claim_usage("s1")) == [1]
    assert await store.claim_usage("s1") == []
    assert await store.get_collected_usage("s1") == []
    await store.record_usage("s1", {"input_tokens": 2})
    assert tokens(await store.get_collected_usage("s1")) == [2]
    assert tokens(await store.claim_usage("s1")) == [2]


async def test_each_entry_goes_to_exactly_one_claimer(backend):
    """Three replicas claim while two record; nothing is lost and nothing is handed out twice."""
    replicas = [await backend.replica() for _ in range(3)]
    await replicas[0].store.create_job("s1", "alice")

    async def record(one, first: int) -> None:
        for n in range(first, first + 25):
            await one.store.record_usage("s1", {"input_tokens": n})

    claimed = []

    async def claim(one, until) -> None:
        while not until.done():
            claimed.extend(await one.store.claim_usage("s1"))

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        recording = asyncio.gather(record(replicas[0], 0), record(replicas[1], 25))
        for one in replicas * 2:
            group.create_task(claim(one, recording))
        await recording
    claimed.extend(await replicas[2].store.claim_usage("s1"))
    assert tokens(claimed) == list(range(50))
    assert len({entry.id for entry in claimed}) == 50


@pytest.mark.parametrize("end", ["complete", "replaced", "deleted"])
@pytest.mark.b_writes
async def test_usage_outlives_the_end_of_its_generation(store, store_b, end):
    """A cut-off call is still billed: recorded after the end, claimed by generation."""
    old = (await store.create_job("s1", "alice")).generation
    await store.record_usage("s1", {"input_tokens": 1})
    if end == "complete":
        await store.update_job("s1", status="complete")
    elif end == "replaced":
        await store_b.create_job("s1", "alice")
    else:
        await store_b.delete_job("s1")
    await store.record_usage("s1", {"input_tokens": 2}, generation=old)
    if end == "replaced":
        assert await store.get_collected_usage("s1") == []
        assert await store.claim_usage("s1") == []
    assert tokens(await store_b.claim_usage("s1", generation=old)) == [1, 2]
    assert await store.claim_usage("s1", generation=old) == []


async def test_usage_of_an_expired_job_is_still_claimable(backend):
    """After record and log are gone."""
    config = backend.config(retention={"finished": 1.0})
    a, b = await backend.replica(config), await backend.replica(config)
    generation = (await a.store.create_job("s1", "alice")).generation
    await a.store.record_usage("s1", {"input_tokens": 1})
    await a.store.update_job("s1", status="complete")

    async def gone() -> bool:
        await b.store.cleanup()
        return not await b.store.has_job("s1")

    await eventually(gone, within=30)
    assert tokens(await b.store.claim_usage("s1", generation=generation)) == [1]


async def test_unclaimed_usage_is_kept_for_its_retention_only(backend):
    """At most ``retention.usage``."""
    replica = await backend.replica(backend.config(retention={"usage": 1.0}))
    await replica.store.create_job("s1", "alice")
    await replica.store.record_usage("s1", {"input_tokens": 1})

    async def gone() -> bool:
        return await replica.store.get_collected_usage("s1") == []

    await eventually(gone, within=30)
    assert await replica.store.claim_usage("s1") == []


async def test_usage_of_generations_does_not_mix(store):
    """Each generation's entries go to its own claim."""
    first = (await store.create_job("s1", "alice")).generation
    await store.record_usage("s1", {"input_tokens": 1})
    second = (await store.create_job("s1", "alice")).generation
    await store.record_usage("s1", {"input_tokens": 2})
    assert tokens(await store.claim_usage("s1")) == [2]
    assert tokens(await store.claim_usage("s1", generation=second)) == []
    assert tokens(await store.claim_usage("s1", generation=first)) == [1]


async def test_usage_of_an_unknown_job_needs_a_generation(store):
    """Without one there is nothing to record it for."""
    with pytest.raises(JobNotFoundError):
        await store.record_usage("nobody", {"input_tokens": 1})
    assert await store.get_collected_usage("nobody") == []
    assert await store.claim_usage("nobody") == []


async def test_the_manager_claims_as_the_store_does(jobs, jobs_b, store):
    """Newest generation, or the one that is given."""
    generation = (await store.create_job("s1", "alice")).generation
    await store.record_usage("s1", {"input_tokens": 1})
    assert tokens(await jobs_b.claim_usage("s1")) == [1]
    await store.record_usage("s1", {"input_tokens": 2})
    assert tokens(await jobs.claim_usage("s1", generation=generation)) == [2]


# -- a list that callbacks append to ------------------------------------------------------------------------------


async def test_a_collected_list_is_seen_here_and_recorded_at_flush(replica, store_b):
    """Each entry once, however often it is flushed, and the list itself is left alone."""
    store, transport = replica.store, replica.transport
    await store.create_job("s1", "alice")
    calls: list = []
    store.set_collected_usage("s1", calls)
    calls.append({"input_tokens": 1})
    calls.append(UsageMetadata(input_tokens=2))
    assert tokens(await store.get_collected_usage("s1")) == [1, 2]
    await transport.emit_chunk("s1", "x")
    await transport.flush("s1")
    assert tokens(await store_b.get_collected_usage("s1")) == [1, 2]
    calls.append({"input_tokens": 3})
    await transport.flush("s1")
    await transport.flush("s1")
    assert tokens(await store.get_collected_usage("s1")) == [1, 2, 3]
    assert tokens(await store_b.claim_usage("s1")) == [1, 2, 3]
    assert calls == [{"input_tokens": 1}, UsageMetadata(input_tokens=2), {"input_tokens": 3}]
    await store.update_job("s1", status="complete")
    assert await store.claim_usage("s1") == []


@pytest.mark.parametrize("end", ["update", "done", "error", "abort"])
async def test_a_collected_list_is_recorded_at_the_end(replica, replica_b, end):
    """Whichever way the owner ends the job; another replica claims it."""
    generation = (await replica.store.create_job("s1", "alice")).generation
    calls = [{"input_tokens": 1}]
    replica.store.set_collected_usage("s1", calls)
    calls.append({"input_tokens": 2})
    if end == "update":
        await replica.store.update_job("s1", status="complete")
    elif end == "done":
        await replica.transport.emit_done("s1", None)
    elif end == "error":
        await replica.transport.emit_error("s1", "x")
    else:
        result = await replica_b.manager.abort("s1")
        assert tokens(result.collected_usage) == [1, 2]
    assert tokens(await replica_b.store.claim_usage("s1", generation=generation)) == ([] if end == "abort" else [1, 2])
    assert await replica.store.claim_usage("s1", generation=generation) == []


async def test_equal_entries_of_a_list_are_two_calls(replica, store_b):
    """Identity of the position counts, not equality of the numbers."""
    await replica.store.create_job("s1", "alice")
    calls: list = [{"input_tokens": 5}, {"input_tokens": 5}]
    replica.store.set_collected_usage("s1", calls)
    await replica.transport.flush("s1")
    calls.append({"input_tokens": 5})
    await replica.store.update_job("s1", status="complete")
    assert tokens(await store_b.claim_usage("s1")) == [5, 5, 5]


async def test_claiming_on_the_owner_includes_what_is_listed(store):
    """What get shows, claim hands out, once."""
    await store.create_job("s1", "alice")
    calls = [{"input_tokens": 1}]
    store.set_collected_usage("s1", calls)
    assert tokens(await store.claim_usage("s1")) == [1]
    await store.update_job("s1", status="complete")
    assert await store.claim_usage("s1") == []


@pytest.mark.b_writes
async def test_a_stale_generation_may_record_but_not_write(store, store_b):
    """record_usage is the one write that an old generation may still do."""
    old = (await store.create_job("s1", "alice")).generation
    await store_b.create_job("s1", "alice")
    with pytest.raises(JobClosedError):
        await store.append_chunk("s1", 1, generation=old)
    await store.record_usage("s1", {"input_tokens": 1}, generation=old)
    assert tokens(await store_b.claim_usage("s1", generation=old)) == [1]
    with pytest.raises(InvalidIdError):
        await store.record_usage("", {"input_tokens": 1}, generation=old)


# -- spending (no backend) ----------------------------------------------------------------------------------------


@pytest.mark.scenario(89)
async def test_usage_of_three_models_is_spent_once_and_the_list_is_empty():
    """Totals per model over both cache forms; a second spend has nothing to do."""
    usage = [
        UsageMetadata(model="a", input_tokens=1, output_tokens=2),
        UsageMetadata(
            model="b", input_tokens=3, output_tokens=4, input_token_details={"cache_creation": 5, "cache_read": 6}
        ),
        UsageMetadata(
            model="c", input_tokens=7, output_tokens=8, cache_creation_input_tokens=9, cache_read_input_tokens=10
        ),
        UsageMetadata(model="a", input_tokens=11),
    ]
    entries = list(usage)
    spent: list = []
    totals = await spend_collected_usage(usage, spent.append)
    assert usage == []
    assert sorted(spent, key=entries.index) == entries
    found = {
        model: (t.calls, t.input_tokens, t.output_tokens, t.cache_creation, t.cache_read) for model, t in totals.items()
    }
    assert found == {"a": (2, 12, 2, 0, 0), "b": (1, 3, 4, 5, 6), "c": (1, 7, 8, 9, 10)}
    assert await spend_collected_usage(usage, spent.append) == {}
    assert len(spent) == 4


async def test_entries_are_spent_at_the_same_time():
    """Every call has begun before the first one ends."""
    barrier = asyncio.Barrier(3)

    async def spend(_entry: object) -> None:
        await barrier.wait()

    await soon(spend_collected_usage([UsageMetadata(model="m", input_tokens=n) for n in range(3)], spend))


async def test_one_failure_does_not_stop_the_others():
    """SpendError at the end holds the failed entry and the totals of the rest; the list is empty all the same."""
    usage = [UsageMetadata(model="m", input_tokens=n) for n in range(3)]
    failing = usage[1]
    spent = []

    async def spend(entry: UsageMetadata) -> None:
        if entry is failing:
            raise RuntimeError("no credit")
        spent.append(entry.input_tokens)

    with pytest.raises(SpendError) as failed:
        await spend_collected_usage(usage, spend)
    assert sorted(spent) == [0, 2]
    assert usage == []
    ((entry, error),) = failed.value.failures
    assert entry is failing
    assert isinstance(error, RuntimeError)
    assert (failed.value.totals["m"].calls, failed.value.totals["m"].input_tokens) == (2, 2)


async def test_an_entry_whose_recording_was_cut_off_is_recorded_once(store, transport):
    """The write may have landed all the same: the next flush must not bill the call a second time."""
    cut = 0
    for n in range(40):
        stream_id = f"s{n}"
        await store.create_job(stream_id, "alice")
        store.set_collected_usage(stream_id, [{"input_tokens": 7}])
        flushing = asyncio.ensure_future(transport.flush(stream_id))
        await asyncio.sleep(n * 5e-5)
        cut += flushing.cancel()
        await asyncio.wait({flushing})
        await transport.flush(stream_id)
        assert tokens(await store.claim_usage(stream_id)) == [7]
    assert cut


async def test_entries_of_a_list_are_recorded_once_by_several_calls_at_the_same_time(store, transport):
    """Flushes of several tasks, and an end among them, each record the entries that no other has."""
    await store.create_job("s1", "alice")
    store.set_collected_usage("s1", [{"input_tokens": n} for n in range(6)])
    await asyncio.gather(transport.flush("s1"), transport.flush("s1"), transport.emit_done("s1", None))
    assert tokens(await store.claim_usage("s1")) == [0, 1, 2, 3, 4, 5]
