"""A worker that is told to stop: ``stopping_worker.py URL NAMESPACE OPTIONS``; OPTIONS is a JSON object.

It says what it does and what its own viewers got as JSON lines on standard output. SIGTERM and SIGINT cancel its main
task, as a program would do it; everything after that is the library's. ``form`` says how it holds the library:
``connect`` (spawned runs, a run in a block, and viewers of both kinds), ``pair`` (store and transport without a
manager), ``drain`` (short and endless runs, and a grace for them).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from typing import Any

import msgspec
import nats

import natsjobs
from natsjobs import Config
from natsjobs.config import Timing

told = asyncio.Event()
"""Somebody has told this process to stop."""


cleaned: list[str] = []
"""Runs whose bodies have cleaned up."""


async def fall_behind() -> None:
    """What a viewer does that is still busy when the process is told to stop, for less than leaving waits for it."""
    await told.wait()
    await asyncio.sleep(0.7)  # how long it is busy; ``timing.abort`` is 1 s


class Options(msgspec.Struct):
    """What the test wants of it."""

    form: str = "connect"
    runs: int = 10
    stubborn: bool = False
    clean_up: float = 0.0
    timing: dict[str, float] = {}


def say(**what: Any) -> None:
    """One line, at once."""
    print(json.dumps(what), flush=True)


async def emit_for_ever(run: natsjobs.JobRun, options: Options) -> None:
    """An obedient body, which may need a moment to clean up."""
    number = 0
    try:
        while True:
            await run.emit(number)
            number += 1
            await asyncio.sleep(0.01)
    finally:
        if options.clean_up:
            await asyncio.sleep(options.clean_up)
            cleaned.append(run.stream_id)


async def never_stop(run: natsjobs.JobRun) -> None:
    """A body that nothing stops: it swallows its interruption, and every error of the library."""
    number = 0
    while True:
        with contextlib.suppress(BaseException):
            await run.emit(number)
            number += 1
        with contextlib.suppress(BaseException):
            await asyncio.sleep(0.02)


async def finish(run: natsjobs.JobRun) -> None:
    """A short answer."""
    for number in range(20):
        await run.emit(number)
        await asyncio.sleep(0.02)


async def view(jobs: natsjobs.JobManager, stream_id: str) -> dict[str, Any]:
    """What a viewer in this very process gets."""
    got: list[int] = []
    try:
        async with jobs.subscribe(stream_id, wait=20) as events:
            async for event in events:
                if event.is_terminal:
                    return {"seen": got, "end": str(event.end_reason), "total": event.index}
                got.append(event.data)
                if len(got) == 5:
                    await fall_behind()
    except natsjobs.NatsJobsError as error:
        return {"seen": got, "end": type(error).__name__}
    return {"seen": got, "end": "nothing"}


class Handlers:
    """Handlers of a subscription; one of them may ignore that it is cancelled."""

    def __init__(self, *, stubborn: bool) -> None:
        self.stubborn = stubborn
        self.got: list[int] = []
        self.ends: list[str] = []

    async def chunk(self, value: int) -> None:
        """An event."""
        self.got.append(value)
        if len(self.got) == 5 and not self.stubborn:
            await fall_behind()
        while self.stubborn:
            with contextlib.suppress(BaseException):
                await asyncio.sleep(3600)

    def end(self, what: str) -> None:
        """The end."""
        self.ends.append(what)


async def manage(jobs: natsjobs.JobManager, options: Options) -> None:
    """Runs in tasks and in a block, until somebody cancels this."""
    for number in range(options.runs):
        work = never_stop if options.stubborn else lambda run: emit_for_ever(run, options)
        await jobs.spawn(f"s{number}", work, user_id="alice")
    async with jobs.start("block", user_id="alice") as run:
        say(running=[f"s{number}" for number in range(options.runs)])
        await emit_for_ever(run, options)


async def connected(url: str, config: Config, options: Options) -> None:
    """The form ``connect``."""
    viewing: list[asyncio.Task[dict[str, Any]]] = []
    handlers = Handlers(stubborn=options.stubborn)
    begun = 0.0
    try:
        async with natsjobs.connect(url, config=config) as jobs:
            viewing = [asyncio.create_task(view(jobs, "s0")) for _ in range(3)]
            await jobs.transport.subscribe("s0", on_chunk=handlers.chunk, on_error=handlers.end)
            try:
                await manage(jobs, options)
            finally:
                begun = time.monotonic()
    except asyncio.CancelledError:
        pass
    took = time.monotonic() - begun
    local = [await one for one in viewing]
    say(left=took, local=local, handled=len(handlers.got), ends=handlers.ends, cleaned=sorted(cleaned))


async def paired(url: str, config: Config, options: Options) -> None:
    """The form ``pair``: as an application holds it that came from LibreChat's interfaces."""
    nc = await nats.connect(url)
    store, transport = natsjobs.NatsJobStore(nc, config), natsjobs.NatsEventTransport(nc, config)
    await store.initialize()
    handlers = Handlers(stubborn=False)
    await transport.subscribe("s0", on_chunk=handlers.chunk, on_error=handlers.end)
    names = [f"s{number}" for number in range(options.runs)]
    for name in names:
        await store.create_job(name, "alice")
    say(running=names)
    number = 0
    try:
        while True:
            for name in names:
                await transport.emit_chunk(name, number)
            number += 1
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        begun = time.monotonic()
    await store.destroy()
    await transport.destroy()
    await nc.close()
    say(left=time.monotonic() - begun, handled=len(handlers.got), ends=handlers.ends)


async def draining(url: str, config: Config, options: Options) -> None:
    """The form ``drain``."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with natsjobs.connect(url, config=config) as jobs:
        for number in range(options.runs):
            await jobs.spawn(f"s{number}", finish if number % 2 else never_stop, user_id="alice")
        say(running=[f"s{number}" for number in range(options.runs)])
        await stop.wait()
        begun = time.monotonic()
        ended = await jobs.drain(2.0)
    say(left=time.monotonic() - begun, ended=ended)


FORMS = {"connect": connected, "pair": paired, "drain": draining}


async def main(url: str, namespace: str, text: str) -> None:
    """Run one form; then leave at once, as nothing can end a task that ignores it."""
    options = msgspec.json.decode(text, type=Options)
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def stop() -> None:
        told.set()
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await FORMS[options.form](url, Config(namespace=namespace, timing=Timing(**options.timing)), options)
    os._exit(0)


asyncio.run(main(*sys.argv[1:]))
