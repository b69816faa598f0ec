"""The demo's processes as its script sees them: start, tell, kill, close; their reports go to one callback.

Owns that every process ends: each one ends by itself when its input does, and is killed when it does not.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, TypeAlias

import msgspec

from natsjobs.tasks import Tasks

_LINE_LIMIT = 64 * 1_048_576
_END_PATIENCE = 3.0

OnReport: TypeAlias = Callable[[dict[str, Any]], None]


class Actor:
    """One process: a worker, or the replica of some viewers."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, stderr: IO[bytes]) -> None:
        """Use ``Cast.start``."""
        self.name = name
        self.ready = False
        self.expected_to_end = False
        self._process = process
        self._stderr = stderr

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def gone(self) -> bool:
        """Whether it has ended and all its reports were taken."""
        return self._stderr.closed

    def tell(self, do: str, stream_id: str, **fields: Any) -> None:
        """Give it a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode({"do": do, "id": stream_id, **fields}) + b"\n")

    def kill(self) -> None:
        """SIGKILL: it cannot tidy up."""
        self.expected_to_end = True
        if self._process.returncode is None:
            self._process.kill()

    async def close(self, *, now: bool) -> None:
        """End it: by the end of its input, or ``now``."""
        self.expected_to_end = True
        assert self._process.stdin is not None
        self._process.stdin.close()
        if not now:
            try:
                async with asyncio.timeout(_END_PATIENCE):
                    await self._process.wait()
            except TimeoutError:
                pass
        self.kill()
        await self._process.wait()

    async def listen(self, on_report: OnReport, on_gone: Callable[[Actor, str], None]) -> None:
        """Take its reports until it has ended, then say so, with its last words on stderr."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            if not line.endswith(b"\n"):
                break  # it was killed in the middle of a report: nobody got that one
            report = msgspec.json.decode(line)
            if report["is"] == "ready":
                self.ready = True
            on_report(report)
        status = await self._process.wait()
        self._stderr.seek(0)
        last = self._stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
        self._stderr.close()
        on_gone(self, f"{self.name} ended unexpectedly (status {status}): {last or 'it said nothing'}")


class Cast:
    """All processes of one demo."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str], on_report: OnReport) -> None:
        """Args: what every role is started with, its environment, and who gets the reports."""
        self._arguments = list(arguments)
        self._env = dict(env)
        self._on_report = on_report
        self._actors: list[Actor] = []
        self._tasks = Tasks()
        self.unexpected: str | None = None

    async def start(self, role: str, name: str) -> Actor:
        """Start a process; it is of use once it is ``ready``."""
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process has ended
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "natsjobs.cli.demo.roles",
            role,
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env=self._env,
            limit=_LINE_LIMIT,
            start_new_session=True,  # Ctrl-C is for the main process; it ends the others itself
        )
        actor = Actor(name, process, stderr)
        self._actors.append(actor)
        self._tasks.spawn(actor.listen(self._on_report, self._gone), name=f"reports of {name}")
        return actor

    async def close(self, *, now: bool) -> None:
        """End every process and take its last reports; returns when all have ended."""
        try:
            await asyncio.gather(*(actor.close(now=now) for actor in self._actors))
        finally:
            for actor in self._actors:
                actor.kill()
            await self._tasks.close()

    def _gone(self, actor: Actor, last_words: str) -> None:
        if not actor.expected_to_end and self.unexpected is None:
            self.unexpected = last_words
        self._on_report({"is": "gone", "id": ""})
