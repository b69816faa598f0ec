"""``natsjobs serve``: the gateway as a process of its own.

Owns who may reach it: without a way to tell users apart it listens on this machine only.
"""

from __future__ import annotations

import importlib
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from natsjobs import JobManager
from natsjobs.cli.options import Creds, Embedded, Namespace, Options, Server, run
from natsjobs.errors import ConfigError

_DEFAULT_HOST, _DEFAULT_PORT = "127.0.0.1", 8080


class Metrics(StrEnum):
    """Who gets /metrics."""

    AUTHORIZED = "authorized"
    OPEN = "open"
    OFF = "off"


Host: TypeAlias = Annotated[str, typer.Option("--host", metavar="H", help="Address to listen on.")]
Port: TypeAlias = Annotated[int, typer.Option("--port", metavar="P", min=0, max=65_535, help="0: a free one.")]
Tokens: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--tokens",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        readable=True,
        help="Lines of USER TOKEN; everybody may use their own jobs.",
    ),
]
Hook: TypeAlias = Annotated[
    str | None,
    typer.Option("--authorize", metavar="MODULE:NAME", help="Your hook: authorize(request, stream_id, action)."),
]
Origins: TypeAlias = Annotated[
    list[str] | None, typer.Option("--origin", metavar="URL", help="Pages of this origin may use it (CORS).")
]
Operators: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--operator", metavar="USER", help="A user of --tokens who may see and stop all jobs."),
]
Measures: TypeAlias = Annotated[
    Metrics,
    typer.Option("--metrics", help="Who gets /metrics: those whom the hook lets 'observe', everybody, or nobody."),
]


def serve(
    ctx: typer.Context,
    host: Host = _DEFAULT_HOST,
    port: Port = _DEFAULT_PORT,
    tokens: Tokens = None,
    authorize: Hook = None,
    origin: Origins = None,
    metrics: Measures = Metrics.AUTHORIZED,
    operator: Operators = None,
    server: Server = None,
    namespace: Namespace = None,
    creds: Creds = None,
    embedded: Embedded = False,
) -> None:
    """Serve jobs over HTTP.

    A live view at /, events as server-sent events at /streams/ID/events, the AI SDK at /api/chat. By default only for
    programs on this machine, which may then do everything; anywhere else --tokens or --authorize is needed.
    """
    try:
        from natsjobs.http import GatewayConfig, gateway
        from natsjobs.http.serving import is_loopback, listen
        from natsjobs.http.serving import serve as serve_until_cancelled
    except ModuleNotFoundError as error:
        raise typer.BadParameter(f"it needs {error.name}; run: pip install 'natsjobs[http]'") from error
    local = is_loopback(host)
    _check_access(host, tokens, authorize, operator or [], local=local)

    async def work(jobs: JobManager) -> None:
        config = GatewayConfig(origins=tuple(origin or ()), metrics=metrics.value)
        hook = _hook(jobs, tokens, authorize, config.origins, operator or [])
        listener = listen(host, port)
        shown = f"[{host}]" if ":" in host else host
        reach = "this machine only" if local else "reachable from other machines"
        rules = "with --tokens" if tokens else "with --authorize" if authorize else "no authorization"
        _say(f"serving on http://{shown}:{listener.getsockname()[1]} ({reach}, {rules})")
        app = gateway(jobs, authorize=hook, config=config)
        await serve_until_cancelled(app, listener, connections=config.connections + 500)

    run(Options.of(ctx, server, namespace, creds, embedded), work)


def _check_access(host: str, tokens: Path | None, authorize: str | None, operators: list[str], *, local: bool) -> None:
    if operators and tokens is None:
        raise typer.BadParameter("--operator names users of --tokens FILE; give that, too")
    if tokens is not None and authorize is not None:
        raise typer.BadParameter("give --tokens or --authorize, not both")
    if not local and tokens is None and authorize is None:
        raise typer.BadParameter(
            f"{host} can be reached from other machines, and anybody there could read and stop every job; "
            "give --tokens FILE or --authorize MODULE:NAME, or leave out --host"
        )


def _hook(
    jobs: JobManager, tokens: Path | None, authorize: str | None, origins: tuple[str, ...], operators: list[str]
) -> Any:
    from natsjobs.http import bearer, owners, this_machine

    if tokens is not None:
        known = _read(tokens)
        if unknown := sorted(set(operators) - set(known.values())):
            raise ConfigError("operator", f"{tokens} has no token for {', '.join(unknown)}")
        return owners(jobs, bearer(known), operators=operators)
    if authorize is not None:
        return _load(authorize)
    return this_machine(origins)


def _read(path: Path) -> dict[str, str]:
    """Users by token. A line that cannot be one is an error: a token that is silently missing locks somebody out."""
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or words[1] in found:
            raise ConfigError("tokens", f"{path}, line {number}: give a user and a token of its own")
        found[words[1]] = words[0]
    if not found:
        raise ConfigError("tokens", f"{path} names no user")
    return found


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        hook: Any = importlib.import_module(module)
        for part in attribute.split("."):
            hook = getattr(hook, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError("authorize", f"cannot load {name!r}: {error}; give MODULE:NAME") from error
    if not callable(hook):
        raise ConfigError("authorize", f"{name!r} is not callable")
    return hook


def _say(message: str) -> None:
    print(message, flush=True)
