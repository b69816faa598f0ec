"""What no waiting mends, a missing permission above all: whoever waits is told so, and nobody else is harmed.

The refusals are made by a hook in the process, at the very step that a test is about; that the server refuses, and
how it says so, is the business of ``test_permissions`` and ``test_jetstream_link``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from jetstream_kit import server
from timeline_kit import NEVER, HookedReplica, Timelines
from waiting import check_whole, emit_stored, eventually, read_all, soon, take, values

from natsjobs import PermissionDeniedError


def denied(subject: str) -> PermissionDeniedError:
    """What the port raises."""
    return PermissionDeniedError("trying", subject=subject)


def deny_appends(replica: HookedReplica, ending: str, first: int = 0) -> None:
    """From now on, after ``first`` more, the replica may not append to subjects with this ending."""
    left = first

    async def refuse(subject: str, body: bytes, go: Callable[[], Awaitable[int]]) -> int:
        nonlocal left
        if subject.endswith(ending):
            if left <= 0:
                raise denied(subject)
            left -= 1
        return await go()

    replica.link.events.around_append = refuse


# -- the one who writes -------------------------------------------------------------------------------------------


async def test_done_does_not_pretend_when_the_last_events_were_denied(many: Timelines) -> None:
    """Nobody had heard of the refusal yet: complete() and leaving the block name what is missing, viewers the error."""
    owner, viewer = await many.add(), await many.add()

    async def by_complete(stream_id: str) -> None:
        async with owner.manager.start(stream_id, user_id="alice") as run:
            await run.emit("a")
            await run.flush()
            deny_appends(owner, ".log")
            await run.emit("b")
            await run.complete("final")

    async def by_leaving(stream_id: str) -> None:
        async with owner.manager.start(stream_id, user_id="alice") as run:
            await run.emit("a")
            await run.flush()
            deny_appends(owner, ".log")
            await run.emit("b")

    for name, way in (("complete", by_complete), ("leaving", by_leaving)):
        owner.link.events.around_append = None
        with pytest.raises(PermissionDeniedError):
            await soon(way(name))
        events = await read_all(viewer.manager.subscribe, name)
        assert values(events) == ["a"]
        assert (events[-1].type, "permission denied" in events[-1].data) == ("error", True)


async def test_an_abort_whose_record_is_denied_is_a_fact_all_the_same(many: Timelines) -> None:
    """The log has decided; the record is repaired by whoever may write it."""
    owner, other = await many.add(), await many.add()
    await owner.store.create_job("s", "alice")
    await emit_stored(owner.transport, "s", "a")
    key = many.subjects.record("job", "s")

    async def refuse(subject: str, body: bytes, go: Callable[[], Awaitable[int]]) -> int:
        if subject == key:
            raise denied(subject)
        return await go()

    other.link.records.around_append = refuse
    owner.link.records.around_append = refuse
    result = await soon(other.manager.abort("s"))
    assert result.success
    check_whole(await read_all(owner.manager.subscribe, "s"), ["a"])
    owner.link.records.around_append = None
    await owner.store.cleanup()
    assert (await owner.store.get_job("s")).status == "aborted"


# -- the one who reads --------------------------------------------------------------------------------------------


async def test_a_reader_at_the_live_edge_that_may_not_look_any_more_is_told_so(many: Timelines) -> None:
    """What is missing comes in mid-iteration, not silence; when it is granted again the same reader goes on."""
    owner, viewer = await many.add(), await many.add()
    await owner.store.create_job("s", "alice")
    async with viewer.transport.read("s") as events:
        await emit_stored(owner.transport, "s", 0)
        await take(events, 1)
        await viewer.stop_hearing(many.subjects.live_prefix)

        def refuse() -> None:
            raise denied("the log")

        viewer.link.events.before_next = refuse
        with pytest.raises(PermissionDeniedError, match="the log"):
            await soon(anext(events), within=15)
        await emit_stored(owner.transport, "s", 1)
        viewer.link.events.before_next = None

        async def goes_on() -> Any:
            try:
                return await anext(events)
            except PermissionDeniedError:
                return None

        assert (await eventually(goes_on, within=15)).data == 1


async def test_who_waits_for_a_job_and_may_not_read_its_record_is_told_so(many: Timelines) -> None:
    """ "No such job" after the whole wait would be a lie."""
    viewer = await many.add(config=many.config(timing={"look": 0.2}))
    key, reads = many.subjects.record("job", "s"), 0

    async def refuse(subject: str) -> None:
        nonlocal reads
        if subject == key:
            reads += 1
            if reads > 1:
                raise denied(subject)

    viewer.link.records.after_last = refuse
    with pytest.raises(PermissionDeniedError, match=r"job\.s"):
        async with asyncio.timeout(20), viewer.transport.read("s", wait=60.0):
            pytest.fail("there is no job")


# -- the one who judges -------------------------------------------------------------------------------------------


async def test_an_owner_that_may_not_be_asked_is_not_judged_dead(tmp_path: Path, caplog: Any) -> None:
    """A question that was never sent has no silence: without a lease, and living, it keeps its jobs."""
    users = (
        "authorization: {users: [{user: admin, password: p}, {user: judge, password: p, permissions: {publish: {"
        'deny: ["*.owner.*"]}}}]}\n'
    )
    with server(tmp_path, f'jetstream: {{store_dir: "$STORE"}}\n{users}') as running:
        async with Timelines("nats", running.url.replace("://", "://admin:p@")) as many:
            config = many.config(timing={"sweep": NEVER, "request": 1.0})
            owner = await many.add(config=config)
            judge = await many.add(config=config, url=running.url, user="judge", password="p")
            owner_id = owner.store.replica_id
            await owner.store.create_job("s", "alice")
            await eventually(lambda: owner_id in judge.store.replica.liveness._known)

            async def no_renewals(subject: str, body: bytes, go: Callable[[], Awaitable[int]]) -> int:
                if subject == many.subjects.record("owner", owner_id):
                    raise denied(subject)
                return await go()

            owner.link.records.around_append = no_renewals
            await eventually(lambda: caplog.text.count("passes for alive") >= 2, within=30)
            assert not await many.has_record("owner", owner_id)
            assert (await owner.store.get_job("s")).status == "running"
            result = await judge.manager.abort("s")
            assert (result.success, result.acknowledged) == (True, False), "the end needs nobody's answer"
            assert "is not asked to stop" in caplog.text


# -- the one who counts -------------------------------------------------------------------------------------------


async def test_who_may_not_ask_for_viewers_does_not_hear_that_all_have_left(tmp_path: Path) -> None:
    """Not asked is not "nobody answered": registering says what is missing, and a count says only what it knows."""
    users = (
        "authorization: {users: [{user: admin, password: p}, {user: guest, password: p, permissions: {publish: {"
        'deny: ["*.presence.*"]}}}]}\n'
    )
    with server(tmp_path, f'jetstream: {{store_dir: "$STORE"}}\n{users}') as running:
        async with Timelines("nats", running.url.replace("://", "://admin:p@")) as many:
            viewer, guest = await many.add(), await many.add(url=running.url, user="guest", password="p")
            await viewer.store.create_job("s", "alice")
            async with viewer.transport.read("s"):
                with pytest.raises(PermissionDeniedError, match=r"presence\.s"):
                    await guest.transport.on_all_subscribers_left("s", lambda: None)
                assert await guest.transport.count_subscribers("s") == 0
