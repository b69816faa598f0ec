"""Sweeps one after the other: what is wrong since the last one is found by what has changed."""

from __future__ import annotations

import asyncio

from waiting import eventually


async def test_a_sweep_repairs_what_went_wrong_since_the_one_before(backend):
    """A record that lags behind its log, entries that are missing, old, or of nobody; forty jobs are not read again."""
    config = backend.config(timing={"sweep": 3600.0})
    a, b = await backend.replica(config), await backend.replica(config)
    context = a.store.replica.context
    names = [f"s{number}" for number in range(40)]
    await asyncio.gather(*(a.store.create_job(name, "alice") for name in names))
    assert await b.store.cleanup() == 0
    running = await context.records.read(context.subjects.record("job", "s1"))
    await a.store.update_job("s1", status="complete")
    await backend.put_record(running.value, "job", "s1")
    await backend.put_record({"generation": "0", "owner": "o"}, "active", "alice", "s2")
    await context.records.remove(context.subjects.record("active", "alice", "s3"), expect=None)
    for ids in (("alice", "s1"), ("alice", "never"), ("bob", "s4")):
        await backend.put_record({"generation": running.value["generation"], "owner": "o"}, "active", *ids)
    assert await b.store.cleanup() == 3  # the job, and the entries that name nobody's; its own goes with it
    assert b.store.replica.upkeep._survey._times == 2, "it did not begin anew"
    assert (await b.store.get_job("s1")).status == "complete"
    listed = sorted(name for name in names if name != "s1")
    assert sorted(await backend.records("active")) == [("active", "alice", name) for name in listed]
    assert sorted(await b.store.get_active_job_ids_by_user("alice")) == listed
    assert await b.store.cleanup() == 0


async def test_a_sweep_forgets_keys_that_have_gone_without_a_trace(backend):
    """As a TTL leaves them: nothing that was stored since the last sweep tells of them."""
    config = backend.config(timing={"sweep": 3600.0})
    a, b = await backend.replica(config), await backend.replica(config)
    await asyncio.gather(*(a.store.create_job(f"s{number}", "alice") for number in range(20)))
    await b.store.cleanup()
    survey, context = b.store.replica.upkeep._survey, a.store.replica.context
    gone = [context.subjects.record("job", "s7"), context.subjects.record("active", "alice", "s8")]
    for key in gone:
        await context.records.remove(key, expect=None)

    async def left() -> bool:
        return not (await context.link.records.subjects(">")).keys() & set(gone)

    await eventually(left)
    await survey.look()
    assert survey._times == 2, "it did not begin anew"
    assert survey.records.keys() == {f"s{number}" for number in range(20) if number != 7}
    assert [seen.stream_id for seen in survey.unlisted.values()] == ["s8"]
    assert [slot.key for slot in survey.odd] == [context.subjects.record("active", "alice", "s7")]
