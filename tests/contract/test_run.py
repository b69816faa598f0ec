"""How a start block ends: every row of the table."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from gates import gated
from playing import Hanging, end_of
from waiting import read_all, soon, values

from natsjobs.errors import JobClosedError, NotOpenError, UnavailableError
from natsjobs.models import EndReason, EventType, JobStatus

# -- the table ----------------------------------------------------------------------------------------------------


async def test_leaving_the_block_completes_the_job(jobs: Any, jobs_b: Any) -> None:
    """When the block is left the end is stored, and other replicas see it."""
    async with jobs.start("c", user_id="u") as run:
        assert run.status is JobStatus.RUNNING
        await run.emit({"n": 1})
    assert run.status is JobStatus.COMPLETE
    assert not run.aborted
    assert await end_of(jobs_b) == (JobStatus.COMPLETE, None, EventType.DONE, None)
    assert values(await read_all(jobs_b.subscribe, "c")) == [{"n": 1}]


async def test_complete_sets_the_final_event(jobs: Any, jobs_b: Any) -> None:
    """What complete was called with is the end, and it is stored when complete returns."""
    async with jobs.start("c", user_id="u") as run:
        await run.complete({"final": True})
        assert run.status is JobStatus.COMPLETE
        assert await end_of(jobs_b) == (JobStatus.COMPLETE, None, EventType.DONE, {"final": True})
    assert await end_of(jobs_b) == (JobStatus.COMPLETE, None, EventType.DONE, {"final": True})


async def test_leaving_the_block_early_completes_the_job(jobs: Any) -> None:
    """A return out of the block is no failure."""

    async def early() -> Any:
        async with jobs.start("c", user_id="u") as run:
            return run

    assert (await early()).status is JobStatus.COMPLETE
    assert (await jobs.get("c")).status is JobStatus.COMPLETE


@pytest.mark.parametrize(("raised", "text"), [(LookupError("too hot"), "too hot"), (LookupError(), "LookupError")])
async def test_an_exception_fails_the_job_and_goes_on(jobs: Any, raised: Exception, text: str) -> None:
    """Viewers get the exception's text, or its type when it has none; the caller gets the exception itself."""
    with pytest.raises(LookupError) as caught:
        async with jobs.start("c", user_id="u") as run:
            raise raised
    assert caught.value is raised
    assert run.status is JobStatus.ERROR
    assert await end_of(jobs) == (JobStatus.ERROR, None, EventType.ERROR, text)
    assert (await jobs.get("c")).error == text


async def test_a_text_that_has_no_utf8_form_still_ends_the_job(jobs: Any) -> None:
    """An undecodable file name in an exception does not leave the job running."""
    with pytest.raises(OSError, match="cannot open"):
        async with jobs.start("c", user_id="u"):
            raise OSError("cannot open \udcff")
    assert (await jobs.get("c")).error == "cannot open ?"


async def test_fail_hides_what_the_exception_says(jobs: Any) -> None:
    """After fail with a text the exception goes on and changes nothing."""

    async def answer() -> None:
        async with jobs.start("c", user_id="u") as run:
            await run.fail("something went wrong")
            raise RuntimeError("secret")

    with pytest.raises(RuntimeError, match="secret"):
        await answer()
    assert await end_of(jobs) == (JobStatus.ERROR, None, EventType.ERROR, "something went wrong")


async def test_fail_takes_an_exception(jobs: Any) -> None:
    """The text of an exception becomes the error."""
    async with jobs.start("c", user_id="u") as run:
        await run.fail(ValueError("too hot"))
    assert run.status is JobStatus.ERROR
    assert (await jobs.get("c")).error == "too hot"


@pytest.mark.parametrize("raised", [RuntimeError("later"), asyncio.CancelledError(), KeyboardInterrupt()])
async def test_after_complete_exceptions_go_on_and_change_nothing(jobs: Any, raised: BaseException) -> None:
    """A job that was completed stays complete, whatever the body does then."""

    async def answer() -> None:
        async with jobs.start("c", user_id="u") as run:
            await run.complete(1)
            raise raised

    with pytest.raises(type(raised)) as caught:
        await answer()
    assert caught.value is raised
    assert await end_of(jobs) == (JobStatus.COMPLETE, None, EventType.DONE, 1)


async def test_the_first_of_complete_and_fail_wins(jobs: Any) -> None:
    """The second call is refused and says how the run ended; that error goes on like any other."""

    async def answer() -> None:
        async with jobs.start("c", user_id="u") as run:
            await run.complete(1)
            await run.fail("no")

    with pytest.raises(JobClosedError) as caught:
        await answer()
    assert caught.value.status is JobStatus.COMPLETE
    assert caught.value.end_reason is None
    assert await end_of(jobs) == (JobStatus.COMPLETE, None, EventType.DONE, 1)


