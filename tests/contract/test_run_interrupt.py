"""The interrupt of a run: once, at any await, never mistaken for somebody else's, and nothing of it is left behind."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import natsjobs
import pytest
from gates import gated
from natsjobs.errors import JobClosedError, UnavailableError
from natsjobs.models import EndReason, JobStatus
from waiting import eventually, soon

Body = Callable[[Any], Awaitable[object]]


class Played:
    """A block in a task of its own, with ``body`` inside; how it was left, and what it left behind."""

    def __init__(self, jobs: Any, body: Body, stream_id: str = "c", *, around: Any = None) -> None:
        self.run: Any = None
        self.inside = asyncio.Event()
        self.result: BaseException | None = None
        self.count = 0
        self.task = asyncio.ensure_future(self._play(jobs, body, stream_id, around))

    async def _play(self, jobs: Any, body: Body, stream_id: str, around: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if around is not None:
                async with around:
                    await self._block(jobs, body, stream_id)
            else:
                await self._block(jobs, body, stream_id)
        except BaseException as exc:
            self.result = exc
        self.count = task.cancelling()

    async def _block(self, jobs: Any, body: Body, stream_id: str) -> None:
        async with jobs.start(stream_id, user_id="u") as self.run:
            self.inside.set()
            await body(self.run)

    async def entered(self) -> Played:
        """Wait until the body runs."""
        await soon(self.inside.wait())
        return self

    async def left(self, *, requests: int = 0) -> BaseException | None:
        """Wait until the block was left; what it raised. ``requests``: cancellations by others that count on."""
        await soon(self.task)
        assert self.count == requests
        return self.result


async def forever(run: Any = None) -> None:
    """Wait until interrupted."""
    await asyncio.Event().wait()


# -- where it hits ------------------------------------------------------------------------------------------------


async def test_the_interrupt_comes_once(jobs: Any, jobs_b: Any) -> None:
    """Clean-up after it runs to its end, however often it awaits."""
    steps: list[str] = []

    async def body(run: Any) -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            assert run.aborted
            steps.append("interrupted")
            raise
        finally:
            for _ in range(20):
                await asyncio.sleep(0.005)
            await run.record_usage({"input_tokens": 1})
            steps.append("cleaned up")

    played = await Played(jobs, body).entered()
    await jobs_b.abort("c")
    assert await played.left() is None
    assert steps == ["interrupted", "cleaned up"]


async def test_the_interrupt_hits_a_finally_too(jobs: Any, jobs_b: Any) -> None:
    """A body that has done its work and hangs in its clean-up can still be stopped."""
    cleaning = asyncio.Event()

    async def body(run: Any) -> None:
        try:
            pass
        finally:
            cleaning.set()
            await forever()

    played = Played(jobs, body)
    await soon(cleaning.wait())
    await jobs_b.abort("c")
    assert await played.left() is None
    assert played.run.aborted


async def test_what_is_shielded_finishes(jobs: Any, jobs_b: Any) -> None:
    """asyncio.shield keeps a save alive that the interrupt meets."""
    saving, go, saved = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def save() -> None:
        saving.set()
        await go.wait()
        saved.set()

    saves: list[asyncio.Future[None]] = []

    async def body(run: Any) -> None:
        try:
            pass
        finally:
            saves.append(asyncio.ensure_future(save()))
            await asyncio.shield(saves[0])

    played = Played(jobs, body)
    await soon(saving.wait())
    await jobs_b.abort("c")
    assert await played.left() is None
    go.set()
    await soon(saves[0])
    assert saved.is_set()


async def test_an_abort_by_the_body_itself_comes_after_the_call(jobs: Any) -> None:
    """It gets the result, and is interrupted at its next await."""
    results: list[Any] = []

    async def body(run: Any) -> None:
        await run.record_usage({"input_tokens": 7})
        results.append(await jobs.abort("c", final_event="mine"))
        results.append("before the next await")
        await forever()

    assert await (await Played(jobs, body).entered()).left() is None
    assert results[0].success
    assert [entry.input_tokens for entry in results[0].collected_usage] == [7]
    assert results[1:] == ["before the next await"]


async def test_an_interrupt_after_the_last_await_does_not_leak(jobs: Any) -> None:
    """It was asked for and not raised when the body ended: it is gone behind the block."""

    async def block() -> Any:
        async with jobs.start("c", user_id="u") as run:
            await jobs.abort("c")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        return run

    assert (await soon(asyncio.ensure_future(block()))).aborted


async def test_an_interrupt_after_the_last_await_does_not_hide_an_exception(jobs: Any) -> None:
    """The body's own exception goes on."""

    async def body(run: Any) -> None:
        await jobs.abort("c")
        raise ValueError("mine")

    played = Played(jobs, body)
    assert isinstance(await played.left(), ValueError)
    assert played.run.aborted


