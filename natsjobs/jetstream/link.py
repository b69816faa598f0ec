"""The port ``Link``: one NATS connection with the two streams and the bus of a namespace.

Owns opening and closing, the version check, and making a lost stream anew. One link is shared by all that use the same
connection and namespace (``link_for``), so it counts: every ``open`` has its ``close``, the last one releases.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

from nats.aio.client import Client

from natsjobs.config import Config
from natsjobs.engine.subjects import Subjects
from natsjobs.errors import NatsJobsError, UnsupportedServerError
from natsjobs.jetstream.bus import NatsBus
from natsjobs.jetstream.connecting import Dialer
from natsjobs.jetstream.inspection import Inspection
from natsjobs.jetstream.setup import Setup, api_prefix, settings_of
from natsjobs.jetstream.stream import NatsStream
from natsjobs.jetstream.wire import Wire

_log = logging.getLogger(__name__)

OLDEST = (2, 11)
"""Batch direct get, TTLs per message and their markers came with it."""
LEAST_PAYLOAD = 32_768
"""A record with its end, the longest ids and their headers fit into one message of this size."""
_REMAKE_EVERY = 1.0


class NatsLink:
    """One connection and one namespace: implements the port ``Link``."""

    def __init__(self, source: Client | Dialer, config: Config) -> None:
        """``source``: a connection that stays the caller's, or how to make one of our own. No I/O here."""
        names = Subjects(config.namespace)
        request = config.timing.request
        self._config = config
        self._wire = Wire(source)
        self._bus = NatsBus(self._wire, config.namespace, request=request)
        self._events, self._records = (
            NatsStream(self._wire, name, prefix=api_prefix(config), request=request, missing=self._remake)
            for name in (names.events_stream, names.records_stream)
        )
        self._holders = 0
        self._lock = asyncio.Lock()
        self._remade = 0.0

    @classmethod
    def dial(cls, servers: str | Iterable[str], config: Config, **options: Any) -> NatsLink:
        """A link with a connection of its own, opened by ``open`` and closed with the last ``close``.

        Raises:
            ConfigError: An option is unknown to nats-py, or not the user's to set.
        """
        return cls(Dialer(servers, options), config)

    @property
    def nc(self) -> Client:
        """The present connection; another one after nats-py has closed it for good.

        Raises:
            NotOpenError: Not opened yet, or closed.
        """
        return self._wire.nc

    @property
    def events(self) -> NatsStream:
        """The stream ``{ns}_events``."""
        return self._events

    @property
    def records(self) -> NatsStream:
        """The stream below the bucket ``{ns}_jobs``."""
        return self._records

    @property
    def bus(self) -> NatsBus:
        """Core subjects."""
        return self._bus

    @property
    def max_payload(self) -> int:
        """Largest message the server takes, bytes, headers included."""
        return self._wire.max_payload

    @property
    def connected_since(self) -> float | None:
        """``time.monotonic()`` since when the connection is unbroken and requests succeed; ``None``: it is away."""
        return self._wire.connected_since

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after every reconnect; the returned function removes it."""
        return self._wire.on_reconnect(callback)

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Call back before what this turn of the loop has made is written."""
        self._wire.at_turn_end(callback)

    async def open(self) -> None:
        """Connect if needed; create or check stream and bucket. Every call needs its ``close``.

        Raises:
            UnsupportedServerError: The server is too old, or an existing stream or bucket has other settings.
            UnavailableError: No answer within ``timing.request``, or a permission is missing.
            ConfigError: nats-py refuses an option.
        """
        async with self._lock:
            if self._holders == 0:
                await self._open()
            self._holders += 1

    async def close(self) -> None:
        """The last one takes everything of ours off the connection, which stays open if it was given."""
        async with self._lock:
            if self._holders == 0:
                return
            self._holders -= 1
            if self._holders == 0:
                await self._wire.stop()

    @asynccontextmanager
    async def visit(self) -> AsyncGenerator[Inspection]:
        """Connect, to look and not to touch: nothing is created, and what is missing stays missing.

        Raises:
            UnavailableError: No answer within ``timing.request``, or the credentials were refused.
            ConfigError: nats-py refuses an option.
        """
        await self._wire.start(self._config.timing.request)
        try:
            yield Inspection(self._wire, self._config)
        finally:
            await self._wire.stop()

    async def _open(self) -> None:
        await self._wire.start(self._config.timing.request)
        try:
            check_version(self._wire.nc)
            check_payload(self._wire.nc)
            await self._ensure()
        except BaseException:
            await self._wire.stop()
            raise

    async def _ensure(self) -> None:
        setup = Setup(self._wire, self._config)
        for stream, settings in zip((self._events, self._records), settings_of(self._config), strict=True):
            stream.domain = await setup.ensure(settings)

    async def _remake(self) -> None:
        """A stream has vanished, with a server that kept it in memory for instance (B11): create it, if we may."""
        async with self._lock:
            if self._holders == 0 or time.monotonic() - self._remade < _REMAKE_EVERY:
                return
            _log.warning("a stream of namespace %s is missing; creating it again", self._config.namespace)
            try:
                await self._ensure()
            except NatsJobsError as error:
                _log.warning("the missing stream could not be created: %s", error)
            finally:
                self._remade = time.monotonic()


def check_version(nc: Client) -> None:
    """Refuse a server that would silently ignore what is needed.

    Raises:
        UnsupportedServerError: It is older than ``OLDEST``.
    """
    version = nc.connected_server_version
    try:
        found = (version.major, version.minor)
    except (TypeError, ValueError):
        _log.warning("the server's version %r cannot be read; going on", version)
        return
    if found < OLDEST:
        raise UnsupportedServerError(
            f"nats-server {found[0]}.{found[1]} is too old, natsjobs needs {OLDEST[0]}.{OLDEST[1]} or newer; upgrade it"
        )


def check_payload(nc: Client) -> None:
    """Refuse a server whose messages are too small for a job record.

    Raises:
        UnsupportedServerError: Its ``max_payload`` is below ``LEAST_PAYLOAD``.
    """
    if nc.max_payload < LEAST_PAYLOAD:
        raise UnsupportedServerError(
            f"max_payload of the server is {nc.max_payload} bytes, natsjobs needs at least {LEAST_PAYLOAD}; raise it "
            "in the server's configuration (its default is 1048576)"
        )


_links: WeakValueDictionary[tuple[object, ...], NatsLink] = WeakValueDictionary()


def link_for(nc: Client, config: Config) -> NatsLink:
    """The link of a given connection: one for all that use the same namespace with the same settings of it.

    A link keeps its connection alive, never the other way round.
    """
    settings = (config.replicas, config.storage, config.max_bytes, config.create, config.retention.log)
    key = (id(nc), config.namespace, config.domain, *settings, config.timing.request)
    link = _links.get(key)
    if link is None:
        link = _links[key] = NatsLink(nc, config)
    return link
