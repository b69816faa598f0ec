"""B1: presence that can say zero, and says it neither early nor wrongly. Against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import nats.errors
import pytest
from backends import NatsBackend
from strangers import Stranger
from waiting import Calls, Heard, eventually, known

from natsjobs.engine import census

LEASE = 1.5


class Frozen:
    """A replica with a subscriber that hears every question and answers none, or only from a later one on."""

    def __init__(self, stranger: Stranger, before_answering: Callable[[], None] = lambda: None) -> None:
        self.stranger = stranger
        self.asked: list[float] = []
        self.answers_from = float("inf")
        self.before_answering = before_answering
        """Called after the last question that it does not answer."""

    async def join(self) -> None:
        self.sub = await self.stranger.nc.subscribe(self.stranger.subjects.presence("s"), cb=self._hear)
        await self.say("join")

    async def leave(self) -> None:
        await self.sub.unsubscribe()
        await self.say("leave")

    async def say(self, what: str) -> None:
        body = f'{{"event":"{what}","replica":"frozen","count":1}}'.encode()
        await self.stranger.nc.publish(self.stranger.subjects.joined("s"), body)
        await known(self.stranger.nc)

    async def _hear(self, message: Any) -> None:
        self.asked.append(asyncio.get_running_loop().time())
        if len(self.asked) == self.answers_from - 1:
            self.before_answering()
        if len(self.asked) >= self.answers_from:
            await message.respond(b'{"replica":"frozen","count":1}')


async def watched(backend: NatsBackend) -> tuple[Any, Calls]:
    """A replica without subscribers that waits for all to have left."""
    replica = await backend.replica(backend.config(timing={"lease": LEASE, "renew": 0.5}))
    left = Calls()
    await replica.transport.on_all_subscribers_left("s", left)
    return replica, left


async def test_b1_who_waits_for_all_to_leave_is_no_subscriber(backend: NatsBackend) -> None:
    """Its interest in joins is on another subject, so a question is refused at once: nobody is there."""
    replica, left = await watched(backend)
    stranger = await Stranger.of(backend)
    with pytest.raises(nats.errors.NoRespondersError):
        await stranger.nc.request(backend.subjects.presence("s"), b"{}", timeout=5)
    assert await replica.transport.count_subscribers("s") == 0
    other = await backend.replica()
    subscription = await Heard().attach(other.transport, "s")
    assert (await stranger.ask(backend.subjects.presence("s"), {}))["count"] == 1
    assert await replica.transport.count_subscribers("s") == 1
    await subscription.unsubscribe()
    await left.until(1)


async def test_b1_whoever_hears_of_a_join_can_reach_the_subscriber(backend: NatsBackend) -> None:
    """A hundred times: the question that follows a join is answered, never refused."""
    replica = await backend.replica()
    stranger = await Stranger.of(backend)
    joins = await stranger.nc.subscribe(f"{backend.namespace}.joined.*")
    await known(stranger.nc)
    for n in range(100):
        subscription = await Heard().attach(replica.transport, f"s{n}")
        message = await joins.next_msg(timeout=10)
        assert b'"join"' in message.data
        assert (await stranger.ask(backend.subjects.presence(f"s{n}"), {}))["count"] == 1
        await subscription.unsubscribe()
        assert b'"leave"' in (await joins.next_msg(timeout=10)).data


async def test_b1_silence_is_unknown_and_zero_only_after_three_questions_over_a_lease(backend: NatsBackend) -> None:
    """A frozen replica's subscriber is not counted away early, and does not hold up for ever."""
    _, left = await watched(backend)
    frozen = Frozen(await Stranger.of(backend))
    loop = asyncio.get_running_loop()
    await frozen.join()
    joined = loop.time()
    await left.until(1)
    assert len(frozen.asked) >= 3
    assert loop.time() - joined >= LEASE
    assert left.count == 1


async def test_b1_a_busy_replica_that_misses_the_window_still_counts(
    backend: NatsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers from the third question on: nobody has left, until it says so."""
    _, left = await watched(backend)
    # The third answer is the last that counts, so it gets a window that also a machine under load does not miss.
    frozen = Frozen(await Stranger.of(backend), lambda: monkeypatch.setattr(census, "_COLLECT", 3.0))
    frozen.answers_from = 3
    await frozen.join()
    await eventually(lambda: len(frozen.asked) >= 6)
    assert left.count == 0
    await frozen.leave()
    await left.until(1)


async def test_b1_a_join_between_two_questions_keeps_it_quiet(backend: NatsBackend) -> None:
    """Joins whose interest has not spread yet: "no responders" is not believed while they keep coming."""
    _, left = await watched(backend)
    frozen = Frozen(await Stranger.of(backend))
    loop = asyncio.get_running_loop()
    until = loop.time() + 2.0
    while loop.time() < until:  # every 0.3 s, so that one falls between any two questions, 0.5 s apart
        await frozen.say("join")
        assert left.count == 0
        await asyncio.sleep(0.3)
    await left.until(1)


async def test_b1_a_count_waits_for_all_replicas_that_spoke_last_time(backend: NatsBackend) -> None:
    """A slower replica is waited for; forged answers without a name count nothing."""
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)

    async def garbage(message: Any) -> None:
        await message.respond(b"yes, me")
        await message.respond(b'{"count":40}')

    sub = await stranger.nc.subscribe(backend.subjects.presence("s"), cb=garbage)
    await known(stranger.nc)
    subscriptions = [await Heard().attach(one.transport, "s") for one in (a, b, b)]
    for _ in range(20):
        assert await a.transport.count_subscribers("s") == 3
    await sub.unsubscribe()
    for subscription in subscriptions:
        await subscription.unsubscribe()
