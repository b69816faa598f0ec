"""Backends the contract suite runs on, and replicas of them that a test can open, close and kill.

Owns: one namespace per test, the connections of its replicas, and the check that a test leaves nothing behind: no
task, no interest on a connection, no consumer on the server. Does not own the servers (``conftest.py`` does).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import guarded
import nats
from nats.aio.client import Client

import natsjobs
from natsjobs import Config
from natsjobs.config import Limits, Retention, Timing
from natsjobs.engine.subjects import Subjects
from natsjobs.jetstream import NatsLink
from natsjobs.memory import MemoryLink, MemorySystem

FAST: dict[str, float] = {
    "lease": 3.0,
    "renew": 1.0,
    "request": 3.0,
    "abort": 1.0,
    "give_up": 6.0,
    "look": 0.3,
}


class Replica:
    """One process of an application, as far as natsjobs can tell: own connection, store, transport and manager."""

    def __init__(self, backend: Backend, config: Config, store: Any, transport: Any) -> None:
        self.backend = backend
        self.config = config
        self.store = store
        self.transport = transport
        self.manager = natsjobs.JobManager(store, transport, config=config)
        self._entered = False
        self._closed = False

    async def open(self) -> Replica:
        """Enter the manager, which initializes the store."""
        await self.manager.__aenter__()
        self._entered = True
        return self

    async def close(self) -> None:
        """Leave in good order; twice is fine."""
        if self._closed:
            return
        self._closed = True
        if self._entered:
            await self.manager.__aexit__(None, None, None)
        await self.transport.destroy()
        await self.store.destroy()

    async def kill(self) -> None:
        """Vanish as after SIGKILL: nothing is said to anybody, and nothing is heard any more."""
        raise NotImplementedError

    async def drop_connection(self) -> None:
        """Lose the connection once; it comes back by itself."""
        raise NotImplementedError

    async def lose_live_messages(self) -> None:
        """From now on the server sends no live copy to the interests there are, and nobody is told."""
        raise NotImplementedError

    def interests(self) -> list[str]:
        """Subjects this replica is subscribed to now."""
        raise NotImplementedError


class Backend:
    """Makes replicas that share one namespace on one server."""

    name: str

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.subjects = Subjects(self.namespace)
        self.replicas: list[Replica] = []

    def config(
        self,
        *,
        timing: dict[str, float] | None = None,
        retention: dict[str, float] | None = None,
        limits: dict[str, int] | None = None,
        **plain: Any,
    ) -> Config:
        """Settings for a test: short timings, this test's namespace."""
        return Config(
            **{"namespace": self.namespace, **plain},
            timing=Timing(**{**FAST, **(timing or {})}),
            retention=Retention(**(retention or {})),
            limits=Limits(**(limits or {})),
        )

    async def replica(self, config: Config | None = None, *, opened: bool = True, role: str = "worker") -> Replica:
        """A new replica; with ``opened=False`` nothing is initialized yet.

        ``role``: what it may do, on a backend with permissions: ``"gateway"`` shows and stops the jobs of others.
        """
        replica = await self._new(config or self.config(), role)
        self.replicas.append(replica)
        if opened:
            await replica.open()
        return replica

    async def stranger(self, **changes: Any) -> Replica:
        """An open replica in another namespace of the same server; ``changes`` as in ``config``."""
        raise NotImplementedError

    async def _new(self, config: Config, role: str) -> Replica:
        raise NotImplementedError

    async def records(self, kind: str) -> list[tuple[str, ...]]:
        """The bucket's keys of a kind, without markers of removal, read past the library."""
        raise NotImplementedError

    async def put_record(self, body: object, kind: str, *ids: str) -> None:
        """Write a key of the bucket past the library."""
        raise NotImplementedError

    async def limit(self, max_bytes: int, *, bucket: bool = False) -> None:
        """Set ``max_bytes`` of the events stream, or of the bucket, as an operator would; -1: no limit."""
        raise NotImplementedError

    async def fill(self, size: int) -> None:
        """Put ``size`` bytes into the events stream past the library, as somebody who knows no headroom."""
        raise NotImplementedError

    async def held(self) -> int:
        """How many bytes the events stream holds."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all replicas and check that nothing is left."""
        for replica in reversed(self.replicas):
            await replica.close()
        await no_tasks_left()


