"""Lists, counts and the sweep: what is listed is exactly what there is, on every replica."""

from __future__ import annotations

import asyncio

import pytest
from waiting import eventually, read_all, soon, take

from natsjobs import EndReason, JobNotFoundError, JobStatus


def ids(found):
    """Stream ids of jobs, which are listed newest first; sorted by name, because two may be of one millisecond."""
    stamps = [job.created_at for job in found]
    assert stamps == sorted(stamps, reverse=True)
    return sorted(job.stream_id for job in found)


@pytest.mark.b_writes
async def test_lists_hold_the_newest_generation_of_each_id_newest_first(store, store_b):
    """On the replica that wrote and on another, at once."""
    for stream_id in ("a", "b", "c"):
        await store.create_job(stream_id, "alice")
    await store_b.create_job("a", "alice")
    await store.create_job("gone", "alice")
    await store.delete_job("gone")
    for one in (store, store_b):
        found = await one.list_jobs()
        assert ids(found) == ["a", "b", "c"]
        assert sorted(found, key=lambda job: job.stream_id) == [
            await one.get_job(stream_id) for stream_id in ("a", "b", "c")
        ]


@pytest.mark.scenario(26)
async def test_lists_filter_by_user_status_and_tenant(store, store_b):
    """Each alone and together; a status may be its plain string; None does not filter."""
    await store.create_job("run", "alice")
    await store.create_job("done", "alice", tenant_id="t1")
    await store.update_job("done", status="complete")
    await store.create_job("failed", "bob", tenant_id="t1")
    await store.update_job("failed", status="error", error="x")
    await store.create_job("stopped", "bob")
    await store.update_job("stopped", status="aborted")
    await store.create_job("other", "alice", tenant_id="t2")
    list_jobs = store_b.list_jobs
    assert ids(await list_jobs()) == ["done", "failed", "other", "run", "stopped"]
    assert ids(await list_jobs(user_id="alice")) == ["done", "other", "run"]
    assert ids(await list_jobs(status="running")) == ["other", "run"]
    assert ids(await list_jobs(status=JobStatus.ABORTED)) == ["stopped"]
    assert ids(await list_jobs(tenant_id="t1")) == ["done", "failed"]
    assert ids(await list_jobs(user_id="alice", tenant_id="t1", status="complete")) == ["done"]
    assert ids(await list_jobs(user_id="alice", status="error")) == []
    assert ids(await list_jobs(user_id="nobody")) == []
    assert ids(await store_b.get_running_jobs()) == ["other", "run"]
    assert sorted(await store_b.get_active_job_ids_by_user("alice")) == ["other", "run"]
    assert await store_b.get_active_job_ids_by_user("bob") == []


@pytest.mark.scenario(28)
async def test_users_and_tenants_have_lists_of_their_own(store, store_b):
    """Equal user ids of two tenants do not mix; a replacement by another owner moves the membership."""
    await store.create_job("x", "alice", tenant_id="t1")
    await store.create_job("y", "alice", tenant_id="t2")
    await store.create_job("z", "bob")
    active = store_b.get_active_job_ids_by_user
    assert await active("alice", tenant_id="t1") == ["x"]
    assert await active("alice", tenant_id="t2") == ["y"]
    assert await active("alice", tenant_id="t3") == []
    assert sorted(await active("alice")) == ["x", "y"]
    await store.create_job("x", "bob")
    assert await active("alice", tenant_id="t1") == []
    assert sorted(await active("bob")) == ["x", "z"]


@pytest.mark.scenario(30)
async def test_a_user_without_jobs_has_an_empty_list(store):
    """Not None, not an error."""
    assert await store.get_active_job_ids_by_user("nobody") == []
    assert await store.list_jobs(user_id="nobody") == []


@pytest.mark.scenario(29)
@pytest.mark.parametrize("end", ["update", "delete", "replace", "done"])
async def test_the_active_index_is_right_without_anybody_listing(backend, replica, end):
    """The index key of an ended job goes with its end, not with the next list."""
    store = replica.store
    await store.create_job("s1", "alice")
    assert await backend.records("active") == [("active", "alice", "s1")]
    if end == "update":
        await store.update_job("s1", status="complete")
    elif end == "delete":
        await store.delete_job("s1")
    elif end == "replace":
        await store.create_job("s1", "bob")
    else:
        await replica.transport.emit_done("s1", None)
    expected = [("active", "bob", "s1")] if end == "replace" else []
    assert await backend.records("active") == expected


