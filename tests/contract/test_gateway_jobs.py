"""The gateway's other endpoints: records, states, aborts, lists, probes; and who may use them."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.exceptions import HTTPException
from waiting import emit_stored, eventually

from natsjobs import to_dict
from natsjobs.http import Action, GatewayConfig, bearer, owners

TOKENS = {"token-of-alice": "alice", "token-of-bob": "bob"}
ALICE = {"Authorization": "Bearer token-of-alice"}
BOB = {"Authorization": "Bearer token-of-bob"}


@pytest.fixture
async def guarded(open_gateway, jobs):
    """A gateway where everybody may use their own jobs."""
    return await open_gateway(jobs, authorize=owners(jobs, bearer(TOKENS)))


async def test_a_job_and_its_state_are_their_wire_forms(gate, store, transport, jobs):
    """What ``to_dict`` gives on this side is what clients get."""
    await store.create_job("s", "alice", model="m", metadata={"a": 1})
    await emit_stored(transport, "s", {"text": "x"})
    await transport.emit_done("s", None)
    assert (await gate.client.get("/streams/s")).json() == to_dict(await jobs.get("s"))
    state = (await gate.client.get("/streams/s/state")).json()
    assert state == json.loads(json.dumps(to_dict(await jobs.resume_state("s"))))
    assert (await gate.events(f"/streams/s/events?after={state['cursor']}"))[-1].event == "done"
    for path in ("/streams/none", "/streams/none/state"):
        assert (await gate.client.get(path)).json()["error"] == "job_not_found"


async def test_a_fold_that_fails_is_a_defect_and_not_said_to_pass(open_gateway, backend, caplog):
    """Whoever comes again would hear it again; what it was is in the log, and only there."""

    def fold(events):
        return [event["no such key"] for event in events]

    replica = await backend.replica(backend.config(fold=fold))
    gate = await open_gateway(replica.manager)
    await replica.store.create_job("s", "alice")
    await emit_stored(replica.transport, "s", {"text": "x"})
    answer = await gate.client.get("/streams/s/state")
    assert (answer.status_code, answer.json()["error"]) == (500, "internal_error")
    assert "no such key" not in answer.text
    assert "no such key" in caplog.text


async def test_an_abort_stops_the_run_on_any_replica_and_tells_what_it_did(open_gateway, jobs, jobs_b):
    """The owner's body is interrupted; a second abort, and one of another generation, change nothing."""
    gate = await open_gateway(jobs_b)
    stopped = asyncio.Event()

    async def work(run):
        await run.emit({"text": "x"})
        await run.record_usage({"input_tokens": 7})
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    job = await jobs.spawn("s", work, user_id="alice")
    await eventually(lambda: _usage(jobs))
    other = await gate.client.post("/streams/s/abort", json={"generation": "0" * 19})
    assert (other.status_code, other.json()["error"]) == (409, "job_replaced")
    done = await gate.client.post("/streams/s/abort", json={"generation": job.generation})
    assert done.status_code == 200, done.text
    body = done.json()
    assert (body["success"], body["acknowledged"], body["jobData"]["status"]) == (True, True, "aborted")
    assert [entry["input_tokens"] for entry in body["collectedUsage"]] == [7]
    await asyncio.wait_for(stopped.wait(), 10)
    again = await gate.client.post("/streams/s/abort")
    assert (again.status_code, again.json()["error"]) == (409, "job_ended")
    assert (await gate.client.post("/streams/none/abort")).status_code == 404
    assert (await gate.client.get("/streams/s/abort")).status_code == 405


async def _usage(jobs):
    return await jobs.store.get_collected_usage("s")


@pytest.mark.parametrize("path", ["/streams/s/abort", "/api/chat/s/stop"])
async def test_usage_that_an_abort_claims_goes_to_the_hook_or_to_the_client(open_gateway, store, jobs, path):
    """To exactly one of them, so that nothing is billed twice and nothing is lost."""
    results = []
    with_hook = await open_gateway(jobs, on_abort=results.append)
    without = await open_gateway(jobs)
    for gate, hooked in ((with_hook, True), (without, False)):
        await store.create_job("s", "alice")
        await store.record_usage("s", {"input_tokens": 7})
        body = (await gate.client.post(path)).json()
        assert len(body.get("collectedUsage", [])) == (0 if hooked else 1)
    assert [entry.input_tokens for result in results for entry in result.collected_usage] == [7]


async def test_a_users_active_jobs_are_listed(gate, store, transport):
    """Those that have not ended."""
    for stream_id in ("a", "b", "c"):
        await store.create_job(stream_id, "alice")
    await store.create_job("d", "bob")
    await transport.emit_done("b", None)
    got = await gate.client.get("/users/alice/active")
    assert sorted(got.json()["streamIds"]) == ["a", "c"]