async def test_cancellation_from_outside_ends_the_job_and_goes_on(jobs: Any, jobs_b: Any) -> None:
    """When the cancelled task is done, the job has ended with CANCELLED."""
    hanging = await Hanging(jobs).entered()
    hanging.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging.task
    assert hanging.run.status is JobStatus.ERROR
    assert not hanging.run.aborted
    assert (await end_of(jobs_b))[:3] == (JobStatus.ERROR, EndReason.CANCELLED, EventType.ERROR)


async def test_a_timeout_around_the_block_is_a_timeout(jobs: Any) -> None:
    """asyncio.timeout gives its TimeoutError and the job ends with CANCELLED."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), jobs.start("c", user_id="u"):
            await asyncio.Event().wait()
    assert (await end_of(jobs))[:2] == (JobStatus.ERROR, EndReason.CANCELLED)


async def test_a_failing_sibling_cancels_the_run(jobs: Any) -> None:
    """In a TaskGroup whose other task fails, the job ends with CANCELLED and the group's error goes on."""
    inside = asyncio.Event()

    async def answer() -> None:
        async with jobs.start("c", user_id="u"):
            inside.set()
            await asyncio.Event().wait()

    async def sibling() -> None:
        await inside.wait()
        raise ValueError("sibling")

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(answer())
            group.create_task(sibling())

    with pytest.raises(ExceptionGroup) as caught:
        await both()
    assert [str(exc) for exc in caught.value.exceptions] == ["sibling"]
    assert (await end_of(jobs))[:2] == (JobStatus.ERROR, EndReason.CANCELLED)


async def test_any_other_base_exception_counts_as_cancelled(jobs: Any) -> None:
    """What is no Exception goes on, and its text is for nobody's eyes."""

    class Stop(BaseException):
        pass

    with pytest.raises(Stop):
        async with jobs.start("c", user_id="u"):
            raise Stop("secret")
    status, reason, _, data = await end_of(jobs)
    assert (status, reason) == (JobStatus.ERROR, EndReason.CANCELLED)
    assert "secret" not in data


async def test_an_abort_interrupts_the_body_and_the_block_is_left_quietly(jobs: Any, jobs_b: Any) -> None:
    """From another replica: the viewers get the final event, the code after the block runs."""
    hanging = await Hanging(jobs).entered()
    result = await jobs_b.abort("c", final_event={"stopped": True})
    assert result.success
    assert await hanging.gone() is None
    assert hanging.run.status is JobStatus.ABORTED
    assert hanging.run.aborted
    assert await end_of(jobs_b) == (JobStatus.ABORTED, EndReason.ABORT, EventType.ABORTED, {"stopped": True})


async def test_an_abort_on_the_same_replica_is_the_same(jobs: Any) -> None:
    """The owner's own process may abort, too, and what was emitted before is kept."""
    hanging = await Hanging(jobs).entered()
    await hanging.run.emit("before")
    assert (await jobs.abort("c")).success
    assert await hanging.gone() is None
    assert values(await read_all(jobs.subscribe, "c")) == ["before"]


async def test_a_mere_signal_aborts_the_run(jobs: Any, transport_b: Any) -> None:
    """Who only signals writes no end: the run does, after it gave the other the time to."""
    hanging = await Hanging(jobs).entered()
    await transport_b.emit_abort("c")
    assert await hanging.gone() is None
    assert hanging.run.aborted
    assert await end_of(jobs) == (JobStatus.ABORTED, EndReason.ABORT, EventType.ABORTED, None)


async def test_an_abort_through_the_store_is_an_abort(jobs: Any, store_b: Any) -> None:
    """The status aborted with a final event, set by whoever signalled before, leaves the block quietly."""
    hanging = await Hanging(jobs).entered()
    assert await store_b.update_job("c", status="aborted", final_event='{"by": "store"}')
    assert await hanging.gone() is None
    assert hanging.run.aborted
    assert (await end_of(jobs))[3] == {"by": "store"}


@pytest.mark.b_writes
async def test_a_replaced_run_is_interrupted_and_told(jobs: Any, jobs_b: Any) -> None:
    """The next turn on another replica ends this one; its block raises JobClosedError."""
    hanging = await Hanging(jobs).entered()
    async with jobs_b.start("c", user_id="u") as second:
        left = await hanging.gone()
        await second.emit("second")
    assert isinstance(left, JobClosedError)
    assert (left.status, left.end_reason) == (JobStatus.ABORTED, EndReason.REPLACED)
    assert (left.stream_id, left.generation) == ("c", hanging.run.generation)
    assert not hanging.run.aborted
    assert values(await read_all(jobs.subscribe, "c")) == ["second"]


