"""Who is watching: counts here and everywhere, and the notice that the last one has left."""

from __future__ import annotations

import asyncio

import pytest
from waiting import Calls, Heard, eventually, soon, take


@pytest.mark.scenario(50)
async def test_local_counts(transport, transport_b):
    """None: 0 and not first; one: first; two: not first. Other replicas do not count here."""
    assert (transport.get_subscriber_count("s1"), transport.is_first_subscriber("s1")) == (0, False)
    first = await Heard().attach(transport, "s1")
    assert (transport.get_subscriber_count("s1"), transport.is_first_subscriber("s1")) == (1, True)
    await Heard().attach(transport_b, "s1")
    second = await Heard().attach(transport, "s1")
    assert (transport.get_subscriber_count("s1"), transport.is_first_subscriber("s1")) == (2, False)
    assert transport.get_subscriber_count("s2") == 0
    await first.unsubscribe()
    assert (transport.get_subscriber_count("s1"), transport.is_first_subscriber("s1")) == (1, True)
    await second.unsubscribe()
    assert (transport.get_subscriber_count("s1"), transport.is_first_subscriber("s1")) == (0, False)


async def test_all_replicas_are_counted(replica, replica_b, jobs):
    """Subscribers and readers, on either replica, asked on either; zero when nobody is there."""
    a, b = replica.transport, replica_b.transport
    await replica.store.create_job("s1", "alice")
    assert await a.count_subscribers("s1") == 0
    first = await Heard().attach(a, "s1")
    await Heard().attach(b, "s1")
    assert await a.count_subscribers("s1") == await b.count_subscribers("s1") == 2
    async with replica_b.manager.subscribe("s1"), a.read("s1"):
        assert await a.count_subscribers("s1") == await b.count_subscribers("s1") == 4
        assert await jobs.count_subscribers("s1") == 4
        assert b.get_subscriber_count("s1") == 2
    await first.unsubscribe()
    await eventually(lambda: _count(b, "s1", 1))
    await b.cleanup("s1")
    await eventually(lambda: _count(a, "s1", 0))


async def _count(transport, stream_id, expected):
    return await transport.count_subscribers(stream_id) == expected


async def test_a_dead_replicas_subscribers_stop_counting(backend, replica):
    """Without a message from it; the last one left fires too."""
    dead = await backend.replica()
    await replica.store.create_job("s1", "alice")
    left = Calls()
    await replica.transport.on_all_subscribers_left("s1", left)
    await Heard().attach(dead.transport, "s1")
    await eventually(lambda: _count(replica.transport, "s1", 1))
    await dead.kill()
    await eventually(lambda: _count(replica.transport, "s1", 0), within=30)
    await eventually(lambda: left.count == 1, within=60)


@pytest.mark.scenario(51)
async def test_all_left_fires_on_every_cycle_and_never_early(replica, replica_b):
    """Three cycles over two replicas: not while one is still there, once when the last has gone."""
    await replica.store.create_job("s1", "alice")
    left = Calls()
    await replica.transport.on_all_subscribers_left("s1", left)
    for cycle in range(3):
        near = await Heard().attach(replica.transport, "s1")
        far = await Heard().attach(replica_b.transport, "s1")
        await near.unsubscribe()
        assert await replica.transport.count_subscribers("s1") == 1
        assert left.count == cycle
        again = await Heard().attach(replica.transport, "s1")
        await far.unsubscribe()
        assert await replica_b.transport.count_subscribers("s1") == 1
        assert left.count == cycle
        await again.unsubscribe()
        await left.until(cycle + 1)
        assert left.count == cycle + 1
        assert await replica.transport.count_subscribers("s1") == 0


async def test_all_left_is_heard_on_a_replica_without_subscribers(replica, replica_b):
    """The owner registers, viewers are elsewhere; a reader is a viewer too."""
    await replica.store.create_job("s1", "alice")
    left = Calls()
    await replica.transport.on_all_subscribers_left("s1", left)
    await replica.store.append_chunk("s1", "x")
    for cycle in range(2):
        async with replica_b.manager.subscribe("s1") as events:
            await take(events, 1)
            assert left.count == cycle
        await left.until(cycle + 1)


async def test_all_left_does_not_fire_before_anybody_came(replica, replica_b):
    """Registered on an id nobody watches; it fires after the first has come and gone, and not before."""
    await replica.store.create_job("s1", "alice")
    left, other = Calls(), Calls()
    await replica.transport.on_all_subscribers_left("s1", left)
    await replica.transport.on_all_subscribers_left("s2", other)
    subscription = await Heard().attach(replica_b.transport, "s2")
    await subscription.unsubscribe()
    await other.until(1)
    assert left.count == 0


async def test_a_job_goes_on_when_its_last_viewer_leaves(replica, replica_b):
    """Disconnected is not aborted."""
    await replica.store.create_job("s1", "alice")
    left = Calls()
    await replica.transport.on_all_subscribers_left("s1", left)
    subscription = await Heard().attach(replica_b.transport, "s1")
    await subscription.unsubscribe()
    await left.until(1)
    assert (await replica_b.store.get_job("s1")).status == "running"
    assert await replica.store.append_chunk("s1", "goes on") == 0


async def test_a_disposed_callback_is_not_called(replica):
    """Another one of the same id is, and async callbacks are awaited."""
    await replica.store.create_job("s1", "alice")
    gone, stays = Calls(), Calls()

    async def later() -> None:
        await asyncio.sleep(0)
        stays()

    registration = await replica.transport.on_all_subscribers_left("s1", gone)
    await replica.transport.on_all_subscribers_left("s1", later)
    await registration.dispose()
    await registration.dispose()
    subscription = await Heard().attach(replica.transport, "s1")
    await subscription.unsubscribe()
    await stays.until(1)
    assert gone.count == 0


async def test_quick_joins_and_leaves_end_at_the_right_count(replica, replica_b):
    """Fifty on two replicas at the same time, then all gone."""
    await replica.store.create_job("s1", "alice")
    transports = [replica.transport, replica_b.transport]
    subscriptions = await soon(asyncio.gather(*(Heard().attach(transports[n % 2], "s1") for n in range(50))))
    await eventually(lambda: _count(replica.transport, "s1", 50))
    await soon(asyncio.gather(*(subscription.unsubscribe() for subscription in subscriptions)))
    await eventually(lambda: _count(replica.transport, "s1", 0))
