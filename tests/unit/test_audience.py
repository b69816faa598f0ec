"""Runs that nobody watches collect their events for longer, on a clock that a test owns: every time here is exact."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from logged import EXACT, LINGER, Log
from virtual_time import Virtual

from natsjobs import JobClosedError, PermissionDeniedError
from natsjobs.engine import audience, census
from natsjobs.engine.linger import Linger
from natsjobs.engine.ports import NoRespondersError
from natsjobs.memory import MemoryEventTransport, MemoryJobStore
from natsjobs.memory.bus import MemoryBus

UNWATCHED = 1000.0
EVERY = 10.0
LEASE = 2000.0
ASKED = LEASE * 3 * 1.2
"""Between two questions at most; the answer changes the pace of what comes next."""


@pytest.fixture
def clock() -> Iterator[Virtual]:
    """Waiting takes no time."""
    with Virtual() as clock:
        yield clock


def log(**settings: Any) -> Log:
    """A replica with both lingers."""
    return Log(**{"linger_unwatched": UNWATCHED, "lease": LEASE, "renew": 600.0, **settings})


async def unwatched(**settings: Any) -> Log:
    """One whose job "a" emits, and nobody watches; a message of it has just left."""
    made = log(**settings)
    await made.start("a")
    await made.emit_every(EVERY, 3 * UNWATCHED)
    sent = len(made.messages)
    while len(made.messages) == sent:
        await made.emit("a", made.now + EVERY)
    assert made.messages[-1][2] >= 0.8 * UNWATCHED / EVERY - 1, "it does not collect for longer"
    return made


async def collects(made: Log, pause: float) -> None:
    """Go on emitting: the next message but one, which is collected wholly from now on, is held for so long."""
    sent = len(made.messages)
    while len(made.messages) < sent + 2:
        await made.emit("a", made.now + EVERY)
    count = made.messages[-1][2]
    assert 0.8 * pause / EVERY - 1 <= count <= pause / EVERY + 1, f"{count} events in a message"


async def watch(transport: MemoryEventTransport) -> tuple[Any, list[Any]]:
    """A subscriber, and what it has got."""
    got: list[Any] = []
    return await transport.subscribe("a", on_chunk=lambda event: got.append(event["n"])), got


def test_a_run_that_nobody_watches_collects_for_longer(clock: Virtual) -> None:
    """Fewer messages, nothing held for longer than that, everything stored; a pause still ends with the first event."""

    async def scene() -> None:
        made = log()
        await made.start("a")
        await made.emit_every(EVERY, 20_000)
        late = made.since(2 * UNWATCHED)
        assert len(late) <= (20_000 - 2 * UNWATCHED) / (0.8 * UNWATCHED)
        assert all(count <= UNWATCHED / EVERY + 1 for _, count in late)
        await made.emit("a", 20_060)  # a moment after the last: held for the longer linger
        await made.until(20_060 + UNWATCHED + EXACT)
        sent = len(made.messages)
        await made.emit("a", 23_000)
        await asyncio.sleep(EXACT)
        assert [count for _, _, count in made.messages[sent:]] == [1]
        assert sum(count for _, _, count in made.messages) == 20_000 / EVERY + 2
        await made.close()

    clock.run(scene())


def test_a_run_counts_as_watched_at_first(clock: Virtual, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it has lingered for that long nothing is asked, and nothing is held for longer than the linger."""
    monkeypatch.setattr(audience, "_FIRST", 5 * LINGER)

    async def scene() -> None:
        made = log()
        await made.start("a")
        await made.emit_every(EVERY, 4 * LINGER)
        assert not made.heard()
        assert all(count <= LINGER / EVERY + 1 for _, count in made.since(0))
        await made.emit_every(EVERY, 4 * UNWATCHED)
        assert made.heard()
        await made.close()

    clock.run(scene())


