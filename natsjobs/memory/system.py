"""``MemorySystem``: one "server" in a dictionary, for any number of links. What tests and ``memory://`` share."""

from __future__ import annotations

from natsjobs.memory.link import MemoryLink
from natsjobs.memory.server import MemoryServer


class MemorySystem(MemoryServer):
    """One server in memory. Links of one system see each other, those of two systems never do.

    Not thread-safe, nothing on disk; one event loop at a time.
    """

    def link(self) -> MemoryLink:
        """A new connection to this system."""
        return MemoryLink(self)
