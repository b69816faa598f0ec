"""A desk between a client and its server: questions to JetStream's API stay there until a test lets them pass.

The server maps the subject of the questions to ``asked.*``, and knows itself as the domain ``hub``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from jetstream_kit import Space
from nats.aio.msg import Msg
from waiting import known


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