def test_what_never_lingers_listens_to_nobody(clock: Virtual) -> None:
    """Idle runs, and runs that emit so rarely that every event goes at once; and nobody at all, when it is off."""

    async def scene(made: Log, pause: float) -> None:
        await made.start("a", "idle")
        before = asyncio.all_tasks()
        await made.emit_every(pause, 5 * UNWATCHED)
        assert not made.heard()
        assert asyncio.all_tasks() == before
        assert all(count <= LINGER / pause + 1 for _, count in made.since(0))
        await made.close()

    clock.run(scene(log(), LINGER * 1.1))
    clock.run(scene(log(linger_unwatched=0), EVERY))
    clock.run(scene(log(linger_unwatched=LINGER), EVERY))
    clock.run(scene(log(linger=0), EVERY))


def test_what_leaves_before_its_moment_was_held_too(clock: Virtual) -> None:
    """Whoever flushes all the time lingers, a little each time; and is asked about like everybody else."""

    async def scene() -> None:
        made = log()
        await made.start("a")
        for _ in range(20):
            for _ in range(3):
                await made.emit("a", made.now + EVERY)
            await made.transport.flush("a")
        assert made.heard()
        await made.close()

    clock.run(scene())


def test_a_run_that_flushes_lingers_only_as_long_as_it_does(clock: Virtual, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty flushes are not twenty lingers: it counts as watched until that time has passed."""
    monkeypatch.setattr(audience, "_FIRST", 10 * LINGER)

    async def scene() -> None:
        made = log()
        await made.start("a")
        while made.now < 9 * LINGER:
            for _ in range(2):
                await made.emit("a", made.now + EVERY)
            await made.transport.flush("a")
        assert not made.heard()
        while made.now < 30 * LINGER:
            for _ in range(2):
                await made.emit("a", made.now + EVERY)
            await made.transport.flush("a")
        assert made.heard()
        await made.close()

    clock.run(scene())


def test_who_was_denied_is_not_denied_again_when_viewers_leave(clock: Virtual) -> None:
    """Until there is another connection, nothing else can be expected."""

    async def scene() -> None:
        made = log()
        await made.start("a")
        asked = 0
        bus = made.store.link.bus
        gather = bus.gather

        async def denied(subject: str, *_: Any, **__: Any) -> list[bytes]:
            nonlocal asked
            asked += 1
            raise PermissionDeniedError("asking", subject=subject)

        bus.gather = denied  # type: ignore[method-assign]
        await made.emit_every(EVERY, 3 * UNWATCHED)
        assert asked == 1
        for _ in range(3):
            viewer, _ = await watch(made.transport)
            await viewer.unsubscribe()
            await made.emit_every(EVERY, made.now + 3 * UNWATCHED)
        assert asked == 1
        bus.gather = gather  # type: ignore[method-assign]
        made.store.link.disconnect()
        made.store.link.reconnect()
        await made.emit_every(EVERY, made.now + 3 * UNWATCHED)
        await collects(made, UNWATCHED)
        await made.close()

    clock.run(scene())


def test_an_unwatched_run_needs_no_task(clock: Virtual) -> None:
    """Neither while it emits, nor while it pauses; and it has one interest more."""

    async def scene() -> None:
        made = log()
        await made.start("a")
        before, interests = asyncio.all_tasks(), made.store.link.interests()
        await made.emit_every(EVERY, 3 * UNWATCHED)
        assert asyncio.all_tasks() == before
        joined = made.store.replica.context.subjects.joined("a")
        assert sorted(made.store.link.interests()) == sorted([*interests, joined])
        await made.close()

    clock.run(scene())


@pytest.mark.parametrize("held", [30, 200], ids=["a moment", "longer"])
@pytest.mark.parametrize("local", [False, True], ids=["elsewhere", "here"])
def test_who_joins_has_at_once_what_was_held_back(clock: Virtual, local: bool, held: int) -> None:
    """Also where the news of it is lost, when he is on this replica; and from then on nothing is held for long."""

    async def scene() -> None:
        made = await unwatched()
        viewing = made.transport if local else await made.other()
        if local:
            for interest in [one for one in made.store.link.own_interests if ".joined." in one.subject]:
                made.system.remove_interest(interest)
        await made.emit_every(EVERY, made.now + held)
        sent, joined = len(made.messages), made.now
        _, got = await watch(viewing)
        await asyncio.sleep(EXACT)
        (at, _, count), *more = made.messages[sent:]
        assert not more
        assert held / EVERY <= count <= held / EVERY + 1
        assert at <= joined + EXACT
        await collects(made, LINGER)
        assert len(got) >= held / EVERY
        await made.close(viewing)

    clock.run(scene())


def test_a_subscriber_on_this_replica_needs_no_answer(clock: Virtual) -> None:
    """He counts although nobody hears the question."""

    async def scene() -> None:
        made = await unwatched()
        await watch(made.transport)
        for interest in [one for one in made.store.link.own_interests if ".presence." in one.subject]:
            made.system.remove_interest(interest)
        await made.emit_every(EVERY, made.now + ASKED)
        await collects(made, LINGER)
        await made.close()

    clock.run(scene())


@pytest.mark.parametrize("local", [False, True], ids=["elsewhere", "here"])
def test_it_collects_for_longer_again_when_the_last_viewer_has_left(clock: Virtual, local: bool) -> None:
    """One of two leaving changes nothing."""

    async def scene() -> None:
        made = await unwatched()
        viewing = made.transport if local else await made.other()
        first, _ = await watch(viewing)
        second, _ = await watch(viewing)
        await first.unsubscribe()
        for _ in range(3):
            await collects(made, LINGER)
        await second.unsubscribe()
        await made.emit_every(EVERY, made.now + 3 * LINGER)
        await collects(made, UNWATCHED)
        await made.close(viewing)

    clock.run(scene())


def test_a_viewer_that_died_stops_to_count(clock: Virtual) -> None:
    """It says nothing, and is found out by the next question, which comes whoever watches."""

    async def scene() -> None:
        made = await unwatched()
        viewing = await made.other()
        await watch(viewing)
        await collects(made, LINGER)
        made.others[0].link.kill()
        await made.emit_every(EVERY, made.now + ASKED + 3 * LINGER)
        await collects(made, UNWATCHED)
        await made.close()

    clock.run(scene())


def test_a_viewer_whose_join_was_lost_is_found(clock: Virtual) -> None:
    """By the next question: until then he has everything a little later."""

    async def scene() -> None:
        made = await unwatched()
        for interest in [one for one in made.store.link.own_interests if ".joined." in one.subject]:
            made.system.remove_interest(interest)
        viewing = await made.other()
        await watch(viewing)
        await collects(made, UNWATCHED)
        await made.emit_every(EVERY, made.now + ASKED + 3 * UNWATCHED)
        await collects(made, LINGER)
        await made.close(viewing)

    clock.run(scene())


def test_silence_means_watched(clock: Virtual) -> None:
    """Somebody has interest in the question and does not answer."""

    async def scene() -> None:
        made = log()
        await made.start("a")
        stranger = made.system.link()
        await stranger.open()
        await stranger.bus.subscribe(made.store.replica.context.subjects.presence("a"), lambda _: None)
        await made.emit_every(EVERY, 3 * UNWATCHED)
        assert made.heard()
        await collects(made, LINGER)
        await stranger.close()
        await made.close()

    clock.run(scene())


def test_a_join_beside_the_question_means_watched(clock: Virtual, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is older than the join: it was listened for before anybody was asked."""
    request, viewings = MemoryBus.request, list[MemoryEventTransport]()

    async def slow(bus: MemoryBus, subject: str, body: bytes, *, timeout: float) -> bytes:
        try:
            return await request(bus, subject, body, timeout=timeout)
        except NoRespondersError:
            if viewings:
                await watch(viewings.pop())
            raise

    monkeypatch.setattr(MemoryBus, "request", slow)

    async def scene() -> None:
        made = log()
        await made.start("a")
        viewing = await made.other()
        viewings.append(viewing)
        await made.emit_every(EVERY, 2 * UNWATCHED)
        assert not viewings, "nobody was asked"
        await collects(made, LINGER)
        await made.close(viewing)

    clock.run(scene())


def test_after_a_reconnect_it_counts_as_watched_until_the_answer(clock: Virtual) -> None:
    """Whoever joined meanwhile was not heard; what was held back leaves with the connection."""

    async def scene() -> None:
        made = await unwatched()
        await made.emit_every(EVERY, made.now + 200)
        made.store.link.disconnect()
        sent = len(made.messages)
        await asyncio.sleep(1)
        back = made.now
        made.store.link.reconnect()
        await asyncio.sleep(EXACT)
        assert made.messages[sent][0] <= back + EXACT
        await made.emit_every(EVERY, made.now + 3 * LINGER)
        await collects(made, UNWATCHED)
        viewing = await made.other()
        made.store.link.disconnect()
        _, got = await watch(viewing)
        made.store.link.reconnect()
        await made.emit_every(EVERY, made.now + 3 * LINGER)
        await collects(made, LINGER)
        assert got
        await made.close(viewing)

    clock.run(scene())


def test_whoever_waits_for_the_log_waits_for_no_linger(clock: Virtual) -> None:
    """Flush, append, clear and the end take everything along at once, as ever."""

    async def scene() -> None:
        made = await unwatched()

        async def at_once(call: Any) -> None:
            await made.emit_every(EVERY, made.now + 100)
            began = made.now
            await call
            assert made.now - began <= EXACT

        await at_once(made.transport.flush("a"))
        await at_once(made.store.append_chunk("a", {"n": 0}))
        await at_once(made.store.clear_content_state("a"))
        await at_once(made.transport.emit_done("a", None))
        await made.close()

    clock.run(scene())


@pytest.mark.parametrize("limits", [{"queue_events": 40}, {"queue_bytes": 680}], ids=lambda limits: next(iter(limits)))
def test_half_of_the_queue_does_not_wait(clock: Virtual, limits: dict[str, int]) -> None:
    """So a producer never has to wait because of the linger."""

    async def scene() -> None:
        made = await unwatched_with(limits)
        await made.transport.flush("a")
        began, emitted = made.now, 200
        for _ in range(emitted):
            before = made.now
            await made.transport.emit_chunk("a", {"n": 10_000_000_000})
            assert made.now - before < 1e-3, "emit has waited"
            await asyncio.sleep(0.01)
        counts = [count for _, count in made.since(began)]
        assert max(counts) <= 21
        assert sum(counts) >= emitted - 21
        await made.close()

    async def unwatched_with(limits: dict[str, int]) -> Log:
        made = log(limits=limits)
        await made.start("a")
        await made.emit_every(40.0, 4 * UNWATCHED)
        assert max(count for _, count in made.since(2 * UNWATCHED)) > LINGER / 40 + 1, "it does not collect for longer"
        return made

    clock.run(scene())


def test_a_run_that_ends_is_listened_for_no_more(clock: Virtual) -> None:
    """However it ends, also while the first question is under way; its successor counts as watched at first."""

    async def scene() -> None:
        made = await unwatched()
        await made.transport.emit_done("a", None)
        await asyncio.sleep(1)
        assert not made.heard()
        await made.store.create_job("a", "u")
        await made.emit_every(EVERY, made.now + LINGER)
        await collects(made, UNWATCHED)
        job = await made.store.create_job("a", "u")
        await asyncio.sleep(1)
        assert not made.heard()
        assert made.messages[-1][2] <= UNWATCHED / EVERY + 1
        subscribe, ended = MemoryBus.subscribe, list[bool]()

        async def slow(bus: MemoryBus, subject: str, *args: Any, **options: Any) -> Any:
            interest = await subscribe(bus, subject, *args, **options)
            if ".joined." in subject:
                await made.store.end_job("a", generation=job.generation, status="complete")
                ended.append(True)
            return interest

        MemoryBus.subscribe = slow  # type: ignore[method-assign, assignment]
        try:
            with pytest.raises(JobClosedError):
                await made.emit_every(EVERY, made.now + UNWATCHED)
        finally:
            MemoryBus.subscribe = subscribe  # type: ignore[method-assign]
        await asyncio.sleep(1)
        assert ended
        assert not made.heard()
        await made.close()

    clock.run(scene())


def test_a_store_that_closes_leaves_nothing(clock: Virtual) -> None:
    """With runs that are unwatched, and with one whose question is under way; it can be opened again."""

    async def scene() -> None:
        made = await unwatched()
        assert made.heard()
        await made.transport.destroy()
        await made.store.destroy()
        assert not made.store.link.interests()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        again = MemoryEventTransport(made.store)
        await made.store.initialize()
        await made.store.create_job("a", "u")
        made.transport = again
        made.began = time.monotonic()
        await made.emit_every(EVERY, UNWATCHED)
        assert made.heard()
        await collects(made, UNWATCHED)
        await made.close()

    clock.run(scene())


def test_a_store_that_closes_while_nats_is_away_leaves_no_task(clock: Virtual) -> None:
    """Its run goes on for the others until its lease lapses, so nothing had ended it here before."""

    async def scene() -> None:
        made = await unwatched()
        made.store.link.disconnect()
        await made.transport.destroy()
        await made.store.destroy()
        assert not [task.get_name() for task in asyncio.all_tasks() if "audience" in task.get_name()]

    clock.run(scene())


class Pen:
    """A writer of the job "a", and how long it collects."""

    stream_id = "a"

    def __init__(self, generation: str) -> None:
        self.generation = generation
        self.linger = LINGER

    def collect(self, linger: Linger) -> None:
        """Remember it."""
        self.linger = linger.seconds


def test_the_writer_that_was_heard_last_is_the_one_that_is_watched(clock: Virtual) -> None:
    """An earlier generation may still hold something back, whose end was not seen yet."""

    async def scene() -> None:
        made = log()
        await made.start()
        old, new = Pen("g1"), Pen("g2")
        audience = made.store.replica.audience
        for pen in (old, new):
            audience.heed(pen)
            await asyncio.sleep(1)
            assert pen.linger == UNWATCHED
        assert len(made.heard()) == 1
        audience.forget("a", "g1")
        viewing = await made.other()
        await watch(viewing)
        assert (old.linger, new.linger) == (LINGER, LINGER)
        audience.forget("a", "g2")
        await asyncio.sleep(1)
        assert not made.heard()
        await made.close(viewing)

    clock.run(scene())


def test_whoever_is_listened_for_no_more_collects_for_the_linger(
    clock: Virtual, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would tell it of a join: also when it was being asked for while another writer came."""

    async def scene() -> None:
        made = log()
        await made.start()
        old, new = Pen("g1"), Pen("g2")
        audience = made.store.replica.audience
        audience.heed(old)
        await asyncio.sleep(1)
        assert old.linger == UNWATCHED
        audience.heed(new)
        assert old.linger == LINGER
        await asyncio.sleep(1)
        answered, deserted = asyncio.Event(), census.is_deserted

        async def held_up(*asked: Any) -> bool:
            await answered.wait()
            return await deserted(*asked)

        monkeypatch.setattr(census, "is_deserted", held_up)
        audience.heed(old)
        await asyncio.sleep(1)
        audience.heed(new)
        answered.set()
        await asyncio.sleep(1)
        assert (old.linger, new.linger) == (LINGER, UNWATCHED)
        await made.close()

    clock.run(scene())


def test_jobs_of_a_store_are_told_apart(clock: Virtual) -> None:
    """Whoever watches one of two changes nothing of the other."""

    async def scene() -> None:
        made = log()
        await made.start("a", "b")
        viewing = await made.other()
        await watch(viewing)
        both = made.emit_every(EVERY, 5 * UNWATCHED), made.emit_every(EVERY, 5 * UNWATCHED, "b")
        await asyncio.gather(*both)
        assert isinstance(made.store, MemoryJobStore)
        counts: dict[str, list[int]] = {"watched": [], "unwatched": []}
        for sent, generation, count in made.messages:
            if sent >= 2 * UNWATCHED:
                counts["watched" if generation == made.generations["a"] else "unwatched"].append(count)
        assert max(counts["watched"]) <= LINGER / EVERY + 1
        assert max(counts["unwatched"]) >= 0.8 * UNWATCHED / EVERY - 1
        await made.close(viewing)

    clock.run(scene())
