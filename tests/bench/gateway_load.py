"""How many readers a gateway process carries: ``python tests/bench/gateway_load.py``. Prints a table; asserts nothing
but that every client got everything, in order, to the end, and that the server has no consumer.

Real processes: one nats-server, one ``natsjobs serve``, and the clients in this one. Three works: 2,000 clients on one
job; 2,000 clients on as many jobs; 200 clients that come back at the same moment, as after a restarted pod.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nats

import natsjobs
from natsjobs import embedded
from natsjobs.config import Config

TICKS = os.sysconf("SC_CLK_TCK")


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


class Client:
    """A reader of server-sent events that does as little as possible."""

    def __init__(self, port: int, stream_id: str) -> None:
        self.seen, self.first, self.ended = 0, 0.0, ""
        self._port, self._id = port, stream_id

    async def read(self, after: str = "") -> None:
        """To the end; ``first``: when the first frame was here, on the monotonic clock."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        query = f"?raw=1&after={after}" if after else "?raw=1"
        writer.write(f"GET /streams/{self._id}/events{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        kind = ""
        while line := await reader.readline():
            if line.startswith(b"event: "):
                kind = line[7:].strip().decode()
            elif line.startswith(b"data: "):
                self.first = self.first or time.monotonic()
                if kind in {"done", "error", "aborted"}:
                    self.ended = kind
                    break
                number = json.loads(line[6:])["n"]
                assert number == self.seen, f"event {number} came in place of {self.seen}"
                self.seen += 1
            elif line == b"\n":
                kind = ""
        writer.close()


async def work(name: str, jobs: Any, gate: Any, clients: int, ids: list[str], events: int, rate: float) -> None:
    """Clients that wait for jobs, the jobs, and what it cost the gateway."""
    go = asyncio.Event()

    async def body(run: Any) -> None:
        await go.wait()
        for number in range(events):
            await run.emit({"n": number, "text": "x" * 120})
            await asyncio.sleep(1 / rate)

    for start in range(0, len(ids), 50):
        await asyncio.gather(*(jobs.spawn(one, body, user_id="u") for one in ids[start : start + 50]))
    before = memory(gate.pid)
    readers = [Client(gate.port, ids[k % len(ids)]) for k in range(clients)]
    tasks = [asyncio.create_task(reader.read()) for reader in readers]
    while f"natsjobs_http_feeds {clients}.0" not in await fetch(gate.port, "/metrics"):
        await asyncio.sleep(0.5)
    held, used, begin = memory(gate.pid), cpu(gate.pid), time.monotonic()
    go.set()
    await asyncio.gather(*tasks)
    seconds, used = time.monotonic() - begin, cpu(gate.pid) - used
    whole = sum(reader.seen == events and reader.ended == "done" for reader in readers)
    print(
        f"{name}: {whole} of {clients} clients whole, {(held - before) / clients / 1000:.1f} kB per client, "
        f"{used / (clients * events) * 1e6:.0f} µs CPU of the gateway per delivered event, "
        f"{clients * events / seconds:,.0f} events/s"
    )
    assert whole == clients


async def fetch(port: int, path: str) -> str:
    """A plain GET."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    said = (await reader.read()).decode()
    writer.close()
    return said


async def coming_back(jobs: Any, gate: Any, clients: int) -> None:
    """From the connect of a client to its first replayed byte, all at once, each on its own log of 200 events."""
    ids = [f"back{k}" for k in range(clients)]
    for start in range(0, clients, 20):
        await asyncio.gather(*(jobs.spawn(one, recorded, user_id="u") for one in ids[start : start + 20]))
    while await jobs.active("u"):
        await asyncio.sleep(0.1)
    readers = [Client(gate.port, one) for one in ids]
    begin = time.monotonic()
    await asyncio.gather(*(reader.read() for reader in readers))
    times = sorted(reader.first - begin for reader in readers)
    assert all(reader.seen == 200 for reader in readers)
    print(
        f"{clients} clients back at once: first replayed byte p50 {times[clients // 2] * 1e3:.0f} ms, "
        f"p99 {times[int(clients * 0.99)] * 1e3:.0f} ms"
    )


async def recorded(run: Any) -> None:
    """A body that leaves a log."""
    for number in range(200):
        await run.emit({"n": number, "text": "x" * 120})


class Gate:
    """A ``natsjobs serve`` process."""

    def __init__(self, url: str) -> None:
        argv = [sys.executable, "-m", "natsjobs", "--server", url, "serve", "--port", "0"]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.port, self.pid = int(line.split("127.0.0.1:")[1].split()[0]), self._process.pid

    def stop(self) -> None:
        """SIGTERM."""
        self._process.terminate()
        self._process.wait(30)


async def main(clients: int) -> None:
    """All works."""
    with embedded.server() as server:
        gate = Gate(server.url)
        try:
            async with natsjobs.connect(server.url, config=Config()) as jobs:
                await work("one hot job", jobs, gate, clients, ["hot"], 100, 10)
                await work("as many jobs", jobs, gate, clients, [f"j{k}" for k in range(clients)], 20, 2)
                await coming_back(jobs, gate, 200)
            nc = await nats.connect(server.url)
            for stream in ("natsjobs_events", "KV_natsjobs_jobs"):
                answer = json.loads((await nc.request(f"$JS.API.CONSUMER.NAMES.{stream}", timeout=5)).data)
                print(f"{stream}: {answer['total']} consumers")
                assert answer["total"] == 0
            await nc.close()
        finally:
            gate.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=2000)
    asyncio.run(main(parser.parse_args().clients))
