"""B2 and B7: events and ends that are larger than one message. Against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from backends import NatsBackend
from strangers import Stranger, events_of, gate_records, part
from timeline_kit import Timelines
from waiting import Heard, check_whole, eventually, read_all, soon, take

from natsjobs import EventTooLargeError, JobClosedError, NatsJobsError

BIG = "x" * 2_000_000


async def test_b2_parts_interrupted_by_another_writer_are_void_and_their_index_is_taken(backend: NatsBackend) -> None:
    """A writer dies after part 2 of 3: the next one takes the index, and no reader waits for the rest."""
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)
    async with a.manager.start("s", user_id="u") as run:
        await run.emit("zero")
        await run.flush()
        async with b.manager.subscribe("s") as live:
            got = await take(live, 1)
            first = await stranger.append("s", run.generation, part(1, "dead", 0, 3, '"aaa'))
            await stranger.append("s", run.generation, part(1, "dead", 1, 3, "bbb", first=first))
            assert await b.store.append_chunk("s", "one", generation=run.generation) == 1
            await stranger.append("s", run.generation, part(1, "dead", 2, 3, 'ccc"', first=first))
            await run.emit("two")
            await run.complete()
            got += await take(live, 3)
    check_whole(got, ["zero", "one", "two"])
    for replica in (a, b):
        check_whole(await read_all(replica.manager.subscribe, "s"), ["zero", "one", "two"])


async def test_b2_an_end_after_an_unfinished_event_leaves_no_hole(backend: NatsBackend) -> None:
    """The owner dies between the parts; whoever ends the job does not count what never was an event."""
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)
    job = await a.store.create_job("s", "u")
    await a.store.append_chunk("s", "zero")
    await stranger.append("s", job.generation, part(1, "dead", 0, 5, '"aaa'))
    await a.kill()
    async with b.manager.subscribe("s") as live:
        assert (await b.manager.abort("s")).success
        check_whole(await take(live, 2), ["zero"])
    check_whole(await read_all(b.manager.subscribe, "s"), ["zero"])


async def test_b2_who_attaches_between_the_parts_gets_the_whole_event(backend: NatsBackend) -> None:
    """Live handlers start at the newest position, which is never inside an event."""
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)
    job = await a.store.create_job("s", "u")
    await a.store.append_chunk("s", "zero")
    first = await stranger.append("s", job.generation, part(1, "other", 0, 3, '"aaa'))
    await stranger.append("s", job.generation, part(1, "other", 1, 3, "bbb", first=first))
    heard = Heard()
    subscription = await heard.attach(b.transport, "s")
    await stranger.append("s", job.generation, part(1, "other", 2, 3, 'ccc"', first=first))
    await heard.until(1)
    await a.store.append_chunk("s", "two")
    await heard.until(2)
    assert heard.chunks == ["aaabbbccc", "two"]
    await subscription.unsubscribe()
    for after in range(3):
        cursor = None
        if after:
            async with b.manager.subscribe("s") as events:
                cursor = (await take(events, after))[-1].cursor
        async with b.manager.subscribe("s", after=cursor) as events:
            rest = await take(events, 3 - after)
            assert [event.data for event in rest] == ["zero", "aaabbbccc", "two"][after:]


async def test_b2_a_refused_part_starts_the_event_again_from_part_0(newest_server: str) -> None:
    """Another writer comes between the owner's parts: both events are read whole, once, in one order by all."""
    async with Timelines("nats", newest_server) as made:
        a, b = await made.add(), await made.add()
        job = await a.store.create_job("s", "u")
        parts: list[int] = []

        async def between(_: str, body: bytes, append: Callable[[], Awaitable[int]]) -> int:
            parts.append(json.loads(body)["part"][0])
            if len(parts) == 3:  # parts 0 and 1 are stored, part 2 is about to be
                assert await b.store.append_chunk("s", "small") == 0
            return await append()

        a.link.events.around_append = between
        large = "y" * 3_000_000
        assert await a.store.append_chunk("s", large) == 1
        a.link.events.around_append = None
        assert parts[:4] == [0, 1, 2, 0]
        await a.store.end_job("s", generation=job.generation, status="complete")
        for replica in (a, b):
            check_whole(await read_all(replica.manager.subscribe, "s"), ["small", large])


