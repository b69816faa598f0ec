"""Everything that ``deploy/`` describes, run: traffic through a rolling restart of every part, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
import nats
import pytest
from httpx_sse import aconnect_sse
from stack import PASSWORDS, USERS, Process, Stack
from waiting import eventually

WORDS = "nothing is lost while every part of it is restarted"


@pytest.fixture
def stack(tmp_path: Path) -> Any:
    """The deployment; what still runs at the end is ended."""
    made = Stack(tmp_path)
    yield made
    for process in made.everything:
        process.kill()


async def healthy(url: str) -> bool:
    """Whether a health check answers with 200."""
    async with httpx.AsyncClient() as client:
        with suppress(httpx.HTTPError):
            return (await client.get(url, timeout=5)).status_code == 200
    return False


async def start_all(stack: Stack) -> None:
    """Servers, setup, gateways, worker, each when what it needs is there."""
    for process in stack.nats.values():
        process.start()
    for port in stack.monitor.values():
        await eventually(lambda port=port: healthy(f"http://127.0.0.1:{port}/healthz"), within=60)
    stack.setup.start()
    process = stack.setup._process
    assert process is not None
    await eventually(lambda: process.poll() is not None, within=60)
    assert process.returncode == 0, stack.setup.log
    for gateway, port in zip(stack.gateways, stack.http, strict=True):
        gateway.start()
        await gateway_ready(port)
    stack.worker.start()
    await eventually(lambda: "working" in stack.worker.log, within=60)


async def gateway_ready(port: int) -> None:
    """Wait for the readiness probe."""
    await eventually(lambda: healthy(f"http://127.0.0.1:{port}/readyz"), within=60)


class Asker:
    """An application that hands prompts to workers, as the user of the worker."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    async def __aenter__(self) -> Self:
        async def ignore(_: Exception) -> None:
            """Servers go and come."""

        self.nc = await nats.connect(
            self._stack.nats_url.split(","),
            tls=ssl.create_default_context(cafile=str(self._stack.ca)),
            user="worker",
            password=PASSWORDS["worker"],
            inbox_prefix=b"_INBOX_worker",
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.1,
            error_cb=ignore,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.nc.close()

    async def ask(self, chat: str) -> str:
        """Until a worker takes it; its generation."""
        body = json.dumps({"chat": chat, "user": "alice", "prompt": WORDS}).encode()

        async def taken() -> Any:
            with suppress(nats.errors.Error):
                return json.loads((await self.nc.request("app.prompts", body, timeout=2)).data)
            return None

        found = await eventually(taken, within=60)
        return str(found["generation"])


async def read(stack: Stack, chat: str) -> list[Any]:
    """Everything of a job, as an EventSource behind a balancer reads it: at any gateway, with its cursor."""
    seen: list[Any] = []
    cursor, turn = "", 0
    async with httpx.AsyncClient(timeout=httpx.Timeout(30)) as client:
        while True:
            turn += 1
            url = f"http://127.0.0.1:{stack.http[turn % 2]}/streams/{chat}/events?raw=1"
            headers = {"Authorization": f"Bearer {USERS['alice']}"}
            headers |= {"Last-Event-ID": cursor} if cursor else {}
            with suppress(httpx.HTTPError):
                async with aconnect_sse(client, "GET", url, headers=headers) as source:
                    if source.response.status_code == 200:
                        async for event in source.aiter_sse():
                            cursor = event.id or cursor
                            if event.event in {"done", "error", "aborted"}:
                                return [*seen, event.event]
                            seen.append(json.loads(event.data))
            await asyncio.sleep(0.1)


def whole(seen: list[Any]) -> bool:
    """Every word, once, in order, then the end."""
    words = [f"{word} " for word in (WORDS + " ").split(" ") * 10]
    return [event["text"] for event in seen[:-1]] == words and seen[-1] == "done"


@pytest.mark.timeout(400)
async def test_a_rolling_restart_of_everything_loses_nothing(stack: Stack, row: Any) -> None:
    """Servers, gateways and the worker one after the other, in good order, while jobs run and are read."""
    await start_all(stack)
    async with Asker(stack) as asker:
        count, readers = 0, []

        async def traffic() -> None:
            nonlocal count
            chat = f"c{count}"
            count += 1
            await asker.ask(chat)
            readers.append(asyncio.create_task(read(stack, chat)))

        async def restart(process: Process, ready: Any) -> None:
            await traffic()
            assert await process.stop() in {0, 1, 143}, process.log
            row.fault(f"restart {process.name}")
            process.start()
            await ready()

        for node, process in stack.nats.items():
            url = f"http://127.0.0.1:{stack.monitor[node]}/healthz"
            await restart(process, lambda url=url: eventually(lambda: healthy(url), within=60))
        for gateway, port in zip(stack.gateways, stack.http, strict=True):
            await restart(gateway, lambda port=port: gateway_ready(port))
        before = len(stack.worker.log)
        await restart(stack.worker, lambda: eventually(lambda: "working" in stack.worker.log[before:], within=60))
        await traffic()
        seen = await asyncio.gather(*readers)
    assert "0 runs were cut short" in stack.worker.log
    words = len((WORDS + " ").split(" ")) * 10
    row.emitted = count * words
    for one in seen:
        places = [f"{place} {event['text']}" for place, event in enumerate(one[:-1])]
        row.viewer([f"{place} {word} " for place, word in enumerate((WORDS + " ").split(" ") * 10)], places)
    row.whole()
    assert all(whole(one) for one in seen)
