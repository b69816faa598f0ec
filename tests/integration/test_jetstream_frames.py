"""Messages of ours go past nats-py's reading: over TLS, after a reconnect, and on a connection of the user's too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import login_kit
import nats
import pytest
from jetstream_kit import Server, Space, space
from waiting import eventually

from natsjobs.engine.ports import Incoming
from natsjobs.jetstream import socket
from natsjobs.jetstream.frames import Frames
from natsjobs.jetstream.tap import tap_of

PLAIN = 'jetstream: {store_dir: "$STORE"}\n'


@asynccontextmanager
async def counted(running: Server, scheme: str, options: dict[str, Any]) -> AsyncIterator[tuple[Space, list[int]]]:
    """A namespace, and the subscription of each message that nats-py reads itself."""
    async with space(running.url.replace("nats", scheme, 1), **options) as here:
        tap, read = tap_of(here.nc), list[int]()
        deliver = here.nc._process_msg

        async def count(sid: int, *message: Any) -> None:
            read.append(sid)
            await deliver(sid, *message)

        here.nc._process_msg = count
        try:
            yield here, read
        finally:
            here.nc._process_msg = tap._deliver


@pytest.mark.parametrize("way", ["plain", "tls"])
async def test_what_is_ours_goes_past_nats_py(tmp_path: Path, way: str) -> None:
    """Answers, pages and live messages; also once the connection is another one."""
    login = login_kit.tls(tmp_path) if way == "tls" else None
    running = Server(tmp_path, login.server if login else PLAIN)
    running.start()
    try:
        async with counted(running, "tls" if login else "nats", login.right if login else {}) as (here, read):
            live: list[Incoming] = []
            await here.link.bus.subscribe(here.names.live("s"), live.append)
            for n in range(300):
                assert await here.append(bytes([n % 256]) * n, expect=n) == n + 1
            assert len(await here.link.events.page(here.scope, 1)) == 64
            assert len(live) == 300
            assert len(read) < 60, "most went through nats-py"

            here.nc._transport._io_writer.transport.abort()
            await eventually(lambda: here.nc.stats["reconnects"] == 1 and here.link.connected_since is not None)
            read.clear()
            for n in range(300, 600):
                assert await here.append(b"x", expect=n) == n + 1
            await eventually(lambda: len(live) == 600)
            assert [one.seq for one in await here.link.events.page(here.scope, 400)] == list(range(400, 464))
            assert len(read) < 60, "most went through nats-py"
    finally:
        running.stop()


async def test_the_users_connection_reads_as_before_afterwards(newest_server: str) -> None:
    """While a link is open on it both get theirs, in the middle of a message too; then nothing of ours is left."""
    got: list[int] = []

    async def receive(msg: Any) -> None:
        got.append(len(msg.data))

    async with space(newest_server) as here:
        nc, below = here.nc, socket.socket_of(here.nc)
        assert below is not None
        await nc.subscribe("user.subject", cb=receive)
        publisher = await nats.connect(newest_server)
        sending = asyncio.create_task(_publish(publisher, "user.subject"))
        for n in range(200):
            assert await here.append(b"x" * 1_000, expect=n) == n + 1
        assert isinstance(below.get_protocol(), Frames)
        await here.link.close()
        assert not isinstance(below.get_protocol(), Frames)
        await sending
        await eventually(lambda: got == [150_000] * 100)
        assert nc.is_connected
        await publisher.close()


async def _publish(nc: Any, subject: str) -> None:
    for _ in range(100):
        await nc.publish(subject, b"x" * 150_000)
        await nc.flush()


async def test_where_it_cannot_be_told_whether_nats_py_has_read_nothing_goes_past_it(
    newest_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Python or a nats-py that names these parts otherwise costs speed, nothing else."""
    monkeypatch.setattr(socket, "_idleness", lambda _: None)
    async with space(newest_server) as here:
        below = socket.socket_of(here.nc)
        assert below is not None
        assert not isinstance(below.get_protocol(), Frames)
        for n in range(100):
            assert await here.append(b"x", expect=n) == n + 1
