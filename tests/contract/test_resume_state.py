"""The resume state: what a client needs to draw a job and go on, from one generation, without a seam."""

from __future__ import annotations

import asyncio

import pytest
from making import fill, step, text
from waiting import check_whole, eventually, read_all, values

from natsjobs import JobStatus, UserMessage, to_dict


async def test_no_job_has_no_resume_state(store, jobs):
    """None, on both doors."""
    assert await store.get_resume_state("nobody") is None
    assert await jobs.resume_state("nobody") is None


async def test_a_job_without_events_has_a_resume_state_with_a_cursor(store, jobs_b):
    """Subscribing after it gives everything from the first event."""
    job = await store.create_job("s1", "alice")
    state = await jobs_b.resume_state("s1")
    assert isinstance(state.cursor, str)
    assert (state.generation, state.status) == (job.generation, "running")
    assert (state.aggregated_content, state.run_steps, state.collected_usage) == ([], [], [])
    await fill(store, "s1", "a", "b")
    await store.update_job("s1", status="complete")
    check_whole(await read_all(jobs_b.subscribe, "s1", after=state.cursor), ["a", "b"])


async def test_a_resume_state_holds_what_a_client_needs(store, jobs_b):
    """Content, steps, the message it answers, usage nobody claimed."""
    message = UserMessage(message_id="m", text="hi")
    job = await store.create_job("s1", "alice", "c1", user_message=message, response_message_id="r", sender="AI")
    await fill(store, "s1", step("a", 0), text("a", "Hel"), text("a", "lo"))
    await store.record_usage("s1", {"input_tokens": 3, "model": "m"})
    state = await jobs_b.resume_state("s1")
    assert state.aggregated_content == [{"type": "text", "text": "Hello"}]
    assert [one["id"] for one in state.run_steps] == ["a"]
    assert (state.user_message, state.response_message_id, state.conversation_id, state.sender) == (
        message,
        "r",
        "c1",
        "AI",
    )
    assert (state.generation, state.status) == (job.generation, JobStatus.RUNNING)
    assert [entry.input_tokens for entry in state.collected_usage] == [3]
    wire = to_dict(state)
    assert {"runSteps", "aggregatedContent", "userMessage", "responseMessageId", "conversationId", "cursor"} <= set(
        wire
    )


@pytest.mark.scenario(67, 68)
async def test_a_snapshot_and_what_follows_its_cursor_are_the_whole(replica, jobs_b):
    """Taken again and again while the producer emits at full speed: nothing missing, nothing doubled."""
    store, transport = replica.store, replica.transport
    await store.create_job("s1", "alice")
    await store.append_chunk("s1", step("a", 0))
    pieces = [f"<{n}>" for n in range(2000)]
    whole = "".join(pieces)

    async def produce() -> None:
        for n, piece in enumerate(pieces):
            await transport.emit_chunk("s1", text("a", piece))
            if n % 100 == 0:
                await asyncio.sleep(0.02)
        await transport.emit_done("s1", None)

    async def resume() -> str:
        state = await jobs_b.resume_state("s1")
        live = await read_all(jobs_b.subscribe, "s1", after=state.cursor, within=60)
        before = state.aggregated_content[0]["text"] if state.aggregated_content else ""
        added = [
            event["data"]["delta"]["content"][0]["text"] for event in values(live) if event["event"] != "on_run_step"
        ]
        return before + "".join(added)

    resumed = []
    async with asyncio.timeout(90), asyncio.TaskGroup() as group:
        producing = group.create_task(produce())
        while not producing.done():
            if len(resumed) < 40:  # more would take the producer's time, and that makes more
                resumed.append(group.create_task(resume()))
            await asyncio.sleep(0.01)
    assert resumed
    assert [task.result() == whole for task in resumed] == [True] * len(resumed)


async def test_a_finished_job_has_a_resume_state_too(store, jobs_b):
    """Following its cursor gives at most the terminal record."""
    await store.create_job("s1", "alice")
    await fill(store, "s1", step("a", 0), text("a", "x"))
    await store.update_job("s1", status="complete")
    state = await jobs_b.resume_state("s1")
    assert state.status == "complete"
    assert state.aggregated_content == [{"type": "text", "text": "x"}]
    after = await read_all(jobs_b.subscribe, "s1", after=state.cursor)
    assert [event.type for event in after] in ([], ["done"])


@pytest.mark.scenario(73)
async def test_a_resume_state_never_mixes_generations(store, store_b):
    """Taken while the id is re-created again and again: content and generation belong together."""
    made: dict[str, str] = {}

    seen = 0

    async def turns() -> None:
        for n in range(500):
            job = await store.create_job("s1", "alice")
            made[job.generation] = f"turn {n}"
            await fill(store, "s1", step("a", 0), text("a", f"turn {n}"))
            await asyncio.sleep(0.001 * (n % 7))
            if seen >= 20:
                return

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        running = group.create_task(turns())
        await eventually(lambda: store_b.has_job("s1"))
        while not running.done():
            state = await store_b.get_resume_state("s1")
            if state is not None and state.aggregated_content:
                seen += 1
                content = state.aggregated_content[0]["text"]
                await eventually(lambda state=state: state.generation in made)
                assert made[state.generation] == content
    assert seen
