"""What a replica must not keep: registrations of runs that are over, live objects of jobs of others, lapsed leases."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from backends import MemoryBackend
from timeline_kit import spying
from waiting import eventually, read_all, soon

from natsjobs.engine.patience import Looks
from natsjobs.errors import UnavailableError


@pytest.fixture
async def memory() -> AsyncIterator[MemoryBackend]:
    """A system in this process."""
    async with MemoryBackend() as made:
        yield made


async def test_a_run_that_ended_in_an_outage_keeps_no_registration(memory):
    """Its block is left with the end unknown; once the end is known nothing listens for it any more."""
    a = await memory.replica(memory.config(timing={"give_up": 0.2, "renew": 0.2, "request": 0.2}))
    b = await memory.replica()
    before = sorted(a.interests())
    with contextlib.suppress(UnavailableError):
        async with a.manager.start("s", user_id="alice"):
            a.link.disconnect()
    assert len(a.interests()) > len(before), "the end is unknown, so it is listened for"
    a.link.reconnect()
    assert (await read_all(b.manager.subscribe, "s"))[-1].is_terminal
    await eventually(lambda: sorted(a.interests()) == before)
    replica = a.store.replica
    assert not replica.aborts._registrations
    assert not replica.runs.ends._watches
    assert a.transport.get_tracked_stream_ids() == []


async def test_live_objects_of_jobs_that_are_owned_elsewhere_are_not_held_for_ever(backend):
    """They go with the record, and those of jobs that never were at the second sweep; those of running jobs stay."""
    owner = await backend.replica(backend.config(retention={"finished": 1.0}, timing={"renew": 0.2}))
    other = await backend.replica(backend.config(retention={"finished": 1.0}))
    content, ledger = other.store.replica.content, other.store.replica.ledger

    class Graph:
        content_parts = [{"type": "text", "text": "live"}]  # noqa: RUF012 - as an application has it

    graph = Graph()
    for name in ("ends", "runs"):
        await owner.store.create_job(name, "alice")
    for name in ("ends", "runs", "never"):
        other.store.set_graph(name, graph)
        other.store.set_content_parts(name, [{"type": "text", "text": "long"}])
        other.store.set_collected_usage(name, [])
    await other.store.cleanup()
    assert content.named == ledger.named == {"ends", "runs", "never"}
    await owner.transport.emit_done("ends", None)
    await eventually(lambda: _gone(owner, "ends"))
    await other.store.cleanup()
    await other.store.cleanup()
    assert content.named == ledger.named == {"runs"}
    assert await other.store.get_content_parts("runs") == [{"type": "text", "text": "long"}]


async def _gone(replica, name):
    return await replica.store.get_job(name) is None


async def test_the_shortest_leases_do_not_lapse_between_renewals(many):
    """NATS counts TTLs in whole seconds: with lease 2 and renew 1 no marker is written while the owner lives."""
    config = many.config(timing={"lease": 2.0, "renew": 1.0})
    owner, judge = await many.add(config=config), await many.add(config=config)
    async with spying(await many.admin(), f"{many.namespace}.kv.owner.>") as changes:
        job = await owner.store.create_job("s", "alice")
        await asyncio.sleep(4)  # how long nothing may happen: four times the TTL
        lapsed = [one for one in changes if (one.headers or {}).get("Nats-Marker-Reason") == "MaxAge"]
        assert not lapsed
        assert len(changes) >= 8, "renewals are seen here"
    await owner.kill()
    killed = time.monotonic()
    ended = await soon(many.ended("s", by=judge))
    assert time.monotonic() - killed < config.timing.lease + 1
    assert (ended.generation, ended.end_reason) == (job.generation, "owner_lost")


def test_who_hears_nothing_looks_soon_and_then_ever_more_rarely():
    """A7: at +0.3 s after an attach or a repair, then every 2 s doubling to 10 s, until something comes."""
    looks = Looks(2.0)
    for _ in range(2):
        pauses = [looks.next() for _ in range(7)]
        for pause, nominal in zip(pauses, [0.3, 2, 4, 8, 10, 10, 10], strict=True):
            assert 0.9 * nominal <= pause <= 1.1 * nominal
        assert len(set(pauses)) == 7, "no jitter"
        looks.again()
    looks.news()
    assert looks.silent == 0
    assert 1.8 <= looks.next() <= 2.2
    assert looks.silent == 1
    for _ in range(5000):
        looks.next()
    assert looks.next() <= 11