async def test_a_body_that_swallows_it_meets_the_end_at_its_next_call(jobs: Any, jobs_b: Any) -> None:
    """The call raises JobClosedError, which the block swallows like the interrupt."""
    met: list[JobClosedError] = []

    async def body(run: Any) -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            pass
        try:
            await run.emit("too late")
        except JobClosedError as exc:
            met.append(exc)
            raise

    played = await Played(jobs, body).entered()
    await jobs_b.abort("c")
    assert await played.left() is None
    assert (met[0].status, met[0].end_reason) == (JobStatus.ABORTED, EndReason.ABORT)


async def test_a_body_that_swallows_it_and_returns_is_still_told(jobs: Any, jobs_b: Any) -> None:
    """A replaced run cannot leave as if it had completed."""

    async def body(run: Any) -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            pass

    played = await Played(jobs, body).entered()
    async with jobs_b.start("c", user_id="u"):
        left = await played.left()
    assert isinstance(left, JobClosedError)
    assert left.end_reason is EndReason.REPLACED


async def test_another_exception_in_the_cleanup_goes_on(jobs: Any, jobs_b: Any) -> None:
    """Only the interrupt is swallowed; the job is aborted all the same."""

    async def body(run: Any) -> None:
        try:
            await forever()
        finally:
            raise ValueError("clean-up failed")

    played = await Played(jobs, body).entered()
    await jobs_b.abort("c")
    assert isinstance(await played.left(), ValueError)
    assert played.run.status is JobStatus.ABORTED


# -- groups and child tasks ---------------------------------------------------------------------------------------


async def test_child_tasks_that_emit_get_the_end(jobs: Any, jobs_b: Any) -> None:
    """They are not interrupted; their next call raises."""
    inside = asyncio.Event()
    ended: list[BaseException] = []

    async def child(run: Any) -> None:
        try:
            while True:
                await run.emit("tick")
                inside.set()
                await asyncio.sleep(0.005)
        except JobClosedError as exc:
            ended.append(exc)

    children: list[asyncio.Future[None]] = []

    async def body(run: Any) -> None:
        children.append(asyncio.ensure_future(child(run)))
        await forever()

    played = Played(jobs, body)
    await soon(inside.wait())
    await jobs_b.abort("c")
    assert await played.left() is None
    await soon(children[0])
    assert isinstance(ended[0], JobClosedError)


@pytest.mark.parametrize("mixed", [False, True])
async def test_a_group_of_nothing_but_the_end_is_swallowed(jobs: Any, jobs_b: Any, *, mixed: bool) -> None:
    """A TaskGroup whose tasks fail with this run's end is like the end itself; with anything else it goes on."""

    async def child(run: Any) -> None:
        try:
            await forever()
        finally:
            await run.emit("last words")

    async def failing(run: Any) -> None:
        try:
            await forever()
        finally:
            raise ValueError("mine")

    async def body(run: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child(run))
            group.create_task(failing(run) if mixed else child(run))
            await forever()

    played = await Played(jobs, body).entered()
    await asyncio.sleep(0)
    await jobs_b.abort("c")
    left = await played.left()
    if mixed:
        assert isinstance(left, ExceptionGroup)
        assert {type(exc) for exc in left.exceptions} == {JobClosedError, ValueError}
    else:
        assert left is None
    assert played.run.aborted


