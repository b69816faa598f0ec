"""Events that JSON cannot hold or that are too large are refused before anything is sent, and the job goes on."""

from __future__ import annotations

import dataclasses
import datetime as dt
import uuid

import msgspec
import pydantic
import pytest
from waiting import check_whole, read_all, soon

from natsjobs import EventTooLargeError, InvalidEventError


class Model(pydantic.BaseModel):
    """As chat completions come from clients."""

    text: str


class Strange:
    """Nothing that JSON knows."""


BAD_EVENTS = {
    "bytes": b"bytes",
    "bytearray": bytearray(b"x"),
    "nan": float("nan"),
    "infinity": float("inf"),
    "nan deep inside": {"a": [1, {"b": float("nan")}]},
    "minus infinity in a tuple": (1, float("-inf")),
    "lone surrogate": "a\ud800",
    "lone surrogate as key": {"\udfff": 1},
    "lone surrogate deep inside": [[{"x": "\ud800"}]],
    "pydantic model": Model(text="x"),
    "pydantic model inside": {"chunk": Model(text="x")},
    "strange": Strange(),
    "function": len,
    "raw: empty": msgspec.Raw(b""),
    "raw: not JSON": msgspec.Raw(b"{nope}"),
    "raw: cut": msgspec.Raw(b'{"a":'),
    "raw: two values": msgspec.Raw(b"1 2"),
    "raw: NaN": msgspec.Raw(b"NaN"),
    "raw: not UTF-8": msgspec.Raw(b'"\xff"'),
    "raw: trailing": msgspec.Raw(b'{"a":1}]'),
}


@pytest.mark.parametrize("bad", BAD_EVENTS.values(), ids=BAD_EVENTS.keys())
async def test_an_event_without_a_json_form_is_refused_and_the_job_goes_on(replica, replica_b, bad):
    """InvalidEventError (a ValueError) from every door; nothing of it is stored."""
    store, transport, jobs = replica.store, replica.transport, replica.manager
    async with jobs.start("s1", user_id="alice") as run:
        for call in (
            run.emit(bad),
            store.append_chunk("s1", bad),
            transport.emit_chunk("s1", bad),
            transport.emit_done("s1", bad),
            run.complete(bad),
            jobs.abort("s1", final_event=bad),
            store.abort_job("s1", final_event=bad),
            store.end_job("s1", generation=run.generation, status="complete", final_event=bad),
        ):
            with pytest.raises(InvalidEventError) as refused:
                await soon(call)
            assert isinstance(refused.value, ValueError)
        assert run.status == "running"
        await run.emit("fine")
    check_whole(await read_all(replica_b.manager.subscribe, "s1"), ["fine"])


@dataclasses.dataclass
class Data:
    """Written by msgspec as an object."""

    n: int


class Structure(msgspec.Struct):
    """Likewise."""

    n: int


GOOD_EVENTS = [
    (Data(1), {"n": 1}),
    (Structure(2), {"n": 2}),
    ((1, (2, 3)), [1, [2, 3]]),
    ({1}, [1]),
    (frozenset({"a"}), ["a"]),
    ({1: "int key"}, {"1": "int key"}),
    (dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC), "2026-01-02T03:04:05Z"),
    (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    ({"inside": b"hi"}, {"inside": "aGk="}),
    (msgspec.Raw(b'{"a": [1, 2.50, "\\u00e9"]}'), {"a": [1, 2.5, "é"]}),
    (msgspec.Raw(b" 1 "), 1),
    (msgspec.Raw(b"null"), None),
]


async def test_what_msgspec_writes_as_json_is_an_event(replica, replica_b):
    """Readers get JSON, also in memory."""
    await replica.store.create_job("s1", "alice")
    for event, _ in GOOD_EVENTS[::2]:
        await replica.transport.emit_chunk("s1", event)
    await replica.transport.flush("s1")
    for event, _ in GOOD_EVENTS[1::2]:
        await replica.store.append_chunk("s1", event)
    await replica.transport.emit_done("s1", GOOD_EVENTS[0][0])
    events = await read_all(replica_b.manager.subscribe, "s1")
    check_whole(events, [read for _, read in [*GOOD_EVENTS[::2], *GOOD_EVENTS[1::2]]])
    assert events[-1].data == {"n": 1}


async def test_an_enc_hook_makes_other_objects_events(backend):
    """As in msgspec; one that raises is an InvalidEventError."""

    def enc_hook(value: object) -> object:
        if isinstance(value, pydantic.BaseModel):
            return value.model_dump(mode="json")
        raise NotImplementedError(type(value).__name__)

    replica = await backend.replica(backend.config(enc_hook=enc_hook))
    await replica.store.create_job("s1", "alice")
    await replica.transport.emit_chunk("s1", {"chunk": Model(text="x")})
    with pytest.raises(InvalidEventError):
        await replica.transport.emit_chunk("s1", Strange())
    await replica.transport.emit_done("s1", None)
    check_whole(await read_all(replica.manager.subscribe, "s1"), [{"chunk": {"text": "x"}}])


async def test_an_event_above_the_limit_is_refused_with_size_and_limit(backend, replica_b):
    """EventTooLargeError; exactly the limit is fine; the job goes on."""
    replica = await backend.replica(backend.config(limits={"event_bytes": 1000}))
    await replica.store.create_job("s1", "alice")
    fits = "x" * 998
    for call in (
        replica.transport.emit_chunk("s1", fits + "x"),
        replica.store.append_chunk("s1", fits + "x"),
        replica.transport.emit_chunk("s1", msgspec.Raw(b'"' + b"x" * 999 + b'"')),
    ):
        with pytest.raises(EventTooLargeError) as refused:
            await call
        assert (refused.value.size, refused.value.limit) == (1001, 1000)
        assert isinstance(refused.value, InvalidEventError)
    await replica.transport.emit_chunk("s1", fits)
    await replica.transport.emit_done("s1", None)
    check_whole(await read_all(replica_b.manager.subscribe, "s1"), [fits])
