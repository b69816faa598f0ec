"""Servers that tests break: one node, or three with replicas; killed, paused, drained, started again in their place.

Owns the processes, and what can be asked of them past the library: who leads a stream, whether all replicas are
current. Nothing here waits in a way that would hold up the viewers of the same event loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nats
from jetstream_kit import Server
from listening import free_port
from nats.aio.client import Client
from waiting import eventually

import natsjobs
from natsjobs import Config, JobManager, embedded
from natsjobs.config import Limits, Timing
from natsjobs.engine.subjects import Subjects

_PLAIN = 'jetstream: {store_dir: "$STORE"}\n'


@dataclass
class Space:
    """A namespace on servers, with settings: what a process needs to know to be a replica. Plain JSON values."""

    urls: list[str]
    replicas: int = 1
    timing: dict[str, float] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    namespace: str = field(default_factory=lambda: f"f{uuid.uuid4().hex[:12]}")

    @property
    def config(self) -> Config:
        """The settings of a replica."""
        return Config(
            namespace=self.namespace,
            replicas=self.replicas,
            timing=Timing(**self.timing),
            limits=Limits(**self.limits),
        )

    @property
    def subjects(self) -> Subjects:
        """The names of the namespace."""
        return Subjects(self.namespace)

    @property
    def lease(self) -> float:
        """Seconds within which a dead owner's jobs end."""
        return self.config.timing.lease

    def by(self, *urls: str) -> Space:
        """The same namespace by another way."""
        return replace(self, urls=list(urls))

    def replica(self, **options: Any) -> AbstractAsyncContextManager[JobManager, None]:
        """A replica in this process."""
        return natsjobs.connect(self.urls, config=self.config, **options)


class Node(Server):
    """A server process: launched without waiting, killed, paused, drained."""

    def __init__(self, folder: Path, text: str = _PLAIN, name: str = "") -> None:
        super().__init__(folder, text, free_port())
        self.name = name

    @property
    def space(self) -> Space:
        """A new namespace on this server alone."""
        return Space([self.url])

    @property
    def running(self) -> bool:
        """Whether the process is there; also when it is paused."""
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start the process at its old place; ``ready`` waits for it."""
        if self.running:
            return
        binary = os.environ.get("NATS_SERVER_BIN") or str(embedded.find_binary())
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([binary, "-c", str(self._file)], stdout=log, stderr=log)

    async def ready(self) -> None:
        """Wait until it takes connections."""

        async def accepts() -> bool:
            assert self.running, self._log.read_text()[-2000:]
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
                return True
            return False

        await eventually(accepts, within=30)

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    async def gone(self, within: float = 60.0) -> None:
        """Wait until the process has ended by itself, after a SIGTERM or SIGUSR2."""
        await eventually(lambda: not self.running, within=within)


class Nodes:
    """Three nodes on loopback."""

    def __init__(self, folder: Path) -> None:
        routes = {name: free_port() for name in ("n1", "n2", "n3")}
        urls = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in routes.values())
        self.all: dict[str, Node] = {}
        for name, port in routes.items():
            text = (
                f"server_name: {name}\n{_PLAIN}"
                'lame_duck_duration: "30s"\nlame_duck_grace_period: "1s"\n'
                f'cluster: {{name: c, listen: "127.0.0.1:{port}", routes: [{urls}], no_advertise: true}}\n'
            )
            self.all[name] = Node(folder, text, name)

    @property
    def space(self) -> Space:
        """A new namespace with three replicas."""
        return Space([node.url for node in self.all.values()], replicas=3)

    def launch(self) -> None:
        """Start those that do not run."""
        for node in self.all.values():
            node.launch()

    def stop(self) -> None:
        """Stop all of them."""
        for node in self.all.values():
            if node.running:
                node.stop()

    async def heal(self) -> None:
        """All run, and the cluster takes requests."""
        for node in self.all.values():
            if node.running:
                node.signal(signal.SIGCONT)
        self.launch()
        for node in self.all.values():
            await node.ready()
        async with admin(self.space) as nc:

            async def has_leader() -> bool:
                return "error" not in await api(nc, "INFO")

            await eventually(has_leader, within=60)

    async def leader(self, nc: Client, stream: str) -> Node | None:
        """The node that leads a stream, when one does and it runs."""
        info = await api(nc, f"STREAM.INFO.{stream}", timeout=0.3)  # without a leader nobody answers
        found = self.all.get((info.get("cluster") or {}).get("leader") or "")
        return found if found is not None and found.running else None

    async def led(self, nc: Client, stream: str, *, other_than: Node | None = None) -> Node:
        """Wait until a node (another one) leads a stream."""

        async def found() -> Node | None:
            leader = await self.leader(nc, stream)
            return leader if leader is not other_than else None

        node: Node = await eventually(found, within=60)
        return node

    async def whole(self, nc: Client, space: Space) -> None:
        """Wait until every replica of both streams is current."""
        for stream in (space.subjects.events_stream, space.subjects.records_stream):

            async def current(stream: str = stream) -> bool:
                cluster = (await api(nc, f"STREAM.INFO.{stream}")).get("cluster") or {}
                peers = cluster.get("replicas") or []
                return bool(cluster.get("leader")) and len(peers) == 2 and all(peer["current"] for peer in peers)

            await eventually(current, within=60)


def program(name: str) -> tuple[str, dict[str, str]]:
    """A program that stands here, and the environment in which it finds the very natsjobs that is tested."""
    package = Path(natsjobs.__file__).resolve().parent.parent
    return str(Path(__file__).with_name(name)), {**os.environ, "PYTHONPATH": str(package)}


@asynccontextmanager
async def admin(space: Space) -> AsyncIterator[Client]:
    """A connection past the library, quick to come back; the namespace's streams go at the end."""
    options: dict[str, Any] = {"reconnect_time_wait": 0.1, "max_reconnect_attempts": -1, "error_cb": _quiet}
    nc = await nats.connect(space.urls, **options)
    try:
        yield nc
    finally:
        for stream in (space.subjects.events_stream, space.subjects.records_stream):
            await api(nc, f"STREAM.DELETE.{stream}")
        await nc.close()


async def api(nc: Client, subject: str, body: object = None, *, timeout: float = 2.0) -> dict[str, Any]:
    """One request to the JetStream API; ``{"error": …}`` also when nobody answers."""
    query = b"" if body is None else json.dumps(body).encode()
    try:
        answer = await nc.request(f"$JS.API.{subject}", query, timeout=timeout)
    except (nats.errors.Error, OSError) as error:
        return {"error": {"description": repr(error)}}
    decoded: dict[str, Any] = json.loads(answer.data)
    return decoded


async def _quiet(_: Exception) -> None:
    """Broken connections are what these tests provoke."""
