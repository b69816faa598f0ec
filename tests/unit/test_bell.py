"""What readers wait for: every kind of task can, and a ring or a cancellation reaches the right one.

Asyncio's two kinds of tasks and uvloop's loop are what a program may run on; each promise is tried on all of them.
"""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import tasks
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from natsjobs.engine.bell import Bell, Bells

_Scene = Callable[[], Coroutine[Any, Any, None]]
_Play = Callable[[_Scene], None]
number: contextvars.ContextVar[int] = contextvars.ContextVar("number")


def _factory(kind: Any) -> Any:
    def make(loop: asyncio.AbstractEventLoop, coro: Any, context: Any = None) -> Any:
        return kind(coro, loop=loop, context=context)

    return make


@pytest.fixture(params=["asyncio", "tasks in Python", "uvloop", "debug"])
def play(request: pytest.FixtureRequest) -> _Play:
    """Runs a scene to its end on one kind of loop."""

    def run(scene: _Scene) -> None:
        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory, debug=request.param == "debug") as runner:
            if request.param == "tasks in Python":
                runner.get_loop().set_task_factory(_factory(tasks._PyTask))  # type: ignore[attr-defined]
            runner.run(asyncio.wait_for(scene(), 20))

    return run


class Waiters:
    """So many tasks that wait for their bells, over and over, and what they heard."""

    def __init__(self, count: int) -> None:
        self.bells = Bells()
        self.each = [Bell() for _ in range(count)]
        self.heard: list[int] = []
        for bell in self.each:
            self.bells.add(bell)

    async def settle(self) -> None:
        """A few turns."""
        for _ in range(5):
            await asyncio.sleep(0)

    def start(self, then: Callable[[int], Awaitable[None]] | None = None) -> list[asyncio.Task[None]]:
        """Each in a task with a context of its own. ``then`` is awaited after each ring, with the number."""

        async def wait(place: int, bell: Bell) -> None:
            number.set(place)
            while True:
                await bell
                self.heard.append(number.get())
                if then is not None:
                    await then(place)

        return [asyncio.create_task(wait(place, bell)) for place, bell in enumerate(self.each)]


async def ended(waiting: list[asyncio.Task[None]]) -> None:
    """Stop them all; a cancellation must reach each."""
    for task in waiting:
        task.cancel()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)


def test_a_ring_reaches_all_who_wait_once_and_in_order(play: _Play) -> None:
    """Each goes on in its own context; who waits again hears the next ring; two rings in one turn are one."""

    async def scene() -> None:
        crowd = Waiters(4)
        waiting = crowd.start()
        await crowd.settle()
        assert crowd.heard == []
        crowd.bells.ring()
        crowd.bells.ring()
        assert crowd.heard == []  # never inside of who rings
        await crowd.settle()
        assert crowd.heard == [0, 1, 2, 3]
        crowd.bells.remove(crowd.each[2])
        crowd.bells.ring()
        await crowd.settle()
        assert crowd.heard == [0, 1, 2, 3, 0, 1, 3]
        crowd.each[2].ring()
        await crowd.settle()
        assert crowd.heard[-1] == 2
        await ended(waiting)

    play(scene)


def test_a_ring_that_nobody_waits_for_is_not_kept(play: _Play) -> None:
    """Whoever comes later looks for himself whether there is something."""

    async def scene() -> None:
        crowd = Waiters(2)
        crowd.bells.ring()
        crowd.each[0].ring()
        await crowd.settle()
        waiting = crowd.start()
        await crowd.settle()
        assert crowd.heard == []
        await ended(waiting)

    play(scene)


def test_a_cancellation_ends_the_waiting_of_one_and_says_what_it_says(play: _Play) -> None:
    """The others wait on, and the same bell can be waited for again, by another task too."""

    async def scene() -> None:
        crowd = Waiters(3)
        waiting = crowd.start()
        await crowd.settle()
        waiting[1].cancel("enough")
        with pytest.raises(asyncio.CancelledError) as caught:
            await waiting[1]
        assert caught.value.args == ("enough",)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await crowd.each[1]
        assert crowd.each[1].callback is None
        crowd.bells.ring()
        await crowd.settle()
        assert crowd.heard == [0, 2]
        again = asyncio.ensure_future(_once(crowd.each[1]))
        await crowd.settle()
        crowd.bells.ring()
        assert await again == "rung"
        await ended([waiting[0], waiting[2]])

    play(scene)


async def _once(bell: Bell) -> str:
    await bell
    return "rung"


@pytest.mark.parametrize("first", ["ring", "own ring", "cancel"])
def test_a_ring_and_a_cancellation_in_one_turn_are_a_cancellation(play: _Play, first: str) -> None:
    """As for a future. Nothing that is kept with the bell is left for whoever waits next."""

    async def scene() -> None:
        crowd = Waiters(3)
        waiting = crowd.start()
        await crowd.settle()
        if first == "ring":
            crowd.bells.ring()
        elif first == "own ring":
            crowd.each[1].ring()
        waiting[1].cancel()
        waiting[1].cancel()
        if first != "ring":
            crowd.bells.ring()
        await crowd.settle()
        assert waiting[1].cancelled()
        assert crowd.heard == [0, 2]
        again = asyncio.ensure_future(_once(crowd.each[1]))
        await crowd.settle()
        crowd.bells.ring()
        assert await again == "rung"
        await ended([waiting[0], waiting[2]])

    play(scene)


