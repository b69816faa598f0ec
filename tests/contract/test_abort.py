"""Abort is a fact: afterwards the job has ended, and the caller holds the partial content and the usage."""

from __future__ import annotations

import asyncio
import json

import pytest
from making import rest, step, text
from waiting import Calls, eventually, read_all, soon, take, values

from natsjobs import EndReason, InvalidEventError, JobClosedError, to_dict

HELLO = [step("a", 0), text("a", "Hel"), text("a", "lo")]


class Producer:
    """A run in a task of its own that emits what it is told and then waits to be interrupted."""

    def __init__(self, jobs, stream_id="s1", *, user_id="alice", events=HELLO, flush=True):
        self.run = None
        self.left_quietly = False
        self.interrupted = False
        self._ready = asyncio.Event()
        self._task = asyncio.ensure_future(self._work(jobs, stream_id, user_id, events, flush))

    async def _work(self, jobs, stream_id, user_id, events, flush):
        async with jobs.start(stream_id, user_id=user_id) as run:
            self.run = run
            for event in events:
                await run.emit(event)
            if flush:
                await run.flush()
            self._ready.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.interrupted = True
                raise
        self.left_quietly = True

    async def ready(self):
        """Wait until everything was emitted; the run."""
        waiting = asyncio.ensure_future(self._ready.wait())
        await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            await self._task
        return self.run

    async def over(self):
        """Wait until the block was left."""
        return await soon(self._task)

    async def failed(self):
        """Wait until the block was left with an exception; that."""
        await soon(asyncio.wait([self._task]))
        return self._task.exception()


@pytest.mark.scenario(83)
@pytest.mark.parametrize("where", ["owner", "another replica"])
async def test_abort_stops_the_run_wherever_it_is(replica, replica_b, where):
    """The block is interrupted and left quietly; viewers get the final event; the result holds everything."""
    caller = replica if where == "owner" else replica_b
    producer = Producer(replica.manager)
    run = await producer.ready()
    await run.record_usage({"input_tokens": 5})
    async with (
        replica.manager.subscribe("s1") as near,
        replica_b.manager.subscribe("s1") as far,
    ):
        result = await soon(caller.manager.abort("s1", final_event={"final": True, "aborted": True}))
        ends = [(await soon(rest(events)))[-1] for events in (near, far)]
    await producer.over()
    assert producer.interrupted
    assert producer.left_quietly
    assert (run.aborted, run.status) == (True, "aborted")
    assert (result.success, result.acknowledged, result.reason) == (True, True, None)
    assert result.content == [{"type": "text", "text": "Hello"}]
    assert result.text == "Hello"
    assert result.final_event == {"final": True, "aborted": True}
    assert [entry.input_tokens for entry in result.collected_usage] == [5]
    assert result.job_data == await replica_b.store.get_job("s1")
    assert (result.job_data.status, result.job_data.end_reason) == ("aborted", EndReason.ABORT)
    assert json.loads(result.job_data.final_event) == result.final_event
    for end in ends:
        assert (end.type, end.end_reason, end.data, end.index) == ("aborted", EndReason.ABORT, result.final_event, 3)
    assert await replica_b.store.get_active_job_ids_by_user("alice") == []
    assert await replica.store.claim_usage("s1") == []
    wire = to_dict(result)
    assert {"success", "jobData", "content", "finalEvent", "text", "collectedUsage", "acknowledged"} <= set(wire)
    assert json.loads(json.dumps(wire)) == wire


async def test_without_a_final_event_viewers_get_none(jobs, jobs_b):
    """The type says aborted; there is nothing more to say."""
    producer = Producer(jobs)
    await producer.ready()
    result = await soon(jobs_b.abort("s1"))
    await producer.over()
    assert result.final_event is None
    assert (await read_all(jobs_b.subscribe, "s1"))[-1].data is None


async def test_text_joins_all_text_parts(jobs, jobs_b):
    """And only those."""
    events = [step("a", 0), text("a", "one "), step("b", 1), text("b", "two")]
    producer = Producer(jobs, events=events)
    await producer.ready()
    result = await soon(jobs_b.abort("s1"))
    await producer.over()
    assert result.text == "one two"
    assert len(result.content) == 2


@pytest.mark.scenario(88)
async def test_what_was_emitted_before_the_abort_is_delivered_before_its_end(jobs, jobs_b):
    """Also what was still queued: log, viewers and the result agree, and subscribers see no error."""
    events = [step("a", 0), *(text("a", f"<{n}>") for n in range(200))]
    producer = Producer(jobs, events=events, flush=False)
    async with jobs_b.subscribe("s1", wait=10) as viewer:
        await producer.ready()
        result = await soon(jobs_b.abort("s1"))
        seen = await soon(rest(viewer))
    await producer.over()
    assert seen == await read_all(jobs_b.subscribe, "s1")
    assert values(seen) == events
    assert seen[-1].index == len(events)
    assert result.text == "".join(f"<{n}>" for n in range(200))


