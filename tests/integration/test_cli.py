"""The command line as people and scripts use it: real processes, a real server, exit statuses and what is printed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from listening import free_port
from waiting import eventually, soon

import natsjobs
from natsjobs import Config, JobManager, JobRun, embedded
from natsjobs.jetstream.manifests import as_nack
from natsjobs.jetstream.setup import settings_of

TIMEOUT = 30.0
COMMANDS = [
    ["ls"],
    ["show", "conv"],
    ["tail", "conv"],
    ["pipe", "conv", "--user", "u"],
    ["abort", "conv"],
    ["setup"],
    ["serve", "--port", "0"],
]


class Process:
    """One running command; lines are read with a time limit."""

    def __init__(self, arguments: list[str], env: dict[str, str], stdin: Any = subprocess.PIPE) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "natsjobs", *arguments],
            env=env,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._rest = {"stdout": b"", "stderr": b""}

    async def line(self, stream: str = "stdout", within: float = TIMEOUT) -> str:
        """The next line that it prints."""
        return await asyncio.to_thread(self._line, stream, within)

    def _line(self, stream: str, within: float) -> str:
        pipe = getattr(self._popen, stream)
        deadline = time.monotonic() + within
        while b"\n" not in self._rest[stream]:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no line on {stream} within {within} s"
            chunk = os.read(pipe.fileno(), 65_536)
            assert chunk, f"{stream} ended: {self._rest}"
            self._rest[stream] += chunk
        line, _, self._rest[stream] = self._rest[stream].partition(b"\n")
        return line.decode()

    def write(self, text: str) -> None:
        """Type something; it arrives at once."""
        assert self._popen.stdin
        self._popen.stdin.write(text.encode())
        self._popen.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._popen.send_signal(number)

    def close_stdout(self) -> None:
        """Read no more of it."""
        assert self._popen.stdout
        self._popen.stdout.close()

    async def wait(self, within: float = TIMEOUT) -> int:
        """Its exit status, its input left open."""
        return await asyncio.to_thread(self._popen.wait, within)

    async def finish(self, text: str = "") -> tuple[int, str, str]:
        """End its input; status, the rest of stdout, the rest of stderr."""
        out, err = await asyncio.to_thread(self._popen.communicate, text.encode(), TIMEOUT)
        return self._popen.returncode, (self._rest["stdout"] + out).decode(), (self._rest["stderr"] + err).decode()

    def close(self) -> None:
        """End it, whatever it does."""
        if self._popen.poll() is None:
            self._popen.kill()
        for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._popen.wait()


class Cli:
    """The command line in a namespace of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.namespace = f"cli-{uuid.uuid4().hex[:8]}"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("NATSJOBS_", "NATS_URL"))}
        self.env |= {"NATS_URL": url, "NATSJOBS_NAMESPACE": self.namespace, "COLUMNS": "80"}
        self._processes: list[Process] = []

    def connect(self) -> contextlib.AbstractAsyncContextManager[JobManager]:
        """The library, in the same namespace."""
        return natsjobs.connect(self.url, config=Config(namespace=self.namespace))

    def start(self, *arguments: str, stdin: Any = subprocess.PIPE) -> Process:
        """Start a command."""
        process = Process(list(arguments), self.env, stdin)
        self._processes.append(process)
        return process

    async def run(self, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
        """Run a command to its end: status, stdout, stderr. This process goes on meanwhile."""
        return await self.start(*arguments).finish(stdin)

    def close(self) -> None:
        """End what still runs."""
        for process in self._processes:
            process.close()


@pytest.fixture
def cli(newest_server: str) -> Iterator[Cli]:
    """The command line, on a server that runs."""
    made = Cli(newest_server)
    yield made
    made.close()


def refused(result: tuple[int, str, str], status: int) -> str:
    """Check that a command failed with one line on stderr and nothing else; the line."""
    assert result[0] == status, result
    assert result[1] == ""
    lines = result[2].splitlines()
    assert len(lines) == 1, result[2]
    assert lines[0].startswith("natsjobs: ")
    return lines[0]


async def finished_job(cli: Cli, stream_id: str, values: list[Any], user: str = "alice") -> None:
    """A complete job."""
    async with cli.connect() as jobs, jobs.start(stream_id, user_id=user) as run:
        for value in values:
            await run.emit(value)
        await run.complete({"final": True})


# -- ls and show ------------------------------------------------------------------------------------------------


async def test_ls_of_nothing_succeeds(cli: Cli) -> None:
    """An empty list is no failure, and standard output stays empty for scripts."""
    assert await cli.run("ls") == (0, "", "no jobs\n")
    assert await cli.run("ls", "--json") == (0, "", "")


async def test_ls_shows_and_filters_jobs(cli: Cli) -> None:
    """Newest first; filters by user and status; --json is one record per line."""
    await finished_job(cli, "first", [1])
    async with cli.connect() as jobs, jobs.start("second", user_id="bob"):
        status, out, err = await cli.run("ls")
        assert (status, err) == (0, "")
        head, *rows = out.splitlines()
        assert head.split() == ["ID", "USER", "STATUS", "STARTED", "ENDED"]
        assert [row.split()[:3] for row in rows] == [["second", "bob", "running"], ["first", "alice", "complete"]]
        assert " s ago" in rows[0]
        records = [json.loads(line) for line in (await cli.run("ls", "--json"))[1].splitlines()]
        assert [record["streamId"] for record in records] == ["second", "first"]
        assert records[1]["status"] == "complete"
        only = [
            json.loads(line)["streamId"] for line in (await cli.run("ls", "--json", "--user", "alice"))[1].splitlines()
        ]
        assert only == ["first"]
        only = [
            json.loads(line)["streamId"]
            for line in (await cli.run("ls", "--json", "--status", "running"))[1].splitlines()
        ]
        assert only == ["second"]


async def test_output_on_a_pipe_is_plain(cli: Cli) -> None:
    """No colours and no cut-off ids on a pipe; lines of ordinary jobs fit 80 columns."""
    await finished_job(cli, "conversation-0123456789", ["x"])
    await finished_job(cli, "x" * 200, ["x"])
    for arguments in (["ls"], ["show", "conversation-0123456789"], ["show", "x" * 200], ["--help"]):
        out = (await cli.run(*arguments))[1]
        assert "\x1b" not in out
    assert "x" * 200 in (await cli.run("ls"))[1]
    assert all(len(line) <= 80 for line in (await cli.run("show", "conversation-0123456789"))[1].splitlines())


async def test_control_characters_of_jobs_are_written_out(cli: Cli) -> None:
    """An id cannot move the cursor, colour the terminal or add a line."""
    await finished_job(cli, "a\x1b[31m\nb", ["x"])
    _, out, _ = await cli.run("ls")
    assert "\x1b" not in out
    assert len(out.splitlines()) == 2
    assert "\\x1b[31m" in out


async def test_show_prints_one_job(cli: Cli) -> None:
    """For people: status, user, ages, content; --json: the record with its subscribers."""
    async with cli.connect() as jobs, jobs.start("conv", user_id="alice", model="m1", metadata={"k": 1}) as run:
        await run.emit({"n": 1})
        await run.flush()
        status, out, err = await cli.run("show", "conv")
        assert (status, err) == (0, "")
        fields = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith(("stream", "last")))
        assert fields["status"] == "running"
        assert fields["user"] == "alice"
        assert fields["model"] == "m1"
        assert fields["started"].endswith(" s ago")
        assert fields["generation"] == run.generation
        async with jobs.subscribe("conv"):
            record = json.loads((await cli.run("show", "conv", "--json"))[1])
        assert record["streamId"] == "conv"
        assert record["metadata"] == {"k": 1}
        assert record["subscribers"] == 1