async def test_a_group_in_a_replaced_run_becomes_the_end(jobs: Any, jobs_b: Any) -> None:
    """Outside the block there is one JobClosedError, not a group of them."""

    async def child(run: Any) -> None:
        try:
            await forever()
        finally:
            await run.emit("last words")

    async def body(run: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child(run))
            await forever()

    played = await Played(jobs, body).entered()
    await asyncio.sleep(0)
    async with jobs_b.start("c", user_id="u"):
        assert isinstance(await played.left(), JobClosedError)


# -- somebody else wants the task to stop, too --------------------------------------------------------------------


async def test_a_cancellation_at_the_same_tick_goes_on(jobs: Any, jobs_b: Any, transport: Any) -> None:
    """The abort ends the job, the cancellation ends the task."""
    played = await Played(jobs, forever).entered()
    await transport.on_abort("c", played.task.cancel, generation=played.run.generation)
    await jobs_b.abort("c")
    assert isinstance(await played.left(requests=1), asyncio.CancelledError)
    assert (await jobs.get("c")).status is JobStatus.ABORTED


async def test_a_cancellation_before_the_abort_goes_on(jobs: Any, jobs_b: Any) -> None:
    """The body is in its clean-up after a cancellation when somebody aborts: it stays cancelled."""
    cleaning = asyncio.Event()

    async def body(run: Any) -> None:
        try:
            await forever()
        finally:
            cleaning.set()
            await forever()

    played = await Played(jobs, body).entered()
    played.task.cancel()
    await soon(cleaning.wait())
    await jobs_b.abort("c")
    assert isinstance(await played.left(requests=1), asyncio.CancelledError)
    assert played.run.aborted


async def test_a_group_does_not_hide_a_cancellation(jobs: Any, jobs_b: Any, transport: Any) -> None:
    """A TaskGroup drops the cancellation for its tasks' errors; when those are ours, it still goes on."""

    async def child(run: Any) -> None:
        try:
            await forever()
        finally:
            await run.emit("last words")

    async def body(run: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child(run))
            await forever()

    played = await Played(jobs, body).entered()
    await asyncio.sleep(0)
    await transport.on_abort("c", played.task.cancel, generation=played.run.generation)
    await jobs_b.abort("c")
    assert isinstance(await played.left(requests=1), asyncio.CancelledError)


async def test_a_timeout_at_the_same_tick_is_a_timeout(jobs: Any, jobs_b: Any, transport: Any) -> None:
    """asyncio.timeout around the block fired: its TimeoutError is raised although the run was aborted."""
    limit = asyncio.timeout(None)
    played = await Played(jobs, forever, around=limit).entered()
    await transport.on_abort("c", lambda: limit.reschedule(0), generation=played.run.generation)
    await jobs_b.abort("c")
    assert isinstance(await played.left(), TimeoutError)
    assert limit.expired()
    assert played.run.aborted


async def test_a_timeout_that_did_not_fire_stays_out_of_it(jobs: Any, jobs_b: Any) -> None:
    """An aborted run inside a timeout with time left is left quietly, and the timeout goes on."""
    limit = asyncio.timeout(60)
    played = await Played(jobs, forever, around=limit).entered()
    await jobs_b.abort("c")
    assert await played.left() is None
    assert not limit.expired()


async def test_a_timeout_in_the_body_does_not_take_the_interrupt(jobs: Any, jobs_b: Any) -> None:
    """asyncio.timeout inside the block gives no TimeoutError for an abort."""

    async def body(run: Any) -> None:
        async with asyncio.timeout(60):
            await forever()

    played = await Played(jobs, body).entered()
    await jobs_b.abort("c")
    assert await played.left() is None


async def test_timeouts_work_in_the_cleanup_after_an_interrupt(jobs: Any, jobs_b: Any) -> None:
    """The request that was counted for the interrupt does not confuse them."""
    timed_out: list[bool] = []

    async def body(run: Any) -> None:
        try:
            await forever()
        finally:
            try:
                async with asyncio.timeout(0.01):
                    await forever()
            except TimeoutError:
                timed_out.append(True)

    played = await Played(jobs, body).entered()
    await jobs_b.abort("c")
    assert await played.left() is None
    assert timed_out == [True]


# -- nested blocks ------------------------------------------------------------------------------------------------


