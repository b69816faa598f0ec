"""Tasks: held, logged, ended."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from natsjobs.tasks import Tasks


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
