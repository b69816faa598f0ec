"""The demo: the whole main job with real processes. It proves something, and it leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from waiting import eventually

from natsjobs.cli.demo import source

LONGEST = 30.0


class Demo:
    """One run of the demo; its output is taken all the time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out = ""
        self.err = ""
        self.pids: list[int] = []

    async def listen(self) -> None:
        """Take its output until it ends."""
        await asyncio.gather(self._take("out", self.process.stdout), self._take("err", self.process.stderr))
        await self.process.wait()

    async def _take(self, name: str, pipe: Any) -> None:
        while line := await pipe.readline():
            setattr(self, name, getattr(self, name) + line.decode())
            self.pids += [int(pid) for pid in re.findall(r"pid (\d+)", line.decode())]

    def says(self, text: str) -> bool:
        """Whether it has printed this."""
        return text in self.out or text in self.err

    def survivors(self) -> list[int]:
        """Processes that it started and that still run."""
        return [pid for pid in self.pids if running(pid)]


def running(pid: int) -> bool:
    """Whether the process is there and has not ended (an ended orphan may wait for somebody to notice)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.asynccontextmanager
async def demo(*arguments: str, **env: str) -> AsyncIterator[Demo]:
    """The demo as a process that is gone at the end of the block."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NATSJOBS_", "NATS_URL"))}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", "-m", "natsjobs", "demo", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**clean, **env},
    )
    running = Demo(process)
    listening = asyncio.create_task(running.listen())
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await listening


async def finished(*arguments: str, **env: str) -> Demo:
    """The demo, after its end."""
    async with demo(*arguments, **env) as running, asyncio.timeout(LONGEST + 15):
        await running.process.wait()
    return running


async def test_the_demo_proves_the_main_job() -> None:
    """Three real processes, two of them killed: nothing lost or doubled, all in time, and nothing stays behind."""
    begin = time.monotonic()
    run = await finished("--json")
    seconds = time.monotonic() - begin
    assert run.process.returncode == 0, run.err
    verdict = json.loads(run.out)
    assert verdict["ok"] is True
    assert verdict["complaints"] == []
    assert seconds < LONGEST
    answer, aborted, crashed = verdict["jobs"]
    assert answer["emitted"] == answer["acknowledged"] == len(source.load(None))
    for job, end, reason in ((answer, "done", None), (aborted, "aborted", "abort"), (crashed, "error", "owner_lost")):
        assert len(job["browsers"]) == 2
        for browser in job["browsers"].values():
            faults = {browser[name] for name in ("lost", "doubled", "reordered", "changed")}
            assert faults == {0}
            assert (browser["end"], browser["endReason"]) == (end, reason)
            assert job["acknowledged"] <= browser["received"] <= job["emitted"]
    assert {browser["received"] for browser in answer["browsers"].values()} == {answer["emitted"]}
    assert all(measure["ok"] for measure in verdict["times"])
    assert len(verdict["times"]) == 4
    assert len(run.pids) == 4
    assert run.survivors() == []


async def test_the_demo_streams_a_recorded_answer(tmp_path: Path) -> None:
    """A transcript, one provider event per line, is streamed as it is; the verdict is a plain table on a pipe."""
    path = tmp_path / "recorded.jsonl"
    pieces = [f"piece {n}: ünï " for n in range(120)]
    chunks = [
        {"id": "c1", "choices": [{"index": 0, "delta": {"content": piece}}], "n": n / 7}
        for n, piece in enumerate(pieces)
    ]
    path.write_text("\n".join(json.dumps(chunk) for chunk in chunks) + "\n\n")
    run = await finished("--input", str(path))
    assert run.process.returncode == 0, run.out + run.err
    assert "\x1b" not in run.out
    assert run.err == ""
    row = next(line for line in run.out.splitlines() if line.startswith("replica killed, resumed"))
    assert row.split()[3:] == ["120", "120", "120", "120", "0", "0"]
    assert "Everything held" in run.out
    assert run.survivors() == []