@pytest.mark.scenario(85)
async def test_abort_of_what_is_not_running_says_why_and_changes_nothing(store, store_b, jobs_b):
    """Missing: not_found; finished: ended; another generation: replaced. No event, no claim."""
    missing = await jobs_b.abort("nobody")
    assert (missing.success, missing.reason, missing.job_data) == (False, "not_found", None)
    assert (missing.content, missing.collected_usage, missing.final_event, missing.text) == ([], [], None, "")
    assert await store.get_job("nobody") is None

    old = (await store.create_job("s1", "alice")).generation
    await store.append_chunk("s1", "x")
    await store.record_usage("s1", {"input_tokens": 1})
    await store.update_job("s1", status="complete", final_event='"end"')
    before = await store.get_job("s1")
    ended = await jobs_b.abort("s1", final_event="late")
    assert (ended.success, ended.reason, ended.collected_usage) == (False, "ended", [])
    assert await store.get_job("s1") == before
    assert [event.data for event in await read_all(jobs_b.subscribe, "s1")] == ["x", "end"]
    assert len(await store.get_collected_usage("s1")) == 1

    new = await store.create_job("s1", "alice")
    replaced = await jobs_b.abort("s1", generation=old)
    assert (replaced.success, replaced.reason, replaced.collected_usage) == (False, "replaced", [])
    assert await store.get_job("s1") == new
    assert await store.append_chunk("s1", "goes on", generation=new.generation) == 0
    assert len(await store_b.claim_usage("s1", generation=old)) == 1


async def test_aborting_twice_the_second_finds_it_ended(jobs, jobs_b):
    """And both at the same time have one winner, who alone gets the usage."""
    producer = Producer(jobs)
    run = await producer.ready()
    await run.record_usage({"input_tokens": 5})
    results = await soon(asyncio.gather(jobs.abort("s1"), jobs_b.abort("s1"), jobs_b.abort("s1")))
    await producer.over()
    won = [result for result in results if result.success]
    assert len(won) == 1
    assert [entry.input_tokens for entry in won[0].collected_usage] == [5]
    assert [(result.reason, result.collected_usage) for result in results if not result.success] == [("ended", [])] * 2
    assert (await jobs.abort("s1")).reason == "ended"


@pytest.mark.scenario(87)
async def test_abort_holds_when_the_owner_is_dead(backend, replica_b):
    """Not acknowledged, in bounded time, with the content of the log and the usage recorded so far."""
    owner = await backend.replica()
    await owner.store.create_job("s1", "alice")
    for event in HELLO:
        await owner.store.append_chunk("s1", event)
    await owner.store.record_usage("s1", {"input_tokens": 5})
    await owner.kill()
    result = await soon(replica_b.manager.abort("s1", final_event="stopped"), within=10)
    assert (result.success, result.acknowledged) == (True, False)
    assert result.text == "Hello"
    assert [entry.input_tokens for entry in result.collected_usage] == [5]
    end = (await read_all(replica_b.manager.subscribe, "s1"))[-1]
    assert (end.type, end.data, end.end_reason) == ("aborted", "stopped", EndReason.ABORT)
    assert (await replica_b.store.get_job("s1")).status == "aborted"


@pytest.mark.scenario(55)
async def test_a_late_abort_cannot_hit_the_next_generation(jobs, jobs_b):
    """The next turn of the same id goes on."""
    first = Producer(jobs)
    old = (await first.ready()).generation
    second = Producer(jobs)
    run = await second.ready()
    assert isinstance(await first.failed(), JobClosedError)
    result = await soon(jobs_b.abort("s1", generation=old))
    assert (result.success, result.reason) == (False, "replaced")
    await run.emit("still here")
    await run.flush()
    assert not run.aborted
    assert (await soon(jobs_b.abort("s1", generation=run.generation))).success
    await second.over()


async def test_aborting_one_job_leaves_the_user_s_others_alone(jobs, jobs_b):
    """Same user, three jobs, one abort."""
    producers = [Producer(jobs, f"s{n}") for n in range(3)]
    runs = [await producer.ready() for producer in producers]
    assert (await soon(jobs_b.abort("s1"))).success
    await producers[1].over()
    assert sorted(await jobs_b.active("alice")) == ["s0", "s2"]
    for run in (runs[0], runs[2]):
        await run.emit("goes on")
        await run.flush()
    for n in (0, 2):
        await soon(jobs_b.abort(f"s{n}"))
        await producers[n].over()


