"""The memory system: what it does beyond the ports. Time that a test moves, links that are taken away, memory."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import natsjobs
from natsjobs.engine.ports import Incoming, NoReplyError, NoRespondersError, WrongSequenceError
from natsjobs.engine.subjects import Subjects
from natsjobs.errors import StreamFullError, UnavailableError
from natsjobs.memory import MemoryLink, MemorySystem
from natsjobs.memory.stream import StreamSettings, StreamStore
from natsjobs.memory.tree import SubjectTree, matches

NAMES = Subjects("natsjobs")
LOG, SCOPE, KEY = NAMES.log("s", "g"), NAMES.scope("s", "g"), NAMES.record("owner", "r")


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The time of the system."""
    return Clock()


@pytest.fixture
def system(clock: Clock) -> MemorySystem:
    """A system at that time, whose events stay for an hour."""
    return MemorySystem(retention_log=3600, clock=clock)


async def opened(system: MemorySystem) -> MemoryLink:
    """An open link."""
    link = system.link()
    await link.open()
    return link


async def turns(count: int = 3) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


# -- subjects -----------------------------------------------------------------------------------------------------

words = st.sampled_from(["a", "b", "c"])
subjects = st.lists(words, min_size=1, max_size=4).map(".".join)
filters = st.tuples(st.lists(words | st.just("*"), max_size=3), st.sampled_from(["", ">", "*", "a"])).map(
    lambda parts: ".".join([*parts[0], *([parts[1]] if parts[1] else [])]) or ">"
)


@pytest.mark.parametrize(
    ("subject_filter", "subject", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
        ("*.b.>", "a.b.c", True),
        ("*.b.>", "a.c.c", False),
    ],
)
def test_wildcards_mean_what_they_mean_in_nats(subject_filter: str, subject: str, expected: bool) -> None:
    """One token, or one and more at the end."""
    assert matches(subject_filter, subject) is expected


@given(st.sets(subjects), filters)
def test_a_tree_finds_the_subjects_of_a_filter(stored: set[str], subject_filter: str) -> None:
    """Exactly those that match."""
    tree: SubjectTree[str] = SubjectTree()
    for subject in stored:
        tree.put(subject, subject)
    assert {s for s, _ in tree.below(subject_filter)} == {s for s in stored if matches(subject_filter, s)}
    assert len(tree.below(subject_filter, 2)) == min(2, len(tree.below(subject_filter)))


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a machine that does something else as well
@given(st.sets(filters), subjects)
def test_a_tree_finds_the_filters_of_a_subject(stored: set[str], subject: str) -> None:
    """Exactly those that match, each once."""
    tree: SubjectTree[str] = SubjectTree()
    for subject_filter in stored:
        tree.put(subject_filter, subject_filter)
    assert sorted(tree.matching(subject)) == sorted(f for f in stored if matches(f, subject))


@given(st.lists(st.tuples(st.booleans(), subjects)))
def test_a_tree_forgets_without_a_trace(steps: list[tuple[bool, str]]) -> None:
    """What was removed is gone, what was not is there, and an empty tree has no nodes."""
    tree: SubjectTree[str] = SubjectTree()
    there: set[str] = set()
    for put, subject in steps:
        if put:
            tree.put(subject, subject)
            there.add(subject)
        elif subject in there:
            tree.remove(subject)
            there.remove(subject)
        assert tree.get(subject) == (subject if subject in there else None)
    for subject in there:
        tree.remove(subject)
    assert not tree._root.children


# -- the store against a plain list -------------------------------------------------------------------------------

step = st.tuples(
    st.sampled_from(["append", "rollup", "guarded", "wait"]), subjects, st.sampled_from([None, 1.0, 5.0]), filters
)


