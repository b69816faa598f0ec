"""Who takes part in a work, and where one of them does it: with a fresh server and fresh, warm processes.

A server of its own for every time means that nothing which an earlier work left behind (jobs that are tidied up later,
files, memory) is measured with a later one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from natsjobs.cli.bench.servers import Process, Server

Figures: TypeAlias = dict[str, float]
"""What was measured, by column: ``catalog.COLUMNS`` says what each means."""

_numbers = itertools.count()


@dataclass(frozen=True)
class Contender:
    """One who does a work: the class of a side as ``module:name``, its kind of server, and its settings."""

    name: str
    side: str
    server: str
    settings: dict[str, Any] = field(default_factory=dict[str, Any], hash=False)
    groups: bool = True
    """Whether the pace of the events shapes its log."""


_OURS, _PEER = "natsjobs.cli.bench.ours:Ours", "natsjobs.cli.bench.peer:Peer"
OURS = Contender("natsjobs", _OURS, "nats")
OURS_LINGER_0 = Contender("natsjobs, linger 0", _OURS, "nats", {"linger": 0.0})
OURS_UVLOOP = Contender("natsjobs, uvloop", _OURS, "nats", {"uvloop": True})
OURS_R3 = Contender("natsjobs, R3", _OURS, "nats-3", {"replicas": 3})
OURS_R3_LINGER_0 = Contender("natsjobs, R3, linger 0", _OURS, "nats-3", {"replicas": 3, "linger": 0.0})
PEER = Contender("peer", _PEER, "redis", groups=False)
PEER_UVLOOP = Contender("peer, uvloop", _PEER, "redis", {"uvloop": True}, groups=False)
BARE = Contender("nats-py publish", "natsjobs.cli.bench.bare:Bare", "nats")
BARE_JETSTREAM = Contender("nats-py JetStream publish", "natsjobs.cli.bench.bare:BareJetStream", "nats")


class Stage:
    """One contender, once: its server and its processes, ended together."""

    def __init__(
        self, contender: Contender, server: Server, scale: float, transcripts: Sequence[Sequence[Any]] = ()
    ) -> None:
        """``scale``: 1 for the work as it is described, less to try it."""
        self.contender, self.server, self.transcripts = contender, server, transcripts
        self._scale = scale
        self.still = 2 * scale
        """Seconds without a change after which nothing changes any more in the background."""
        self._processes: list[Process] = []

    def scaled(self, count: int, least: int = 2) -> int:
        """How many, at this scale."""
        return max(least, round(count * self._scale))

    def ids(self, count: int) -> list[str]:
        """New stream ids."""
        return [f"b{next(_numbers)}" for _ in range(count)]

    async def processes(self, count: int, **settings: Any) -> list[Process]:
        """More processes on this side, connected and warm."""
        made = [
            await Process.start(self.contender.side, self.server, {**self.contender.settings, **settings})
            for _ in range(count)
        ]
        self._processes += made
        await asyncio.gather(*(process.ask("warm") for process in made))
        return made

    async def close(self) -> None:
        """End the processes."""
        await asyncio.gather(*(process.close() for process in self._processes))


Measure: TypeAlias = Callable[[Stage], Awaitable[Figures]]
