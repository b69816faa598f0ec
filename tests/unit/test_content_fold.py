"""Folding events into content: the recorded behaviour of two versions, and the default."""

from __future__ import annotations

import copy

import pytest
from librechat import agent, calls, card, delta, done, ended, said, steer, step, text, think, tool

from natsjobs.content import ContentFold, fold
from natsjobs.errors import InvalidArgumentError

MODES = ["3.1", "3.6", None]


SAME = object()
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
UPDATE = agent(0)["data"]
AGENT_TEXT = [{"type": "text", "text": "x", "agentId": "a1", "groupId": 2}]
AUTH = {"auth": "https://example.com/login", "expires_at": 17}

VECTORS = {
    "one part instead of a list": (
        [step("s1", 0), text("s1", "a"), delta("s1", {"type": "text", "text": "b"})], said("ab"), SAME,
    ),
    "several parts in one delta": ([step("s1", 0), text("s1", "a", "b")], said("a"), said("ab")),
    "steps that take turns": (
        [step("a", 0), step("b", 1), text("b", "B1"), text("a", "A1"), text("b", "B2")], said("A1", "B1B2"), SAME,
    ),
    "two steps at one index": ([step("a", 0), text("a", "x"), step("b", 0), text("b", "y")], said("xy"), SAME),
    "unknown step": ([text("s1", "x")], [], SAME),
    "think, then text in its slot": (
        [step("s1", 0), think("s1", "t"), text("s1", "a")], [{"type": "think", "think": "t"}], SAME,
    ),
    "empty text": ([step("s1", 0), text("s1", "")], said(""), SAME),
    "unnamed arguments": (
        [calls("s1", 0, ("c1", "f", "")), tool("s1", '{"a"'), tool("s1", ":1}")], [card("c1", "f", "")], SAME,
    ),
    "named arguments": ([calls("s1", 0, ("c1", "f", "{")), tool("s1", "}", "f")], [card("c1", "f", "{}")], SAME),
    "an object, then a string": (
        [calls("s1", 0, ("c1", "f", {"a": 1})), tool("s1", "text", "f")], [card("c1", "f", "text")], SAME,
    ),
    "no call listed, unnamed": ([calls("s1", 0), tool("s1", "{")], [{"type": "tool_call"}], []),
    "no call listed, named": (
        [calls("s1", 0), tool("s1", "", "f", "c1", 0)], [card("", "f", "")], [card("c1", "f", "")],
    ),
    "completion without arguments and name": (
        [calls("s1", 0, ("c1", "f", "{}")), done("s1", "c1", "", None, "out")], [ended("c1", "f", "{}", "out")], SAME,
    ),
    "completion of something unknown": ([done("s9", "c9", "f", "{}", "out")], [], SAME),
    "the same completion twice": (
        [calls("s1", 0, ("c1", "f", "")), *[done("s1", "c1", "f", "{}", "out")] * 2],
        [ended("c1", "f", "{}", "out")], SAME,
    ),
    "the same step twice": ([calls("s1", 0, ("c1", "f", "{"))] * 2, [card("c1", "f", "{{")], SAME),
    "the same text twice": ([step("s1", 0), text("s1", "ab"), text("s1", "ab")], said("abab"), SAME),
    "agent and group": ([step("s1", 0, agentId="a1", groupId=2), text("s1", "x")], AGENT_TEXT, SAME),
    "agent update before a text": ([agent(0), step("s1", 1), text("s1", "x")], [UPDATE, *said("x")], SAME),
    "an image": ([step("s1", 0), delta("s1", [IMAGE])], [{"type": "image_url"}], SAME),
    "a login": (
        [calls("s1", 0, ("c1", "f", "")), tool("s1", "", "f", **AUTH)],
        [card("c1", "f", "")], [card("c1", "f", "", **AUTH)],
    ),
}  # fmt: skip
"""Input, the result of 3.1, the result of 3.6."""

BY_VERSION = [
    pytest.param(version, events, old if version == "3.1" or new is SAME else new, id=f"{name}, {version}")
    for name, (events, old, new) in VECTORS.items()
    for version in ("3.1", "3.6")
]


@pytest.mark.parametrize(("version", "events", "expected"), BY_VERSION)
def test_recorded_vectors_are_reproduced_exactly(version, events, expected):
    """Every probe of both versions."""
    assert fold(events, compat=version) == expected


DIFFERENT_BY_DEFAULT = {"unnamed arguments": [card("c1", "f", '{"a":1}')]}


@pytest.mark.parametrize("name", VECTORS)
def test_the_default_is_3_6_with_unnamed_arguments(name):
    """Nothing else differs."""
    events, old, new = VECTORS[name]
    assert fold(events) == DIFFERENT_BY_DEFAULT.get(name, old if new is SAME else new)