@given(st.lists(step, max_size=120), st.booleans())
def test_a_store_does_what_a_plain_list_would(steps: list[tuple[Any, ...]], newest_only: bool) -> None:
    """Whatever is appended, replaced and expires: reads, counts, guards and bytes agree with a naive model."""
    clock = Clock()
    store = StreamStore(
        StreamSettings(prefix="", republish_prefix="", newest_only=newest_only, max_age=20), clock, lambda _: None
    )
    model: list[tuple[int, str, float]] = []  # sequence, subject, end
    last = 0
    for kind, subject, ttl, subject_filter in steps:
        if kind == "wait":
            clock.now += ttl or 0.5
        model = [entry for entry in model if entry[2] > clock.now]
        found = [seq for seq, s, _ in model if matches(subject_filter, s)]
        expect = (found[-1] if found else 0) if kind == "guarded" else None
        if kind != "wait":
            scope = subject_filter if kind == "guarded" else None
            last += 1
            seq = store.append(
                subject, b"x", expect=expect, scope=scope, ttl=ttl, rollup=kind == "rollup", marker=False
            )
            assert seq == last
            if newest_only or kind == "rollup":
                model = [entry for entry in model if entry[1] != subject]
            model.append((last, subject, clock.now + min(ttl or 20, 20)))
        found = [seq for seq, s, _ in model if matches(subject_filter, s)]
        newest = store.last(subject_filter)
        assert (newest.seq if newest else 0) == (found[-1] if found else 0)
        middle = last // 2
        assert [m.seq for m in store.page(subject_filter, middle, 5)] == [s for s in found if s >= middle][:5]
        assert sum(store.subjects(subject_filter).values()) == len(found)
    state = store.state()
    assert (state.last_seq, state.bytes > 0) == (last, bool(model))


# -- time ---------------------------------------------------------------------------------------------------------


async def test_time_is_what_the_clock_says(system: MemorySystem, clock: Clock) -> None:
    """Messages, state and TTLs follow it; an expiry shows at the next call and is published."""
    link = await opened(system)
    heard: list[Incoming] = []
    await link.bus.subscribe(NAMES.changes("owner"), heard.append)
    await link.records.append(KEY, b"x", ttl=10)
    clock.now += 9.9
    assert (await link.records.state()).now == clock.now
    assert await link.records.last(KEY)
    clock.now += 0.1
    system.expire()
    await turns()
    assert [incoming.marker for incoming in heard] == [None, "MaxAge"]
    marker = await link.records.last(KEY)
    assert marker
    assert (marker.marker, marker.time) == ("MaxAge", clock.now)
    clock.now += 60
    assert await link.records.last(KEY) is None


async def test_events_go_when_they_are_too_old(system: MemorySystem, clock: Clock) -> None:
    """Each by its own age, and nothing of them stays in memory."""
    link = await opened(system)
    for _ in range(3):
        await link.events.append(LOG, b"x")
        clock.now += 1000
    clock.now += 1000
    assert [m.seq for m in await link.events.page(LOG, 1)] == [2, 3]
    clock.now += 3600
    state = await link.events.state()
    assert (state.bytes, state.last_seq) == (0, 3)
    assert await link.events.subjects(NAMES.all_events) == {}
    with pytest.raises(WrongSequenceError) as caught:
        await link.events.append(LOG, b"x", expect=3, scope=SCOPE)
    assert caught.value.last == 0


async def test_a_full_stream_refuses_and_stores_nothing() -> None:
    """As a server with ``max_bytes`` and discard new; what expires makes room."""
    clock = Clock()
    link = await opened(MemorySystem(max_bytes=1000, retention_log=60, clock=clock))
    await link.events.append(LOG, b"x" * 600)
    with pytest.raises(StreamFullError) as caught:
        await link.events.append(LOG, b"x" * 600)
    assert not caught.value.outcome_unknown
    state = await link.events.state()
    assert (state.last_seq, state.max_bytes) == (1, 1000)
    clock.now += 61
    assert await link.events.append(LOG, b"x" * 600) == 2


async def test_the_limit_of_the_settings_holds_in_memory_too() -> None:
    """Whoever tries in memory what happens when the stream is full sees it."""

    async def too_much(run: natsjobs.JobRun) -> None:
        for _ in range(40):
            await run.emit("x" * 32_768)
            await run.flush()

    async with natsjobs.connect("memory://", config=natsjobs.Config(max_bytes=1_048_576)) as jobs:
        await jobs.spawn("s", too_much, user_id="alice")
        async with jobs.subscribe("s") as events:
            end = [event async for event in events][-1]
    assert end.type == "error"
    assert "max_bytes of 1,048,576" in end.data


