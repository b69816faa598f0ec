"""The servers of a benchmark and its processes: started on loopback, looked at, ended by their process id.

Owns ports, folders and the reading of CPU time and memory from the kernel. Linux only, like the figures.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec

from natsjobs import embedded
from natsjobs.errors import NatsJobsError, UnavailableError

_TICKS = os.sysconf("SC_CLK_TCK")
_PATIENCE = 600.0
_LINE = 1 << 26


class BenchError(NatsJobsError):
    """A side did not do the work: something was missing, out of order, or a process broke."""


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


class Server:
    """A running server: where, and its processes."""

    def __init__(self, url: str, pids: list[int]) -> None:
        """Use ``nats`` or ``redis``."""
        self.url, self.pids = url, pids

    @property
    def cpu(self) -> float:
        """Seconds of CPU used so far."""
        return sum(cpu_of(pid) for pid in self.pids)


def started(kind: str) -> AbstractContextManager[Server]:
    """A server of a kind (``nats``, ``nats-3`` or ``redis``) with nothing in it, for the length of the block."""
    return redis() if kind == "redis" else nats(3 if kind == "nats-3" else 1)


@contextmanager
def nats(nodes: int = 1) -> Generator[Server]:
    """One nats-server, or a cluster."""
    if nodes == 1:
        with embedded.server() as running:
            yield Server(running.url, [running.pid])
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="natsjobs-bench-")))
        ports, routes = [_free_port() for _ in range(nodes)], [_free_port() for _ in range(nodes)]
        targets = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in routes)
        pids: list[int] = []
        health = [_free_port() for _ in range(nodes)]
        for number, (port, route) in enumerate(zip(ports, routes, strict=True)):
            file = folder / f"{number}.conf"
            file.write_text(
                f'listen: "127.0.0.1:{port}"\nserver_name: n{number}\nhttp: "127.0.0.1:{health[number]}"\n'
                f'jetstream {{store_dir: "{folder / str(number)}"}}\n'
                f'cluster {{name: bench, listen: "127.0.0.1:{route}", routes: [{targets}], no_advertise: true}}\n'
            )
            pids.append(stack.enter_context(_running([str(embedded.find_binary()), "-c", str(file)], port)))
        for port in health:
            _wait_until_healthy(port)
        yield Server(",".join(f"nats://127.0.0.1:{port}" for port in ports), pids)


def _wait_until_healthy(port: int) -> None:
    """Until a node of a cluster knows the leader and has caught up with it."""
    for _ in range(1500):
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5):
            return
        time.sleep(0.02)
    raise UnavailableError("the cluster of the benchmark has found no leader in time")


@contextmanager
def redis() -> Generator[Server]:
    """One redis-server that keeps nothing on disk."""
    binary = shutil.which("redis-server")
    assert binary is not None
    with tempfile.TemporaryDirectory(prefix="natsjobs-bench-") as folder:
        port = _free_port()
        argv = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
        with _running(argv, port) as pid:
            yield Server(f"redis://127.0.0.1:{port}", [pid])


def has_redis() -> bool:
    """Whether the peer can be measured: its server and its libraries are there."""
    return shutil.which("redis-server") is not None and all(find_spec(name) for name in ("redis", "hiredis"))


def has_uvloop() -> bool:
    """Whether its rows can be measured."""
    return find_spec("uvloop") is not None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(argv: list[str], port: int) -> Generator[int]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)  # noqa: S603 - a server of ours
        try:
            for _ in range(500):
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                if process.poll() is not None:
                    log.seek(0)
                    raise UnavailableError(f"{argv[0]} did not start: {log.read()[-500:]!r}")
                time.sleep(0.02)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Process:
    """An actor process, as the coordinator sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        """Use ``start``."""
        self._process = process

    @staticmethod
    async def start(side: str, server: Server, settings: dict[str, Any]) -> Process:
        """On a side; connected when it has answered its first command."""
        argv = ["-m", "natsjobs.cli.bench.actor", side, server.url, msgspec.json.encode(settings).decode()]
        pipe = asyncio.subprocess.PIPE
        return Process(
            await asyncio.create_subprocess_exec(sys.executable, *argv, stdin=pipe, stdout=pipe, limit=_LINE)
        )

    async def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have it do something; its figures. One at a time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        command = {"do": do, "with": arguments}
        self._process.stdin.write(msgspec.json.encode(command) + b"\n")
        async with asyncio.timeout(_PATIENCE):
            line = await self._process.stdout.readline()
        if not line:
            raise BenchError(f"a process ended in the middle of {do}; its words are above")
        answer = msgspec.json.decode(line)
        if "error" in answer:
            raise BenchError(f"{do}: {answer['error']}")
        return dict(answer["result"])

    async def close(self) -> None:
        """End it, in the middle of whatever it does: its servers are gone next."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
