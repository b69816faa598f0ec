"""``natsjobs.connect``: from nothing to a JobManager and back, with an address, a connection, or in memory."""

from __future__ import annotations

import asyncio

import pytest
from backends import environment, no_tasks_left
from waiting import check_whole, read_all, soon, take

import natsjobs
from natsjobs import ConfigError, EndReason, NotOpenError, UnavailableError


@pytest.fixture
async def door(backend):
    """Opens the backend as an application does."""
    if backend.name == "memory":
        return lambda: natsjobs.connect("memory://", config=backend.config())
    await backend.prepare()
    return lambda: natsjobs.connect(backend.url, config=backend.config(), **backend.login())


async def test_a_job_from_start_to_end(backend, door):
    """Emit, follow, resume, list; nothing is left afterwards."""
    async with door() as jobs:
        async with jobs.start("s1", user_id="alice") as run:
            await run.emit({"a": 1})
            await run.emit("b")
        check_whole(await read_all(jobs.subscribe, "s1"), [{"a": 1}, "b"])
        assert (await jobs.get("s1")).status == "complete"
        assert (await jobs.resume_state("s1")).status == "complete"
        assert [job.stream_id for job in await jobs.list_jobs()] == ["s1"]
        assert await jobs.active("alice") == []
    if backend.name == "memory":
        await no_tasks_left()


async def test_leaving_ends_what_runs_and_closes_readers(backend, door):
    """SHUTDOWN for the job, NotOpenError for the reader and for every later call."""
    async with door() as jobs:
        job = await jobs.store.create_job("s1", "alice")
        await jobs.store.append_chunk("s1", "x")
        reader = jobs.subscribe("s1")
        events = await reader.__aenter__()
        await take(events, 1)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
    with pytest.raises(NotOpenError):
        await soon(waiting)
    await reader.__aexit__(None, None, None)
    with pytest.raises(NotOpenError):
        await jobs.get("s1")
    if backend.name != "memory":
        async with door() as again:
            found = await again.get("s1")
            assert (found.generation, found.status, found.end_reason) == (job.generation, "error", EndReason.SHUTDOWN)


async def test_it_may_be_entered_and_left_in_different_tasks(door):
    """As a framework's start-up and shut-down hooks do."""
    opening = door()
    jobs = await asyncio.ensure_future(opening.__aenter__())
    await jobs.spawn("s1", lambda run: run.emit("x"), user_id="alice")
    assert len(await read_all(jobs.subscribe, "s1")) == 2
    await asyncio.ensure_future(opening.__aexit__(None, None, None))


async def test_two_memory_systems_are_apart(backend_name):
    """``memory://`` is a system of its own each time."""
    if backend_name != "memory":
        pytest.skip("speaks of memory:// only")
    async with natsjobs.connect("memory://") as one, natsjobs.connect("memory://") as two:
        await one.store.create_job("s1", "alice")
        assert await two.get("s1") is None


async def test_a_given_connection_stays_open(backend, server_url):
    """Leaving closes what was opened, not what was given."""
    if server_url is None:
        pytest.skip("memory has no connection to give")
    await backend.prepare()
    nc = await backend.connection()
    async with natsjobs.connect(nc=nc, config=backend.config()) as jobs:
        await jobs.store.create_job("s1", "alice")
    assert nc.is_connected
    await nc.close()


async def test_servers_may_be_several_or_come_from_the_environment(backend, server_url):
    """A list of addresses of which one answers; ``NATS_URL`` without any argument."""
    if server_url is None:
        pytest.skip("memory has no address")
    await backend.prepare()
    config, login = backend.config(), backend.login()
    async with natsjobs.connect(["nats://127.0.0.1:1", server_url], config=config, **login) as jobs:
        await jobs.store.create_job("s1", "alice")
    with environment("NATS_URL", server_url):
        async with natsjobs.connect(config=config, **login) as jobs:
            assert (await jobs.get("s1")).end_reason == EndReason.SHUTDOWN


async def test_no_server_is_an_error_in_bounded_time(backend, server_url):
    """UnavailableError, not a hang."""
    if server_url is None:
        pytest.skip("memory is always there")
    with pytest.raises(UnavailableError):
        async with asyncio.timeout(60), natsjobs.connect("nats://127.0.0.1:1", config=backend.config()):
            pytest.fail("entered")


@pytest.mark.parametrize("option", ["reconnected_cb", "disconnected_cb", "closed_cb", "error_cb", "allow_reconnect"])
async def test_reconnecting_and_callbacks_are_natsjobs_own(backend, server_url, option):
    """ConfigError names the option."""
    url = server_url or "memory://"
    with pytest.raises(ConfigError, match=option):
        async with natsjobs.connect(url, config=backend.config(), **{option: None}):
            pytest.fail("entered")


async def test_a_manager_that_leaves_ends_no_runs_of_another_on_the_same_connection(backend):
    """Two managers share a connection: each ends what was started through it, and nothing else."""
    if backend.name == "memory":
        pytest.skip("there is no connection to share")
    await backend.prepare()
    nc = await backend.connection()
    try:
        async with natsjobs.connect(nc=nc, config=backend.config()) as first:
            async with first.start("s1", user_id="alice") as run:
                await run.emit(1)
                async with natsjobs.connect(nc=nc, config=backend.config()) as second:
                    await second.store.create_job("s2", "alice")
                    assert (await second.get("s1")).status == "running"
                await run.emit(2)
            assert (await first.get("s1")).status == "complete"
            assert (await first.get("s2")).end_reason == EndReason.SHUTDOWN
            check_whole(await read_all(first.subscribe, "s1"), [1, 2])
    finally:
        await nc.close()


async def test_a_manager_used_from_another_event_loop_says_so(backend, door):
    """At once, and the loop where it was opened is not disturbed."""
    async with door() as jobs, jobs.start("s1", user_id="alice") as run:
        for call in (lambda: jobs.get("s1"), lambda: jobs.abort("s1"), lambda: read_all(jobs.subscribe, "s1")):
            with pytest.raises(NotOpenError, match="event loop"):
                await asyncio.to_thread(lambda call=call: asyncio.run(call()))
        await run.emit(1)
        await run.flush()
        assert (await jobs.get("s1")).status == "running"
