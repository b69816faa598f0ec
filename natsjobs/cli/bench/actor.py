"""A process of the benchmark: ``python -m natsjobs.cli.bench.actor SIDE URL SETTINGS``, commands as JSON lines.

Owns the loop that takes commands, one after the other, and answers each with one line; ``producing`` and ``reading``
say what they are. SIDE names a class as ``module:name``, so that a test can have one that loses something.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from natsjobs.cli.bench.producing import Producer
from natsjobs.cli.bench.reading import Reader
from natsjobs.cli.bench.sides import Side

_LINE = 1 << 26
_PATIENCE = 20.0
_WARM = 50


class Actor:
    """What a process can be told to do: the commands of a producer, of a reader, and a few of its own."""

    def __init__(self, side: Side, settings: dict[str, Any]) -> None:
        """On a side that is connected."""
        self._side = side
        self._producer, self._reader = Producer(side), Reader(side, settings.get("patience", _PATIENCE))

    def command(self, name: str) -> Callable[..., Awaitable[dict[str, Any]]]:
        """The method that carries it out."""
        for place in (self, self._producer, self._reader):
            if (found := getattr(place, name, None)) is not None:
                return found  # type: ignore[no-any-return]
        raise AssertionError(f"no command {name}")

    async def warm(self) -> dict[str, Any]:
        """One small job from start to end, so that nothing that is measured is the first of its kind here."""
        stream_id = f"warm{os.getpid()}"
        run = await self._side.start(stream_id, "warm")
        async with self._side.follow(stream_id) as events:
            for number in range(_WARM):
                await run.emit({"t": 0, "n": number, "x": ""})
            await run.flush()
            await run.finish()
            async for seen in events:
                if seen.is_terminal:
                    break
        return {}

    async def stored(self, still: float) -> dict[str, Any]:
        """Bytes of all logs, when they have not changed for so many seconds: what is tidied up later is waited for."""
        found, since = await self._side.stored(), time.monotonic()
        while time.monotonic() < since + still:
            await asyncio.sleep(0.1)
            if (now := await self._side.stored()) != found:
                found, since = now, time.monotonic()
        return {"bytes": found}

    async def memory(self) -> dict[str, Any]:
        """Resident bytes of this process."""
        gc.collect()
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]  # noqa: ASYNC240 - a file of the kernel
        return {"bytes": int(pages) * os.sysconf("SC_PAGESIZE")}


class _Commands(asyncio.StreamReaderProtocol):
    """Commands come until the coordinator closes the pipe, or is killed; also in the middle of one."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - as asyncio calls it
        """Its servers are gone next, and with them everything that would be tidied up: it leaves without a word."""
        os._exit(0)


async def main(side_name: str, url: str, settings: dict[str, Any]) -> None:
    """Take commands until the input ends."""
    module, _, name = side_name.partition(":")
    side: Side = await getattr(importlib.import_module(module), name).open(url, settings)
    actor = Actor(side, settings)
    reader = asyncio.StreamReader(limit=_LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: _Commands(reader), sys.stdin)
    while line := await reader.readline():
        command = msgspec.json.decode(line)
        try:
            answer: dict[str, Any] = {"result": await actor.command(command["do"])(**command["with"])}
        except AssertionError as error:
            answer = {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - the coordinator raises it
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    chosen = msgspec.json.decode(sys.argv[3])
    work = main(sys.argv[1], sys.argv[2], chosen)
    if chosen.get("uvloop"):
        import uvloop

        uvloop.run(work)
    else:
        asyncio.run(work)
