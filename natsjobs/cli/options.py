"""The options that every command shares, and ``run``: from options to an exit status.

Owns how errors become one line on stderr and an exit status, and how Ctrl-C and SIGTERM end a command: the running
work is cancelled, so every block is left properly. Owns no command.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeAlias

import msgspec
import typer

import natsjobs
from natsjobs import JobManager
from natsjobs.cli.login import Login
from natsjobs.cli.output import complain
from natsjobs.config import Config
from natsjobs.errors import (
    ConfigError,
    InvalidArgumentError,
    InvalidCursorError,
    JobNotFoundError,
    JobRunningError,
    NatsJobsError,
    PermissionDeniedError,
    StreamFullError,
    UnavailableError,
)

FAILED, USAGE, UNREACHABLE = 1, 2, 3
_SHELL = 128
"""What the shell adds to the number of the signal that ended a command."""
_GRACE = 10.0

_log = logging.getLogger(__name__)

# The environment is read when the options of both places are merged: read by the parser, a variable would win over
# an option that was given before the command's name.
Server: TypeAlias = Annotated[
    str | None,
    typer.Option("--server", metavar="URL", help="NATS server, or several with commas. [env: NATS_URL]"),
]
Namespace: TypeAlias = Annotated[
    str | None,
    typer.Option("--namespace", metavar="NAME", help="Prefix of all subjects. [env: NATSJOBS_NAMESPACE]"),
]
Creds: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--creds",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        readable=True,
        help="NATS credentials file. [env: NATS_CREDS]",
    ),
]
Embedded: TypeAlias = Annotated[
    bool, typer.Option("--embedded", help="Start a NATS server for this command and stop it afterwards.")
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


class Running(Protocol):
    """What a command needs of an embedded server."""

    @property
    def url(self) -> str:
        """Where it listens."""
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """The global options, from before and after the command's name; the later one wins."""

    server: str | None = field(default=None, repr=False)  # its URL may hold a password
    namespace: str | None = None
    creds: Path | None = None
    embedded: bool = False
    login: Login = field(default_factory=Login)

    @staticmethod
    def of(
        ctx: typer.Context, server: str | None, namespace: str | None, creds: Path | None, embedded: bool
    ) -> Options:
        """Merge what the command was given with what stood before its name."""
        first = ctx.obj if isinstance(ctx.obj, Options) else Options()
        merged = Options(
            server=server or first.server,
            namespace=namespace or first.namespace,
            creds=creds or first.creds,
            embedded=embedded or first.embedded,
            login=first.login,
        )
        if merged.embedded and merged.server:
            raise typer.BadParameter("--embedded starts a server of its own; leave out --server")
        return merged

    def config(self) -> Config:
        """Settings from the environment, with ``--namespace`` above them.

        Raises:
            ConfigError: A setting is wrong.
        """
        config = Config.from_env()
        return config if self.namespace is None else msgspec.structs.replace(config, namespace=self.namespace)

    def urls(self) -> list[str]:
        """The servers to connect to."""
        text = self.server or os.environ.get("NATS_URL") or "nats://localhost:4222"
        return [url.strip() for url in text.split(",") if url.strip()]

    def connect_options(self) -> dict[str, Any]:
        """What goes on to the connection besides the servers; an embedded one asks nobody who they are.

        Raises:
            ConfigError: The credentials cannot be used.
        """
        return {} if self.embedded else self.login.options(self.creds)


def run(options: Options, work: Callable[[JobManager], Awaitable[int | None]]) -> None:
    """Connect, do the work, leave with its exit status (``None``: 0). Errors become one line and a status.

    Raises:
        typer.Exit: Always.
    """

    async def connected(servers: list[str], config: Config) -> int:
        async with natsjobs.connect(servers, config=config, **options.connect_options()) as jobs:
            return await work(jobs) or 0

    run_at(options, connected)


