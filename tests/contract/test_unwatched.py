"""A run that nobody watches collects its events for longer; whoever comes to watch notices nothing of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from waiting import Heard, check_whole, eventually, read_all, soon, take, values

from natsjobs.engine import audience

LINGERS = {"linger": 0.02, "linger_unwatched": 30.0}
"""What is held back for the longer one is held back for the whole test."""
PAUSE = 0.005


@pytest.fixture
async def owner(backend: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A replica that asks for viewers as soon as a message of a run was held back, and again soon."""
    monkeypatch.setattr(audience, "_FIRST", 0.0)
    monkeypatch.setattr(audience, "_SOON", 0.0)
    return await backend.replica(backend.config(timing=LINGERS))


def linger(owner: Any, stream_id: str) -> float:
    """How long the newest generation of this job collects now."""
    replica = owner.store.replica
    return replica.runs.local(stream_id, None)._pace.linger.seconds


async def emit_until(owner: Any, expected: float, *, first: int = 0) -> int:
    """Emit numbers until the job "s" collects for so long; the next number."""
    number = first
    async with asyncio.timeout(20):
        while linger(owner, "s") != expected:
            await owner.transport.emit_chunk("s", number)
            number += 1
            await asyncio.sleep(PAUSE)
    return number


async def holding(owner: Any) -> tuple[int, int]:
    """An unwatched job that holds events back: how many are stored, and how many there are."""
    await owner.store.create_job("s", "alice")
    emitted = await emit_until(owner, LINGERS["linger_unwatched"])
    await owner.transport.flush("s")
    for number in range(emitted, emitted + 10):
        await owner.transport.emit_chunk("s", number)
        await asyncio.sleep(PAUSE)
    assert await owner.transport.count_events("s") == emitted
    return emitted, emitted + 10


async def messages(owner: Any) -> int:
    """How many messages the events stream has ever held."""
    state = await owner.store.replica.context.link.events.state()
    return int(state.last_seq)


async def test_a_reader_that_joins_has_at_once_what_was_held_back(owner, replica_b):
    """On another replica: replay and the rest, with no wait for the longer linger."""
    stored, emitted = await holding(owner)
    assert stored < emitted
    async with replica_b.manager.subscribe("s") as events:
        assert values(await take(events, emitted)) == list(range(emitted))
        await owner.transport.emit_chunk("s", emitted)
        await owner.transport.emit_chunk("s", emitted + 1)
        assert values(await take(events, 2)) == [emitted, emitted + 1]
    assert linger(owner, "s") == LINGERS["linger"]


async def test_a_reader_on_the_owners_replica_has_it_too(owner):
    """It is nobody that a question would have to find."""
    _, emitted = await holding(owner)
    async with owner.manager.subscribe("s") as events:
        assert values(await take(events, emitted)) == list(range(emitted))


@pytest.mark.parametrize("local", [False, True], ids=["elsewhere", "here"])
async def test_handlers_that_are_attached_get_what_was_held_back(owner, replica_b, local):
    """Live events from now on: what was held back is not stored yet, so it is to come."""
    stored, emitted = await holding(owner)
    heard = Heard()
    subscription = await heard.attach((owner if local else replica_b).transport, "s")
    await heard.until(emitted - stored)
    assert heard.chunks[-1] == emitted - 1
    await subscription.unsubscribe()


async def test_a_viewer_who_was_there_first_is_found(owner, replica_b):
    """Before the job began; so it is never held back for longer."""
    heard = Heard()
    await heard.attach(replica_b.transport, "s")
    await owner.store.create_job("s", "alice")
    number = 0
    while not any(".joined." in subject for subject in owner.interests()):
        await owner.transport.emit_chunk("s", number)
        number += 1
        await asyncio.sleep(PAUSE)
    for _ in range(20):
        await owner.transport.emit_chunk("s", number)
        number += 1
        await asyncio.sleep(PAUSE)
        assert linger(owner, "s") == LINGERS["linger"]
    await heard.until(number)


async def test_when_all_viewers_have_left_it_collects_for_longer_again(owner, replica_b):
    """A message holds what is emitted meanwhile; readers afterwards get everything."""
    await owner.store.create_job("s", "alice")
    emitted = await emit_until(owner, LINGERS["linger_unwatched"])
    async with replica_b.manager.subscribe("s") as events:
        await take(events, emitted)
        emitted = await emit_until(owner, LINGERS["linger"], first=emitted)
    emitted = await emit_until(owner, LINGERS["linger_unwatched"], first=emitted)
    await owner.transport.flush("s")
    before = await messages(owner)
    for number in range(emitted, emitted + 30):
        await owner.transport.emit_chunk("s", number)
        await asyncio.sleep(PAUSE)
    await owner.transport.flush("s")
    assert await messages(owner) == before + 1
    await owner.transport.emit_done("s", None)
    check_whole(await read_all(replica_b.transport.read, "s"), list(range(emitted + 30)))


async def test_a_viewer_that_died_stops_to_count(backend, owner, monkeypatch):
    """Without a word: the next question finds nobody."""
    monkeypatch.setattr(audience, "_EVERY", 0.1)
    await owner.store.create_job("s", "alice")
    dead = await backend.replica()
    await Heard().attach(dead.transport, "s")
    for number in range(20):
        await owner.transport.emit_chunk("s", number)
        await asyncio.sleep(PAUSE)
    assert linger(owner, "s") == LINGERS["linger"]
    await dead.kill()
    await emit_until(owner, LINGERS["linger_unwatched"], first=20)


async def test_after_a_lost_connection_it_counts_as_watched(owner, replica_b):
    """What was held back comes with the connection, and whoever joined meanwhile is found."""
    _, emitted = await holding(owner)
    await owner.drop_connection()
    await eventually(lambda: _stored(owner, emitted))
    async with replica_b.manager.subscribe("s") as events:
        assert values(await take(events, emitted)) == list(range(emitted))


async def _stored(owner: Any, count: int) -> bool:
    return bool(await owner.transport.count_events("s") == count)


async def test_all_that_ends_or_waits_takes_along_what_was_held_back(owner, replica_b):
    """A flush, an append, an abort from another replica, and the end of the block."""
    _, emitted = await holding(owner)
    await soon(owner.transport.flush("s"))
    assert await replica_b.transport.count_events("s") == emitted
    for number in range(2):
        await owner.transport.emit_chunk("s", number)
    assert await soon(owner.store.append_chunk("s", "x")) == emitted + 2
    for number in range(2):
        await owner.transport.emit_chunk("s", number)
    result = await soon(replica_b.manager.abort("s"))
    assert result.success
    assert (await read_all(replica_b.transport.read, "s"))[-1].index == emitted + 5


@pytest.mark.b_writes
async def test_only_the_owner_collects_for_longer(backend, owner, replica_b):
    """Another replica that emits into the run stores what it has after the linger, and listens for nobody."""
    job = await replica_b.store.create_job("s", "alice")
    for number in range(30):
        await owner.transport.emit_chunk("s", number, generation=job.generation)
        await asyncio.sleep(PAUSE)
    await eventually(lambda: _stored(owner, 30))
    assert backend.subjects.joined("s") not in owner.interests()


async def test_a_run_that_has_ended_listens_for_nobody(owner):
    """And one that emits nothing never did."""
    await owner.store.create_job("idle", "alice")
    await holding(owner)
    heard = [subject for subject in owner.interests() if ".joined." in subject]
    assert heard == [owner.backend.subjects.joined("s")]
    await owner.transport.emit_done("s", None)
    await eventually(lambda: not any(".joined." in subject for subject in owner.interests()))
