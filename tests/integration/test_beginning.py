"""How jobs begin and stand idle: what a create leaves when another wins, and what an owner of many quiet runs asks."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from timeline_kit import NEVER, HookedReplica, Timelines, spying
from waiting import Calls, emit_stored, eventually, soon

from natsjobs import EndReason, EventType, JobClosedError, PermissionDeniedError, UnavailableError
from natsjobs.engine.runs import lost_end


def deny_ends(replica: HookedReplica, stream_id: str) -> None:
    """From now on this replica may not write the end of this job."""

    async def refuse(subject: str, body: bytes, go: Callable[[], Awaitable[int]]) -> int:
        if subject.endswith(".end") and f".{stream_id}." in subject:
            raise PermissionDeniedError("appending", subject=subject)
        return await go()

    replica.link.events.around_append = refuse


async def test_a_create_that_loses_leaves_the_index_to_the_winner(many: Timelines) -> None:
    """Record and index are written at once: the loser's entry comes off again, also when it gives up then."""
    loser, winner = await many.add(config=many.config(timing={"sweep": NEVER})), await many.add()
    # The later of the two by its name: the winner takes its entry for that of a newer turn, and leaves it.
    loser.store.replica.creation._created_at = int(time.time() * 1000) + 60_000
    first: list[str] = []

    async def late(subject: str, body: bytes, go: Callable[[], Awaitable[int]]) -> int:
        if ".job." in subject and not first:
            first.append("")
            first[0] = (await winner.store.create_job("s", "alice")).generation
        return await go()

    async def full(subject: str, body: bytes, go: Callable[[], Awaitable[int]]) -> int:
        if first and first[0]:
            raise PermissionDeniedError("appending", subject=subject)
        return await go()

    loser.link.records.around_append, loser.link.events.around_append = late, full
    with pytest.raises(UnavailableError):
        await loser.store.create_job("s", "alice")

    async def is_named() -> bool:
        entry = await many.newest("active", "alice", "s")
        return entry is not None and entry.get("generation") == first[0]

    async with asyncio.timeout(20):
        while not await is_named():
            await asyncio.sleep(0.02)
    assert await winner.store.get_active_job_ids_by_user("alice") == ["s"]


async def test_a_denied_end_is_said_once_and_tried_until_it_is_stored(
    many: Timelines, caplog: pytest.LogCaptureFixture
) -> None:
    """A line at every tick would fill the log of whoever has to mend the permissions."""
    owner = await many.add()
    job = await owner.store.create_job("s", "alice")
    deny_ends(owner, "s")
    runs = owner.store.replica.runs
    with caplog.at_level(logging.WARNING):
        with pytest.raises(PermissionDeniedError):
            await runs.end("s", job.generation, lost_end("over", EndReason.EXPIRED))
        for _ in range(5):
            await runs.retry_unstored()
    assert sum("is not stored" in record.getMessage() for record in caplog.records) == 1
    owner.link.events.around_append = None
    await runs.retry_unstored()
    assert not runs.unstored
    ended = await owner.store.get_job("s")
    assert ended is not None
    assert ended.end_reason is EndReason.EXPIRED


async def test_a_run_whose_expiry_is_denied_holds_up_no_other(many: Timelines) -> None:
    """The others of the same tick end, and the denied one is not logged at each."""
    owner = await many.add(config=many.config(timing={"sweep": NEVER}, retention={"running": 1.0}))
    for name in ("denied", "other"):
        await owner.store.create_job(name, "alice")
    deny_ends(owner, "denied")
    assert next(iter(owner.store.replica.runs.owned))[0] == "denied"
    ended = await many.ended("other", by=owner)
    assert ended.end_reason is EndReason.EXPIRED
    still = await owner.store.get_job("denied")
    assert still is not None
    assert not still.status.is_terminal
    owner.link.events.around_append = None


async def test_many_quiet_runs_are_looked_after_by_one_question(many: Timelines) -> None:
    """A look of its own for each would keep an owner of ten thousand busy."""
    owner = await many.add()
    questions = f"$JS.API.DIRECT.GET.{many.subjects.events_stream}"
    async with AsyncExitStack() as runs:
        for number in range(20):
            await runs.enter_async_context(owner.manager.start(f"s{number}", user_id="u"))
        async with spying(await many.admin(), questions) as asked:

            def most() -> int:
                queries = [json.loads(msg.data) for msg in asked if msg.data]
                return max((len(query.get("multi_last", ())) for query in queries), default=0)

            await eventually(lambda: most() >= 5)


