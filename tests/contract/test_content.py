"""The log through the store: appending, folded content, run steps, clearing, and the resume state."""

from __future__ import annotations

import asyncio
import gc

import pytest
from waiting import check_whole, eventually, read_all, soon, take, values

from natsjobs import HistoryLostError, JobClosedError, JobNotFoundError, JobStatus, UserMessage, to_dict


def step(step_id, index, **more):
    """LibreChat's on_run_step."""
    details = {"type": "message_creation", "message_creation": {"message_id": "m"}}
    return {"event": "on_run_step", "data": {"id": step_id, "index": index, "stepDetails": details, **more}}


def tool_step(step_id, index, *calls, **more):
    """on_run_step of tool calls given as (id, name, args)."""
    made = [{"id": call_id, "name": name, "args": args} for call_id, name, args in calls]
    return step(step_id, index, stepDetails={"type": "tool_calls", "tool_calls": made}, **more)


def text(step_id, *pieces):
    """on_message_delta."""
    content = [{"type": "text", "text": piece} for piece in pieces]
    return {"event": "on_message_delta", "data": {"id": step_id, "delta": {"content": content}}}


def think(step_id, piece):
    """on_reasoning_delta."""
    return {
        "event": "on_reasoning_delta",
        "data": {"id": step_id, "delta": {"content": {"type": "think", "think": piece}}},
    }


def args(step_id, piece, **more):
    """on_run_step_delta with tool arguments."""
    call = {"args": piece, **more}
    return {
        "event": "on_run_step_delta",
        "data": {"id": step_id, "delta": {"type": "tool_calls", "tool_calls": [call]}},
    }


def completed(step_id, index, call_id, name, arguments, output):
    """on_run_step_completed."""
    call = {"id": call_id, "name": name, "args": arguments, "output": output, "progress": 1}
    return {
        "event": "on_run_step_completed",
        "data": {"result": {"id": step_id, "index": index, "type": "tool_call", "tool_call": call}},
    }


async def fill(store, stream_id, *events):
    """Append events one after the other."""
    return [await store.append_chunk(stream_id, event) for event in events]


async def folded(replica, replica_b, *events):
    """What B makes of events that A appended."""
    await replica.store.create_job("s1", "alice")
    await fill(replica.store, "s1", *events)
    return await replica_b.store.get_content_parts("s1")


# -- appending --------------------------------------------------------------------------------------------------


async def test_append_returns_dense_indexes_and_readers_get_the_events(store, store_b, jobs_b):
    """From 0, on whichever replica; stored when it returns."""
    await store.create_job("s1", "alice")
    assert await fill(store, "s1", "a", {"b": 1}, None) == [0, 1, 2]
    assert await fill(store_b, "s1", [], 1.5) == [3, 4]
    assert await store.append_chunk("s1", "last") == 5
    await store.update_job("s1", status="complete")
    check_whole(await read_all(jobs_b.subscribe, "s1"), ["a", {"b": 1}, None, [], 1.5, "last"])


async def test_appends_of_two_replicas_at_the_same_time_are_all_stored_once(store, store_b, jobs_b):
    """Each gets an index of its own, and each replica's events keep their order."""
    await store.create_job("s1", "alice")

    async def append(name: str, one) -> list[int]:
        return [await one.append_chunk("s1", [name, n]) for n in range(40)]

    a, b = await soon(asyncio.gather(append("a", store), append("b", store_b)), within=60)
    assert sorted(a + b) == list(range(80))
    assert a == sorted(a)
    assert b == sorted(b)
    await store.update_job("s1", status="complete")
    events = await read_all(jobs_b.subscribe, "s1")
    expected: list = [None] * 80
    for name, indexes in (("a", a), ("b", b)):
        for n, index in enumerate(indexes):
            expected[index] = [name, n]
    check_whole(events, expected)


async def test_appending_to_an_unknown_id_is_an_error(store):
    """JobNotFoundError names it, and no job comes to be."""
    with pytest.raises(JobNotFoundError) as missing:
        await store.append_chunk("nobody", 1)
    assert missing.value.stream_id == "nobody"
    assert await store.get_job("nobody") is None


async def test_appending_to_a_deleted_generation_is_an_error(store, store_b):
    """Also when nothing had been appended before: no log comes back to life."""
    for n, events in enumerate(([], ["x"])):
        job = await store.create_job(f"s{n}", "alice")
        await fill(store, f"s{n}", *events)
        await store_b.delete_job(f"s{n}")
        with pytest.raises((JobClosedError, JobNotFoundError)):
            await store.append_chunk(f"s{n}", "zombie", generation=job.generation)
        with pytest.raises(JobNotFoundError):
            await store.append_chunk(f"s{n}", "zombie")
        assert await store_b.get_content_parts(f"s{n}") is None


