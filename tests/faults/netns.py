"""A network of its own for a test: hosts in network namespaces around a router, and silent cuts between them.

A cut says nothing to anybody: packets are swallowed by a ``blackhole`` rule of the router, connections stay open on
both sides, and only time tells. That is what a dead switch or a lost machine looks like, and no signal, closed socket
or proxy shows it.

Needs Linux with ``unshare``, ``nsenter`` and ``setpriv`` (util-linux), ``ip`` (iproute2), and to be root or a user who
may make user namespaces; a ``Rough`` host needs ``/dev/net/tun`` too. Where something is missing ``network`` raises
``NoNamespacesError``, which says what. No names or addresses outside are touched and none can collide: the namespaces
have no names and live as long as their processes, and those end with the test's process, however it ends.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

_TOOLS = {"unshare": "util-linux", "nsenter": "util-linux", "setpriv": "util-linux", "ip": "iproute2"}
_WIRE = Path(__file__).with_name("rough_wire.py")


class NoNamespacesError(Exception):
    """This machine does not let us have network namespaces; says what is missing."""


@dataclass(frozen=True)
class Rough:
    """A bad line between a host and the router. Shares of packets, and seconds one way, uniformly up to ``jitter``
    more, so that packets also overtake each other."""

    loss_to: float = 0.0
    loss_from: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    seed: int = 0


class _Space:
    """One network namespace, held by a process that ends when its standard input does."""

    def __init__(self, prefix: Sequence[str], unshare: Sequence[str]) -> None:
        holder = [*prefix, *unshare, "sh", "-c", "echo && exec cat"]
        self.process = subprocess.Popen(
            holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            raise NoNamespacesError(f"{' '.join(unshare)}: {self.process.communicate()[1].strip()}")

    @property
    def pid(self) -> int:
        return self.process.pid

    def close(self) -> None:
        self.process.communicate()


class Network:
    """A router and the hosts around it; made by ``network``."""

    def __init__(self, stack: ExitStack) -> None:
        """The router alone."""
        for tool, package in _TOOLS.items():
            if shutil.which(tool) is None:
                raise NoNamespacesError(f"there is no {tool}; install {package}")
        self._stack = stack
        self._spaces: dict[str, _Space] = {}
        self._cuts: set[tuple[str, str]] = set()
        self._user = [] if _works("unshare", "-n", "true") else ["--user", "--preserve-credentials"]
        self._hold("router", (), ["unshare", "-rn"] if self._user else ["unshare", "-n"])
        self._must("router", ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
        self._must("router", ["ip", "link", "set", "lo", "up"])

    def _hold(self, name: str, prefix: Sequence[str], unshare: Sequence[str]) -> None:
        space = self._spaces[name] = _Space(prefix, unshare)
        self._stack.callback(space.close)

    # -- hosts --------------------------------------------------------------------------------------------------

    @property
    def hosts(self) -> list[str]:
        """Names of the hosts, in order of their making."""
        return [name for name in self._spaces if name != "router"]

    def add(self, *names: str, rough: Rough | None = None) -> None:
        """New hosts, that reach all others; over a bad line, if ``rough`` says so."""
        for name in names:
            user = ["nsenter", "-t", str(self._spaces["router"].pid), *self._user] if self._user else []
            self._hold(name, user, ["unshare", "-n"])
            number, link = self.hosts.index(name) + 1, f"h{self.hosts.index(name) + 1}"
            if rough is None:
                pair = ["ip", "link", "add", link, "type", "veth", "peer", "name", "net0"]
                self._must("router", [*pair, "netns", str(self._spaces[name].pid)])
            else:
                self._lay_wire(name, link, rough)
            self._must("router", ["ip", "addr", "add", f"10.77.{number}.1/24", "dev", link])
            self._must("router", ["ip", "link", "set", link, "up"])
            self._must(name, ["ip", "addr", "add", f"{self.address(name)}/24", "dev", "net0"])
            self._must(name, ["ip", "link", "set", "net0", "up"])
            self._must(name, ["ip", "link", "set", "lo", "up"])
            self._must(name, ["ip", "route", "add", "default", "via", f"10.77.{number}.1"])

    def _lay_wire(self, name: str, link: str, rough: Rough) -> None:
        space = f"/proc/{self._spaces[name].pid}/ns/net"
        numbers = (rough.loss_to, rough.loss_from, rough.delay, rough.jitter, rough.seed)
        wire = self.run("router", [sys.executable, str(_WIRE), space, link, "net0", *map(str, numbers)])
        assert wire.stdout is not None
        if not wire.stdout.readline():
            raise NoNamespacesError("no bad line could be laid; is there a /dev/net/tun?")

    def address(self, host: str) -> str:
        """Where the others reach it."""
        return f"10.77.{self.hosts.index(host) + 1}.2"

    def argv(self, host: str, argv: Iterable[str]) -> list[str]:
        """The command line that runs ``argv`` on a host; it becomes that program, so signals reach it."""
        enter = ["nsenter", "-t", str(self._spaces[host].pid), *self._user, "--net"]
        return [*enter, "setpriv", "--pdeathsig", "KILL", *argv]

    def run(self, host: str, argv: Iterable[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program on a host; it is killed when the network goes."""
        process = subprocess.Popen(self.argv(host, argv), **{"stdout": subprocess.PIPE, **options})

        def end() -> None:
            process.kill()
            process.communicate()

        self._stack.callback(end)
        return process

    def _must(self, host: str, argv: Iterable[str]) -> None:
        done = subprocess.run(self.argv(host, argv), capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoNamespacesError(f"{' '.join(argv)} in a network namespace: {done.stderr.strip()}")

    # -- cuts ---------------------------------------------------------------------------------------------------

    def drop(self, source: str, target: str) -> None:
        """From now on nothing that ``source`` sends reaches ``target``."""
        if (source, target) not in self._cuts:
            self._cuts.add((source, target))
            self._rule("add", source, target)

    def cut(self, one: str | Iterable[str], other: str | Iterable[str]) -> None:
        """Between these hosts nothing gets through any more, either way."""
        for pair in product(_several(one), _several(other)):
            self.drop(*pair)
            self.drop(*reversed(pair))

    def isolate(self, *together: str) -> None:
        """Cut these hosts from all others, not from each other."""
        self.cut(together, [host for host in self.hosts if host not in together])

    def heal(self, one: str | Iterable[str] | None = None, other: str | Iterable[str] | None = None) -> None:
        """Take back the cuts between these hosts; without names all."""
        for source, target in list(self._cuts):
            between = {source, target}
            if (one is None or between & set(_several(one))) and (other is None or between & set(_several(other))):
                self._cuts.discard((source, target))
                self._rule("del", source, target)

    def _rule(self, what: str, source: str, target: str) -> None:
        ends = ["from", self.address(source), "to", self.address(target)]
        self._must("router", ["ip", "rule", what, *ends, "pref", "1000", "blackhole"])


@contextmanager
def network(*hosts: str) -> Iterator[Network]:
    """A router and these hosts, and everything that runs on them, for the length of the block.

    Raises:
        NoNamespacesError: This machine does not allow it.
    """
    with ExitStack() as stack:
        made = Network(stack)
        made.add(*hosts)
        yield made


def _several(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _works(*argv: str) -> bool:
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0
