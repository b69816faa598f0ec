"""``connect``: settings, a connection, a store, a transport and a manager in one ``async with``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from natsjobs.config import Config
from natsjobs.engine.store import EngineStore
from natsjobs.engine.transport import EngineTransport
from natsjobs.errors import ConfigError, NotOpenError
from natsjobs.manager import JobManager
from natsjobs.manager.interrupt import outlast
from natsjobs.tasks import Tasks

if TYPE_CHECKING:
    from natsjobs.jetstream import Client

DEFAULT_URL = "nats://localhost:4222"
MEMORY_URL = "memory://"


def connect(
    servers: str | Sequence[str] | None = None,
    *,
    nc: Client | None = None,
    config: Config | None = None,
    **options: Any,
) -> AbstractAsyncContextManager[JobManager, None]:
    """Open a ``JobManager``; leaving ends what runs here (``SHUTDOWN``) and closes what was opened.

    May be entered and left in different tasks. Background work that fails never cancels the caller.

    Leaving is the graceful shutdown: every run here gets its terminal record, viewers here get it too, all others end
    with ``NotOpenError``. With NATS there that takes milliseconds, and ``timing.abort`` for bodies that clean up.
    With NATS away it takes ``timing.request`` and up to 2 s for the connection; the ends that could not be stored are
    logged by name, and other replicas end those jobs when the lease lapses. Whatever bodies, handlers and callbacks
    do, it takes at most ``2 * timing.request + 6 * timing.abort + 2`` seconds: 24 with the defaults. Signals are the
    program's: cancel the task that holds the block.

    Args:
        servers: A URL or several; default ``NATS_URL``, else ``nats://localhost:4222``. ``"memory://"`` is a system of
            its own in this process.
        nc: An open nats-py connection instead; it stays open. When nats-py closes it for good (an expired JWT,
            too large a message), every call and reader gets ``ConnectionLostError``: natsjobs may not replace it.
        config: Settings; default ``Config.from_env()``.
        options: For ``nats.connect`` (``user_credentials``, ``tls``, ``inbox_prefix``, …). A connection that dies for
            good is replaced with the same options: credentials files are read again, and callables (``user``,
            ``password``, ``token``, ``user_jwt_cb``) are asked again.

    Raises (on entering):
        ConfigError: Options that are natsjobs' own, or that contradict each other.
        UnsupportedServerError: The server is too old, or stream or bucket have other settings.
        UnavailableError: No server answers, or (``PermissionDeniedError``) this user lacks what every replica needs.
    """
    if nc is not None and (servers is not None or options):
        raise ConfigError("nc", "give either an open connection, or servers and options to open one")
    if servers is not None and not isinstance(servers, str):
        servers = list(servers)
    if servers == MEMORY_URL and options:
        raise ConfigError(next(iter(options)), "memory:// takes no connection options")
    return _Connection(servers, nc, config, options)


class _Connection(AbstractAsyncContextManager["JobManager", None]):
    def __init__(
        self, servers: str | Sequence[str] | None, nc: Client | None, config: Config | None, options: dict[str, Any]
    ) -> None:
        self._servers, self._nc, self._config, self._options = servers, nc, config, options
        self._parts: tuple[JobManager, EngineStore, EngineTransport] | None = None
        self._tasks = Tasks()

    async def __aenter__(self) -> JobManager:
        if self._parts is not None:
            raise NotOpenError("this connection was already entered; call natsjobs.connect() again")
        config = self._config or Config.from_env()
        store, transport = self._backend(config)
        manager = JobManager(store, transport, config=config)
        try:
            await manager.__aenter__()
        except BaseException:
            await self._release(store, transport, config)
            raise
        self._parts = manager, store, transport
        return manager

    def _backend(self, config: Config) -> tuple[EngineStore, EngineTransport]:
        if self._servers == MEMORY_URL:
            from natsjobs.memory import MemoryEventTransport, MemoryJobStore

            memory = MemoryJobStore(config)
            return memory, MemoryEventTransport(memory)
        from natsjobs.engine.replica import Replica
        from natsjobs.jetstream import NatsEventTransport, NatsJobStore, NatsLink

        if self._nc is not None:
            return NatsJobStore(self._nc, config), NatsEventTransport(self._nc, config)
        servers = self._servers or os.environ.get("NATS_URL") or DEFAULT_URL
        replica = Replica(NatsLink.dial(servers, config, **self._options), config)
        return NatsJobStore.over(replica), NatsEventTransport.over(replica)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._parts is None:
            return
        (manager, store, transport), self._parts = self._parts, None
        try:
            await manager.__aexit__(kind, error, trace)
        finally:
            await self._release(store, transport, store.replica.config)

    async def _release(self, store: EngineStore, transport: EngineTransport, config: Config) -> None:
        """Close what was opened; cut off in the middle, a connection and its background work would go on for ever."""

        async def release() -> None:
            try:
                await store.destroy()  # first: who follows a run here hears of its end
            finally:
                await transport.destroy()

        releasing = self._tasks.spawn(release(), "close of natsjobs.connect")
        cut = await outlast(releasing, patience=config.timing.request + config.timing.abort)
        if cut is not None:
            raise cut
        await releasing