@pytest.mark.scenario(49)
async def test_values_come_back_unchanged(store, jobs_b):
    """Nested and empty arrays, null, text beyond ASCII, floats of full precision, control characters."""
    sent = [
        [[], {}, [[]], [None]],
        {"": "", "a b": {"c": [1, 2, {"d": None}]}},
        'Grüße 👋 \u0000 \u2028 \ud7ff \U0010ffff " \\ / \n\r\t',
        0.1 + 0.2,
        1e308,
        5e-324,
        -0.0,
        9_007_199_254_740_993,
        -(2**63),
        2**64 - 1,
        True,
        False,
        None,
        "",
        "x" * 100_000,
    ]
    await store.create_job("s1", "alice")
    await fill(store, "s1", *sent)
    await store.update_job("s1", status="complete")
    events = await read_all(jobs_b.subscribe, "s1")
    check_whole(events, sent)
    assert [repr(event.data) for event in events[:-1]] == [repr(value) for value in sent]


# -- content ----------------------------------------------------------------------------------------------------


@pytest.mark.scenario(31)
async def test_content_is_none_when_there_is_nothing(store, store_b):
    """No job, no event, or no event that is content."""
    assert await store.get_content_parts("nobody") is None
    await store.create_job("s1", "alice")
    assert await store.get_content_parts("s1") is None
    assert await store_b.get_content_parts("s1") is None


@pytest.mark.scenario(32, 93)
async def test_content_is_rebuilt_from_the_log_on_another_replica(replica, replica_b):
    """Text fragments join; think and text of different steps give two parts in order."""
    parts = await folded(
        replica,
        replica_b,
        step("t", 0),
        think("t", "hm"),
        think("t", "m"),
        step("a", 1),
        text("a", "Hel"),
        text("a", "lo"),
    )
    assert parts == [{"type": "think", "think": "hmm"}, {"type": "text", "text": "Hello"}]
    assert parts == await replica.store.get_content_parts("s1")
    await replica.store.update_job("s1", status="complete")
    assert parts == await replica_b.store.get_content_parts("s1")


@pytest.mark.scenario(93)
async def test_an_empty_delta_list_changes_nothing(replica, replica_b):
    """And an event that is no content is left alone."""
    parts = await folded(
        replica, replica_b, {"created": True}, step("a", 0), text("a", "x"), text("a"), {"event": "new"}
    )
    assert parts == [{"type": "text", "text": "x"}]


@pytest.mark.scenario(94)
async def test_deltas_that_fit_nowhere_are_ignored(replica, replica_b):
    """Unknown step; another type in a slot that is taken."""
    parts = await folded(replica, replica_b, step("a", 0), think("a", "t"), text("a", "no"), text("unknown", "no"))
    assert parts == [{"type": "think", "think": "t"}]


@pytest.mark.scenario(95)
async def test_a_tool_call_is_rebuilt(replica, replica_b):
    """Step, argument fragments, completion; a late delta after the completion changes nothing."""
    parts = await folded(
        replica,
        replica_b,
        tool_step("st", 0, ("c1", "find", "")),
        args("st", '{"q":'),
        args("st", "1}"),
        completed("st", 0, "c1", "find", None, "found"),
        args("st", "late", name="find", id="c1"),
    )
    (part,) = parts
    assert part["type"] == "tool_call"
    call = part["tool_call"]
    assert (call["id"], call["name"], call["args"], call["output"], call["progress"]) == (
        "c1",
        "find",
        '{"q":1}',
        "found",
        1,
    )


@pytest.mark.scenario(96)
async def test_parallel_tool_calls_are_completed_in_any_order(replica, replica_b):
    """By call id; an unknown id is dropped."""
    parts = await folded(
        replica,
        replica_b,
        tool_step("st", 0, ("c1", "f", "{}"), ("c2", "g", "{}")),
        completed("st", 0, "c2", "g", "{}", "two"),
        completed("st", 0, "c9", "h", "{}", "nine"),
        completed("st", 0, "c1", "f", "{}", "one"),
    )
    assert [(part["tool_call"]["id"], part["tool_call"]["output"]) for part in parts] == [("c1", "one"), ("c2", "two")]