async def test_show_of_an_unknown_job_is_not_found(cli: Cli) -> None:
    """Exit status 1 and one line that says what to do."""
    assert "no job 'nobody'" in refused(await cli.run("show", "nobody"), 1)


# -- tail -------------------------------------------------------------------------------------------------------


async def test_tail_prints_events_and_nothing_else(cli: Cli) -> None:
    """Standard output is the events as JSON lines; the end and the cursor are on stderr; exit status 0."""
    values = [{"a": 1}, "text\nwith lines", [1, None], "ünïcode", 1.5]
    await finished_job(cli, "conv", values)
    status, out, err = await cli.run("tail", "conv")
    assert status == 0
    assert [json.loads(line) for line in out.splitlines()] == values
    end, cursor = err.splitlines()
    assert end == 'done after 5 events: {"final": true}'
    assert cursor.startswith("cursor: ")


async def test_tail_resumes_after_a_cursor(cli: Cli) -> None:
    """--json gives each record with its cursor; --after goes on behind it."""
    await finished_job(cli, "conv", [10, 20, 30])
    status, out, err = await cli.run("tail", "conv", "--json")
    assert (status, err) == (0, "")
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["type"] for record in records] == ["event", "event", "event", "done"]
    assert [record["data"] for record in records] == [10, 20, 30, {"final": True}]
    assert [record["index"] for record in records] == [0, 1, 2, 3]
    status, out, _ = await cli.run("tail", "conv", "--after", records[0]["cursor"])
    assert (status, out) == (0, "20\n30\n")
    status, out, _ = await cli.run("tail", "conv", "--after", records[-1]["cursor"])
    assert (status, out) == (0, "")


