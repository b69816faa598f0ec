"""``natsjobs demo`` itself: where it runs, what is printed at the end, and what it leaves behind.

Owns the set-up (an embedded server, or a throw-away namespace on a given one) and that it is gone afterwards, unless
``--keep`` says otherwise. The exit status is the verdict: 0 only if every promise that was checked held.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from natsjobs.cli.demo import source
from natsjobs.cli.demo.ledger import Ledger
from natsjobs.cli.demo.play import BROWSERS, LEASE, RENEW, Play
from natsjobs.cli.demo.screen import shown_on
from natsjobs.cli.login import VARIABLES as LOGIN_VARIABLES
from natsjobs.cli.namespace import remove
from natsjobs.cli.options import FAILED, Creds, Embedded, Namespace, Options, Server, guard, run_async
from natsjobs.cli.output import emit_json, print_table, printable
from natsjobs.engine.subjects import Subjects
from natsjobs.jetstream.credentials import without_user

_KEPT_FOR = 3600.0


def demo(
    ctx: typer.Context,
    file: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE", help="Stream this text, or this .jsonl file with an event per line."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything for a look inside.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the verdict as JSON; the rest goes to stderr.")
    ] = False,
    server: Server = None,
    namespace: Namespace = None,
    creds: Creds = None,
    embedded: Embedded = False,
) -> None:
    """See the main job at work, and checked.

    Takes less than 30 seconds. A worker streams an answer to two browsers on two replicas. One replica is killed
    and its browser resumes on the other; a second answer is aborted from a replica that does not run it; then the
    worker is killed. What the worker wrote and what each browser got is compared event by event. Without --server
    it brings its own NATS server (NATS_URL is not looked at).
    """
    options = Options.of(ctx, server, namespace, creds, embedded)
    if options.namespace is not None:
        raise typer.BadParameter("the demo makes and removes a namespace of its own; leave out --namespace")
    try:
        events = source.load(file)
    except source.InputError as exc:
        raise typer.BadParameter(str(exc), param_hint="--input") from None
    raise typer.Exit(guard(lambda: _demo(options, events, file, keep=keep, as_json=as_json)))


def _demo(options: Options, events: list[Any], file: Path | None, *, keep: bool, as_json: bool) -> int:
    # NATS_URL is not enough to make the demo leave this machine: somebody has to say so for this command.
    own = options.server is None
    console = Console(stderr=as_json, highlight=False)
    # What the demo makes on somebody's server does not stay there, also when it fails or is interrupted.
    with ExitStack() as stack, ExitStack() as clean_up:
        if own:
            from natsjobs import embedded

            running = stack.enter_context(embedded.server())
            urls, namespace = [running.url], "demo"
        else:
            urls, namespace = options.urls(), f"demo-{secrets.token_hex(4)}"
            config = msgspec.structs.replace(options.config(), namespace=namespace)
            clean_up.callback(lambda: asyncio.run(remove(urls, config, **options.connect_options())))
        arguments = ["--input", str(file.absolute())] if file else []
        env = _environment(namespace, own=own, keep=keep)
        # By the environment and not as arguments: those can be seen by every user of the machine.
        env["NATS_URL"] = ",".join(urls)
        env |= {} if own else options.login.environment(options.creds)
        play = Play(arguments, env, events)
        begin = time.monotonic()
        interrupted = run_async(_performed(play, console))
        seconds = time.monotonic() - begin
        if not interrupted:
            _print_verdict(console, play.ledger, seconds)
            if as_json:
                emit_json(play.ledger.summary(seconds))
        if keep and not interrupted:
            clean_up.pop_all()
            _leave(console, without_user(urls[0]), namespace, own=own)
    return interrupted or (FAILED if play.ledger.complaints() else 0)


async def _performed(play: Play, console: Console) -> int:
    async with shown_on(console, play.scene):
        await play.perform()
    return 0


def _environment(namespace: str, *, own: bool, keep: bool) -> dict[str, str]:
    """The settings of the demo's processes; what is set for other servers does not fit an embedded one."""
    foreign = ("NATSJOBS_", *LOGIN_VARIABLES) if own else ()
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    env["NATSJOBS_NAMESPACE"] = namespace
    env["NATSJOBS_TIMING_LEASE"] = str(LEASE)
    env["NATSJOBS_TIMING_RENEW"] = str(RENEW)
    if keep:
        env["NATSJOBS_RETENTION_FINISHED"] = str(_KEPT_FOR)
    return env


def _print_verdict(console: Console, ledger: Ledger, seconds: float) -> None:
    console.print()
    rows: list[list[str]] = []
    for record in ledger.records.values():
        results = record.comparisons()
        got = [str(results[name].received) if name in results else "-" for name in BROWSERS]
        lost = sum(result.lost for result in results.values())
        doubled = sum(result.doubled for result in results.values())
        rows.append([record.title, str(len(record.emitted)), str(record.stored), *got, str(lost), str(doubled)])
    head = ["EVENTS", "SENT", "STORED", *(name.upper() for name in BROWSERS), "LOST", "DOUBLED"]
    print_table(head, rows, console=console)
    if any(record.end_type != "done" for record in ledger.records.values()):
        console.print("stored: acknowledged by then; an interrupted worker may have sent a few more", style="dim")
    console.print()
    times = [
        [
            m.name,
            "never" if m.seconds is None else f"{m.seconds:.3f} s",
            f"{m.limit:g} s",
            "ok" if m.holds else "TOO LATE",
        ]
        for m in ledger.measures
    ]
    if times:
        print_table(["TIMES", "TOOK", "LIMIT", ""], times, console=console)
        console.print()
    complaints = ledger.complaints()
    for complaint in complaints:
        console.print(f"FAILED  {printable(complaint)}", style="bold red", markup=False, soft_wrap=True)
    if not complaints:
        console.print(f"Everything held, event by event. {seconds:.1f} s.", style="bold green")


def _leave(console: Console, url: str, namespace: str, *, own: bool) -> None:
    """Say how to look inside; with a server of our own, wait until somebody has seen enough."""
    names = Subjects(namespace)
    nats = f"nats --server {url}"
    ours = f"natsjobs --server {url} --namespace {namespace}"
    lines = [
        f"{nats} stream subjects {names.events_stream}",
        f"{nats} stream view {names.events_stream}",
        f"{nats} kv ls {names.bucket}",
        f"{nats} kv get {names.bucket} job.demo-answer",
        f"{ours} ls",
        f"{ours} tail demo-answer",
    ]
    console.print("\nLook inside:")
    for line in lines:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    if not own:
        console.print("Remove it:")
        console.print(f"  {nats} stream rm -f {names.events_stream}", markup=False, soft_wrap=True)
        console.print(f"  {nats} stream rm -f {names.records_stream}", markup=False, soft_wrap=True)
        return
    console.print("The server runs until you press Ctrl-C; then it and its store are removed.")
    sys.stdout.flush()

    async def wait() -> int:
        await asyncio.Event().wait()
        return 0

    run_async(wait())
    console.print("stopped")
