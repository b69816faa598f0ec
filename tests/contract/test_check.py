"""``JobStore.check`` and ``EventReader.stored``: what those who serve others have to know beforehand."""

from __future__ import annotations

import pytest
from waiting import soon, take

from natsjobs import NotOpenError, UnavailableError


async def test_check_passes_while_stream_and_bucket_answer(store):
    """And says nothing else."""
    assert await store.check() is None


async def test_check_needs_an_open_store(backend):
    """Like everything else."""
    replica = await backend.replica(opened=False)
    with pytest.raises(NotOpenError):
        await replica.store.check()


async def test_check_fails_when_nats_is_away(replica, store):
    """As every call does."""
    await replica.kill()
    with pytest.raises(UnavailableError):
        await soon(store.check())


async def test_check_fails_when_a_stream_is_gone(backend, store):
    """The server answers, and yet no job can run."""
    if backend.name == "memory":
        pytest.skip("a memory system cannot lose its streams")
    await backend.api(f"STREAM.DELETE.{backend.subjects.events_stream}")
    with pytest.raises(UnavailableError, match="setup"):
        await soon(store.check())


async def test_a_reader_says_how_many_events_are_stored(jobs, jobs_b, transport):
    """On entering, wherever it starts, on any replica; and after the end it is the number of events."""
    async with jobs.start("s", user_id="u") as run:
        async with jobs_b.subscribe("s") as events:
            assert events.stored == 0
        for i in range(7):
            await run.emit(i)
        await run.flush()
        for manager in (jobs, jobs_b):
            async with manager.subscribe("s") as events:
                assert events.stored == 7
                cursor = (await take(events, 3))[-1].cursor
            async with manager.subscribe("s", after=cursor) as events:
                assert events.stored == 7
    async with jobs_b.subscribe("s") as events:
        assert events.stored == 7
