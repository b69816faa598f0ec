"""That a sweep, which reads what has changed, knows what one would that reads everything; and when it does that."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from natsjobs import Config
from natsjobs.engine.context import Context
from natsjobs.engine.ports import Message, StreamState
from natsjobs.engine.survey import Survey
from natsjobs.errors import PermissionDeniedError
from natsjobs.memory import MemoryJobStore, MemoryLink, MemorySystem

JOB, ACTIVE = "$KV.natsjobs_jobs.job", "$KV.natsjobs_jobs.active"


class Bucket:
    """The stream below the bucket; it counts what it is asked, and a test does something before it answers."""

    def __init__(self, link: MemoryLink) -> None:
        self.stream: Any = link.records
        self.asked = Counter[str]()
        self.before: Callable[[], Awaitable[None]] | None = None
        self.state_of: Callable[[StreamState], StreamState] = lambda state: state
        self.page_of: Callable[[list[Message]], list[Message]] = lambda page: page
        link._records = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        async def ask(*args: Any, **options: Any) -> Any:
            self.asked[name] += 1
            if self.before is not None:
                await self.before()
            found = await getattr(self.stream, name)(*args, **options)
            if name == "state":
                return self.state_of(found)
            return self.page_of(found) if name == "page" else found

        return ask

    async def put(self, name: str, generation: str = "g", *, status: str = "running", user: str = "u") -> None:
        """A record."""
        body = {"streamId": name, "userId": user, "status": status, "createdAt": 7, "generation": generation}
        await self.stream.append(f"{JOB}.{name}", json.dumps({**body, "owner": "o"}).encode())

    async def list(self, name: str, generation: str = "g", *, user: str = "u") -> None:
        """An entry of the index."""
        await self.stream.append(f"{ACTIVE}.{user}.{name}", json.dumps({"generation": generation}).encode())


class Place:
    """A bucket, and a replica that looks at it."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.system = MemorySystem(clock=lambda: self.now)
        self.link = self.system.link()
        self.context = Context(self.link, Config())
        self.survey = Survey(self.context)

    async def fill(self, jobs: int) -> Bucket:
        """With running jobs, as they should be, that were looked at."""
        bucket = Bucket(self.link)
        for number in range(jobs):
            await bucket.put(f"s{number}")
            await bucket.list(f"s{number}")
        await self.survey.look()
        bucket.asked.clear()
        return bucket


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    """With nothing in it."""
    place = Place()
    await place.link.open()
    yield place
    await place.context.tasks.close()
    await place.link.close()


def found(survey: Survey) -> Any:
    """What a sweep decides by."""
    return (
        {name: msgspec.structs.asdict(seen) for name, seen in survey.records.items()},
        {seen.run for seen in survey.running},
        {key: seen.run for key, seen in survey.unlisted.items()},
        {(slot.key, slot.revision, slot.time) for slot in survey.odd},
    )


async def everything(place: Place) -> Any:
    """The same of somebody who reads everything."""
    survey = Survey(place.context)
    await survey.look()
    return found(survey)


async def change(bucket: Bucket, place: Place, chance: random.Random, kinds: int) -> None:
    """Anything that may happen to a key: it comes, changes, goes, lapses, or a stranger writes it."""
    name, user = f"s{chance.randrange(40)}", f"u{chance.randrange(2)}"
    generation, ttl = f"g{chance.randrange(3)}", chance.choice([1, 20, None])
    job, entry = f"{JOB}.{name}", f"{ACTIVE}.{user}.{name}"
    body = {"streamId": name, "userId": user, "createdAt": 7, "generation": generation, "owner": "o"}
    kind = chance.randrange(kinds)
    place.now += chance.choice([0.1, 5.0])
    if kind < 4:
        status = chance.choice(["running", "running", "complete"])
        await bucket.stream.append(job, json.dumps({**body, "status": status}).encode(), ttl=ttl)
    if kind in {3, 4, 5}:
        await bucket.stream.append(entry, json.dumps({"generation": generation}).encode(), ttl=ttl)
    elif kind in {6, 7}:
        await bucket.stream.append(chance.choice([job, entry]), b"", marker=True, ttl=ttl)
    elif kind == 8:
        await bucket.stream.append(chance.choice([job, entry]), chance.choice([b"{", b"[]", b"{}"]))
    elif kind == 9:
        stray = json.dumps({**body, "status": "running"}).encode()
        await bucket.stream.append(chance.choice([f"{JOB}.x.job.{name}", f"{ACTIVE}.{user}", f"{JOB}.{name}.x"]), stray)


@pytest.mark.parametrize("strangers", [False, True])
async def test_a_sweep_knows_what_one_knows_that_reads_everything(place: Place, seed: int, strangers: bool) -> None:
    """Whatever has changed since the last one, and whatever changes while it looks; replicas lag."""
    chance = random.Random(seed)
    bucket = await place.fill(30)

    def lagging(page: list[Message]) -> list[Message]:
        return page[: chance.randrange(len(page) + 1)] if chance.random() < 0.3 else page

    async def happens() -> None:
        if chance.random() < 0.3:
            await change(bucket, place, chance, 9)

    bucket.page_of, changed = lagging, 0
    for _ in range(60):
        for _ in range(chance.randrange(12)):
            await change(bucket, place, chance, 10 if strangers else 9)
        if chance.random() < 0.5:
            bucket.before = happens
            await place.survey.look()  # it may miss what happens meanwhile, and the next one does not
            bucket.before = None
        await place.survey.look()
        changed += place.survey._times > 1
        assert found(place.survey) == await everything(place), seed
    assert strangers or changed > 30, seed


