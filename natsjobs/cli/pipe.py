"""``natsjobs pipe``: every line of standard input becomes an event, as it arrives.

Owns what a line means. The job itself is a ``JobRun`` like any other: an abort interrupts it also while the input is
silent, and nothing is read any more once the job has ended.
"""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import Annotated

import msgspec
import typer

from natsjobs import JobManager, JobRun
from natsjobs.cli.lines import STDIN, lines
from natsjobs.cli.options import FAILED, Creds, Embedded, Namespace, Options, Server, run
from natsjobs.cli.output import complain, printable
from natsjobs.errors import EventTooLargeError, InvalidEventError


def pipe(
    ctx: typer.Context,
    stream_id: Annotated[str, typer.Argument(metavar="ID", help="Stream id of the job.", show_default=False)],
    user: Annotated[str, typer.Option("--user", metavar="U", help="Whose job it is.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Each line is a JSON value (else: a string).")] = False,
    reject: Annotated[bool, typer.Option("--reject", help="Fail if the job is running (else: replace it).")] = False,
    server: Server = None,
    namespace: Namespace = None,
    creds: Creds = None,
    embedded: Embedded = False,
) -> None:
    """Make a job of standard input.

    Every line becomes an event as it arrives; the end of the input completes the job. A line is one string, without
    its line end; with --json one JSON value, where blank lines are skipped and a line that is no JSON ends the job
    as an error. When somebody aborts the job, reading stops at once; exit status 1.
    """
    options = Options.of(ctx, server, namespace, creds, embedded)

    async def work(jobs: JobManager) -> int:
        limit = options.config().limits.event_bytes
        count = 0
        async with jobs.start(stream_id, user_id=user, if_running="reject" if reject else "replace") as run_:
            say(f"generation {run_.generation} of {stream_id!r} started")
            async with aclosing(lines(STDIN, limit)) as source:
                async for number, line in source:
                    if as_json and not line.strip():
                        continue
                    await _emit(run_, line, number, as_json=as_json)
                    count += 1
        if run_.aborted:
            complain(f"{stream_id!r} was aborted after {count} lines: reading stopped")
            return FAILED
        say(f"complete: {count} events")
        return 0

    run(options, work)


def say(message: str) -> None:
    """Progress, on stderr: standard output stays free."""
    print(printable(message), file=sys.stderr, flush=True)


async def _emit(run_: JobRun, line: bytes, number: int, *, as_json: bool) -> None:
    """Emit what a line means; what is wrong with it names the line."""
    try:
        if as_json:
            msgspec.json.decode(line)
            await run_.emit(msgspec.Raw(line.strip()))  # as it was written: no number changes its form
        else:
            await run_.emit(line.decode())
    except UnicodeDecodeError as exc:
        raise InvalidEventError(f"line {number} is not UTF-8 (byte {exc.start}); nothing of it was sent") from None
    except msgspec.DecodeError as exc:
        raise InvalidEventError(f"line {number} is not JSON: {exc}; leave out --json to send lines as text") from None
    except EventTooLargeError:
        raise
    except InvalidEventError as exc:
        raise InvalidEventError(f"line {number}: {exc}") from None