# -- text and thoughts (93, 94) ---------------------------------------------------------------------------------


@pytest.mark.scenario(93)
@pytest.mark.parametrize("mode", MODES)
def test_text_fragments_join_and_thoughts_come_in_order(mode):
    """Two steps, two parts; an empty delta list changes nothing."""
    events = [step("t", 0), think("t", "h"), think("t", "m"), step("s", 1), text("s", "a"), text("s"), text("s", "b")]
    assert fold(events, compat=mode) == [{"type": "think", "think": "hm"}, {"type": "text", "text": "ab"}]


@pytest.mark.scenario(94)
@pytest.mark.parametrize("mode", MODES)
def test_what_fits_nowhere_is_ignored(mode):
    """Unknown steps, and another type in a slot that is taken, in any order."""
    events = [
        text("no", "x"),
        think("no", "x"),
        tool("no", "x", "f", "c"),
        done("no", "c", "f", "", "x"),
        step("s", 0),
        text("s", "a"),
        think("s", "no"),
        tool("s", "{}", "f"),
        done("s", "c", "f", "{}", "no"),
    ]
    assert fold(events, compat=mode) == said("a")


@pytest.mark.parametrize("mode", MODES)
def test_a_longer_type_name_goes_into_its_slot(mode):
    """``text_delta`` is text; the slot keeps the plain name."""
    longer = delta("s", [{"type": "text_delta", "text": "b"}])
    assert fold([step("s", 0), text("s", "a"), longer], compat=mode) == said("ab")


def test_ids_of_tool_calls_stay_with_the_delta_that_brings_them():
    """A later text delta without them loses them; citations alone do not, and citations accumulate."""
    ids = {"type": "text", "text": "a", "tool_call_ids": ["c1"]}
    cited = [{"type": "text", "citations": [{"n": n}]} for n in (1, 2)]
    begun = [step("s", 0), delta("s", [ids])]
    assert fold([*begun, delta("s", cited)]) == [{**ids, "citations": [{"n": 1}, {"n": 2}]}]
    lost = fold([*begun, delta("s", cited), text("s", "b")])
    assert lost == [{"type": "text", "text": "ab", "citations": [{"n": 1}, {"n": 2}]}]
    assert fold([*begun, text("s", "b")], compat="3.1") == said("ab")


# -- tool calls (95, 96) ----------------------------------------------------------------------------------------


@pytest.mark.scenario(95)
@pytest.mark.parametrize("mode", ["3.6", None])
def test_a_tool_call_ends_with_its_output_and_stays_so(mode):
    """Step, named arguments, completion without arguments; what comes late changes nothing."""
    events = [
        calls("s", 0, ("c1", "f", "")),
        tool("s", '{"q":', "f"),
        tool("s", "1}", "f"),
        done("s", "c1", "f", None, "out"),
    ]
    late = [tool("s", "late", "f", "c1", 0), tool("s", "late"), calls("s", 0, ("c1", "f", "late"))]
    assert fold([*events, *late], compat=mode) == [ended("c1", "f", '{"q":1}', "out")]


def test_in_3_1_a_late_named_delta_erases_the_output():
    """As that version did; an unnamed one changed nothing there."""
    events = [calls("s", 0, ("c1", "f", "{}")), done("s", "c1", "f", None, "out"), tool("s", "late")]
    assert fold(events, compat="3.1") == [ended("c1", "f", "{}", "out")]
    assert fold([*events, tool("s", "!", "f")], compat="3.1") == [card("c1", "f", "{}!")]


@pytest.mark.scenario(96)
@pytest.mark.parametrize("mode", ["3.6", None])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_completions_find_their_own_cards(mode, order):
    """By id and in any order, also when the step they name is unknown; ids that nobody knows are dropped."""
    listed = [("c0", "f", ""), ("c1", "f", ""), ("c2", "g", "")]
    ends = [done("s", "c0", "f", "0", "r0"), done("gone", "c1", "f", "1", "r1"), done("s", "c2", "g", "2", "r2")]
    events = [calls("s", 0, *listed), done("s", "c9", "h", "9", "no"), *[ends[n] for n in order]]
    assert fold(events, compat=mode) == [
        ended("c0", "f", "0", "r0"),
        ended("c1", "f", "1", "r1"),
        ended("c2", "g", "2", "r2"),
    ]


