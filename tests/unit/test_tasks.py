"""Tasks: held, logged, ended."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from natsjobs.engine.patience import Seldom
from natsjobs.tasks import Latch, Tasks, together


async def forever() -> None:
    """Wait until cancelled."""
    await asyncio.Event().wait()


async def test_a_task_nobody_else_holds_goes_on() -> None:
    """The loop itself holds tasks only weakly."""
    tasks, done = Tasks(), asyncio.Event()

    async def work() -> None:
        inner = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.02, inner.set_result, None)
        await inner
        done.set()

    tasks.spawn(work(), "work")
    gc.collect()
    assert len(tasks) == 1
    await asyncio.wait_for(done.wait(), 5)
    await asyncio.sleep(0)
    assert len(tasks) == 0


async def test_a_failure_is_logged_and_touches_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Neither siblings nor the task that started it."""
    tasks = Tasks()

    async def work() -> None:
        raise ValueError("too hot")

    sibling = tasks.spawn(forever(), "sibling")
    await asyncio.wait({tasks.spawn(work(), "the work")})
    await asyncio.sleep(0)
    assert "the work" in caplog.text
    assert "too hot" in caplog.text
    assert caplog.records[0].levelno == logging.ERROR
    assert not sibling.done()
    await tasks.close()


async def test_close_cancels_and_waits_for_the_cleanup(caplog: pytest.LogCaptureFixture) -> None:
    """Twice is fine, at the same time too, and being cancelled is no failure."""
    tasks, cleaned = Tasks(), asyncio.Event()

    async def work() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    task = tasks.spawn(work(), "work")
    await asyncio.sleep(0)
    await asyncio.gather(tasks.close(), tasks.close())
    assert cleaned.is_set()
    assert task.cancelled()
    assert tasks.closed
    await tasks.close()
    assert not caplog.records


async def test_a_task_may_close_its_own_set() -> None:
    """It ends the others and goes on itself."""
    tasks = Tasks()
    other = tasks.spawn(forever(), "other")

    async def closer() -> str:
        await tasks.close()
        return "went on"

    assert await tasks.spawn(closer(), "closer") == "went on"
    assert other.cancelled()


async def test_nothing_is_started_after_close() -> None:
    """The coroutine is closed, so it does not complain that nobody awaited it."""
    tasks = Tasks()
    await tasks.close()
    with pytest.raises(RuntimeError, match="late"):
        tasks.spawn(forever(), "late")


async def test_what_is_awaited_together_comes_in_the_order_of_the_call() -> None:
    """Whatever is done first."""

    async def after(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    assert await together(after(0.02), after(0), after(0.01)) == (0.02, 0, 0.01)


@pytest.mark.parametrize("cancel", [False, True])
async def test_nothing_goes_on_behind_a_failure_or_a_cancellation(cancel: bool) -> None:
    """The error is raised plainly, and by then the others have ended, also those that take their time."""
    left: list[str] = []
    begun = asyncio.Event()

    async def slow() -> None:
        begun.set()
        try:
            await forever()
        finally:
            await asyncio.sleep(0.02)
            left.append("slow")

    async def fails() -> None:
        await begun.wait()
        if not cancel:
            raise ValueError("no")
        await forever()

    both = asyncio.ensure_future(together(slow(), fails()))
    if cancel:
        await begun.wait()
        both.cancel()
    with pytest.raises(asyncio.CancelledError if cancel else ValueError):
        await both
    assert left == ["slow"]


async def test_a_latch_wakes_all_who_wait_and_a_cancelled_one_harms_no_other() -> None:
    """Also who comes later does not wait."""
    latch = Latch()
    first, second = asyncio.ensure_future(latch.wait()), asyncio.ensure_future(latch.wait())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not latch.happened
    latch.set()
    latch.set()
    await asyncio.wait_for(second, 5)
    await asyncio.wait_for(latch.wait(), 5)


def test_what_would_be_said_at_every_try_is_said_once_and_then_now_and_then() -> None:
    """Of each thing by itself, and nothing is kept of what was said long ago."""
    seldom = Seldom(every=3600)
    assert [seldom.may_say("a"), seldom.may_say("a"), seldom.may_say("b")] == [True, False, True]
    often = Seldom(every=0)
    assert all(often.may_say(number % 2) for number in range(10))
    assert len(often._said) <= 1