async def test_tail_tells_how_it_ended(cli: Cli) -> None:
    """Exit status 0 for an abort, 1 for an error; both are named on stderr."""
    async with cli.connect() as jobs:
        async with jobs.start("failing", user_id="u") as run:
            await run.emit(1)
            await run.fail("the model\nis out of order")
        async with jobs.start("stopped", user_id="u") as run:
            await run.emit(1)
            await jobs.abort("stopped")
        status, out, err = await cli.run("tail", "failing")
        assert (status, out) == (1, "1\n")
        assert err.splitlines()[0] == "error after 1 events: the model is out of order"
        status, out, err = await cli.run("tail", "stopped")
        assert (status, out) == (0, "1\n")
        assert err.splitlines()[0] == "aborted (abort) after 1 events"


async def test_tail_refuses_what_it_cannot_read(cli: Cli) -> None:
    """An unknown job is 1, a cursor that is none is a usage error."""
    refused(await cli.run("tail", "nobody"), 1)
    assert "not a cursor" in refused(await cli.run("tail", "nobody", "--after", "garbage"), 2)


async def test_tail_is_live(cli: Cli) -> None:
    """It waits for the job, prints each event when it is there, and ends with it."""
    process = cli.start("tail", "conv", "--wait", "20")
    async with cli.connect() as jobs, jobs.start("conv", user_id="u") as run:
        for number in range(3):
            await run.emit(number)
            assert await process.line() == str(number)
    assert (await process.finish())[:2] == (0, "")


async def test_tail_interrupted_says_where_to_go_on(cli: Cli) -> None:
    """Ctrl-C and SIGTERM end it without a traceback, with the cursor of what was printed."""
    async with cli.connect() as jobs, jobs.start("conv", user_id="u") as run:
        await run.emit("seen")
        for number, expected in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            process = cli.start("tail", "conv")
            assert await process.line() == '"seen"'
            process.signal(number)
            status, out, err = await process.finish()
            assert (status, out) == (expected, "")
            assert len(err.splitlines()) == 1
            assert err.startswith("cursor: ")


async def test_tail_into_a_closed_pipe_ends_quietly(cli: Cli) -> None:
    """As in `natsjobs tail conv | head -1`: no traceback, no complaint."""
    async with cli.connect() as jobs, jobs.start("conv", user_id="u") as run:
        await run.emit("x" * 1000)
        process = cli.start("tail", "conv")
        await process.line()
        process.close_stdout()
        await run.emit("more")
        await eventually(lambda: process._popen.poll() is not None)
        assert await process.wait() == 141
        assert "Traceback" not in process._popen.stderr.read().decode()


