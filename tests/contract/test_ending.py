"""The end of a generation through the store: one terminal record, one winner, and what deleting removes."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest
from making import rest
from waiting import eventually, read_all, soon, take, values

from natsjobs import EndReason, EventTooLargeError, InvalidArgumentError, JobClosedError, JobStatus, StreamFullError
from natsjobs.engine.jobs import mark_ended

# -- the end -----------------------------------------------------------------------------------------------------


@pytest.mark.scenario(2, 80, 81)
@pytest.mark.parametrize(
    ("status", "given", "kind", "data", "reason"),
    [
        ("complete", {"final_event": '{"final": true}'}, "done", {"final": True}, None),
        ("complete", {}, "done", None, None),
        (JobStatus.COMPLETE, {"final_event": "[1.5, null]"}, "done", [1.5, None], None),
        ("error", {"error": "it broke"}, "error", "it broke", None),
        ("aborted", {"final_event": '{"aborted": true}'}, "aborted", {"aborted": True}, EndReason.ABORT),
        ("aborted", {}, "aborted", None, EndReason.ABORT),
    ],
)
async def test_a_terminal_status_ends_record_and_log_alike(replica, replica_b, status, given, kind, data, reason):
    """Readers that follow and readers that come later get the same terminal record, once."""
    await replica.store.create_job("s1", "alice")
    await replica.store.append_chunk("s1", "x")
    async with replica_b.manager.subscribe("s1") as events:
        assert await replica.store.update_job("s1", status=status, **given) is True
        followed = await soon(rest(events))
    assert followed == await read_all(replica.manager.subscribe, "s1")
    end = followed[-1]
    assert (end.type, end.data, end.end_reason, end.index) == (kind, data, reason, 1)
    job = await replica_b.store.get_job("s1")
    assert job.status == str(status)
    assert job.status.is_terminal
    assert job.completed_at >= job.created_at
    assert job.end_reason == reason
    assert job.error == given.get("error")
    assert (json.loads(job.final_event) if job.final_event else None) == (data if kind != "error" else None)
    assert job.owner is None


async def test_a_terminal_status_uses_what_the_record_already_holds(store, jobs_b):
    """A final event or an error that an earlier update stored is what readers get."""
    await store.create_job("done", "alice")
    await store.update_job("done", final_event='{"text": "kept"}')
    await store.update_job("done", status="complete")
    assert (await read_all(jobs_b.subscribe, "done"))[-1].data == {"text": "kept"}
    await store.create_job("failed", "alice")
    await store.update_job("failed", error="kept too")
    await store.update_job("failed", status="error")
    assert (await read_all(jobs_b.subscribe, "failed"))[-1].data == "kept too"


async def test_completed_at_may_be_given(store, store_b):
    """As LibreChat does."""
    job = await store.create_job("s1", "alice")
    await store.update_job("s1", status="complete", completed_at=job.created_at + 5)
    assert (await store_b.get_job("s1")).completed_at == job.created_at + 5


@pytest.mark.scenario(79)
async def test_an_error_wins_over_a_final_event(store, jobs_b):
    """Both stored: the terminal record is the error."""
    await store.create_job("s1", "alice")
    await store.update_job("s1", final_event='{"ok": 1}')
    await store.update_job("s1", status="error", error="broke")
    end = (await read_all(jobs_b.subscribe, "s1"))[-1]
    assert (end.type, end.data) == ("error", "broke")


async def test_the_first_terminal_status_wins(store, store_b, jobs_b):
    """A second one answers False and changes nothing, also what else it names; other fields may still be set."""
    await store.create_job("s1", "alice")
    assert await store.update_job("s1", status="complete", final_event='"first"') is True
    ended = await store.get_job("s1")
    assert await store_b.update_job("s1", status="error", error="second", sender="x") is False
    assert await store_b.update_job("s1", status="complete", final_event='"second"') is False
    assert await store.get_job("s1") == ended
    assert await store_b.update_job("s1", sender="later") is True
    changed = await store.get_job("s1")
    assert (changed.status, changed.sender, changed.completed_at) == ("complete", "later", ended.completed_at)
    assert [event.data for event in await read_all(jobs_b.subscribe, "s1")] == ["first"]


async def test_an_ended_job_never_runs_again(store):
    """``status="running"`` for an ended generation changes nothing."""
    await store.create_job("s1", "alice")
    await store.update_job("s1", status="complete")
    ended = await store.get_job("s1")
    assert await store.update_job("s1", status="running") is False
    assert await store.get_job("s1") == ended


async def test_terminal_statuses_at_the_same_time_have_one_winner(store, store_b, jobs_b):
    """Six writers on two replicas: one True, and its end is the one that readers get."""
    for n in range(5):
        await store.create_job(f"s{n}", "alice")
        answers = await soon(
            asyncio.gather(
                *((store, store_b)[i % 2].update_job(f"s{n}", status="error", error=str(i)) for i in range(6))
            )
        )
        assert sorted(answers) == [False] * 5 + [True]
        (end,) = await read_all(jobs_b.subscribe, f"s{n}")
        assert end.data == str(answers.index(True)) == (await store.get_job(f"s{n}")).error


@pytest.mark.scenario(12)
@pytest.mark.parametrize("status", ["complete", "error", "aborted"])
async def test_after_the_end_nothing_can_be_appended(replica, replica_b, status):
    """Through either door, on every replica: JobClosedError that says how it ended."""
    job = await replica.store.create_job("s1", "alice")
    await replica.store.update_job("s1", status=status)
    for one in (replica, replica_b):
        for generation in (None, job.generation):
            for write in (
                one.store.append_chunk("s1", 1, generation=generation),
                one.store.save_run_steps("s1", [], generation=generation),
                one.transport.emit_done("s1", 1, generation=generation),
                one.transport.emit_error("s1", "x", generation=generation),
            ):
                with pytest.raises(JobClosedError) as refused:
                    await write
                assert (refused.value.stream_id, refused.value.status) == ("s1", status)
                assert refused.value.generation == job.generation
    assert len(await read_all(replica.manager.subscribe, "s1")) == 1


async def stored(store):
    """The record as it stands in the bucket."""
    context = store.replica.context
    return (await context.records.read(context.subjects.record("job", "s1"))).value


@pytest.mark.parametrize("status", ["complete", "aborted"])
async def test_a_final_event_of_any_size_ends_a_job_by_an_update(store, store_b, jobs_b, status):
    """Readers and the job have it whole; the record itself does not hold a large one (B7), but all else that was named
    with it."""
    for size in (10, 100_000, 300_000, 2_500_000):
        final = json.dumps({"text": "x" * size}, separators=(",", ":"))
        job = await store.create_job("s1", "alice")
        at = job.created_at + 7
        assert await store.update_job("s1", status=status, final_event=final, sender="AI", completed_at=at) is True
        (end,) = await read_all(jobs_b.subscribe, "s1")
        assert end.data == json.loads(final)
        ended = await store_b.get_job("s1")
        assert (ended.status, ended.final_event) == (status, final)
        assert (ended.sender, ended.completed_at, ended.owner) == ("AI", at, None)
        assert (await stored(store)).get("finalEvent") == (final if size == 10 else None)


async def test_an_update_that_is_too_large_ends_no_job(backend):
    """Refused before anything: the final event by the limit of events, every other field by that of the record."""
    replica = await backend.replica(backend.config(limits={"event_bytes": 5_000}))
    job = await replica.store.create_job("s1", "alice")
    large = json.dumps("x" * 5_000)
    for field, changes in (
        ("final_event", {"status": "complete", "final_event": large}),
        ("final_event", {"status": "aborted", "final_event": large}),
        ("metadata", {"status": "complete", "metadata": {"a": "x" * 300_000}, "final_event": "1"}),
        ("metadata", {"status": "error", "metadata": {"a": "x" * 300_000}, "error": "broke"}),
    ):
        with pytest.raises(EventTooLargeError) as refused:
            await replica.store.update_job("s1", **changes)
        assert refused.value.field == field
        assert await replica.store.get_job("s1") == job
    deep = "[" * 300 + "]" * 300
    with pytest.raises(InvalidArgumentError, match="final_event"):
        await replica.store.update_job("s1", status="complete", final_event=deep)
    assert await replica.store.append_chunk("s1", "goes on") == 0


async def test_what_fits_before_the_end_fits_after_it(store, jobs_b):
    """An end brings its own words into the record; what the update names beside it is not refused for that."""
    words, metadata = "é" * 16_000, {"a": "x" * 200_000}
    await store.create_job("s1", "alice")
    assert await store.update_job("s1", status="error", error=words, metadata=metadata) is True
    job = await store.get_job("s1")
    assert (job.status, job.error, job.metadata) == ("error", words, metadata)
    final = json.dumps("x" * 60_000)
    await store.create_job("s1", "alice")
    assert await store.update_job("s1", status="complete", final_event=final, metadata=metadata) is True
    job = await store.get_job("s1")
    assert (job.status, job.final_event, job.metadata) == ("complete", final, metadata)
    assert (await read_all(jobs_b.subscribe, "s1"))[-1].data == json.loads(final)


async def test_what_an_update_names_is_kept_when_somebody_else_notes_its_end_first(store):
    """Whoever sees an end may repair the record; of the fields beside it he knows nothing."""
    job = await store.create_job("s1", "alice")
    await store.end_job("s1", generation=job.generation, status="complete", final_event=1)
    ended, context = await store.get_job("s1"), store.replica.context
    terminal = await store.replica.runs.terminal_of("s1", job.generation)
    for fields in ({"sender": "AI"}, {}):
        await mark_ended(context, "s1", job.generation, terminal, fields)
        assert await store.get_job("s1") == msgspec.structs.replace(ended, sender="AI")


async def test_a_final_event_can_be_cleared_by_the_update_that_ends_the_job(store, store_b, jobs_b):
    """Log and record agree: there is none."""
    await store.create_job("s1", "alice")
    await store.update_job("s1", final_event='"earlier"')
    assert await store.update_job("s1", status="complete", final_event=None) is True
    assert (await read_all(jobs_b.subscribe, "s1"))[-1].data is None
    assert (await store_b.get_job("s1")).final_event is None


@pytest.mark.scenario(11)
@pytest.mark.b_writes
async def test_an_end_that_meets_a_new_generation_removes_nothing_of_it(store, store_b):
    """A completes the old generation while B creates the next, thirty times."""
    for _ in range(30):
        old = await store.create_job("s1", "alice")
        _, new = await soon(
            asyncio.gather(
                store.update_job("s1", expected_generation=old.generation, status="complete"),
                store_b.create_job("s1", "alice"),
            )
        )
        assert await store.get_job("s1") == new
        assert await store.get_active_job_ids_by_user("alice") == ["s1"]
        assert await store_b.append_chunk("s1", "x", generation=new.generation) == 0


# -- delete ------------------------------------------------------------------------------------------------------


@pytest.mark.scenario(3)
@pytest.mark.parametrize("ended", [False, True], ids=["running", "ended"])
async def test_a_deleted_job_is_gone_with_all_it_had(backend, replica, replica_b, ended):
    """Record, log, steps and index; deleting again is fine and says False."""
    store = replica.store
    await store.create_job("s1", "alice")
    await store.append_chunk("s1", {"event": "x"})
    await store.save_run_steps("s1", [{"id": "st"}])
    if ended:
        await store.update_job("s1", status="complete")
    assert await replica_b.store.delete_job("s1") is True
    for one in (store, replica_b.store):
        assert await one.get_job("s1") is None
        assert await one.has_job("s1") is False
        assert await one.get_content_parts("s1") is None
        assert await one.get_run_steps("s1") == []
        assert await one.get_resume_state("s1") is None
        assert await one.get_active_job_ids_by_user("alice") == []
        assert await one.list_jobs() == []
        assert await one.get_job_count() == 0
        assert await one.delete_job("s1") is False
    assert await backend.records("active") == []
    assert await backend.records("job") == []


async def test_deleting_a_running_job_ends_it_for_its_readers(store, store_b, jobs_b):
    """They get the terminal record with DELETED, after everything that was emitted."""
    await store.create_job("s1", "alice")
    await store.append_chunk("s1", "a")
    async with jobs_b.subscribe("s1") as events:
        await take(events, 1)
        assert await store_b.delete_job("s1") is True
        (end,) = await soon(rest(events))
    assert (end.type, end.end_reason, end.index) == ("aborted", EndReason.DELETED, 1)


async def test_delete_takes_an_expected_generation(store):
    """Another one: False and nothing is removed."""
    job = await store.create_job("s1", "alice")
    assert await store.delete_job("s1", expected_generation="other") is False
    assert await store.get_job("s1") == job
    assert await store.delete_job("s1", expected_generation=job.generation) is True


@pytest.mark.scenario(5)
async def test_updates_and_a_delete_at_the_same_time_leave_nothing(backend, store, store_b):
    """Whoever comes first, afterwards the job is absent."""
    for n in range(15):
        await store.create_job(f"s{n}", "alice")
        await soon(
            asyncio.gather(
                store.update_job(f"s{n}", sender="x"),
                store_b.delete_job(f"s{n}"),
                store.update_job(f"s{n}", status="complete"),
                store_b.update_job(f"s{n}", model="y"),
            )
        )
        assert await store.get_job(f"s{n}") is None
    assert await store.get_job_count() == 0
    await eventually(lambda: _none(backend, "job"))
    await eventually(lambda: _none(backend, "active"))


async def _none(backend, kind):
    return await backend.records(kind) == []


@pytest.mark.b_writes
async def test_a_deleted_id_starts_afresh(store, store_b, jobs_b):
    """The next generation has indexes from 0 and none of the old events."""
    await store.create_job("s1", "alice", sender="old")
    await store.append_chunk("s1", "old")
    await store.delete_job("s1")
    job = await store_b.create_job("s1", "bob")
    assert job.sender is None
    assert await store.append_chunk("s1", "new") == 0
    await store.update_job("s1", status="complete")
    assert values(await read_all(jobs_b.subscribe, "s1")) == ["new"]


async def test_fields_that_are_refused_behind_an_end_are_not_lost_silently(replica, monkeypatch):
    """The log has decided, and a sweep will say so in the record; of the fields only who gave them knows."""
    await replica.store.create_job("s1", "alice")
    records = replica.store.replica.context.records
    write = records.write

    async def refused(key, *args, **options):
        if ".job." in key:
            raise StreamFullError("the bucket is full", size=1, limit=1)
        return await write(key, *args, **options)

    with monkeypatch.context() as full:
        full.setattr(records, "write", refused)
        with pytest.raises(StreamFullError):
            await replica.store.update_job("s1", status="complete", metadata={"cost": 3})
    await replica.store.cleanup()
    assert await replica.store.update_job("s1", metadata={"cost": 3})
    job = await replica.store.get_job("s1")
    assert (job.status, job.metadata) == ("complete", {"cost": 3})
