"""How readers join: what a reader that waits for a job is told, and what one that joins need not ask for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from timeline_kit import NEVER, HookedReplica, Timelines, spying
from waiting import emit_stored, eventually, known, read_all, soon, take, values

from natsjobs import GenerationReplacedError, StreamEvent
from natsjobs.engine import reader
from natsjobs.engine.ports import Message


def news_of(many: Timelines, stream_id: str) -> str:
    """The subject on which changes of a job's record are heard."""
    key = many.subjects.record("job", stream_id)
    return many.subjects.changes_prefix + key[len(many.subjects.record_prefix) :]


async def test_a_waiting_reader_attaches_while_it_reads_the_record(many: Timelines) -> None:
    """The news names the generation: reading the record and entering its tail is one round trip, not two."""
    owner, viewer = await many.add(), await many.add()
    asked = asyncio.Event()
    entered = asyncio.Event()
    record = many.subjects.record("job", "s")

    async def until_entered(subject: str) -> None:
        if subject == record and asked.is_set():
            await soon(entered.wait())

    async def enters(subject: str) -> None:
        del subject
        entered.set()

    viewer.link.records.after_last, viewer.link.events.after_last = until_entered, enters
    reading = asyncio.ensure_future(read_all(viewer.manager.subscribe, "s", wait=20.0))
    await eventually(lambda: news_of(many, "s") in viewer.interests())
    asked.set()
    async with owner.manager.start("s", user_id="u") as run:
        await run.emit("first")
    assert values(await soon(reading)) == ["first"]


async def test_what_the_news_says_is_not_believed(many: Timelines) -> None:
    """Anybody may publish it: a reader reads what the record names, and leaves what was named to it."""
    owner, viewer = await many.add(), await many.add(config=many.config(timing={"look": NEVER}))
    stranger = await many.admin()
    earlier = await owner.store.create_job("other", "alice")
    reading = asyncio.ensure_future(read_all(viewer.manager.subscribe, "s", wait=20.0))
    await eventually(lambda: news_of(many, "s") in viewer.interests())
    heard, looked_at = viewer.interests(), list[str]()

    async def note(subject: str) -> None:
        looked_at.append(subject)

    viewer.link.events.after_last = note
    for said in (b"", b"\xff", b"{}", b'{"generation":7}', b'{"generation":"a.b >"}', b'{"generation":"none"}'):
        await stranger.publish(news_of(many, "s"), said)
        await known(stranger)
        assert await viewer.manager.get("s") is None  # each is heard before the next comes
    await eventually(lambda: looked_at == [many.subjects.scope("s", "none")])
    log = many.subjects.log("s", earlier.generation)  # a log that no record names, and that can be entered
    await stranger.request(log, b'{"v":1,"type":"open","index":0,"writer":"w"}')
    entered = f"{many.subjects.live_prefix}s.{earlier.generation}.*"
    await stranger.publish(news_of(many, "s"), json.dumps({"generation": earlier.generation}).encode())
    await eventually(lambda: entered in viewer.interests())
    assert not reading.done()
    async with owner.manager.start("s", user_id="u") as run:
        await run.emit("true")
    assert values(await soon(reading)) == ["true"]
    await eventually(lambda: set(viewer.interests()) <= set(heard))


async def test_whoever_joins_behind_one_message_reads_no_page(many: Timelines) -> None:
    """The newest message was read to find the end of the log: what is in it is not read once more."""
    owner, viewer = await many.add(), await many.add()
    questions = f"$JS.API.DIRECT.GET.{many.subjects.events_stream}"
    job = await owner.store.create_job("s", "u")
    await emit_stored(owner.transport, "s", "first", generation=job.generation)
    async with spying(await many.admin(), questions) as asked:
        async with viewer.manager.subscribe("s") as events:
            assert values(await take(events, 1)) == ["first"]
            await emit_stored(owner.transport, "s", "second", generation=job.generation)
            assert values(await take(events, 1)) == ["second"]
        assert not [msg for msg in asked if b"next_by_subj" in msg.data]


