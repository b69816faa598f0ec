"""B11: the log went back in time, or is gone: readers are told, nobody hangs, life goes on. Against real servers."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from backends import NatsBackend
from jetstream_kit import server
from strangers import Stranger, events_of
from timeline_kit import Timelines, spying
from waiting import Heard, check_whole, eventually, known, read_all, soon, take, values

from natsjobs import ConfigError, GenerationReplacedError, HistoryLostError, JobClosedError, UnavailableError
from natsjobs.engine.wire import Cursor


async def lost(events: Any) -> HistoryLostError:
    """The reader raises, in mid-iteration, instead of waiting for ever."""
    with pytest.raises(HistoryLostError) as raised:
        await soon(anext(events))
    return raised.value


async def started(replica: Any, count: int = 5) -> Any:
    """A running job with some events, all stored."""
    job = await replica.store.create_job("s", "u")
    for n in range(count):
        await replica.store.append_chunk("s", n)
    return job


async def test_b11_readers_of_a_stream_that_is_created_again_are_told(backend: NatsBackend) -> None:
    """Its sequences start at 1, so every later message looks old; the owner learns that its log is gone."""
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)
    job = await started(a)
    async with b.manager.subscribe("s") as events:
        await take(events, 5)
        await stranger.remake(stranger.events)
        assert (await lost(events)).stream_id == "s"
    with pytest.raises(JobClosedError):
        await soon(a.store.append_chunk("s", "more", generation=job.generation))


async def test_b11_live_handlers_go_on_with_the_next_turn_after_a_stream_was_lost(backend: NatsBackend) -> None:
    """The stream is deleted: it is made again by whoever misses it, and the next turn reaches who stayed attached."""
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)
    await started(a)
    heard = Heard()
    subscription = await heard.attach(b.transport, "s")
    await a.store.append_chunk("s", "before")
    await heard.until(1)
    await stranger.api(f"STREAM.DELETE.{stranger.events}")
    job = await soon(a.store.create_job("s", "u"))
    await a.store.append_chunk("s", "after", generation=job.generation)
    await a.store.end_job("s", generation=job.generation, status="complete", final_event="end")
    await eventually(lambda: ("done", "end") in heard.all)
    assert heard.chunks == ["before", "after"]
    await subscription.unsubscribe()
    check_whole(await read_all(b.manager.subscribe, "s"), ["after"])


async def test_b11_memory_storage_after_a_server_restart(tmp_path: Path) -> None:
    """Everything is gone: the reader is told, the stream is made again, and the next turn works."""
    with pytest.raises(ConfigError, match="allow_loss"):
        NatsBackend("nats", "").config(storage="memory")
    with server(tmp_path) as running:
        async with NatsBackend("nats", running.url) as backend:
            config = backend.config(storage="memory", allow_loss=True)
            a, b = await backend.replica(config), await backend.replica(config)
            await started(a)
            async with b.manager.subscribe("s") as events:
                await take(events, 5)
                running.stop()
                running.start()
                await lost(events)
            job = await soon(a.store.create_job("s", "u"))
            assert await a.store.append_chunk("s", "new", generation=job.generation) == 0
            await a.store.end_job("s", generation=job.generation, status="complete")
            assert values(await read_all(b.manager.subscribe, "s")) == ["new"]


async def test_b11_a_restored_backup_is_noticed_by_reader_and_writer(tmp_path: Path) -> None:
    """The log ends before what was read and written: neither goes on as if nothing had happened."""
    with server(tmp_path) as running:
        async with NatsBackend("nats", running.url) as backend:
            a, b = await backend.replica(), await backend.replica()
            job = await started(a)
            store, copy = tmp_path / f"store-{running.port}", tmp_path / "backup"
            running.stop()
            shutil.copytree(store, copy)
            running.start()
            for n in range(5, 10):
                await soon(a.store.append_chunk("s", n))
            async with b.manager.subscribe("s") as events:
                cursor = (await take(events, 10))[-1].cursor
                running.stop()
                shutil.rmtree(store)
                shutil.copytree(copy, store)
                running.start()
                await lost(events)
            with pytest.raises(HistoryLostError):
                async with b.manager.subscribe("s", after=cursor):
                    pass
            with pytest.raises(JobClosedError):
                await soon(a.store.append_chunk("s", 10, generation=job.generation))
            assert (await soon(a.store.create_job("s", "u"))).generation > job.generation


async def test_b11_a_purged_stream_is_noticed_by_the_next_look_of_all(many: Timelines) -> None:
    """It ends where it ended, and so does what is known; only every fifth look would ask for that."""
    owner, viewer = await many.add(), await many.add(config=many.config(timing={"look": 0.5}))
    jobs = [await owner.store.create_job(name, "u") for name in ("s1", "s2")]
    scopes = {many.subjects.scope(job.stream_id, job.generation) for job in jobs}
    questions, strange = f"$JS.API.DIRECT.GET.{many.subjects.events_stream}", await many.admin()
    async with (
        viewer.manager.subscribe("s1") as one,
        viewer.manager.subscribe("s2") as other,
        spying(strange, questions) as asked,
    ):

        def looks() -> int:
            return sum(scopes <= set(json.loads(msg.data).get("multi_last", ())) for msg in asked)

        await eventually(lambda: looks() >= 3)  # the second of them asks for what is known, and then the seventh
        before = looks()
        await many.api(f"STREAM.PURGE.{many.subjects.events_stream}")
        await lost(one)
        await lost(other)
        await known(strange)
        assert before < looks() <= before + 2 < 7  # one may have been under way


async def test_b11_a_tombstone_under_a_reader_is_the_end_of_its_history(backend: NatsBackend) -> None:
    """By any other writer, and on a reader that lags behind as well as on one at the live edge."""
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)
    job = await started(a)
    async with b.manager.subscribe("s") as live, b.manager.subscribe("s") as slow:
        await take(live, 5)
        await take(slow, 1)
        await stranger.store(
            backend.subjects.log("s", job.generation),
            {"type": "gone", "index": 0, "writer": "other"},
            Nats_Rollup="sub",
            Nats_TTL="60",
        )
        await lost(live)
        await lost_eventually(slow)
    with pytest.raises(JobClosedError):
        await soon(a.store.append_chunk("s", "more", generation=job.generation))


async def lost_eventually(events: Any) -> None:
    """The reader may still have some events in hand; then it is told."""

    async def rest() -> None:
        async for _ in events:
            pass

    with pytest.raises(HistoryLostError):
        await soon(rest())


async def test_b11_events_that_were_cleared_are_lost_for_cursors_before_them_only(backend: NatsBackend) -> None:
    """A cleared log goes on; who is behind it is told, who is at its edge goes on, a new reader starts behind it."""
    a, b = await backend.replica(), await backend.replica()
    job = await started(a)
    async with b.manager.subscribe("s") as events:
        early, *_, last = await take(events, 5)
        await a.store.clear_content_state("s", generation=job.generation)
        await a.store.append_chunk("s", 5, generation=job.generation)
        assert (await take(events, 1))[0].index == 5
    with pytest.raises(HistoryLostError):
        async with b.manager.subscribe("s", after=early.cursor) as events:
            await soon(anext(events))
    for after in (last.cursor, None):
        async with b.manager.subscribe("s", after=after) as events:
            assert [(e.index, e.data) for e in await take(events, 1)] == [(5, 5)]


async def test_b11_a_wrong_seek_hint_costs_nothing_but_time(backend: NatsBackend) -> None:
    """The hint of a cursor is verified: of another log's sequence, of the far future, of the beginning."""
    a = await backend.replica()
    for name in ("s", "other"):
        async with a.manager.start(name, user_id="u") as run:
            for n in range(200):
                await run.emit(n)
                if n % 3 == 0:
                    await run.flush()
    job = await a.manager.get("s")
    assert job is not None
    for position in (0, 1, 77, 199):
        for hint in (0, 1, 5, 60, 100, 1000, 10**15):
            cursor = str(Cursor(job.generation, position, hint))
            events = await read_all(a.manager.subscribe, "s", after=cursor)
            check_whole(events, list(range(200)), first=position)


