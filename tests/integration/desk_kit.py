"""A desk between a client and its server: questions to JetStream's API stay there until a test lets them pass.

The server maps the subject of the questions to ``asked.*``, and knows itself as the domain ``hub``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from jetstream_kit import Space, server, space
from nats.aio.msg import Msg
from waiting import eventually, known, soon

from natsjobs.errors import UnavailableError


def mapped(api: str) -> str:
    """The configuration of a server whose questions go by way of the desk."""
    return f'jetstream: {{store_dir: "$STORE", domain: "hub"}}\nmappings: {{"$JS.API.{api}.*": "asked.$1"}}\n'


class Desk:
    """Where questions arrive instead of at the server, which is asked when the test says so."""

    def __init__(self, here: Space, api: str) -> None:
        """``api``: what is asked, ``DIRECT.GET`` for instance."""
        self._here, self._api = here, api
        self.asked: list[Msg] = []
        self.then: Callable[[Msg], Awaitable[None]] | None = None
        """What is done with a question; ``None``: it stays where it is."""
        self._doing: set[asyncio.Task[Any]] = set()

    async def hear(self, msg: Msg) -> None:
        """One more question."""
        self.asked.append(msg)
        if self.then is not None:
            task = asyncio.ensure_future(self.then(msg))
            self._doing.add(task)
            task.add_done_callback(self._doing.discard)

    def seqs(self) -> list[int]:
        """What was asked for, in order."""
        return [json.loads(msg.data)["seq"] for msg in self.asked]

    async def all_here(self) -> list[int]:
        """The same, when everything that was sent until now has arrived."""
        await known(self._here.nc)
        return self.seqs()

    async def pass_on(self, msg: Msg, **changes: int) -> None:
        """Let the server answer."""
        name, query = msg.subject.removeprefix("asked."), {**json.loads(msg.data), **changes}
        await self._here.nc.publish(f"$JS.hub.API.{self._api}.{name}", json.dumps(query).encode(), reply=msg.reply)

    async def send(self, msg: Msg, seq: int) -> None:
        """One message of an answer that goes on."""
        head = {"Nats-Subject": self._here.log, "Nats-Sequence": str(seq), "Nats-Time-Stamp": "2026-01-01T00:00:00Z"}
        await self._here.nc.publish(msg.reply, str(seq).encode(), headers=head)

    def leave(self) -> None:
        """Nothing goes on behind the test's back."""
        for task in self._doing:
            task.cancel()


async def leave_the_line(
    desk: Desk, ask: Callable[[], list[asyncio.Task[Any]]], at_once: int, many: int
) -> tuple[list[int], list[int]]:
    """Of ``many`` who ask, ``at_once`` at a time, some in the line and some at the desk are cancelled, later all.

    Returns what was asked for until all the others had their answers, and what had to be.
    """
    asking = ask()
    await eventually(lambda: len(desk.asked) == at_once)
    for gone in (*asking[at_once : at_once + 3], *asking[:2]):
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
    await eventually(lambda: len(desk.asked) == at_once + 2)
    left = [seq for seq in range(1, many + 1) if seq <= at_once or seq > at_once + 3]
    assert await desk.all_here() == left[: at_once + 2]
    for msg in desk.asked:  # also what comes meanwhile
        await desk.pass_on(msg)
    desk.then = desk.pass_on
    await soon(asyncio.gather(*(asking[seq - 1] for seq in left if seq > 2)))
    asked = desk.seqs()
    desk.then = None
    desk.asked.clear()
    again = ask()
    await eventually(lambda: len(desk.asked) == at_once)
    for one in again:
        one.cancel()
    await asyncio.wait(again)
    return asked, left


@asynccontextmanager
async def away(folder: Path, ask: Callable[[Space], list[asyncio.Task[Any]]]) -> AsyncIterator[Space]:
    """A server is stopped, and all who ask are told in time; then it is back."""
    with server(folder) as running:
        async with space(running.url) as here:
            await here.append(b"1")
            running.stop()
            await eventually(lambda: here.link.connected_since is None)
            async with asyncio.timeout(8):
                found = await asyncio.gather(*ask(here), return_exceptions=True)
            assert {type(one) for one in found} == {UnavailableError}
            running.start()
            await eventually(lambda: here.link.connected_since is not None)
            yield here
