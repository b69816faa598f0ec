"""What a reading process does: readers that check what they get, and what that costs it.

A reader that does not get every number of its job, once and in order, or not as many as there are, ends the work with
an ``AssertionError`` that names the job and what was missing: there is no figure for something that loses.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

from natsjobs.cli.bench.sides import Followed, Side, chunks, quantile
from natsjobs.tasks import Tasks

_EARLY = 1.0
"""A side that lets a reader attach before the job has done so by then; with the other one it is waiting."""


class Reader:
    """The readers of this process. Every public method is a command; its result goes back as JSON."""

    def __init__(self, side: Side, patience: float) -> None:
        """``patience``: seconds without any event after which events are missing."""
        self._side, self._patience = side, patience
        self._open = AsyncExitStack()
        self._tasks = Tasks()
        self._reading: list[asyncio.Task[None]] = []
        self._got: list[tuple[str, list[int]]] = []
        self._latencies: list[int] = []
        self._wanted = 0
        self._cpu, self._cpu_then, self._last = 0.0, 0.0, 0
        self._reached = asyncio.Event()
        self._wrong: Exception | None = None

    # -- live

    async def attach(self, ids: Sequence[str], copies: int = 1) -> dict[str, Any]:
        """Attach readers, ``copies`` for each job, which read from now on."""
        wanted = [one for one in ids for _ in range(copies)]
        for chunk in chunks(wanted, 100):
            attached = await asyncio.gather(*(self._open.enter_async_context(self._side.follow(one)) for one in chunk))
            for stream_id, events in zip(chunk, attached, strict=True):
                count = [0]
                self._got.append((stream_id, count))
                self._reading.append(self._tasks.spawn(self._read(stream_id, events, count), f"read {stream_id}"))
        return {}

    async def attach_early(self, ids: Sequence[str]) -> dict[str, Any]:
        """A reader for each of some jobs that do not exist yet; they wait for it, each in its way."""
        attached: list[asyncio.Future[None]] = []
        for stream_id in ids:
            entered, count = asyncio.get_running_loop().create_future(), [0]
            attached.append(entered)
            self._got.append((stream_id, count))
            self._reading.append(self._tasks.spawn(self._wait_and_read(stream_id, entered, count), f"read {stream_id}"))
        await asyncio.wait(attached, timeout=_EARLY)
        return {}

    async def expect(self, events: int) -> dict[str, Any]:
        """Measure from now on, until so many more have come in all."""
        self._latencies.clear()
        self._reached.clear()
        self._wanted = events
        gc.collect()
        self._cpu = time.process_time()
        return {}

    async def seen(self) -> dict[str, Any]:
        """When what is expected has come: CPU time, when the last one came, and how long they took.

        Raises:
            AssertionError: Something was missing, doubled or out of order.
        """
        while not self._reached.is_set():
            before = len(self._latencies)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._reached.wait(), self._patience)
            if before == len(self._latencies) and not self._reached.is_set():
                self._complain(f"{before} of {self._wanted} events came, then none for {self._patience:.0f} s")
        self._raise_wrong()
        ordered = sorted(self._latencies)
        return {
            "cpu": self._cpu_then - self._cpu,
            "last": self._last,
            "p50": quantile(ordered, 0.5),
            "p99": quantile(ordered, 0.99),
        }

    async def end(self, counts: Sequence[int]) -> dict[str, Any]:
        """When every reader has come to the end of its job: each must have got its number of events."""
        _, late = await asyncio.wait(self._reading, timeout=self._patience)
        self._raise_wrong()
        if late:
            self._complain(f"{len(late)} of {len(self._reading)} readers did not come to the end of their jobs")
        for number, (stream_id, got) in enumerate(self._got):
            wanted = counts[number % len(counts)]
            if got[0] != wanted:
                raise AssertionError(f"job {stream_id}: {got[0]} of {wanted} events came")
        return await self.leave()

    async def leave(self) -> dict[str, Any]:
        """Nobody reads any more, wherever he is."""
        await self._tasks.close()
        await self._open.aclose()
        self._open, self._tasks, self._reading, self._got = AsyncExitStack(), Tasks(), [], []
        return {}

    async def _wait_and_read(self, stream_id: str, entered: asyncio.Future[None], got: list[int]) -> None:
        try:
            async with self._side.follow(stream_id) as events:
                entered.set_result(None)
                await self._checked(stream_id, events, got)
        except Exception as error:  # noqa: BLE001 - whoever waits for this reader raises it
            self._wrong = self._wrong or error
            self._reached.set()

    async def _read(self, stream_id: str, events: Followed, got: list[int]) -> None:
        try:
            await self._checked(stream_id, events, got)
        except Exception as error:  # noqa: BLE001 - whoever waits for this reader raises it
            self._wrong = self._wrong or error
            self._reached.set()

    async def _checked(self, stream_id: str, events: Followed, got: list[int]) -> None:
        clock, latencies, expected = time.monotonic_ns, self._latencies, 0
        async for seen in events:
            if seen.is_terminal:
                return
            event = seen.data
            now = clock()
            if event["n"] != expected:
                raise AssertionError(f"job {stream_id}: event {event['n']} came in place of {expected}")
            expected += 1
            got[0] = expected
            latencies.append(now - event["t"])
            if len(latencies) == self._wanted:
                self._cpu_then, self._last = time.process_time(), now
                self._reached.set()

    def _raise_wrong(self) -> None:
        if self._wrong is not None:
            raise self._wrong

    def _complain(self, what: str) -> None:
        behind = min(self._got, key=lambda one: one[1][0])
        raise AssertionError(f"{what}; the one that is furthest behind: job {behind[0]}, {behind[1][0]} events")

    # -- from the log

    async def replay(self, ids: Sequence[str], count: int, after: str | None = None, first: int = 0) -> dict[str, Any]:
        """Read logs that are there, all at once, from attaching to the last event: seconds for each, and CPU."""
        gc.collect()
        begin, cpu = time.monotonic(), time.process_time()
        times = sorted(await asyncio.gather(*(self._replay(one, count, after, first) for one in ids)))
        return {
            "seconds": time.monotonic() - begin,
            "cpu": time.process_time() - cpu,
            "p50": quantile(times, 0.5),
            "p99": quantile(times, 0.99),
        }

    async def _replay(self, stream_id: str, count: int, after: str | None, first: int) -> float:
        begin, expected, end = time.monotonic(), first, first + count
        async with self._side.follow(stream_id, after) as events:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(60, self._patience)):
                    async for seen in events:
                        if seen.is_terminal:
                            break
                        if (number := seen.data["n"]) != expected:
                            raise AssertionError(f"job {stream_id}: event {number} came in place of {expected}")
                        expected += 1
                        if expected == end:
                            return time.monotonic() - begin
        raise AssertionError(f"job {stream_id}: {expected - first} of {count} events came")

    async def cursor(self, stream_id: str, place: int) -> dict[str, Any]:
        """The cursor behind the event at a place."""
        async with self._side.follow(stream_id) as events:
            async for seen in events:
                if seen.data["n"] == place:
                    return {"cursor": seen.cursor}
        raise AssertionError(f"job {stream_id}: no event {place}")

    async def active(self, users: Sequence[str], expected: int) -> dict[str, Any]:
        """Time of one look at the running jobs of a user."""
        times: list[float] = []
        for user in users:
            begin = time.monotonic()
            found = await self._side.active(user)
            times.append(time.monotonic() - begin)
            if len(found) != expected:
                raise AssertionError(f"{len(found)} of {expected} running jobs of user {user} were found")
        times.sort()
        return {"p50": quantile(times, 0.5), "p99": quantile(times, 0.99)}