async def test_a_lease_that_is_renewed_for_long_takes_no_memory(system: MemorySystem, clock: Clock) -> None:
    """Ten thousand renewals hold one message."""
    store = system.store("records")
    for _ in range(10_000):
        store.append(KEY, b"x", expect=None, scope=None, ttl=10, rollup=False, marker=False)
        clock.now += 0.001
    assert len(store._messages) == 1
    assert len(store._order) < 100
    assert len(store._deadlines) < 100


async def test_timers_exist_only_while_a_link_is_open() -> None:
    """The last link that closes takes the timer along; the next one that opens brings it back."""
    system = MemorySystem()
    one, two = system.link(), system.link()
    await one.open()
    await two.open()
    await one.records.append(KEY, b"x", ttl=1)
    assert system._timer
    await one.close()
    await one.close()
    assert system._timer
    two.kill()
    assert system._timer is None
    heard = asyncio.Event()
    await one.open()
    await one.bus.subscribe(NAMES.changes("owner"), lambda incoming: heard.set() if incoming.marker else None)
    async with asyncio.timeout(5):
        await heard.wait()
    await one.close()
    assert system._timer is None


def test_a_system_can_be_used_in_one_loop_after_another() -> None:
    """A timer of a loop that has ended keeps nobody waiting."""
    system = MemorySystem()

    async def first() -> None:
        link = system.link()
        await link.open()
        await link.records.append(KEY, b"x", ttl=1)

    async def second() -> None:
        link = await opened(system)
        heard = asyncio.Event()
        await link.bus.subscribe(NAMES.changes("owner"), lambda _: heard.set())
        async with asyncio.timeout(5):
            await heard.wait()
        await link.close()

    asyncio.run(first())
    asyncio.run(second())
    gc.collect()


# -- the network --------------------------------------------------------------------------------------------------


async def test_handlers_are_never_called_inside_a_call(system: MemorySystem) -> None:
    """Neither a publish nor an append: what they send arrives in a later turn."""
    link = await opened(system)
    inside, heard = False, 0

    def hear(_: Incoming) -> None:
        nonlocal heard
        assert not inside
        heard += 1

    await link.bus.subscribe(NAMES.abort("s"), hear)
    await link.bus.subscribe(NAMES.live("s"), hear)
    for call in (link.bus.publish(NAMES.abort("s"), b"x"), link.events.append(LOG, b"x")):
        inside = True
        assert call.send(None) is None  # runs it up to its wait for the network
        inside = False
        await turns()
        call.close()
    assert heard == 2


