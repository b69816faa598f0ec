"""Records are frozen values, and their stored and wire forms stay readable over versions."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import msgspec
import pytest

from natsjobs import config, models, usage
from natsjobs.models import (
    AbortResult,
    EndReason,
    EventType,
    Job,
    JobChanges,
    JobFields,
    JobStatus,
    ResumeState,
    StreamEvent,
    UsageMetadata,
    UserMessage,
    to_dict,
)
from natsjobs.usage import UsageTotals, usage_from

GOLDEN = Path(__file__).parent / "golden"

MESSAGE = UserMessage(message_id="m1", parent_message_id="m0", conversation_id="conv-1", text="Grüße 👋")
JOB = Job(
    stream_id="conv-1",
    user_id="alice@example.com",
    status=JobStatus.ABORTED,
    created_at=1_767_225_600_000,
    completed_at=1_767_225_660_000,
    conversation_id="conv-1",
    error="it broke",
    user_message=MESSAGE,
    response_message_id="m2",
    sender="Claude",
    sync_sent=True,
    final_event='{"final":true}',
    endpoint="anthropic",
    icon_url="https://example.com/i.png",
    model="m-1",
    prompt_tokens=12,
    generation="00g1",
    owner="worker-0-abc",
    end_reason=EndReason.ABORT,
    last_active_at=1_767_225_650_000,
    tenant_id="acme",
    metadata={"deep": {"list": [1, None, "x"]}},
)
USAGE = UsageMetadata(
    id="u1",
    input_tokens=1,
    output_tokens=2,
    total_tokens=3,
    model="m-1",
    provider="p",
    input_token_details={"cache_creation": 4, "cache_read": 5},
    cache_creation_input_tokens=6,
    cache_read_input_tokens=7,
    extra={"agentId": "a1", "deep": [1, None]},
)
PARTS = [{"type": "text", "text": "Hel"}]
RECORDS = {
    "job": JOB,
    "job_smallest": Job(stream_id="s", user_id="u", status=JobStatus.RUNNING, created_at=1, generation="g"),
    "user_message": MESSAGE,
    "abort_result": AbortResult(
        success=True,
        job_data=JOB,
        content=PARTS,
        final_event={"stopped": [True, None]},
        text="Hel",
        collected_usage=[USAGE],
        acknowledged=True,
    ),
    "abort_result_refused": AbortResult(success=False, reason="ended"),
    "resume_state": ResumeState(
        generation="00g1",
        status=JobStatus.RUNNING,
        cursor="00g1-7",
        run_steps=[{"id": "s1", "index": 0}],
        aggregated_content=PARTS,
        user_message=MESSAGE,
        response_message_id="m2",
        conversation_id="conv-1",
        sender="Claude",
        collected_usage=[USAGE],
    ),
}


def golden(name):
    """The bytes and the value of a golden file."""
    raw = (GOLDEN / f"{name}.json").read_bytes()
    return raw, json.loads(raw)


# -- forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDS)
def test_the_wire_form_is_the_golden_one(name):
    """Names, order of magnitude, what is left out: as it was written down once."""
    _, value = golden(name)
    assert to_dict(RECORDS[name]) == value
    assert json.loads(json.dumps(to_dict(RECORDS[name]))) == value


@pytest.mark.parametrize("name", ["job", "job_smallest", "user_message"])
def test_a_golden_file_is_still_read(name):
    """What an earlier version stored is the same record."""
    raw, _ = golden(name)
    assert msgspec.json.decode(raw, type=type(RECORDS[name])) == RECORDS[name]


def test_usage_is_read_with_the_fields_it_does_not_know():
    """They are ``extra``, and flat again on the wire."""
    _, value = golden("usage")
    assert to_dict(USAGE) == value
    assert usage_from(value) == USAGE


def test_a_job_of_a_newer_replica_is_read():
    """Fields it does not know are ignored; unknown status and end reason are kept, and do not count as the end."""
    raw, value = golden("job_newer")
    job = msgspec.json.decode(raw, type=Job)
    assert (job.status, job.end_reason) == ("requires_action", "preempted")
    assert not job.status.is_terminal
    assert not job.status.is_known
    assert job.end_reason is not None
    assert not job.end_reason.is_known
    unknown = {"pendingAction", "epoch"}
    assert to_dict(job) == {name: item for name, item in value.items() if name not in unknown}


@pytest.mark.parametrize(
    ("name", "event"),
    [
        (
            "stream_event",
            StreamEvent(
                type=EventType.EVENT, index=7, cursor="00g1-7", generation="00g1", raw='{"ü": [1.5, null]}'.encode()
            ),
        ),
        (
            "stream_event_aborted",
            StreamEvent(
                type=EventType.ABORTED,
                index=8,
                cursor="00g1-8",
                generation="00g1",
                raw=b"null",
                end_reason=EndReason.REPLACED,
            ),
        ),
    ],
)
def test_a_stream_event_shows_its_value(name, event):
    """``data`` is there also when it is null: absent would say nothing."""
    _, value = golden(name)
    assert to_dict(event) == value
    assert event.data is event.data
    assert event.is_terminal == (name == "stream_event_aborted")


def test_the_wire_form_belongs_to_the_caller():
    """Changing it does not change the record."""
    for record in [*RECORDS.values(), USAGE]:
        before = to_dict(record)
        spoiled = to_dict(record)
        for item in spoiled.values():
            if isinstance(item, dict | list):
                item.clear()
        assert to_dict(record) == before


def test_every_golden_file_is_used():
    """None is left over from a name that changed."""
    used = {*RECORDS, "usage", "job_newer", "stream_event", "stream_event_aborted"}
    assert {path.stem for path in GOLDEN.glob("*.json")} == used


def test_totals_have_a_wire_form():
    """Like every record."""
    assert to_dict(UsageTotals(calls=1))["calls"] == 1


# -- values -----------------------------------------------------------------------------------------------------


STRUCTS = [
    kind
    for module in (models, config, usage)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == module.__name__
]


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_every_public_struct_is_frozen_and_takes_keywords_only(kind):
    """So nothing that was read can change, and fields can be added in between."""
    assert kind.__struct_config__.frozen
    if kind.__struct_fields__:
        with pytest.raises(TypeError, match=r"[Ee]xtra positional"):
            kind("value")


def test_a_record_cannot_be_changed():
    """Assignment is an error."""
    for record in (*RECORDS.values(), USAGE):
        with pytest.raises(AttributeError):
            setattr(record, record.__struct_fields__[0], "changed")


def test_records_and_their_enums_can_be_copied_and_pickled():
    """Unknown values included."""
    job = msgspec.structs.replace(JOB, status=JobStatus("queued"), end_reason=EndReason("new reason"))
    for again in (copy.copy(job), copy.deepcopy(job), pickle.loads(pickle.dumps(job))):
        assert again == job
        assert isinstance(again.status, JobStatus)


@pytest.mark.parametrize("kind", [JobStatus, EndReason, EventType])
def test_an_open_enum_keeps_what_it_does_not_know(kind):
    """As itself: equal to its string, the same in sets, no new member; other types are refused."""
    unknown, members = kind("brand_new"), list(kind)
    assert unknown == "brand_new" == unknown.value == str(unknown)
    assert {unknown: 1}["brand_new"] == 1
    assert unknown == kind("brand_new")
    assert not unknown.is_known
    assert "brand_new" in repr(unknown)
    assert list(kind) == members
    assert all(member.is_known and kind(member.value) is member for member in members)
    for value in (None, 5, b"running", ["running"]):
        with pytest.raises(ValueError, match="is not a valid"):
            kind(value)


def test_the_ends_are_these():
    """Statuses and events alike; everything else goes on."""
    assert {status.value for status in JobStatus if status.is_terminal} == {"complete", "error", "aborted"}
    ends = {
        kind.value
        for kind in EventType
        if StreamEvent(type=kind, index=0, cursor="c", generation="g", raw=b"1").is_terminal
    }
    assert ends == {"done", "error", "aborted"}
    assert not JobStatus("paused").is_terminal
    assert not StreamEvent(type=EventType("new"), index=0, cursor="c", generation="g", raw=b"1").is_terminal


def test_fields_that_can_be_set_are_fields_of_the_job():
    """Under the same names, and nothing that identifies or owns it."""
    fields = set(Job.__struct_fields__)
    settable = set(JobChanges.__annotations__)
    assert set(JobFields.__annotations__) <= settable <= fields
    assert fields - settable == {
        "stream_id",
        "user_id",
        "created_at",
        "generation",
        "owner",
        "end_reason",
        "last_active_at",
        "tenant_id",
    }


@pytest.mark.parametrize(
    ("usage", "creation", "read"),
    [
        (UsageMetadata(), 0, 0),
        (UsageMetadata(input_token_details={"cache_creation": 1, "cache_read": 2}), 1, 2),
        (UsageMetadata(cache_creation_input_tokens=3, cache_read_input_tokens=4), 3, 4),
        (UsageMetadata(input_token_details={"cache_creation": 0}, cache_creation_input_tokens=5), 5, 0),
        (USAGE, 4, 5),
    ],
)
def test_cache_tokens_are_read_from_either_form(usage, creation, read):
    """The first value that is not 0, else 0."""
    assert (usage.cache_creation, usage.cache_read) == (creation, read)


def test_defaults_are_not_shared():
    """Two records never hold the same list."""
    one, two = AbortResult(success=False), AbortResult(success=False)
    assert one.content is not two.content
    first, second = UsageMetadata(), UsageMetadata()
    assert first.extra is not second.extra
