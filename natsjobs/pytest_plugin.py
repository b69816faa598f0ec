"""Pytest plugin: the fixture ``natsjobs_server``, a real nats-server for a test session.

Needs no async plugin and no running server. Nothing is imported or started until a test asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def natsjobs_server() -> Iterator[str]:
    """URL of a nats-server with JetStream that lives as long as the session (one per pytest-xdist worker).

    Tests share it: give each its own ``Config(namespace=...)``.
    """
    from natsjobs import embedded

    with embedded.server() as server:
        yield server.url
