"""For the tests of ``natsjobs.jetstream``: servers with a configuration of their own, links, and waiting."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import nats
import pytest
from listening import free_port, wait_until_listening
from nats.aio.client import Client
from waiting import eventually

from natsjobs import embedded
from natsjobs.config import Config, Retention, Timing
from natsjobs.engine.subjects import Subjects
from natsjobs.jetstream import NatsLink, link_for

BOTH = pytest.mark.parametrize("server_name", ["newest_server", "oldest_server"])


def config(**plain: Any) -> Config:
    """Short timings and a namespace that no other test has."""
    timing = Timing(request=plain.pop("request", 3.0))
    retention = plain.pop("retention", Retention())
    return Config(**{"namespace": f"t{uuid.uuid4().hex[:10]}", "timing": timing, "retention": retention, **plain})


class Space:
    """One namespace on one server: a given connection and a link on it."""

    def __init__(self, nc: Client, link: NatsLink, settings: Config) -> None:
        self.nc = nc
        self.link = link
        self.config = settings
        self.names = Subjects(settings.namespace)
        self.log = self.names.log("s", "g")
        self.end = self.names.end("s", "g")
        self.scope = self.names.scope("s", "g")
        self.record = self.names.record("owner", "me")

    async def append(self, body: bytes, expect: int | None = None, **options: Any) -> int:
        """Append to the log under the guard of its generation."""
        scope = self.scope if expect is not None else None
        return await self.link.events.append(self.log, body, expect=expect, scope=scope, **options)


@asynccontextmanager
async def space(url: str | list[str], settings: Config | None = None, **options: Any) -> AsyncIterator[Space]:
    """An open link on a given connection, in a namespace of its own; its streams go at the end."""
    settings = settings or config()
    options = {"reconnect_time_wait": 0.05, "max_reconnect_attempts": -1, "error_cb": quiet, **options}
    nc = await nats.connect(url, **options)
    link = link_for(nc, settings)
    made = Space(nc, link, settings)
    try:
        await link.open()
        yield made
    finally:
        await link.close()
        with suppress(nats.errors.Error):
            for name in (made.names.events_stream, made.names.records_stream):
                await nc.request(f"$JS.API.STREAM.DELETE.{name}", timeout=5)
        await nc.close()


async def quiet(_: Exception) -> None:
    """An error callback for tests that break things."""


async def no_tasks_left(before: set[asyncio.Task[Any]]) -> None:
    """Assert that every task that was not there before has ended."""
    await eventually(lambda: not (asyncio.all_tasks() - before), within=3)


class Server:
    """A nats-server with a configuration file, that can be stopped, paused and started again at the same place."""

    def __init__(self, folder: Path, text: str, port: int = 0) -> None:
        self.port = port or free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._file = folder / f"nats-{self.port}.conf"
        head = f'listen: "127.0.0.1:{self.port}"\n'
        self._file.write_text(head + text.replace("$STORE", str(folder / f"store-{self.port}")))
        self._log = folder / f"nats-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start; ready when it takes connections."""
        binary = os.environ.get("NATS_SERVER_BIN") or str(embedded.find_binary())
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([binary, "-c", str(self._file)], stdout=log, stderr=log)
        wait_until_listening(self._process, self.port, self._log)

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped since."""
        return self._process is not None

    def rewrite(self, change: Callable[[str], str]) -> None:
        """Another configuration, for the next start or ``reload``."""
        self._file.write_text(change(self._file.read_text()))

    def signal(self, what: signal.Signals) -> None:
        """SIGSTOP, SIGCONT, SIGHUP: to this process only."""
        assert self._process is not None
        self._process.send_signal(what)
        if what == signal.SIGSTOP:  # its threads stop one after the other; until then it may still answer
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def stop(self) -> None:
        """Stop; twice is fine."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait(10)
            self._process = None


@contextmanager
def server(folder: Path, text: str = 'jetstream: {store_dir: "$STORE"}\n') -> Iterator[Server]:
    """A running server of one's own."""
    made = Server(folder, text)
    made.start()
    try:
        yield made
    finally:
        made.stop()


async def subscriptions(nc: Client) -> list[str]:
    """What a client is subscribed to, as it knows it itself."""
    return [sub.subject for sub in nc._subs.values()]


async def stream_config(nc: Client, name: str) -> dict[str, Any]:
    """The settings of a stream, as the server tells them."""
    reply = await nc.request(f"$JS.API.STREAM.INFO.{name}", timeout=5)
    return dict(json.loads(reply.data)["config"])


async def leader_of(made: Space) -> str:
    """The name of the server that leads the events stream."""
    info = await made.nc.jetstream().stream_info(made.names.events_stream)
    assert info.cluster is not None
    return str(info.cluster.leader)


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[tuple[dict[str, Server], Space]]:
    """Three servers on loopback, and a namespace with three replicas on them."""
    routes = {name: free_port() for name in ("n1", "n2", "n3")}
    urls = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in routes.values())
    servers: dict[str, Server] = {}
    try:
        for name, port in routes.items():
            text = (
                f'server_name: {name}\njetstream: {{store_dir: "$STORE"}}\n'
                f'cluster: {{name: c, listen: "127.0.0.1:{port}", routes: [{urls}], no_advertise: true}}\n'
            )
            servers[name] = Server(folder, text)
            servers[name].start()
        await _has_leader(servers["n1"].url)
        async with space([one.url for one in servers.values()], config(replicas=3, request=5.0)) as made:
            yield servers, made
    finally:
        for one in servers.values():
            one.stop()


async def _has_leader(url: str) -> None:
    nc = await nats.connect(url)

    async def answers() -> bool:
        try:
            reply = await nc.request("$JS.API.INFO", timeout=0.5)
        except nats.errors.Error:
            return False
        return b'"error"' not in reply.data

    await eventually(answers, within=30)
    await nc.close()


class Proxy:
    """A wire to a server that can be cut silently: what is sent is swallowed, and nobody is told."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: set[asyncio.Task[None]] = set()
        self.url = ""

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *failure: object) -> None:
        assert self._listener is not None
        self._listener.close()
        await self.cut()
        self.drop()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def cut(self) -> None:
        """The connections of this moment carry nothing any more; new ones work."""
        pumps = list(self._pumps)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)

    def drop(self) -> None:
        """End the connections of this moment, as a server that crashed."""
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers += [writer, up_writer]
        for source, target in ((reader, up_writer), (up_reader, writer)):
            pump = asyncio.create_task(self._pump(source, target))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
            target.close()
        except ConnectionError:
            target.close()