async def test_tail_survives_a_server_restart(cli: Cli, tmp_path: Path) -> None:
    """The server goes and comes back: every event once, in order, then the end."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(embedded.server(store_dir=tmp_path))
        port = server.port
        cli.env["NATS_URL"] = cli.url = server.url
        process = cli.start("tail", "conv", "--wait", "20")
        async with cli.connect() as jobs, jobs.start("conv", user_id="u") as run:
            await run.emit("before")
            assert await process.line() == '"before"'
            server.kill()
            await run.emit("between")
            stack.enter_context(embedded.server(port=port, store_dir=tmp_path))
            assert await process.line() == '"between"'
            await run.emit("after")
        status, out, _ = await process.finish()
        assert (status, out) == (0, '"after"\n')


# -- pipe -------------------------------------------------------------------------------------------------------


async def test_pipe_streams_lines_as_they_are_typed(cli: Cli) -> None:
    """A viewer has each line before the next is typed; the end of the input completes the job."""
    process = cli.start("pipe", "conv", "--user", "alice")
    async with cli.connect() as jobs, jobs.subscribe("conv", wait=20) as events:
        for text in ("first", "", '{"not": "parsed"}', "ünï"):
            process.write(text + "\n")
            assert (await anext(events)).data == text
        assert events.job.user_id == "alice"
        process.write("no line end")
        status, out, err = await process.finish()
        assert (status, out) == (0, "")
        assert err.splitlines()[-1] == "complete: 5 events"
        assert (await anext(events)).data == "no line end"
        assert (await anext(events)).type == "done"


async def test_pipe_reads_json_lines(cli: Cli) -> None:
    """--json: every line is one value, kept as it was written; blank lines are skipped."""
    lines = ['{"a": [1, 2.50]}', "", "12345678901234567890123", "null", '"text"']
    status, _, err = await cli.run("pipe", "conv", "--user", "u", "--json", stdin="\n".join(lines) + "\r\n")
    assert status == 0, err
    async with cli.connect() as jobs, jobs.subscribe("conv") as events:
        raws = [event.raw async for event in events if not event.is_terminal]
    assert raws == [line.encode() for line in lines if line]


@pytest.mark.parametrize("bad", ["{nope", "NaN", '{"a": 1} x'])
async def test_pipe_names_the_line_that_is_no_json(cli: Cli, bad: str) -> None:
    """A bad line ends the job as an error that names its number; the lines before it are there."""
    status, out, err = await cli.run("pipe", "conv", "--user", "u", "--json", stdin=f"1\n\n{bad}\n4\n")
    assert (status, out) == (1, "")
    assert "line 3 is not JSON" in err.splitlines()[-1]
    async with cli.connect() as jobs:
        job = await jobs.get("conv")
        assert job is not None
        assert job.status == "error"
        assert "line 3" in (job.error or "")
        async with jobs.subscribe("conv") as events:
            assert [event.data async for event in events if not event.is_terminal] == [1]


async def test_pipe_names_the_line_that_is_no_utf8(cli: Cli) -> None:
    """Bytes that are no text are refused with the number of their line."""
    process = cli.start("pipe", "conv", "--user", "u")
    process._popen.stdin.write(b"fine\n\xff\xfe\n")
    status, _, err = await process.finish()
    assert status == 1
    assert "line 2 is not UTF-8" in err


async def test_pipe_reads_files(cli: Cli, tmp_path: Path) -> None:
    """A regular file and /dev/null are inputs like any other."""
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"{n}\n" for n in range(2000)))
    with path.open("rb") as stdin:
        assert await cli.start("pipe", "conv", "--user", "u", stdin=stdin).wait() == 0
    async with cli.connect() as jobs, jobs.subscribe("conv") as events:
        assert [event.data async for event in events if not event.is_terminal] == [str(n) for n in range(2000)]
    assert await cli.start("pipe", "empty", "--user", "u", stdin=subprocess.DEVNULL).wait() == 0
    assert json.loads((await cli.run("show", "empty", "--json"))[1])["status"] == "complete"


async def test_pipe_is_interrupted_by_an_abort_while_its_input_is_silent(cli: Cli) -> None:
    """Aborted from elsewhere it stops at once, says so, and exits with 1; its input is still open."""
    process = cli.start("pipe", "conv", "--user", "u")
    process.write("one\n")
    async with cli.connect() as jobs, jobs.subscribe("conv", wait=20) as events:
        assert (await anext(events)).data == "one"
        begin = time.monotonic()
        result = await jobs.abort("conv")
        assert result.success
        assert result.acknowledged
        assert await process.wait(10) == 1
        assert time.monotonic() - begin < 5
        assert "aborted" in (await process.finish())[2].splitlines()[-1]
        assert (await anext(events)).type == "aborted"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_pipe_that_is_stopped_ends_its_job(cli: Cli, number: signal.Signals, status: int) -> None:
    """SIGTERM and Ctrl-C leave no running job behind: viewers get an end at once, not when a lease lapses."""
    process = cli.start("pipe", "conv", "--user", "u")
    process.write("one\n")
    async with cli.connect() as jobs, jobs.subscribe("conv", wait=20) as events:
        assert (await anext(events)).data == "one"
        process.signal(number)
        end = await anext(events)
        assert end.type == "error"
        assert end.end_reason in {"cancelled", "shutdown"}
    assert await process.wait() == status
    assert "Traceback" not in (await process.finish())[2]


async def test_a_second_signal_does_not_wait_for_nats(cli: Cli) -> None:
    """With NATS gone there is no proper end to wait for: whoever insists is let go at once."""
    with embedded.server() as server:
        cli.env["NATS_URL"] = server.url
        process = cli.start("pipe", "conv", "--user", "u")
        await process.line("stderr")
        server.kill()
        process.signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            await process.wait(1)
        process.signal(signal.SIGINT)
        assert await process.wait(2) == 130
        assert "lease" in refused(await process.finish(), 130)


async def test_pipe_that_is_replaced_fails(cli: Cli) -> None:
    """A newer generation of the same id ends it with one line and 1; with --reject it would not have begun."""
    process = cli.start("pipe", "conv", "--user", "u")
    await process.line("stderr")
    refused(await cli.run("pipe", "conv", "--user", "u", "--reject"), 1)
    async with cli.connect() as jobs, jobs.start("conv", user_id="u"):
        assert await process.wait() == 1
        assert len((await process.finish())[2].splitlines()) == 1


# -- abort and setup --------------------------------------------------------------------------------------------


async def work_until_aborted(recorded: asyncio.Event, left: asyncio.Event, run: JobRun) -> None:
    """The work of a job that goes on until somebody stops it."""
    await run.emit("x")
    await run.record_usage({"input_tokens": 3, "output_tokens": 4})
    recorded.set()
    try:
        await run.wait_aborted()
    finally:
        left.set()


async def test_abort_prints_what_it_did(cli: Cli) -> None:
    """Whether the owner confirmed, and the usage that is now the caller's to bill."""
    async with cli.connect() as jobs:
        for arguments in (["abort", "conv"], ["abort", "conv", "--json"]):
            recorded, left = asyncio.Event(), asyncio.Event()
            await jobs.spawn("conv", partial(work_until_aborted, recorded, left), user_id="u")
            await soon(recorded.wait())
            status, out, err = await cli.run(*arguments)
            assert (status, err) == (0, "")
            await soon(left.wait())
            if "--json" in arguments:
                result = json.loads(out)
                assert result["success"] is True
                assert result["acknowledged"] is True
                assert result["collectedUsage"][0]["output_tokens"] == 4
            else:
                assert "acknowledged  yes" in out
                assert json.loads(out.splitlines()[-1])["input_tokens"] == 3