@pytest.mark.parametrize("mode", ["3.6", None])
def test_fragments_of_parallel_calls_find_their_cards(mode):
    """By id, then by the number that the id came with, then the first card without a number; else they are dropped."""
    events = [
        calls("s", 0, ("c0", "f", ""), ("c1", "g", "")),
        tool("s", "B", "g", "c1", 1),
        tool("s", "A", "f", index=0),
        tool("s", "b", "g", index=1),
        tool("s", "a", "f", index=0),
        tool("s", "lost", "f"),
        tool("s", "C", "h", "c2", 2),
        tool("s", "c", "h", index=2),
    ]
    assert fold(events, compat=mode) == [card("c0", "f", "Aa"), card("c1", "g", "Bb"), card("c2", "h", "Cc")]


@pytest.mark.parametrize("mode", ["3.6", None])
def test_calls_that_share_a_number_are_kept_apart_by_their_ids(mode):
    """Some providers number every call 0: a fragment that names its call never goes into another's card."""
    events = [calls("s", 0), tool("s", "A", "f", "c0", 0), tool("s", "B", "g", "c1", 0), tool("s", "b", "g", index=0)]
    assert fold(events, compat=mode) == [card("c0", "f", "A"), card("c1", "g", "Bb")]


@pytest.mark.parametrize("mode", ["3.6", None])
def test_calls_with_the_same_id_in_two_steps_are_two_cards(mode):
    """Some providers use the tool's name as the id; each step's completion is its own."""
    events = [
        calls("s0", 0, ("f", "f", "0")), done("s0", "f", "f", None, "r0"),
        calls("s1", 1, ("f", "f", "1")), done("s1", "f", "f", None, "r1"),
    ]  # fmt: skip
    assert fold(events, compat=mode) == [ended("f", "f", "0", "r0"), ended("f", "f", "1", "r1")]


@pytest.mark.parametrize("mode", ["3.6", None])
def test_steps_at_the_same_index_do_not_mix_their_calls(mode):
    """The second step's call gets a card behind the first."""
    events = [calls("a", 0, ("c0", "f", "A")), calls("b", 0, ("c1", "g", "B")), tool("b", "b", "g", index=0)]
    assert fold(events, compat=mode) == [card("c0", "f", "A"), card("c1", "g", "Bb")]


def test_unnamed_fragments_wait_for_the_name_of_their_call():
    """No card without a name is shown, and none of its arguments is lost once there is one."""
    events = [calls("s", 0), tool("s", '{"a"', index=0), tool("s", ":", index=0)]
    assert fold(events) == []
    assert fold([*events, tool("s", "1}", "f", "c1", 0)]) == [card("c1", "f", '{"a":1}')]
    assert fold([*events, done("s", "c1", "f", None, "out")]) == [ended("c1", "f", '{"a":', "out")]


def test_an_empty_fragment_does_not_erase_an_object_by_default():
    """A completion without arguments keeps it too."""
    events = [calls("s", 0, ("c1", "f", {"a": 1})), tool("s", "", index=0), tool("s", "", "f")]
    assert fold(events) == [card("c1", "f", {"a": 1})]
    assert fold([*events, done("s", "c1", "f", None, "out")]) == [ended("c1", "f", {"a": 1}, "out")]


@pytest.mark.parametrize("mode", ["3.6", None])
def test_the_outcome_is_copied_at_the_end(mode):
    """From the completion only, beside what a login left."""
    events = [calls("s", 0, ("c1", "f", "{}")), tool("s", "", "f", outcome="no", **AUTH)]
    assert fold([*events, done("s", "c1", "f", None, "out", outcome={"ok": True})], compat=mode) == [
        card("c1", "f", "{}", progress=1, output="out", outcome={"ok": True}, **AUTH)
    ]


def test_parts_of_server_tools_are_stored_as_they_are():
    """And summaries: text is joined, the completion replaces it."""
    called = {"type": "toolCall", "toolCall": {"deep": [1]}, "more": None}
    assert fold([step("s", 0), delta("s", called)]) == [called]
    growing = [delta("s", {"type": "summary", "content": piece}) for piece in ("a", "b")]
    assert fold([step("s", 0), *growing]) == [{"type": "summary", "content": "ab"}]
    lists = [delta("s", {"type": "summary", "content": [piece]}) for piece in ("a", "b")]
    assert fold([step("s", 0), *lists]) == [{"type": "summary", "content": ["a", "b"]}]
    end = {"result": {"id": "s", "type": "summary", "summary": {"type": "summary", "content": "whole", "tokens": 3}}}
    events = [step("s", 0), *growing, {"event": "on_run_step_completed", "data": end}]
    assert fold(events) == [{"type": "summary", "content": "whole", "tokens": 3}]


# -- places (97, 98) --------------------------------------------------------------------------------------------


