"""Bad input gets a clear, typed error that names the field, before anything is sent; odd ids are good input."""

from __future__ import annotations

import msgspec
import pytest
from waiting import Calls, Heard, check_whole, read_all, soon

from natsjobs import EventTooLargeError, InvalidIdError, UserMessage

BAD_IDS = {
    "empty": "",
    "too long": "x" * 257,
    "too long in UTF-8": "ü" * 129,
    "lone surrogate": "a\ud800b",
    "bytes": b"s1",
    "None": None,
    "number": 7,
}
ODD_IDS = [
    ".",
    "..",
    "a.b",
    "a.b.c",
    "a",
    "*",
    ">",
    "a.*",
    "a.>",
    " ",
    "a b",
    "\n",
    "a\r\nb",
    "\t",
    "\x00",
    "$JS.API.>",
    "_INBOX.x",
    "/",
    "a/b\\c",
    "=",
    "=2E",
    "=2e",
    "a=2Eb",
    "%2E",
    "alice@example.com",
    "é",
    "e\u0301",
    "日本語",
    "👋🏽",
    "\U0010ffff",
    '"',
    "'; --",
    "{}",
    "job",
    "active",
    "A",
    "x" * 256,
    "." * 256,
]


# -- ids ---------------------------------------------------------------------------------------------------------


async def _calls(replica, bad):
    """Every call that takes a stream id, made with a bad one."""
    store, transport, jobs = replica.store, replica.transport, replica.manager
    yield "stream_id", store.create_job(bad, "alice")
    for name, *more in (
        ("get_job",),
        ("has_job",),
        ("update_job",),
        ("delete_job",),
        ("get_content_parts",),
        ("get_run_steps",),
        ("save_run_steps", []),
        ("get_resume_state",),
        ("append_chunk", 1),
        ("clear_content_state",),
        ("get_collected_usage",),
        ("record_usage", {"input_tokens": 1}),
        ("claim_usage",),
        ("abort_job",),
    ):
        yield "stream_id", getattr(store, name)(bad, *more)
    for name, *more in (
        ("emit_chunk", 1),
        ("emit_done", 1),
        ("emit_error", "x"),
        ("flush",),
        ("emit_abort",),
        ("on_abort", Calls()),
        ("on_end", Calls()),
        ("count_subscribers",),
        ("count_events",),
        ("on_all_subscribers_left", Calls()),
        ("cleanup",),
    ):
        yield "stream_id", getattr(transport, name)(bad, *more)
    yield "stream_id", transport.subscribe(bad, on_chunk=Calls())
    yield "stream_id", read_all(transport.read, bad)
    yield "stream_id", read_all(jobs.subscribe, bad)
    yield "stream_id", jobs.abort(bad)
    yield "stream_id", jobs.claim_usage(bad)
    yield "stream_id", jobs.resume_state(bad)
    yield "stream_id", jobs.get(bad)
    yield "stream_id", jobs.count_subscribers(bad)
    yield "stream_id", jobs.count_events(bad)
    yield "stream_id", jobs.spawn(bad, Calls(), user_id="alice")
    yield "stream_id", _start(jobs, bad, "alice")
    yield "user_id", store.create_job("s1", bad)
    yield "user_id", store.get_active_job_ids_by_user(bad)
    yield "user_id", jobs.active(bad)
    yield "user_id", jobs.spawn("s1", Calls(), user_id=bad)
    yield "user_id", _start(jobs, "s1", bad)


async def _start(jobs, stream_id, user_id):
    async with jobs.start(stream_id, user_id=user_id):
        pytest.fail("started")


@pytest.mark.parametrize("bad", BAD_IDS.values(), ids=BAD_IDS.keys())
async def test_a_bad_id_is_refused_by_every_call(replica, bad):
    """InvalidIdError (a ValueError) names the field; nothing comes to be."""
    async for field, call in _calls(replica, bad):
        with pytest.raises(InvalidIdError) as refused:
            await soon(call)
        assert refused.value.field == field
        assert isinstance(refused.value, ValueError)
    assert await replica.store.list_jobs() == []
    assert replica.transport.get_tracked_stream_ids() == []


@pytest.mark.parametrize("field", ["tenant_id", "conversation_id"])
@pytest.mark.parametrize("bad", [7, "a\ud800b"], ids=["number", "lone surrogate"])
async def test_other_ids_of_a_job_are_checked_too(store, field, bad):
    """What is no text with a UTF-8 form is refused, naming the field; nothing comes to be."""
    with pytest.raises((ValueError, TypeError), match=field):
        await store.create_job("s1", "alice", **{field: bad})
    assert await store.get_job("s1") is None


async def test_the_id_limit_is_a_setting(backend):
    """A smaller one refuses earlier."""
    replica = await backend.replica(backend.config(limits={"id_bytes": 8}))
    await replica.store.create_job("x" * 8, "alice")
    with pytest.raises(InvalidIdError):
        await replica.store.create_job("x" * 9, "alice")