async def test_probes_ask_nobody_and_say_whether_nats_is_there(open_gateway, jobs, backend, replica_b):
    """Alive is alive; ready needs the stream and the bucket."""
    gate = await open_gateway(jobs, authorize=lambda *_: None)
    assert (await gate.client.get("/healthz")).json() == {"status": "ok"}
    assert (await gate.client.get("/readyz")).json() == {"status": "ready"}
    lonely = await backend.replica(role="gateway")
    gate = await open_gateway(lonely.manager)
    await lonely.kill()
    away = await gate.client.get("/readyz")
    assert (away.status_code, away.json()["error"]) == (503, "unavailable")
    assert (await gate.client.get("/healthz")).status_code == 200


# -- who may ----------------------------------------------------------------------------------------------------

READS = ["/streams/{}", "/streams/{}/state", "/streams/{}/events", "/api/chat/{}/stream?startIndex=0"]
STOPS = ["/streams/{}/abort", "/api/chat/{}/stop"]


async def test_nobody_without_a_token_gets_anything(guarded, store):
    """Nor with a wrong one, or one in another scheme; and the job runs on."""
    await store.create_job("s", "alice")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic token-of-alice"}):
        for path in READS:
            assert (await guarded.client.get(path.format("s"), headers=headers)).status_code == 401
        for path in STOPS:
            assert (await guarded.client.post(path.format("s"), headers=headers)).status_code == 401
    assert (await store.get_job("s")).status == "running"


async def test_somebody_elses_job_looks_like_none(guarded, store, transport):
    """The answer is the same, byte for byte but for the name, as for a job that does not exist."""
    await store.create_job("s", "alice")
    await transport.emit_done("s", {"secret": 1})
    for method, paths in (("GET", READS), ("POST", STOPS)):
        for path in paths:
            theirs = await guarded.client.request(method, path.format("s"), headers=BOB)
            none = await guarded.client.request(method, path.format("t"), headers=BOB)
            assert theirs.status_code == none.status_code == 404
            assert theirs.text == none.text.replace('"t"', '"s"').replace("'t'", "'s'")
    assert (await guarded.client.get("/streams/s", headers=ALICE)).status_code == 200
    assert (await guarded.client.get("/users/alice/active", headers=BOB)).status_code == 403
    assert (await guarded.client.get("/users/alice/active", headers=ALICE)).status_code == 200


async def test_the_hook_is_asked_once_with_the_action_and_its_answer_holds(open_gateway, store, jobs):
    """Plain or async; ``None``, ``False``, ``PermissionError`` and a status of its own refuse."""
    asked = []
    verdicts = {"yes": "me", "none": None, "no": False}

    async def authorize(request, stream_id, action):
        asked.append((stream_id, action))
        if stream_id == "raises":
            raise PermissionError("inner secret")
        if stream_id == "own":
            raise HTTPException(401, "log in", {"WWW-Authenticate": "Own"})
        return verdicts.get(stream_id, "me")

    gate = await open_gateway(jobs, authorize=authorize)
    for stream_id in ("yes", "none", "no", "raises", "own"):
        await store.create_job(stream_id, "alice")
    statuses = [(await gate.client.get(f"/streams/{i}")).status_code for i in ("yes", "none", "no", "raises", "own")]
    assert statuses == [200, 403, 403, 403, 401]
    assert "secret" not in (await gate.client.get("/streams/raises")).text
    assert (await gate.client.get("/streams/own")).headers["www-authenticate"] == "Own"
    asked.clear()
    await gate.client.post("/streams/yes/abort")
    await gate.client.get("/users/u/active")
    assert asked == [("yes", Action.ABORT), (None, Action.LIST)]


async def test_a_hook_that_fails_lets_nobody_in(open_gateway, store, jobs):
    """500, and what failed stays in the log."""

    def authorize(request, stream_id, action):
        raise RuntimeError("database password")

    gate = await open_gateway(jobs, authorize=authorize)
    await store.create_job("s", "alice")
    got = await gate.client.get("/streams/s")
    assert got.status_code == 500
    assert "password" not in got.text


# -- other origins ----------------------------------------------------------------------------------------------


async def test_pages_of_other_origins_are_let_in_only_when_configured(open_gateway, gate, store, jobs):
    """Off by default; then only those named."""
    await store.create_job("s", "alice")
    page = {"Origin": "https://app.example"}
    assert "access-control-allow-origin" not in (await gate.client.get("/streams/s", headers=page)).headers
    named = await open_gateway(jobs, config=GatewayConfig(origins=("https://app.example",)))
    got = await named.client.get("/streams/s", headers=page)
    assert got.headers["access-control-allow-origin"] == "https://app.example"
    other = await named.client.get("/streams/s", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    asked = {**page, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "last-event-id"}
    assert (await named.client.options("/streams/s/events", headers=asked)).status_code == 200
