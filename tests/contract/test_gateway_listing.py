"""``GET /streams``: all jobs of a moment, a page at a time, cheap however many there are, and not for everybody."""

from __future__ import annotations

import asyncio

import pytest
from waiting import eventually, read_all

from natsjobs.http import Action, Only, bearer, owners


@pytest.fixture
async def some(store, transport):
    """Five jobs of two users in all states."""
    for number, (user, tenant) in enumerate([("alice", "t1"), ("bob", "t1"), ("alice", "t2"), ("bob", None)]):
        await store.create_job(f"job-{number}", user, tenant_id=tenant, model=f"model-{number % 2}")
    await transport.emit_done("job-0", {"large": "x" * 5000})
    await transport.emit_error("job-1", "out of Tokens " + "y" * 5000)
    await store.create_job("job-4", "zoë", "Other-Conversation")
    await store.update_job("job-4", status="aborted")


async def ids(gate, query, **options):
    """What is listed, in order."""
    got = await gate.client.get(f"/streams?{query}", **options)
    assert got.status_code == 200, got.text
    return [job["streamId"] for job in got.json()["jobs"]]


async def test_jobs_are_listed_newest_first_counted_and_cut_into_pages(gate, some):
    """With what a list shows of each, and texts of bounded size."""
    got = (await gate.client.get("/streams")).json()
    assert [job["streamId"] for job in got["jobs"]] == [f"job-{n}" for n in (4, 3, 2, 1, 0)]
    assert got["counts"] == {"running": 2, "complete": 1, "error": 1, "aborted": 1}
    assert got["total"] == 5
    assert got["jobs"][3]["userId"] == "bob"
    assert len(got["jobs"][3]["error"]) < 400
    assert "finalEvent" not in got["jobs"][4]
    assert await ids(gate, "limit=2") == ["job-4", "job-3"]
    assert await ids(gate, "limit=2&offset=3") == ["job-1", "job-0"]
    assert await ids(gate, "offset=9") == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("user=alice", [2, 0]),
        ("tenant=t1", [1, 0]),
        ("status=running", [3, 2]),
        ("status=error&user=bob", [1]),
        ("q=JOB-3", [3]),
        ("q=tokens+out", [1]),
        ("q=other-conv", [4]),
        ("q=ZO%C3%8B", [4]),
        ("q=model-1+bob", [3, 1]),
        ("q=nothing", []),
        ("id=job-2", [2]),
        ("id=job", []),
    ],
)
async def test_a_list_is_narrowed_by_what_is_known_of_a_job(gate, some, query, found):
    """Exact fields, and words anywhere in what identifies it."""
    assert await ids(gate, query) == [f"job-{number}" for number in found]


@pytest.mark.parametrize("query", ["status=runing", "limit=0", "limit=201", "limit=x", "offset=-1", "activity=maybe"])
async def test_a_query_that_means_nothing_is_refused(gate, query):
    """A typing error must not look like an empty list."""
    assert (await gate.client.get(f"/streams?{query}")).status_code == 400


async def test_how_busy_running_jobs_are_is_told_when_asked_for(gate, some, transport, transport_b):
    """Events stored and subscribers of all replicas; whoever asks is none of them."""
    for number in range(7):
        await transport.emit_chunk("job-3", number)
    await transport.flush("job-3")
    async with transport_b.read("job-3"), transport.read("job-3"):
        got = (await gate.client.get("/streams?activity=1")).json()
    assert [(job.get("events"), job.get("viewers")) for job in got["jobs"]] == [
        (None, None),
        (7, 2),
        (0, 0),
        (None, None),
        (None, None),
    ]
    assert all("events" not in job for job in (await gate.client.get("/streams")).json()["jobs"])
    assert transport.get_subscriber_count("job-3") == 0


class Counted:
    """A manager that counts what it is asked."""

    def __init__(self, jobs):
        self._jobs = jobs
        self.listed = self.looking = self.most = 0
        self.looked = []

    def __getattr__(self, name):
        return getattr(self._jobs, name)

    async def list_jobs(self):
        self.listed += 1
        return await self._jobs.list_jobs()

    async def count_events(self, stream_id, *, generation):
        self.looking += 1
        self.most = max(self.most, self.looking)
        self.looked.append(stream_id)
        try:
            return await self._jobs.count_events(stream_id, generation=generation)
        finally:
            self.looking -= 1