async def test_usage_recorded_after_the_abort_goes_to_the_runs_own_claim(jobs, jobs_b):
    """A call that was cut off is billed by whoever claims next; each entry once."""
    producer = Producer(jobs)
    run = await producer.ready()
    await run.record_usage({"input_tokens": 1})
    result = await soon(jobs_b.abort("s1"))
    await producer.over()
    await run.record_usage({"input_tokens": 2})
    assert [entry.input_tokens for entry in result.collected_usage] == [1]
    assert [entry.input_tokens for entry in await run.claim_usage()] == [2]
    assert await jobs_b.claim_usage("s1") == []


@pytest.mark.scenario(84)
async def test_listeners_of_the_end_hear_of_an_abort(replica, replica_b):
    """On the owner and elsewhere, once."""
    producer = Producer(replica.manager)
    run = await producer.ready()
    near, far = Calls(), Calls()
    await replica.transport.on_end("s1", near)
    await replica_b.transport.on_end("s1", far, generation=run.generation)
    await soon(replica_b.manager.abort("s1"))
    await soon(run.wait_aborted())
    await producer.over()
    await near.until(1)
    await far.until(1)
    assert [end.type for end in near.got + far.got] == ["aborted", "aborted"]


@pytest.mark.scenario(86)
async def test_abort_and_completion_at_the_same_time_have_one_winner(jobs, jobs_b, store_b):
    """The caller of abort learns which; one terminal record; the usage goes to one of them."""
    for n in range(20):
        stream_id = f"s{n}"
        producing = asyncio.Event()
        claimed: list = []

        async def work(run, producing=producing, claimed=claimed) -> None:
            await run.emit("x")
            await run.record_usage({"input_tokens": 1})
            producing.set()
            await run.complete("done")
            claimed.extend(await run.claim_usage())

        await jobs.spawn(stream_id, work, user_id="alice")
        await soon(producing.wait())
        result = await soon(jobs_b.abort(stream_id, final_event="aborted"))
        ends = [event for event in await read_all(jobs_b.subscribe, stream_id) if event.is_terminal]
        assert len(ends) == 1
        assert (ends[0].type, ends[0].data) == (("aborted", "aborted") if result.success else ("done", "done"))
        assert (await store_b.get_job(stream_id)).status == ("aborted" if result.success else "complete")
        if result.success:
            assert len(result.collected_usage) == 1
        else:
            assert (result.reason, result.collected_usage) == ("ended", [])
            await eventually(lambda claimed=claimed: claimed)
        assert await store_b.claim_usage(stream_id) == []


async def test_a_final_event_that_is_no_json_is_refused_before_anything(jobs, jobs_b):
    """The run goes on."""
    producer = Producer(jobs)
    run = await producer.ready()
    with pytest.raises(InvalidEventError):
        await jobs_b.abort("s1", final_event=float("nan"))
    assert not run.aborted
    assert run.status == "running"
    await soon(jobs_b.abort("s1"))
    await producer.over()


async def test_a_large_final_event_aborts_all_the_same(jobs, jobs_b):
    """Above what one message holds: viewers, result and record have it whole."""
    final = {"text": "x" * 2_500_000}
    producer = Producer(jobs)
    await producer.ready()
    result = await soon(jobs_b.abort("s1", final_event=final))
    await producer.over()
    assert producer.left_quietly
    assert (result.success, result.text) == (True, "Hello")
    assert result.final_event == final
    end = (await read_all(jobs.subscribe, "s1"))[-1]
    assert (end.type, end.index) == ("aborted", len(HELLO))
    assert end.data == final
    assert json.loads((await jobs.get("s1")).final_event) == final


async def test_large_content_comes_back_whole(jobs, jobs_b):
    """Three megabytes of partial answer."""
    producer = Producer(jobs, events=[step("a", 0), *(text("a", "y" * 300_000) for _ in range(10))])
    await producer.ready()
    result = await soon(jobs_b.abort("s1"))
    await producer.over()
    assert result.text == "y" * 3_000_000


async def test_librechats_abort_is_one_update(store, store_b, jobs_b):
    """Status aborted with a final event: terminal record and record agree."""
    await store.create_job("s1", "alice")
    await store.append_chunk("s1", "x")
    async with jobs_b.subscribe("s1") as events:
        await take(events, 1)
        assert await store_b.update_job("s1", status="aborted", final_event='{"aborted": true}') is True
        (end,) = await soon(rest(events))
    assert (end.type, end.data) == ("aborted", {"aborted": True})
    assert (await store.get_job("s1")).status == "aborted"
    assert (await jobs_b.abort("s1")).reason == "ended"


async def test_the_store_aborts_as_the_manager_does(store, store_b):
    """abort_job is what the manager calls."""
    await store.create_job("s1", "alice")
    for event in HELLO:
        await store.append_chunk("s1", event)
    result = await soon(store_b.abort_job("s1", final_event="x"))
    assert (result.success, result.text, result.job_data.status) == (True, "Hello", "aborted")
    assert (await store_b.abort_job("s1")).reason == "ended"
