"""Questions about many at once that a small ``max_payload`` does not take, and what such a question costs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from jetstream_kit import Proxy, Server, config, server, space
from waiting import eventually, known, take

import natsjobs
from natsjobs.config import Timing


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Server]:
    """A server that takes the least that is enough."""
    with server(tmp_path, 'max_payload: 32768\njetstream: {store_dir: "$STORE"}\n') as running:
        yield running


async def test_a_question_that_is_too_long_is_answered_by_nobody(small: Server) -> None:
    """The leader, or shorter questions, have the answer."""
    async with space(small.url) as here:
        events, names = here.link.events, [f"{n:03d}{'i' * 125}" for n in range(256)]
        for name in names[:3]:
            await events.append(here.names.log(name, "g"), b"x")
        scopes, logs = [here.names.scope(name, "g") for name in names], [here.names.log(name, "g") for name in names]
        assert await events.newer(scopes, 1) is None
        assert await events.newest(scopes) is None
        assert await events.held(logs) is None
        found = await events.newer(scopes[:100], 1)
        assert found is not None
        assert len(found.messages) == 3


async def test_a_list_of_the_longest_ids_is_complete(small: Server) -> None:
    """More of them than a question can hold."""
    async with space(small.url) as here, natsjobs.connect(nc=here.nc, config=here.config) as jobs:
        names = {f"{n:03d}{'я' * 126}" for n in range(70)}
        await asyncio.gather(*(jobs.store.create_job(name, "ю" * 128) for name in names))
        assert {job.stream_id for job in await jobs.store.list_jobs()} == names


async def test_followers_of_the_longest_ids_have_what_was_lost_live(small: Server) -> None:
    """Also by the look of all at once, after a reconnect; the next one would be an hour later."""
    async with (
        Proxy(small.port) as wire,
        space(small.url, config(timing=Timing(look=3600.0))) as here,
        natsjobs.connect(nc=here.nc, config=here.config) as jobs,
        natsjobs.connect(wire.url, config=here.config) as viewer,
        AsyncExitStack() as stack,
    ):
        names = [f"{n:03d}{'я' * 126}" for n in range(60)]
        runs = [await stack.enter_async_context(jobs.start(name, user_id="u")) for name in names]
        readers = [await stack.enter_async_context(viewer.subscribe(name)) for name in names]
        now, tails = asyncio.get_running_loop().time(), viewer.transport._tails._tails.values()
        await eventually(lambda: all(now + 600 < (tail.group or tail).due < math.inf for tail in tails))
        nc = viewer.transport.replica.context.link.nc
        for sid, sub in nc._subs.items():
            if sub.subject.startswith(here.names.live_prefix):
                await nc._send_unsubscribe(sid)
        await known(nc)
        await runs[7].emit("lost")
        await runs[7].flush()
        wire.drop()
        assert [event.data for event in await take(readers[7], 1)] == ["lost"]
