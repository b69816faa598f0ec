"""A wire between one process and a server that a test can cut: both ways or one, for a while or for good.

``hold`` is a network that is away and comes back: TCP sends again, so everything arrives late and in order. ``lose``
is a middlebox that has forgotten the connection: what is sent is gone, and nobody is told until ``drop``.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from jetstream_kit import Proxy

UP, DOWN = "up", "down"
BOTH = frozenset({UP, DOWN})


class Wire(Proxy):
    """Directions are the client's: ``UP`` is what it sends."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._open = {UP: asyncio.Event(), DOWN: asyncio.Event()}
        self._losing: frozenset[str] = frozenset()
        self.heal()

    def hold(self, *ways: str) -> None:
        """Nothing passes until ``heal``."""
        for way in ways:
            self._open[way].clear()

    def lose(self, *ways: str) -> None:
        """What is sent from now on is lost, until ``heal`` for those that connect then."""
        self._losing = frozenset(ways)

    def heal(self) -> None:
        """Everything passes."""
        self._losing = frozenset()
        for event in self._open.values():
            event.set()

    async def cut(self) -> None:
        """As the wire ends: what is held is not delivered."""
        self.heal()
        await super().cut()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        way = UP if target.get_extra_info("peername")[1] == self._to else DOWN
        lost = False
        with suppress(ConnectionError):
            while data := await source.read(65536):
                lost = lost or way in self._losing  # a stream with a hole in it is of no use to anybody
                await self._open[way].wait()
                if not lost:
                    target.write(data)
                    await target.drain()
        target.close()