async def test_abort_says_why_it_did_nothing(cli: Cli) -> None:
    """No such job, ended already, or another generation: 1, and nothing was changed."""
    assert "nothing to abort" in refused(await cli.run("abort", "nobody"), 1)
    await finished_job(cli, "conv", [1])
    assert "already ended" in refused(await cli.run("abort", "conv"), 1)
    status, out, _ = await cli.run("abort", "conv", "--json")
    assert (status, json.loads(out)["reason"]) == (1, "ended")
    async with cli.connect() as jobs, jobs.start("conv", user_id="u"):
        refused(await cli.run("abort", "conv", "--generation", "another"), 1)


async def test_setup_makes_and_checks_stream_and_bucket(cli: Cli) -> None:
    """Twice is fine; it names what is there."""
    for _ in range(2):
        status, out, err = await cli.run("setup")
        assert (status, err) == (0, "")
        assert f"{cli.namespace}_events" in out
        assert f"{cli.namespace}_jobs" in out
    found = json.loads((await cli.run("setup", "--json"))[1])
    assert found["namespace"] == cli.namespace


# -- options, errors and exit statuses --------------------------------------------------------------------------


async def test_setup_prints_its_settings_for_those_who_make_streams_themselves(cli: Cli) -> None:
    """Without a server: one JSON object for each stream, or resources for NACK, with this namespace and environment."""
    cli.env |= {"NATSJOBS_REPLICAS": "3", "NATS_URL": "nats://127.0.0.1:1"}
    wanted = Config(namespace=cli.namespace, replicas=3)
    status, out, _ = await cli.run("setup", "--print", "json")
    assert (status, [json.loads(line) for line in out.splitlines()]) == (0, list(settings_of(wanted)))
    status, out, _ = await cli.run("setup", "--print", "nack")
    assert (status, out) == (0, as_nack(wanted))


async def test_with_create_off_a_missing_namespace_is_named(cli: Cli) -> None:
    """One line that says who has to make it, and how."""
    cli.env["NATSJOBS_CREATE"] = "false"
    error = refused(await cli.run("ls"), 1)
    assert "is missing" in error
    assert "natsjobs setup" in error