def test_a_task_that_goes_on_may_cancel_or_ring_one_that_has_not_yet(play: _Play) -> None:
    """A reader that gets an event closes another one: that hears it once, and those behind it hear the ring."""

    async def scene() -> None:
        crowd = Waiters(5)

        async def then(place: int) -> None:
            if place == 0:
                waiting[1].cancel()
                crowd.bells.remove(crowd.each[2])
                crowd.each[2].ring()

        waiting = crowd.start(then)
        await crowd.settle()
        crowd.bells.ring()
        await crowd.settle()
        assert waiting[1].cancelled()
        assert sorted(crowd.heard) == [0, 2, 3, 4]
        await ended([task for task in waiting if not task.done()])

    play(scene)


def test_a_task_that_rings_as_it_goes_on_is_heard_by_those_that_wait_again(play: _Play) -> None:
    """News that one reader causes while the others are being told of earlier ones."""

    async def scene() -> None:
        crowd = Waiters(3)

        async def then(place: int) -> None:
            if place == 1 and len(crowd.heard) < 4:
                crowd.bells.ring()

        waiting = crowd.start(then)
        await crowd.settle()
        crowd.bells.ring()
        await crowd.settle()
        assert crowd.heard == [0, 1, 2, 0, 1, 2]
        await ended(waiting)

    play(scene)


def test_a_task_that_was_cancelled_hears_it_itself(play: _Play) -> None:
    """Until it has gone on the bell is its own: a second task, which comes before that, is refused."""

    async def scene() -> None:
        crowd, heard = Waiters(1), list[str]()
        (bell,) = crowd.each
        late: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def first() -> None:
            await bell
            heard.append("the first went on")

        async def second() -> None:
            await late
            try:
                await bell
            except RuntimeError:
                heard.append("the second was refused")

        tasks_ = [asyncio.create_task(first()), asyncio.create_task(second())]
        await crowd.settle()
        late.set_result(None)  # the second one is in the queue,
        crowd.bells.ring()  # and behind it the ring,
        tasks_[0].cancel()  # and behind that the cancellation of the first one
        outcomes = await asyncio.gather(*tasks_, return_exceptions=True)
        assert isinstance(outcomes[0], asyncio.CancelledError)
        assert (outcomes[1], heard) == (None, ["the second was refused"])

    play(scene)


def test_who_waits_at_a_spare_bell_hears_that_the_reader_has_left(play: _Play) -> None:
    """There may be nothing else that would ever wake it."""

    async def scene() -> None:
        crowd = Waiters(1)
        waiting = asyncio.ensure_future(_once(crowd.bells.spare()))
        await crowd.settle()
        crowd.bells.remove(crowd.each[0])
        await asyncio.wait_for(waiting, 5)

    play(scene)


def test_a_second_task_is_refused_and_the_first_waits_on(play: _Play) -> None:
    """It would take the place of the first, which nothing would ever wake."""

    async def scene() -> None:
        crowd = Waiters(1)
        waiting = crowd.start()
        await crowd.settle()
        with pytest.raises(RuntimeError, match="another task"):
            await crowd.each[0]
        for _ in range(10):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await crowd.bells.spare()
        second = asyncio.ensure_future(_once(crowd.bells.spare()))
        await crowd.settle()
        assert len(crowd.bells._spare) == 1  # those that were cancelled have left nothing
        crowd.bells.ring()
        await crowd.settle()
        assert crowd.heard == [0]
        assert await second == "rung"
        await ended(waiting)

    play(scene)


def test_a_task_that_ends_the_program_keeps_the_ring_from_nobody() -> None:
    """Whoever runs the loop on after that finds that the others have gone on too."""
    loop = asyncio.new_event_loop()
    crowd: list[Waiters] = []

    async def begin() -> list[asyncio.Task[None]]:
        crowd.append(Waiters(4))

        async def then(place: int) -> None:
            if place == 1:
                raise SystemExit(3)

        waiting = crowd[0].start(then)
        await crowd[0].settle()
        return waiting

    async def ring() -> None:
        crowd[0].bells.ring()
        await crowd[0].settle()

    try:
        waiting = loop.run_until_complete(begin())
        with pytest.raises(SystemExit):
            loop.run_until_complete(ring())
        loop.run_until_complete(crowd[0].settle())
        assert set(crowd[0].heard) == {0, 1, 2, 3}
        with pytest.raises(SystemExit):
            waiting[1].result()
        loop.run_until_complete(ended([waiting[0], *waiting[2:]]))
    finally:
        loop.close()
