"""The peer: the same design on Redis, written as well as it can be with the promises that it can keep.

One script per event numbers, stores, extends and publishes it (``INCR``, ``XADD``, ``EXPIRE``, ``PUBLISH``), so order
within a job needs one round trip per event. One connection listens for all readers of a process. A reader subscribes
first, replays with ``XRANGE``, and drops what it has; a gap is read again. JSON is msgspec's on both sides, the parser
of the protocol is hiredis.

Of redis-py's ways the cheapest ones that were found: ``EVALSHA`` called by itself (not through ``Script``), a plain
pool without time-outs behind a semaphore (the blocking pool costs 50 µs more a command, one shared connection waits for
each answer), and the answers of ``XRANGE`` as hiredis gives them.

What it cannot promise: an acknowledged event may be lost when Redis stops (nothing is synced, one node), an old owner's
events are stored after it was declared dead (no fence), and nobody ends the jobs of a dead owner.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec

from natsjobs.cli.bench.sides import Followed
from natsjobs.tasks import Tasks

_KEEP = 1200
_PAGE = 1000
_CONNECTIONS = 64
_APPEND = """
local index = redis.call('INCR', KEYS[2])
redis.call('XADD', KEYS[1], index .. '-1', 'e', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
redis.call('PUBLISH', KEYS[3], index .. ' ' .. ARGV[1])
return index
"""
_END = b"null"  # no event of the benchmark is null


def _keys(stream_id: str) -> tuple[str, str, str]:
    return f"log:{{{stream_id}}}", f"index:{{{stream_id}}}", f"live:{{{stream_id}}}"


def _as_it_came(answer: Any, **_: Any) -> Any:
    return answer


class PeerEvent:
    """An event as the application has it in hand; all readers of a process that listen share one, decoded once."""

    __slots__ = ("_body", "_data", "_decoded", "index", "is_terminal")

    def __init__(self, index: int, body: bytes) -> None:
        """As it stands in the log."""
        self.index, self._body = index, body
        self.is_terminal = body == _END
        self._data: Any = None
        self._decoded = False

    @property
    def cursor(self) -> str:
        """The number of the event."""
        return str(self.index)

    @property
    def data(self) -> Any:
        """Decoded, when it is asked for."""
        if not self._decoded:
            self._data, self._decoded = msgspec.json.decode(self._body), True
        return self._data


class PeerRun:
    """A job on Redis."""

    def __init__(self, peer: Peer, stream_id: str, user: str) -> None:
        """Use ``Peer.start``."""
        self._peer, self._id, self._user = peer, stream_id, user
        self._keys = _keys(stream_id)

    async def emit(self, event: Any) -> None:
        """One round trip."""
        await self._peer.append(self._keys, msgspec.json.encode(event))

    async def flush(self) -> None:
        """What was emitted is there."""

    async def finish(self) -> None:
        """The end is the last event; then the job is marked."""
        await self._peer.append(self._keys, _END)
        pipe = self._peer.redis.pipeline(transaction=True)
        pipe.hset(f"job:{self._id}", "status", "done")
        pipe.srem(f"active:{self._user}", self._id)
        pipe.expire(f"job:{self._id}", _KEEP)
        await pipe.execute()


class Peer:
    """One process of an application on Redis."""

    def __init__(self, redis: Any, script: str) -> None:
        """Use ``open``."""
        self.redis, self._script = redis, script
        self._room = asyncio.Semaphore(_CONNECTIONS)
        self._tasks = Tasks()
        self._listener: Any = None
        self._heard: dict[str, list[Callable[[PeerEvent], None]]] = {}
        self._confirmed: dict[str, asyncio.Future[None]] = {}

    @staticmethod
    async def open(url: str, settings: dict[str, Any]) -> Peer:  # noqa: ARG004 - there are none
        """Connect; as many connections as commands at once, up to a bound."""
        from redis.asyncio import ConnectionPool, Redis

        pool = cast("Any", ConnectionPool).from_url(url, socket_timeout=None)  # its options have no types
        redis: Any = Redis(connection_pool=pool)
        redis.set_response_callback("XRANGE", _as_it_came)
        return Peer(redis, await redis.script_load(_APPEND))

    async def append(self, keys: tuple[str, str, str], body: bytes) -> None:
        """One event."""
        async with self._room:
            await self.redis.execute_command("EVALSHA", self._script, 3, *keys, body, _KEEP)

    async def start(self, stream_id: str, user: str) -> PeerRun:
        """A new job: its record, the index of its user, an empty log."""
        log, index, _ = _keys(stream_id)
        pipe = self.redis.pipeline(transaction=True)
        pipe.delete(log, index)
        pipe.hset(f"job:{stream_id}", mapping={"status": "running", "user": user, "owner": str(id(self))})
        pipe.expire(f"job:{stream_id}", _KEEP)
        pipe.sadd(f"active:{user}", stream_id)
        await pipe.execute()
        return PeerRun(self, stream_id, user)

    @asynccontextmanager
    async def follow(self, stream_id: str, after: str | None = None) -> AsyncGenerator[Followed]:
        """Subscribed when it is entered."""
        log, _, channel = _keys(stream_id)
        queue: asyncio.Queue[PeerEvent] = asyncio.Queue()
        await self._listen(channel, queue.put_nowait)
        try:
            yield self._followed(log, queue, int(after or 0))
        finally:
            await self._stop_listening(channel, queue.put_nowait)

    async def _followed(self, log: str, queue: asyncio.Queue[PeerEvent], last: int) -> Followed:
        async for index, body in self._replayed(log, last):
            last = index
            yield PeerEvent(index, body)
        while True:
            event = await queue.get()
            if event.index <= last:
                continue
            if event.index > last + 1:
                async for missed, stored in self._replayed(log, last, event.index - 1):
                    last = missed
                    yield PeerEvent(missed, stored)
            last = event.index
            yield event

    async def _replayed(self, log: str, last: int, until: int | None = None) -> AsyncIterator[tuple[int, bytes]]:
        end = "+" if until is None else f"{until}-1"
        while True:
            async with self._room:
                page = await self.redis.xrange(log, f"({last}-1", end, count=_PAGE)
            for entry, (_, body) in page:
                last = int(entry[:-2])
                yield last, body
            if len(page) < _PAGE:
                return

    async def active(self, user: str) -> list[str]:
        """The set of the user."""
        return [name.decode() for name in await self.redis.smembers(f"active:{user}")]

    async def stored(self) -> int:
        """What Redis says of the keys of all logs and their counters."""
        total = 0
        for pattern in ("log:*", "index:*"):
            async for key in self.redis.scan_iter(pattern, count=1000):
                total += int(await self.redis.memory_usage(key, samples=0))
        return total

    async def close(self) -> None:
        """Close the connections."""
        await self._tasks.close()
        if self._listener is not None:
            await self._listener.aclose()
        await self.redis.aclose()

    # -- one connection that listens

    async def _listen(self, channel: str, hear: Callable[[PeerEvent], None]) -> None:
        if self._listener is None:
            self._listener = self.redis.pubsub()
        heard = self._heard.setdefault(channel, [])
        heard.append(hear)
        if len(heard) == 1:
            self._confirmed[channel] = asyncio.get_running_loop().create_future()
            await self._listener.subscribe(channel)
            if not self._tasks:
                self._tasks.spawn(self._deliver(), "the listener of the peer")
        await self._confirmed[channel]

    async def _stop_listening(self, channel: str, hear: Callable[[PeerEvent], None]) -> None:
        heard = self._heard[channel]
        heard.remove(hear)
        if not heard:
            del self._heard[channel], self._confirmed[channel]
            await self._listener.unsubscribe(channel)

    async def _deliver(self) -> None:
        while True:
            message = await self._listener.get_message(timeout=None)
            if message is None:
                continue
            channel = message["channel"].decode()
            if message["type"] == "message":
                number, _, body = message["data"].partition(b" ")
                event = PeerEvent(int(number), body)
                for hear in self._heard.get(channel, ()):
                    hear(event)
            elif message["type"] == "subscribe" and (waiting := self._confirmed.get(channel)) and not waiting.done():
                waiting.set_result(None)
