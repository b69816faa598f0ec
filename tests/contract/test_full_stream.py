"""A stream that fills up: events stop at 90 % with a typed error, what runs still ends, and room brings it all back."""

from __future__ import annotations

import asyncio
import logging
import time

import msgspec
import pytest
from backends import FAST
from waiting import check_whole, emit_stored, eventually, read_all, soon, values

from natsjobs import JobClosedError, StreamFullError

KIB = 1024
EVENT = {"text": "x" * 4 * KIB}
LARGE = {"text": "y" * 20 * KIB}


async def emit_for_ever(jobs, sent):
    """One run that emits until it is refused; ``sent`` is what was acknowledged."""
    async with jobs.start("s1", user_id="alice") as run:
        while True:
            event = {**EVENT, "n": len(sent)}
            await run.emit(event)
            await run.flush()
            sent.append(event)


async def starts(jobs, stream_id):
    """Whether a whole run works again."""
    try:
        async with jobs.start(stream_id, user_id="alice") as run:
            await run.emit(LARGE)
    except StreamFullError:
        return False
    return True


async def filled(backend, replica, size):
    """Fill the stream past the library, and wait until the replica's reader has seen it."""
    await backend.fill(size)
    headroom = replica.store.replica.context.headroom
    await eventually(lambda: headroom.state is not None and headroom.state.bytes >= size)


async def test_events_are_refused_at_90_percent_and_the_run_ends_as_failed(backend, jobs, jobs_b):
    """The error names bytes and limit; readers get everything that was acknowledged, then an end that says why."""
    await backend.limit(200 * KIB)
    sent = []
    with pytest.raises(StreamFullError) as full:
        await emit_for_ever(jobs, sent)
    assert full.value.limit == 200 * KIB
    assert full.value.size <= 0.9 * 200 * KIB
    assert f"{200 * KIB:,}" in str(full.value)
    assert "max_bytes" in str(full.value)
    assert not full.value.outcome_unknown
    assert len(sent) > 30
    assert await backend.held() <= 0.91 * 200 * KIB
    events = await read_all(jobs_b.subscribe, "s1")
    check_whole(events, sent)
    assert events[-1].type == "error"
    assert "max_bytes" in events[-1].data
    job = await jobs_b.get("s1")
    assert (job.status, job.end_reason) == ("error", None)
    assert await jobs_b.active("alice") == []


async def test_done_does_not_pretend(backend, jobs, jobs_b, transport, store):
    """Nobody had heard of the refusal yet: complete(), leaving the block, emit_done and update_job all say it."""
    await backend.limit(100 * KIB)
    large = "x" * 95 * KIB

    async def by_complete():
        async with jobs.start("complete", user_id="alice") as run:
            await run.emit("a")
            await run.flush()
            await run.emit(large)
            await run.complete("final")

    async def by_leaving():
        async with jobs.start("leaving", user_id="alice") as run:
            await run.emit("a")
            await run.flush()
            await run.emit(large)

    async def by_emit_done():
        await store.create_job("emit_done", "alice")
        await emit_stored(transport, "emit_done", "a")
        await transport.emit_chunk("emit_done", large)
        await transport.emit_done("emit_done", "final")

    async def by_update():
        await store.create_job("update", "alice")
        await emit_stored(transport, "update", "a")
        await transport.emit_chunk("update", large)
        await store.update_job("update", status="complete", final_event='"final"')

    for name, way in (
        ("complete", by_complete),
        ("leaving", by_leaving),
        ("emit_done", by_emit_done),
        ("update", by_update),
    ):
        with pytest.raises(StreamFullError):
            await soon(way())
        events = await read_all(jobs_b.subscribe, name)
        assert values(events) == ["a"], name
        assert (events[-1].type, events[-1].index) == ("error", 1)
        assert "could not be stored" in events[-1].data
        assert (await jobs_b.get(name)).status == "error"


@pytest.mark.b_writes
async def test_a_create_above_90_percent_is_refused_at_once(backend, replica, jobs, jobs_b):
    """Before its predecessor is ended: that one goes on; and again when there is room."""
    await backend.limit(100 * KIB)
    old = await jobs.store.create_job("s1", "alice")
    await filled(backend, replica, 92 * KIB)
    for one in (jobs, jobs_b):
        assert not await starts(one, "s1")
        with pytest.raises(StreamFullError, match="max_bytes"):
            await one.store.create_job("s2", "alice")
    assert await jobs_b.get("s1") == old
    assert await jobs_b.get("s2") is None
    await backend.limit(200 * KIB)
    await eventually(lambda: starts(jobs_b, "s1"))
    check_whole(await read_all(jobs.subscribe, "s1"), [LARGE])


