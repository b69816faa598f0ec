"""Readers and subscriptions that are being made while their transport is cleaned up or destroyed."""

from __future__ import annotations

import asyncio

import pytest
from making import write
from waiting import Calls, eventually, soon

from natsjobs import NotOpenError


def callbacks_of(context):
    """What is called after a reconnect."""
    link = context.link
    return (link if hasattr(link, "own_interests") else link._wire)._callbacks


async def enter_step_by_step(other):
    """Transports of their own on the same replica, each with a reader that has come a few steps further in."""
    for turns in range(0, 40, 3):
        transport = type(other.transport)(*((other.nc, other.config) if hasattr(other, "nc") else (other.store,)))
        assert transport.replica is other.transport.replica
        await transport.count_subscribers("s1")
        entering = asyncio.ensure_future(transport.read("s1").__aenter__())
        for _ in range(turns + 1):  # in the first it begins
            await asyncio.sleep(0)
        yield turns, transport, entering


async def test_a_reader_that_is_entered_while_its_transport_is_destroyed_is_told_so(backend, replica):
    """Wherever it is just then it gets NotOpenError, on entering or from its next event; nothing of it is left."""
    await write(replica, [], end=False)
    other = await backend.replica()
    await other.transport.count_subscribers("s1")
    idle, context = sorted(other.interests()), other.transport.replica.context
    callbacks = len(callbacks_of(context))
    async for turns, transport, entering in enter_step_by_step(other):
        await soon(transport.destroy())
        with pytest.raises(NotOpenError):
            await soon(anext(await soon(entering)))
        assert (transport.get_subscriber_count("s1"), context.readers) == (0, 0)
        await eventually(lambda: sorted(other.interests()) == idle, what=f"nothing is left after {turns} turns")
        assert len(callbacks_of(context)) == callbacks


async def test_a_reader_that_is_entered_beside_a_cleanup_reads_or_is_told(backend, replica):
    """Who was a subscriber is dropped, and who was on his way becomes one: nobody waits for what never comes."""
    await write(replica, ["a"], end=False)
    other = await backend.replica()
    await other.transport.count_subscribers("s1")
    idle, context = sorted(other.interests()), other.transport.replica.context
    joined = set()
    async for turns, transport, entering in enter_step_by_step(other):
        await soon(transport.cleanup("s1"))
        reader = await soon(entering)
        joined.add(transport.get_subscriber_count("s1"))
        if transport.get_subscriber_count("s1"):
            assert (await soon(anext(reader))).data == "a"
        else:
            with pytest.raises(NotOpenError):
                await soon(anext(reader))
        await transport.destroy()
        assert context.readers == 0
        await eventually(lambda: sorted(other.interests()) == idle, what=f"nothing is left after {turns} turns")
    assert 1 in joined


async def test_a_reader_that_waits_for_its_job_is_told_when_its_transport_is_destroyed(backend):
    """It need not wait for the rest of the time; the task that waited is cancelled for nobody."""
    transport = (await backend.replica()).transport

    async def read():
        with pytest.raises(NotOpenError, match="while this reader was being attached"):
            await transport.read("nobody", wait=3600).__aenter__()
        return asyncio.current_task().cancelling()

    entering = asyncio.ensure_future(read())
    await eventually(lambda: transport.replica.context.readers == 1)
    await soon(transport.destroy())
    assert entering.done()
    assert await entering == 0


async def test_a_transport_that_is_destroyed_while_it_opens_is_not_open(backend, replica):
    """The first use of it ends with NotOpenError and opens nothing."""
    await write(replica, ["a"])
    transport = (await backend.replica(opened=False)).transport
    entering = asyncio.ensure_future(transport.read("s1").__aenter__())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await soon(transport.destroy())
    with pytest.raises(NotOpenError):
        await soon(entering)
    assert transport.replica.context.link.connected_since is None


async def test_a_subscription_whose_tail_is_closed_while_it_opens_leaves_nothing(backend, replica, monkeypatch):
    """Not even what would look again after a reconnect: it is in the middle when its transport is destroyed."""
    await write(replica, ["a"], end=False)
    other = await backend.replica()
    idle, context = sorted(other.interests()), other.transport.replica.context
    callbacks, last = len(callbacks_of(context)), context.link.events.last
    reached, go = asyncio.Event(), asyncio.Event()

    async def held(*args, **options):
        found = await last(*args, **options)
        if not go.is_set():
            reached.set()
            await go.wait()
        return found

    monkeypatch.setattr(context.link.events, "last", held)
    making = asyncio.ensure_future(other.transport.subscribe("s1", on_chunk=Calls()))
    await soon(reached.wait())
    await soon(other.transport.destroy())
    go.set()
    with pytest.raises(NotOpenError):
        await soon(making)
    await eventually(lambda: sorted(other.interests()) == idle)
    assert len(callbacks_of(context)) == callbacks
