"""What a fold promises for any input: it never raises, never changes what it is given, and costs what is added."""

from __future__ import annotations

import copy
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from librechat import agent, calls, delta, done, steer, step, text, tool

from natsjobs.content import ContentFold, fold

MODES = ["3.1", "3.6", None]

AUTH = {"auth": "https://example.com/login", "expires_at": [17]}
EVERYTHING = [
    agent(0), calls("s", 1, ("c1", "f", {"a": [1]}), ("c2", "g", "")), tool("s", "x", "g", "c2", **AUTH),
    done("s", "c1", "f", {"b": [2]}, {"out": [3]}, outcome={"o": [4]}), step("t", 5), text("t", "x"),
    delta("t", {"type": "text", "text": "", "tool_call_ids": ["c1"], "citations": [{"c": 1}]}), steer(9, "more"),
    step("u", 10), delta("u", {"type": "toolCall", "toolCall": {"deep": [1]}}),
]  # fmt: skip


def spoil(value):
    """Change a JSON value wherever it can be changed."""
    inner = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list) else []
    for item in inner:
        spoil(item)
    if isinstance(value, dict | list):
        value.clear()


@pytest.mark.parametrize("mode", MODES)
def test_results_and_inputs_belong_to_the_caller(mode):
    """Events are not changed; changing them afterwards, or what was given out, changes nothing in the fold."""
    events = copy.deepcopy(EVERYTHING)
    fold_ = ContentFold(compat=mode)
    for event in events:
        fold_.add(event)
    assert events == EVERYTHING
    parts, steps = fold_.parts, fold_.run_steps
    expected = copy.deepcopy((parts, steps))
    spoil(events)
    assert (fold_.parts, fold_.run_steps) == expected
    spoil(parts)
    spoil(steps)
    assert (fold_.parts, fold_.run_steps) == expected
    assert json.loads(json.dumps(fold_.parts)) == fold_.parts


@pytest.mark.parametrize("mode", MODES)
def test_reading_between_events_changes_nothing(mode):
    """Parts after every event are those of a fold of the events so far."""
    events = [*EVERYTHING, calls("n", 20), tool("n", "{", index=0), tool("n", "}", "f", "c9", 0), *EVERYTHING]
    fold_ = ContentFold(compat=mode)
    for number, event in enumerate(events, start=1):
        fold_.add(event)
        assert fold_.parts == fold(events[:number], compat=mode)


NAMES = st.sampled_from(
    [
        "on_run_step",
        "on_message_delta",
        "on_reasoning_delta",
        "on_run_step_delta",
        "on_run_step_completed",
        "on_agent_update",
        "on_steer_applied",
        "other",
    ]
)
INDEXES = st.sampled_from([0, 1, 2, -1, 10**12, 10**30, True, 1.5, "0", None])
IDS = st.sampled_from(["a", "b", "c", "", " ", None, 5, [], {}])
TYPES = st.sampled_from(
    ["text", "text_delta", "think", "tool_call", "tool_calls", "agent_update", "summary", "toolCall", "steer", "", 7]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
KEYS = st.sampled_from(["id", "index", "type", "text", "args", "name", "tool_call", "content", "result", "agentId"])
JUNK = st.recursive(LEAVES, lambda x: st.lists(x, max_size=3) | st.dictionaries(KEYS, x, max_size=4), max_leaves=8)


def some(**members):
    """An object with any of these members, or junk."""
    return st.fixed_dictionaries({}, optional=members) | JUNK


CALL = some(id=IDS, index=INDEXES, name=IDS, args=JUNK, output=JUNK)
CALLS = st.lists(CALL, max_size=3) | JUNK
PART = some(
    type=TYPES,
    text=JUNK,
    think=JUNK,
    tool_call=CALL,
    agent_update=JUNK,
    content=JUNK,
    citations=JUNK,
    tool_call_ids=JUNK,
    steerId=IDS,
)
DATA = some(
    id=IDS,
    index=INDEXES,
    agentId=IDS,
    groupId=IDS,
    type=TYPES,
    part=PART,
    agent_update=some(index=INDEXES),
    stepDetails=some(type=TYPES, tool_calls=CALLS),
    delta=some(type=TYPES, tool_calls=CALLS, content=st.lists(PART, max_size=2) | PART),
    result=some(id=IDS, type=TYPES, tool_call=CALL, summary=PART),
)
EVENT = st.fixed_dictionaries({"event": NAMES | IDS}, optional={"data": DATA}) | JUNK


def check_survives(mode, events):
    """Nothing raises, and the fold still works afterwards."""
    fold_ = ContentFold(compat=mode)
    for event in events:
        fold_.add(event)
    for part in fold_.parts:
        assert isinstance(part["type"], str)
        json.dumps(part)
    for one in fold_.run_steps:
        assert isinstance(one["id"], str)
    fold_.add(step("the end", 10**50))
    fold_.add(text("the end", "after all that"))
    assert fold_.parts[-1]["text"] == "after all that"


@pytest.mark.parametrize("mode", MODES)
@given(events=st.lists(EVENT, max_size=12))
def test_garbage_never_raises_and_is_not_changed(mode, events):
    """Whatever arrives, what comes out is content."""
    before = copy.deepcopy(events)
    check_survives(mode, events)
    assert events == before


DEEP: list = []
for _ in range(5000):
    DEEP = [DEEP]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "events",
    [
        [b"bytes", object(), {1, 2}, None, 1.5, ["on_run_step"], {"event": ["on_run_step"], "data": {}}, {5: 6}],
        [step(7, 0), step("s", -1), step("s", 1.0), step("s", True), text("s", "no")],
        [step("s", 10**12), text("s", "x"), agent(10**30), steer(10**40, "y"), step("t", 0), text("t", "z")],
        [calls("s", 0, ("c1", "f", "")), tool("s", DEEP, "f"), step("d", 1, deep=DEEP), steer(1, DEEP)],
        [calls("s", 0, ("c1", "f", "")), done("s", "c1", "f", DEEP, DEEP), delta("s", DEEP)],
    ],
)
def test_values_that_can_never_be_right_are_left_alone(mode, events):
    """No JSON at all, indexes that are none or huge, and nesting deeper than the interpreter's stack."""
    check_survives(mode, events)


@pytest.mark.parametrize("mode", MODES)
def test_a_long_answer_costs_its_length_and_not_its_square(mode):
    """100,000 fragments, 20 MB: copying the text so far for each of them would move half a terabyte."""
    begun = time.monotonic()
    fragments = [text("s", "x" * 200), tool("c", "y" * 200, "f")] * 50_000
    said, called = fold([step("s", 0), calls("c", 1, ("c1", "f", "")), *fragments], compat=mode)
    assert (len(said["text"]), len(called["tool_call"]["args"])) == (10_000_000, 10_000_000)
    assert time.monotonic() - begun < 30
