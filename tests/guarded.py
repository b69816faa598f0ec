"""A nats-server with the configuration that is shipped in ``deploy/nats``, and connections as its users.

Owns how the shipped files become a running server: copied as they are into a temporary folder, what they ask of the
environment given, plus users that only tests have (``admin``, who may do everything, and those of a second namespace
in the same account). Taking out one rule is taking out its line.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from listening import free_port, wait_until_listening

from natsjobs import embedded

SHIPPED = Path(__file__).resolve().parent.parent / "deploy" / "nats"
ROLES = ("worker", "gateway", "operator", "setup")
NAMESPACE = "natsjobs"
OTHER = "natsjobsx"
"""A second namespace, with users of its own in the same account: ``other_worker`` and so on."""


class GuardedServer:
    """A running server; the same files and port after ``restart``."""

    def __init__(self, folder: Path, *, main: str = "single.conf", **variables: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"nats://{self.address}"
        self._main = main
        self._process: subprocess.Popen[bytes] | None = None
        self.environment = {**os.environ, **settings(), "NATS_LISTEN": self.address, "NATS_STORE": str(folder / "data")}
        self.environment |= {"NATS_MONITOR": f"127.0.0.1:{free_port()}", **variables}
        for file in SHIPPED.glob("*.conf"):
            shutil.copy(file, folder)
        self.accounts()

    def accounts(self, text: str | None = None) -> None:
        """Write ``accounts.conf`` with the tests' own users; ``text``: instead of the shipped one."""
        (self.folder / "accounts.conf").write_text(with_test_users(text or shipped("accounts.conf")))

    def start(self) -> None:
        """Start; ready when it takes connections."""
        command = [str(embedded.find_binary()), "-c", str(self.folder / self._main)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        wait_until_listening(self._process, self.port, self.folder / "log")

    def stop(self) -> None:
        """Stop; twice is fine."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def reload(self) -> None:
        """Take up changed files without a restart; done when the server says so."""
        before = self.log.count("Reloaded")
        assert self._process is not None
        self._process.send_signal(1)
        deadline = time.monotonic() + 10
        while self.log.count("Reloaded") == before:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)

    @property
    def log(self) -> str:
        """What the server has written so far."""
        return (self.folder / "log").read_text()

    def options(self, user: str, **more: Any) -> dict[str, Any]:
        """Options of ``nats.connect`` for one of its users."""
        return {**login(user), **more}


def login(user: str) -> dict[str, str]:
    """Who a test connects as, and into which inbox."""
    if user == "admin":
        return {"user": user, "password": user}
    role = user.removeprefix("other_")
    inbox = f"_INBOX_other_{role}" if user.startswith("other_") else f"_INBOX_{role}"
    return {"user": user, "password": f"pw-{role}", "inbox_prefix": inbox}


def settings() -> dict[str, str]:
    """What the shipped files ask of the environment, as tests fill it in."""
    found = dict(re.findall(r"^(\w+)=(.*)$", shipped("example.env"), re.MULTILINE))
    return found | {f"NATSJOBS_{role.upper()}_PASSWORD": f"pw-{role}" for role in ROLES}


def shipped(name: str) -> str:
    """The text of a shipped file."""
    return (SHIPPED / name).read_text()


def with_test_users(text: str) -> str:
    """``accounts.conf`` with ``admin``, and with the same rules and users once more for the second namespace."""
    rules, users = text.split("\naccounts {\n")
    other = rules.replace(NAMESPACE, OTHER).replace("_INBOX_", "_INBOX_other_")
    other = re.sub(r"\b([A-Z]+_RULES)\b", r"OTHER_\1", other)
    lines = re.findall(r"^ +{ user: .*_RULES }$", users, re.MULTILINE)
    assert len(lines) == len(ROLES)
    more = [line.replace("user: ", "user: other_").replace("permissions: $", "permissions: $OTHER_") for line in lines]
    first = "users: [\n"
    users = users.replace(first, "\n".join([f"{first}      {{ user: admin, password: admin }}", *more, ""]), 1)
    return f"{rules}\n{other}\naccounts {{\n{users}"


def rules() -> Iterator[tuple[str, str, str]]:
    """Every rule of the shipped file: role, ``publish`` / ``subscribe`` / ``responses``, subject."""
    for role, kind, rule, _ in _rule_lines():
        yield role, kind, rule


def without(role: str, kind: str, rule: str) -> str:
    """``accounts.conf`` without one rule."""
    lines = shipped("accounts.conf").splitlines(keepends=True)
    numbers = [number for *found, number in _rule_lines() if found == [role, kind, rule]]
    assert len(numbers) == 1
    number = numbers[0]
    text = re.sub(r'\["[^"]*"\]', '["nothing.at.all"]', lines[number]) if "[" in lines[number] else ""
    return "".join([*lines[:number], text, *lines[number + 1 :]])


def _rule_lines() -> Iterator[tuple[str, str, str, int]]:
    role = kind = ""
    for number, line in enumerate(shipped("accounts.conf").splitlines()):
        if found := re.match(r"(\w+)_RULES = {", line):
            role = found[1].lower()
        elif found := re.match(r"  (publish|subscribe): {", line):
            kind = found[1]
        elif "allow_responses:" in line:
            yield role, "responses", "allow_responses", number
        if role and (found := re.match(r'[^#]*"([^"]+)"', line)) and "allow_responses" not in line:
            yield role, kind, found[1], number
        if line == "}":
            role = ""


@contextmanager
def guarded_server(*, main: str = "single.conf", **variables: str) -> Iterator[GuardedServer]:
    """A running server of one's own; its folder goes with it."""
    with tempfile.TemporaryDirectory(prefix="natsjobs-guarded-", ignore_cleanup_errors=True) as folder:
        made = GuardedServer(Path(folder), main=main, **variables)
        made.start()
        try:
            yield made
        finally:
            made.stop()