@pytest.mark.scenario(97)
@pytest.mark.parametrize("mode", MODES)
def test_agents_are_marked_and_holes_removed(mode):
    """On text and tool parts; an agent update keeps its slot and its newest form."""
    marks = {"agentId": "a1", "groupId": 0}
    events = [
        agent(1, agentId="old"), agent(1), step("s", 3, **marks), text("s", "x"),
        calls("c", 7, ("c1", "f", ""), **marks), step("blank", 9, agentId=" ", groupId=None), text("blank", "y"),
    ]  # fmt: skip
    assert fold(events, compat=mode) == [
        agent(1)["data"],
        {"type": "text", "text": "x", **marks},
        {**card("c1", "f", ""), **marks},
        {"type": "text", "text": "y"},
    ]


@pytest.mark.scenario(97)
def test_further_calls_of_a_step_carry_its_agent():
    """Listed ones and those that only a delta brings."""
    events = [calls("s", 0, ("c0", "f", ""), ("c1", "f", ""), agentId="a1"), tool("s", "", "f", "c2")]
    assert [part["agentId"] for part in fold(events)] == ["a1"] * 3


@pytest.mark.parametrize(("mode", "expected"), [("3.1", ["A", "B"]), ("3.6", ["B", "A"]), (None, ["B", "A"])])
def test_a_lower_index_that_comes_later(mode, expected):
    """Goes to its index in 3.1, and to the end since 3.6: what was drawn does not move."""
    events = [step("b", 1), text("b", "B"), step("a", 0), text("a", "A")]
    assert fold(events, compat=mode) == said(*expected)


@pytest.mark.scenario(98)
@pytest.mark.parametrize("mode", ["3.6", None])
def test_steers_land_between_the_texts_around_them(mode):
    """At their index; what comes later carries shifted indexes; the same steer again changes nothing."""
    part = steer(1, "shorter")["data"]["part"]
    events = [
        step("a", 0),
        text("a", "A"),
        steer(1, "shorter"),
        step("b", 2),
        text("b", "B"),
        steer(1, "shorter"),
        text("b", "b"),
    ]
    assert fold(events, compat=mode) == [*said("A"), part, *said("Bb")]


@pytest.mark.scenario(98)
@pytest.mark.parametrize("mode", ["3.6", None])
def test_a_steer_moves_what_is_at_its_place(mode):
    """Also a slot that has no content yet; its step and its new index still reach it."""
    part = steer(1, "shorter")["data"]["part"]
    events = [
        step("a", 0), text("a", "A"), step("b", 1), text("b", "B"), calls("c", 2, ("c1", "f", "")),
        steer(1, "shorter"), text("b", "b"), step("d", 2), text("d", "!"), step("e", 4), text("e", "E"),
    ]  # fmt: skip
    assert fold(events, compat=mode) == [*said("A"), part, *said("Bb!"), card("c1", "f", ""), *said("E")]


def test_3_1_knows_no_steers():
    """They are left alone."""
    assert fold([step("a", 0), text("a", "A"), steer(1, "x")], compat="3.1") == said("A")


# -- run steps (76) ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_run_steps_are_kept_by_id_in_order_of_first_appearance(mode):
    """The newest form of each stands; a completion with an id of its own counts as one."""
    completed = {"event": "on_run_step_completed", "data": {"id": "b", "result": {}}}
    fold_ = ContentFold(compat=mode)
    for event in [step("a", 0), step("b", 1), step("a", 0, status="done"), completed]:
        fold_.add(event)
    assert fold_.run_steps == [step("a", 0, status="done")["data"], completed["data"]]


@pytest.mark.scenario(76)
@pytest.mark.parametrize(("mode", "index"), [("3.1", 5), ("3.6", 1), (None, 1)])
def test_run_steps_carry_the_position_of_their_card(mode, index):
    """Since 3.6; the event itself is not changed, and steps of messages keep their index."""
    events = [step("a", 2), text("a", "A"), calls("c", 5, ("c1", "f", "")), calls("empty", 9)]
    before = copy.deepcopy(events)
    fold_ = ContentFold(compat=mode)
    for event in events:
        fold_.add(event)
    assert [(one["id"], one["index"]) for one in fold_.run_steps] == [("a", 2), ("c", index), ("empty", 9)]
    assert fold_.parts[1]["tool_call"]["id"] == "c1"
    assert events == before


@pytest.mark.parametrize("compat", ["3.0", "", "latest", 3.1, True, []])
def test_an_unknown_version_is_refused(compat):
    """The error names the argument."""
    with pytest.raises(InvalidArgumentError, match=r"3\.1") as refused:
        ContentFold(compat=compat)
    assert refused.value.field == "compat"
    with pytest.raises(InvalidArgumentError):
        fold([], compat=compat)
