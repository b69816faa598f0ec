"""What the partition tests of ``tests/faults`` found, each once more on one machine and quickly."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
import pytest
from jetstream_kit import Server, config, server, space
from nats.aio.client import Client
from nats.aio.msg import Msg
from timeline_kit import Timelines
from waiting import emit_stored, eventually, take

from natsjobs.engine.subjects import Subjects
from natsjobs.errors import UnavailableError
from natsjobs.jetstream import NatsLink
from natsjobs.jetstream import connection as wiring

JETSTREAM = 'jetstream: {store_dir: "$STORE"}\n'


class Silence:
    """Takes what is asked and says nothing, like a node that was cut off and whose interest is still known."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, _: Any) -> None:
        """One more question."""
        self.asked += 1


async def test_a_page_that_no_replica_sends_is_read_at_the_leader(tmp_path: Path) -> None:
    """B3: for half a minute pages may be asked of a node that was cut off; an abort or a list cannot wait so long."""
    mapping = 'mappings: {"$JS.API.DIRECT.GET.*": "silent.$1"}\n'
    with server(tmp_path, JETSTREAM + mapping) as running:
        async with space(running.url, config(request=5.0)) as here:
            silence = Silence()
            await here.nc.subscribe("silent.*", cb=silence.__call__)
            for number in range(5):
                await here.append(str(number).encode())
            since = here.link.connected_since
            page = await here.link.events.page(here.scope, 2, batch=3)
            assert [message.body for message in page] == [b"1", b"2", b"3"]
            assert [message.body for message in await here.link.events.page(here.scope, 5)] == [b"4"]
            assert await here.link.events.page(here.scope, 6) == []
            assert silence.asked == 1, "every page waits for the silent replicas again"
            assert here.link.connected_since == since, "the leader has answered: the connection is fine"
            large = b"x" * 300_000
            for _ in range(3):
                await here.append(large)
            assert len(await here.link.events.page(here.scope, 6)) == 2, "a page has its limit in bytes here too"


async def test_a_page_says_nothing_about_the_leader(tmp_path: Path) -> None:
    """A1, B4: any replica sends pages, also one that is cut off from all others; only the leader's answers count."""
    mapping = 'mappings: {"$JS.API.STREAM.MSG.GET.*": "silent.$1"}\n'
    with server(tmp_path, JETSTREAM + mapping) as running:
        async with space(running.url, config(request=0.5)) as here:
            await here.nc.subscribe("silent.*", cb=Silence().__call__)
            await here.append(b"1")
            with pytest.raises(UnavailableError):
                await here.link.events.next(here.scope)
            assert here.link.connected_since is None
            assert len(await here.link.events.page(here.scope, 1)) == 1
            assert here.link.connected_since is None
            await here.append(b"2")
            assert here.link.connected_since is not None


class Replica:
    """Answers what is asked about streams, as one replica does that has them all, and may know of no leader."""

    def __init__(self, nc: Client) -> None:
        self.leader = "n1"
        self._nc = nc

    async def __call__(self, message: Msg) -> None:
        """One question."""
        found = json.loads((await self._nc.request("$JS.API.STREAM.LIST", timeout=5)).data)["streams"]
        known = [one for one in found if one["config"]["name"] == message.subject.split(".")[1]]
        if known:
            cluster = {"name": "c", "leader": self.leader} if self.leader else {"name": "c"}
            await message.respond(json.dumps({**known[0], "cluster": cluster}).encode())
        else:
            await message.respond(b'{"error":{"code":404,"err_code":10059,"description":"stream not found"}}')


async def test_a_replica_without_a_leader_keeps_nobody_with_it(tmp_path: Path, monkeypatch: Any) -> None:
    """B4: a node that was cut off describes its streams for ever, though it knows that they have no leader."""
    monkeypatch.setattr(wiring, "MOVE_AFTER", 0.8)
    about = '"$JS.API.STREAM.INFO.*": "about.$1"'
    first, second = Server(tmp_path, f"{JETSTREAM}mappings: {{{about}}}\n"), Server(tmp_path, JETSTREAM)
    first.start()
    second.start()
    link = NatsLink.dial([first.url, second.url], config(request=0.5), dont_randomize=True)
    nc = await nats.connect(first.url)
    try:
        replica = Replica(nc)
        await nc.subscribe("about.*", cb=replica.__call__)
        await nc.flush()
        await link.open()
        assert (await link.records.state()).last_seq == 0
        moved = asyncio.Event()
        link.on_reconnect(moved.set)
        replica.leader = ""
        while not moved.is_set():
            with pytest.raises(UnavailableError, match="knows of no leader"):
                await link.records.state()
            await asyncio.sleep(0.1)
        assert link.nc.connected_url.port == second.port
    finally:
        await link.close()
        await nc.close()
        first.stop()
        second.stop()


@dataclass
class Silent:
    """A link to servers of which the first, or all, take in silence what is stored under one key."""

    link: NatsLink
    names: Subjects
    ports: list[int]
    key: str
    moved: list[float]

    async def store(self) -> None:
        """Append under that key."""
        await self.link.records.append(self.key, b"{}")

    @property
    def port(self) -> int:
        """Of the server that the link is on."""
        return int(self.link.nc.connected_url.port)


