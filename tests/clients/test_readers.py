"""Readers that people have already: each gets a recorded answer as it was emitted, and can go on in its middle."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from contextlib import aclosing

import pytest
from httpx_sse import aconnect_sse
from kit import TRANSCRIPTS, lines_of
from waiting import eventually, soon

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(not TRANSCRIPTS, reason="no transcripts in ../shared"),
]
with_transcripts = pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
FINAL = {"final": "event"}


async def emit_slowly(jobs, events, halfway):
    """The first half is there before anybody reads; the rest comes when a reader is attached."""
    async with jobs.start("s", user_id="alice") as run:
        for event in events[: len(events) // 2]:
            await run.emit(event)
        await run.flush()
        halfway.set()
        await eventually(lambda: jobs.transport.get_subscriber_count("s") == 1)
        for event in events[len(events) // 2 :]:
            await run.emit(event)
        await run.complete(FINAL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@with_transcripts
async def test_curl(open_gateway, jobs, path):
    """Lines that begin with ``data:``, as a shell script would take them; then again behind an id near the end."""
    events, halfway = lines_of(path), asyncio.Event()
    gate = await open_gateway(jobs)
    url = f"http://127.0.0.1:{gate.port}/streams/s/events?raw=1"

    async def curl(*more):
        command = ["curl", "-sSN", "--max-time", "60", *more, url]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    async with asyncio.TaskGroup() as group:
        group.create_task(emit_slowly(jobs, events, halfway))
        await halfway.wait()
        lines = await curl()
    assert [json.loads(line[6:]) for line in lines if line.startswith("data: ")] == [*events, FINAL]
    cursors = [line[4:] for line in lines if line.startswith("id: ")]
    rest = await curl("-H", f"Last-Event-ID: {cursors[-4]}")
    assert [json.loads(line[6:]) for line in rest if line.startswith("data: ")] == [*events[-2:], FINAL]


@with_transcripts
async def test_httpx_sse(open_gateway, jobs, path):
    """Left in the middle and entered again with the last id, as its documentation shows."""
    events, halfway = lines_of(path), asyncio.Event()
    gate = await open_gateway(jobs)
    got, last = [], ""

    async def read(stop):
        nonlocal last
        headers = {"Last-Event-ID": last} if last else {}
        connected = aconnect_sse(gate.client, "GET", "/streams/s/events?raw=1", headers=headers)
        async with connected as source, aclosing(source.aiter_sse()) as frames:
            async for frame in frames:
                got.append((frame.event, json.loads(frame.data)))
                last = frame.id
                if len(got) == stop:
                    return

    async with asyncio.TaskGroup() as group:
        group.create_task(emit_slowly(jobs, events, halfway))
        await halfway.wait()
        await soon(read(len(events) // 3))
        await soon(read(None), within=60)
    assert got == [*(("message", event) for event in events), ("done", FINAL)]


async def read_data_only(client, path):
    """As the OpenAI API documents its streams: data-only server-sent events, the last of them ``data: [DONE]``.

    Ids, names and comments are looked at by no such reader.
    """
    values = []
    async with client.stream("GET", path) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                return values, True
            values.append(json.loads(data))
    return values, False


@with_transcripts
async def test_a_reader_of_openai_style_data_lines(open_gateway, jobs, path):
    """Of the events; and of a chat, which ends with ``[DONE]``."""
    events, halfway = lines_of(path), asyncio.Event()
    gate = await open_gateway(jobs)
    async with asyncio.TaskGroup() as group:
        group.create_task(emit_slowly(jobs, events, halfway))
        await halfway.wait()
        got = await soon(read_data_only(gate.client, "/streams/s/events?raw=1"), within=60)
    assert got == ([*events, FINAL], False)
    chat = await soon(read_data_only(gate.client, "/api/chat/s/stream?startIndex=2"), within=60)
    assert chat == ([*events[2:], {"type": "finish"}], True)
