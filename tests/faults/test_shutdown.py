"""A replica that is told to stop: its runs end with a record that says so, its viewers get it, in a bounded time.

Real processes and real signals. The viewers are in this process, so what they see has crossed the server; the workers
have viewers of their own, which end as well. The bound is that of ``natsjobs.connect``.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fault_table import Row
from httpx_sse import aconnect_sse
from jetstream_kit import Server, server
from waiting import eventually, soon

import natsjobs
from natsjobs import Config, StreamEvent
from natsjobs.config import Timing

HERE = Path(__file__).parent
TIMING: dict[str, float] = {"lease": 3.0, "renew": 1.0, "request": 3.0, "abort": 1.0, "give_up": 60.0, "look": 0.3}
AT_MOST = 2 * TIMING["request"] + 6 * TIMING["abort"] + 2
"""What ``natsjobs.connect`` promises: the longest that leaving takes."""
AWAY = TIMING["request"] + 2
"""With NATS away and bodies that obey: the wait for NATS, and closing the connection."""


class Worker:
    """A worker process, and what it says."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.said: dict[str, Any] = {}
        self.errors = ""

    async def says(self, word: str) -> Any:
        """Wait for a line that tells this."""
        assert self._process.stdout is not None
        while word not in self.said:
            line = await soon(self._process.stdout.readline(), within=40)
            assert line, f"it ended without saying {word}: {(await self._process.communicate())[1].decode()}"
            self.said |= json.loads(line)
        return self.said[word]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> float:
        """Tell it to stop; when that was."""
        self._process.send_signal(how)
        return time.monotonic()

    async def leaves(self) -> float:
        """Wait until it has left by itself; when that was."""
        await self.says("left")
        self.errors = (await soon(self._process.communicate(), within=40))[1].decode()
        assert self._process.returncode == 0, self.errors
        return time.monotonic()

    async def kill(self) -> None:
        """Whatever it does."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            await self._process.communicate()


@asynccontextmanager
async def worker(url: str, config: Config, **options: Any) -> AsyncIterator[Worker]:
    """A worker whose runs have begun."""
    text = json.dumps({"timing": TIMING, **options})
    arguments = (sys.executable, str(HERE / "stopping_worker.py"), url, config.namespace, text)
    made = Worker(await asyncio.create_subprocess_exec(*arguments, stdout=PIPE, stderr=PIPE))
    try:
        await made.says("running")
        yield made
    finally:
        await made.kill()


@pytest.fixture
def config(request: pytest.FixtureRequest) -> Config:
    """A namespace of one's own."""
    return Config(namespace=f"stop{os.getpid()}-{abs(hash(request.node.name)) % 10**8}", timing=Timing(**TIMING))


class Viewer:
    """Somebody elsewhere who follows one run to its end."""

    def __init__(self, jobs: natsjobs.JobManager, stream_id: str) -> None:
        self.events: list[StreamEvent] = []
        self.ended_at = 0.0
        self.task = asyncio.create_task(self._follow(jobs, stream_id))

    async def _follow(self, jobs: natsjobs.JobManager, stream_id: str) -> None:
        async with jobs.subscribe(stream_id, wait=20) as events:
            async for event in events:
                self.events.append(event)
        self.ended_at = time.monotonic()

    def count(self, row: Row) -> StreamEvent:
        """Count what it saw; its terminal record."""
        *body, end = self.events
        assert end.is_terminal
        assert [event.index for event in body] == [event.data for event in body], "the events are their numbers"
        row.viewer(range(end.index), [event.index for event in body])
        return end


async def watch(jobs: natsjobs.JobManager, names: list[str]) -> list[Viewer]:
    """A viewer of each run, each of which has seen something."""
    viewers = [Viewer(jobs, name) for name in names]
    await eventually(lambda: all(viewer.events or viewer.task.done() for viewer in viewers))
    return viewers


