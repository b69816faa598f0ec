"""``NatsJobStore`` and ``NatsEventTransport``: the engine on a NATS connection.

Both on one connection and namespace share one replica: its lease, its runs, its live subscriptions' connection.
"""

from __future__ import annotations

import logging
from typing import Self
from weakref import WeakValueDictionary

from nats.aio.client import Client

from natsjobs.config import Config
from natsjobs.engine.replica import Replica
from natsjobs.engine.store import EngineStore
from natsjobs.engine.transport import EngineTransport
from natsjobs.errors import InvalidArgumentError
from natsjobs.jetstream.link import link_for

_log = logging.getLogger(__name__)
_replicas: WeakValueDictionary[tuple[int, str, str | None], Replica] = WeakValueDictionary()


def replica_for(nc: Client, config: Config | None) -> Replica:
    """The replica of a connection and namespace; the first one's settings hold for all that share it."""
    if not isinstance(nc, Client):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgumentError("nc", f"must be a connected nats client, not {type(nc).__name__}")
    settings = config or Config.from_env()
    key = (id(nc), settings.namespace, settings.domain)
    replica = _replicas.get(key)
    if replica is None:
        replica = _replicas[key] = Replica(link_for(nc, settings), settings)
    elif config is not None and replica.config != settings:
        _log.warning("namespace %s is already open on this connection; its first settings are kept", settings.namespace)
    return replica


class NatsJobStore(EngineStore):
    """Job metadata in a NATS KV bucket, content in a JetStream stream."""

    def __init__(self, nc: Client, config: Config | None = None) -> None:
        """``nc``: an open connection; it stays the caller's. ``config`` of ``None``: ``Config.from_env()``."""
        super().__init__(replica_for(nc, config))

    @classmethod
    def over(cls, replica: Replica) -> Self:
        """On a replica that is there already."""
        store = cls.__new__(cls)
        EngineStore.__init__(store, replica)
        return store


class NatsEventTransport(EngineTransport):
    """Events in a JetStream stream, signals on core NATS subjects."""

    def __init__(self, nc: Client, config: Config | None = None) -> None:
        """``nc``: an open connection; it stays the caller's. ``config`` of ``None``: ``Config.from_env()``."""
        super().__init__(replica_for(nc, config))

    @classmethod
    def over(cls, replica: Replica) -> Self:
        """On a replica that is there already."""
        transport = cls.__new__(cls)
        EngineTransport.__init__(transport, replica)
        return transport