async def test_a_quiet_run_whose_log_is_gone_is_told_at_its_next_look(many: Timelines) -> None:
    """However quiet it is: nobody has written an end that could be heard. Of the others nobody hears anything."""
    owner, heard = await many.add(), dict[str, Calls]()
    generations: dict[str, str] = {}
    for stream_id in (f"s{number}" for number in range(20)):
        generations[stream_id] = (await owner.store.create_job(stream_id, "u")).generation
        await owner.transport.on_end(stream_id, heard.setdefault(stream_id, Calls()))
    end, scope = many.subjects.end("s4", generations["s4"]), many.subjects.scope("s4", generations["s4"])
    leader = f"$JS.API.STREAM.MSG.GET.{many.subjects.events_stream}"
    async with spying(await many.admin(), f"$JS.API.DIRECT.GET.{many.subjects.events_stream}", leader) as asked:

        def looks() -> int:
            return sum(end in json.loads(msg.data).get("multi_last", ()) for msg in asked if msg.data)

        await eventually(lambda: looks() >= 3)
        await many.api(f"STREAM.PURGE.{many.subjects.events_stream}", {"filter": scope})
        before = looks()
        await heard["s4"].until(1)
        assert looks() <= before + 2  # one of them may have been answered before it was gone
        assert {json.loads(msg.data)["last_by_subj"] for msg in asked if msg.subject == leader} == {end, scope}
    (told,) = heard["s4"].got
    assert (told.type, told.end_reason) == (EventType.ABORTED, EndReason.DELETED)
    with pytest.raises(JobClosedError):
        await emit_stored(owner.transport, "s4", "more", generation=generations["s4"])
    for stream_id in heard.keys() - {"s4"}:
        await emit_stored(owner.transport, stream_id, "more")
        assert heard[stream_id].count == 0


@pytest.mark.parametrize("there", [0, 2, None])
async def test_a_log_that_a_replica_does_not_have_is_not_gone_for_that(many: Timelines, there: int | None) -> None:
    """It may lag, or say nothing: the leader is asked, and says that all of them are there."""
    owner, calls = await many.add(), Calls()
    for stream_id in ("s0", "s1", "s2"):
        await owner.store.create_job(stream_id, "u")
        await owner.transport.on_end(stream_id, calls)
    asked = Calls()

    async def lagging(subjects: list[str]) -> int | None:
        asked(subjects)
        return None if there is None else min(there, len(subjects) - 1)

    owner.link.events.held = lagging  # type: ignore[attr-defined]
    async with spying(await many.admin(), f"$JS.API.STREAM.MSG.GET.{many.subjects.events_stream}") as reads:
        await asked.until(3)
        before = len(reads)
        await eventually(lambda: len(reads) > before)
    assert calls.count == 0
    for stream_id in ("s0", "s1", "s2"):
        await emit_stored(owner.transport, stream_id, "more")


async def test_a_run_that_stores_something_is_not_asked_for(many: Timelines) -> None:
    """What was stored a moment ago says that it has not ended."""
    owner = await many.add()
    questions = f"$JS.API.DIRECT.GET.{many.subjects.events_stream}"
    running = owner.manager.start("s", user_id="u")
    async with asyncio.timeout(30), running as run, spying(await many.admin(), questions) as asked:
        until = time.monotonic() + 1
        while time.monotonic() < until:
            await run.emit("more")
            await run.flush()
        assert not [msg for msg in asked if b"multi_last" in msg.data]
        await eventually(lambda: [msg for msg in asked if b"multi_last" in msg.data])


async def test_an_attach_that_fails_leaves_no_interest(many: Timelines) -> None:
    """Questions are heard before the record is read; whoever turns back hears none."""
    viewer = await many.add()
    before = sorted(viewer.interests())
    for _ in range(5):
        with pytest.raises(Exception, match="nothing-here"):
            async with viewer.manager.subscribe("nothing-here"):
                pass
    await soon(asyncio.sleep(0))
    assert sorted(viewer.interests()) == before
    assert await viewer.manager.count_subscribers("nothing-here") == 0


async def test_a_create_that_cannot_look_leaves_no_log_and_no_interest(many: Timelines) -> None:
    """The log is opened while record and index are read: who may not read them takes it back."""
    replica = await many.add(config=many.config(timing={"sweep": NEVER}))
    await soon(replica.store.create_job("first", "alice"))
    before, opened = sorted(replica.interests()), asyncio.Event()

    async def noted(subject: str, body: bytes, go: Callable[[], Awaitable[int]]) -> int:
        try:
            return await go()
        finally:
            opened.set()

    async def denied(subject: str) -> None:
        await opened.wait()
        raise PermissionDeniedError("reading", subject=subject)

    replica.link.events.around_append, replica.link.records.after_last = noted, denied
    with pytest.raises(PermissionDeniedError):
        await soon(replica.store.create_job("s", "alice"))
    await eventually(lambda: sorted(replica.interests()) == before)
    admin = (await many.admin()).jetstream()

    async def kinds() -> list[str]:
        info = await admin.stream_info(many.subjects.events_stream, subjects_filter=f"{many.namespace}.events.s.>")
        logs = [await admin.get_last_msg(many.subjects.events_stream, subject) for subject in info.state.subjects or ()]
        return [json.loads(log.data or b"{}")["type"] for log in logs]

    async with asyncio.timeout(20):
        while await kinds() not in ([], ["gone"]):
            await asyncio.sleep(0.02)


async def test_a_bucket_that_has_no_leader_yet_is_waited_for(many: Timelines) -> None:
    """On a cluster it is elected after the bucket was made; who opens in that moment opens a little later."""
    replica, tries = await many.add(opened=False), list[str]()

    async def electing(subject: str, body: bytes, go: Callable[[], Awaitable[int]]) -> int:
        tries.append(subject)
        if len(tries) < 3:
            raise UnavailableError("no stream answers")
        return await go()

    replica.link.records.around_append = electing
    await replica.open()
    assert len(tries) == 3
