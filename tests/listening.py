"""Ports of the servers that tests start on loopback, and waiting until one of them takes connections."""

from __future__ import annotations

import random
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path


def free_port() -> int:
    """A port that nobody takes, also while its server is away: connections get theirs from 32768 on."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until the server takes connections; ``log`` tells why it does not."""
    deadline = time.monotonic() + 15
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
