"""The OpenAPI document is true: it is the routes, and schemathesis finds no answer that is not in it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gateways import OpenGateway, everybody, gateways
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount

import natsjobs
from natsjobs import JobManager
from natsjobs.http import GatewayConfig, gateway
from natsjobs.http.openapi import OPERATIONS, operations
from natsjobs.models import to_dict

SETTINGS = """
[checks.positive_data_acceptance]
# A cursor that could be one and is of a log that is gone: 410 is the right answer to a valid request.
expected-statuses = ["2xx", "401", "403", "404", "409", "410"]
"""
KNOWN = '[parameters]\n"path.stream_id" = "conv-1"\n"path.user_id" = "alice"\n'


@pytest.fixture
async def jobs() -> AsyncIterator[JobManager]:
    """A job of everything that a record can have; it has ended, so that every answer ends."""
    async with natsjobs.connect("memory://") as made:
        async with made.start(
            "conv-1", user_id="alice", conversation_id="c", model="m", metadata={"a": 1}, endpoint="e", sender="s"
        ) as run:
            await run.emit({"type": "text-delta", "id": "1", "delta": "x"})
            await run.record_usage({"input_tokens": 3, "model": "m", "extra": 1})
        yield made


@pytest.fixture
async def open_gateway() -> AsyncIterator[OpenGateway]:
    """Gateways under uvicorn."""
    async with gateways() as start:
        yield start


def routes_of(app: object) -> list[BaseRoute]:
    """What the gateway really answers."""
    inner = app._app
    assert isinstance(inner, Starlette)
    return list(inner.routes)


async def test_the_document_names_every_route_and_no_other(open_gateway: OpenGateway, jobs: JobManager) -> None:
    """Both ways, also when a setting takes one away; and each operation has a name of its own."""
    for metrics in ("authorized", "off"):
        gate = await open_gateway(jobs, config=GatewayConfig(metrics=metrics))
        document = (await gate.client.get("/openapi.json")).json()
        named = {(method, path) for path, item in document["paths"].items() for method in item}
        assert named == operations(routes_of(gate.app))
        assert named == set(OPERATIONS) - ({("get", "/metrics")} if metrics == "off" else set())
        ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
        assert len(set(ids)) == len(ids)


async def test_the_schemas_are_those_of_the_records(open_gateway: OpenGateway, jobs: JobManager) -> None:
    """Every field of the wire form is described, and what is always there is required."""
    gate = await open_gateway(jobs)
    schemas = (await gate.client.get("/openapi.json")).json()["components"]["schemas"]
    job, state = await jobs.get("conv-1"), await jobs.resume_state("conv-1")
    assert job is not None
    assert state is not None
    for name, record in (("Job", to_dict(job)), ("ResumeState", to_dict(state))):
        assert set(schemas[name]["required"]) <= set(record) <= set(schemas[name]["properties"])
    assert "null" not in str(schemas)
    frames = await gate.events("/streams/conv-1/events")
    for frame in frames:
        record = json.loads(frame.data)
        assert set(schemas["StreamEvent"]["required"]) <= set(record) <= set(schemas["StreamEvent"]["properties"])


async def test_below_a_prefix_the_document_says_so(jobs: JobManager) -> None:
    """Mounted in another application, paths are relative to where it is."""
    from gateways import serving

    app = gateway(jobs, authorize=everybody)
    async with serving(Starlette(routes=[Mount("/some/where", app)])) as (client, _):
        document = (await client.get("/some/where/openapi.json")).json()
    app.close()
    assert document["servers"] == [{"url": "/some/where"}]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("ids", "phase"), [(KNOWN, "coverage"), ("", "fuzzing")], ids=["known-ids", "any-ids"])
async def test_schemathesis_finds_nothing(
    open_gateway: OpenGateway, jobs: JobManager, tmp_path: Path, ids: str, phase: str
) -> None:
    """Every operation, with valid and invalid input, for a job that is there and for ids of any kind."""
    gate = await open_gateway(jobs)
    settings = tmp_path / "schemathesis.toml"
    settings.write_text(ids + SETTINGS)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(settings), "run", "--checks", "all"),
        *("--phases", phase, "--max-examples", "5", "--seed", "20261122", "--no-color"),
        f"http://127.0.0.1:{gate.port}/openapi.json",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=tmp_path,
    )
    try:
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = out.decode()
    assert process.returncode == 0, text
    assert f"{phase.title()} (in" in text
