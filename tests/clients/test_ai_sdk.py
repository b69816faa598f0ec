"""The AI SDK's own packages resume a chat on a real gateway: what ``useChat({ resume: true })`` stands on, and
``WorkflowChatTransport``. Exact versions, in ``ai_sdk/package.json``."""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from kit import proxying
from waiting import eventually, soon

pytestmark = pytest.mark.asyncio(loop_scope="session")

HERE = Path(__file__).parent / "ai_sdk"
CACHE = Path(__file__).resolve().parents[2] / ".cache"
FILES = ("package.json", "package-lock.json", ".npmrc")


@pytest.fixture(scope="session")
def sdk() -> Path:
    """The script beside its installed packages; installed once, again when the lock has changed."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    folder = CACHE / "ai-sdk"
    folder.mkdir(parents=True, exist_ok=True)
    with (CACHE / "ai-sdk.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist: only one worker installs
        wanted, done = (HERE / "package-lock.json").read_bytes(), folder / "installed"
        if not done.exists() or done.read_bytes() != wanted:
            for name in FILES:
                shutil.copy(HERE / name, folder / name)
            try:
                subprocess.run(["npm", "ci"], cwd=folder, check=True, capture_output=True, text=True, timeout=100)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                pytest.skip(f"npm cannot install the AI SDK: {error.stderr or error}")
            done.write_bytes(wanted)
        shutil.copy(HERE / "resume.mjs", folder / "resume.mjs")
    return folder / "resume.mjs"


CHUNKS = [
    {"type": "start", "messageId": "m"},
    {"type": "text-start", "id": "t"},
    *({"type": "text-delta", "id": "t", "delta": f"word{number} äöü\n"} for number in range(40)),
    {"type": "text-end", "id": "t"},
    {"type": "finish"},
]
TEXT = "".join(f"word{number} äöü\n" for number in range(40))


class Page:
    """A process that resumes a chat."""

    def __init__(self, process):
        self._process = process
        self.chunks = []
        self.end = None

    async def read(self, *, stop=None):
        """Its chunks, until there are as many, or it has ended."""
        while self.end is None and (stop is None or len(self.chunks) < stop):
            line = await soon(self._process.stdout.readline(), within=60)
            assert line, "it died"
            value = json.loads(line)
            if "chunk" in value:
                self.chunks.append(value["chunk"])
            else:
                self.end = value
        if self.end is not None:
            assert await soon(self._process.wait()) == 0
        return self


@pytest_asyncio.fixture(loop_scope="session")
async def page(sdk):
    """Call it with a transport, an address, and perhaps an index."""
    async with AsyncExitStack() as stack:

        async def start(kind, port, *index, chat="c"):
            process = await asyncio.create_subprocess_exec(
                *("node", str(sdk), kind, f"http://127.0.0.1:{port}", chat, *map(str, index)),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            stack.push_async_callback(_stop, process)
            return Page(process)

        yield start


async def _stop(process):
    if process.returncode is None:
        process.kill()
        await process.wait()
    process._transport.close()


async def emit(run, chunks):
    """These, stored."""
    for chunk in chunks:
        await run.emit(chunk)
    await run.flush()


@pytest.mark.parametrize("kind", ["default", "workflow"])
async def test_a_chat_is_resumed_from_its_start_and_followed_to_its_end(page, open_gateway, jobs, kind):
    """Replayed while it runs; every chunk once; the SDK makes the whole message of them."""
    gate = await open_gateway(jobs)
    async with jobs.start("c", user_id="alice") as run:
        await emit(run, CHUNKS[:15])
        reading = await page(kind, gate.port)
        await reading.read(stop=15)
        await emit(run, CHUNKS[15:])
    await reading.read()
    assert reading.chunks == CHUNKS
    parts = [part for part in reading.end["message"]["parts"] if part["type"] == "text"]
    assert [(part["text"], part["state"]) for part in parts] == [(TEXT, "done")]
    assert reading.end["status"] == [200]


@pytest.mark.parametrize(("index", "first"), [(17, 17), (-5, 15), (-1000, 0)])
async def test_the_workflow_transport_goes_on_at_an_index(page, open_gateway, jobs, index, first):
    """Negative ones count from the tail that the header names."""
    gate = await open_gateway(jobs)
    async with jobs.start("c", user_id="alice") as run:
        await emit(run, CHUNKS[:20])
        reading = await page("workflow", gate.port, index)
        await reading.read(stop=20 - first)
        await emit(run, CHUNKS[20:])
    await reading.read()
    assert reading.chunks == CHUNKS[first:]
    assert reading.end["tail"] == ["19"]
    if index < 0:  # a positive one the transport does not add to what it has counted
        assert reading.end["end"]["chunkIndex"] == len(CHUNKS)


async def test_the_workflow_transport_survives_a_broken_connection(page, open_gateway, jobs):
    """It connects again with the number of chunks that it has: nothing missing, nothing twice."""
    gate = await open_gateway(jobs)
    async with proxying(gate.port) as proxy, jobs.start("c", user_id="alice") as run:
        await emit(run, CHUNKS[:20])
        reading = await page("workflow", proxy.port, -10)
        await reading.read(stop=10)
        proxy.cut()
        await eventually(lambda: proxy.accepted == 2)
        await emit(run, CHUNKS[20:30])
        await reading.read(stop=20)
        proxy.cut()
        await emit(run, CHUNKS[30:])
        await run.complete()
        await reading.read()
    assert reading.chunks == CHUNKS[10:]
    assert reading.end["status"] == [200, 200, 200]


async def test_nothing_active_is_no_stream(page, open_gateway, jobs):
    """204: never begun, or ended."""
    gate = await open_gateway(jobs)
    async with jobs.start("ended", user_id="alice") as run:
        await emit(run, CHUNKS)
    for chat in ("never", "ended"):
        reading = await (await page("default", gate.port, chat=chat)).read()
        assert (reading.end["none"], reading.end["status"], reading.chunks) == (True, [204], [])


@pytest.mark.parametrize("kind", ["default", "workflow"])
async def test_an_aborted_chat_ends_with_abort_then_finish(page, open_gateway, jobs, kind):
    """So both transports take it for the end and do not connect again."""
    gate = await open_gateway(jobs)
    async with jobs.start("c", user_id="alice") as run:
        await emit(run, CHUNKS[:10])
        reading = await page(kind, gate.port)
        await reading.read(stop=10)
        assert (await gate.client.post("/api/chat/c/stop")).json()["stopped"] is True
        await soon(run.wait_aborted())
    await reading.read()
    assert reading.chunks == [*CHUNKS[:10], {"type": "abort"}, {"type": "finish"}]
    assert reading.end["status"] == [200]