async def test_what_runs_can_still_end_in_the_last_10_percent(backend, replica, store, jobs_b):
    """Complete, fail, abort, replace refused but ended by delete: each terminal record is stored and read."""
    await backend.limit(100 * KIB)
    for name in ("done", "error", "aborted", "deleted", "cleared"):
        await store.create_job(name, "alice")
        await store.append_chunk(name, name)
    await filled(backend, replica, 94 * KIB)
    with pytest.raises(StreamFullError):
        await store.append_chunk("cleared", "more than fits" * 100)
    await store.update_job("done", status="complete", final_event='"final"')
    await store.update_job("error", status="error", error="broke")
    result = await jobs_b.abort("aborted")
    assert result.success
    assert await jobs_b.store.delete_job("deleted")
    await store.clear_content_state("cleared")
    await store.update_job("cleared", status="complete")
    for name in ("done", "error", "aborted"):
        events = await read_all(jobs_b.subscribe, name)
        check_whole(events, [name])
        assert events[-1].type == name
    assert await jobs_b.get("deleted") is None
    assert [event.type for event in await read_all(jobs_b.subscribe, "cleared")] == ["done"]
    assert await jobs_b.active("alice") == []


async def test_a_large_final_event_gives_way_to_the_end(backend, replica, store, jobs, jobs_b):
    """It does not fit any more: done becomes an error that says so, an abort has no final event, an error is cut."""
    large = "y" * 80 * KIB
    await backend.limit(200 * KIB)
    for name in ("done", "aborted", "error"):
        await store.create_job(name, "alice")
    await filled(backend, replica, 150 * KIB)
    job = await store.get_job("done")
    with pytest.raises(StreamFullError):
        await store.end_job("done", generation=job.generation, status="complete", final_event=large)
    assert (await jobs.abort("aborted", final_event=large)).success
    await store.update_job("error", status="error", error=large)
    ends = {name: (await read_all(jobs_b.subscribe, name))[-1] for name in ("done", "aborted", "error")}
    assert ends["done"].type == "error"
    assert "could not be stored" in ends["done"].data
    assert (ends["aborted"].type, ends["aborted"].data) == ("aborted", None)
    assert ends["error"].type == "error"
    assert ends["error"].data.startswith("yyy")
    assert await jobs_b.active("alice") == []


async def test_a_producer_that_goes_on_hears_it_again_and_is_heard_again(backend, replica, store, transport, jobs_b):
    """A body that swallows the error loses nothing silently: what was queued is stored when there is room."""
    await backend.limit(100 * KIB)
    await store.create_job("s1", "alice")
    await transport.emit_chunk("s1", 0)
    await transport.flush("s1")
    await filled(backend, replica, 95 * KIB)
    await transport.emit_chunk("s1", {**EVENT, "n": 1})
    for _ in range(3):
        with pytest.raises(StreamFullError):
            await transport.flush("s1")
    await backend.limit(300 * KIB)

    async def stored():
        try:
            await transport.flush("s1")
        except StreamFullError:
            return False
        return True

    await eventually(stored, within=5)
    await transport.emit_chunk("s1", 2)
    await transport.emit_done("s1", None)
    check_whole(await read_all(jobs_b.subscribe, "s1"), [0, {**EVENT, "n": 1}, 2])


async def test_nothing_is_refused_on_old_knowledge(backend):
    """Who is about to be refused looks first: the reader that works by itself would need twenty seconds here."""
    replica = await backend.replica(backend.config(timing={"lease": 40.0, "renew": 20.0}))
    await backend.limit(100 * KIB)
    for name in ("s1", "s2"):
        await replica.store.create_job(name, "alice")
    await backend.fill(95 * KIB)
    with pytest.raises(StreamFullError):
        await replica.store.append_chunk("s1", EVENT)
    await backend.limit(300 * KIB)
    assert await replica.store.append_chunk("s2", "small") == 0


async def test_a_full_stream_comes_back_by_itself(backend):
    """Logs of ended jobs leave after their retention: the reserve has room for the tombstones that this takes."""
    replica = await backend.replica(backend.config(retention={"finished": 1.0, "tombstone": 1.0}))
    await backend.limit(100 * KIB)
    with pytest.raises(StreamFullError):
        await emit_for_ever(replica.manager, [])
    assert not await starts(replica.manager, "s2")
    await eventually(lambda: starts(replica.manager, "s2"), within=30)