async def ended(viewers: list[Viewer], row: Row, since: float) -> list[StreamEvent]:
    """Every viewer's terminal record, counted."""
    async with asyncio.timeout(30):
        await asyncio.gather(*(viewer.task for viewer in viewers))
    row.detected += [viewer.ended_at - since for viewer in viewers if viewer.ended_at > since]
    return [viewer.count(row) for viewer in viewers]


def shut_down(ends: list[StreamEvent]) -> bool:
    """Whether all of them say that the replica was told to stop."""
    return {(end.type, end.end_reason) for end in ends} == {("error", "shutdown")}


# -- with NATS there ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "how"), [("connect", signal.SIGTERM), ("pair", signal.SIGINT)])
async def test_told_to_stop_every_run_ends_with_a_record_that_says_so(
    newest_server: str, config: Config, row: Row, form: str, how: signal.Signals, long: bool
) -> None:
    """Viewers elsewhere and here get all events and then the end; jobs leave the lists; the process is gone soon."""
    runs = 200 if long else 20
    async with natsjobs.connect(newest_server, config=config) as jobs:
        async with worker(newest_server, config, form=form, runs=runs) as told:
            viewers = await watch(jobs, told.said["running"])
            since = told.stop(how)
            row.fault(f"{how.name} to a worker")
            gone = await told.leaves()
            ends = await ended(viewers, row, since)
            late = [Viewer(jobs, f"s{number}") for number in range(5)]
            ends += await ended(late, Row("late", 0), since)
        assert shut_down(ends)
        row.whole()
        assert gone - since < AT_MOST
        for local in told.said.get("local", []):
            assert local["end"] == "shutdown"
            assert local["seen"] == list(range(local["total"]))
        assert len(told.said["ends"]) == 1, "a handler's on_error is called once"
        assert told.said["handled"] == ends[0].index
        assert await jobs.active("alice") == []
        found = await jobs.list_jobs()
        # A run in a block is cancelled with the task that holds it; the runs of the manager are shut down.
        assert {job.end_reason for job in found} <= {natsjobs.EndReason.SHUTDOWN, natsjobs.EndReason.CANCELLED}
        assert len(found) == runs + (form == "connect")
        row.notes |= {"form": form, "left_s": round(told.said["left"], 3), "exit_s": round(gone - since, 3)}


async def test_bodies_and_handlers_that_ignore_it_hold_nobody_up(newest_server: str, config: Config, row: Row) -> None:
    """The runs have ended for everybody, leaving takes no longer than promised, and the log names each run."""
    async with natsjobs.connect(newest_server, config=config) as jobs:
        async with worker(newest_server, config, runs=5, stubborn=True) as told:
            viewers = await watch(jobs, told.said["running"])
            since = told.stop()
            row.fault("SIGTERM to bodies that swallow it")
            gone = await told.leaves()
            ends = await ended(viewers, row, since)
        assert shut_down(ends)
        row.whole()
        assert max(row.detected) < TIMING["request"]
        assert told.said["left"] < AT_MOST
        for name in told.said["running"]:
            assert f"run of job '{name}' was interrupted and has not stopped" in told.errors
        assert "handlers of a subscription was cancelled and has not ended" in told.errors
        row.notes |= {"left_s": round(told.said["left"], 3), "exit_s": round(gone - since, 3)}


async def test_a_second_and_a_third_signal_change_nothing_of_the_end(
    newest_server: str, config: Config, row: Row
) -> None:
    """While bodies clean up the program is told again and again: the records are written, and it leaves."""
    async with natsjobs.connect(newest_server, config=config) as jobs:
        async with worker(newest_server, config, runs=5, clean_up=0.5) as told:
            viewers = await watch(jobs, told.said["running"])
            since = told.stop()
            for _ in range(4):
                await asyncio.sleep(0.05)
                told.stop(signal.SIGINT)
            row.fault("SIGTERM, then SIGINT", 5)
            gone = await told.leaves()
            ends = await ended(viewers, row, since)
        assert shut_down(ends)
        row.whole()
        assert gone - since < AT_MOST
        # All but the one in a block, whose task is the one that is told again and again.
        assert set(told.said["running"]) <= set(told.said["cleaned"])
        row.notes |= {"exit_s": round(gone - since, 3)}