async def test_an_unreachable_server_is_status_three(cli: Cli) -> None:
    """Every command says so in one line, and soon."""
    server = f"nats://127.0.0.1:{free_port()}"
    cli.env["NATSJOBS_TIMING_REQUEST"] = "2"
    few = asyncio.Semaphore(3)  # not all at once: on a busy machine their starts alone would take too long

    async def says_so(command: list[str]) -> None:
        async with few:
            begin = time.monotonic()
            assert server in refused(await cli.run("--server", server, *command), 3)
            assert time.monotonic() - begin < TIMEOUT

    async with asyncio.TaskGroup() as group:
        for command in COMMANDS:
            group.create_task(says_so(command))


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["ls", "--nonsense"],
        ["show"],
        ["pipe", "conv"],
        ["tail", "conv", "--wait", "soon"],
        ["ls", "--creds", "/nonexistent/creds"],
        ["ls", "--namespace", "two words"],
        ["ls", "--embedded", "--server", "nats://127.0.0.1:1"],
        ["demo", "--namespace", "mine"],
        ["demo", "--input", "/nonexistent/file"],
        [],
    ],
    ids=" ".join,
)
async def test_wrong_usage_is_status_two(cli: Cli, arguments: list[str]) -> None:
    """What can never work is said at once, without a traceback."""
    status, _, err = await cli.run(*arguments)
    assert status == 2
    assert "Traceback" not in err


async def test_an_id_that_cannot_be_one_is_a_usage_error(cli: Cli) -> None:
    """The message names the field."""
    assert "stream_id" in refused(await cli.run("show", "x" * 300), 2)


async def test_a_wrong_setting_in_the_environment_is_named(cli: Cli) -> None:
    """One line that names the setting."""
    cli.env["NATSJOBS_TIMING_LEASE"] = "soon"
    assert "timing.lease" in refused(await cli.run("ls"), 2)


async def test_global_options_work_before_and_after_the_command(cli: Cli) -> None:
    """And both win over the environment."""
    await finished_job(cli, "conv", [1])
    url, namespace = cli.url, cli.namespace
    cli.env["NATS_URL"] = f"nats://127.0.0.1:{free_port()}"
    cli.env["NATSJOBS_NAMESPACE"] = "somewhere-else"
    for arguments in (
        ["--server", url, "--namespace", namespace, "ls", "--json"],
        ["ls", "--json", "--server", url, "--namespace", namespace],
        ["--server", url, "ls", "--json", "--namespace", namespace],
    ):
        status, out, err = await cli.run(*arguments)
        assert (status, err) == (0, "")
        assert json.loads(out)["streamId"] == "conv"


async def test_embedded_needs_no_server(cli: Cli) -> None:
    """A command can bring its own server, and takes it away again."""
    cli.env["NATS_URL"] = f"nats://127.0.0.1:{free_port()}"
    status, _, err = await cli.run("--embedded", "pipe", "conv", "--user", "u", stdin="a\nb\n")
    assert status == 0, err
    assert err.splitlines()[-1] == "complete: 2 events"
    assert await cli.run("ls", "--embedded") == (0, "", "no jobs\n")


@pytest.mark.parametrize("library", ["typer", "rich"])
async def test_a_missing_library_is_named_with_the_command_that_installs_it(cli: Cli, library: str) -> None:
    """Without the extra there is one clear line instead of a traceback."""
    code = f"import sys; sys.modules['{library}'] = None; from natsjobs.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], env=cli.env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"natsjobs: the command line needs {library}; run: pip install 'natsjobs[cli]'\n"


async def test_version_and_script(cli: Cli) -> None:
    """``natsjobs --version`` is the package's, from the installed script as well."""
    assert await cli.run("--version") == (0, f"natsjobs {natsjobs.__version__}\n", "")
    script = Path(sys.executable).with_name("natsjobs")
    done = subprocess.run([script, "--version"], env=cli.env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"natsjobs {natsjobs.__version__}\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_shells_can_complete_commands(cli: Cli, shell: str) -> None:
    """The script for the shell comes with the command, and what it asks for is answered without a server."""
    cli.env |= {"NATS_URL": "nats://127.0.0.1:1", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    showing = cli.start("--show-completion", shell)
    cli.env |= {
        "_NATSJOBS_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "natsjobs d",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "natsjobs d",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    status, words, err = await cli.run()
    assert (status, err) == (0, "")
    assert "doctor" in words
    assert "demo" in words
    assert "setup" not in words
    status, script, err = await showing.finish()
    assert (status, err) == (0, "")
    assert "_NATSJOBS_COMPLETE" in script
