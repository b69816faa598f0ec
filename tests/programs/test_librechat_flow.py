"""LibreChat's flow of ``librechat_flow`` on both backends, each with two replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import nats
import pytest
from librechat_flow import Generations, Screen, delta, resume, step, text_of

import natsjobs
from natsjobs.memory import MemorySystem

MESSAGE = natsjobs.UserMessage(message_id="m1", text="hello")
WORDS = [f"word{i} " for i in range(50)]


@pytest.fixture(params=["memory", "nats"])
async def replicas(
    request: pytest.FixtureRequest, natsjobs_server: str, config: natsjobs.Config
) -> AsyncIterator[tuple[Generations, Generations]]:
    """Two replicas of the service: two stores on one memory system, or two connections to one NATS."""
    stores: list[natsjobs.JobStore]
    transports: list[natsjobs.EventTransport]
    connections = [await nats.connect(natsjobs_server) for _ in range(2)] if request.param == "nats" else []  # pyright: ignore[reportUnknownMemberType]
    if connections:
        stores = [natsjobs.NatsJobStore(nc, config) for nc in connections]
        transports = [natsjobs.NatsEventTransport(nc, config) for nc in connections]
    else:
        system = MemorySystem(config.namespace)
        memory = [natsjobs.MemoryJobStore(config, system=system) for _ in range(2)]
        stores = list(memory)
        transports = [natsjobs.MemoryEventTransport(store) for store in memory]
    for store in stores:
        await store.initialize()
    yield Generations(stores[0], transports[0]), Generations(stores[1], transports[1])
    for transport in transports:
        await transport.destroy()
    for store in stores:
        await store.destroy()
    for nc in connections:
        await nc.close()


async def test_a_generation_reaches_subscribers_on_both_replicas_and_completes(
    replicas: tuple[Generations, Generations],
) -> None:
    """Created on A: found on B at once, seen in order on both, the final event in the record."""
    a, b = replicas
    screens = Screen(), Screen()
    for replica, screen in zip(replicas, screens, strict=True):
        await replica.transport.subscribe(
            "c1", on_chunk=screen.on_chunk, on_done=screen.on_done, on_error=screen.on_error
        )
    job = await a.create_job("c1", "alice", MESSAGE)
    assert await b.store.get_active_job_ids_by_user("alice") == ["c1"]
    await a.emit_chunk(job, step("s1"))
    for word in WORDS:
        await a.emit_chunk(job, delta("s1", word))
    await a.complete_job(job, {"final": True, "text": "".join(WORDS)})

    for screen in screens:
        await screen.ended.wait()
        assert screen.events == [step("s1"), *(delta("s1", word) for word in WORDS)]
        assert screen.finals == [{"final": True, "text": "".join(WORDS)}]
    stored = await b.store.get_job("c1")
    assert stored is not None
    assert (stored.status, stored.user_message, stored.sender) == (natsjobs.JobStatus.COMPLETE, MESSAGE, "AI")
    assert await b.store.get_active_job_ids_by_user("alice") == []
    with pytest.raises(natsjobs.JobClosedError):
        await a.complete_job(job, {"final": True})


async def test_an_abort_on_b_stops_the_work_on_a_and_keeps_what_was_said(
    replicas: tuple[Generations, Generations],
) -> None:
    """The owner's listener fires, the final event has the partial content, viewers get it, the record says aborted."""
    a, b = replicas
    job = await a.create_job("c1", "alice", MESSAGE)
    screen = Screen()
    await a.transport.subscribe("c1", on_chunk=screen.on_chunk, on_done=screen.on_done)
    await a.emit_chunk(job, step("s1"))
    for word in WORDS[:20]:
        await a.emit_chunk(job, delta("s1", word))
    await a.transport.flush("c1")

    final = await b.abort_job("c1")

    async with asyncio.timeout(20):
        await a.stopped[job.generation].wait()
        await screen.ended.wait()
    assert final is not None
    said = "".join(part["text"] for part in final["responseMessage"]["content"])
    assert said == "".join(WORDS[:20])
    assert screen.finals == [final]
    for replica in replicas:
        stored = await replica.store.get_job("c1")
        assert stored is not None
        assert (stored.status, stored.end_reason) == (natsjobs.JobStatus.ABORTED, natsjobs.EndReason.ABORT)
        assert stored.completed_at is not None
        assert await replica.abort_job("c1") is None
    with pytest.raises(natsjobs.JobClosedError):
        await _emit_and_flush(a, job)


