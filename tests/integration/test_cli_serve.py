"""``natsjobs serve`` as operators start it: real processes, real sockets, signals."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import httpx
import pytest
from httpx_sse import aconnect_sse
from test_cli import Cli, Process
from waiting import eventually, soon

import natsjobs


@pytest.fixture
def cli(newest_server: str) -> Iterator[Cli]:
    """The command line, on a server that runs."""
    made = Cli(newest_server)
    yield made
    made.close()


async def started(cli: Cli, *arguments: str) -> tuple[Process, httpx.AsyncClient, str]:
    """A gateway process that listens, a client of it, and what it said."""
    process = cli.start("serve", "--port", "0", *arguments)
    said = await process.line()
    found = re.search(r":([0-9]+) \(", said)
    assert found is not None, said
    return process, httpx.AsyncClient(base_url=f"http://127.0.0.1:{found[1]}", timeout=20), said


async def test_by_default_it_serves_this_machine_and_says_so(cli: Cli) -> None:
    """Programs here may do everything; pages of other origins and other host names nothing."""
    async with cli.connect() as jobs, jobs.start("s", user_id="alice") as run:
        await run.emit(1)
        _, client, said = await started(cli)
        assert "127.0.0.1" in said
        assert "this machine only, no authorization" in said
        async with client:
            assert (await client.get("/readyz")).status_code == 200
            assert (await client.get("/streams/s")).json()["userId"] == "alice"
            for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
                assert (await client.get("/streams/s", headers=headers)).status_code == 403
                assert (await client.post("/streams/s/abort", headers=headers)).status_code == 403
            assert (await client.get("/streams/s", headers={"Origin": "http://localhost:3000"})).status_code == 200
        assert run.status == "running"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
async def test_it_refuses_to_be_reached_by_strangers(cli: Cli, host: str) -> None:
    """Without a way to tell users apart it does not listen anywhere else, and says what to do."""
    status, out, err = await cli.run("serve", "--host", host, "--port", "0")
    assert (status, out) == (2, "")
    assert "--tokens" in " ".join(err.split())


async def test_with_tokens_everybody_may_use_their_own_jobs(cli: Cli, tmp_path: Path) -> None:
    """And it may listen anywhere."""
    tokens = tmp_path / "tokens"
    tokens.write_text("# who\nalice secret-a\nbob secret-b\n", encoding="utf-8")
    async with cli.connect() as jobs, jobs.start("s", user_id="alice"):
        _, client, said = await started(cli, "--host", "0.0.0.0", "--tokens", str(tokens))
        assert "reachable from other machines, with --tokens" in said
        async with client:
            statuses = [
                (await client.get("/streams/s", headers={"Authorization": f"Bearer {token}"})).status_code
                for token in ("secret-a", "secret-b", "secret-c")
            ]
    assert statuses == [200, 404, 401]


async def test_operators_see_and_stop_all_jobs(cli: Cli, tmp_path: Path) -> None:
    """Those that are named; a name without a token is a typing error."""
    tokens = tmp_path / "tokens"
    tokens.write_text("alice secret-a\nops secret-o\n", encoding="utf-8")
    async with cli.connect() as jobs, jobs.start("s", user_id="bob"):
        _, client, _ = await started(cli, "--tokens", str(tokens), "--operator", "ops")
        async with client:
            for token, seen in (("secret-a", []), ("secret-o", ["s"])):
                got = await client.get("/streams", headers={"Authorization": f"Bearer {token}"})
                assert [job["streamId"] for job in got.json()["jobs"]] == seen
            stop = await client.post("/streams/s/abort", headers={"Authorization": "Bearer secret-o"})
            assert stop.status_code == 200
    status, _, err = await cli.run("serve", "--port", "0", "--tokens", str(tokens), "--operator", "opps")
    assert (status, err.startswith("natsjobs: operator: ")) == (2, True)
    status, _, err = await cli.run("serve", "--port", "0", "--operator", "ops")
    assert status == 2
    assert "--tokens" in err


@pytest.mark.parametrize("text", ["", "alice\n", "alice a\nbob a\n"])
async def test_tokens_that_cannot_be_meant_are_an_error(cli: Cli, tmp_path: Path, text: str) -> None:
    """Nobody is locked out, or let in, by a typing error."""
    tokens = tmp_path / "tokens"
    tokens.write_text(text, encoding="utf-8")
    status, _, err = await cli.run("serve", "--port", "0", "--tokens", str(tokens))
    assert status == 2
    assert err.startswith("natsjobs: tokens: ")


async def test_the_applications_own_hook_decides(cli: Cli, tmp_path: Path) -> None:
    """Loaded by name from the working directory or the path."""
    (tmp_path / "rules.py").write_text(
        "async def hook(request, stream_id, action):\n    return 'x' if action == 'read' else None\n", encoding="utf-8"
    )
    cli.env["PYTHONPATH"] = str(tmp_path)
    async with cli.connect() as jobs, jobs.start("s", user_id="alice"):
        _, client, _ = await started(cli, "--authorize", "rules:hook")
        async with client:
            assert (await client.get("/streams/s")).status_code == 200
            assert (await client.post("/streams/s/abort")).status_code == 403
    status, _, err = await cli.run("serve", "--port", "0", "--authorize", "rules:nothing")
    assert status == 2
    assert "rules:nothing" in err


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_second_gateway_goes_on_where_the_first_was_killed(cli: Cli, how: signal.Signals) -> None:
    """Nothing missing, nothing twice; SIGTERM does not wait for the job to end."""
    async with cli.connect() as jobs, jobs.start("s", user_id="alice") as run:
        first, client_a, _ = await started(cli)
        _, client_b, _ = await started(cli)
        async with client_a, client_b:
            seen: list[str] = []
            last = ""
            async with aconnect_sse(client_a, "GET", "/streams/s/events?raw=1") as source:
                with pytest.raises(httpx.HTTPError) if how == signal.SIGKILL else nullcontext():
                    frames = source.aiter_sse()
                    await run.emit("a")
                    async for frame in frames:
                        seen.append(frame.data)
                        last = frame.id
                        first.signal(how)
                assert await first.wait(10) == (-9 if how == signal.SIGKILL else 143)
            await run.emit("b")
            await run.complete("end")
            async with aconnect_sse(client_b, "GET", f"/streams/s/events?raw=1&after={last}") as source:
                seen += [frame.data async for frame in source.aiter_sse()]
    assert seen == ['"a"', '"b"', '"end"']


async def test_a_request_that_is_never_finished_is_hung_up_on(cli: Cli) -> None:
    """Slow-loris: connections that say half a line hold nothing for long, and the others are served meanwhile."""
    _, client, _ = await started(cli)
    async with client:
        port = client.base_url.port
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
        for _, writer in streams:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127")
        assert (await client.get("/healthz")).status_code == 200
        for reader, writer in streams:
            with suppress(ConnectionResetError):
                assert await soon(reader.read(), within=20) == b""
            writer.close()
        assert (await client.get("/healthz")).status_code == 200


async def test_a_port_that_is_taken_is_named(cli: Cli) -> None:
    """As a usage error, on one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, _, err = await cli.run("serve", "--port", port)
    assert status == 2
    assert port in err


async def test_a_reader_is_a_viewer_until_it_leaves(cli: Cli) -> None:
    """Through the process, too: the owner sees it come and go."""
    async with cli.connect() as jobs, jobs.start("s", user_id="alice"):
        _, client, _ = await started(cli)
        async with client:
            async with client.stream("GET", "/streams/s/events"):
                await eventually(lambda: _viewers(jobs, 1))
            await eventually(lambda: _viewers(jobs, 0))


async def _viewers(jobs: natsjobs.JobManager, count: int) -> bool:
    return await jobs.count_subscribers("s") == count
