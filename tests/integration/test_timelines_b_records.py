"""B5 and B6: the active index and lists, while others write. Against a real server. And C6: creation times."""

from __future__ import annotations

import asyncio
import json
import time

from backends import NatsBackend
from strangers import Stranger, gate_records
from waiting import eventually, soon

from natsjobs.engine import wire
from natsjobs.engine.jobs import LATEST, put_active

JOBS = 1200


async def test_b5_a_late_remover_does_not_unlist_the_next_turn(backend: NatsBackend) -> None:
    """The first turn's owner pauses right before it removes its entry; meanwhile the second turn writes its own."""
    a, b = await backend.replica(), await backend.replica()
    first = await a.store.create_job("s", "u")
    gate = gate_records(a, "remove")
    ending = asyncio.ensure_future(a.store.end_job("s", generation=first.generation, status="complete"))
    await soon(gate.reached.wait())
    second = await b.store.create_job("s", "u")
    gate.open.set()
    await soon(ending)
    assert await b.manager.active("u") == ["s"]
    entry = await (await Stranger.of(backend)).get(
        backend.subjects.records_stream, last_by_subj=backend.subjects.record("active", "u", "s")
    )
    assert entry is not None
    assert (entry.body["generation"], entry.body["owner"]) == (second.generation, b.store.replica_id)


async def test_b5_a_healer_that_read_too_early_removes_nothing_good(backend: NatsBackend) -> None:
    """It has read the entry of the ended turn and pauses; the next turn's entry is another revision."""
    a, b = await backend.replica(), await backend.replica()
    first = await a.store.create_job("s", "u")
    await a.store.end_job("s", generation=first.generation, status="complete")
    await backend.put_record({"generation": first.generation, "owner": a.store.replica_id}, "active", "u", "s")
    gate = gate_records(b, "remove")
    listing = asyncio.ensure_future(b.manager.active("u"))
    await soon(gate.reached.wait())
    await a.store.create_job("s", "u")
    gate.open.set()
    await soon(listing)
    assert await b.manager.active("u") == ["s"]


async def test_b5_a_slow_writer_does_not_put_its_entry_over_the_next_turns(backend: NatsBackend) -> None:
    """The first turn's creator pauses before it writes its entry; the second turn has come and gone meanwhile."""
    a, b = await backend.replica(), await backend.replica()
    first = await a.store.create_job("s", "u")
    second = await b.store.create_job("s", "u")
    assert second.generation > first.generation
    await put_active(a.store.replica.context, first)
    entry = await (await Stranger.of(backend)).get(
        backend.subjects.records_stream, last_by_subj=backend.subjects.record("active", "u", "s")
    )
    assert entry is not None
    assert entry.body["generation"] == second.generation


async def test_b5_a_sweep_repairs_the_index_in_both_directions(backend: NatsBackend) -> None:
    """A running job that no list shows gets its entry; entries of ended, unknown and foreign jobs go."""
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)
    await a.store.create_job("lost", "u")
    ended = await a.store.create_job("ended", "u")
    await a.store.end_job("ended", generation=ended.generation, status="complete")
    key = backend.subjects.record("active", "u", "lost")
    await stranger.store(key, b"", KV_Operation="PURGE", Nats_Rollup="sub", Nats_TTL="1")
    stale = {"generation": ended.generation, "owner": "nobody"}
    for ids in (("u", "ended"), ("u", "never"), ("somebody", "lost")):
        await backend.put_record(stale, "active", *ids)
    await b.store.cleanup()
    assert await backend.records("active") == [("active", "u", "lost")]
    assert await b.manager.active("u") == ["lost"]


async def test_b6_deleted_jobs_leave_nothing_for_ever(backend: NatsBackend) -> None:
    """After 300 deletes no list has them, and every trace in the bucket goes by itself."""
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)
    names = [f"s{n}" for n in range(300)]

    async def one(name: str) -> None:
        await a.store.create_job(name, "u")
        await a.store.save_run_steps(name, [{"id": "x"}])
        assert await b.store.delete_job(name)

    for some in _batches(names, 20):
        await asyncio.gather(*(one(name) for name in some))
    assert await b.manager.list_jobs() == []
    assert (await b.store.get_job_count(), await b.manager.active("u")) == (0, [])
    left = await stranger.all(stranger.bucket, f"{backend.subjects.record_prefix}>")
    assert len([m for m in left if ".job." in m.subject]) == 300
    for message in left:
        assert 0 < int(message.headers["Nats-TTL"]) <= 3600, message
        assert ".owner." in message.subject or message.headers["KV-Operation"] == "PURGE"
    for kind in ("active", "steps"):
        await eventually(lambda kind=kind: _none(stranger, kind))


