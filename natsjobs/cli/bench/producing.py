"""What a producing process does: jobs, events at a pace, and what that costs it.

An event carries when it was emitted (``t``, this machine's monotonic clock, which all its processes share) and its
number in its job (``n``), and what fills it (``x``).
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from natsjobs.cli.bench.sides import Run, Side, chunks, quantile

_FRAME = len('{"t":123456789012345,"n":123,"x":""}')
_WORKERS = 10


def filling(size: int) -> str:
    """What fills an event up to a size in bytes, encoded."""
    return "x" * max(0, size - _FRAME)


class Producer:
    """The jobs that run in this process. Every public method is a command; its result goes back as JSON."""

    def __init__(self, side: Side) -> None:
        """Nothing runs yet."""
        self._side = side
        self._runs: dict[str, Run] = {}

    async def start(self, ids: Sequence[str], users: Sequence[str] = ("u",)) -> dict[str, Any]:
        """Create jobs, one for each of some users in turn."""
        for chunk in chunks(list(enumerate(ids)), 64):
            runs = await asyncio.gather(*(self._side.start(one, users[number % len(users)]) for number, one in chunk))
            self._runs.update(zip((one for _, one in chunk), runs, strict=True))
        return {}

    async def emit(
        self, ids: Sequence[str], events: Sequence[Sequence[Any]], repeat: int, rate: float
    ) -> dict[str, Any]:
        """Emit into each of the jobs, ``rate`` events a second each, or as fast as they are taken (0).

        ``events``: what fills them, a list for every job in turn; ``repeat``: each list so many times. Measured until
        everything is stored; the ends of the jobs are not in it.
        """
        runs = [self._runs[one] for one in ids]
        emitting = (_emit(run, events[k % len(events)], repeat, rate, k / len(runs)) for k, run in enumerate(runs))
        return await _measured(runs, emitting)

    async def emit_in_turn(
        self, ids: Sequence[str], filled: str, each: int, rate: float, first: int = 0
    ) -> dict[str, Any]:
        """``each`` events into each of the jobs, one job after the other, ``rate`` a second in total (0: at once).

        As many tasks for ten jobs as for ten thousand, so that what differs is the number of running jobs alone.
        """
        runs, numbers = [self._runs[one] for one in ids], range(first, first + each)
        emitting = (_in_turn(runs[k::_WORKERS], filled, numbers, rate / _WORKERS) for k in range(_WORKERS))
        return await _measured(runs, emitting)

    async def pace(self, jobs: int, events: int, rate: float) -> dict[str, Any]:
        """Keep the pace, and emit nothing."""
        gc.collect()
        cpu = time.process_time()
        await asyncio.gather(*(_emit(_Nothing(), [""], events, rate, k / jobs) for k in range(jobs)))
        return {"cpu": time.process_time() - cpu}

    async def finish(self, ids: Sequence[str]) -> dict[str, Any]:
        """End jobs."""
        for chunk in chunks(ids, 64):
            await asyncio.gather(*(self._runs.pop(one).finish() for one in chunk))
        return {}

    async def begin_each(self, ids: Sequence[str], filled: str, pause: float) -> dict[str, Any]:
        """Start jobs one after the other, each with one event that says when its start was asked for."""
        for stream_id in ids:
            asked = time.monotonic_ns()
            self._runs[stream_id] = run = await self._side.start(stream_id, "u")
            await run.emit({"t": asked, "n": 0, "x": filled})
            await asyncio.sleep(pause)
        return {}

    async def first_event(self, ids: Sequence[str], filled: str) -> dict[str, Any]:
        """From the start of a job until a reader that attaches then, in this process, has its first event."""
        times: list[float] = []
        for stream_id in ids:
            begin = time.monotonic()
            run = await self._side.start(stream_id, "u")
            async with self._side.follow(stream_id) as events:
                await run.emit({"t": 0, "n": 0, "x": filled})
                seen = await anext(aiter(events))
                assert seen.data["n"] == 0
                times.append(time.monotonic() - begin)
            await run.finish()
        times.sort()
        return {"p50": quantile(times, 0.5), "p99": quantile(times, 0.99)}


class _Nothing:
    """A run that drops what it is given."""

    async def emit(self, event: Any) -> None:
        """Nothing."""

    async def flush(self) -> None:
        """Nothing."""

    async def finish(self) -> None:
        """Nothing."""


async def _measured(runs: Sequence[Run], emitting: Iterable[Coroutine[Any, Any, None]]) -> dict[str, Any]:
    """When it began, when everything was stored, and the CPU that took."""
    gc.collect()
    begin, cpu = time.monotonic_ns(), time.process_time()
    await asyncio.gather(*emitting)
    await asyncio.gather(*(run.flush() for run in runs))
    return {"begin": begin, "cpu": time.process_time() - cpu, "end": time.monotonic_ns()}


async def _emit(run: Run, events: Sequence[Any], repeat: int, rate: float, phase: float) -> None:
    emit, clock = run.emit, time.monotonic_ns
    due = time.monotonic() + (phase / rate if rate else 0.0)
    number = 0
    for _ in range(repeat):
        for event in events:
            if rate:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due += 1 / rate
            await emit({"t": clock(), "n": number, "x": event})
            number += 1


async def _in_turn(runs: Sequence[Run], filled: str, numbers: range, rate: float) -> None:
    clock, due = time.monotonic_ns, time.monotonic()
    for number in numbers:
        for run in runs:
            if rate:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due += 1 / rate
            await run.emit({"t": clock(), "n": number, "x": filled})
