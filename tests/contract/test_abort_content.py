"""What callers put into their lists, graphs and folds: an abort ends the job, bills it, and gives what it can."""

from __future__ import annotations

import dataclasses
import logging

import msgspec
import pytest
from making import fill, step, text
from waiting import read_all, soon

from natsjobs import ConfigError, EndReason

LOGGED = [{"type": "text", "text": "logged"}]


class Strange:
    """An object that has no JSON form, as far as msgspec knows."""


class Graph:
    """A live agent graph, as far as the store looks at it."""

    def __init__(self, **attributes) -> None:
        self.__dict__.update(attributes)


def nested(depth):
    """A list in a list, and so on."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


UNFIT = {
    "an object": [{"type": "text", "text": "live"}, {"type": "tool_call", "tool_call": Strange()}],
    "a lone surrogate": [{"type": "text", "text": "a\ud800b"}],
    "too deep": [{"type": "text", "text": "live", "more": nested(300)}],
    "no part": ["live"],
}


def warnings_of(caplog, *words):
    """Warnings and worse in which all these words are."""
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [record for record in said if all(word in record.getMessage() for word in words)]


async def logged(replica, *events, stream_id="s1"):
    """A job with content in its log and usage that nobody has claimed."""
    await replica.store.create_job(stream_id, "alice")
    await fill(replica.store, stream_id, *(events or (step("a", 0), text("a", "logged"))))
    await replica.store.record_usage(stream_id, {"input_tokens": 5})


async def abort(caller, stream_id="s1"):
    """Abort it; it is a fact, acknowledged and billed."""
    result = await soon(caller.manager.abort(stream_id, final_event="final"))
    assert (result.success, result.acknowledged) == (True, True)
    assert result.job_data == await caller.store.get_job(stream_id)
    assert (result.job_data.status, result.job_data.end_reason) == ("aborted", EndReason.ABORT)
    assert [entry.input_tokens for entry in result.collected_usage] == [5]
    end = (await read_all(caller.manager.subscribe, stream_id))[-1]
    assert (end.type, end.data) == ("aborted", "final")
    return result


async def test_live_content_without_a_json_form_keeps_no_job_from_its_end(replica, replica_b, caplog):
    """The log's content is used, and a warning names the job and what can be done; once, however often it is asked."""
    for name, parts in UNFIT.items():
        for caller in (replica, replica_b):
            await logged(replica, stream_id=name)
            caplog.clear()
            graph = Graph(content_parts=parts)
            if caller is replica:
                replica.store.set_content_parts(name, parts)
            else:
                replica.store.set_graph(name, graph)
            assert await replica.store.get_content_parts(name) == LOGGED, name
            result = await abort(caller, name)
            assert (result.content, result.text) == (LOGGED, "logged"), name
            assert len(warnings_of(caplog, name, "content_parts", "Config(enc_hook=...)")) == 1, name


@dataclasses.dataclass
class Money:
    """Something of the application's own."""

    cents: complex


async def test_the_enc_hook_counts_for_live_content_too(backend, replica_b):
    """What events may hold, a live list, a graph and what a fold gives may hold as well."""

    def hook(value):
        if isinstance(value, complex):
            return value.real
        raise NotImplementedError

    def fold(events):
        return [{"type": "sum", "sum": Money(complex(sum(events)))}]

    owner = await backend.replica(backend.config(enc_hook=hook, fold=fold))
    plain = [{"type": "cost", "cost": {"cents": 5.0}}]
    graph = Graph(content_parts=[{"type": "cost", "cost": Money(5 + 0j)}], run_steps=[{"id": "st", "cost": 7 + 0j}])
    for caller in (owner, replica_b):
        await logged(owner, 1, 2)
        assert await owner.store.get_content_parts("s1") == [{"type": "sum", "sum": {"cents": 3.0}}]
        owner.store.set_graph("s1", graph)
        assert await owner.store.get_content_parts("s1") == plain
        assert await owner.store.get_run_steps("s1") == [{"id": "st", "cost": 7.0}]
        assert (await abort(caller)).content == plain