async def test_what_has_not_changed_is_not_read(place: Place) -> None:
    """The leader names the keys; the values of three hundred jobs stay where they are."""
    bucket = await place.fill(300)
    await place.survey.look()
    assert bucket.asked == {"state": 1, "subjects": 2}
    bucket.asked.clear()
    await bucket.put("s7", status="complete")
    await bucket.put("s8")
    await bucket.list("s9", "g2")
    await place.survey.look()
    assert bucket.asked == {"state": 1, "page": 1, "subjects": 2, "last": 1, "newest": 1}, "the odd ones are looked at"
    assert {seen.run for seen in place.survey.running} == {(f"s{n}", "g") for n in range(300) if n != 7}
    assert [*place.survey.unlisted] == [f"{ACTIVE}.u.s9"]
    assert {slot.key for slot in place.survey.odd} == {f"{ACTIVE}.u.s7", f"{ACTIVE}.u.s9"}
    assert place.survey.records["s8"].listed


async def test_what_holds_no_record_is_read_once(place: Place) -> None:
    """What a removal leaves for an hour, and a stranger's bytes; they are forgotten when they are gone."""
    bucket = await place.fill(300)
    await bucket.stream.append(f"{JOB}.s5", b'{"createdAt":7}', marker=True, ttl=3600)
    await bucket.stream.append(f"{JOB}.other", b"{", ttl=3600)
    for _ in range(2):
        await place.survey.look()
        bucket.asked.clear()
    await place.survey.look()
    assert bucket.asked == {"state": 1, "subjects": 2, "last": 1, "newest": 1}, "of the entry whose job is gone"
    assert len(place.survey._void) == 2
    for _ in range(2):  # what lapses leaves a marker, which lapses as well
        place.now += 5_000
        await place.survey.look()
    assert not place.survey._void


async def test_a_replica_that_lags_takes_nothing_back(place: Place) -> None:
    """What is known is newer, also when it came by another question."""
    bucket = await place.fill(3)
    before = await bucket.stream.last(f"{JOB}.s1")
    await bucket.put("s1", "g2")
    await bucket.list("s1", "g2")
    await place.survey.look()
    place.survey._take_changes([before])
    assert place.survey.records["s1"].generation == "g2"


@pytest.mark.parametrize("doubt", ["none", "time", "connection", "created", "backwards", "stray", "many"])
async def test_everything_is_read_again_at_any_doubt(place: Place, doubt: str) -> None:
    """What was changed under a sequence that was seen is found out then; and at every tenth time."""
    bucket = await place.fill(40)
    wrong = place.survey.records["s3"]
    wrong.generation = "of another time"
    if doubt == "connection":
        place.link.disconnect()
        await asyncio.sleep(0.01)
        place.link.reconnect()
    elif doubt == "created":
        bucket.state_of = lambda state: msgspec.structs.replace(state, created="later")
    elif doubt == "backwards":
        bucket.state_of = lambda state: msgspec.structs.replace(state, last_seq=state.last_seq - 1)
    elif doubt == "many":
        for _ in range(81):
            await bucket.put("s5")
    elif doubt == "stray":
        await bucket.stream.append(f"{JOB}.x.job.s5", (await bucket.stream.last(f"{JOB}.s5")).body)
        await place.survey.look()
        assert place.survey.records["s3"] is wrong
    for _ in range(8 if doubt == "time" else 0):
        await place.survey.look()
        assert place.survey.records["s3"] is wrong
    await place.survey.look()
    healed = place.survey.records["s3"].generation == "g"
    assert healed == (doubt not in {"none", "time"})
    if doubt == "time":
        await place.survey.look()
        assert place.survey.records["s3"].generation == "g"


async def test_sweeps_at_the_same_time_and_after_a_failure_begin_anew() -> None:
    """They do not share what they are about to change; the next one goes on from the last that has ended well."""
    store = MemoryJobStore()
    await store.initialize()
    for number in range(70):
        await store.create_job(f"s{number}", "u")
    bucket = Bucket(store.link)
    sweep = store.replica.upkeep.sweep
    await sweep()
    bucket.asked.clear()
    await sweep()
    assert bucket.asked["newest"] <= 1, "leases alone"
    bucket.asked.clear()
    await asyncio.gather(sweep(), sweep())
    assert 4 <= bucket.asked["newest"] <= 8, "one of them"

    async def fail() -> None:
        raise PermissionDeniedError("asking", subject="x")

    bucket.before = fail
    with pytest.raises(PermissionDeniedError):
        await sweep()
    bucket.before = None
    bucket.asked.clear()
    await sweep()
    assert bucket.asked["newest"] >= 4
    await store.destroy()
