"""Viewers of jobs, and what they saw: from the start, late, or leaving and resuming again and again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from fault_table import Row

from natsjobs import JobManager, StreamEvent, UnavailableError
from natsjobs.tasks import Tasks


class Viewer:
    """One user's view of one job, over any number of readers."""

    def __init__(self, stream_id: str) -> None:
        self.stream_id = stream_id
        self.got: list[int] = []
        self.end: StreamEvent | None = None
        self.ended_at = 0.0
        """Monotonic."""
        self.attached = 0
        self.refused = 0
        """How often NATS was away for too long to be let in."""
        self.stall = 0.0
        """Longest wait for the next event, seconds; the way in counts."""
        self._cursor: str | None = None
        self._moment = 0.0

    async def watch(self, managers: Sequence[JobManager], *, resumes: random.Random | None = None) -> None:
        """Read to the end; with ``resumes`` leave after a few events, and resume on another replica."""
        self._moment = time.monotonic()
        while self.end is None:
            manager = resumes.choice(managers) if resumes else managers[0]
            stay = resumes.randrange(1, 40) if resumes else None
            self.attached += 1
            try:
                async with manager.subscribe(self.stream_id, after=self._cursor, wait=60.0) as events:
                    async for event in events:
                        self._take(event)
                        if stay is not None and not event.is_terminal:
                            stay -= 1
                            if stay == 0:
                                break
            except UnavailableError:
                self.refused += 1  # on entering only: an outage ends no reader

    def _take(self, event: StreamEvent) -> None:
        now = time.monotonic()
        self.stall, self._moment = max(self.stall, now - self._moment), now
        self._cursor = event.cursor
        assert self.end is None, f"an event after the end: {event}"
        if event.is_terminal:
            self.end, self.ended_at = event, now
            assert event.index == len(self.got)
        else:
            assert event.index == len(self.got), f"index {event.index} after {len(self.got)} events"
            self.got.append(event.data[0])


class Viewers:
    """A crowd of viewers on some replicas; they are all cut off when the block is left."""

    def __init__(self, *managers: JobManager) -> None:
        self.managers = managers
        self.all: list[Viewer] = []
        self._tasks = Tasks()
        self._watching: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._tasks.close()

    def watch(self, stream_id: str, *, resumes: random.Random | None = None, on: int = 0) -> Viewer:
        """One more, on replica number ``on``."""
        viewer = Viewer(stream_id)
        self.all.append(viewer)
        managers = self.managers[on % len(self.managers) :] + self.managers[: on % len(self.managers)]
        watching = viewer.watch(managers, resumes=resumes)
        self._watching.append(self._tasks.spawn(watching, f"viewer of {stream_id}"))
        return viewer

    async def ended(self, *, within: float = 60.0) -> None:
        """Wait until every viewer has an end; a viewer that failed fails the test."""
        async with asyncio.timeout(within):
            await asyncio.gather(*self._watching)

    def count(self, row: Row, sent: Mapping[str, int]) -> None:
        """Into the table: ``sent`` says how many events each job has."""
        for viewer in self.all:
            row.viewer(range(sent[viewer.stream_id]), viewer.got)
            row.stalled(viewer.stall)
