"""The fault suite: real processes, real servers, real signals. The servers are here, the rest in the kits beside."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))  # jetstream_kit and timeline_kit

from nodes import Node, Nodes


@pytest.fixture(scope="session")
def standing_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Three nodes for all tests of a process: forming a cluster takes seconds."""
    nodes = Nodes(tmp_path_factory.mktemp("nodes"))
    nodes.launch()
    try:
        yield nodes
    finally:
        nodes.stop()


@pytest.fixture
async def nodes(standing_nodes: Nodes) -> Nodes:
    """Three nodes that all run; a test may do with them what it likes."""
    await standing_nodes.heal()
    return standing_nodes


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A single server with a store that outlives it."""
    made = Node(tmp_path)
    made.launch()
    await made.ready()
    try:
        yield made
    finally:
        made.stop()
