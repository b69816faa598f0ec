"""For the partition tests: a cluster of three nodes, one to a host, and replicas that are processes on other hosts.

Owns how they are started, what they are told and what they said. The nodes ping as ``deploy/nats`` has it unless a
test asks for the server's defaults. Nothing advertises itself, so a client knows exactly the nodes that it was given.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import signal
import sys
import time
import uuid
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from netns import Network, NoNamespacesError, Rough, network
from waiting import eventually, soon

from natsjobs import embedded
from natsjobs.engine.subjects import Subjects

NODES = ("node1", "node2", "node3")
DEPLOYED = "ping_interval: 10s\nping_max: 2\n"
"""What ``deploy/nats`` sets: a silent client is dropped after 30 s at most, by default after 6 minutes."""

_PROGRAM = str(Path(__file__).with_name("netns_replica.py"))
_ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
_NO_MESSAGE = 10037
_TERMINAL = ("done", "error", "aborted")


class ToldError(Exception):
    """A call on another host raised; ``kind`` is the name of its exception."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Cluster:
    """Three nodes on the hosts of ``NODES``."""

    def __init__(self, net: Network, folder: Path, settings: str) -> None:
        """Starts them; a client waits until they have found each other."""
        self.net = net
        routes = ", ".join(f'"nats://{net.address(node)}:6222"' for node in NODES)
        binary = os.environ.get("NATS_SERVER_BIN") or str(embedded.find_binary())
        for node in NODES:
            here = net.address(node)
            file = folder / f"{node}.conf"
            file.write_text(
                f'server_name: {node}\nlisten: "{here}:4222"\njetstream: {{store_dir: "{folder / node}"}}\n{settings}'
                f'cluster: {{name: c, listen: "{here}:6222", routes: [{routes}], no_advertise: true}}\n'
            )
            with (folder / f"{node}.log").open("ab") as log:
                net.run(node, [binary, "-c", str(file)], stdout=log, stderr=log)

    def add_rough(self, name: str, rough: Rough) -> str:
        """One more host, over a bad line; its name. Where that is not allowed the test is skipped, and says why."""
        if name not in self.net.hosts:
            try:
                self.net.add(name, rough=rough)
            except NoNamespacesError as error:
                pytest.skip(f"a bad line needs a link of our own: {error}")
        return name

    def urls(self, *nodes: str) -> list[str]:
        """Where clients find these nodes."""
        return [f"nats://{self.net.address(node)}:4222" for node in nodes]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes and four hosts, for all tests of a module that takes this up."""
    with cluster(tmp_path_factory.mktemp("cluster"), "c1", "c2", "c3", "c4") as made:
        yield made


@contextmanager
def cluster(folder: Path, *hosts: str, settings: str = DEPLOYED) -> Iterator[Cluster]:
    """Three nodes, and hosts for clients. Where namespaces are not allowed the test is skipped, and says why."""
    with ExitStack() as stack:
        try:
            net = stack.enter_context(network(*NODES, *hosts))
        except NoNamespacesError as error:
            pytest.skip(f"silent cuts need network namespaces: {error}")
        yield Cluster(net, folder, settings)


class Program:
    """One replica on a host; ``lines`` is what it has said."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.lines: list[dict[str, Any]] = []
        self._process, self._log = process, log
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while text := await self._process.stdout.readline():
            line = json.loads(text)
            if "n" not in line:
                self.lines.append(line)
            elif not (future := self._calls.pop(line["n"])).done():
                if "error" in line:
                    future.set_exception(ToldError(line["error"], line["text"]))
                else:
                    future.set_result(line["value"])
        for future in self._calls.values():
            if not future.done():
                future.set_exception(AssertionError(f"{self.name} has ended; {self._log} says why"))

    async def tell(self, what: str, *, within: float = 30.0, **options: Any) -> Any:
        """Have it do something; what comes of it.

        Raises:
            ToldError: It raised.
        """
        assert self._process.stdin is not None
        number = time.monotonic_ns()
        self._calls[number] = future = asyncio.get_running_loop().create_future()
        self._process.stdin.write(json.dumps({"n": number, "do": what, **options}).encode() + b"\n")
        return await soon(future, within=within)

    def said(self, what: str, stream: str | None = None) -> list[dict[str, Any]]:
        """The lines of one kind, of one stream id or of all."""
        return [one for one in self.lines if one["what"] == what and stream in (None, one.get("stream"))]

    def stall(self, stream: str) -> float:
        """The longest time between two things that its viewer of a job saw."""
        times = [one["at"] for one in self.said("seen", stream)]
        return max((later - sooner for sooner, later in itertools.pairwise(times)), default=0.0)

    async def says(self, what: str, stream: str | None = None, *, count: int = 1, within: float = 30.0) -> Any:
        """Wait for a line; the ``count``-th of its kind."""
        await self._until(lambda: len(self.said(what, stream)) >= count, within, f"{what} of {stream}")
        return self.said(what, stream)[count - 1]

    async def end_of(self, stream: str, *, within: float = 30.0) -> Any:
        """Wait until it has seen the terminal record of a job; that."""

        def found() -> Any:
            return next((one for one in self.said("seen", stream) if one["terminal"]), None)

        return await self._until(found, within, f"end of {stream}")

    async def _until(self, check: Callable[[], Any], within: float, what: str) -> Any:
        def found() -> Any:
            assert not self._reading.done(), f"{self.name} has ended:\n{self._log.read_text()[-2000:]}"
            return check()

        try:
            return await eventually(found, within=within, what=f"{self.name} says nothing of {what}")
        except AssertionError as error:
            raise AssertionError(f"{error}; its last words: {self.lines[-3:]}, and {self._log}") from None

    def seen(self, stream: str) -> list[Any]:
        """What its viewer of a job got, the terminal record as its type."""
        return [one["type"] if one["terminal"] else one["data"] for one in self.said("seen", stream)]

    async def end(self) -> None:
        """Kill it."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        await self._reading


class Place:
    """One namespace on a cluster, with replicas on hosts."""

    def __init__(self, on: Cluster, folder: Path, timing: dict[str, float]) -> None:
        self.cluster, self.net = on, on.net
        self.namespace = f"t{uuid.uuid4().hex[:10]}"
        self.names = Subjects(self.namespace)
        self.timing = timing
        self._folder = folder
        self._programs: list[Program] = []

    async def replica(self, host: str, *nodes: str, given: bool = False, **timing: float) -> Program:
        """A replica on a host, connected to the first of these nodes; ``given``: on a connection that it was given."""
        settings = {
            "namespace": self.namespace,
            "urls": self.cluster.urls(*(nodes or NODES)),
            "timing": {**self.timing, **timing},
            "given": given,
        }
        argv = self.net.argv(host, [sys.executable, _PROGRAM, json.dumps(settings)])
        log = self._folder / f"{self.namespace}-{host}.log"
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(*argv, stdin=PIPE, stdout=PIPE, stderr=errors, env=_ENV)
        made = Program(host, process, log)
        self._programs.append(made)
        await made.says("ready", within=60)
        return made

    async def lead(self, by: Program, node: str) -> None:
        """Make a node the leader of the stream and of the bucket, with all replicas up to date."""
        for stream in (self.names.events_stream, self.names.records_stream):
            await eventually(
                lambda stream=stream: self._leads(by, node, stream), within=40, what=f"{node} leads {stream}"
            )

    async def _leads(self, by: Program, node: str, stream: str) -> bool:
        try:
            found = (await by.tell("api", subject=f"$JS.API.STREAM.INFO.{stream}")).get("cluster", {})
            if found.get("leader") == node:
                return [one["current"] for one in found.get("replicas", [])] == [True, True]
            query = {"placement": {"preferred": node}}
            await by.tell("api", subject=f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", body=query)
        except ToldError:
            pass  # the nodes are still finding each other again after the test before
        return False

    async def log(self, by: Program, stream: str, generation: str) -> list[dict[str, Any]]:
        """Every message in the log of a generation, read past the library."""
        found: list[dict[str, Any]] = []
        seq = 1

        async def answer() -> Any:
            query = {"seq": seq, "next_by_subj": self.names.scope(stream, generation)}
            try:
                got = await by.tell("api", subject=f"$JS.API.STREAM.MSG.GET.{self.names.events_stream}", body=query)
            except ToldError:
                return None  # no leader yet
            return got if "message" in got or got["error"]["err_code"] == _NO_MESSAGE else None

        while "message" in (got := await eventually(answer, what=f"the leader reads the log of {stream}")):
            found.append(json.loads(base64.b64decode(got["message"]["data"])))
            seq = got["message"]["seq"] + 1
        return found

    async def stored(self, by: Program, stream: str, generation: str) -> list[Any]:
        """What a log holds, in order: events, and terminal records as their types; what every viewer should see."""
        found: list[Any] = []
        for message in await self.log(by, stream, generation):
            found += message.get("events", []) if message["type"] == "events" else []
            found += [message["type"]] if message["type"] in _TERMINAL else []
        return found

    async def close(self) -> None:
        """Heal everything and end the replicas; their streams go too: the next test has the nodes for itself."""
        self.net.heal()
        if self._programs:
            for stream in (self.names.events_stream, self.names.records_stream):
                with suppress(ToldError, TimeoutError, AssertionError):  # the nodes may still be apart
                    await self._programs[0].tell("api", subject=f"$JS.API.STREAM.DELETE.{stream}", within=3)
        for program in self._programs:
            await program.end()


@asynccontextmanager
async def place(on: Cluster, folder: Path, **timing: float) -> AsyncIterator[Place]:
    """A namespace of its own; ``timing`` as in ``natsjobs.config.Timing``."""
    made = Place(on, folder, timing)
    try:
        yield made
    finally:
        await made.close()
