"""A replica that works for a long time stays as it was: memory, tasks, subscriptions, keys and subjects.

The replica is a process of its own that measures itself when its warm-up is over and again and again after that; the
server is asked for what it holds. The short form is a tenth of the long one, which is that of the promise: 10,000 jobs,
100,000 events, 10,000 viewers.
"""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from fault_table import Row
from jetstream_kit import server
from listening import free_port
from waiting import eventually, soon

PROGRAM = Path(__file__).with_name("endurance_worker.py")
FLAT_KB = 10_240
"""What memory may grow after the warm-up: allocators keep pages back, and a leak of what went through is far more."""
FEW = 200
"""What the number of objects may differ by: caches and half-finished timers, not one object per job."""


class Endured:
    """What the worker measured, and its server."""

    def __init__(self, url: str, monitor: int) -> None:
        self.url, self._monitor = url, monitor
        self.measures: list[dict[str, Any]] = []

    def asked(self, page: str) -> dict[str, Any]:
        """A page of the server's monitoring."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._monitor}/{page}", timeout=10) as answer:
            return dict(json.loads(answer.read()))

    async def subjects(self, stream: str) -> dict[str, int]:
        """Subjects that a stream holds messages of."""
        nc = await nats.connect(self.url)
        query = json.dumps({"subjects_filter": ">"}).encode()
        reply = await nc.request(f"$JS.API.STREAM.INFO.{stream}", query, timeout=10)
        await nc.close()
        return dict(json.loads(reply.data)["state"].get("subjects") or {})

    async def values(self, stream: str, *, long: bool) -> set[str]:
        """Keys that hold a value, or (``long``) that the server's marker is still there of, which goes after 60 s."""
        keys = set(await self.subjects(stream))
        if long:
            return keys
        nc = await nats.connect(self.url)
        for key in sorted(keys):
            query = json.dumps({"last_by_subj": key}).encode()
            reply = await nc.request(f"$JS.API.STREAM.MSG.GET.{stream}", query, timeout=10)
            if not (message := json.loads(reply.data).get("message")) or not message.get("data"):
                keys.discard(key)
        await nc.close()
        return keys

    @property
    def warm(self) -> dict[str, Any]:
        """The measure that the others are compared with."""
        return self.measures[1 if len(self.measures) > 2 else 0]

    def flat(self, row: Row) -> None:
        """Assert that nothing grew between the first measure after the warm-up and the last."""
        first, last = self.warm, self.measures[-1]
        row.notes |= {
            "rss_kb": [one["rss_kb"] for one in self.measures],
            "objects": [one["objects"] for one in self.measures],
            "tasks": [one["tasks"] for one in self.measures],
            "subscriptions": [len(one["subscriptions"]) for one in self.measures],
        }
        kinds = dict(last["kinds"])
        grown = {name: kinds[name] - count for name, count in first["kinds"] if name in kinds}
        grown = {name: more for name, more in grown.items() if more > 20}
        assert last["tasks"] <= first["tasks"] + 2, (first["tasks"], last["tasks"])
        assert last["subscriptions"] == first["subscriptions"]
        assert last["objects"] - first["objects"] < FEW, grown
        assert last["rss_kb"] - first["rss_kb"] < FLAT_KB, row.notes["rss_kb"]


@asynccontextmanager
async def endured(folder: Path, scenario: str, amount: int, *, within: float = 110.0) -> AsyncIterator[Endured]:
    """Let a worker do this; it still holds its connection when this is entered."""
    monitor = free_port()
    with server(folder, f'jetstream: {{store_dir: "$STORE"}}\nhttp: "127.0.0.1:{monitor}"\n') as running:
        made = Endured(running.url, monitor)
        arguments = (sys.executable, str(PROGRAM), scenario, running.url, "endure", str(amount))
        process = await asyncio.create_subprocess_exec(*arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=1 << 20)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(within):
                while True:
                    line = await process.stdout.readline()
                    assert line, (await process.communicate())[1].decode()
                    if "finished" in (said := json.loads(line)):
                        break
                    made.measures.append(said)
            yield made
            _, errors = await soon(process.communicate(b"\n"))
            assert process.returncode == 0
            assert b"Traceback" not in errors, errors.decode()
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()


@pytest.mark.timeout(1200)
async def test_many_jobs_through_one_replica_leave_nothing_behind(tmp_path: Path, row: Row, long: bool) -> None:
    """Every table of the replica is as empty as before, and so are stream and bucket once everything has expired."""
    amount = 10_000 if long else 1_000
    async with endured(tmp_path, "jobs", amount, within=1100.0 if long else 300.0) as done:
        row.emitted = amount * 10
        row.seen = sum(one["seen"] for one in done.measures)
        row.fault("jobs through one replica", amount)
        # An aborted job may have been ended before its last events; the others' viewers see all ten.
        assert row.seen == amount // 5 * 10
        first, last = done.warm, done.measures[-1]
        for field in sorted(last["held"]):
            assert last["held"][field] <= first["held"].get(field, 0) + 3, (field, first["held"], last["held"])
        done.flat(row)

        async def expired() -> bool:
            left = set(await done.subjects("endure_events")) | await done.values("KV_endure_jobs", long=long)
            row.notes["subjects_left"] = len(left)
            return all(".owner." in subject for subject in left) and len(left) <= 1

        await eventually(expired, within=100 if long else 20)
        row.notes["server_subscriptions"] = done.asked("subsz")["num_subscriptions"]
        assert done.asked("connz")["num_connections"] == 1
        assert done.asked("jsz?consumers=true")["consumers"] == 0


async def test_memory_stays_flat_over_100_000_events_without_a_viewer(tmp_path: Path, row: Row) -> None:
    """An unattended run: what is stored is not held (LibreChat ran out of heap)."""
    async with endured(tmp_path, "run", 100_000) as done:
        row.fault("unattended run")
        row.emitted = row.acknowledged = 100_000
        done.flat(row)
        assert done.measures[-1]["done"] == 100_000


@pytest.mark.timeout(600)
async def test_viewers_that_come_and_go_leave_nothing_behind(tmp_path: Path, row: Row, long: bool) -> None:
    """Readers, handlers, and readers that wait in vain: no task, subscription or table of theirs stays."""
    amount = 10_000 if long else 1_000
    async with endured(tmp_path, "viewers", amount, within=550.0 if long else 300.0) as done:
        row.fault("viewers come and go", amount)
        first, last = done.warm, done.measures[-1]
        for field in sorted(last["held"]):
            assert last["held"][field] <= first["held"].get(field, 0) + 3, (field, first["held"], last["held"])
        done.flat(row)
