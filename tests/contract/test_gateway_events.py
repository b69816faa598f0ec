"""The gateway's event streams, over real HTTP: replay, live, the end, and every way back after a break."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess

import pytest
from gateways import data, get
from starlette.exceptions import HTTPException
from waiting import emit_stored, eventually, read_all, soon

from natsjobs.http import GatewayConfig
from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub


async def begin(store, transport, count, *, stream_id="s", **options):
    """A running job with some stored events."""
    job = await store.create_job(stream_id, "alice", **options)
    for i in range(count):
        await transport.emit_chunk(stream_id, {"text": f"{i} äöü\n"})
    await transport.flush(stream_id)
    return job


async def test_a_client_gets_everything_then_the_terminal_event_then_the_end(gate, store, transport, transport_b, jobs):
    """Replay of what was stored, live what comes, in order, then exactly one terminal event."""
    await begin(store, transport, 50)
    reading = asyncio.create_task(gate.events("/streams/s/events"))
    await eventually(lambda: transport.get_subscriber_count("s") == 1)
    for i in range(50, 100):
        await transport.emit_chunk("s", {"text": f"{i} äöü\n"})
    await transport.emit_done("s", {"final": True})
    frames = await soon(reading)
    assert [value["text"] for value in data(frames)] == [f"{i} äöü\n" for i in range(100)]
    assert [frame.event for frame in frames[-2:]] == ["message", "done"]
    assert json.loads(frames[-1].data)["data"] == {"final": True}
    events = await read_all(jobs.subscribe, "s")
    assert [frame.id for frame in frames] == [event.cursor for event in events]


async def test_every_replica_serves_every_job(open_gateway, store, transport, jobs_b):
    """The gateway of another replica gives the same frames."""
    await begin(store, transport, 5)
    await transport.emit_done("s", None)
    gate = await open_gateway(jobs_b)
    assert len(await gate.events("/streams/s/events")) == 6


async def test_the_headers_keep_proxies_and_caches_out_of_the_way(gate, store, transport):
    """Type, no cache, no buffering, and a ``retry:`` before the first event; HEAD gives them, too."""
    await begin(store, transport, 1)
    await transport.emit_done("s", None)
    got = await gate.client.get("/streams/s/events")
    assert got.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "no-store" in got.headers["cache-control"]
    assert got.headers["x-accel-buffering"] == "no"
    assert got.text.startswith("retry: 1000\nid: ")
    head = await gate.client.head("/streams/s/events")
    assert (head.status_code, head.headers["content-type"]) == (200, got.headers["content-type"])


@pytest.mark.parametrize("how", ["header", "query", "after", "header over both"])
async def test_a_reader_goes_on_behind_its_last_event(gate, store, transport, how):
    """By header or query; the header, which a reconnecting browser sends, wins."""
    await begin(store, transport, 10)
    await transport.emit_done("s", None)
    frames = await gate.events("/streams/s/events")
    path, headers = "/streams/s/events", {}
    if how == "query":
        path += f"?Last-Event-ID={frames[3].id}"
    elif how == "after":
        path += f"?after={frames[3].id}"
    else:
        headers = {"Last_Event_ID": frames[3].id}
        path += f"?after={frames[0].id}&Last-Event-ID={frames[1].id}" if "over" in how else ""
    rest = await gate.events(path, **headers)
    assert [frame.id for frame in rest] == [frame.id for frame in frames[4:]]


async def test_forty_breaks_in_turn_on_two_replicas_lose_and_double_nothing(
    open_gateway, store, transport, jobs, jobs_b
):
    """The connection breaks after every frame while the job is being written; the rest comes from the other replica."""
    gates = [await open_gateway(jobs), await open_gateway(jobs_b)]
    await begin(store, transport, 60)
    seen = []
    for i in range(40):
        headers = {"Last_Event_ID": seen[-1].id} if seen else {}
        seen += await gates[i % 2].events("/streams/s/events", stop=1, **headers)
    await transport.emit_done("s", None)
    seen += await gates[0].events("/streams/s/events", Last_Event_ID=seen[-1].id)
    assert [value["text"] for value in data(seen)] == [f"{i} äöü\n" for i in range(60)]


async def test_raw_forwards_the_stored_json_and_data_readers_can_read_it(gate, store, transport):
    """Those that look at ``data:`` lines and nothing else, too."""
    await begin(store, transport, 3)
    await transport.emit_done("s", {"final": 1})
    text = (await gate.client.get("/streams/s/events?raw=1")).text
    values = [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:")]
    assert values == [{"text": f"{i} äöü\n"} for i in range(3)] + [{"final": 1}]
    assert (await gate.client.get("/streams/s/events?raw=maybe")).status_code == 400


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_reads_it(gate, store, transport):
    """As anybody would try it first: it prints the frames and ends by itself."""
    await begin(store, transport, 3)
    await transport.emit_done("s", None)
    url = f"http://127.0.0.1:{gate.port}/streams/s/events"
    done = await asyncio.to_thread(
        subprocess.run, ["curl", "-sSN", "--max-time", "20", url], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\nid: ") == 4
    assert "\nevent: done\n" in done.stdout


async def test_a_client_that_has_the_end_is_told_that_there_is_nothing_more(gate, store, transport):
    """204: the only status on which ``EventSource`` stops."""
    await begin(store, transport, 2)
    await transport.emit_done("s", None)
    end = (await gate.events("/streams/s/events"))[-1]
    got = await gate.client.get("/streams/s/events", headers={"Last-Event-ID": end.id})
    assert (got.status_code, got.content) == (204, b"")


async def test_what_is_wrong_is_a_status_and_a_body_for_programs(gate, store, transport):
    """Unknown, garbage, an older generation, lost history: all told apart."""
    unknown = await gate.client.get("/streams/nothing/events")
    assert unknown.status_code == 404
    assert unknown.json()["error"] == "job_not_found"
    await begin(store, transport, 2)
    garbage = await gate.client.get("/streams/s/events?after=garbage")
    assert (garbage.status_code, garbage.json()["error"]) == (400, "invalid_cursor")
    first = (await gate.events("/streams/s/events", stop=1))[0]
    newest = await begin(store, transport, 2)
    replaced = await gate.client.get("/streams/s/events", headers={"Last-Event-ID": first.id})
    assert (replaced.status_code, replaced.json()["error"]) == (409, "generation_replaced")
    assert replaced.json()["generation"] == newest.generation
    first = (await gate.events("/streams/s/events", stop=1))[0]
    await store.clear_content_state("s")
    lost = await gate.client.get("/streams/s/events", headers={"Last-Event-ID": first.id})
    assert (lost.status_code, lost.json()["error"], lost.json()["streamId"]) == (410, "history_lost", "s")


async def test_silence_is_broken_by_comments(open_gateway, store, transport, jobs):
    """Nothing is emitted, and still there is something to read."""
    gate = await open_gateway(jobs, config=GatewayConfig(heartbeat=0.05))
    await begin(store, transport, 1)
    reader, writer = await gate.raw(get("/streams/s/events"))
    for _ in range(3):
        await soon(reader.readuntil(b": still here\n"))
    writer.close()


async def test_a_client_that_leaves_releases_everything_at_once_and_stops_nothing(gate, store, transport, replica):
    """No subscriber, no open stream; the job runs on and its next reader gets all of it."""
    await begin(store, transport, 2)
    _, writer = await gate.raw(get("/streams/s/events"))
    await eventually(lambda: transport.get_subscriber_count("s") == 1 and gate.app.open_streams == 1)
    writer.transport.abort()
    await eventually(lambda: transport.get_subscriber_count("s") == 0 and gate.app.open_streams == 0, within=3)
    await emit_stored(transport, "s", {"text": "more"})
    await transport.emit_done("s", None)
    assert len(await gate.events("/streams/s/events")) == 4


async def test_an_aborted_job_ends_its_readers_with_the_abort(gate, store, transport):
    """The terminal event says so, and why."""
    await begin(store, transport, 1)
    reading = asyncio.create_task(gate.events("/streams/s/events"))
    await eventually(lambda: transport.get_subscriber_count("s") == 1)
    assert (await gate.client.post("/streams/s/abort")).status_code == 200
    end = (await soon(reading))[-1]
    assert (end.event, json.loads(end.data)["endReason"]) == ("aborted", "abort")


async def test_a_gateway_that_closes_sends_its_readers_away_and_they_miss_nothing(open_gateway, store, transport, jobs):
    """The response ends without a terminal event; the other gateway goes on behind it."""
    gate, other = await open_gateway(jobs), await open_gateway(jobs)
    await begin(store, transport, 2)
    reading = asyncio.create_task(gate.events("/streams/s/events"))
    await eventually(lambda: gate.app.open_streams == 1)
    gate.app.close()
    seen = await soon(reading)
    assert [frame.event for frame in seen] in (["message"] * n for n in range(3))
    assert (await gate.client.get("/streams/s/events")).status_code == 503
    assert (await gate.client.get("/readyz")).status_code == 503
    await transport.emit_done("s", None)
    seen += await other.events("/streams/s/events", **({"Last_Event_ID": seen[-1].id} if seen else {}))
    assert [value["text"] for value in data(seen)] == ["0 äöü\n", "1 äöü\n"]


async def test_a_manager_that_closes_ends_its_readers(open_gateway, backend, store, transport):
    """The stream ends, without a terminal event that nobody wrote."""
    replica = await backend.replica()
    gate = await open_gateway(replica.manager)
    await begin(store, transport, 1)
    reading = asyncio.create_task(gate.events("/streams/s/events"))
    await eventually(lambda: replica.transport.get_subscriber_count("s") == 1)
    await replica.manager.__aexit__(None, None, None)
    assert {frame.event for frame in await soon(reading)} <= {"message"}
    assert (await gate.client.get("/streams/s/events")).status_code == 503


# -- refusals that pass ---------------------------------------------------------------------------------------------

LISTENING = {"Accept": "text/event-stream"}
"""What ``EventSource`` says. Any status but 200 ends it for good."""


def check_comes_again(answer, status):
    """The refusal is a stream that ends, and says when to come again and why; by itself it would be ``status``."""
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert "no-store" in answer.headers["cache-control"]
    retry, comment = answer.text.splitlines()
    seconds = int(answer.headers["retry-after"])
    assert seconds * 1000 <= int(retry.removeprefix("retry: ")) <= seconds * 1500
    assert comment.startswith(f": {status} ")
    assert json.loads(comment.removeprefix(f": {status} "))["message"]


async def test_event_sources_that_are_refused_for_now_come_again(open_gateway, store, transport, jobs):
    """Where one is too many, where all are, and where it is being closed; others are told as ever."""
    await begin(store, transport, 1)
    gate = await open_gateway(jobs, config=GatewayConfig(stream_connections=1, connections=2, origins=("http://x",)))
    path, writers = "/streams/s/events", [(await gate.raw(get("/streams/s/events")))[1]]
    await eventually(lambda: gate.app.open_streams == 1)
    answer = await gate.client.get(path, headers={**LISTENING, "Origin": "http://x"})
    check_comes_again(answer, 429)
    assert answer.headers["access-control-allow-origin"] == "http://x"
    assert answer.headers["connection"] == "close"  # or it would come again to this very process
    assert (await gate.client.get(path, headers={"Accept": "*/*"})).status_code == 429
    assert (await gate.client.get("/api/chat/s/stream", headers=LISTENING)).status_code == 429
    await begin(store, transport, 0, stream_id="b")
    writers.append((await gate.raw(get("/streams/b/events")))[1])
    await eventually(lambda: gate.app.open_streams == 2)
    check_comes_again(await gate.client.get(path, headers=LISTENING), 503)
    gate.app.close()
    check_comes_again(await gate.client.get(path, headers={"Accept": "text/html, text/event-stream;q=0.9"}), 503)
    for writer in writers:
        writer.close()
    await transport.emit_done("b", None)


async def test_event_sources_come_again_while_nats_is_away_and_not_for_what_is_for_good(open_gateway, backend, store):
    """Also where the hook finds that out, or refuses for a while itself; 404 and 403 stay what they are."""
    await store.create_job("s", "alice")
    replica = await backend.replica(backend.config(timing={"request": 1.0}), role="gateway")

    async def authorize(request, stream_id, action):
        if "busy" in request.query_params:
            raise HTTPException(503, "two\nlines")
        return await replica.store.get_job(stream_id) if "look" in request.query_params else stream_id != "closed"

    gate = await open_gateway(replica.manager, authorize=authorize)
    assert (await gate.client.get("/streams/nobody/events", headers=LISTENING)).status_code == 404
    assert (await gate.client.get("/streams/closed/events", headers=LISTENING)).status_code == 403
    assert (await gate.client.get("/streams/s/events?after=x", headers=LISTENING)).status_code == 400
    check_comes_again(await gate.client.get("/streams/s/events?busy", headers=LISTENING), 503)
    await replica.kill()
    asking = [gate.client.get(f"/streams/s/events{query}", headers=LISTENING) for query in ("", "?look")]
    *answers, plain = await asyncio.gather(*asking, gate.client.get("/streams/s/events"))
    for answer in answers:
        check_comes_again(answer, 503)
    assert plain.status_code == 503


async def test_a_refusal_that_passes_is_counted_as_what_it_is(open_gateway, store, transport, jobs):
    """The figures of answers know nothing of the 200."""
    gate = await open_gateway(jobs, config=GatewayConfig(metrics="open"))
    await begin(store, transport, 1)
    gate.app.close()
    counted = Responses()
    detach = hub.attach(counted)
    try:
        check_comes_again(await gate.client.get("/streams/s/events", headers=LISTENING), 503)
    finally:
        detach()
    assert counted.statuses == ["503"]


class Responses:
    """An exporter that keeps the statuses of answers."""

    def __init__(self):
        self.statuses = []

    def add(self, measure, value, labels):
        """As an exporter."""
        del value
        if measure is measures.HTTP_RESPONSES:
            self.statuses += labels
