"""What the tests with real clients share: a proxy whose far end can be changed, gateway processes, transcripts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from waiting import soon

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "transcripts"
TRANSCRIPTS = sorted(FOLDER.glob("*.jsonl"))


def lines_of(path: Path) -> list[Any]:
    """The events of a transcript."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


class Proxy:
    """One address in front of several gateways, as a load balancer is; connections can be cut."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.accepted = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Where browsers go."""
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Break every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection to whoever is behind now."""
        self.accepted += 1
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, far_writer}
        self._writers |= pair
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, far_writer))
                group.create_task(_pump(far_reader, writer))
        finally:
            self._writers -= pair
            for one in pair:
                one.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


@asynccontextmanager
async def proxying(target: int) -> AsyncIterator[Proxy]:
    """A proxy on a free loopback port."""
    proxy = Proxy(target)
    tasks: set[asyncio.Task[None]] = set()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await proxy.accept(reader, writer)
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
        if tasks:
            await soon(asyncio.wait(set(tasks)))


class GatewayProcess:
    """``natsjobs serve`` as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process, self.port = process, port

    async def kill(self) -> None:
        """SIGKILL: nothing is said to anybody."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        await soon(self.process.wait())


@asynccontextmanager
async def gateway_process(url: str, namespace: str, *arguments: str) -> AsyncIterator[GatewayProcess]:
    """Started, and listening."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "natsjobs", "--server", url, "--namespace", namespace, "serve", "--port", "0", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    try:
        said = (await soon(process.stdout.readline(), within=60)).decode()
        found = re.search(r":([0-9]+) \(", said)
        assert found is not None, f"the gateway did not start: {said}"
        yield GatewayProcess(process, int(found[1]))
    finally:
        if process.returncode is None:
            await GatewayProcess(process, 0).kill()
        process._transport.close()  # type: ignore[attr-defined]  # else it warns when it is collected
