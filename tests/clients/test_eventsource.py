"""``EventSource`` in a real browser: whatever breaks in between, the page gets every event once, and then it stops."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import uuid
from contextlib import AsyncExitStack, ExitStack

import pytest
from kit import TRANSCRIPTS, gateway_process, lines_of, proxying
from waiting import eventually

import natsjobs
from natsjobs import embedded
from natsjobs.http import GatewayConfig

pytestmark = pytest.mark.asyncio(loop_scope="session")

LISTEN = """
path => {
  window.got = []; window.ends = []; window.breaks = 0;
  const source = window.source = new EventSource(path);
  source.onmessage = event => got.push([event.lastEventId, event.data]);
  for (const name of ["done", "aborted"]) source.addEventListener(name, event => ends.push([name, event.data]));
  source.onerror = () => { breaks += 1; };
}
"""
CLOSED = 2


async def seen(page, count):
    """Wait until the page has this many events."""
    await eventually(
        lambda: page.evaluate(f"got.length >= {count}"), within=40, what=f"{count} events in the page", pause=0.05
    )


async def check(page, expected, *, end="done"):
    """The page has exactly these events, then one terminal event, and its ``EventSource`` has stopped by itself."""
    await eventually(lambda: page.evaluate("ends.length"), within=40, what="a terminal event")
    await eventually(lambda: page.evaluate(f"source.readyState === {CLOSED}"), within=40, what="EventSource stopped")
    got = await page.evaluate("got")
    assert [json.loads(data) for _, data in got] == expected
    assert len({cursor for cursor, _ in got}) == len(expected)
    assert [name for name, _ in await page.evaluate("ends")] == [end]


@pytest.mark.skipif(not TRANSCRIPTS, reason="no transcripts in ../shared")
async def test_a_browser_survives_twenty_reconnects(tab, open_gateway, jobs):
    """At random points of a recorded answer, while it is being written, on two gateways in turn."""
    path = max(TRANSCRIPTS, key=lambda one: len(one.read_bytes().splitlines()))
    events = lines_of(path)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    cuts = sorted(random.Random(seed).sample(range(1, len(events)), k=20))
    config = GatewayConfig(retry=0.05)
    gates = [await open_gateway(jobs, config=config) for _ in range(2)]
    async with proxying(gates[0].port) as proxy:
        page = await tab()
        await page.goto(f"{proxy.url}/healthz")
        async with jobs.start("s", user_id="alice") as run:
            await page.evaluate(LISTEN, "/streams/s/events?raw=1")
            for number, (begin, stop) in enumerate(zip([0, *cuts], [*cuts, len(events)], strict=True)):
                for event in events[begin:stop]:
                    await run.emit(event)
                await seen(page, begin + 1)
                if number < 20:
                    proxy.target = gates[number % 2].port
                    proxy.cut()
                    await eventually(lambda n=number: page.evaluate(f"breaks > {n}"), what="the page noticed")
        await check(page, events)
        assert proxy.accepted >= 21


@pytest.mark.skipif(not TRANSCRIPTS, reason="no transcripts in ../shared")
async def test_a_browser_survives_a_killed_gateway_and_a_restarted_server(tab, tmp_path):
    """SIGKILL of the gateway with a second one behind the same address; then the NATS server goes and comes back."""
    events = lines_of(min(TRANSCRIPTS, key=lambda one: abs(len(one.read_bytes().splitlines()) - 200)))
    thirds = [events[: len(events) // 3], events[len(events) // 3 : -20], events[-20:]]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    namespace = f"t{uuid.uuid4().hex[:10]}"
    async with AsyncExitStack() as stack:
        servers = stack.enter_context(ExitStack())
        url = servers.enter_context(embedded.server(port=port, store_dir=tmp_path)).url
        config = natsjobs.Config(namespace=namespace)
        jobs = await stack.enter_async_context(natsjobs.connect(url, config=config))
        starting = [stack.enter_async_context(gateway_process(url, namespace)) for _ in range(2)]
        first, second = await asyncio.gather(*starting)
        proxy = await stack.enter_async_context(proxying(first.port))
        page = await tab()
        await page.goto(f"{proxy.url}/healthz")
        async with jobs.start("s", user_id="alice") as run:
            await page.evaluate(LISTEN, "/streams/s/events?raw=1")
            for event in thirds[0]:
                await run.emit(event)
            await seen(page, len(thirds[0]))
            proxy.target = second.port
            await first.kill()
            for event in thirds[1]:
                await run.emit(event)
            await seen(page, len(thirds[0]) + len(thirds[1]))
            servers.close()
            for event in thirds[2]:
                await run.emit(event)
            servers.enter_context(embedded.server(port=port, store_dir=tmp_path))
        await check(page, events)


async def test_a_browser_stops_at_the_end_of_an_aborted_job(tab, open_gateway, jobs):
    """The terminal event has its name, and 204 keeps the browser from asking for ever."""
    gate = await open_gateway(jobs, config=GatewayConfig(retry=0.05))
    page = await tab()
    await page.goto(f"http://127.0.0.1:{gate.port}/healthz")
    async with jobs.start("s", user_id="alice") as run:
        await run.emit({"n": 1})
        await page.evaluate(LISTEN, "/streams/s/events?raw=1")
        await seen(page, 1)
        await jobs.abort("s")
    await check(page, [{"n": 1}], end="aborted")


async def test_a_browser_that_is_refused_for_now_comes_again_and_misses_nothing(tab, open_gateway, jobs):
    """Its gateway closes and still answers; as soon as the address leads to another one it goes on there."""
    gates = [await open_gateway(jobs, config=GatewayConfig(retry=0.05)) for _ in range(2)]
    async with proxying(gates[0].port) as proxy:
        page = await tab()
        await page.goto(f"{proxy.url}/healthz")
        async with jobs.start("s", user_id="alice") as run:
            await run.emit({"n": 1})
            await page.evaluate(LISTEN, "/streams/s/events?raw=1")
            await seen(page, 1)
            gates[0].app.close()
            await eventually(lambda: page.evaluate("breaks >= 2"), what="the page was refused once")
            await run.emit({"n": 2})
            assert await page.evaluate("source.readyState") != CLOSED
            proxy.target = gates[1].port
            await seen(page, 2)
        await check(page, [{"n": 1}, {"n": 2}])
