"""Jobs: create, get, update, replace. What one replica writes another reads at once, and nothing mixes generations."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from making import rest
from waiting import emit_stored, read_all, soon, take, values

from natsjobs import EndReason, JobClosedError, JobRunningError, JobStatus, UserMessage, to_dict

FIELDS = {
    "user_message": UserMessage(message_id="m1", parent_message_id="m0", conversation_id="c1", text="Grüße 👋"),
    "response_message_id": "r1",
    "sender": "Claude",
    "sync_sent": True,
    "endpoint": "anthropic",
    "icon_url": "https://example.org/i.png",
    "model": "large",
    "prompt_tokens": 17,
    "metadata": {"agent": "a1", "tools": ["x", "y"], "deep": {"n": [1.5, None, True]}},
}


@pytest.mark.scenario(1, 64)
async def test_a_created_job_is_running_and_found_on_every_replica_at_once(store, store_b):
    """Created on A, read on B in the same moment."""
    before = time.time_ns() // 1_000_000
    job = await store.create_job("s1", "alice", "c1", tenant_id="t1")
    assert await store_b.get_job("s1") == job
    assert await store_b.has_job("s1") is True
    assert (job.stream_id, job.user_id, job.conversation_id, job.tenant_id) == ("s1", "alice", "c1", "t1")
    assert job.status is JobStatus.RUNNING
    assert not job.status.is_terminal
    assert before - 1000 <= job.created_at <= time.time_ns() // 1_000_000 + 1000
    assert job.last_active_at is not None
    assert job.generation
    assert job.owner
    assert job.sync_sent is False
    absent = ("completed_at", "error", "final_event", "end_reason", "metadata", "user_message", "sender", "model")
    assert [getattr(job, name) for name in absent] == [None] * len(absent)


async def test_what_is_not_given_is_none(store):
    """Conversation and tenant are optional."""
    job = await store.create_job("s1", "alice")
    assert job.conversation_id is None
    assert job.tenant_id is None


async def test_a_job_that_does_not_exist_is_none(store):
    """No error for a question about an unknown id."""
    assert await store.get_job("nobody") is None
    assert await store.has_job("nobody") is False


async def test_create_stores_every_field_in_one_write(store, store_b):
    """A reader never sees a job without its metadata."""
    job = await store.create_job("s1", "alice", **FIELDS)
    read = await store_b.get_job("s1")
    assert read == job
    assert {name: getattr(read, name) for name in FIELDS} == FIELDS


async def test_a_job_has_a_wire_form(store_b, store):
    """camelCase names, absent fields left out, JSON through and through."""
    await store.create_job("s1", "alice", "c1", tenant_id="t1", **FIELDS)
    await store.update_job("s1", status="complete", final_event="{}")
    wire = to_dict(await store_b.get_job("s1"))
    assert json.loads(json.dumps(wire)) == wire
    names = "streamId userId status createdAt completedAt conversationId userMessage responseMessageId sender syncSent"
    names += " finalEvent endpoint iconURL model promptTokens generation lastActiveAt tenantId metadata"
    assert set(wire) == set(names.split())
    assert set(wire["userMessage"]) == {"messageId", "parentMessageId", "conversationId", "text"}


async def test_a_user_message_may_be_a_plain_dict_of_wire_names(store, store_b):
    """The dict form is that of ``to_dict``."""
    await store.create_job("s1", "alice", user_message=to_dict(FIELDS["user_message"]))
    assert (await store_b.get_job("s1")).user_message == FIELDS["user_message"]


@pytest.mark.parametrize(
    "field", ["status", "error", "completed_at", "final_event", "generation", "owner", "created_at", "nonsense"]
)
async def test_create_refuses_fields_that_cannot_be_set(store, field):
    """TypeError, and no job."""
    with pytest.raises(TypeError):
        await store.create_job("s1", "alice", **{field: None})
    assert await store.get_job("s1") is None


async def test_initialize_twice_is_fine(store):
    """The fixture did it already."""
    await store.create_job("s1", "alice")
    await store.initialize()
    assert (await store.get_job("s1")).status == "running"


# -- values ------------------------------------------------------------------------------------------------------


async def test_a_job_that_was_read_is_a_value(store):
    """Attributes cannot be set, and changing what is inside changes nothing that is stored."""
    given = {"list": [1]}
    job = await store.create_job("s1", "alice", metadata=given)
    with pytest.raises(AttributeError):
        job.sender = "me"
    given["list"].append(2)
    job.metadata["list"].append(3)
    read = await store.get_job("s1")
    read.metadata["list"].append(4)
    assert (await store.get_job("s1")).metadata == {"list": [1]}


# -- generations -------------------------------------------------------------------------------------------------


@pytest.mark.scenario(7)
async def test_a_new_turn_inherits_nothing(store):
    """Fields that turn 2 does not give are unset, whatever turn 1 had."""
    await store.create_job("s1", "alice", "c1", tenant_id="t1", **FIELDS)
    await store.update_job("s1", status="error", error="boom")
    second = await store.create_job("s1", "alice")
    read = await store.get_job("s1")
    assert read == second
    assert read.sync_sent is False
    unset = [name for name in FIELDS if name != "sync_sent"]
    unset += ["conversation_id", "tenant_id", "error", "completed_at", "end_reason", "final_event"]
    assert {getattr(read, name) for name in unset} == {None}


@pytest.mark.scenario(8)
async def test_a_new_turn_has_no_content_steps_or_usage_of_the_old_one(store, store_b):
    """Resume state, content, steps and usage start empty."""
    await store.create_job("s1", "alice")
    await store.append_chunk("s1", {"event": "on_run_step", "data": {"id": "st", "index": 0, "stepDetails": {}}})
    await store.append_chunk(
        "s1", {"event": "on_message_delta", "data": {"id": "st", "delta": {"content": {"type": "text", "text": "old"}}}}
    )
    await store.save_run_steps("s1", [{"id": "st"}])
    await store.record_usage("s1", {"input_tokens": 1})
    assert await store.get_content_parts("s1")
    await store.create_job("s1", "alice")
    for one in (store, store_b):
        assert await one.get_content_parts("s1") is None
        assert await one.get_run_steps("s1") == []
        assert await one.get_collected_usage("s1") == []
        state = await one.get_resume_state("s1")
        assert (state.aggregated_content, state.run_steps, state.collected_usage) == ([], [], [])


@pytest.mark.scenario(9)
@pytest.mark.b_writes
async def test_created_at_grows_with_every_generation_even_within_a_millisecond(store, store_b):
    """Creates one after the other on two replicas, as fast as they go."""
    made = [await one.create_job("s1", "alice") for _ in range(5) for one in (store, store_b)]
    stamps = [job.created_at for job in made]
    assert stamps == sorted(set(stamps))
    assert len({job.generation for job in made}) == len(made)
    assert await store.get_job("s1") == made[-1]


@pytest.mark.b_writes
async def test_created_at_grows_over_a_deletion(store, store_b):
    """Delete and create in the same millisecond, five times."""
    stamps = []
    for one, other in ((store, store_b), (store_b, store)) * 3:
        job = await one.create_job("s1", "alice")
        stamps.append(job.created_at)
        assert await other.delete_job("s1", expected_generation=job.generation) is True
    assert stamps == sorted(set(stamps))


@pytest.mark.b_writes
async def test_replacing_a_running_job_ends_it_for_its_readers(store, store_b, jobs_b):
    """Terminal record aborted, reason REPLACED; then the reader's iteration ends."""
    first = await store.create_job("s1", "alice")
    await store.append_chunk("s1", "old")
    async with jobs_b.subscribe("s1") as events:
        assert values(await take(events, 1)) == ["old"]
        second = await store_b.create_job("s1", "alice")
        (end,) = await soon(rest(events))
    assert (end.type, end.end_reason, end.generation, end.index) == ("aborted", EndReason.REPLACED, first.generation, 1)
    assert second.generation != first.generation
    assert await store.get_job("s1") == second