def _batches(names: list[str], size: int) -> list[list[str]]:
    return [names[i : i + size] for i in range(0, len(names), size)]


async def _none(stranger: Stranger, kind: str) -> bool:
    return not await stranger.keys(kind)


async def test_b6_a_list_is_whole_while_records_are_rewritten(backend: NatsBackend) -> None:
    """A rewritten record moves behind the end that the list saw when it began; it is in the list all the same."""
    a = await backend.replica()
    stranger = await Stranger.of(backend)
    subjects = [backend.subjects.record("job", f"s{n}") for n in range(JOBS)]
    bodies = [_record(f"s{n}") for n in range(JOBS)]
    for subject, body in zip(subjects, bodies, strict=True):
        await stranger.nc.publish(subject, body)
    await stranger.nc.request(subjects[-1], bodies[-1], timeout=10)  # all of them are stored when this one is
    assert len(await a.manager.list_jobs()) == JOBS
    stop = asyncio.Event()
    rewritten = 0

    async def rewrite() -> None:
        nonlocal rewritten
        while not stop.is_set():
            for n in range(0, JOBS, 20):
                for i in range(n, n + 20):
                    await stranger.nc.publish(subjects[i], bodies[i])
                rewritten += 20
                await stranger.nc.request(subjects[n], bodies[n], timeout=10)  # not faster than they are stored

    writing = asyncio.ensure_future(rewrite())
    try:
        for _ in range(5):
            before = rewritten
            jobs = await soon(a.manager.list_jobs())
            assert sorted(job.stream_id for job in jobs) == sorted(f"s{n}" for n in range(JOBS))
            assert rewritten > before
            assert await soon(a.store.get_job_count_by_status("running")) == JOBS
    finally:
        stop.set()
        await writing


def _record(stream_id: str) -> bytes:
    now = int(time.time() * 1000)
    record = {"status": "running", "streamId": stream_id, "generation": "0" * 19, "userId": "u", "createdAt": now}
    return json.dumps({**record, "metadata": {"padding": "x" * 200}}).encode()


async def test_b6_a_list_leaves_out_what_is_no_job(backend: NatsBackend) -> None:
    """Garbage in a key, a record without its fields, a plain delete: neither listed nor in the way."""
    a = await backend.replica()
    stranger = await Stranger.of(backend)
    good = await a.store.create_job("good", "u")
    await stranger.store(backend.subjects.record("job", "garbage"), b"\xff\x00")
    await stranger.store(backend.subjects.record("job", "half"), {"status": "running"})
    await stranger.store(backend.subjects.record("job", "list"), b"[]")
    await stranger.store(f"{backend.subjects.record_prefix}job.bad=escape.x", {"status": "running"})
    await stranger.store(backend.subjects.record("job", "deleted"), b"", KV_Operation="DEL")
    assert [job.generation for job in await a.manager.list_jobs()] == [good.generation]
    assert await a.store.get_job_count() == 1
    for name in ("garbage", "half", "list", "deleted"):
        assert await a.manager.get(name) is None
    await a.store.cleanup()
    assert (await a.store.create_job("garbage", "u")).status == "running"  # a new turn simply takes the key


async def test_c6_creation_times_grow_also_over_a_deletion_by_a_clock_ahead(backend: NatsBackend) -> None:
    """The marker of a deleted job remembers its creation time, whatever this replica's clock says."""
    a = await backend.replica()
    stranger = await Stranger.of(backend)
    ahead = int(time.time() * 1000) + 3_600_000
    left = {"createdAt": ahead}
    key = backend.subjects.record("job", "s")
    await stranger.store(key, left, KV_Operation="PURGE", Nats_Rollup="sub", Nats_TTL="3600")
    first = await a.store.create_job("s", "u")
    assert first.created_at > ahead
    assert await a.store.delete_job("s")
    second = await a.store.create_job("s", "u")
    assert second.created_at > first.created_at
    assert second.generation > first.generation


async def test_c6_a_clock_that_is_far_ahead_moves_only_the_job_it_has_touched(backend: NatsBackend) -> None:
    """A record with a creation time of another century is followed by a readable job; other jobs keep the true time."""
    a = await backend.replica()
    for created_at in (LATEST, int(time.time() * 1000) + 10**10):
        stream_id = f"s{created_at}"
        ended = {"status": "complete", "streamId": stream_id, "userId": "alice", "createdAt": created_at}
        generation = wire.generation_id(created_at)
        await backend.put_record({**ended, "generation": generation, "write": "w"}, "job", stream_id)
        job = await a.store.create_job(stream_id, "alice")
        found = await a.store.get_job(stream_id)
        assert found is not None
        assert found.generation == job.generation != generation
        assert (await a.store.create_job(f"{stream_id}b", "alice")).created_at < time.time() * 1000 + 10**6