@pytest.mark.scenario(27)
async def test_a_stale_active_entry_is_left_out_and_removed(backend, store):
    """An entry without a job, and one of a job that has ended."""
    await store.create_job("ended", "alice")
    await store.update_job("ended", status="complete")
    await backend.put_record({"generation": "g", "owner": "o"}, "active", "alice", "never")
    await backend.put_record({"generation": "g", "owner": "o"}, "active", "alice", "ended")
    await store.create_job("real", "alice")
    assert await store.get_active_job_ids_by_user("alice") == ["real"]
    await eventually(lambda: _records_are(backend, "active", [("active", "alice", "real")]))


@pytest.mark.scenario(20)
async def test_cleanup_drops_index_entries_without_a_job(backend, store):
    """And keeps those of running jobs."""
    await store.create_job("real", "alice")
    await backend.put_record({"generation": "g", "owner": "o"}, "active", "alice", "never")
    assert await store.cleanup() >= 0
    assert await backend.records("active") == [("active", "alice", "real")]
    assert (await store.get_job("real")).status == "running"


async def _records_are(backend, kind, expected):
    return await backend.records(kind) == expected


async def test_counts_are_exact(store, store_b):
    """In total and by status, right after each change, on another replica."""
    assert await store_b.get_job_count() == 0
    for n in range(7):
        await store.create_job(f"s{n}", "alice")
        assert await store_b.get_job_count() == n + 1
    await store.create_job("s0", "alice")
    await store.update_job("s1", status="complete")
    await store.update_job("s2", status="error", error="x")
    await store.update_job("s3", status="aborted")
    await store.delete_job("s4")
    assert await store_b.get_job_count() == 6
    by_status = {status: await store_b.get_job_count_by_status(status) for status in JobStatus}
    assert by_status == {"running": 3, "complete": 1, "error": 1, "aborted": 1}
    assert await store_b.get_job_count_by_status("running") == 3


async def test_lists_are_complete_while_records_are_rewritten(store, store_b):
    """No job is missed, or listed twice, while another replica updates all of them."""
    expected = {f"s{n}" for n in range(60)}
    await asyncio.gather(*(store.create_job(stream_id, "alice") for stream_id in expected))
    stop = asyncio.Event()

    async def rewrite() -> None:
        while not stop.is_set():
            for stream_id in expected:
                await store.update_job(stream_id, sender="again")

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(rewrite())
        for _ in range(10):
            found = ids(await store_b.list_jobs())
            assert len(found) == len(expected)
            assert set(found) == expected
        stop.set()


# -- retention and the sweep --------------------------------------------------------------------------------------


@pytest.mark.scenario(17, 21, 22)
async def test_a_job_without_activity_expires_and_one_with_activity_does_not(backend):
    """Readers of the silent one get the error EXPIRED; appending keeps the other alive beyond the limit."""
    config = backend.config(retention={"running": 3.0})
    a, b = await backend.replica(config), await backend.replica(config)
    await a.store.create_job("silent", "alice")
    await a.store.create_job("busy", "alice")
    async with b.manager.subscribe("silent") as events:
        async with asyncio.timeout(30):
            read = asyncio.ensure_future(take(events, 1, within=30))
            while not read.done():
                await a.store.append_chunk("busy", "tick")
                await b.store.cleanup()
                await asyncio.sleep(0.05)
            (end,) = await read
    assert (end.type, end.end_reason) == ("error", EndReason.EXPIRED)
    job = await a.store.get_job("silent")
    assert (job.status, job.end_reason) == ("error", EndReason.EXPIRED)
    assert await b.store.get_active_job_ids_by_user("alice") == ["busy"]
    assert (await b.store.get_job("busy")).status == "running"


@pytest.mark.scenario(22)
async def test_an_inactivity_limit_of_zero_never_ends_a_job(backend):
    """It outlives one with a limit, in a namespace of its own, which was made later."""
    never = await backend.replica(backend.config(retention={"running": 0.0}))
    await never.store.create_job("s1", "alice")
    limited = await backend.stranger(retention={"running": 1.0})
    await limited.store.create_job("s2", "alice")
    await eventually(lambda: _has_ended(limited.store, "s2"), within=30)
    await never.store.cleanup()
    assert (await never.store.get_job("s1")).status == "running"


async def _has_ended(store, stream_id):
    job = await store.get_job(stream_id)
    return job is None or job.status.is_terminal


