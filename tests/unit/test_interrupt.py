"""Interrupt: one request, taken back without a trace, at every moment and beside every other request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from natsjobs.manager.interrupt import Interrupt, outlast


def here() -> asyncio.Task[Any]:
    """The calling task."""
    task = asyncio.current_task()
    assert task is not None
    return task


async def in_task(body: Callable[[Interrupt], Awaitable[None]], *, before: int = 0) -> None:
    """Run ``body`` with an armed interrupt in a task that was cancelled ``before`` times and swallowed it."""

    async def run() -> None:
        for _ in range(before):
            here().cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(0)
        interrupt = Interrupt("test")
        interrupt.arm(here())
        await body(interrupt)
        assert here().cancelling() == before
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    await asyncio.wait_for(asyncio.ensure_future(run()), 5)


@pytest.mark.parametrize("before", [0, 1, 2])
async def test_an_interrupt_from_another_task_hits_the_await(before: int) -> None:
    """Once, and taken back."""

    async def body(interrupt: Interrupt) -> None:
        asyncio.get_running_loop().call_soon(interrupt.fire)
        asyncio.get_running_loop().call_soon(interrupt.fire)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()
        assert interrupt.fired
        assert not interrupt.by_others
        await asyncio.sleep(0)
        assert await interrupt.release() is None

    await in_task(body, before=before)


@pytest.mark.parametrize("before", [0, 1, 2])
async def test_an_interrupt_in_the_tasks_own_step_is_absorbed(before: int) -> None:
    """It was never raised: behind release it is gone, also when other requests are counted."""

    async def body(interrupt: Interrupt) -> None:
        interrupt.fire()
        assert await interrupt.release() is None

    await in_task(body, before=before)


async def test_a_request_of_somebody_else_comes_out_of_release() -> None:
    """Both were pending: there is one CancelledError for both, and it is the other's."""

    async def body(interrupt: Interrupt) -> None:
        interrupt.fire()
        here().cancel("other")
        caught = await interrupt.release()
        assert isinstance(caught, asyncio.CancelledError)
        assert interrupt.by_others
        here().uncancel()

    await in_task(body)


async def test_a_group_that_fails_at_the_same_time_leaves_nothing() -> None:
    """A TaskGroup (Python 3.13) repeats the request it saw; that is absorbed, too."""

    async def body(interrupt: Interrupt) -> None:
        async def child() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise ValueError("child")

        async def group_of_one() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(child())
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                asyncio.get_running_loop().call_soon(interrupt.fire)
                await asyncio.Event().wait()

        with pytest.raises(ExceptionGroup):
            await group_of_one()
        assert await interrupt.release() is None

    await in_task(body)


async def test_after_release_nothing_fires() -> None:
    """An abort during the exit of a block is too late."""

    async def body(interrupt: Interrupt) -> None:
        assert await interrupt.release() is None
        interrupt.fire()
        assert not interrupt.fired

    await in_task(body)


async def test_an_interrupt_that_is_due_before_it_is_armed_comes_then() -> None:
    """The end may be there before the block is entered."""

    async def run() -> None:
        interrupt = Interrupt("test")
        interrupt.fire()
        assert not interrupt.fired
        interrupt.arm(here())
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
        await interrupt.release()
        assert here().cancelling() == 0

    await asyncio.ensure_future(run())


async def test_a_held_interrupt_comes_after_the_hold() -> None:
    """Holds nest."""

    async def body(interrupt: Interrupt) -> None:
        with interrupt.held():
            with interrupt.held():
                interrupt.fire()
            await asyncio.sleep(0)
            assert not interrupt.fired
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
        assert await interrupt.release() is None

    await in_task(body)


async def test_outlast_waits_through_cancellations() -> None:
    """The work is done when it returns, and the cancellation is handed back."""
    go = asyncio.Event()
    work = asyncio.ensure_future(go.wait())

    async def wait() -> Any:
        return await outlast(work, patience=20)

    waiting = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    for _ in range(3):
        waiting.cancel()
        await asyncio.sleep(0)
    assert not waiting.done()
    go.set()
    assert isinstance(await waiting, asyncio.CancelledError)
    assert work.done()


async def test_outlast_is_patient_only_so_long() -> None:
    """From the cancellation on; the work goes on."""
    work = asyncio.ensure_future(asyncio.Event().wait())
    assert await outlast(work, patience=0.01, cancelled=True) is None
    assert not work.done()
    work.cancel()
    assert await outlast(work, patience=0.01) is None