async def test_odd_ids_are_good_ids_and_never_meet(replica, replica_b):
    """Dots, wildcards, spaces, line ends, any script: every id has its own job, events, presence and end."""
    heard = {}
    for n, stream_id in enumerate(ODD_IDS):
        await replica.store.create_job(stream_id, f"user {stream_id[:200]}", sender=str(n))
        heard[stream_id] = Heard()
        await heard[stream_id].attach(replica_b.transport, stream_id)
    for stream_id in ODD_IDS:
        await replica.transport.emit_chunk(stream_id, stream_id)
        await replica.transport.flush(stream_id)
    assert {job.stream_id for job in await replica_b.store.list_jobs()} == set(ODD_IDS)
    for n, stream_id in enumerate(ODD_IDS):
        job = await replica_b.store.get_job(stream_id)
        assert (job.stream_id, job.sender) == (stream_id, str(n))
        assert await replica_b.store.get_active_job_ids_by_user(f"user {stream_id[:200]}") == [stream_id]
        assert replica_b.transport.get_subscriber_count(stream_id) == 1
    await replica.store.delete_job("*")
    await replica.store.delete_job(">")
    await replica.transport.emit_abort("a.>")
    for stream_id in ODD_IDS:
        if stream_id not in {"*", ">"}:
            await replica.transport.emit_done(stream_id, "end")
            await heard[stream_id].until(2)
            assert heard[stream_id].all == [("chunk", stream_id), ("done", "end")]
            check_whole(await read_all(replica_b.manager.subscribe, stream_id), [stream_id])


async def test_wildcards_in_user_and_tenant_match_nobody(store):
    """A user called ``*`` has her own jobs only."""
    await store.create_job("s1", "alice", tenant_id="t")
    await store.create_job("s2", "*", tenant_id="*")
    for wild in ("*", ">"):
        expected = ["s2"] if wild == "*" else []
        assert await store.get_active_job_ids_by_user(wild) == expected
        assert [job.stream_id for job in await store.list_jobs(user_id=wild)] == expected
        assert [job.stream_id for job in await store.list_jobs(tenant_id=wild)] == expected


# -- fields ------------------------------------------------------------------------------------------------------

BAD_FIELDS = {
    "user_message": [7, "text", {"text": "without an id"}, {"messageId": 7}],
    "response_message_id": [7, ["r"]],
    "sender": [7, b"x", "\ud800"],
    "sync_sent": ["yes", 1.5],
    "endpoint": [7],
    "icon_url": [7],
    "model": [{"name": "m"}],
    "prompt_tokens": ["7", 1.5],
    "metadata": [7, "x", [1], {"a": object()}, {"a": float("nan")}, {"a": "\ud800"}],
}


@pytest.mark.parametrize(("field", "bad"), [(field, bad) for field, values in BAD_FIELDS.items() for bad in values])
async def test_a_field_of_the_wrong_type_is_refused(store, field, bad):
    """On create and on update, naming the field; nothing of the call is stored."""
    with pytest.raises((TypeError, ValueError), match=field):
        await store.create_job("s1", "alice", **{field: bad})
    assert await store.get_job("s1") is None
    job = await store.create_job("s1", "alice", model="large", sender="me")
    with pytest.raises((TypeError, ValueError), match=field):
        await store.update_job("s1", endpoint="set with it" if field != "endpoint" else 7, **_with(field, bad))
    assert await store.get_job("s1") == job


def _with(field, bad):
    return {} if field == "endpoint" else {field: bad}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"status": "banana"}, "status"),
        ({"status": ""}, "status"),
        ({"status": 7}, "status"),
        ({"status": None}, "status"),
        ({"status": "complete", "final_event": "{not json"}, "final_event"),
        ({"status": "complete", "final_event": {"a": 1}}, "final_event"),
        ({"status": "error", "error": 7}, "error"),
        ({"completed_at": "now"}, "completed_at"),
        ({"conversation_id": 7}, "conversation_id"),
    ],
)
async def test_an_update_with_a_wrong_value_is_refused(store, changes, name):
    """A typed error that names the field, and the job stays as it was."""
    job = await store.create_job("s1", "alice")
    with pytest.raises((TypeError, ValueError), match=name):
        await store.update_job("s1", **changes)
    assert await store.get_job("s1") == job


@pytest.mark.parametrize("bad", ["banana", "", 7])
async def test_an_unknown_status_is_no_filter(store, bad):
    """A typed error that names it, not an empty list that hides the typo."""
    await store.create_job("s1", "alice")
    with pytest.raises(ValueError, match="status"):
        await store.list_jobs(status=bad)
    with pytest.raises(ValueError, match="status"):
        await store.get_job_count_by_status(bad)


async def test_if_running_is_replace_or_reject(store, jobs):
    """Anything else is refused, and the running job is untouched."""
    job = await store.create_job("s1", "alice")
    with pytest.raises(ValueError, match="if_running"):
        await store.create_job("s1", "alice", if_running="ignore")
    with pytest.raises(ValueError, match="if_running"):
        async with jobs.start("s1", user_id="alice", if_running="ignore"):
            pytest.fail("started")
    assert await store.get_job("s1") == job


