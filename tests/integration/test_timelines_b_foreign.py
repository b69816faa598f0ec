"""B9 and B10: late aborts, forged messages, and who may write what. Against a real server."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import nats
import pytest
from backends import NatsBackend
from jetstream_kit import quiet, server
from strangers import Stranger, events_of
from waiting import Calls, check_whole, eventually, known, read_all, soon, take

import natsjobs
from natsjobs import JobClosedError, UnavailableError

# -- B9: a late abort ---------------------------------------------------------------------------------------------


async def test_b9_an_abort_of_the_previous_turn_that_arrives_late_hits_nothing(backend: NatsBackend) -> None:
    """By either path: the broadcast, and the request to the owner that runs the next turn by now."""
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)
    first = await a.store.create_job("s", "u")
    await b.manager.abort("s")
    second = await a.store.create_job("s", "u")
    heard, everything = Calls(), Calls()
    await a.transport.on_abort("s", heard, generation=second.generation)
    late = {"generation": first.generation, "id": "late"}
    assert await stranger.ask(backend.subjects.abort("s"), late) == {"replica": a.store.replica_id, "heard": 0}
    for op in ("abort", "signal"):
        request = {"op": op, "stream": "s", **late, "final": "forged"}
        answer = await stranger.ask(backend.subjects.owner(a.store.replica_id), request)
        assert answer["mine"] is False
    assert heard.count == 0
    job = await b.manager.get("s")
    assert (job.generation, job.status) == (second.generation, "running")
    await b.transport.on_abort("s", everything)
    assert await b.transport.emit_abort("s") is True
    assert (heard.count, everything.count) == (1, 1)


async def test_b9_an_abort_signal_names_the_generation_read_at_the_leader(backend: NatsBackend) -> None:
    """Also when this replica remembers an earlier one; the body is what the layout says, one line of ASCII."""
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)
    await b.store.create_job("s", "u")
    newest = await a.store.create_job("s", "u")
    spy = await stranger.nc.subscribe(backend.subjects.abort("s"))
    await known(stranger.nc)
    await b.transport.emit_abort("s")
    body = ascii_line((await spy.next_msg(timeout=10)).data)
    assert list(body) == ["generation", "id"]
    assert body["generation"] == newest.generation
    assert await b.transport.emit_abort("s", generation="an-earlier-one") is False
    assert ascii_line((await spy.next_msg(timeout=10)).data)["generation"] == "an-earlier-one"
    await spy.unsubscribe()


def ascii_line(body: bytes) -> dict[str, str]:
    """One line of ASCII JSON."""
    text = body.decode("ascii")
    assert "\n" not in text
    return dict(json.loads(text))


@pytest.mark.parametrize(
    "body", [b"", b"stop it", b"{}", b'{"generation":"g"}', b'{"id":"x"}', b'{"generation":1,"id":2}']
)
async def test_b9_an_abort_that_does_not_say_which_turn_is_answered_with_an_error(
    backend: NatsBackend, body: bytes
) -> None:
    """What a person with the ``nats`` command sees; nobody is hit."""
    a = await backend.replica()
    stranger = await Stranger.of(backend)
    heard = Calls()
    await a.store.create_job("s", "u")
    await a.transport.on_abort("s", heard)
    assert "generation" in (await stranger.ask(backend.subjects.abort("s"), body))["error"]
    assert heard.count == 0
    assert "error" in await stranger.ask(backend.subjects.owner(a.store.replica_id), b"stop it")


async def test_b9_the_same_signal_twice_is_one_abort(backend: NatsBackend) -> None:
    """A signal comes by two paths, or is repeated: callbacks run once."""
    a = await backend.replica()
    stranger = await Stranger.of(backend)
    job = await a.store.create_job("s", "u")
    heard = Calls()
    await a.transport.on_abort("s", heard)
    signal = {"generation": job.generation, "id": "once"}
    for _ in range(3):
        assert (await stranger.ask(backend.subjects.abort("s"), signal))["heard"] == 1
    request = {"op": "signal", "stream": "s", **signal}
    assert (await stranger.ask(backend.subjects.owner(a.store.replica_id), request))["heard"] == 1
    assert heard.count == 1


# -- B10: forged messages -----------------------------------------------------------------------------------------


FORGED = [
    ("end", True, b'{"type":"aborted","index":1,"writer":"w","data":"forged"}'),
    ("end", False, b'{"type":"aborted","index":1,"writer":"w","data":"forged"}'),
    ("end", True, b'{"type":"gone","index":0}'),
    ("log", False, b'{"type":"gone","index":0}'),
    ("log", False, b'{"type":"events","index":1,"writer":"w","events":["forged"]}'),
    ("log", True, b"\xff"),
]


@pytest.mark.parametrize(("subject", "numbered", "body"), FORGED)
async def test_b10_what_is_in_no_log_is_not_believed(
    backend: NatsBackend, subject: str, numbered: bool, body: bytes
) -> None:
    """Forged on the live subject, an end also with the server's headers: readers go on, no callback fires.

    An event with such headers would be: that only the server may publish there is what permissions are for.
    """
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)
    async with a.manager.start("s", user_id="u") as run:
        await run.emit("zero")
        await run.flush()
        ended = Calls()
        await b.transport.on_end("s", ended, generation=run.generation)
        async with b.manager.subscribe("s") as events:
            got = await take(events, 1)
            seq = (await stranger.log("s", run.generation))[-1].seq
            headers = {"Nats-Sequence": str(seq + 1), "Nats-Last-Sequence": str(seq), "Nats-Stream": stranger.events}
            live = backend.subjects.live_end("s", run.generation).removesuffix("end") + subject
            await stranger.nc.publish(live, body, headers=headers if numbered else None)
            await known(stranger.nc)
            await run.emit("one")
            got += await take(events, 1)
            assert ended.count == 0
            await run.complete("true")
            got += await take(events, 1)
        check_whole(got, ["zero", "one"])
        assert got[-1].data == "true"
        await ended.until(1)
        assert ended.got[0].data == "true"


async def test_b10_garbage_in_a_log_stops_neither_writer_nor_reader(backend: NatsBackend) -> None:
    """Bytes that are no message of ours, beside the guard: skipped, and they take no index."""
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)
    garbage = [b"\xff\xfe", b"null", b'{"type":"events","index":-1}', b'{"index":0}', b""]
    async with a.manager.start("s", user_id="u") as run, b.manager.subscribe("s") as events:
        for n, body in enumerate(garbage):
            await run.emit(n)
            await run.flush()
            await stranger.store(backend.subjects.log("s", run.generation), body)
        await run.complete()
        check_whole(await take(events, len(garbage) + 1), list(range(len(garbage))))
    check_whole(await read_all(b.manager.subscribe, "s"), list(range(len(garbage))))


async def test_b10_events_and_the_end_are_guarded_by_one_filter(backend: NatsBackend) -> None:
    """Racing for a hundred generations, on two subjects: nothing is ever stored beside or behind the end."""
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)
    refused = 0
    for n in range(100):
        job = await a.store.create_job(f"s{n}", "u")
        await b.store.replica.runs.writer(f"s{n}", job.generation)  # so that both know where the log stands
        calls = [
            a.store.append_chunk(f"s{n}", "event", generation=job.generation),
            b.store.end_job(f"s{n}", generation=job.generation, status="complete"),
        ]
        first, second = await asyncio.gather(*(calls if n % 2 else calls[::-1]), return_exceptions=True)
        stored, ended = (first, second) if n % 2 else (second, first)
        log = await stranger.log(f"s{n}", job.generation)
        scope = {m.headers["Nats-Expected-Last-Subject-Sequence-Subject"] for m in log}
        assert scope == {backend.subjects.scope(f"s{n}", job.generation)}
        assert not isinstance(ended, BaseException)
        assert stored == 0 or isinstance(stored, JobClosedError)
        refused += stored != 0
        *_, before, end = log
        assert (end.subject, end.body["previous"]) == (backend.subjects.end(f"s{n}", job.generation), before.seq)
        assert end.body["index"] == len(log) - 2 == ended.index == (1 if stored == 0 else 0)
    assert 0 < refused < 100


USERS = """
jetstream: {store_dir: "$STORE"}
authorization: {users: [
  {user: worker, password: pw},
  {user: gateway, password: pw, permissions: {publish: {
    deny: ["natsjobs.live.>", "natsjobs.kv.>", "natsjobs.events.*.*.log"]}}}
]}
"""


async def test_b10_a_gateway_can_end_a_job_and_forge_nothing(tmp_path: Path) -> None:
    """With permission for ends alone: an abort of a dead owner's job stands; events are refused by the server."""
    config = natsjobs.Config(timing=natsjobs.Timing(lease=3, renew=1, request=2, abort=0.5, give_up=2, look=0.3))
    with server(tmp_path, USERS) as running:
        address = running.url.removeprefix("nats://")
        worker = await nats.connect(f"nats://worker:pw@{address}", error_cb=quiet)
        store, transport = natsjobs.NatsJobStore(worker, config), natsjobs.NatsEventTransport(worker, config)
        await store.initialize()
        job = await store.create_job("s", "u")
        await store.append_chunk("s", "zero")
        forger = await nats.connect(f"nats://gateway:pw@{address}", error_cb=quiet)

        def connected() -> Any:
            return natsjobs.connect(f"nats://gateway:pw@{address}", config=config)

        async with connected() as gateway, connected() as bad, gateway.subscribe("s") as events:
            got = await take(events, 1)
            for subject in ("natsjobs.live.s", "natsjobs.events.s"):
                await forger.publish(f"{subject}.{job.generation}.log", b'{"type":"events","index":1,"events":["x"]}')
            await forger.flush()
            with pytest.raises(UnavailableError, match="permission"):
                await soon(bad.store.append_chunk("s", "forged", generation=job.generation))
            worker.options["allow_reconnect"] = False
            await worker.close()
            assert (await soon(gateway.abort("s"))).success
            got += await take(events, 1)
            check_whole(got, ["zero"])
        await forger.close()
        await transport.destroy()
        with suppress(natsjobs.NatsJobsError):
            await store.destroy()
    await eventually(lambda: len(asyncio.all_tasks()) == 1)


async def test_b10_a_forged_event_in_the_log_is_numbered_like_any_other(backend: NatsBackend) -> None:
    """Whoever may write the log is a writer: the owner goes on behind it, and all read the same."""
    a, b = await backend.replica(), await backend.replica()
    stranger = await Stranger.of(backend)
    async with a.manager.start("s", user_id="u") as run:
        await run.emit("zero")
        await run.flush()
        await stranger.append("s", run.generation, events_of(1, "other", "one", "two"))
        await run.emit("three")
        await run.complete()
    for replica in (a, b):
        check_whole(await read_all(replica.manager.subscribe, "s"), ["zero", "one", "two", "three"])
