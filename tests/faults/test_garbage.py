"""Defects that garbage from somebody else laid bare; each test is the shortest way there, on a real server."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from backends import NatsBackend
from fuzzing import NatsVandal, Watch
from waiting import Heard, check_whole, eventually, known, read_all, soon, take, values

from natsjobs import JobClosedError
from natsjobs.engine import garbage

END = b'{"type":"done","index":0,"writer":"v","data":null}'


@pytest.fixture
async def backend(newest_server: str) -> AsyncIterator[NatsBackend]:
    """A namespace of its own; nothing may be left of the test, and no background task may have failed."""
    backend = NatsBackend("nats", newest_server)
    with Watch() as watch:
        try:
            yield backend
        finally:
            await backend.close()
        assert not watch.errors, watch.errors


@pytest.fixture
async def vandal(backend: NatsBackend) -> AsyncIterator[NatsVandal]:
    """Somebody on a socket of his own."""
    vandal = NatsVandal(backend.url)
    yield vandal
    await vandal.close()


async def test_bytes_behind_an_end_do_not_open_the_log_again(backend, vandal):
    """On the subject of ends, where only the newest message used to be read (promise 4)."""
    a, b = await backend.replica(), await backend.replica()
    job = await a.store.create_job("s", "alice")
    await a.store.append_chunk("s", 0)
    log, end = (f(job.stream_id, job.generation) for f in (backend.subjects.log, backend.subjects.end))
    await a.transport.emit_done("s", "end")
    await vandal.store(end, b"garbage")
    await vandal.store(log, b"garbage")
    key = backend.subjects.record("job", "s")
    record = json.loads((await a.store.replica.context.link.records.last(key)).body)
    await backend.put_record({**record, "status": "running", "owner": b.store.replica_id}, "job", "s")
    with pytest.raises(JobClosedError):
        await soon(b.store.append_chunk("s", "late", generation=job.generation))
    check_whole(await read_all(b.transport.read, "s"), [0])
    assert (await b.store.create_job("s", "alice", if_running="reject")).generation > job.generation


@pytest.mark.parametrize("number", [b"999999999999999", b"x", b"9" * 5000, b"\xff"])
async def test_a_live_message_that_is_none_moves_no_reader(backend, vandal, number):
    """A sequence that it names would make every later look begin behind the log: the log decides."""
    a, b = await backend.replica(), await backend.replica()
    job = await a.store.create_job("s", "alice")
    async with b.transport.read("s") as events:
        await a.store.append_chunk("s", 0)
        first = await take(events, 1)
        live = f"{backend.subjects.live_prefix}s.{job.generation}.log"
        await vandal.say(live, b"garbage", b"NATS/1.0\r\nNats-Sequence: " + number + b"\r\n\r\n")
        await b.lose_live_messages()
        await a.store.append_chunk("s", 1)
        await a.transport.emit_done("s", None)
        check_whole(first + await take(events, 2), [0, 1])


@pytest.mark.parametrize(
    "head",
    [
        b"NATS/1.0\r\nNats-Sequence: 1\r\nNats-Subject: x\r\nNats-Time-Stamp: never\r\n\r\n",
        b"NATS/1.0\r\nKV-Operation: \xff\r\n\r\n",
    ],
    ids=["sequence", "no-utf8"],
)
async def test_headers_of_a_stored_message_do_not_speak_for_the_server(backend, vandal, head):
    """A page of replay goes on behind it; it used to go round for ever, or to end there."""
    a, b = await backend.replica(), await backend.replica()
    job = await a.store.create_job("s", "alice")
    for n in range(3):
        await a.store.append_chunk("s", n)
        await vandal.store(backend.subjects.log("s", job.generation), b"garbage", head)
    await a.transport.emit_done("s", None)
    check_whole(await read_all(b.transport.read, "s"), [0, 1, 2])
    assert (await b.store.get_resume_state("s")).status == "complete"


async def test_an_end_with_an_error_that_is_no_text_is_none(backend, vandal):
    """It could not be written into the record, which ended the sweep for ever."""
    a = await backend.replica()
    job = await a.store.create_job("s", "alice")
    await vandal.store(
        backend.subjects.end("s", job.generation), b'{"type":"error","index":0,"writer":"v","data":{"x":1}}'
    )
    await a.store.cleanup()
    await a.store.append_chunk("s", 0)
    await a.transport.emit_error("s", "boom")
    assert (await a.store.get_job("s")).error == "boom"


@pytest.mark.parametrize("op", [{}, ["abort"]])
async def test_a_request_whose_operation_is_none_is_answered(backend, vandal, op):
    """It used to end the task that answers."""
    a = await backend.replica()
    nc = await backend.admin()
    request = json.dumps({"op": op, "id": "x"}).encode()
    answer = await nc.request(backend.subjects.owner(a.store.replica_id), request, timeout=10)
    assert json.loads(answer.data)["replica"] == a.store.replica_id


@pytest.mark.parametrize("field", ["owner", "userId"])
async def test_a_record_with_a_name_too_long_for_a_subject_costs_no_connection(backend, field):
    """A control line above 4,096 bytes would close it for good."""
    a = await backend.replica()
    job = await a.store.create_job("good", "alice")
    forged = {"streamId": "s", "userId": "u", "status": "running", "createdAt": 1, "generation": "g", field: "x" * 5000}
    await backend.put_record(forged, "job", "s")
    await a.store.cleanup()
    assert await a.store.get_job("s") is None
    assert a.nc.is_connected
    assert a.nc.stats["reconnects"] == 0
    await a.store.append_chunk("good", 1, generation=job.generation)


async def test_a_lease_with_a_name_too_long_for_a_subject_is_judged_by_nobody(backend, vandal):
    """When it goes."""
    a = await backend.replica()
    key = backend.subjects.record("owner", "o" * 3800)
    await vandal.store(key, b"{}")
    await a.store.replica.liveness.look()
    before = garbage.counts["a lease"]
    await vandal.store(key, b"", b"NATS/1.0\r\nKV-Operation: PURGE\r\n\r\n")
    await eventually(lambda: garbage.counts["a lease"] > before)
    assert a.nc.is_connected


async def test_pieces_that_join_to_no_json_take_their_index_and_are_not_given_as_an_event(backend, vandal):
    """Every writer counts them; readers skip what they do not know (C5)."""
    a, b = await backend.replica(), await backend.replica()
    job = await a.store.create_job("s", "alice")
    heard = Heard()
    await heard.attach(b.transport, "s")
    await a.store.append_chunk("s", 0)
    piece = {"type": "part", "index": 1, "writer": "v", "part": [0, 1], "data": "{"}
    await vandal.store(backend.subjects.log("s", job.generation), json.dumps(piece).encode())
    assert await a.store.append_chunk("s", 2) == 2
    await a.transport.emit_done("s", None)
    events = await read_all(b.transport.read, "s")
    assert [event.index for event in events] == [0, 1, 2, 3]
    assert values(events) == [0, 2]
    await heard.until(3)
    assert heard.chunks == [0, 2]
    assert (await b.store.get_resume_state("s")).cursor


async def test_an_event_that_no_reader_can_open_ends_no_subscription(backend, vandal):
    """A number out of range is JSON and fits no float: the handlers go on with the next event."""
    a, b = await backend.replica(), await backend.replica()
    job = await a.store.create_job("s", "alice")
    heard = Heard()
    await heard.attach(b.transport, "s")
    body = b'{"type":"events","index":0,"writer":"v","events":[1e999]}'
    await vandal.store(backend.subjects.log("s", job.generation), body)
    await a.store.append_chunk("s", 1)
    await heard.until(1)
    assert heard.chunks == [1]
    assert (await b.store.get_resume_state("s")).aggregated_content == []


async def test_a_follower_does_not_wait_for_a_turn_that_is_none(backend, vandal):
    """Bytes on the subject of an end between two turns."""
    a, b = await backend.replica(), await backend.replica()
    first = await a.store.create_job("s", "alice")
    await a.transport.emit_done("s", 1)
    async with b.manager.subscribe("s", follow=True) as events:
        await take(events, 1)
        for body in (b"garbage", END[:-1]):
            await vandal.store(backend.subjects.end("s", f"{first.generation}0"), body)
        second = await a.store.create_job("s", "alice")
        await a.transport.emit_done("s", 2)
        assert [(e.generation, e.data) for e in await take(events, 1)] == [(second.generation, 2)]


async def test_a_log_whose_record_lapsed_unseen_gets_its_end_before_it_is_removed(backend):
    """A running job is ended by a terminal record, never by a TTL (A8): who still reads it is told so."""
    a = await backend.replica(backend.config(retention={"orphan": 0.5}, timing={"sweep": 600.0}))
    b = await backend.replica()
    await a.store.create_job("s", "alice")
    await a.store.append_chunk("s", 0)
    async with b.transport.read("s") as events:
        await take(events, 1)
        runs = a.store.replica.runs
        runs.close()
        await a.store.replica.context.records.remove(backend.subjects.record("job", "s"), expect=None)

        async def swept() -> bool:
            await a.store.cleanup()
            return events._tail.terminal is not None

        await eventually(swept)
        (end,) = await take(events, 1)
        assert (end.type, end.end_reason, end.index) == ("error", "expired", 1)


async def test_a_log_that_was_never_a_turn_is_removed_without_an_end(backend):
    """A create that died before its record: followers would take an end for a turn (A6)."""
    a = await backend.replica(backend.config(retention={"orphan": 0.5}, timing={"sweep": 600.0}))
    log = await a.store.replica.creation._open_log("s", 0)

    async def removed() -> bool:
        await a.store.cleanup()
        newest = await a.store.replica.context.link.events.last(backend.subjects.log("s", log.generation))
        return b'"gone"' in newest.body

    await eventually(removed)
    assert await a.store.replica.context.link.events.last(backend.subjects.end("s", log.generation)) is None


async def test_an_answer_whose_content_is_none_leaves_the_abort_whole(backend):
    """The caller folds the log instead; it used to meet an AttributeError after the job had ended."""
    a = await backend.replica()
    await a.store.create_job("s", "alice")
    nc = await backend.admin()
    key = backend.subjects.record("job", "s")
    record = json.loads((await a.store.replica.context.link.records.last(key)).body)
    await backend.put_record({**record, "owner": "ghost"}, "job", "s")

    async def answer(message: Any) -> None:
        await nc.publish(message.reply, b'{"replica":"ghost","mine":true,"content":["x",1]}')

    await nc.subscribe(backend.subjects.owner("ghost"), cb=answer)
    await known(nc)
    result = await a.manager.abort("s")
    assert (result.success, result.content, result.text) == (True, [], "")


@pytest.mark.parametrize("reply", ["$JS.API.STREAM.PURGE.{events}", "$KV.{bucket}.job.s", "{ns}.events.s.g.log"])
async def test_an_answer_is_never_a_message_of_ours_or_a_call_of_the_api(backend, vandal, reply):
    """Whoever may only ask an owner must not write through it."""
    a = await backend.replica()
    names = backend.subjects
    await a.store.create_job("s", "alice")
    await a.store.append_chunk("s", 0)
    await a.transport.on_abort("s", print)
    place = reply.format(events=names.events_stream, bucket=names.bucket, ns=names.namespace)
    before = garbage.counts["a request"]
    for subject in (names.owner(a.store.replica_id), names.abort("s")):
        await vandal.say(subject, b"{}", reply=place)
    await eventually(lambda: garbage.counts["a request"] == before + 2)
    assert (await a.store.get_job("s")).status == "running"
    await a.transport.emit_done("s", None)
    check_whole(await read_all(a.transport.read, "s"), [0])


async def test_a_flood_of_garbage_is_counted_and_floods_no_log(backend, vandal, caplog):
    """One warning per kind and ten seconds, which says how much it was."""
    a = await backend.replica()
    await a.transport.on_abort("s", print)
    before = garbage.counts["an abort signal"]
    with caplog.at_level(logging.WARNING, "natsjobs"):
        for _ in range(300):
            await vandal.say(backend.subjects.abort("s"), b"garbage")
        await eventually(lambda: garbage.counts["an abort signal"] == before + 300)
    assert len([record for record in caplog.records if "an abort signal" in record.getMessage()]) <= 1 + 300 // 100


async def test_an_acknowledgement_that_cannot_be_read_is_not_taken_for_one(backend):
    """The true one comes after it; the event is stored once."""
    a = await backend.replica()
    await a.store.create_job("s", "alice")
    inbox = a.store.replica.context.link._wire._inbox
    expect = inbox.expect

    def forged(*request: Any, **options: Any) -> Any:
        waiting = expect(*request, **options)
        asyncio.get_running_loop().call_soon(inbox.answered, inbox.prefix + waiting.token, "", b"\xff{", b"")
        return waiting

    inbox.expect = forged
    for n in range(5):
        assert await a.store.append_chunk("s", n) == n
    await a.transport.emit_done("s", None)
    check_whole(await read_all(a.transport.read, "s"), list(range(5)))