async def test_drained_first_short_runs_complete_and_only_the_rest_is_shut_down(
    newest_server: str, config: Config, row: Row
) -> None:
    """``drain(2)`` on SIGTERM, then leaving: whoever can finish does; the number it gives is that of the others."""
    async with natsjobs.connect(newest_server, config=config) as jobs:
        async with worker(newest_server, config, form="drain", runs=10) as told:
            viewers = await watch(jobs, told.said["running"])
            since = told.stop()
            row.fault("SIGTERM, drained")
            gone = await told.leaves()
            ends = await ended(viewers, row, since)
        row.whole()
        assert [end.type.value for end in ends] == ["error", "done"] * 5
        assert {end.end_reason for end in ends} == {"shutdown", None}
        assert told.said["ended"] == 5
        assert gone - since < 2 + AT_MOST
        row.notes |= {"exit_s": round(gone - since, 3)}


# -- with NATS away -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stopped", "silent"])
async def test_with_nats_away_it_leaves_in_time_and_says_what_could_not_be_stored(
    tmp_path: Path, config: Config, row: Row, how: str
) -> None:
    """The log names each job; when NATS is back its viewers get one end: that of the lease, or of the stop."""
    with server(tmp_path) as running:
        async with natsjobs.connect(running.url, config=config) as jobs:
            async with worker(running.url, config, runs=5, timing={**TIMING, "abort": 2.0}) as told:
                viewers = await watch(jobs, told.said["running"])
                _away(running, how)
                row.fault(f"server {how}")
                since = told.stop()
                row.fault("SIGTERM to a worker")
                await told.leaves()
                assert told.said["left"] < AWAY, told.errors
                for name in told.said["running"]:
                    assert f"the end of job {name} " in told.errors
                assert "it is ended when the lease lapses" in told.errors
                assert "has not ended within" not in told.errors, "bodies that obey are not blamed"
            _back(running, how)
            ends = await ended(viewers, row, since)
        assert {end.end_reason for end in ends} <= {"owner_lost", "shutdown"}
        assert {end.type.value for end in ends} == {"error"}
        row.whole()
        row.notes |= {"left_s": round(told.said["left"], 3)}


def _away(running: Server, how: str) -> None:
    running.signal(signal.SIGSTOP) if how == "silent" else running.stop()


def _back(running: Server, how: str) -> None:
    running.signal(signal.SIGCONT) if how == "silent" else running.start()


# -- under uvicorn ------------------------------------------------------------------------------------------------


async def test_uvicorn_told_to_stop_ends_the_applications_runs(newest_server: str, config: Config, row: Row) -> None:
    """Event streams get their graceful time, the lifespan is left, its runs end; viewers elsewhere see it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "NATS_URL": newest_server, "NATSJOBS_NAMESPACE": config.namespace}
    arguments = ("-m", "uvicorn", "stopping_app:app", "--port", str(port), "--timeout-graceful-shutdown", "1")
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=HERE, env=env, stdout=PIPE, stderr=PIPE
    )
    try:
        async with natsjobs.connect(newest_server, config=config) as jobs:
            viewers = await watch(jobs, ["s0", "s1", "s2"])
            async with (
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
                aconnect_sse(client, "GET", "/jobs/streams/s0/events") as source,
            ):
                frames = source.aiter_sse()
                await anext(frames)
                process.send_signal(signal.SIGTERM)
                since = time.monotonic()
                row.fault("SIGTERM to uvicorn")
                # It is cut off after its second, and an EventSource goes on at another replica.
                with suppress(httpx.RemoteProtocolError):
                    async with asyncio.timeout(20):
                        assert [frame.event async for frame in frames]
            ends = await ended(viewers, row, since)
            await soon(process.wait())
            row.notes |= {"exit_s": round(time.monotonic() - since, 3)}
            assert shut_down(ends)
            row.whole()
            assert time.monotonic() - since < 1 + AT_MOST
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