async def test_a_page_that_is_not_needed_after_all_is_given_up(
    many: Timelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for while the end of the log is: among thousands who join it would stand in line for seconds."""
    monkeypatch.setattr(reader, "_SETTLED", 0.0)
    owner, viewer = await many.add(), await many.add()
    job = await owner.store.create_job("s", "u")
    await emit_stored(owner.transport, "s", "first", generation=job.generation)
    reading, asked = 0, asyncio.Event()

    async def in_line(_: list[Message]) -> list[Message]:
        nonlocal reading
        reading += 1
        asked.set()
        try:
            return await asyncio.Future()
        finally:
            reading -= 1

    async def until_asked(_: str) -> None:
        await soon(asked.wait())

    viewer.link.events.after_log, viewer.link.events.after_last = in_line, until_asked
    async with viewer.manager.subscribe("s") as events:
        await eventually(lambda: not reading)
        viewer.link.events.after_log = None
        await emit_stored(owner.transport, "s", "second", generation=job.generation)
        assert values(await take(events, 2)) == ["first", "second"]


async def half_read(many: Timelines) -> tuple[HookedReplica, HookedReplica, str]:
    """A job of ten events, its owner, and a viewer that has left behind the fifth, with its cursor."""
    owner, viewer = await many.add(), await many.add()
    job = await owner.store.create_job("s", "u")
    for number in range(10):
        await emit_stored(owner.transport, "s", number, generation=job.generation)
    async with viewer.manager.subscribe("s") as events:
        return owner, viewer, (await take(events, 5))[-1].cursor


async def test_who_resumes_asks_for_everything_at_once(many: Timelines) -> None:
    """Record, newest message and the page that the cursor points to: one round trip, and one page."""
    _, viewer, cursor = await half_read(many)
    record, questions = asyncio.Event(), f"$JS.API.DIRECT.GET.{many.subjects.events_stream}"

    async def held_up(subject: str) -> None:
        del subject
        await soon(record.wait())

    viewer.link.records.after_last = viewer.link.events.after_last = held_up
    async with spying(await many.admin(), questions) as asked:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            reading = group.create_task(_first(viewer, "s", cursor, 5))
            await eventually(lambda: asked)
            assert not reading.done()
            record.set()
        assert values(reading.result()) == [5, 6, 7, 8, 9]
        await known(await many.admin())
        assert len(asked) == 1


async def test_who_reads_an_older_job_asks_for_its_first_page_at_once(many: Timelines, monkeypatch: Any) -> None:
    """Newest message and first page are one round trip, when the record is there; a new job is read without a page."""
    monkeypatch.setattr(reader, "_SETTLED", 0.0)
    owner, viewer = await many.add(), await many.add()
    job = await owner.store.create_job("s", "u")
    for number in range(3):
        await emit_stored(owner.transport, "s", number, generation=job.generation)
    newest, questions = asyncio.Event(), f"$JS.API.DIRECT.GET.{many.subjects.events_stream}"

    async def held_up(subject: str) -> None:
        del subject
        await soon(newest.wait())

    viewer.link.events.after_last = held_up
    async with spying(await many.admin(), questions) as asked:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            reading = group.create_task(_first(viewer, "s", None, 3))
            await eventually(lambda: asked)
            assert not reading.done()
            newest.set()
        assert values(reading.result()) == [0, 1, 2]
        await known(await many.admin())
        assert len(asked) == 1


async def test_a_page_that_was_asked_for_too_early_changes_no_answer(many: Timelines) -> None:
    """Neither a wrong place in the log nor a replaced generation; and who turns back leaves nothing."""
    owner, viewer, cursor = await half_read(many)
    place, _, hint = cursor.rpartition("-")
    for wrong in ("0", "1", str(int(hint) + 3), "9" * 15):
        assert values(await soon(_first(viewer, "s", f"{place}-{wrong}", 5))) == [5, 6, 7, 8, 9]
    before, answering = sorted(viewer.interests()), asyncio.Event()

    async def held_up(subject: str) -> None:
        del subject
        answering.set()
        await asyncio.Event().wait()

    viewer.link.records.after_last = held_up
    attaching = asyncio.ensure_future(_first(viewer, "s", cursor, 5))
    await soon(answering.wait())
    attaching.cancel()
    await asyncio.wait([attaching])
    viewer.link.records.after_last = None
    assert sorted(viewer.interests()) == before
    await owner.store.create_job("s", "u")
    with pytest.raises(GenerationReplacedError):
        await soon(_first(viewer, "s", cursor, 5))
    assert sorted(viewer.interests()) == before
    await eventually(lambda: not [task for task in asyncio.all_tasks() if "natsjobs page" in task.get_name()])


@pytest.mark.parametrize("second", [False, True], ids=["who_joins", "who_comes_next"])
async def test_whoever_joins_beside_a_cleanup_is_found(many: Timelines, second: bool) -> None:
    """It drops who is there. Who is on his way stays heard, and turning back he takes nothing from who came next."""
    owner, viewer = await many.add(), await many.add()
    await owner.store.create_job("s", "u")
    answering, answered = asyncio.Event(), asyncio.Event()

    async def held_up(subject: str) -> None:
        del subject
        answering.set()
        await soon(answered.wait())

    viewer.link.records.after_last = held_up
    attaching = asyncio.ensure_future(viewer.transport.read("s").__aenter__())
    await soon(answering.wait())
    viewer.link.records.after_last = None
    await viewer.transport.cleanup("s")
    if second:
        await viewer.transport.read("s").__aenter__()
        attaching.cancel()
    else:
        answered.set()
    await asyncio.wait([attaching])
    assert viewer.transport.get_subscriber_count("s") == 1
    assert await owner.transport.count_subscribers("s") == 1
    await viewer.transport.cleanup("s")
    assert await owner.transport.count_subscribers("s") == 0


async def _first(viewer: HookedReplica, stream_id: str, after: str | None, count: int) -> list[StreamEvent]:
    async with viewer.manager.subscribe(stream_id, after=after) as events:
        return await take(events, count)