async def test_an_abort_of_the_outer_run_leaves_both_blocks(jobs: Any, jobs_b: Any) -> None:
    """The inner run is cancelled from outside; the outer block swallows its own interrupt."""
    inner: list[Any] = []

    async def body(run: Any) -> None:
        async with jobs.start("inner", user_id="u") as second:
            inner.append(second)
            await forever()

    played = Played(jobs, body, "outer")
    await eventually(lambda: inner)
    await jobs_b.abort("outer")
    assert await played.left() is None
    assert played.run.aborted
    assert not inner[0].aborted
    assert (await jobs.get("inner")).end_reason is EndReason.CANCELLED


async def test_an_abort_of_the_inner_run_leaves_the_outer_alone(jobs: Any, jobs_b: Any) -> None:
    """The outer body goes on behind the inner block."""
    inside = asyncio.Event()

    async def body(run: Any) -> None:
        async with jobs.start("inner", user_id="u") as second:
            inside.set()
            await forever()
        assert second.aborted
        await run.emit("going on")

    played = Played(jobs, body, "outer")
    await soon(inside.wait())
    await jobs_b.abort("inner")
    assert await played.left() is None
    assert played.run.status is JobStatus.COMPLETE


async def test_aborts_of_both_runs_at_the_same_tick_leave_both_blocks(
    jobs: Any, jobs_b: Any, transport: Any, transport_b: Any
) -> None:
    """Each block takes back its own request."""
    inner: list[Any] = []

    async def body(run: Any) -> None:
        async with jobs.start("inner", user_id="u") as second:
            inner.append(second)
            await forever()

    played = Played(jobs, body, "outer")
    await eventually(lambda: inner)
    await asyncio.gather(jobs_b.abort("outer"), jobs_b.abort("inner"))
    assert await played.left() is None
    assert played.run.aborted
    assert (await jobs.get("inner")).status.is_terminal


async def test_a_nested_start_of_the_same_id_replaces_the_outer_run(jobs: Any) -> None:
    """The inner run does its work undisturbed; then the outer body is interrupted and told."""
    reached: list[str] = []

    async def body(run: Any) -> None:
        async with jobs.start("c", user_id="u") as second:
            await asyncio.sleep(0.05)
            await second.emit("second")
            reached.append("inner")
        assert second.status is JobStatus.COMPLETE
        await forever()

    played = Played(jobs, body)
    left = await played.left()
    assert isinstance(left, JobClosedError)
    assert (left.generation, left.end_reason) == (played.run.generation, EndReason.REPLACED)
    assert reached == ["inner"]
    assert (await jobs.get("c")).status is JobStatus.COMPLETE


# -- entering -----------------------------------------------------------------------------------------------------


async def test_a_start_that_is_cancelled_leaves_no_running_job(replica: Any) -> None:
    """Cancelled while the job is being created: when it exists it ends at once."""
    async with gated(replica, "create_job") as (jobs, gate):
        played = Played(jobs, forever)
        await soon(gate.reached.wait())
        played.task.cancel()
        await asyncio.sleep(0)
        gate.open.set()
        assert isinstance(await played.left(requests=1), asyncio.CancelledError)
        assert not played.inside.is_set()
        job = await jobs.get("c")
    assert (job.status, job.end_reason) == (JobStatus.ERROR, EndReason.CANCELLED)


@pytest.mark.parametrize("method", ["on_abort", "on_end"])
async def test_a_start_that_fails_in_the_middle_leaves_no_running_job(replica: Any, method: str) -> None:
    """The job exists, but the run cannot listen for its end."""
    async with gated(replica, method, part="transport") as (jobs, gate):
        gate.fail(UnavailableError("NATS is away"))
        with pytest.raises(UnavailableError):
            async with jobs.start("c", user_id="u"):
                pytest.fail("entered")
        assert (await jobs.get("c")).status is JobStatus.ERROR
        assert await jobs.active("u") == []


async def test_an_abort_while_the_run_is_being_started_is_not_lost(replica: Any, jobs_b: Any) -> None:
    """It ended between being created and being entered: the body is interrupted at its first await."""
    async with gated(replica, "on_abort", part="transport") as (jobs, gate):
        reached: list[str] = []

        async def body(run: Any) -> None:
            reached.append("entered")
            await forever()

        played = Played(jobs, body)
        await soon(gate.reached.wait())
        assert (await jobs_b.abort("c")).success
        gate.open.set()
        assert await played.left() is None
    assert played.run.aborted
    assert reached == ["entered"]