@pytest.mark.scenario(97)
async def test_agent_marks_appear_and_holes_are_removed(replica, replica_b):
    """agentId and groupId on the part; an agent update keeps its slot; slot 1 stays empty."""
    parts = await folded(
        replica,
        replica_b,
        {"event": "on_agent_update", "data": {"type": "agent_update", "agent_update": {"index": 0, "agentId": "a"}}},
        step("st", 3, agentId="a1", groupId=2),
        text("st", "x"),
    )
    assert [part["type"] for part in parts] == ["agent_update", "text"]
    assert (parts[1]["text"], parts[1]["agentId"], parts[1]["groupId"]) == ("x", "a1", 2)


@pytest.mark.scenario(45)
async def test_tool_argument_fragments_concatenate_exactly(replica, replica_b):
    """A hundred fragments through the queue of the transport, not one lost, doubled or moved."""
    whole = "".join(f'"{n}",' for n in range(100))
    await replica.store.create_job("s1", "alice")
    await replica.store.append_chunk("s1", tool_step("st", 0, ("c1", "f", "")))
    for start in range(0, len(whole), 4):
        await replica.transport.emit_chunk("s1", args("st", whole[start : start + 4]))
    await replica.transport.flush("s1")
    (part,) = await replica_b.store.get_content_parts("s1")
    assert part["tool_call"]["args"] == whole


async def test_a_fold_of_ones_own_can_be_set(backend):
    """Config(fold=…) turns events into parts, in content and resume state alike."""

    def fold(events):
        return [{"type": "text", "text": "+".join(str(event) for event in events)}]

    replica = await backend.replica(backend.config(fold=fold))
    await replica.store.create_job("s1", "alice")
    await fill(replica.store, "s1", 1, 2, 3)
    assert await replica.store.get_content_parts("s1") == [{"type": "text", "text": "1+2+3"}]
    assert (await replica.store.get_resume_state("s1")).aggregated_content == [{"type": "text", "text": "1+2+3"}]


# -- live objects -----------------------------------------------------------------------------------------------


class Graph:
    """A live agent graph, as far as the store looks at it."""

    def __init__(self, **attributes) -> None:
        self.__dict__.update(attributes)


class Disposed:
    """A graph whose attributes raise."""

    @property
    def content_parts(self):
        raise RuntimeError("disposed")

    @property
    def run_steps(self):
        raise RuntimeError("disposed")


LIVE = [{"type": "text", "text": "live"}]
LOGGED = [{"type": "text", "text": "logged"}]


async def logged(store):
    """A job with content and steps in its log."""
    await store.create_job("s1", "alice")
    await fill(store, "s1", step("a", 0), text("a", "logged"))


@pytest.mark.scenario(33)
async def test_a_live_graph_wins_while_it_has_content(store, store_b):
    """On its own replica only, for content and steps; never in the resume state."""
    await logged(store)
    graph = Graph(content_parts=[], run_steps=[])
    store.set_graph("s1", graph)
    assert await store.get_content_parts("s1") == LOGGED
    steps = await store.get_run_steps("s1")
    assert [one["id"] for one in steps] == ["a"]
    graph.content_parts = LIVE
    graph.run_steps = [{"id": "live"}]
    assert await store.get_content_parts("s1") == LIVE
    assert await store.get_run_steps("s1") == [{"id": "live"}]
    assert await store_b.get_content_parts("s1") == LOGGED
    assert await store_b.get_run_steps("s1") == steps
    state = await store.get_resume_state("s1")
    assert state.aggregated_content == LOGGED
    assert state.run_steps == steps


@pytest.mark.scenario(33)
@pytest.mark.parametrize("graph", [Disposed(), Graph(), object()], ids=["raises", "has neither", "plain object"])
async def test_a_graph_without_usable_attributes_counts_as_absent(store, graph):
    """The log is used; nothing is raised."""
    await logged(store)
    store.set_graph("s1", graph)
    assert await store.get_content_parts("s1") == LOGGED
    assert [one["id"] for one in await store.get_run_steps("s1")] == ["a"]


async def test_a_graph_is_held_weakly(store):
    """When nobody else holds it the log is used again."""
    await logged(store)
    graph = Graph(content_parts=LIVE)
    store.set_graph("s1", graph)
    assert await store.get_content_parts("s1") == LIVE
    del graph
    gc.collect()
    assert await store.get_content_parts("s1") == LOGGED


async def test_a_live_list_wins_while_it_has_content(store, store_b):
    """Parts that the host appends are seen; another replica sees the log."""
    await logged(store)
    parts: list = []
    store.set_content_parts("s1", parts)
    assert await store.get_content_parts("s1") == LOGGED
    parts.extend(LIVE)
    assert await store.get_content_parts("s1") == LIVE
    assert await store_b.get_content_parts("s1") == LOGGED
    assert (await store.get_resume_state("s1")).aggregated_content == LOGGED