@pytest.mark.scenario(25)
async def test_seventy_five_stale_jobs_go_and_the_active_one_stays(backend):
    """One sweep's work, whoever does it."""
    config = backend.config(retention={"running": 5.0})
    a, b = await backend.replica(config), await backend.replica(config)
    await a.store.create_job("active", "alice")
    await asyncio.gather(*(a.store.create_job(f"stale{n}", "alice") for n in range(75)))
    over = asyncio.Event()

    async def stay_active() -> None:
        while not over.is_set():
            await a.store.append_chunk("active", "tick")
            await asyncio.sleep(0.05)

    async def only_one_left() -> bool:
        await b.store.cleanup()
        return await b.store.get_active_job_ids_by_user("alice") == ["active"]

    async with asyncio.TaskGroup() as group:
        group.create_task(stay_active())
        await eventually(only_one_left, within=60)
        over.set()
    assert await b.store.get_job_count_by_status("error") == 75
    assert await b.store.get_job_count_by_status("running") == 1


@pytest.mark.scenario(23, 92)
async def test_a_replacement_survives_the_sweep_that_saw_its_predecessor_stale(backend):
    """Jobs are re-created exactly while another replica sweeps."""
    config = backend.config(retention={"running": 3.0})
    a, b = await backend.replica(config), await backend.replica(config)
    names = [f"s{n}" for n in range(20)]
    await asyncio.gather(*(a.store.create_job(name, "alice") for name in names))
    await eventually(lambda: _has_ended(a.store, names[0]), within=30)
    made, *_ = await soon(
        asyncio.gather(
            asyncio.gather(*(a.store.create_job(name, "alice") for name in names)), b.store.cleanup(), b.store.cleanup()
        )
    )
    assert [await b.store.get_job(name) for name in names] == made
    assert sorted(await b.store.get_active_job_ids_by_user("alice")) == sorted(names)


@pytest.mark.scenario(82)
@pytest.mark.parametrize("status", ["complete", "error", "aborted"])
async def test_a_finished_job_stays_for_late_clients_and_then_goes(backend, status):
    """Until retention.finished is over it replays; afterwards record and log are gone."""
    config = backend.config(retention={"finished": 2.0})
    a, b = await backend.replica(config), await backend.replica(config)
    await a.store.create_job("s1", "alice")
    await a.store.append_chunk("s1", "x")
    await a.store.update_job("s1", status=status)
    assert len(await read_all(b.manager.subscribe, "s1")) == 2

    async def gone() -> bool:
        await b.store.cleanup()
        return not await b.store.has_job("s1")

    await eventually(gone, within=30)
    assert await a.store.list_jobs() == []
    assert await a.store.get_content_parts("s1") is None
    with pytest.raises(JobNotFoundError):
        await read_all(a.manager.subscribe, "s1")


async def test_cleanup_of_nothing_is_zero(store):
    """A sweep over running jobs with activity touches none of them."""
    assert await store.cleanup() == 0
    await store.create_job("s1", "alice")
    assert await store.cleanup() == 0
    assert (await store.get_job("s1")).status == "running"


@pytest.mark.parametrize("state", ["well", "old", "silent", "moving"])
async def test_a_long_list_is_whole_whatever_replicas_say(store, store_b, monkeypatch, state):
    """More than two pages: a replica that lags or says nothing is not believed, also when the newest key goes away."""
    await asyncio.gather(*(store.create_job(f"j{number}", "alice") for number in range(150)))
    await store.delete_job("j7")
    for number in range(0, 150, 10):
        await store.update_job(f"j{number}", status="complete")
    records = store_b.replica.context.link.records
    newest, behind, asked = records.newest, (await records.last("$KV.*.job.>")).seq - 20, 0

    async def answer(filters):
        nonlocal asked
        asked += 1
        found = await newest(filters)
        if state == "silent" or found is None:
            return None
        if state == "moving" and asked == 2:
            await store.delete_job("j149")
        return [message for message in found if message.seq <= behind] if state == "old" else found

    monkeypatch.setattr(records, "newest", answer)
    gone = {7, 149} if state == "moving" else {7}
    found = await soon(store_b.list_jobs())
    listed = sorted(f"j{number}" for number in range(150) if number not in gone)
    assert [one for one in ids(found) if state != "moving" or one != "j149"] == listed  # read before it went, perhaps
    ended = {job.stream_id for job in found if job.status is JobStatus.COMPLETE}
    assert ended == {f"j{number}" for number in range(0, 150, 10)}
    assert len(await soon(store_b.get_running_jobs())) == 150 - 15 - len(gone)
    active = await soon(store_b.get_active_job_ids_by_user("alice"))
    assert sorted(active) == sorted(f"j{n}" for n in range(150) if n % 10 and n not in gone)
