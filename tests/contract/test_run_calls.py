"""What the calls of a run promise, and races of its end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from gates import gated
from playing import Hanging, Played, end_of, nothing
from waiting import eventually, read_all, soon, values

from natsjobs.errors import InvalidEventError, JobClosedError, JobRunningError
from natsjobs.models import JobStatus

# -- races --------------------------------------------------------------------------------------------------------


async def test_complete_that_loses_against_an_abort_is_refused(replica: Any, jobs_b: Any) -> None:
    """The call learns that the run was aborted; the block is left quietly all the same."""
    refused: list[JobClosedError] = []
    async with gated(replica, "end_job") as (jobs, gate):

        async def answer() -> Any:
            async with jobs.start("c", user_id="u") as run:
                try:
                    await run.complete("mine")
                except JobClosedError as exc:
                    refused.append(exc)
                    raise
            return run

        answering = asyncio.ensure_future(answer())
        await soon(gate.reached.wait())
        assert (await jobs_b.abort("c", final_event="theirs")).success
        gate.open.set()
        run = await soon(answering)
    assert [exc.status for exc in refused] == [JobStatus.ABORTED]
    assert run.aborted
    assert (await end_of(jobs_b))[3] == "theirs"


async def test_a_body_that_returns_while_an_abort_wins_leaves_quietly(replica: Any, jobs_b: Any) -> None:
    """The status says aborted, although the body did not notice."""
    async with gated(replica, "end_job") as (jobs, gate):

        async def answer() -> Any:
            async with jobs.start("c", user_id="u") as run:
                pass
            return run

        answering = asyncio.ensure_future(answer())
        await soon(gate.reached.wait())
        assert (await jobs_b.abort("c")).success
        gate.open.set()
        run = await soon(answering)
    assert run.status is JobStatus.ABORTED
    assert run.aborted


async def test_an_abort_after_the_end_changes_nothing(jobs: Any, jobs_b: Any) -> None:
    """A body that goes on after complete is not interrupted by a late abort."""
    async with jobs.start("c", user_id="u") as run:
        await run.complete(1)
        result = await jobs_b.abort("c")
        await asyncio.sleep(0)
    assert not result.success
    assert result.reason == "ended"
    assert run.status is JobStatus.COMPLETE


async def test_a_run_that_somebody_completes_while_the_body_returns_is_told(replica: Any, store_b: Any) -> None:
    """The final event that stands is not this run's, so the block does not pretend that it is."""
    async with gated(replica, "end_job") as (jobs, gate):
        played = Played(jobs, nothing)
        await soon(gate.reached.wait())
        assert await store_b.update_job("c", status="complete", final_event='"theirs"')
        gate.open.set()
        left = await played.left()
    assert isinstance(left, JobClosedError)
    assert left.status is JobStatus.COMPLETE


async def test_a_signal_while_complete_is_under_way_is_too_late(replica: Any, transport_b: Any) -> None:
    """The first wins: complete returns, nothing is interrupted."""
    async with gated(replica, "end_job") as (jobs, gate):

        async def body(run: Any) -> None:
            await run.complete("mine")
            await asyncio.sleep(0)

        played = Played(jobs, body)
        await soon(gate.reached.wait())
        await transport_b.emit_abort("c")
        assert not played.run.aborted
        gate.open.set()
        assert await played.left() is None
    assert played.run.status is JobStatus.COMPLETE
    assert (await end_of(replica.manager))[3] == "mine"


# -- the calls of a run -------------------------------------------------------------------------------------------


async def test_a_run_knows_its_job(jobs: Any) -> None:
    """Ids and the job as it was created, without the network."""
    async with jobs.start("c", user_id="u", conversation_id="k", tenant_id="t", model="m") as run:
        job = await jobs.get("c")
        assert (run.stream_id, run.generation) == ("c", job.generation)
        assert (run.job.user_id, run.job.conversation_id, run.job.tenant_id, run.job.model) == ("u", "k", "t", "m")


async def test_starting_a_running_job_can_be_refused(jobs: Any, jobs_b: Any) -> None:
    """With if_running="reject" the running one goes on untouched."""
    async with jobs.start("c", user_id="u") as run:
        with pytest.raises(JobRunningError) as caught:
            async with jobs_b.start("c", user_id="u", if_running="reject"):
                pytest.fail("entered")
        assert caught.value.job.generation == run.generation
        await run.emit(1)
    assert run.status is JobStatus.COMPLETE


async def test_after_the_end_only_three_calls_work(jobs: Any) -> None:
    """flush, record_usage and claim_usage; a cut-off model call is still billed."""
    async with jobs.start("c", user_id="u") as run:
        pass
    refused = (run.emit(1), run.update(), run.save_run_steps([]), run.complete(), run.fail("x"), run.wait_aborted())
    for call in refused:
        with pytest.raises(JobClosedError) as caught:
            await call
        assert caught.value.status is JobStatus.COMPLETE
    await run.flush()
    await run.record_usage({"input_tokens": 3})
    assert [entry.input_tokens for entry in await run.claim_usage()] == [3]
    assert await run.claim_usage() == []


async def test_update_sets_fields_and_refuses_others(jobs: Any) -> None:
    """Only what a producer may set; never the status."""
    async with jobs.start("c", user_id="u") as run:
        await run.update(model="m", metadata={"a": 1})
        await run.update()
        for wrong in ({"status": "complete"}, {"colour": "red"}):
            with pytest.raises(TypeError, match=next(iter(wrong))):
                await run.update(**wrong)
        job = await jobs.get("c")
        assert (job.model, job.metadata, job.status) == ("m", {"a": 1}, JobStatus.RUNNING)


async def test_run_steps_are_saved(jobs: Any) -> None:
    """As a whole list."""
    async with jobs.start("c", user_id="u") as run:
        await run.save_run_steps([{"id": "s1"}])
        assert await jobs.store.get_run_steps("c") == [{"id": "s1"}]


async def test_an_event_without_a_json_form_does_not_end_the_run(jobs: Any) -> None:
    """Neither as an event nor as the final event: the run goes on."""
    async with jobs.start("c", user_id="u") as run:
        with pytest.raises(InvalidEventError):
            await run.emit(object())
        with pytest.raises(InvalidEventError):
            await run.complete(object())
        assert run.status is JobStatus.RUNNING
        await run.emit("still here")
    assert run.status is JobStatus.COMPLETE
    assert values(await read_all(jobs.subscribe, "c")) == ["still here"]


async def test_wait_aborted_returns_at_an_abort(jobs: Any, jobs_b: Any) -> None:
    """For work that has to be stopped by hand; at once when the run is aborted already."""
    hanging = await Hanging(jobs).entered()
    waiting = asyncio.ensure_future(hanging.run.wait_aborted())
    await jobs_b.abort("c")
    await soon(waiting)
    await hanging.gone()
    await soon(hanging.run.wait_aborted())


async def test_wait_aborted_does_not_outlive_the_run(jobs: Any) -> None:
    """A run that ends in another way cannot be aborted any more: the waiter is told."""
    async with jobs.start("c", user_id="u") as run:
        waiting = asyncio.ensure_future(run.wait_aborted())
        await eventually(lambda: run.status is JobStatus.RUNNING)
    with pytest.raises(JobClosedError):
        await soon(waiting)


async def test_a_start_block_is_entered_once(jobs: Any) -> None:
    """A generation is made once; the error says what to call."""
    block = jobs.start("c", user_id="u")
    async with block:
        pass
    with pytest.raises(RuntimeError, match="once"):
        async with block:
            pytest.fail("entered")
