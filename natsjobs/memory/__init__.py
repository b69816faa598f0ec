"""The memory backend: the ports of the engine in a dictionary, in this process, with the same semantics as NATS."""

from __future__ import annotations

from natsjobs.memory.backend import MemoryEventTransport, MemoryJobStore
from natsjobs.memory.link import MemoryLink
from natsjobs.memory.system import MemorySystem

__all__ = ["MemoryEventTransport", "MemoryJobStore", "MemoryLink", "MemorySystem"]
