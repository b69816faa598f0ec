"""Opening, closing and dying: what a replica owns ends when it goes, in good order or not."""

from __future__ import annotations

import asyncio
import inspect

import pytest
from waiting import Calls, Heard, emit_stored, eventually, read_all, soon, take

import natsjobs
from natsjobs import EndReason, JobClosedError, NotOpenError

STORE_CALLS = {
    "create_job": ("s1", "alice"),
    "get_job": ("s1",),
    "has_job": ("s1",),
    "update_job": ("s1",),
    "delete_job": ("s1",),
    "list_jobs": (),
    "get_running_jobs": (),
    "get_active_job_ids_by_user": ("alice",),
    "get_job_count": (),
    "get_job_count_by_status": ("running",),
    "cleanup": (),
    "check": (),
    "get_content_parts": ("s1",),
    "get_run_steps": ("s1",),
    "save_run_steps": ("s1", []),
    "get_resume_state": ("s1",),
    "append_chunk": ("s1", 1),
    "clear_content_state": ("s1",),
    "get_collected_usage": ("s1",),
    "record_usage": ("s1", {"input_tokens": 1}),
    "claim_usage": ("s1",),
}
TRANSPORT_CALLS = {
    "emit_chunk": ("s1", 1),
    "emit_done": ("s1", 1),
    "emit_error": ("s1", "x"),
    "flush": ("s1",),
    "emit_abort": ("s1",),
    "on_abort": ("s1", Calls()),
    "on_end": ("s1", Calls()),
    "count_subscribers": ("s1",),
    "count_events": ("s1",),
    "on_all_subscribers_left": ("s1", Calls()),
}


async def _closed(part, calls):
    for name, arguments in calls.items():
        with pytest.raises(NotOpenError, match=r"."):
            await soon(getattr(part, name)(*arguments))


async def _all_closed(replica):
    await _closed(replica.store, STORE_CALLS)
    await _closed(replica.transport, TRANSPORT_CALLS)
    with pytest.raises(NotOpenError):
        await replica.transport.subscribe("s1", on_chunk=Calls())
    with pytest.raises(NotOpenError):
        await read_all(replica.transport.read, "s1")


def test_every_method_of_the_interfaces_is_called_somewhere_here():
    """A new coroutine of a Protocol needs its line in the lists above."""
    others = {"initialize", "destroy", "end_job", "abort_job", "subscribe", "cleanup"}
    for protocol, calls in ((natsjobs.JobStore, STORE_CALLS), (natsjobs.EventTransport, TRANSPORT_CALLS)):
        coroutines = {name for name, member in vars(protocol).items() if inspect.iscoroutinefunction(member)}
        assert coroutines - others <= set(calls)


async def test_before_initialize_every_call_says_how_to_open(backend):
    """NotOpenError; constructing did no I/O. A transport has nothing to initialize: it opens at its first call."""
    replica = await backend.replica(opened=False)
    await _closed(replica.store, STORE_CALLS)
    assert await replica.transport.count_subscribers("s1") == 0
    await _closed(replica.store, STORE_CALLS)
    await replica.open()
    assert await replica.store.get_job("s1") is None


async def test_after_destroy_every_call_says_that_it_is_closed(backend):
    """And destroying twice is fine."""
    replica = await backend.replica()
    await replica.store.create_job("s1", "alice")
    await replica.close()
    await replica.store.destroy()
    await replica.transport.destroy()
    await _all_closed(replica)


@pytest.mark.b_writes
async def test_destroy_ends_the_running_jobs_owned_here_and_only_those(backend, replica_b):
    """With SHUTDOWN, in record and log; data stays, other owners' jobs run on."""
    owner = await backend.replica()
    await owner.store.create_job("mine", "alice")
    await owner.store.append_chunk("mine", "x")
    await owner.store.create_job("done", "alice")
    await owner.store.update_job("done", status="complete", final_event='"end"')
    await replica_b.store.create_job("other", "alice")
    async with replica_b.manager.subscribe("mine") as events:
        await take(events, 1)
        await owner.store.destroy()
        (end,) = await take(events, 1)
    assert (end.type, end.end_reason) == ("error", EndReason.SHUTDOWN)
    job = await replica_b.store.get_job("mine")
    assert (job.status, job.end_reason) == ("error", EndReason.SHUTDOWN)
    assert [event.data for event in await read_all(replica_b.manager.subscribe, "done")] == ["end"]
    assert await replica_b.store.get_active_job_ids_by_user("alice") == ["other"]


async def test_a_given_connection_stays_open(backend):
    """Store and transport release only what they opened."""
    replica = await backend.replica()
    if backend.name == "memory":
        pytest.skip("no connection is given to the memory pair")
    await replica.manager.__aexit__(None, None, None)
    await replica.transport.destroy()
    await replica.store.destroy()
    assert replica.nc.is_connected
    assert replica.interests() == []


