"""What nobody should send, sent: the gateway refuses it, leaks nothing, and goes on serving everybody else."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from gateways import data, get
from waiting import emit_stored, eventually, soon

from natsjobs.http import GatewayConfig

ODD_IDS = ["a/b", "a%2Fb", "..", "../x", "*", ">", "a.b", "a b", "é", "a?b#c", "a%b", "events", "s/events", "\r\nX: y"]


@pytest.mark.parametrize("stream_id", ODD_IDS)
async def test_every_id_names_its_own_job_and_no_other(gate, store, transport, stream_id):
    """Encoded slashes, dots, wildcards, percent signs: the one job is found, exactly."""
    await store.create_job("s", "alice")
    await store.create_job("x", "alice")
    await store.create_job(stream_id, "alice")
    await transport.emit_done(stream_id, None)
    path = "".join(f"%{byte:02X}" for byte in stream_id.encode())
    status, said = await gate.answer(get(f"/streams/{path}"))
    assert status == 200
    assert json.loads(said.split("\r\n\r\n", 1)[1])["streamId"] == stream_id
    status, said = await gate.answer(get(f"/streams/{path}/events"))
    assert status == 200
    assert "event: done\n" in said


@pytest.mark.parametrize(
    "path",
    [
        "/streams/../healthz",
        "/streams/s/../s",
        "/streams/s/x/../events",
        "/streams/..%2fs",
        "/streams/*",
        "/streams/%3E/events",
        "/streams//events",
        "/streams/s/",
        "//streams/s",
        "/streams/%FF%FE",
        "/streams/s%00",
        "/streams/s%0d%0aSet-Cookie:%20a=b/events",
        "/streams/s;x=1",
        "/users/../active",
        "/api/chat/../stream",
        "/streams/s%2Fevents",
    ],
)
async def test_path_tricks_find_nothing(gate, store, path):
    """No other job, no other endpoint; and no header of theirs comes back."""
    await store.create_job("s", "alice")
    status, said = await gate.answer(get(path))
    assert status in {204, 400, 404} or said.endswith('{"streamIds":[]}')
    assert "set-cookie" not in said.split("\r\n\r\n")[0].lower()
    assert '"userId"' not in said


@pytest.mark.parametrize("size", [257, 10_000, 60_000])
async def test_ids_that_are_too_long_are_refused(gate, size):
    """By us, or by the server when the request line alone is too large."""
    for path in ("/streams/{}", "/streams/{}/events", "/streams/{}/state", "/users/{}/active", "/api/chat/{}/stream"):
        status, _ = await gate.answer(get(path.format("x" * size)))
        assert status == 400


async def test_odd_cursors_and_indexes_are_refused(gate, store):
    """Whatever they are made of."""
    await store.create_job("s", "alice")
    for cursor in ("%00", "a%0Ab", "%F0%9F%A6%86", "-1", "9" * 5000, "1" * 19 + "-0000000001-x"):
        assert (await gate.answer(get(f"/streams/s/events?after={cursor}")))[0] == 400
    for index in ("x", "1.5", "%D9%A3", "9" * 400, "--1", "0x1"):
        assert (await gate.answer(get(f"/api/chat/s/stream?startIndex={index}")))[0] == 400


async def test_events_cannot_inject_frames(gate, store, transport):
    """Line ends in values are data; every reader counts the same number of events."""
    await store.create_job("s", "alice")
    hostile = ["\n\nid: 1\ndata: x\n\n", "\r\nevent: done\r\n\r\n", "\u2028\x00", {"\n": "\r"}]
    for value in hostile:
        await emit_stored(transport, "s", value)
    await transport.emit_error("s", "x\n\ndata: y\n\n")
    frames = await gate.events("/streams/s/events")
    assert data(frames) == hostile
    assert [frame.event for frame in frames] == ["message"] * 4 + ["error"]


@pytest.mark.parametrize("path", ["/streams/s/abort", "/api/chat/s/stop"])
async def test_bodies_that_are_too_large_or_odd_are_refused_and_stop_nothing(gate, store, path):
    """413 and 400; the job runs on."""
    await store.create_job("s", "alice")
    large = await gate.client.post(path, content=b" " * 70_000)
    assert (large.status_code, large.json()["error"]) == (413, "request_too_large")
    for body in (b"{", b"[]", b"\xff", b"[" * 60_000, b"1"):
        assert (await gate.client.post(path, content=body)).status_code == 400
    assert (await store.get_job("s")).status == "running"


async def test_a_body_that_trickles_in_is_refused_in_time(open_gateway, store, jobs):
    """408, and the job runs on."""
    gate = await open_gateway(jobs, config=GatewayConfig(request_timeout=0.2))
    await store.create_job("s", "alice")
    status, _ = await gate.answer(get("/streams/s/abort", "Content-Length: 100", method="POST", body='{"gen'))
    assert status == 408
    assert (await store.get_job("s")).status == "running"


async def test_a_body_that_breaks_off_stops_nothing(gate, store):
    """Half a request is no request."""
    await store.create_job("s", "alice")
    _, writer = await gate.raw(get("/streams/s/abort", "Content-Length: 100", method="POST", body="{"))
    writer.close()
    assert (await gate.client.get("/streams/s")).json()["status"] == "running"


async def test_a_client_that_takes_nothing_is_cut_and_can_resume(open_gateway, store, transport, jobs):
    """It holds no reader and no memory; the one beside it gets everything, and so does it when it comes back."""
    gate = await open_gateway(jobs, config=GatewayConfig(send_timeout=0.3, heartbeat=0.1, buffer_bytes=10_000))
    await store.create_job("s", "alice")
    slow = socket.create_connection(("127.0.0.1", gate.port))
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.sendall(get("/streams/s/events").encode())
    await eventually(lambda: transport.get_subscriber_count("s") == 1)
    fast = asyncio.create_task(gate.events("/streams/s/events"))
    await eventually(lambda: transport.get_subscriber_count("s") == 2)
    text = "x" * 20_000
    for i in range(600):
        await transport.emit_chunk("s", [i, text])
    await eventually(lambda: gate.app.open_streams == 1)
    assert transport.get_subscriber_count("s") == 1
    await transport.emit_done("s", None)
    frames = await soon(fast, within=60)
    assert data(frames) == [[i, text] for i in range(600)]
    slow.close()
    rest = await gate.events("/streams/s/events", Last_Event_ID=frames[300].id)
    assert [frame.id for frame in rest] == [frame.id for frame in frames[301:]]


async def test_a_reader_that_talks_on_is_shown_out(open_gateway, store, transport, jobs):
    """A request that never ends is no way to fill memory."""
    gate = await open_gateway(jobs, config=GatewayConfig(request_bytes=1000))
    await store.create_job("s", "alice")
    reader, writer = await gate.raw(get("/streams/s/events", "Content-Length: 100000"))
    await eventually(lambda: transport.get_subscriber_count("s") == 1)
    writer.write(b"x" * 5000)
    await soon(reader.read())
    await eventually(lambda: gate.app.open_streams == 0)
    writer.close()


async def test_one_too_many_is_refused_and_leaves_room_when_one_leaves(open_gateway, store, transport, jobs):
    """Per process 503, per stream id 429; those who were let in are not disturbed."""
    gate = await open_gateway(jobs, config=GatewayConfig(connections=3, stream_connections=2))
    for stream_id in ("a", "b"):
        await store.create_job(stream_id, "alice")
    writers = [(await gate.raw(get(f"/streams/{i}/events")))[1] for i in ("a", "a")]
    await eventually(lambda: gate.app.open_streams == 2)
    full = await gate.client.get("/streams/a/events")
    assert (full.status_code, full.json()["error"]) == (429, "too_many_readers")
    assert "retry-after" in full.headers
    writers.append((await gate.raw(get("/streams/b/events")))[1])
    await eventually(lambda: gate.app.open_streams == 3)
    assert (await gate.client.get("/streams/b/events")).status_code == 503
    assert (await gate.client.get("/streams/a")).status_code == 200
    writers[0].transport.abort()
    await eventually(lambda: gate.app.open_streams == 2)
    again = asyncio.create_task(gate.events("/streams/a/events"))
    await eventually(lambda: gate.app.open_streams == 3)
    await transport.emit_done("a", None)
    assert [frame.event for frame in await soon(again)] == ["done"]
    for writer in writers:
        writer.close()