# -- leaving ------------------------------------------------------------------------------------------------------


async def test_a_cancellation_while_the_end_is_stored_goes_on_and_the_end_is_stored(replica: Any) -> None:
    """Also when it comes several times."""
    async with gated(replica, "end_job") as (jobs, gate):

        async def body(run: Any) -> None:
            pass

        played = Played(jobs, body)
        await soon(gate.reached.wait())
        for _ in range(3):
            played.task.cancel()
            await asyncio.sleep(0)
        gate.open.set()
        assert isinstance(await played.left(requests=3), asyncio.CancelledError)
        assert (await jobs.get("c")).status is JobStatus.COMPLETE


async def test_a_cancellation_does_not_wait_for_ever_for_the_end(backend: Any) -> None:
    """NATS is away: the task is released after a bounded time, the end is stored when it can be."""
    replica = await backend.replica(backend.config(timing={"request": 0.1}))
    async with gated(replica, "end_job") as (jobs, gate):
        played = await Played(jobs, forever).entered()
        played.task.cancel()
        assert isinstance(await played.left(requests=1), asyncio.CancelledError)
        assert (await jobs.get("c")).status is JobStatus.RUNNING
        gate.open.set()
        await soon(gate.passed.wait())
        assert (await jobs.get("c")).end_reason is EndReason.CANCELLED


async def test_leaving_in_another_task_is_refused_and_ends_the_job(jobs: Any) -> None:
    """The error says why and what to do instead."""
    block = jobs.start("c", user_id="u")
    run = await asyncio.ensure_future(_enter(block))
    with pytest.raises(RuntimeError, match="another task"):
        await block.__aexit__(None, None, None)
    assert run.status is JobStatus.COMPLETE
    assert (await jobs.get("c")).status is JobStatus.COMPLETE


async def _enter(block: Any) -> Any:
    return await block.__aenter__()


async def test_closing_a_generator_around_a_run_ends_the_job(jobs: Any) -> None:
    """GeneratorExit counts as cancelled, and aclose is quiet."""

    async def produce() -> AsyncIterator[int]:
        async with jobs.start("c", user_id="u") as run:
            for n in range(10):
                await run.emit(n)
                yield n

    numbers = produce()
    assert await anext(numbers) == 0
    await numbers.aclose()
    assert (await jobs.get("c")).end_reason is EndReason.CANCELLED


def test_ctrl_c_ends_the_job_and_goes_on() -> None:
    """KeyboardInterrupt comes out of asyncio.run, as it does without a run."""
    seen: list[Any] = []

    async def main() -> None:
        store = natsjobs.MemoryJobStore(natsjobs.Config())
        transport = natsjobs.MemoryEventTransport(store)
        try:
            async with natsjobs.JobManager(store, transport, config=natsjobs.Config()) as jobs:
                try:
                    async with jobs.start("c", user_id="u") as run:
                        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
                        await forever()
                finally:
                    seen.append((run.status, await jobs.get("c")))
        finally:
            await transport.destroy()
            await store.destroy()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    status, job = seen[0]
    assert status is JobStatus.ERROR
    assert job.end_reason is EndReason.CANCELLED


def test_the_end_of_the_loop_ends_the_job() -> None:
    """A run in a task that asyncio.run cancels at its end is stored as cancelled."""
    seen: list[Any] = []

    async def main() -> None:
        store = natsjobs.MemoryJobStore(natsjobs.Config())
        transport = natsjobs.MemoryEventTransport(store)
        inside = asyncio.Event()

        async def serve() -> None:
            async with natsjobs.JobManager(store, transport, config=natsjobs.Config()) as jobs:
                try:
                    async with jobs.start("c", user_id="u"):
                        inside.set()
                        await forever()
                finally:
                    seen.append(await jobs.get("c"))
            await transport.destroy()
            await store.destroy()

        seen.append(asyncio.ensure_future(serve()))
        await inside.wait()

    asyncio.run(main())
    assert seen[0].done()
    assert seen[1].end_reason in {EndReason.CANCELLED, EndReason.SHUTDOWN}
