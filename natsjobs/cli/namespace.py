"""``natsjobs setup``: the stream and the bucket of a namespace; and ``remove``, for namespaces made to be thrown away.

Owns nothing of their settings: ``natsjobs.jetstream`` creates and checks them whenever it connects. This shows what
is there then.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from natsjobs.cli.options import AsJson, Creds, Embedded, Namespace, Options, Server, guard, run_at
from natsjobs.cli.output import age, emit_json, print_fields, size, span
from natsjobs.config import Config
from natsjobs.engine.ports import NoReplyError, NoRespondersError, Stream
from natsjobs.engine.subjects import Subjects
from natsjobs.errors import UnavailableError
from natsjobs.jetstream import NatsLink
from natsjobs.jetstream.manifests import as_json as settings_as_json
from natsjobs.jetstream.manifests import as_nack
from natsjobs.jetstream.setup import api_prefix


class Form(StrEnum):
    """For whom ``--print`` writes."""

    json = "json"
    nack = "nack"


def setup(
    ctx: typer.Context,
    print_: Annotated[
        Form | None,
        typer.Option("--print", help="Print the settings and do nothing: for `nats stream add --config`, or for NACK."),
    ] = None,
    as_json: AsJson = False,
    server: Server = None,
    namespace: Namespace = None,
    creds: Creds = None,
    embedded: Embedded = False,
) -> None:
    """Create or check the stream and the bucket.

    Prints what is there. What is there is never changed; settings that will not do are named, each with the command
    that fixes it.
    """
    options = Options.of(ctx, server, namespace, creds, embedded)
    if print_ is not None:
        raise typer.Exit(guard(lambda: _print_settings(options.config(), print_)))

    async def work(servers: list[str], config: Config) -> int:
        async with opened(servers, config, **options.connect_options()) as link:
            found = {
                "namespace": config.namespace,
                "events": await _described(link.events, Subjects(config.namespace).events_stream),
                "jobs": await _described(link.records, Subjects(config.namespace).records_stream),
            }
        if as_json:
            emit_json(found)
        else:
            _print(found, config)
        return 0

    run_at(options, work)


def _print_settings(config: Config, form: Form) -> int:
    print(as_nack(config).rstrip() if form is Form.nack else settings_as_json(config))
    return 0


@asynccontextmanager
async def opened(servers: Sequence[str], config: Config, **options: Any) -> AsyncGenerator[NatsLink, None]:
    """A connection to a namespace, without the background work that jobs need."""
    link = NatsLink.dial(servers, config, **options)
    await link.open()
    try:
        yield link
    finally:
        await link.close()


async def remove(servers: Sequence[str], config: Config, **options: Any) -> None:
    """Delete the stream and the bucket with everything in them. For namespaces that nobody else uses.

    Raises:
        UnavailableError: The server did not answer.
    """
    names = Subjects(config.namespace)
    async with opened(servers, config, **options) as link:
        for stream in (names.events_stream, names.records_stream):
            subject = f"{api_prefix(config)}.STREAM.DELETE.{stream}"
            try:
                await link.bus.request(subject, b"", timeout=config.timing.request)
            except (NoReplyError, NoRespondersError):
                raise UnavailableError(
                    f"the stream {stream} was not removed: no answer; run: nats stream rm -f {stream}"
                ) from None


async def _described(stream: Stream, name: str) -> dict[str, Any]:
    state = await stream.state()
    return {
        "stream": name,
        "created": state.created,
        "bytes": state.bytes,
        "maxBytes": state.max_bytes,
        "lastSequence": state.last_seq,
    }


def _print(found: dict[str, Any], config: Config) -> None:
    names = Subjects(config.namespace)
    print_fields(
        [
            ("namespace", config.namespace),
            ("stream", f"{names.events_stream}: {_line(found['events'])}"),
            ("bucket", f"{names.bucket}: {_line(found['jobs'])}"),
            ("storage", f"{config.storage}, {config.replicas} {'replica' if config.replicas == 1 else 'replicas'}"),
            ("jobs stay", f"{span(config.retention.finished)} after their end"),
            ("events stay", f"{span(config.retention.log)} at most"),
        ]
    )


def _line(stream: dict[str, Any]) -> str:
    limit = f" of {size(stream['maxBytes'])}" if stream["maxBytes"] > 0 else ""
    made = age(int(datetime.fromisoformat(stream["created"]).timestamp() * 1000), time.time())
    return f"{size(stream['bytes'])}{limit}, {stream['lastSequence']} messages so far, made {made}"