async def test_b11_a_cursor_beyond_the_log_is_told_on_entering(backend: NatsBackend) -> None:
    """And one of another generation is another error; a cursor whose job is gone, too."""
    a = await backend.replica()
    job = await started(a)
    with pytest.raises(HistoryLostError):
        await read_all(a.manager.subscribe, "s", after=str(Cursor(job.generation, 6, 6)))
    with pytest.raises(GenerationReplacedError) as replaced:
        await read_all(a.manager.subscribe, "s", after=str(Cursor("0" * 19, 2, 2)))
    assert replaced.value.generation == job.generation
    assert await a.store.delete_job("s")
    with pytest.raises(HistoryLostError):
        await read_all(a.manager.subscribe, "s", after=str(Cursor(job.generation, 2, 2)))


async def test_b3_a_cursor_ahead_of_a_replica_that_reaches_no_leader_has_lost_nothing(newest_server: str) -> None:
    """Its viewer comes from another replica that has heard more; silence of the leader proves no loss."""
    async with Timelines("nats", newest_server) as many:
        a, b = await many.add(), await many.add()
        await started(a)
        async with b.manager.subscribe("s") as behind:
            await take(behind, 5)
            await b.stop_hearing(many.subjects.live_prefix)
            refused, leader, read = 0, asyncio.Event(), b.link.events.next

            async def next_(*query: Any) -> Any:
                nonlocal refused
                if leader.is_set():
                    return await read(*query)
                refused += 1
                raise UnavailableError("no leader")

            b.link.events.next = next_
            await a.store.append_chunk("s", 5)
            async with a.manager.subscribe("s") as ahead:
                cursor = (await take(ahead, 6))[-1].cursor

            async def resume() -> Any:
                async with b.manager.subscribe("s", after=cursor) as events:
                    return await soon(anext(events))

            resuming = asyncio.ensure_future(resume())
            began = time.monotonic()
            await eventually(lambda: resuming.done() or (refused > 5 and time.monotonic() - began > 2))
            leader.set()
            await a.store.append_chunk("s", 6)
            assert (await resuming).data == 6


