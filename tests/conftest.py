"""Servers for the tests: one real nats-server per version and test session, on loopback, stopped at its end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from backends import environment
from guarded import guarded_server
from versions import OLDEST, TOO_OLD, server_binary

pytest_plugins = ["fault_table"]


def pytest_configure(config: pytest.Config) -> None:
    """Register the suite's markers."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts what stands before "&" with Ctrl-C ignored; our programs would inherit that and never stop.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "scenario(*numbers): the scenarios of the behaviour to match that this test covers"
    )
    config.addinivalue_line("markers", "b_writes: replica B runs jobs as well, so it is no gateway but a worker")


@pytest.fixture(scope="session")
def newest_server() -> Iterator[str]:
    """The URL of the server that is installed with the library."""
    from natsjobs import embedded

    with embedded.server() as server:
        yield server.url


@pytest.fixture(scope="session")
def oldest_server() -> Iterator[str]:
    """The URL of the oldest supported server."""
    with _running(OLDEST) as url:
        yield url


@pytest.fixture(scope="session")
def permissions_server() -> Iterator[str]:
    """The URL of the newest server, under the permissions that are shipped in ``deploy/nats``."""
    with guarded_server() as server:
        yield server.url


@pytest.fixture(scope="session")
def too_old_server() -> Iterator[str]:
    """The URL of a server that is older than that."""
    with _running(TOO_OLD) as url:
        yield url


@contextmanager
def _running(version: str) -> Iterator[str]:
    from natsjobs import embedded

    with environment("NATS_SERVER_BIN", str(server_binary(version))):
        running = embedded.server()
        server = running.__enter__()
    try:
        yield server.url
    finally:
        running.__exit__(None, None, None)