@pytest.mark.scenario(10, 24)
@pytest.mark.parametrize("old_ended", [False, True], ids=["replaced while running", "ended before"])
@pytest.mark.b_writes
async def test_a_stale_generation_changes_nothing(replica, replica_b, old_ended):
    """Every write that names the old generation is refused; the new one does not even look active by it."""
    store, transport = replica.store, replica.transport
    old = (await store.create_job("s1", "alice")).generation
    await store.append_chunk("s1", "old")
    if old_ended:
        await store.update_job("s1", status="complete")
    new = await replica_b.store.create_job("s1", "bob", sender="new")
    await replica_b.store.append_chunk("s1", "new", generation=new.generation)
    current = await replica_b.store.get_job("s1")
    assert await store.update_job("s1", expected_generation=old, sender="stale") is False
    assert await store.update_job("s1", expected_generation=old, status="error", error="stale") is False
    assert await store.delete_job("s1", expected_generation=old) is False
    for write in (
        store.append_chunk("s1", "stale", generation=old),
        store.save_run_steps("s1", [{"id": "stale"}], generation=old),
        store.clear_content_state("s1", generation=old),
        transport.emit_done("s1", None, generation=old),
        transport.emit_error("s1", "stale", generation=old),
    ):
        with pytest.raises(JobClosedError) as refused:
            await write
        assert refused.value.stream_id == "s1"
        assert refused.value.generation == old
    with pytest.raises(JobClosedError):
        await emit_stored(transport, "s1", "stale", generation=old)
    assert await replica_b.store.get_job("s1") == current
    assert await store.get_run_steps("s1") == []
    await replica_b.transport.emit_done("s1", None)
    assert values(await read_all(replica.manager.subscribe, "s1")) == ["new"]


