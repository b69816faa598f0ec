"""The recipe of ``gateway_app``: as short as promised, and it works as it stands."""

from __future__ import annotations

import asyncio
from pathlib import Path

import gateway_app
import httpx
import pytest
from httpx_sse import aconnect_sse
from serving import Serve

import natsjobs

ALICE = {"Authorization": "Bearer token-of-alice"}


async def test_a_mounted_gateway_follows_resumes_and_stops_jobs(
    natsjobs_server: str, config: natsjobs.Config, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page reads, loses its connection, goes on, and somebody else sees nothing of it."""
    monkeypatch.setenv("NATS_URL", natsjobs_server)
    monkeypatch.setenv("NATSJOBS_NAMESPACE", config.namespace)
    client = await serve(gateway_app.app)
    assert (await client.get("/jobs/readyz")).status_code == 200
    jobs: natsjobs.JobManager = gateway_app.app.state.jobs
    go_on = asyncio.Event()

    async def answer(run: natsjobs.JobRun) -> None:
        await run.emit({"text": "kept "})
        await go_on.wait()
        await run.emit({"text": "in order"})

    await jobs.spawn("a/b", answer, user_id="alice")
    first = await read(client, "/jobs/streams/a%2Fb/events?raw=1", stop=1)
    go_on.set()
    rest = await read(client, f"/jobs/streams/a%2Fb/events?raw=1&after={first[0][0]}")
    assert [text for _, text in first + rest] == ['{"text":"kept "}', '{"text":"in order"}', "null"]
    theirs = await client.get("/jobs/streams/a%2Fb", headers={"Authorization": "Bearer token-of-bob"})
    assert theirs.status_code == 404
    go_on.clear()
    await jobs.spawn("a/b", answer, user_id="alice")
    stopped = await client.post("/jobs/streams/a%2Fb/abort", headers=ALICE)
    assert (stopped.status_code, stopped.json()["acknowledged"]) == (200, True)


async def read(client: httpx.AsyncClient, path: str, *, stop: int | None = None) -> list[tuple[str, str]]:
    """Ids and data of the frames."""
    got: list[tuple[str, str]] = []
    async with aconnect_sse(client, "GET", path, headers=ALICE) as source:
        source.response.raise_for_status()
        async for line in source.response.aiter_lines():
            if line.startswith("id: "):
                got.append((line[4:], ""))
            elif line.startswith("data: "):
                got[-1] = (got[-1][0], line[6:])
                if len(got) == stop:
                    break
    return got


def test_the_recipe_has_at_most_twenty_lines() -> None:
    """Blank lines and its docstring aside; imports count."""
    lines = Path(gateway_app.__file__).read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines[1:] if line.strip()]) <= 20
