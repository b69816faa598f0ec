"""Content and run steps: folded from the log on any replica, and the live objects that win over it."""

from __future__ import annotations

import gc

import pytest
from making import args, completed, fill, step, text, think, tool_step

from natsjobs import JobNotFoundError


async def folded(replica, replica_b, *events):
    """What B makes of events that A appended."""
    await replica.store.create_job("s1", "alice")
    await fill(replica.store, "s1", *events)
    return await replica_b.store.get_content_parts("s1")


# -- content -----------------------------------------------------------------------------------------------------


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


# -- live objects ------------------------------------------------------------------------------------------------


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


# -- run steps ---------------------------------------------------------------------------------------------------


@pytest.mark.scenario(32)
@pytest.mark.b_writes
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