@pytest.mark.parametrize("bad", ["raises", "gives no parts"])
async def test_a_fold_that_fails_keeps_no_job_from_its_end(backend, caplog, bad):
    """The abort ends it and gives the usage, without content; the traceback is in the log. Who asks for content is
    told whose fault it is, and who asks for something else gets that."""

    def fold(events):
        return [event["text"] for event in events] if bad == "raises" else ["a", "b"]

    replica = await backend.replica(backend.config(fold=fold))
    await logged(replica, step("a", 0), {"text": "b"})
    for ask in (replica.store.get_content_parts, replica.store.get_resume_state):
        with pytest.raises(ConfigError, match="'s1'") as refused:
            await ask("s1")
        assert refused.value.field == "fold"
        assert isinstance(refused.value.__cause__, KeyError if bad == "raises" else msgspec.ValidationError)
    assert [one["id"] for one in await replica.store.get_run_steps("s1")] == ["a"]
    result = await abort(replica)
    assert (result.content, result.text) == ([], "")
    (said,) = warnings_of(caplog, "s1", "content")
    assert said.exc_info is not None


class Gone(BaseException):
    """No Exception: what some frameworks raise to end a task."""


async def test_a_callback_that_raises_anything_keeps_no_job_from_its_end(replica):
    """Only the acknowledgement is lost."""

    def gone():
        raise Gone

    await logged(replica)
    await replica.transport.on_abort("s1", gone)
    result = await soon(replica.manager.abort("s1"))
    assert (result.success, result.acknowledged, result.content) == (True, False, LOGGED)
    assert [entry.input_tokens for entry in result.collected_usage] == [5]
    assert (await replica.store.get_job("s1")).status == "aborted"


# -- large content -------------------------------------------------------------------------------------------------


async def test_live_content_of_half_a_message_comes_back_whole(replica, replica_b, caplog):
    """Also of events of one's own, of which the log gives no content."""
    parts = [{"type": "text", "text": "y" * 500_000}]
    for caller in (replica, replica_b):
        await logged(replica, "one's own")
        replica.store.set_content_parts("s1", parts)
        assert (await abort(caller)).content == parts
    assert warnings_of(caplog, "s1") == []


async def test_live_content_above_a_message_is_whole_where_it_does_not_travel_and_else_missed_aloud(
    replica, replica_b, caplog
):
    """Elsewhere the log's content is used, and the caller's log says how much there was, and what can be done."""
    parts = [{"type": "text", "text": "y" * 3_000_000}]
    for caller, content, said in ((replica, parts, 0), (replica_b, LOGGED, 1)):
        await logged(replica)
        replica.store.set_content_parts("s1", parts)
        assert (await abort(caller)).content == content
        assert len(warnings_of(caplog, "s1", "3000027 bytes", "max_payload", "Config.fold")) == said


async def test_an_owners_answer_is_one_that_every_version_reads(replica, replica_b):
    """The content stands in it as it always did; what was left out is told beside it, and never instead of it."""
    job = await replica.store.create_job("s1", "alice")
    bus, limit = replica_b.store.replica.context.link.bus, replica_b.store.replica.context.link.max_payload
    subject = replica.backend.subjects.owner(replica.store.replica_id)
    request = {"op": "abort", "stream": "s1", "generation": job.generation, "id": "by hand", "defer": True}
    about = {"replica": replica.store.replica_id, "mine": True, "heard": 0}
    frame = len(msgspec.json.encode([{"type": "text", "text": ""}]))
    for size, fits in ((5, True), (limit - 4096 - frame, True), (limit - 4096 - frame + 1, False), (limit, False)):
        parts = [{"type": "text", "text": "y" * size}]
        replica.store.set_content_parts("s1", parts)
        answer = msgspec.json.decode(await bus.request(subject, msgspec.json.encode(request), timeout=5))
        assert answer == {**about, **({"content": parts} if fits else {"contentBytes": frame + size})}