async def test_live_objects_do_not_reach_the_next_generation(store):
    """A new turn starts without the old turn's graph."""
    await logged(store)
    graph = Graph(content_parts=LIVE, run_steps=[{"id": "live"}])
    store.set_graph("s1", graph)
    store.set_content_parts("s1", LIVE)
    await store.create_job("s1", "alice")
    assert await store.get_content_parts("s1") is None
    assert await store.get_run_steps("s1") == []


# -- run steps --------------------------------------------------------------------------------------------------


@pytest.mark.scenario(32)
async def test_saved_run_steps_are_read_on_another_replica(store, store_b):
    """The whole list each time."""
    await store.create_job("s1", "alice")
    assert await store_b.get_run_steps("s1") == []
    await store.save_run_steps("s1", [{"id": "a"}, {"id": "b", "deep": [1, None]}])
    assert await store_b.get_run_steps("s1") == [{"id": "a"}, {"id": "b", "deep": [1, None]}]
    await store_b.save_run_steps("s1", [{"id": "c"}])
    assert await store.get_run_steps("s1") == [{"id": "c"}]


async def test_run_steps_of_unknown_jobs(store):
    """Reading gives an empty list, saving is JobNotFoundError."""
    assert await store.get_run_steps("nobody") == []
    with pytest.raises(JobNotFoundError):
        await store.save_run_steps("nobody", [{"id": "a"}])


async def test_many_run_steps_larger_than_a_message_are_kept_or_refused(store, store_b):
    """Never half of them: either all come back, or a typed error and the old list stays."""
    await store.create_job("s1", "alice")
    await store.save_run_steps("s1", [{"id": "old"}])
    steps = [{"id": f"s{n}", "text": "x" * 1000} for n in range(2000)]
    try:
        await store.save_run_steps("s1", steps)
    except ValueError:
        steps = [{"id": "old"}]
    assert await store_b.get_run_steps("s1") == steps
    assert await store.append_chunk("s1", "goes on") == 0


# -- clearing ---------------------------------------------------------------------------------------------------


async def test_clearing_a_running_job_removes_events_and_steps_and_the_job_goes_on(store, store_b, jobs_b):
    """Indexes go on; a reader from the start gets what came after, one that stands behind HistoryLostError."""
    job = await store.create_job("s1", "alice")
    await fill(store, "s1", step("a", 0), text("a", "old"), "x")
    await store.save_run_steps("s1", [{"id": "a"}])
    async with jobs_b.subscribe("s1") as events:
        behind = (await take(events, 1))[0].cursor
    await store.clear_content_state("s1", generation=job.generation)
    for one in (store, store_b):
        assert await one.get_content_parts("s1") is None
        assert await one.get_run_steps("s1") == []
    assert (await store.get_job("s1")).status == "running"
    assert await store.append_chunk("s1", "new") == 3
    await store.update_job("s1", status="complete")
    with pytest.raises(HistoryLostError):
        await read_all(jobs_b.subscribe, "s1", after=behind)
    events = await read_all(jobs_b.subscribe, "s1")
    assert [(event.index, event.data) for event in events] == [(3, "new"), (4, None)]


async def test_a_reader_that_is_behind_a_clearing_hears_of_it(store, jobs_b):
    """In mid-iteration: never a silent gap, never a hang."""
    await store.create_job("s1", "alice")
    await fill(store, "s1", "a")
    async with jobs_b.subscribe("s1") as events:
        await take(events, 1)
        await fill(store, "s1", *range(300))
        await store.clear_content_state("s1")
        await fill(store, "s1", "after")
        got = ["a"]
        try:
            while got[-1] != "after":
                got += [event.data for event in await take(events, 1)]
        except HistoryLostError:
            assert got == ["a", *range(len(got) - 1)]
        else:
            assert got == ["a", *range(300), "after"]


async def test_clearing_an_ended_job_keeps_its_end_and_its_usage(store, store_b, jobs_b):
    """The terminal record is still read, the usage can still be claimed."""
    await store.create_job("s1", "alice")
    await fill(store, "s1", step("a", 0), text("a", "x"))
    await store.record_usage("s1", {"input_tokens": 3})
    await store.update_job("s1", status="complete", final_event='"end"')
    await store_b.clear_content_state("s1")
    (end,) = await read_all(jobs_b.subscribe, "s1")
    assert (end.type, end.data, end.index) == ("done", "end", 2)
    assert await store.get_content_parts("s1") is None
    assert [entry.input_tokens for entry in await store_b.claim_usage("s1")] == [3]
    assert (await store.get_job("s1")).status == "complete"


# -- resume state -----------------------------------------------------------------------------------------------


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
