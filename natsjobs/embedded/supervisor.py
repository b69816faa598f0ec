"""Holds a nats-server and ends it together with the process that wanted it. Run as a script, by its path.

Why a process of its own: nothing inside the wanting process survives its SIGKILL, and the kernel's death signal is
tied to the *thread* that started a child. This process has one thread, imports next to nothing, and knows two ways
that its parent is gone: end of file on standard input (at once), and another parent id (when a forked copy of the
parent still holds the pipe). If it is itself killed, Linux ends the server.

Arguments: binary, port (-1: a free one), store folder, ``1`` if that is temporary, process id of the parent. Standard
output gets one line of JSON: ``{"pid", "port"}`` or ``{"error", "log"}``. Standard input takes ``k``: kill the
server; anything else, or its end: stop it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable

_PATIENCE = 5.0
"""Seconds an orderly stop may take before the server is killed."""
_PARENT_CHECK = 0.5
_LISTENING = b"Listening for client connections on "
_READY = b"Server is ready"


def main(binary: str, port: str, store_dir: str, temporary: str, parent: str) -> None:
    """Start, report, wait for the end, clean up."""
    signal.signal(signal.SIGTERM, _leave)
    lock = os.open(os.path.join(store_dir, ".lock"), os.O_RDWR | os.O_CREAT, 0o600)  # noqa: PTH118 - starts faster
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _report({"error": "store", "log": ""})
        return
    arguments = [binary, "-js", "-a", "127.0.0.1", "-p", port, "-sd", store_dir]
    pid, log = _start(arguments)
    try:
        _watch(pid, log, int(parent))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end(pid)
        if temporary == "1":
            shutil.rmtree(store_dir, ignore_errors=True)


def _leave(*_: object) -> None:
    """SIGTERM ends this process through its ``finally``, so that the server ends too."""
    sys.exit()


def _start(arguments: list[str]) -> tuple[int, int]:
    """The server's process id, and where its log can be read."""
    die_with_parent = _death_signal()
    me = os.getpid()
    log, log_in = os.pipe()
    pid = os.fork()
    if pid:
        os.close(log_in)
        return pid, log
    try:
        die_with_parent()
        if os.getppid() != me:  # it died before the line above
            os._exit(1)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores these two, and exec would pass that on
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log_in, 1)
        os.dup2(log_in, 2)
        os.execv(arguments[0], arguments)  # noqa: S606 - no shell is the point
    except OSError as error:
        os.write(2, f"[FTL] {arguments[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def _death_signal() -> Callable[[], object]:
    """What makes the calling process die with its parent; nothing where the system has no such thing."""
    if sys.platform != "linux":
        return lambda: None
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG


def _watch(pid: int, log: int, parent: int) -> None:
    """Report once, and return when the server is to end or has ended."""
    said, reported = b"", False
    while os.getppid() == parent:
        readable, _, _ = select.select([0, log], [], [], _PARENT_CHECK)
        if log in readable:
            chunk = os.read(log, 65536)
            said = (said + chunk)[-65536:]
            if not reported and _READY in said and _LISTENING in said:
                address = said.split(_LISTENING, 1)[1].split(b"\n", 1)[0]
                _report({"pid": pid, "port": int(address.rsplit(b":", 1)[1])})
                reported = True
            if not chunk:
                if not reported:
                    _report({"error": "start", "log": said.decode(errors="replace")})
                return
        if 0 in readable:
            if os.read(0, 1) == b"k":
                os.kill(pid, signal.SIGKILL)
            return


def _end(pid: int) -> None:
    """Stop the server, with force when it does not listen, and take its exit status."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)  # one that was stopped hears the other signal only now
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _report(what: dict[str, object]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