@pytest.mark.parametrize("field", ["metadata", "user_message"])
async def test_a_record_that_would_be_too_large_is_refused(store, field):
    """EventTooLargeError names the field; a large final event is fine (the log holds it)."""
    large = "x" * 300_000
    value = {"a": large} if field == "metadata" else UserMessage(message_id="m", text=large)
    with pytest.raises(EventTooLargeError) as refused:
        await store.create_job("s1", "alice", **{field: value})
    assert refused.value.field == field
    assert await store.get_job("s1") is None
    job = await store.create_job("s1", "alice")
    with pytest.raises(EventTooLargeError) as refused:
        await store.update_job("s1", **{field: value})
    assert refused.value.field == field
    assert await store.get_job("s1") == job


@pytest.mark.parametrize("size", [300_000, 2_500_000], ids=["over a record", "over max_payload"])
async def test_a_large_final_event_ends_a_job_all_the_same(replica, replica_b, size):
    """Readers get it whole, and the record too."""
    final = {"text": "x" * size}
    await replica.store.create_job("s1", "alice")
    await replica.transport.emit_chunk("s1", "a")
    await replica.transport.emit_done("s1", final)
    events = await read_all(replica_b.manager.subscribe, "s1")
    assert (events[0].data, events[-1].type) == ("a", "done")
    assert events[-1].data == final
    job = await replica_b.store.get_job("s1")
    assert job.status == "complete"
    assert msgspec.json.decode(job.final_event) == final


async def test_a_long_error_text_ends_a_job_all_the_same(replica, replica_b):
    """It may be cut; the job has ended as an error."""
    await replica.store.create_job("s1", "alice")
    await replica.transport.emit_error("s1", "long " * 200_000)
    (end,) = await read_all(replica_b.manager.subscribe, "s1")
    assert end.type == "error"
    assert end.data.startswith("long long ")
    job = await replica_b.store.get_job("s1")
    assert job.status == "error"
    assert job.error.startswith("long long ")


@pytest.mark.parametrize(
    "bad", [7, None, "x", [], {"input_tokens": "many"}, {"model": 7}, {"a": float("nan")}, {"a": object()}]
)
async def test_usage_of_the_wrong_shape_is_refused(store, bad):
    """Nothing is recorded."""
    await store.create_job("s1", "alice")
    with pytest.raises((TypeError, ValueError)):
        await store.record_usage("s1", bad)
    assert await store.get_collected_usage("s1") == []


async def test_steps_and_usage_that_are_too_large_are_refused_like_a_record(store):
    """EventTooLargeError names the field, counted as they are stored: escaped. What was saved before stays."""
    await store.create_job("s1", "alice")
    await store.save_run_steps("s1", [{"id": "a"}])
    for text in ("x" * 300_000, "é" * 60_000):
        with pytest.raises(EventTooLargeError) as refused:
            await store.save_run_steps("s1", [{"id": "b", "text": text}])
        assert refused.value.field == "steps"
        assert refused.value.size > refused.value.limit == 262_144
        with pytest.raises(EventTooLargeError) as refused:
            await store.record_usage("s1", {"input_tokens": 1, "note": text})
        assert refused.value.field == "usage"
        assert refused.value.size > refused.value.limit
    assert await store.get_run_steps("s1") == [{"id": "a"}]
    assert await store.get_collected_usage("s1") == []


async def test_a_listed_usage_entry_that_is_too_large_does_not_keep_a_job_from_ending(store):
    """It is left out with a warning; the others are recorded."""
    await store.create_job("s1", "alice")
    store.set_collected_usage("s1", [{"input_tokens": 1, "note": "x" * 300_000}, {"input_tokens": 2}])
    assert await store.update_job("s1", status="complete")
    assert [entry.input_tokens for entry in await store.claim_usage("s1")] == [2]


@pytest.mark.parametrize("bad", [7, "x", [7], [{"a": float("nan")}], [{"a": object()}]])
async def test_run_steps_of_the_wrong_shape_are_refused(store, bad):
    """The saved ones stay."""
    await store.create_job("s1", "alice")
    await store.save_run_steps("s1", [{"id": "a"}])
    with pytest.raises((TypeError, ValueError)):
        await store.save_run_steps("s1", bad)
    assert await store.get_run_steps("s1") == [{"id": "a"}]


@pytest.mark.parametrize("bad", [7, None, b"x", "\ud800"])
async def test_an_error_that_is_no_text_is_refused(replica, bad):
    """The job goes on."""
    await replica.store.create_job("s1", "alice")
    with pytest.raises((TypeError, ValueError)):
        await replica.transport.emit_error("s1", bad)
    assert (await replica.store.get_job("s1")).status == "running"


async def test_handlers_that_cannot_be_called_are_refused(transport):
    """Before anything is attached."""
    for call in (
        lambda: transport.subscribe("s1", on_chunk=None),
        lambda: transport.subscribe("s1", on_chunk=Calls(), on_done="x"),
        lambda: transport.on_abort("s1", None),
        lambda: transport.on_all_subscribers_left("s1", 7),
    ):
        with pytest.raises((TypeError, ValueError)):
            await call()
    assert transport.get_tracked_stream_ids() == []
    assert transport.get_subscriber_count("s1") == 0
