"""The command line's table of contents: the typer application and its global options."""

from __future__ import annotations

from typing import Annotated

import typer

from natsjobs import __version__
from natsjobs.cli import doctor, jobs, namespace, pipe, serve
from natsjobs.cli.bench import command as bench_command
from natsjobs.cli.bench.explaining import explained
from natsjobs.cli.demo import command
from natsjobs.cli.login import InboxPrefix, Login, Nkey, Password, TlsCa, TlsCert, TlsKey, Token, User
from natsjobs.cli.options import Creds, Embedded, Namespace, Options, Server, set_up_logging

# Plain texts instead of boxes: errors stay one line in logs, and help reads the same on a pipe.
app = typer.Typer(rich_markup_mode=None, add_completion=True, pretty_exceptions_enable=False)


def _version(value: bool) -> None:
    if value:
        print(f"natsjobs {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def natsjobs(
    ctx: typer.Context,
    server: Server = None,
    namespace_: Namespace = None,
    creds: Creds = None,
    embedded: Embedded = False,
    user: User = None,
    password: Password = None,
    token: Token = None,
    nkey: Nkey = None,
    tlscert: TlsCert = None,
    tlskey: TlsKey = None,
    tlsca: TlsCa = None,
    inbox_prefix: InboxPrefix = None,
    debug: Annotated[bool, typer.Option("--debug", help="Log everything, with tracebacks, on stderr.")] = False,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """LLM answers and agent runs on NATS: list, follow, feed and abort them.

    Exit status: 0, 1 (not found, failed), 2 (usage), 3 (NATS not reachable).
    Every other setting is an environment variable, NATSJOBS_TIMING_LEASE for one.
    """
    set_up_logging(debug=debug)
    login = Login(user, password, token, nkey, tlscert, tlskey, tlsca, inbox_prefix)
    ctx.obj = Options(server, namespace_, creds, embedded, login)
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
        raise typer.Exit(2)


app.command("demo")(command.demo)
app.command("bench", epilog=explained())(bench_command.bench)
app.command("ls")(jobs.ls)
app.command("show")(jobs.show)
app.command("tail")(jobs.tail)
app.command("pipe")(pipe.pipe)
app.command("abort")(jobs.abort)
app.command("setup")(namespace.setup)
app.command("doctor")(doctor.doctor)
app.command("serve")(serve.serve)