async def test_b7_a_final_event_of_2_mb_ends_the_job_by_one_message(backend: NatsBackend) -> None:
    """It is stored in pieces before the end, which stays small and atomic; job and viewers have all of it."""
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)
    async with a.manager.start("s", user_id="u") as run:
        await run.emit("zero")
        await run.complete({"text": BIG})
    *_, end = await stranger.log("s", run.generation)
    assert end.body["type"] == "done"
    assert len(end.raw) < 1024
    assert end.body["first"] > 0
    record = await stranger.get(stranger.bucket, last_by_subj=backend.subjects.record("job", "s"))
    assert record is not None
    assert len(record.raw) < 1024
    job = await b.manager.get("s")
    assert job is not None
    assert json.loads(job.final_event or "") == {"text": BIG}
    events = await read_all(b.manager.subscribe, "s")
    check_whole(events, ["zero"])
    assert events[-1].data == {"text": BIG}
    with pytest.raises(JobClosedError):
        await b.store.append_chunk("s", "late", generation=run.generation)


async def test_b7_a_large_end_is_repaired_by_any_replica(backend: NatsBackend) -> None:
    """The owner dies between log and record: the next sweep makes the record say what the log says."""
    a, b = await backend.replica(), await backend.replica()
    job = await a.store.create_job("s", "u")
    gate = gate_records(a, "write")
    end = a.store.end_job("s", generation=job.generation, status="complete", final_event={"text": BIG})
    ending = asyncio.ensure_future(end)
    await soon(gate.reached.wait())
    await a.kill()
    found = await b.manager.get("s")
    assert found is not None
    assert found.status == "running"
    assert await b.store.cleanup() >= 1
    found = await b.manager.get("s")
    assert found is not None
    assert (found.status, json.loads(found.final_event or "")) == ("complete", {"text": BIG})
    assert await b.manager.active("u") == []
    ending.cancel()
    with suppress(NatsJobsError, asyncio.CancelledError):
        await ending


async def test_b7_an_abort_of_a_dead_owners_job_carries_a_large_final_event(backend: NatsBackend) -> None:
    """Pieces that a dead writer left before do not get into it."""
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)
    job = await a.store.create_job("s", "u")
    await a.store.append_chunk("s", "zero")
    await a.kill()
    piece = {**part(1, "dead", 0, 3, '"half'), "type": "final"}
    await stranger.append("s", job.generation, piece, end=True)
    assert (await b.manager.abort("s", final_event=BIG)).final_event == BIG
    events = await read_all(b.manager.subscribe, "s")
    check_whole(events, ["zero"])
    assert events[-1].data == BIG


@pytest.mark.parametrize("field", ["metadata", "user_message"])
async def test_b7_an_oversized_field_is_refused_by_name_and_changes_nothing(backend: NatsBackend, field: str) -> None:
    """At creation and later; nothing is sent."""
    a = await backend.replica()
    stranger = await Stranger.of(backend)
    large = {"message_id": "m", "text": BIG} if field == "user_message" else {"text": BIG}
    with pytest.raises(EventTooLargeError, match=field):
        await a.store.create_job("s", "u", **{field: large})
    assert await a.manager.get("s") is None
    job = await a.store.create_job("s", "u", metadata={"kept": True})
    key = backend.subjects.record("job", "s")
    before = await stranger.get(stranger.bucket, last_by_subj=key)
    with pytest.raises(EventTooLargeError, match=field):
        await a.store.update_job("s", **{field: large})
    assert await stranger.get(stranger.bucket, last_by_subj=key) == before
    assert await a.store.append_chunk("s", "goes on", generation=job.generation) == 0


async def test_b7_a_long_error_is_cut_in_the_record_and_whole_for_viewers(backend: NatsBackend) -> None:
    """A traceback of 2 MB must not make the record unwritable."""
    a, b = await backend.replica(), await backend.replica()
    async with a.manager.start("s", user_id="u") as run:
        await run.fail(BIG)
    job = await eventually(lambda: b.manager.get("s"))
    assert job.status == "error"
    assert 1000 < len(job.error) < 20_000
    assert (await read_all(b.manager.subscribe, "s"))[-1].data == BIG


async def test_c1_what_is_delivered_is_decided_by_the_index_alone(backend: NatsBackend) -> None:
    """Copies of earlier events, in other groups and by another writer, are delivered to nobody twice."""
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)
    async with a.manager.start("s", user_id="u") as run:
        for value in ("zero", "one"):
            await run.emit(value)
            await run.flush()
        async with b.manager.subscribe("s") as live:
            got = await take(live, 2)
            await stranger.append("s", run.generation, events_of(0, "sealer", "zero", "one", "two"))
            await run.emit("three")
            await run.complete()
            got += await take(live, 3)
    check_whole(got, ["zero", "one", "two", "three"])
    check_whole(await read_all(b.manager.subscribe, "s"), ["zero", "one", "two", "three"])
