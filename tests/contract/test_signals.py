"""Callbacks that are no subscribers: the end of a generation, and abort signals."""

from __future__ import annotations

import asyncio

import pytest
from making import start
from waiting import Calls, Heard, soon

from natsjobs import EndReason, JobNotFoundError

# -- ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["done", "error", "update", "abort", "replace", "delete"])
@pytest.mark.b_writes
async def test_on_end_is_called_once_whoever_ends_it(replica, replica_b, end):
    """With the terminal event; on the replica that ends it and on another."""
    generation = await start(replica)
    near, far = Calls(), Calls()
    await replica.transport.on_end("s1", near)
    await replica_b.transport.on_end("s1", far, generation=generation)
    await replica.transport.emit_chunk("s1", 1)
    await replica.transport.flush("s1")
    await {
        "done": lambda: replica.transport.emit_done("s1", "x"),
        "error": lambda: replica_b.transport.emit_error("s1", "x"),
        "update": lambda: replica_b.store.update_job("s1", status="complete"),
        "abort": lambda: replica_b.manager.abort("s1"),
        "replace": lambda: replica_b.store.create_job("s1", "alice"),
        "delete": lambda: replica_b.store.delete_job("s1"),
    }[end]()
    await near.until(1)
    await far.until(1)
    reasons = {"abort": EndReason.ABORT, "replace": EndReason.REPLACED, "delete": EndReason.DELETED}
    kind = {"done": "done", "error": "error", "update": "done"}.get(end, "aborted")
    for (event,) in (near.got, far.got):
        assert (event.type, event.end_reason, event.index) == (kind, reasons.get(end), 1)
        assert event.generation == generation
        assert event.is_terminal


async def test_on_end_is_called_once_over_later_generations(replica):
    """It speaks of the generation that was newest when it was registered."""
    first = await start(replica)
    calls, later = Calls(), Calls()
    await replica.transport.on_end("s1", calls)
    await replica.transport.emit_done("s1", 1)
    await calls.until(1)
    await start(replica)
    await replica.transport.on_end("s1", later)
    await replica.transport.emit_done("s1", 2)
    await later.until(1)
    assert [(end.data, end.generation) for end in calls.got] == [(1, first)]
    assert [end.data for end in later.got] == [2]


async def test_on_end_of_a_generation_that_has_ended_is_called_too(replica, replica_b):
    """Nobody can register in time for an end that was quicker."""
    generation = await start(replica)
    await replica.transport.emit_done("s1", "x")
    calls = Calls()
    await replica_b.transport.on_end("s1", calls, generation=generation)
    await calls.until(1)
    assert [end.data for end in calls.got] == ["x"]


async def test_on_end_of_an_unknown_job_is_an_error(transport):
    """Without a generation there is nothing to wait for."""
    with pytest.raises(JobNotFoundError):
        await transport.on_end("nobody", Calls())
    assert transport.get_tracked_stream_ids() == []


async def test_a_disposed_end_callback_is_not_called(replica):
    """Others of the same id are."""
    await start(replica)
    gone, stays = Calls(), Calls()
    registration = await replica.transport.on_end("s1", gone)
    await replica.transport.on_end("s1", stays)
    await registration.dispose()
    await registration.dispose()
    await replica.transport.emit_done("s1", None)
    await stays.until(1)
    assert gone.count == 0


# -- abort signals -----------------------------------------------------------------------------------------------


@pytest.mark.scenario(54)
async def test_an_abort_signal_reaches_every_callback_on_every_replica(replica, replica_b):
    """The sender's included; a disposed one leaves the others; after cleanup none."""
    await start(replica)
    calls = [Calls() for _ in range(4)]
    gone = Calls()
    registration = await replica.transport.on_abort("s1", gone)
    for one, at in zip(calls, (replica, replica, replica_b, replica_b), strict=True):
        await at.transport.on_abort("s1", one)
    await registration.dispose()
    await registration.dispose()
    assert await soon(replica_b.transport.emit_abort("s1")) is True
    for one in calls:
        await one.until(1)
    assert await soon(replica.transport.emit_abort("s1")) is True
    for one in calls:
        await one.until(2)
    assert gone.count == 0
    await replica_b.transport.cleanup("s1")
    await soon(replica.transport.emit_abort("s1"))
    for one in calls[:2]:
        await one.until(3)
    assert [one.count for one in calls] == [3, 3, 2, 2]
    assert (await replica.store.get_job("s1")).status == "running"


async def test_emit_abort_is_true_when_the_owners_callbacks_have_run(replica, replica_b):
    """Async callbacks are awaited; without any, or without a job, it is False."""
    await start(replica)
    ran: list = []

    async def stop() -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        ran.append(True)

    assert await soon(replica_b.transport.emit_abort("nobody")) is False
    registration = await replica.transport.on_abort("s1", stop)
    assert await soon(replica_b.transport.emit_abort("s1")) is True
    assert ran == [True]
    await registration.dispose()
    assert await soon(replica_b.transport.emit_abort("s1")) is False


async def test_emit_abort_waits_no_longer_than_timing_abort(replica, replica_b):
    """A callback that does not come to an end: False, in bounded time."""
    await start(replica)
    gate = asyncio.Event()
    registration = await replica.transport.on_abort("s1", gate.wait)
    assert await soon(replica_b.transport.emit_abort("s1"), within=8) is False
    gate.set()
    await registration.dispose()


@pytest.mark.scenario(55)
async def test_a_listener_of_one_generation_does_not_hear_signals_for_another(replica, replica_b):
    """Named, or the newest at the signal."""
    old = await start(replica)
    of_old, of_any = Calls(), Calls()
    await replica.transport.on_abort("s1", of_old, generation=old)
    await replica.transport.on_abort("s1", of_any)
    new = await start(replica)
    of_new = Calls()
    await replica.transport.on_abort("s1", of_new, generation=new)
    assert await soon(replica_b.transport.emit_abort("s1")) is True
    await of_new.until(1)
    await of_any.until(1)
    assert await soon(replica_b.transport.emit_abort("s1", generation=new)) is True
    await of_new.until(2)
    assert await soon(replica_b.transport.emit_abort("s1", generation=old)) in (True, False)
    assert await soon(replica_b.transport.emit_abort("s1", generation=new)) is True
    await of_new.until(3)
    assert of_new.count == 3
    assert of_old.count <= 1  # the signal that named it may reach it; the others may not


@pytest.mark.scenario(52)
async def test_abort_callbacks_outlive_subscribers(replica, replica_b):
    """After a subscriber came and left the signal still arrives."""
    await start(replica)
    calls = Calls()
    await replica.transport.on_abort("s1", calls)
    for _ in range(3):
        subscription = await Heard().attach(replica.transport, "s1")
        await subscription.unsubscribe()
    assert await soon(replica_b.transport.emit_abort("s1")) is True
    await calls.until(1)


async def test_when_on_abort_returns_no_later_signal_is_missed(replica, replica_b):
    """Twenty times: registered on one replica, signalled on another in the next moment."""
    for n in range(20):
        await start(replica, f"s{n}")
        calls = Calls()
        await replica.transport.on_abort(f"s{n}", calls)
        assert await soon(replica_b.transport.emit_abort(f"s{n}")) is True
        assert calls.count == 1
