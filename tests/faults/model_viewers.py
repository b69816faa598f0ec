"""Those who look on while a program of the model runs: viewers, followers, and watchers of ends.

Owns what each of them was given, and the check of it against what the witness of each generation saw.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from model import End, Log

from natsjobs import ConnectionLostError, NatsJobsError, NotOpenError, StreamEvent


def end_in(event: StreamEvent) -> End:
    """A terminal record as the model writes it."""
    return End(event.type.value, event.end_reason.value if event.end_reason else None, event.data)


class Viewer:
    """Reads one generation, or with ``follow`` all that come, and keeps what it was given."""

    def __init__(self, replica: Any, *, start: int | None, follow: bool) -> None:
        self.replica, self.start, self.follow = replica, start, follow
        self.events: list[StreamEvent] = []
        self.error: Exception | None = None
        self.excused = False
        """What it reads was removed meanwhile: it may be told that history is lost."""
        self._stack = contextlib.AsyncExitStack()
        self._task: asyncio.Task[None] | None = None

    async def enter(self, stream_id: str, after: str | None) -> str:
        """Attach; the generation. Raises what ``subscribe`` raises."""
        reading = self.replica.manager.subscribe(stream_id, after=after, follow=self.follow)
        reader = await self._stack.enter_async_context(reading)
        self._task = asyncio.ensure_future(self._read(reader))
        return str(reader.job.generation)

    async def _read(self, reader: Any) -> None:
        try:
            async for event in reader:
                self.events.append(event)
        except NatsJobsError as error:
            self.error = error

    @property
    def over(self) -> bool:
        """It will get nothing more."""
        return self._task is None or self._task.done()

    def values(self, generation: str) -> list[int]:
        """The events of a generation."""
        return [e.data for e in self.events if e.generation == generation and not e.is_terminal]

    def end(self, generation: str) -> StreamEvent | None:
        """Its terminal record, if it was given; never two, and nothing after it."""
        mine = [event for event in self.events if event.generation == generation]
        ends = [event for event in mine if event.is_terminal]
        assert len(ends) <= 1, f"{len(ends)} terminal records of {generation}"
        assert not ends or mine[-1] is ends[0], f"something came after the end of {generation}"
        return ends[0] if ends else None

    async def close(self) -> None:
        """Leave; what its task failed with is raised."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        with contextlib.suppress(NotOpenError):
            await self._stack.aclose()

    def check(self, logs: dict[str, Log], ends: dict[str, StreamEvent], *, alive: bool) -> None:
        """Against the witnesses: contiguous, in order, nothing mixed, and the same end as everybody's.

        ``alive``: its replica is there yet. One that was killed may say to its own viewers that its connection is gone.
        """
        for number, generation in enumerate(dict.fromkeys(event.generation for event in self.events)):
            mine = [event for event in self.events if event.generation == generation]
            assert [e.index for e in mine] == list(range(mine[0].index, mine[0].index + len(mine))), mine
            if number == 0 and self.start is not None and not self.excused:
                assert mine[0].index == self.start, f"began at {mine[0].index}, asked for {self.start}"
            if generation in logs:
                logs[generation].check_run(mine[0].index, self.values(generation))
            end = self.end(generation)
            if end is not None and generation in ends:
                assert (end_in(end), end.index) == (end_in(ends[generation]), ends[generation].index)
        if not self.follow:
            assert len({event.generation for event in self.events}) <= 1
        elif self.events:
            order = [event.generation for event in self.events]
            assert order == sorted(order), f"turns out of order: {order}"
        expected = NotOpenError if alive else (NotOpenError, ConnectionLostError)
        assert self.error is None or self.excused or isinstance(self.error, expected), self.error


class Watcher:
    """A callback for the end of one generation."""

    def __init__(self, replica: Any, generation: str) -> None:
        self.replica, self.generation = replica, generation
        self.ends: list[StreamEvent] = []
        self._registration: Any = None

    async def enter(self, stream_id: str) -> None:
        """Register."""
        self._registration = await self.replica.transport.on_end(
            stream_id, self.ends.append, generation=self.generation
        )

    def check(self, ends: dict[str, StreamEvent], *, removed: bool) -> None:
        """Called at most once, with the end that everybody saw; a log that was removed looks deleted."""
        assert len(self.ends) <= 1, f"{len(self.ends)} calls"
        if self.ends and self.generation in ends and not removed:
            assert end_in(self.ends[0]) == end_in(ends[self.generation])
