"""When events leave, at once and held back, on a clock that a test owns: every time here is exact."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
from logged import EXACT, LINGER, Log
from virtual_time import Virtual

from natsjobs.engine.departures import Departures
from natsjobs.engine.linger import Linger, Moment
from natsjobs.memory import MemorySystem

STEP = LINGER / 5


@pytest.fixture
def clock() -> Iterator[Virtual]:
    """Waiting takes no time."""
    with Virtual() as clock:
        yield clock


class Holder:
    """Somebody who holds events."""

    def __init__(self) -> None:
        self.left: list[float] = []

    def leave(self) -> None:
        """Remember when."""
        self.left.append(time.monotonic())


def test_nobody_leaves_late_or_much_too_early(clock: Virtual) -> None:
    """Wherever the clock stands: within the last fifth of the linger before the time that was asked for."""

    async def scene() -> None:
        linger, waits = Linger(LINGER), 0
        for n in range(40):
            holder, latest = Holder(), time.monotonic() + 30 + n * 3.7
            moment = linger.join(holder, latest)
            assert moment is not None
            while not holder.left:
                await asyncio.sleep(0.5)
                waits += 1
            assert latest - STEP - 0.5 <= holder.left[0] <= latest + EXACT
        assert waits

    clock.run(scene())


def test_those_who_are_due_together_leave_together(clock: Virtual) -> None:
    """One timer for a thousand, which leave in one turn of the loop; no timer is left."""

    async def scene() -> None:
        linger, holders = Linger(LINGER), [Holder() for _ in range(1000)]
        latest = (int(time.monotonic() / STEP) + 3) * STEP
        moments = {linger.join(holder, latest + STEP * n / 1001) for n, holder in enumerate(holders)}
        assert len(moments) == 1
        turns = 0
        while not holders[0].left:
            assert not any(holder.left for holder in holders)
            await asyncio.sleep(1)
            turns += 1
        assert all(len(holder.left) == 1 for holder in holders)
        assert turns
        assert not linger._moments

    clock.run(scene())


def test_who_leaves_otherwise_leaves_no_timer(clock: Virtual) -> None:
    """The last one takes the timer along; the others go as they were to."""

    async def scene() -> None:
        linger, first, second = Linger(LINGER), Holder(), Holder()
        latest = (int(time.monotonic() / STEP) + 3.5) * STEP
        moment = linger.join(first, latest)
        assert isinstance(moment, Moment)
        assert linger.join(second, latest) is moment
        moment.discard(first)
        assert not moment._timer.cancelled()
        moment.discard(second)
        assert moment._timer.cancelled()
        assert not linger._moments
        third = Holder()
        assert linger.join(third, latest) is not moment
        await asyncio.sleep(LINGER)
        assert (first.left, second.left, len(third.left)) == ([], [], 1)

    clock.run(scene())


def test_what_is_due_already_is_not_held(clock: Virtual) -> None:
    """There is no moment before now."""

    async def scene() -> None:
        linger = Linger(LINGER)
        assert linger.join(Holder(), time.monotonic() - 1) is None
        assert linger.join(Holder(), int(time.monotonic() / STEP) * STEP + 1e-6) is None

    clock.run(scene())


def test_the_first_event_of_a_pause_goes_at_once_and_what_follows_is_collected(clock: Virtual) -> None:
    """Nothing is held for longer than the linger, and after a pause everything begins anew."""

    async def scene() -> None:
        log = Log()
        await log.start("a")
        for at in (0.0, 30.0, 50.0, 70.0, 400.0, 800.0, 810.0):
            await log.emit("a", at)
        await asyncio.sleep(2 * LINGER)
        first, together, alone, again, last = log.messages
        assert [count for _, _, count in log.messages] == [1, 3, 1, 1, 1]
        assert [first[0], alone[0], again[0]] == pytest.approx([0, 400, 800], abs=EXACT)
        assert 30 + LINGER - STEP - EXACT <= together[0] <= 30 + LINGER + EXACT
        assert 810 + LINGER - STEP - EXACT <= last[0] <= 810 + LINGER + EXACT
        await log.close()

    clock.run(scene())


def test_jobs_that_linger_leave_together(clock: Virtual) -> None:
    """At a steady pace: many jobs, few moments, nothing held for too long, everything stored."""

    async def scene() -> None:
        log, names = Log(), [f"j{n}" for n in range(20)]
        await log.start(*names)

        async def produce(name: str, phase: float) -> None:
            for n in range(10):
                await log.emit(name, phase + n * 80)

        await asyncio.gather(*(produce(name, n * 3.9) for n, name in enumerate(names)))
        await asyncio.sleep(2 * LINGER)
        assert sum(count for _, _, count in log.messages) == 200
        held = [at for at, _, _ in log.messages if at > 100]
        moments = {round(at / 5) for at in held}
        assert len(held) >= 3 * len(moments)
        await log.close()

    clock.run(scene())


def test_a_usual_append_needs_no_task(clock: Virtual) -> None:
    """From the emit to the acknowledgement."""

    async def scene() -> None:
        log = Log()
        await log.start("a")
        await asyncio.sleep(10)
        before = asyncio.all_tasks()
        await log.emit("a", 20)
        assert asyncio.all_tasks() == before
        await log.transport.flush("a")
        assert asyncio.all_tasks() == before
        assert len(log.messages) == 1
        await log.close()

    clock.run(scene())


@pytest.mark.parametrize("linger", [0.0, LINGER])
def test_what_is_emitted_in_one_turn_is_one_message(clock: Virtual, linger: float) -> None:
    """Also the first event of a pause: it waits for the end of the turn and for nothing else."""

    async def scene() -> None:
        log = Log(linger)
        await log.start("a", "b")
        for at in (0.0, 400.0):
            await log.emit("a", at)
            for n in range(9):
                await log.transport.emit_chunk("a", {"n": n})
                await log.transport.emit_chunk("b", {"n": n})
        await asyncio.sleep(2 * LINGER)
        assert [(name, count) for _, name, count in log.messages] == [
            (log.generations[name], count) for _ in range(2) for name, count in (("a", 10), ("b", 9))
        ]
        assert [at for at, _, _ in log.messages] == pytest.approx([0, 0, 400, 400], abs=EXACT)
        await log.close()

    clock.run(scene())


def test_who_begins_in_a_long_turn_does_not_wait_for_its_end(clock: Virtual) -> None:
    """They leave in parties, each once; who has just begun is not in the one that leaves."""

    async def scene() -> None:
        left: list[int] = []

        class Leaving:
            def __init__(self, number: int) -> None:
                self.number = number

            def depart(self) -> None:
                left.append(self.number)

        departures, seen = Departures(MemorySystem("x").link()), list[int]()
        for number in range(40):
            departures.join(Leaving(number))
            seen.append(len(left))
        assert seen == [0] * 16 + [16] * 16 + [32] * 8
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert left == list(range(40))
        departures.join(Leaving(40))
        assert len(left) == 40
        await asyncio.sleep(1)
        assert left == list(range(41))

    clock.run(scene())


def test_a_job_that_closes_in_the_turn_of_an_event_sends_nothing(clock: Virtual) -> None:
    """Whoever closes the store right after an emit finds no timer, and nothing is sent behind its back."""

    async def scene() -> None:
        log = Log()
        await log.start("a")
        await log.transport.emit_chunk("a", {"n": 0})
        log.store.replica.runs.close()
        await asyncio.sleep(LINGER)
        assert not log.messages
        await log.close()

    clock.run(scene())


def test_a_send_that_fails_in_an_unknown_way_holds_up_nobody(clock: Virtual) -> None:
    """It happens when nobody is there to hear of it: a task tries again, and tells who waits."""

    async def scene() -> None:
        log = Log()
        await log.start("a", "b")
        events = log.store.link.events
        send = events.send

        def failing(subject: str, body: bytes, **options: object) -> object:
            if log.generations["a"] in subject:
                raise RuntimeError("a defect")
            return send(subject, body, **options)  # type: ignore[arg-type]

        events.send = failing  # type: ignore[method-assign, assignment]
        for name in ("a", "b"):
            await log.transport.emit_chunk(name, {"n": 0})
        async with asyncio.timeout(LINGER):
            for name in ("a", "b"):
                await log.transport.flush(name)
        assert [name for _, name, _ in log.messages] == [log.generations["b"]]
        assert sum((await events.subjects(">")).values()) == 4
        await log.close()

    clock.run(scene())


async def _steps(log: Log, name: str) -> int:
    """Lines of Python that a flush of one job takes when there is nothing to wait for."""
    steps = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        steps += event == "line" and "natsjobs" in frame.f_code.co_filename
        return trace

    await log.transport.flush(name)
    sys.settrace(trace)
    try:
        await log.transport.flush(name)
    finally:
        sys.settrace(None)
    return steps


def test_flushing_a_job_costs_the_same_however_many_run(clock: Virtual) -> None:
    """A thousand jobs that flush once each would look at a million otherwise."""

    async def scene() -> None:
        few, many = Log(), Log()
        await few.start("a")
        await many.start("a", *(f"j{n}" for n in range(200)))
        assert 0 < await _steps(few, "a") == await _steps(many, "a")
        await few.close()
        await many.close()

    clock.run(scene())
