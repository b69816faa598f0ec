"""For the tests of the timelines: replicas whose link a test can interfere with, owners that are real processes, spies.

A ``HookedLink`` is the real link with a place for a hook around every append and after some reads: what a lost
acknowledgement, a pause between two steps or a request that lands late look like from inside a process. Everything
below it is the real client and the real server.
"""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import nats
from backends import NatsBackend, NatsReplica
from jetstream_kit import Proxy
from nats.aio.client import Client
from nats.aio.msg import Msg
from waiting import eventually, known, soon

from natsjobs import Config, NatsEventTransport, NatsJobStore, UnavailableError
from natsjobs.engine.ports import Message
from natsjobs.engine.replica import Replica
from natsjobs.jetstream.link import link_for

NEVER = 3600.0
"""For ``timing.sweep`` and ``timing.look`` where a test is about what happens without them."""

Around = Callable[[str, bytes, Callable[[], Awaitable[int]]], Awaitable[int]]
"""Called instead of an append with subject, body and the append itself."""


class HookedStream:
    """A stream port with hooks; without one it is the stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.around_append: Around | None = None
        self.after_last: Callable[[str], Awaitable[None]] | None = None
        self.before_next: Callable[[], None] | None = None
        self.after_log: Callable[[list[Message]], Awaitable[list[Message]]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def append(self, subject: str, body: bytes, **options: Any) -> int:
        """Through the hook, if there is one."""

        async def go() -> int:
            return await self._stream.append(subject, body, **options)

        return await (go() if self.around_append is None else self.around_append(subject, body, go))

    def send(self, subject: str, body: bytes, *, done: Callable[[int], None], **options: Any) -> Any:
        """Through the hook of ``append``, if there is one."""
        if self.around_append is None:
            return self._stream.send(subject, body, done=done, **options)
        return _HookedSent(self.append(subject, body, **options), done)

    async def next(self, *args: Any) -> Message | None:
        """The hook may raise instead."""
        if self.before_next is not None:
            self.before_next()
        found: Message | None = await self._stream.next(*args)
        read = await self._read([found] if found is not None else [])
        return read[0] if read else None

    async def page(self, *args: Any, **options: Any) -> list[Message]:
        """As it is, through the hook for what lies from a place on."""
        return await self._read(await self._stream.page(*args, **options))

    async def _read(self, found: list[Message]) -> list[Message]:
        return found if self.after_log is None else await self.after_log(found)

    async def last(self, subject_filter: str, **options: bool) -> Message | None:
        """The hook comes between the answer and whoever asked."""
        found: Message | None = await self._stream.last(subject_filter, **options)
        if self.after_last is not None:
            await self.after_last(subject_filter)
        return found


class _HookedSent:
    """An append that takes its way through a hook: to the engine it was sent at once."""

    def __init__(self, append: Coroutine[Any, Any, int], done: Callable[[int], None]) -> None:
        self._task = asyncio.ensure_future(append)
        self._done = done
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[int]) -> None:
        failed = task.cancelled() or task.exception() is not None
        self._done(0 if failed else task.result())

    async def outcome(self) -> int:
        """As it was, or what it raised."""
        return self._task.result()


class HookedLink:
    """A link port with hooks on its two streams."""

    def __init__(self, link: Any) -> None:
        self._link = link
        self.events = HookedStream(link.events)
        self.records = HookedStream(link.records)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)


class HookedReplica(NatsReplica):
    """A replica of which a test holds the link."""

    link: HookedLink

    async def stop_hearing(self, prefix: str) -> None:
        """From now on the server sends nothing to the interests below ``prefix``, and nobody is told."""
        for sid, sub in self.nc._subs.items():
            if sub.subject.startswith(prefix):
                await self.nc._send_unsubscribe(sid)
        await known(self.nc)


class Timelines(NatsBackend):
    """A namespace on a server, with replicas on hooked links."""

    async def add(
        self, *, url: str | None = None, config: Config | None = None, opened: bool = True, **options: Any
    ) -> HookedReplica:
        """A replica; ``url``: by another way than the others; ``options`` for ``nats.connect``."""
        settings = config or self.config()
        options = {"reconnect_time_wait": 0.05, "max_reconnect_attempts": -1, "error_cb": _ignore, **options}
        nc = await nats.connect(url or self.url, **options)
        link = HookedLink(link_for(nc, settings))
        base = Replica(link, settings)  # type: ignore[arg-type]
        replica = HookedReplica(self, settings, NatsJobStore.over(base), NatsEventTransport.over(base))
        replica.nc, replica.link = nc, link
        self.replicas.append(replica)
        if opened:
            await replica.open()
        return replica

    async def log(self, stream_id: str, generation: str) -> list[dict[str, Any]]:
        """Every message in the log of a generation, decoded, with ``seq``, ``time``, ``headers``; past the library."""
        found: list[dict[str, Any]] = []
        seq = 1
        while True:
            query = {"seq": seq, "next_by_subj": self.subjects.scope(stream_id, generation)}
            answer = await self._get(self.subjects.events_stream, query)
            if answer is None:
                return found
            found.append(answer)
            seq = answer["seq"] + 1

    async def newest(self, kind: str, *ids: str) -> dict[str, Any] | None:
        """The newest message of a key of the bucket, past the library."""
        return await self._get(self.subjects.records_stream, {"last_by_subj": self.subjects.record(kind, *ids)})

    async def has_record(self, kind: str, *ids: str) -> bool:
        """Whether a key has a value, past the library."""
        newest = await self.newest(kind, *ids)
        return newest is not None and "Marker-Reason" not in newest["headers"] and "PURGE" not in newest["headers"]

    async def shorten_life(self, kind: str, *ids: str) -> None:
        """Store a key once more as it is, with a TTL of one second: its TTL is over soon."""
        subject = self.subjects.record(kind, *ids)
        nc = await self.admin()
        answer = await self.api(f"STREAM.MSG.GET.{self.subjects.records_stream}", {"last_by_subj": subject})
        await nc.request(subject, base64.b64decode(answer["message"]["data"]), headers={"Nats-TTL": "1"}, timeout=5)

    async def _get(self, stream: str, query: dict[str, Any]) -> dict[str, Any] | None:
        answer = await self.api(f"STREAM.MSG.GET.{stream}", query)
        if (message := answer.get("message")) is None:
            return None
        body = base64.b64decode(message.get("data", ""))
        plain = json.loads(body) if body else {}
        headers = base64.b64decode(message.get("hdrs", "")).decode()
        return {**plain, "seq": message["seq"], "time": message["time"], "headers": headers}

    async def ended(self, stream_id: str, *, by: HookedReplica, within: float = 20.0) -> Any:
        """Wait until the job has ended, as a replica sees it; the job."""

        async def over() -> Any:
            job = await by.store.get_job(stream_id)
            return job if job is not None and job.status.is_terminal else None

        return await eventually(over, within=within)


async def _ignore(error: Exception) -> None:
    """Errors of a connection are what these tests provoke."""


@asynccontextmanager
async def spying(nc: Client, *subjects: str) -> AsyncIterator[list[Msg]]:
    """Everything that is published on these subjects, in the order of arrival."""
    heard: list[Msg] = []

    async def hear(msg: Msg) -> None:
        heard.append(msg)

    subscriptions = [await nc.subscribe(subject, cb=hear) for subject in subjects]
    await known(nc)
    try:
        yield heard
    finally:
        for subscription in subscriptions:
            await subscription.unsubscribe()


def lost_acknowledgement() -> UnavailableError:
    """What an append raises that may have landed."""
    return UnavailableError("the acknowledgement was lost", outcome_unknown=True)


class DeafProxy(Proxy):
    """A wire whose way back can be blocked: what is sent arrives, and its answers are lost."""

    deaf = False
    swallowed = 0
    """Bytes of answers that were lost."""

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        to_server = target.get_extra_info("peername")[1] == self._to
        with suppress(ConnectionError):
            while data := await source.read(65536):
                if to_server or not self.deaf:
                    target.write(data)
                    await target.drain()
                else:
                    self.swallowed += len(data)
        target.close()


class OwnerProcess:
    """A process of its own that owns one job and emits numbers until it is stopped."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    def signal(self, what: signal.Signals) -> None:
        """To this process only."""
        self._process.send_signal(what)

    async def says(self, word: str) -> str:
        """Wait for a line that begins with ``word``; the rest of it."""
        assert self._process.stdout is not None
        while line := (await soon(self._process.stdout.readline())).decode().strip():
            if line.startswith(word):
                return line.removeprefix(word).strip()
        raise AssertionError(f"the owner ended without saying {word}")

    async def end(self) -> None:
        """Kill it, also when it is stopped or gone."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
        await self._process.communicate()


@asynccontextmanager
async def owner_process(url: str, namespace: str, stream_id: str) -> AsyncIterator[OwnerProcess]:
    """Start one; its job runs when this is entered."""
    program = str(Path(__file__).with_name("owner_process.py"))
    arguments = (sys.executable, program, url, namespace, stream_id)
    owner = OwnerProcess(await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE))
    try:
        await owner.says("running")
        yield owner
    finally:
        await owner.end()