@asynccontextmanager
async def silent(folder: Path, *, all_servers: bool = False, request: float = 1.0) -> AsyncIterator[Silent]:
    """Two servers, and a link on the first of them."""
    settings = config(request=request)
    key = f"$KV.{settings.namespace}_jobs.silent"
    quiet = f'{JETSTREAM}mappings: {{"{key}": "silent"}}\n'
    servers = [Server(folder, quiet), Server(folder, quiet if all_servers else JETSTREAM)]
    for one in servers:
        one.start()
    link = NatsLink.dial([one.url for one in servers], settings, dont_randomize=True)
    moved: list[float] = []
    try:
        await link.open()
        await link.nc.subscribe("silent", cb=Silence().__call__)
        link.on_reconnect(lambda: moved.append(time.monotonic()))
        yield Silent(link, Subjects(settings.namespace), [one.port for one in servers], key, moved)
    finally:
        await link.close()
        for one in servers:
            one.stop()


async def test_a_leader_that_stores_nothing_any_more_is_left(tmp_path: Path, monkeypatch: Any) -> None:
    """B3, B4: a leader that was cut off answers reads for up to 20 s; a lease that cannot be renewed lapses before."""
    monkeypatch.setattr(wiring, "MOVE_AFTER", 0.8)
    async with silent(tmp_path) as here:
        storing = asyncio.create_task(here.store())
        answered = 0
        while not storing.done():
            with suppress(UnavailableError):  # the move itself breaks the last one
                assert await here.link.records.next("$KV.>") is None
                answered += 1
            await asyncio.sleep(0.05)
        with pytest.raises(UnavailableError, match="no answer in time"):
            await storing
        assert answered > 1
        await eventually(lambda: here.moved)
        assert here.port == here.ports[1]


async def appended(link: NatsLink, names: Subjects, number: int, way: str) -> int:
    """Store the next message of a log, in either way."""
    log, scope = names.log("s", "g"), names.scope("s", "g")
    if way == "append":
        return await link.events.append(log, b"{}", expect=number, scope=scope)
    told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    assert link.events.send(log, b"{}", expect=number, scope=scope, done=told.set_result)
    return await told


@pytest.mark.parametrize("way", ["append", "send"])
async def test_one_silent_request_among_stored_ones_moves_nobody(tmp_path: Path, monkeypatch: Any, way: str) -> None:
    """B4: 5 s without *one* successful request, not one request of 5 s without success."""
    monkeypatch.setattr(wiring, "MOVE_AFTER", 0.8)
    async with silent(tmp_path) as here:
        storing = asyncio.create_task(here.store())
        stored = 0
        while not storing.done():
            stored = await appended(here.link, here.names, stored, way)
            await asyncio.sleep(0.05)
        with pytest.raises(UnavailableError, match="no answer in time"):
            await storing
        assert await here.link.records.next("$KV.>") is None
        assert (here.moved, here.port) == ([], here.ports[0])


async def test_what_failed_before_a_reconnect_counts_no_more(tmp_path: Path, monkeypatch: Any) -> None:
    """B4: the 5 s begin anew with every connection, or a server would be left for what another one did."""
    monkeypatch.setattr(wiring, "MOVE_AFTER", 1.5)
    async with silent(tmp_path, all_servers=True) as here:
        with pytest.raises(UnavailableError):
            await here.store()
        await here.link.nc.force_reconnect()
        await eventually(lambda: here.moved)
        with pytest.raises(UnavailableError, match="no answer in time"):
            await here.store()
        assert here.link.nc.is_connected
        with pytest.raises(UnavailableError, match="no answer in time"):
            await here.store()
        await eventually(lambda: len(here.moved) == 2)


async def test_a_client_whom_no_server_serves_moves_seldom(tmp_path: Path, monkeypatch: Any) -> None:
    """B4: at most once in a while, or all clients of a cluster without a leader would storm from node to node."""
    monkeypatch.setattr(wiring, "MOVE_AFTER", 0.3)
    monkeypatch.setattr(wiring, "MOVE_EVERY", 1.5)
    async with silent(tmp_path, all_servers=True, request=0.2) as here:
        while len(here.moved) < 3:
            with pytest.raises(UnavailableError):
                await here.store()
        assert all(later - sooner > 1.4 for sooner, later in itertools.pairwise(here.moved))


async def test_a_follower_that_cannot_look_looks_again_soon(newest_server: str) -> None:
    """A7: the long pauses are for what is quiet; after a cut the reader must not wait them out."""
    async with Timelines("nats", newest_server) as world:
        owner, viewer = await world.add(), await world.add()
        job = await owner.store.create_job("s", "alice")
        looks: list[float] = []
        cut = False

        def look() -> None:
            looks.append(time.monotonic())
            if cut:
                raise UnavailableError("cut off")

        async with viewer.transport.read("s") as events:
            await emit_stored(owner.transport, "s", 0, generation=job.generation)
            await take(events, 1)
            await viewer.stop_hearing(world.subjects.live_prefix)
            viewer.link.events.before_next = look
            await eventually(lambda: len(looks) > 1 and looks[-1] - looks[-2] > 1.0, within=15)
            cut, looks[:] = True, []
            await eventually(lambda: len(looks) > 1, within=5)
            assert looks[1] - looks[0] < 1.0
            await emit_stored(owner.transport, "s", 1, generation=job.generation)
            cut = False
            assert [event.data for event in await take(events, 1)] == [1]
