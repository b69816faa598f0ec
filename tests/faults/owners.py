"""Owner processes as a test sees them: started, signalled, told what to do, and everything they said written down."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from fault_table import Row
from nodes import Space, program
from waiting import eventually


@dataclass
class Owned:
    """What an owner said about one job. ``acked``: so many events are known to be stored."""

    generation: str = ""
    emitted: int = 0
    acked: int = 0
    backlog: int = 0
    """Most events that were emitted and not acknowledged."""
    blocked: float = 0.0
    """Longest wait of one ``emit``, seconds."""
    waited: float = 0.0
    """Longest wait of one ``flush``, seconds."""
    troubles: list[str] = field(default_factory=list)
    refused: dict[str, Any] | None = None
    """How an ``emit`` after the end was refused."""
    ended: dict[str, Any] | None = None
    """How the run ended: ``status``, ``reason``, ``at`` (monotonic)."""


class Owner:
    """One process that owns jobs."""

    def __init__(self, process: asyncio.subprocess.Process, jobs: Iterable[str]) -> None:
        self._process = process
        self.jobs = {stream_id: Owned() for stream_id in jobs}
        self.is_busy = False
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self._hear(json.loads(line))

    def _hear(self, said: dict[str, Any]) -> None:
        if said["is"] == "busy":
            self.is_busy = True
            return
        owned = self.jobs[said["job"]]
        owned.emitted, owned.acked, owned.blocked = said["emitted"], said["acked"], said["blocked"]
        owned.waited = max(owned.waited, said.get("waited", 0.0))
        owned.backlog = max(owned.backlog, said.get("backlog", 0))
        if said["is"] == "running":
            owned.generation = said["generation"]
        elif said["is"] == "refused":
            owned.refused = said
        elif said["is"] == "ended":
            owned.ended = said
        elif said["is"] == "trouble":
            owned.troubles.append(said["error"])

    def signal(self, what: signal.Signals) -> None:
        """To this process only."""
        self._process.send_signal(what)

    def tell(self, line: str) -> None:
        """``finish`` or ``busy SECONDS``."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    async def until(self, check: Callable[[Owned], Any], *, within: float = 60.0) -> None:
        """Wait until something holds for every job."""

        def all_of_them() -> bool:
            assert self._process.returncode is None or all(map(check, self.jobs.values())), "the owner has ended"
            return all(map(check, self.jobs.values()))

        await eventually(all_of_them, within=within)

    async def running(self) -> None:
        """Wait until every job runs and has something in its log."""
        await self.until(lambda owned: owned.generation and owned.acked)

    async def stored(self, more: int, *, within: float = 60.0) -> None:
        """Wait until every job has stored so many events more than now."""
        now = {stream_id: owned.acked for stream_id, owned in self.jobs.items()}
        await eventually(lambda: all(self.jobs[one].acked >= now[one] + more for one in now), within=within)

    async def finish(self, *, within: float = 90.0) -> None:
        """Let every run complete, and wait until it has."""
        self.tell("finish")
        await self.until(lambda owned: owned.ended, within=within)

    def completed(self) -> None:
        """Every run said that it is complete, that all its events are stored, and of no error on the way."""
        for stream_id, owned in self.jobs.items():
            assert owned.ended is not None, stream_id
            assert owned.ended["status"] == "complete", (stream_id, owned)
            assert owned.acked == owned.emitted
            assert not owned.troubles, (stream_id, owned.troubles[:3])

    def count(self, row: Row) -> None:
        """Into the table: what was emitted and acknowledged, and the longest wait for an acknowledgement."""
        row.emitted = (row.emitted or 0) + sum(owned.emitted for owned in self.jobs.values())
        row.acknowledged = (row.acknowledged or 0) + sum(owned.acked for owned in self.jobs.values())
        row.stalled(max(max(owned.waited, owned.blocked) for owned in self.jobs.values()))

    async def end(self) -> None:
        """Kill it if it is still there, and hear its last words."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        await self._listening
        assert self._process.stdin is not None
        self._process.stdin.close()


@asynccontextmanager
async def owner(
    space: Space, jobs: Iterable[str], *, every: float = 0.05, padding: int = 0, user: str = "alice", flush: bool = True
) -> AsyncIterator[Owner]:
    """A process that owns these jobs, with an event of each every so many seconds; they run when this is entered.

    ``flush=False``: it waits for no event but the first to be stored, and says of every one that it was emitted.
    """
    names = list(jobs)
    work = {"space": asdict(space), "jobs": names, "every": every, "padding": padding, "user": user, "flush": flush}
    worker, environment = program("worker.py")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, worker, json.dumps(work), stdin=pipe, stdout=pipe, limit=1 << 20, env=environment
    )
    made = Owner(process, names)
    try:
        await made.running()
        yield made
    finally:
        await made.end()