async def test_a_demo_whose_worker_dies_out_of_turn_fails() -> None:
    """What had to happen and did not is named, the exit status is 1, and every process is gone."""
    async with demo() as run:
        await eventually(lambda: run.says("browser 2 joins late"))
        os.kill(run.pids[0], signal.SIGKILL)
        async with asyncio.timeout(LONGEST):
            await run.process.wait()
    assert run.process.returncode == 1
    assert "FAILED  worker ended unexpectedly (status -9)" in run.out
    assert "Everything held" not in run.out
    assert "Traceback" not in run.err
    assert run.survivors() == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_an_interrupted_demo_takes_everything_with_it(number: signal.Signals, status: int) -> None:
    """Ctrl-C and SIGTERM end worker, replicas and server, at once and without a traceback."""
    async with demo() as run:
        await eventually(lambda: run.says("browser 2 joins late"))
        run.process.send_signal(number)
        async with asyncio.timeout(10):
            await run.process.wait()
    assert run.process.returncode == status
    assert "Traceback" not in run.out + run.err
    assert run.survivors() == []


async def test_a_killed_demo_takes_its_processes_with_it() -> None:
    """After SIGKILL of the demo itself worker and replicas notice that nobody listens any more."""
    async with demo() as run:
        await eventually(lambda: run.says("browser 2 joins late"))
        run.process.kill()
        await eventually(lambda: run.survivors() == [])


async def test_a_given_server_is_left_as_it_was(newest_server: str) -> None:
    """--server runs in a namespace of its own, and nothing of it stays; NATSJOBS_ settings there hold."""
    before = await streams(newest_server)
    run = await finished("--server", newest_server, "--json", NATSJOBS_TIMING_REQUEST="4")
    assert run.process.returncode == 0, run.err
    assert await streams(newest_server) - before == set()


async def test_keep_leaves_everything_for_a_look_inside() -> None:
    """The server stays until Ctrl-C, and what is printed to look inside works."""
    async with demo("--keep") as run:
        await eventually(lambda: run.says("Ctrl-C"), within=LONGEST + 15)
        command = next(line for line in run.out.splitlines() if line.endswith(" tail demo-answer")).split()
        seen = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, _ = await seen.communicate()
        assert seen.returncode == 0
        assert len(out.splitlines()) == len(source.load(None))
        run.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            await run.process.wait()
    assert run.process.returncode == 0
    assert "Everything held" in run.out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.jsonl", b'{"a": 1}\n{oops\n', "line 2 is not JSON"),
        ("few.jsonl", b"1\n2\n", "needs at least"),
        ("empty.txt", b"", "needs at least"),
        ("binary.txt", b"\xff\xfe\x00", "not UTF-8"),
    ],
)
async def test_input_that_cannot_be_streamed_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    """Before anything starts, and with the reason."""
    path = tmp_path / name
    path.write_bytes(content)
    run = await finished("--input", str(path))
    assert run.process.returncode == 2
    assert message in " ".join(run.err.split())
    assert run.pids == []


def test_a_text_is_cut_without_losing_a_character(tmp_path: Path) -> None:
    """The pieces of a text, put together, are the text."""
    text = "A  line,\n\n\tthen Überlängenwörterzusammensetzung… and 🎈.  End"
    path = tmp_path / "text.txt"
    path.write_text(text)
    events = source.load(path)
    assert "".join(source.shown(event) for event in events) == text
    assert len(events) > 10


def test_every_kind_of_chunk_has_its_text() -> None:
    """The screen shows the text of what model providers send; an unknown form is just not shown."""
    forms = [
        "x",
        {"choices": [{"delta": {"content": "x"}}]},
        {"choices": [{"delta": {"content": None, "reasoning_content": "x"}}]},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}},
        {"type": "response.output_text.delta", "delta": "x"},
        {"candidates": [{"content": {"parts": [{"text": "x"}]}}]},
    ]
    assert [source.shown(form) for form in forms] == ["x"] * len(forms)
    for other in (None, 7, [], {}, {"choices": []}, {"type": "response.output_text.done", "text": "all of it"}):
        assert source.shown(other) == ""


async def streams(url: str) -> set[str]:
    """The names of all streams on a server."""
    import nats

    nc = await nats.connect(url)
    try:
        return {info.config.name or "" for info in await nc.jetstream().streams_info()}
    finally:
        await nc.close()