async def test_leaving_the_manager_destroys_neither_part(backend, replica_b):
    """Store and transport go on; the manager can tell that it was left."""
    replica = await backend.replica()
    await replica.manager.__aexit__(None, None, None)
    job = await replica.store.create_job("s1", "alice")
    await replica.transport.emit_chunk("s1", "x")
    await replica.transport.emit_done("s1", None)
    assert len(await read_all(replica_b.manager.subscribe, "s1")) == 2
    assert (await replica_b.store.get_job("s1")).generation == job.generation
    with pytest.raises(NotOpenError):
        await read_all(replica.manager.subscribe, "s1")
    with pytest.raises(NotOpenError):
        async with replica.manager.start("s2", user_id="alice"):
            pytest.fail("started")


async def test_a_job_lives_on_while_its_owner_is_alive(backend, replica_b):
    """For several leases, without a word about it, while others sweep."""
    owner = await backend.replica()
    await owner.store.create_job("s1", "alice")
    loop = asyncio.get_running_loop()
    until = loop.time() + 3 * owner.config.timing.lease
    while loop.time() < until:
        await replica_b.store.cleanup()
        assert (await replica_b.store.get_job("s1")).status == "running"
        await asyncio.sleep(0.05)
    assert await owner.store.append_chunk("s1", "alive") == 0


@pytest.mark.b_writes
async def test_a_dead_owners_jobs_end_for_their_readers(backend, replica_b):
    """The terminal error OWNER_LOST reaches them, the job leaves the lists, the next turn starts; others run on."""
    owner, other = await backend.replica(), await backend.replica()
    lost = await owner.store.create_job("s1", "alice")
    await owner.store.append_chunk("s1", "x")
    await other.store.create_job("s2", "alice")
    heard = Heard()
    await heard.attach(other.transport, "s1")
    async with replica_b.manager.subscribe("s1") as events:
        await take(events, 1)
        await owner.kill()
        (end,) = await take(events, 1, within=60)
    assert (end.type, end.end_reason, end.index) == ("error", EndReason.OWNER_LOST, 1)
    await eventually(lambda: len(heard.errors) == 1)
    job = await eventually(lambda: _if_ended(replica_b, "s1"))  # the log decides, the record follows
    assert (job.status, job.end_reason, job.owner) == ("error", EndReason.OWNER_LOST, None)
    assert await replica_b.store.get_active_job_ids_by_user("alice") == ["s2"]
    new = await replica_b.store.create_job("s1", "alice")
    assert new.generation != lost.generation
    assert (await replica_b.store.get_job("s2")).status == "running"


async def _if_ended(replica, stream_id):
    job = await replica.store.get_job(stream_id)
    return job if job.status.is_terminal else None


@pytest.mark.b_writes
async def test_a_dead_owners_job_can_be_replaced_at_once(backend, replica_b):
    """The next turn does not wait for the lease."""
    owner = await backend.replica()
    lost = await owner.store.create_job("s1", "alice")
    await owner.kill()
    new = await soon(replica_b.store.create_job("s1", "alice"), within=10)
    assert new.created_at > lost.created_at
    with pytest.raises(JobClosedError):
        await replica_b.store.append_chunk("s1", "x", generation=lost.generation)
    assert await replica_b.store.append_chunk("s1", "x", generation=new.generation) == 0


async def test_two_namespaces_cannot_see_each_other(backend, replica):
    """Same ids, same server: separate jobs, events, presence and lists."""
    other = await backend.stranger()
    await replica.store.create_job("s1", "alice")
    assert await other.store.get_job("s1") is None
    assert await other.store.list_jobs() == []
    await other.store.create_job("s1", "alice")
    mine, theirs = Heard(), Heard()
    await mine.attach(replica.transport, "s1")
    await theirs.attach(other.transport, "s1")
    assert await replica.transport.count_subscribers("s1") == 1
    aborts = Calls()
    await other.transport.on_abort("s1", aborts)
    await replica.transport.emit_abort("s1")
    await replica.transport.emit_chunk("s1", "mine")
    await replica.manager.abort("s1")
    await mine.until(2)
    assert (await other.store.get_job("s1")).status == "running"
    await other.transport.emit_done("s1", "theirs")
    await theirs.until(1)
    assert theirs.all == [("done", "theirs")]
    assert aborts.count == 0


@pytest.mark.b_writes
async def test_closing_tells_everybody_who_waits_for_a_write(backend, replica_b):
    """An emit that waits for room and a flush, for a job owned elsewhere: both end, with an error that says why."""
    config = backend.config(limits={"queue_events": 2}, timing={"request": 0.5, "abort": 0.5})
    a = await backend.replica(config)
    await replica_b.store.create_job("s1", "alice")
    await emit_stored(a.transport, "s1", "first")
    never, stream = asyncio.Event(), a.store.replica.context.link.events

    async def silent(*_args, **_options):
        await never.wait()

    real = stream.append, stream.send
    stream.append, stream.send = silent, lambda *_args, **_options: never
    try:
        waiting = [asyncio.ensure_future(a.transport.emit_chunk("s1", n)) for n in range(6)]
        waiting.append(asyncio.ensure_future(a.transport.flush("s1")))
        await asyncio.sleep(0)
        await soon(a.close())
        _, hanging = await asyncio.wait(waiting, timeout=5)
        assert not hanging
        told = [task.exception() for task in waiting if task.exception() is not None]
        assert len(told) >= 4
        assert {type(error) for error in told} == {NotOpenError}
    finally:
        stream.append, stream.send = real