def run_at(options: Options, work: Callable[[list[str], Config], Coroutine[Any, Any, int]]) -> None:
    """Like ``run``, for work that connects by itself: it is told where, and with which settings.

    Raises:
        typer.Exit: Always.
    """

    def at() -> int:
        config = options.config()
        with embedded_server(options) as server:
            return run_async(work([server.url] if server else options.urls(), config))

    raise typer.Exit(guard(at))


def embedded_server(options: Options) -> AbstractContextManager[Running | None]:
    """The server of ``--embedded``, or nothing."""
    if not options.embedded:
        return nullcontext()
    from natsjobs import embedded

    return embedded.server()


def run_async(work: Coroutine[Any, Any, int]) -> int:
    """Like ``asyncio.run``, but Ctrl-C and SIGTERM cancel the work; the exit status then says so.

    What the work does to leave properly may take ``_GRACE`` seconds; with NATS away it would take minutes. A second
    signal leaves at once. What is left behind ends by itself: a job when its lease lapses, a process with its input.
    """
    stopped_by: list[signal.Signals] = []

    def leave() -> None:
        complain("left without waiting any longer; a job that ran here ends when its lease lapses")
        os._exit(_SHELL + stopped_by[0])

    async def supervised() -> int:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(number: signal.Signals) -> None:
            stopped_by.append(number)
            if len(stopped_by) > 1:
                leave()
            task.cancel()
            loop.call_later(_GRACE, leave)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        return await work

    try:
        return asyncio.run(supervised())
    except asyncio.CancelledError:
        if stopped_by:
            return _SHELL + stopped_by[0]
        raise


def guard(work: Callable[[], int]) -> int:
    """Run it; the exit status. A known error is one line on stderr, an unknown one too (``--debug``: a traceback)."""
    try:
        return work()
    except KeyboardInterrupt:
        return _SHELL + signal.SIGINT
    except Exception as exc:  # noqa: BLE001 - the outermost frame: everything becomes a line and a status
        cause = _single(exc)
        if isinstance(cause, BrokenPipeError):
            # `natsjobs tail … | head`: nobody reads on. Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _SHELL + signal.SIGPIPE
        known = isinstance(cause, NatsJobsError)
        complain(_in_shell_words(cause) if known else f"unexpected {type(cause).__name__}: {cause} (run with --debug)")
        _log.debug("where it came from", exc_info=exc)
        return status_of(cause)


def _in_shell_words(error: BaseException) -> str:
    """What happened and what to do next, for somebody who types commands and not Python."""
    if isinstance(error, JobNotFoundError):
        return f"no job {error.stream_id!r}: never created, deleted or expired; see `natsjobs ls`, or `tail --wait`"
    if isinstance(error, InvalidCursorError):
        return f"not a cursor: {error.cursor!r:.80}; give the one that `tail` printed, or leave out --after"
    if isinstance(error, JobRunningError):
        return f"job {error.job.stream_id!r} is running; leave out --reject to replace it, or abort it"
    return str(error)


def status_of(error: BaseException) -> int:
    """The exit status that an error means."""
    if isinstance(error, UnavailableError) and not isinstance(error, StreamFullError | PermissionDeniedError):
        return UNREACHABLE
    if isinstance(error, ConfigError | InvalidArgumentError | InvalidCursorError):
        return USAGE
    return FAILED


def _single(exc: BaseException) -> BaseException:
    """The first error inside groups: one line has room for one."""
    if not isinstance(exc, BaseExceptionGroup):
        return exc
    inside: tuple[BaseException, ...] = exc.exceptions  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return _single(inside[0])


def set_up_logging(*, debug: bool) -> None:
    """Warnings of the library as one line each, without tracebacks; everything, with them, when debugging."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s") if debug else _OneLine())
    if not debug:  # asyncio warns about every TLS connection that ends, and nobody can do anything about it
        handler.addFilter(lambda record: record.name != "asyncio" or record.levelno >= logging.ERROR)
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, handlers=[handler])


class _OneLine(logging.Formatter):
    """A log line for people: no name, no time, no traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return f"natsjobs: {record.levelname.lower()}: {record.getMessage()}"