async def no_tasks_left() -> None:
    """Assert that this task is the only one of the loop, after those that are ending have ended."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 3
    while left := asyncio.all_tasks() - {asyncio.current_task()}:
        assert loop.time() < deadline, f"tasks left over: {left}"
        await asyncio.sleep(0.01)


# -- memory -----------------------------------------------------------------------------------------------------


class MemoryReplica(Replica):
    """A process on the server that lives in this process."""

    @property
    def link(self) -> Any:
        """The memory link, the port below the engine."""
        return self.store.link

    async def kill(self) -> None:
        self.link.kill()

    async def drop_connection(self) -> None:
        self.link.disconnect()
        self.link.reconnect()

    async def lose_live_messages(self) -> None:
        for interest in list(self.link.own_interests):
            if interest.subject.startswith(self.backend.subjects.live_prefix):
                self.link.system.remove_interest(interest)

    def interests(self) -> list[str]:
        return list(self.link.interests())


class MemoryBackend(Backend):
    """All replicas stand on one ``MemorySystem``, which has one namespace."""

    name = "memory"

    def __init__(self) -> None:
        super().__init__("natsjobs")
        self.system = MemorySystem()

    async def _new(self, config: Config, role: str) -> Replica:
        del role
        return self._on(self.system, config)

    def _on(self, system: MemorySystem, config: Config) -> Replica:
        store = natsjobs.MemoryJobStore(config, system=system)
        return MemoryReplica(self, config, store, natsjobs.MemoryEventTransport(store))

    async def stranger(self, **changes: Any) -> Replica:
        replica = self._on(MemorySystem(), self.config(**changes))
        self.replicas.append(replica)
        return await replica.open()

    async def records(self, kind: str) -> list[tuple[str, ...]]:
        found = []
        async with self._link() as link:
            for subject in await link.records.subjects(self.subjects.records(kind)):
                message = await link.records.last(subject)
                if message and message.marker is None and (key := self.subjects.split_record(subject)):
                    found.append(key)
        return found

    async def put_record(self, body: object, kind: str, *ids: str) -> None:
        async with self._link() as link:
            await link.records.append(self.subjects.record(kind, *ids), json.dumps(body).encode())

    async def limit(self, max_bytes: int, *, bucket: bool = False) -> None:
        self.system.limit("records" if bucket else "events", max_bytes)

    async def fill(self, size: int) -> None:
        async with self._link() as link:
            await link.events.append(self.subjects.log("filler", "x"), b'"%s"' % (b"x" * size))

    async def held(self) -> int:
        async with self._link() as link:
            return (await link.events.state()).bytes

    @contextlib.asynccontextmanager
    async def _link(self) -> AsyncIterator[MemoryLink]:
        """A link past the library."""
        link = self.system.link()
        await link.open()
        try:
            yield link
        finally:
            await link.close()


# -- a real server ----------------------------------------------------------------------------------------------


class NatsReplica(Replica):
    """A process with a connection of its own to a real server."""

    nc: Client

    async def close(self) -> None:
        if self._closed:
            return
        await super().close()
        if not self.nc.is_closed:
            assert self.nc.is_connected or self.nc.is_reconnecting
            left = self.interests()
            async with asyncio.timeout(10):
                while self.nc.is_reconnecting:  # closed in a handshake, nats-py would leave its socket open
                    await asyncio.sleep(0.01)
            await self.nc.close()
            assert not left, f"interests left over: {left}"

    async def kill(self) -> None:
        self.nc.options["allow_reconnect"] = False
        self.nc._pending.clear()
        self.nc._pending_data_size = 0
        self.nc._transport._io_writer.transport.abort()
        await self.nc.close()

    async def drop_connection(self) -> None:
        self.nc._transport._io_writer.transport.abort()

    async def lose_live_messages(self) -> None:
        for sid, sub in self.nc._subs.items():
            if sub.subject.startswith(self.backend.subjects.live_prefix):
                await self.nc._send_unsubscribe(sid)

    def interests(self) -> list[str]:
        answers = f"{(self.nc._resp_sub_prefix or b'?').decode()}*"  # nats-py's own inbox for replies stays
        return [sub.subject for sub in self.nc._subs.values() if sub.subject != answers]


class NatsBackend(Backend):
    """All replicas stand on one real server, each with a connection of its own."""

    def __init__(self, name: str, url: str, namespace: str | None = None) -> None:
        super().__init__(namespace or f"t{uuid.uuid4().hex[:12]}")
        self.name = name
        self.url = url
        self.errors: list[str] = []
        """What the server complained about to its clients, in nats-py's words."""
        self._admin: Client | None = None

    def login(self, role: str = "worker") -> dict[str, Any]:
        """Options that connect as a role; none where everybody may do everything."""
        del role
        return {}

    async def prepare(self, config: Config | None = None) -> None:
        """Whatever must be there before the first replica."""

    async def connection(self, role: str = "worker") -> Client:
        """A connection as an application would open it, quick to come back."""
        return await nats.connect(
            self.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1, error_cb=self._complained, **self.login(role)
        )

    async def _complained(self, error: Exception) -> None:
        """Errors of a connection are what these tests provoke; the library reports those that matter."""
        self.errors.append(str(error))

    async def admin(self) -> Client:
        """A connection for looking at the server past the library."""
        if self._admin is None:
            self._admin = await self.connection("admin")
        return self._admin

    async def api(self, subject: str, body: object = None) -> dict[str, Any]:
        """One request to the JetStream API."""
        nc = await self.admin()
        answer = await nc.request(f"$JS.API.{subject}", b"" if body is None else json.dumps(body).encode(), timeout=10)
        decoded: dict[str, Any] = json.loads(answer.data)
        return decoded

    async def _new(self, config: Config, role: str) -> Replica:
        await self.prepare(config)
        nc = await self.connection(role)
        replica = NatsReplica(self, config, natsjobs.NatsJobStore(nc, config), natsjobs.NatsEventTransport(nc, config))
        replica.nc = nc
        return replica

    async def stranger(self, **changes: Any) -> Replica:
        return await self.replica(self.config(**changes, namespace=f"{self.namespace}x"))

    def _streams(self) -> list[str]:
        names = [self.subjects, Subjects(f"{self.namespace}x")]
        return [stream for one in names for stream in (one.events_stream, one.records_stream)]

    async def consumers(self) -> int:
        """How many consumers the streams and buckets have."""
        total = 0
        for stream in self._streams():
            total += (await self.api(f"CONSUMER.NAMES.{stream}")).get("total", 0)
        return total

    async def records(self, kind: str) -> list[tuple[str, ...]]:
        found = []
        info = await self.api(
            f"STREAM.INFO.{self.subjects.records_stream}", {"subjects_filter": f"{self.subjects.record_prefix}{kind}.>"}
        )
        for subject in info["state"].get("subjects") or {}:
            message = await self.api(f"STREAM.MSG.GET.{self.subjects.records_stream}", {"last_by_subj": subject})
            stored = message.get("message", {})
            marked = b"KV-Operation" in base64.b64decode(stored.get("hdrs", ""))
            if stored.get("data") and not marked and (key := self.subjects.split_record(subject)):
                found.append(key)
        return found

    async def put_record(self, body: object, kind: str, *ids: str) -> None:
        nc = await self.admin()
        await nc.request(self.subjects.record(kind, *ids), json.dumps(body).encode(), timeout=10)

    async def limit(self, max_bytes: int, *, bucket: bool = False) -> None:
        stream = self.subjects.records_stream if bucket else self.subjects.events_stream
        info = await self.api(f"STREAM.INFO.{stream}")
        answer = await self.api(f"STREAM.UPDATE.{stream}", {**info["config"], "max_bytes": max_bytes})
        assert "error" not in answer, answer

    async def fill(self, size: int) -> None:
        nc = await self.admin()
        answer = await nc.request(self.subjects.log("filler", "x"), b'"%s"' % (b"x" * size), timeout=10)
        assert b"error" not in answer.data, answer.data

    async def held(self) -> int:
        return int((await self.api(f"STREAM.INFO.{self.subjects.events_stream}"))["state"]["bytes"])

    async def close(self) -> None:
        try:
            for replica in reversed(self.replicas):
                await replica.close()
            assert not await self.consumers()
        finally:
            for stream in self._streams():
                await self.api(f"STREAM.DELETE.{stream}")
            await (await self.admin()).close()
            for replica in self.replicas:
                await replica.nc.close()  # type: ignore[attr-defined]
        await no_tasks_left()


class GuardedBackend(NatsBackend):
    """A server with the permissions of ``deploy/nats``: stream and bucket are made by *setup*, replicas bind to them.

    The namespace is the shipped one, so tests follow each other on a server and each begins with none of it.
    """

    def __init__(self, name: str, url: str) -> None:
        super().__init__(name, url, guarded.NAMESPACE)
        self._prepared: set[str] = set()

    def login(self, role: str = "worker") -> dict[str, Any]:
        return dict(guarded.login(role))

    async def prepare(self, config: Config | None = None) -> None:
        settings = config or self.config()
        if settings.namespace in self._prepared:
            return
        self._prepared.add(settings.namespace)
        user = "setup" if settings.namespace == self.namespace else "other_setup"
        link = NatsLink.dial(self.url, settings, **self.login(user))
        await link.open()
        await link.close()

    async def stranger(self, **changes: Any) -> Replica:
        return await self.replica(self.config(**changes, namespace=guarded.OTHER), role="other_worker")


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set one environment variable for a while."""
    import os

    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