async def _emit_and_flush(replica: Generations, job: natsjobs.Job) -> None:
    await replica.emit_chunk(job, delta("s1", "too late"))
    await replica.transport.flush(job.stream_id, generation=job.generation)


async def test_an_abort_of_one_turn_is_not_heard_by_the_next(replicas: tuple[Generations, Generations]) -> None:
    """A late signal for turn one, sent while turn two runs, stops nothing."""
    a, b = replicas
    first = await a.create_job("c1", "alice", MESSAGE)
    second = await a.create_job("c1", "alice", MESSAGE)
    assert second.created_at > first.created_at
    await b.transport.emit_abort("c1", generation=first.generation)
    async with asyncio.timeout(20):
        await a.stopped[first.generation].wait()
    assert not a.stopped[second.generation].is_set()
    assert await b.transport.emit_abort("c1", generation=second.generation)
    assert a.stopped[second.generation].is_set()


async def test_a_failed_generation_tells_a_client_that_comes_later(
    replicas: tuple[Generations, Generations],
) -> None:
    """The error is in the record, with subscribers, and in the replay of a client that attaches afterwards."""
    a, b = replicas
    screen = Screen()
    await b.transport.subscribe("c1", on_chunk=screen.on_chunk, on_done=screen.on_done, on_error=screen.on_error)
    job = await a.create_job("c1", "alice", MESSAGE)
    await a.fail_job(job, "the model is overloaded")
    await screen.ended.wait()
    assert (screen.errors, screen.finals) == (["the model is overloaded"], [])
    async with b.transport.read("c1") as events:
        seen = [event async for event in events]
    assert [(event.type, event.data) for event in seen] == [(natsjobs.EventType.ERROR, "the model is overloaded")]
    stored = await b.store.get_job("c1")
    assert stored is not None
    assert (stored.status, stored.error) == (natsjobs.JobStatus.ERROR, "the model is overloaded")


async def test_tabs_that_resume_while_it_is_told_have_the_whole_text(
    replicas: tuple[Generations, Generations],
) -> None:
    """Resume state plus what comes after its cursor is the answer, at whatever moment a tab comes back, anywhere."""
    a, b = replicas
    job = await a.create_job("c1", "alice", MESSAGE)
    await a.emit_chunk(job, step("s1"))
    tabs: list[asyncio.Task[tuple[str, object]]] = []
    async with asyncio.TaskGroup() as group:
        for i, word in enumerate(WORDS):
            await a.emit_chunk(job, delta("s1", word))
            replica = replicas[i % 2]
            tabs.append(group.create_task(resume(replica.store, replica.transport, "c1")))
            await asyncio.sleep(0)
        await a.complete_job(job, {"final": True})
    for tab in tabs:
        assert tab.result() == ("".join(WORDS), {"final": True})
    state = await b.store.get_resume_state("c1")
    assert state is not None
    assert (state.status, state.user_message, state.response_message_id) == (
        natsjobs.JobStatus.COMPLETE,
        MESSAGE,
        "m1_",
    )
    assert [s["id"] for s in state.run_steps] == ["s1"]


async def test_what_the_store_appends_subscribers_see(replicas: tuple[Generations, Generations]) -> None:
    """``append_chunk`` stores and publishes by one write, and gives the index."""
    a, b = replicas
    screen = Screen()
    await b.transport.subscribe("c1", on_chunk=screen.on_chunk, on_done=screen.on_done)
    await a.create_job("c1", "alice", MESSAGE)
    indexes = [await a.store.append_chunk("c1", delta("s1", word)) for word in WORDS]
    await a.transport.emit_done("c1", None)
    await screen.ended.wait()
    assert indexes == list(range(len(WORDS)))
    assert "".join(text_of(event) for event in screen.events) == "".join(WORDS)
    assert screen.finals == [None]