async def test_an_append_that_is_cancelled_while_it_waits_has_happened(system: MemorySystem) -> None:
    """As with a network: what was sent cannot be taken back."""
    link = await opened(system)
    task = asyncio.create_task(link.events.append(LOG, b"x"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await link.events.state()).last_seq == 1


async def test_an_acknowledgement_can_be_lost_with_the_link(system: MemorySystem) -> None:
    """The append is stored, and its caller hears that nobody knows."""
    link = await opened(system)
    task = asyncio.create_task(link.events.append(LOG, b"x"))
    await asyncio.sleep(0)
    link.disconnect()
    link.reconnect()
    with pytest.raises(UnavailableError) as caught:
        await task
    assert caught.value.outcome_unknown
    assert (await link.events.state()).last_seq == 1


async def test_while_a_link_is_away_its_calls_fail_and_nothing_is_kept_for_it(system: MemorySystem) -> None:
    """Nothing is sent late, nothing delivered late; afterwards all is as before."""
    link, other = await opened(system), await opened(system)
    near: list[Incoming] = []
    far: list[Incoming] = []
    await link.bus.subscribe(NAMES.live("s"), near.append)
    await other.bus.subscribe(NAMES.abort("s"), far.append)
    link.disconnect()
    assert link.connected_since is None
    calls = (
        lambda: link.open(),
        lambda: link.events.append(LOG, b"x"),
        lambda: link.events.next(LOG),
        lambda: link.events.last(LOG),
        lambda: link.events.page(LOG, 1),
        lambda: link.records.subjects(SCOPE),
        lambda: link.records.state(),
        lambda: link.bus.subscribe(SCOPE, near.append),
    )
    for call in calls:
        with pytest.raises(UnavailableError) as caught:
            await call()
        assert not caught.value.outcome_unknown
    await link.bus.publish(NAMES.abort("s"), b"x")
    for ask in (link.bus.request, link.bus.gather):
        with pytest.raises(NoReplyError):
            await ask(NAMES.abort("s"), b"?", timeout=0.01)
    await other.events.append(LOG, b"missed")
    back: list[int] = []
    link.on_reconnect(lambda: back.append(1))
    link.reconnect()
    link.reconnect()
    await turns()
    assert (near, far, back) == ([], [], [1])
    await other.events.append(LOG, b"heard")
    await turns()
    assert [incoming.body for incoming in near] == [b"heard"]


async def test_a_link_that_goes_away_ends_its_requests(system: MemorySystem) -> None:
    """At once, not after their time."""
    link, other = await opened(system), await opened(system)
    await other.bus.subscribe(NAMES.owner("r"), lambda _: None)
    task = asyncio.create_task(link.bus.request(NAMES.owner("r"), b"?", timeout=60))
    await turns()
    link.disconnect()
    with pytest.raises(NoReplyError):
        async with asyncio.timeout(5):
            await task
    assert system.interests() == [NAMES.owner("r")]


async def test_to_others_a_closed_connection_is_nobody_and_a_cut_one_is_silent(system: MemorySystem) -> None:
    """No responders for the one, a time-out for the other."""
    link, other = await opened(system), await opened(system)
    await other.bus.subscribe(NAMES.owner("r"), lambda _: None)
    other.disconnect()
    with pytest.raises(NoRespondersError):
        await link.bus.request(NAMES.owner("r"), b"?", timeout=60)
    other.reconnect()
    other.disconnect(silent=True)
    with pytest.raises(NoReplyError):
        await link.bus.request(NAMES.owner("r"), b"?", timeout=0.01)


async def test_a_killed_link_is_gone_for_good(system: MemorySystem) -> None:
    """It hears nothing, even what was on its way, and never comes back."""
    link, other = await opened(system), await opened(system)
    heard: list[Incoming] = []
    await other.bus.subscribe(NAMES.abort("s"), heard.append)
    await link.bus.publish(NAMES.abort("s"), b"before")
    assert len(heard) == 1
    sending = asyncio.create_task(link.bus.publish(NAMES.abort("s"), b"on its way"))
    other.kill()
    other.reconnect()
    await sending
    await turns()
    assert len(heard) == 1
    assert other.connected_since is None
    with pytest.raises(NoRespondersError):
        await link.bus.request(NAMES.abort("s"), b"?", timeout=60)
    with pytest.raises(UnavailableError):
        await other.events.state()


async def test_interests_can_be_counted(system: MemorySystem) -> None:
    """A test sees what was left behind, by link and over all."""
    link, other = await opened(system), await opened(system)
    one = await link.bus.subscribe(NAMES.abort("s"), lambda _: None)
    two = await other.bus.subscribe(NAMES.abort("s"), lambda _: None)
    assert system.interests() == [NAMES.abort("s")] * 2
    assert link.interests() == [NAMES.abort("s")]
    await one.unsubscribe()
    await one.unsubscribe()
    assert link.interests() == []
    assert system.interests() == [NAMES.abort("s")]
    await two.unsubscribe()
    assert system.interests() == []


async def test_two_systems_never_meet() -> None:
    """Not even with the same namespace."""
    one, two = await opened(MemorySystem()), await opened(MemorySystem())
    heard: list[Incoming] = []
    await two.bus.subscribe(">", heard.append)
    await one.events.append(LOG, b"x")
    await turns()
    assert not heard
    assert (await two.events.state()).last_seq == 0