async def test_b11_a_log_whose_beginning_expired_is_not_read_with_a_hole(backend: NatsBackend) -> None:
    """The first events have left by age, as a stream limit takes them: no reader silently begins later."""
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)
    job = await started(a)
    async with b.manager.subscribe("s") as events:
        early, _, third, *_ = await take(events, 5)
    log = await stranger.log("s", job.generation)
    gone = [m.seq for m in log if m.body["type"] == "open" or m.body["index"] < 3]
    for seq in gone:
        await stranger.api(f"STREAM.MSG.DELETE.{stranger.events}", {"seq": seq})
    for after in (early.cursor, None):
        with pytest.raises(HistoryLostError):
            async with b.manager.subscribe("s", after=after) as events:
                await soon(anext(events))
    async with b.manager.subscribe("s", after=third.cursor) as events:
        assert values(await take(events, 2)) == [3, 4]
    assert await a.store.append_chunk("s", 5, generation=job.generation) == 5


async def test_b11_a_gap_in_the_middle_of_a_log_is_never_skipped(backend: NatsBackend) -> None:
    """A message whose index is beyond the next one, as after a loss inside: an error, not a silent jump."""
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)
    job = await started(a)
    await stranger.append("s", job.generation, events_of(9, "other", "nine"))
    async with b.manager.subscribe("s") as events:
        assert values(await take(events, 5)) == [0, 1, 2, 3, 4]
        await lost(events)


async def test_b11_one_lost_live_message_is_found_by_the_next_one(backend: NatsBackend) -> None:
    """Also shortly before the end: the look begins behind what was taken in, not behind the gap."""
    a = await backend.replica()
    b = await backend.replica(backend.config(timing={"look": 30.0}))
    for name, lose in (("log", 1), ("end", 2)):
        job = await a.store.create_job(name, "u")
        await a.store.append_chunk(name, 0)
        async with b.manager.subscribe(name) as events:
            await take(events, 1)
            await asyncio.sleep(0.5)  # behind the second look, 0.3 s after the first
            lost = [
                (sid, sub) for sid, sub in b.nc._subs.items() if sub.subject.startswith(f"{backend.namespace}.live.")
            ]
            for sid, _ in lost:
                await b.nc._send_unsubscribe(sid)
            await b.store.has_job(name)  # a request is a barrier on its connection, which flush() is not
            for n in range(lose):
                await a.store.append_chunk(name, 1 + n)
            for _, sub in lost:
                await b.nc._send_subscribe(sub)
            await b.store.has_job(name)  # a request is a barrier on its connection, which flush() is not
            await a.store.append_chunk(name, 1 + lose)
            assert values(await take(events, lose + 1, within=8)) == list(range(1, lose + 2))
            await a.store.end_job(name, generation=job.generation, status="complete")
            assert (await take(events, 1, within=8))[0].is_terminal
