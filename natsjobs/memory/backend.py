"""``MemoryJobStore`` and ``MemoryEventTransport``: the engine on a dictionary in this process.

For applications' own tests and for trying things: the same protocol, the same errors, the same races, and nothing
survives the process. One store is one replica; several stores on one ``MemorySystem`` are several.
"""

from __future__ import annotations

from natsjobs.config import Config
from natsjobs.engine.replica import Replica
from natsjobs.engine.store import EngineStore
from natsjobs.engine.transport import EngineTransport
from natsjobs.errors import ConfigError
from natsjobs.memory.system import MemorySystem


class MemoryJobStore(EngineStore):
    """Job metadata in memory."""

    def __init__(self, config: Config | None = None, *, system: MemorySystem | None = None) -> None:
        """``system``: the "server"; ``None``: one of its own."""
        settings = config or Config.from_env()
        if system is not None and system.namespace != settings.namespace:
            raise ConfigError("namespace", f"{settings.namespace!r} is not the system's, {system.namespace!r}")
        self.system = system or MemorySystem(
            settings.namespace, settings.retention.log, max_bytes=settings.max_bytes or -1
        )
        self.link = self.system.link()
        super().__init__(Replica(self.link, settings))


class MemoryEventTransport(EngineTransport):
    """Events in memory; two transports on one store are two replicas of viewers."""

    def __init__(self, store: MemoryJobStore) -> None:
        """Shares everything below with the store."""
        super().__init__(store.replica)