@pytest.mark.b_writes
async def test_reject_refuses_while_one_is_running(store, store_b):
    """JobRunningError holds the running job, which goes on untouched; after its end a create is fine."""
    running = await store.create_job("s1", "alice")
    with pytest.raises(JobRunningError) as refused:
        await store_b.create_job("s1", "bob", if_running="reject")
    assert refused.value.job == running
    assert await store.get_job("s1") == running
    assert await store.append_chunk("s1", "goes on", generation=running.generation) == 0
    await store.update_job("s1", status="complete")
    assert (await store_b.create_job("s1", "bob", if_running="reject")).user_id == "bob"


@pytest.mark.parametrize("if_running", ["replace", "reject"])
@pytest.mark.b_writes
async def test_creates_at_the_same_time_leave_one_winner(replica, replica_b, if_running):
    """With replace all return and the losers are fenced; with reject exactly one returns."""
    made = await soon(
        asyncio.gather(
            *(
                one.store.create_job("s1", f"user{n}", if_running=if_running)
                for n, one in enumerate([replica, replica_b] * 3)
            ),
            return_exceptions=True,
        )
    )
    refused = [result for result in made if isinstance(result, BaseException)]
    created = [result for result in made if not isinstance(result, BaseException)]
    assert all(isinstance(error, JobRunningError) for error in refused), refused
    assert len(created) == (6 if if_running == "replace" else 1)
    winner = await replica.store.get_job("s1")
    assert winner == max(created, key=lambda job: job.created_at)
    assert len({job.generation for job in created}) == len(created)
    assert len({job.created_at for job in created}) == len(created)
    for job in created:
        if job != winner:
            with pytest.raises(JobClosedError):
                await replica.store.append_chunk("s1", "late", generation=job.generation)
    assert await replica.store.append_chunk("s1", "fine", generation=winner.generation) == 0
    assert await replica_b.store.list_jobs(status="running") == [await replica.store.get_job("s1")]


# -- update ------------------------------------------------------------------------------------------------------


@pytest.mark.scenario(6, 72)
async def test_an_update_is_read_on_another_replica(store, store_b):
    """Sender and syncSent, and the rest of the producer's fields."""
    await store.create_job("s1", "alice")
    assert await store.update_job("s1", conversation_id="c2", **FIELDS) is True
    read = await store_b.get_job("s1")
    assert {name: getattr(read, name) for name in FIELDS} == FIELDS
    assert read.conversation_id == "c2"
    assert read.status == "running"


async def test_an_update_sets_only_what_it_names_and_none_clears(store, store_b):
    """Metadata is set as a whole."""
    await store.create_job("s1", "alice", **FIELDS)
    assert await store_b.update_job("s1", sender=None, metadata={"only": 1}, sync_sent=False) is True
    read = await store.get_job("s1")
    assert read.sender is None
    assert read.metadata == {"only": 1}
    assert read.sync_sent is False
    assert read.user_message == FIELDS["user_message"]
    assert read.model == "large"


async def test_updates_at_the_same_time_lose_no_field(store, store_b):
    """Two replicas write different fields of one record."""
    await store.create_job("s1", "alice")
    answers = await soon(
        asyncio.gather(
            *(
                one.update_job("s1", **change)
                for one, change in (
                    (store, {"sender": "x"}),
                    (store_b, {"model": "y"}),
                    (store, {"endpoint": "z"}),
                    (store_b, {"prompt_tokens": 4}),
                )
            )
        )
    )
    assert answers == [True] * 4
    read = await store.get_job("s1")
    assert (read.sender, read.model, read.endpoint, read.prompt_tokens) == ("x", "y", "z", 4)


@pytest.mark.scenario(4)
async def test_an_update_of_a_missing_job_makes_none(store, store_b):
    """Never created, or deleted before: False, and it stays absent."""
    assert await store.update_job("s1", sender="x") is False
    await store.create_job("s1", "alice")
    await store.delete_job("s1")
    assert await store_b.update_job("s1", sender="x") is False
    assert await store_b.update_job("s1", status="complete") is False
    assert await store.get_job("s1") is None
    assert await store.list_jobs() == []


@pytest.mark.parametrize(
    "field",
    [
        "stream_id",
        "user_id",
        "tenant_id",
        "generation",
        "created_at",
        "owner",
        "end_reason",
        "last_active_at",
        "streamId",
        "nonsense",
    ],
)
async def test_an_update_refuses_fields_that_cannot_be_set(store, field):
    """TypeError, and nothing else of the call is stored either."""
    job = await store.create_job("s1", "alice")
    with pytest.raises(TypeError):
        await store.update_job("s1", **{"sender": "x", field: "y"})
    assert (await store.get_job("s1")).sender == job.sender


async def test_the_expected_generation_may_be_given(store):
    """The right one updates, another does not."""
    job = await store.create_job("s1", "alice")
    assert await store.update_job("s1", expected_generation=job.generation, sender="x") is True
    assert await store.update_job("s1", expected_generation="other", sender="y") is False
    assert (await store.get_job("s1")).sender == "x"