async def test_many_who_ask_at_once_cost_one_listing(open_gateway, jobs, some):
    """And one look at each running job, a few at a time."""
    for number in range(30):
        await jobs.store.create_job(f"more-{number}", "alice")
    counted = Counted(jobs)
    gate = await open_gateway(counted)
    answers = await asyncio.gather(*(gate.client.get("/streams?activity=1") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert counted.listed == 1
    assert sorted(counted.looked) == sorted(set(counted.looked))
    assert len(counted.looked) == 32
    assert 2 <= counted.most <= 8


async def test_a_change_is_seen_soon(gate, some, store):
    """An answer may be old, but not for long."""
    assert len(await ids(gate, "")) == 5
    await store.create_job("new", "alice")
    await eventually(lambda: _listed(gate, "new"))


async def _listed(gate, stream_id):
    return stream_id in await ids(gate, "")


async def test_a_list_that_cannot_be_had_is_503_for_everybody_who_waits(open_gateway, backend, caplog):
    """Said once per request, and not as a defect."""
    replica = await backend.replica()
    gate = await open_gateway(replica.manager)
    await replica.kill()
    answers = await asyncio.gather(*(gate.client.get("/streams") for _ in range(3)))
    assert {answer.status_code for answer in answers} == {503}
    assert not [record for record in caplog.records if record.name == "natsjobs.tasks"]


# -- who may ----------------------------------------------------------------------------------------------------


async def test_the_hook_is_asked_whose_jobs_are_wanted_and_may_narrow(open_gateway, jobs, some):
    """All: ``BROWSE``; one user's: ``LIST``. ``Only`` is stronger than the query."""
    asked = []
    answers = iter([None, "ops", Only("alice"), Only("alice"), Only(tenant_id="t1"), Only()])

    async def authorize(request, stream_id, action):
        asked.append((stream_id, action, request.query_params.get("user")))
        return next(answers)

    gate = await open_gateway(jobs, authorize=authorize)
    assert (await gate.client.get("/streams")).status_code == 403
    assert len(await ids(gate, "user=bob")) == 2
    assert await ids(gate, "") == ["job-2", "job-0"]
    assert await ids(gate, "user=bob") == ["job-2", "job-0"]
    assert await ids(gate, "tenant=t2") == ["job-1", "job-0"]
    assert len(await ids(gate, "")) == 5
    assert asked[:2] == [(None, Action.BROWSE, None), (None, Action.LIST, "bob")]


async def test_owners_see_their_own_and_operators_all(open_gateway, jobs, some):
    """Nobody learns how many jobs others have, not even from the counts."""
    identify = bearer({"a": "alice", "o": "ops"})
    gate = await open_gateway(jobs, authorize=owners(jobs, identify, operators=["ops"]))
    alice, ops = ({"headers": {"Authorization": f"Bearer {token}"}} for token in "ao")
    assert await ids(gate, "", **alice) == ["job-2", "job-0"]
    assert await ids(gate, "user=alice", **alice) == ["job-2", "job-0"]
    got = (await gate.client.get("/streams?q=bob", **alice)).json()
    assert (got["jobs"], got["counts"], got["total"]) == ([], {}, 0)
    assert (await gate.client.get("/streams?user=bob", **alice)).status_code == 403
    assert (await gate.client.get("/streams")).status_code == 401
    assert len(await ids(gate, "", **ops)) == 5
    assert await ids(gate, "user=bob", **ops) == ["job-3", "job-1"]
    assert (await gate.client.get("/streams/job-3", **ops)).status_code == 200
    assert (await gate.client.post("/streams/job-3/abort", **ops)).status_code == 200


# -- counting without reading --------------------------------------------------------------------------------------


async def test_events_are_counted_without_being_read(replica, replica_b, jobs):
    """Running, ended, cleared and gone; by generation; on any replica; nobody becomes a viewer."""
    count = replica_b.transport.count_events
    assert await count("s") == 0
    first = await replica.store.create_job("s", "alice")
    assert await count("s") == 0
    for number in range(5):
        await replica.transport.emit_chunk("s", number)
    await replica.transport.emit_chunk("s", "x" * 3_000_000)
    await replica.transport.flush("s")
    assert await count("s") == await jobs.count_events("s") == 6
    await replica.store.clear_content_state("s")
    assert await count("s") == 6
    await replica.transport.emit_chunk("s", 6)
    await replica.transport.emit_done("s", {"final": 1})
    assert await count("s") == 7
    second = await replica.store.create_job("s", "alice")
    assert await count("s") == 0
    assert (await count("s", generation=first.generation), await count("s", generation=second.generation)) == (7, 0)
    assert await count("s", generation="0" * 19) == 0
    await replica.store.delete_job("s")
    assert await count("s", generation=second.generation) == 0
    assert replica_b.transport.get_subscriber_count("s") == 0


async def test_what_strangers_wrote_does_not_spoil_the_count(replica):
    """Ours before it is counted all the same."""
    job = await replica.store.create_job("s", "alice")
    for number in range(3):
        await replica.transport.emit_chunk("s", number)
    await replica.transport.flush("s")
    subjects, events = replica.backend.subjects, replica.store.replica.context.link.events
    await events.append(subjects.log("s", job.generation), b"garbage")
    assert await replica.transport.count_events("s") == 3
    await replica.transport.emit_done("s", None)
    assert len(await read_all(replica.manager.subscribe, "s")) == 4