async def test_a_deleted_run_is_interrupted_and_told(jobs: Any, store_b: Any) -> None:
    """Deleting a running job ends it first."""
    hanging = await Hanging(jobs).entered()
    assert await store_b.delete_job("c")
    left = await hanging.gone()
    assert isinstance(left, JobClosedError)
    assert left.end_reason is EndReason.DELETED
    assert await jobs.get("c") is None


@pytest.mark.parametrize("reason", [EndReason.OWNER_LOST, EndReason.EXPIRED])
async def test_a_run_that_others_gave_up_is_interrupted_and_told(jobs: Any, store_b: Any, reason: EndReason) -> None:
    """Whoever ends it for the owner, the owner's block says why."""
    hanging = await Hanging(jobs).entered()
    generation = hanging.run.generation
    await store_b.end_job("c", generation=generation, status="error", end_reason=reason, error="gone")
    left = await hanging.gone()
    assert isinstance(left, JobClosedError)
    assert (left.status, left.end_reason) == (JobStatus.ERROR, reason)
    assert hanging.run.status is JobStatus.ERROR


async def test_a_run_completed_through_the_store_is_told(jobs: Any, store_b: Any) -> None:
    """A terminal status by somebody else interrupts the body."""
    hanging = await Hanging(jobs).entered()
    assert await store_b.update_job("c", status="complete", final_event='"theirs"')
    left = await hanging.gone()
    assert isinstance(left, JobClosedError)
    assert left.status is JobStatus.COMPLETE
    assert (await end_of(jobs))[3] == "theirs"


async def test_a_body_that_returns_after_another_end_is_told(jobs: Any, store_b: Any) -> None:
    """Even when the body noticed nothing: the block does not pretend that it completed."""

    async def answer() -> None:
        async with jobs.start("c", user_id="u") as run:
            ending = asyncio.ensure_future(
                store_b.end_job("c", generation=run.generation, status="error", end_reason=EndReason.EXPIRED, error="x")
            )
            while not ending.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({ending})

    with pytest.raises(JobClosedError) as caught:
        await answer()
    assert caught.value.end_reason is EndReason.EXPIRED


async def test_closing_the_manager_ends_its_runs(backend: Any, jobs_b: Any) -> None:
    """The body is interrupted, viewers elsewhere see SHUTDOWN, the block raises NotOpenError."""
    replica = await backend.replica(opened=False)
    async with replica.manager as jobs:
        hanging = await Hanging(jobs).entered()
        await hanging.run.emit("before")
    left = await hanging.gone()
    assert isinstance(left, NotOpenError)
    assert "open another" in str(left)
    assert (await end_of(jobs_b))[:3] == (JobStatus.ERROR, EndReason.SHUTDOWN, EventType.ERROR)
    assert values(await read_all(jobs_b.subscribe, "c")) == ["before"]


async def test_a_drain_that_runs_out_ends_the_rest(jobs: Any) -> None:
    """It says how many it ended."""
    hanging = await Hanging(jobs).entered()
    assert await soon(jobs.drain(0.05)) == 1
    assert isinstance(await hanging.gone(), NotOpenError)
    assert hanging.run.status is JobStatus.ERROR
    assert (await end_of(jobs))[1] is EndReason.SHUTDOWN


async def test_without_nats_the_block_says_so(replica: Any) -> None:
    """The end could not be stored: UnavailableError instead of a success that nobody can see."""
    async with gated(replica, "end_job") as (jobs, gate):
        with pytest.raises(UnavailableError, match="away"):
            async with jobs.start("c", user_id="u") as run:
                gate.fail(UnavailableError("NATS is away", outcome_unknown=True))
        assert run.status is JobStatus.ERROR


async def test_without_nats_the_bodys_exception_comes_first(replica: Any) -> None:
    """With a note that its end is not stored."""
    async with gated(replica, "end_job") as (jobs, gate):

        async def answer() -> None:
            async with jobs.start("c", user_id="u"):
                gate.fail(UnavailableError("NATS is away"))
                raise ValueError("mine")

        with pytest.raises(ValueError, match="mine") as caught:
            await answer()
    assert any("NATS is away" in note for note in caught.value.__notes__)


async def test_without_nats_complete_says_so(replica: Any) -> None:
    """complete raises it, and so does the block of a body that shrugs it off."""
    async with gated(replica, "end_job") as (jobs, gate):

        async def answer() -> None:
            async with jobs.start("c", user_id="u") as run:
                gate.fail(UnavailableError("NATS is away"))
                with pytest.raises(UnavailableError):
                    await run.complete()

        with pytest.raises(UnavailableError):
            await answer()