async def test_a_log_warns_once_when_80_percent_are_reached(backend, jobs, caplog):
    """Once per crossing, not once per look."""
    await backend.limit(200 * KIB)
    with caplog.at_level(logging.WARNING, logger="natsjobs.engine.headroom"):
        async with jobs.start("s1", user_id="alice") as run:
            while await backend.held() < 165 * KIB:
                await run.emit(EVENT)
                await run.flush()
            await eventually(lambda: caplog.records)
            held = await backend.held()
            while await backend.held() == held:
                await run.emit(EVENT)
                await run.flush()
    warned = [record.getMessage() for record in caplog.records if "% full" in record.getMessage()]
    assert len(warned) == 1
    assert str(200 * KIB) in warned[0]


async def test_a_full_bucket_refuses_creates_and_kills_nobody(backend, replica, replica_b):
    """A typed error at once and no job; a living owner whose lease cannot be renewed goes on and ends."""
    store, jobs_b = replica.store, replica_b.manager
    await store.create_job("s1", "alice", metadata={"pad": "x" * 4 * KIB})
    await backend.limit(16 * KIB, bucket=True)
    with pytest.raises(StreamFullError, match="bucket"):
        await soon(store.create_job("s2", "alice", metadata={"pad": "x" * 12 * KIB}), within=3)
    assert await jobs_b.get("s2") is None
    await backend.limit(1, bucket=True)
    with pytest.raises(StreamFullError):
        await soon(store.create_job("s3", "alice"), within=3)
    since = time.monotonic()
    await eventually(lambda: _lapsed(backend, since), within=30)
    await replica_b.store.cleanup()
    assert await store.append_chunk("s1", "still here") == 0
    assert (await jobs_b.get("s1")).status == "running"
    await backend.limit(-1, bucket=True)
    assert await eventually(lambda: backend.records("owner"), within=30)
    await store.update_job("s1", status="complete")
    check_whole(await read_all(jobs_b.subscribe, "s1"), ["still here"])
    await store.create_job("s3", "alice")
    assert {job.stream_id for job in await jobs_b.list_jobs()} == {"s1", "s3"}


async def _lapsed(backend, since):
    """No lease any more; a server that has no room for the marker of its removal may keep it (2.15 does)."""
    return not await backend.records("owner") or time.monotonic() - since > 2 * FAST["lease"]


async def test_an_end_on_a_full_bucket_stands_and_the_record_follows(backend, store, jobs_b):
    """The log decides: complete() succeeds, and a sweep repairs the record when there is room."""
    job = await store.create_job("s1", "alice")
    await store.append_chunk("s1", 0)
    await backend.limit(1, bucket=True)
    end = await soon(store.end_job("s1", generation=job.generation, status="complete", final_event="e" * 5 * KIB))
    assert end.type == "done"
    check_whole(await read_all(jobs_b.subscribe, "s1"), [0])
    await backend.limit(-1, bucket=True)

    async def repaired():
        await store.cleanup()
        return (await store.get_job("s1")).status == "complete"

    await eventually(repaired)
    assert msgspec.json.decode((await store.get_job("s1")).final_event) == "e" * 5 * KIB


async def test_a_generation_that_was_cleared_because_the_stream_was_full_goes_on(backend, replica, replica_b):
    """What was refused is cleared with the rest: nobody waits for it, and what comes after it has its index."""
    store, transport = replica.store, replica.transport
    await store.create_job("s1", "alice")
    for _ in range(8):
        await store.append_chunk("s1", LARGE)
    await backend.limit(int(await backend.held() / 0.9) + KIB)
    with pytest.raises(StreamFullError):
        await asyncio.gather(*(store.append_chunk("s1", LARGE) for _ in range(20)))
    await store.clear_content_state("s1")
    await transport.emit_chunk("s1", "after")
    await soon(transport.flush("s1"))
    index = await soon(store.append_chunk("s1", "last"))
    await transport.emit_done("s1", None)
    events = await read_all(replica_b.manager.subscribe, "s1")
    assert [event.data for event in events] == ["after", "last", None]
    assert events[1].index == index


async def test_whoever_flushes_again_and_again_does_not_keep_a_refused_run_from_its_end(backend, replica):
    """Each flush tries anew what was refused; the end waits for one such try, and then says what is missing."""
    store, transport = replica.store, replica.transport
    job = await store.create_job("s1", "alice")
    await store.append_chunk("s1", LARGE)
    await backend.limit(int(await backend.held() / 0.9) + KIB)
    await transport.emit_chunk("s1", LARGE)

    async def insist():
        while True:
            try:
                await transport.flush("s1", generation=job.generation)
            except StreamFullError:
                continue
            except JobClosedError:
                return

    insisting = [asyncio.ensure_future(insist()) for _ in range(3)]
    await asyncio.sleep(0)
    try:
        with pytest.raises(StreamFullError):
            await soon(transport.emit_done("s1", None), within=10)
        await soon(asyncio.gather(*insisting), within=10)
    finally:
        for task in insisting:
            task.cancel()
    assert (await store.get_job("s1")).status == "error"
