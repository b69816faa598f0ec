"""A replica on a host of ``netns.Network``: ``netns_replica.py SETTINGS``, told what to do by JSON lines.

Standard input: ``{"n": 1, "do": "get", …}``, one line per call. Standard output: ``{"n": 1, "value": …}`` or
``{"n": 1, "error": "JobNotFoundError", "text": …}``, and between them what happened: ``{"what": "seen", …}``. Every
line has ``at``, a time of the clock that all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from typing import Any

import nats

import natsjobs
from natsjobs import Config
from natsjobs.config import Timing
from natsjobs.engine.ports import NoReplyError, NoRespondersError

_log = logging.getLogger("natsjobs.replica")


def say(**line: Any) -> None:
    """One line for the test."""
    print(json.dumps({**line, "at": time.monotonic()}), flush=True)


async def quiet(_: Exception) -> None:
    """Errors of a connection are what these tests provoke."""


class Replica:
    """The calls a test may make; each method ``do_…`` is one."""

    def __init__(self, jobs: natsjobs.JobManager) -> None:
        self.jobs = jobs
        self.context: Any = jobs.store.replica.context  # type: ignore[attr-defined]
        self.finish: dict[str, asyncio.Event] = {}
        self.readers: dict[str, asyncio.Task[None]] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def do_own(self, stream: str, every: float, count: int | None = None, flush: bool = True) -> str:
        """Own a job and emit 0, 1, 2, … until ``finish``, ``count`` or somebody else's end; its generation.

        With ``flush`` it waits for every event, and says so when it is ``stored``.
        """
        started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.finish[stream] = asyncio.Event()
        self.spawn(self._own(stream, started, every=every, count=count, flush=flush))
        return await started

    async def _own(self, stream: str, started: asyncio.Future[str], **pace: Any) -> None:
        emitted = [0]
        try:
            async with self.jobs.start(stream, user_id="alice") as run:
                started.set_result(run.generation)
                await self._emit(run, emitted, **pace)
                await run.complete({"count": emitted[0]})
            say(what="over", stream=stream, emitted=emitted[0], how="complete", reason=None)
        except natsjobs.NatsJobsError as error:
            if not started.done():
                started.set_exception(error)
            reason = getattr(error, "end_reason", None)
            how = type(error).__name__
            say(what="over", stream=stream, emitted=emitted[0], how=how, reason=reason, text=str(error))

    async def _emit(
        self, run: natsjobs.JobRun, emitted: list[int], *, every: float, count: int | None, flush: bool
    ) -> None:
        finish = self.finish[run.stream_id]
        while not finish.is_set() and emitted[0] != count:
            await run.emit(emitted[0])
            emitted[0] += 1
            if flush:
                since = time.monotonic()
                await run.flush()
                say(what="stored", stream=run.stream_id, number=emitted[0], took=time.monotonic() - since)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(finish.wait(), every)

    async def do_finish(self, stream: str) -> None:
        """Let an owner complete its job."""
        self.finish[stream].set()

    async def do_view(self, stream: str, wait: float = 0.0) -> None:
        """Follow a job to its end, as ``seen``."""
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.readers[stream] = self.spawn(self._view(stream, wait, entered))
        await entered

    async def _view(self, stream: str, wait: float, entered: asyncio.Future[None]) -> None:
        try:
            async with self.jobs.subscribe(stream, wait=wait) as events:
                entered.set_result(None)
                async for event in events:
                    say(
                        what="seen",
                        stream=stream,
                        type=event.type,
                        index=event.index,
                        data=event.data,
                        generation=event.generation,
                        reason=event.end_reason,
                        terminal=event.is_terminal,
                    )
            say(what="left", stream=stream)
        except natsjobs.NatsJobsError as error:
            say(what="lost", stream=stream, how=type(error).__name__, text=str(error))
            if not entered.done():
                entered.set_exception(error)

    async def do_leave(self, stream: str) -> None:
        """Stop following."""
        task = self.readers.pop(stream)
        task.cancel()
        await asyncio.wait([task])

    async def do_get(self, stream: str) -> Any:
        """The job, as this replica finds it."""
        job = await self.jobs.get(stream)
        return None if job is None else natsjobs.to_dict(job)

    async def do_abort(self, stream: str) -> Any:
        """Abort it."""
        result = await self.jobs.abort(stream)
        return {"success": result.success, "reason": result.reason}

    async def do_count(self, stream: str) -> int:
        """Subscribers on all replicas."""
        return await self.jobs.count_subscribers(stream)

    async def do_when_left(self, stream: str) -> None:
        """Say ``all left`` when the last subscriber has gone."""
        await self.jobs.transport.on_all_subscribers_left(stream, lambda: say(what="all left", stream=stream))

    async def do_ask_owner(self, replica: str) -> str:
        """What a question to an owner gets: an answer, ``nobody`` (no interest) or ``silence``."""
        subject = self.context.subjects.owner(replica)
        try:
            answer = await self.context.link.bus.request(subject, b'{"op":"ping"}', timeout=0.5)
        except NoRespondersError:
            return "nobody"
        except NoReplyError:
            return "silence"
        return answer.decode()

    async def do_connection(self) -> Any:
        """How the connection is, and how often it was made anew."""
        nc = self.context.link.nc
        url = nc.connected_url.netloc if nc.connected_url else None
        return {"url": url, "reconnects": nc.stats["reconnects"], "replica": self.context.replica_id}

    async def do_api(self, subject: str, body: Any = None) -> Any:
        """One request past the library."""
        answer = await self.context.link.nc.request(subject, json.dumps(body).encode() if body else b"", timeout=2)
        return json.loads(answer.data)

    def spawn(self, work: Any) -> asyncio.Task[None]:
        """A task that is not forgotten."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def answer(self, line: bytes) -> None:
        """Carry out one call."""
        call = json.loads(line)
        number, what = call.pop("n"), call.pop("do")
        try:
            value = await getattr(self, f"do_{what}")(**call)
        except Exception as error:  # noqa: BLE001 - the test judges it
            say(n=number, error=type(error).__name__, text=str(error))
        else:
            say(n=number, value=value)


async def opened(settings: dict[str, Any], stack: contextlib.AsyncExitStack) -> natsjobs.JobManager:
    """A manager, once the nodes have found each other."""
    config = Config(namespace=settings["namespace"], replicas=3, timing=Timing(**settings["timing"]))
    while True:
        try:
            if not settings["given"]:
                connecting = natsjobs.connect(settings["urls"], config=config, dont_randomize=True)
                return await stack.enter_async_context(connecting)
            options = {"max_reconnect_attempts": -1, "reconnect_time_wait": 0.2, "error_cb": quiet}
            given = await nats.connect(settings["urls"], **options)
            stack.push_async_callback(given.close)
            return await stack.enter_async_context(natsjobs.connect(nc=given, config=config))
        except natsjobs.UnavailableError as error:
            _log.info("not yet: %s", error)


async def main(text: str) -> None:
    """Connect, and do what is asked until standard input ends."""
    async with contextlib.AsyncExitStack() as stack:
        replica = Replica(await opened(json.loads(text), stack))
        say(what="ready")
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            replica.spawn(replica.answer(line))


logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
logging.getLogger("natsjobs").setLevel(logging.DEBUG)
asyncio.run(main(sys.argv[1]))
