"""The commands about jobs: ``ls``, ``show``, ``tail``, ``abort``. Each is its options and one coroutine.

They use the public names of the library and nothing below them, so they show what any replica would see.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any

import msgspec
import typer

from natsjobs import JobManager
from natsjobs.cli.options import FAILED, AsJson, Creds, Embedded, Namespace, Options, Server, run
from natsjobs.cli.output import age, complain, emit_json, emit_raw, print_fields, print_table, printable, span
from natsjobs.errors import JobNotFoundError, ResumeError
from natsjobs.models import AbortResult, EventType, Job, ResumeState, StreamEvent, to_dict

StreamId = Annotated[str, typer.Argument(metavar="ID", help="Stream id of the job.", show_default=False)]


def ls(
    ctx: typer.Context,
    user: Annotated[str | None, typer.Option("--user", metavar="U", help="Only jobs of this user.")] = None,
    status: Annotated[
        str | None, typer.Option("--status", metavar="S", help="Only running, complete, error or aborted jobs.")
    ] = None,
    as_json: AsJson = False,
    server: Server = None,
    namespace: Namespace = None,
    creds: Creds = None,
    embedded: Embedded = False,
) -> None:
    """List jobs, newest first.

    With --json one record per line.
    """

    async def work(jobs: JobManager) -> None:
        found = await jobs.list_jobs(user_id=user, status=status)
        if as_json:
            for job in found:
                emit_json(to_dict(job))
        elif found:
            now = time.time()
            rows = [
                [j.stream_id, j.user_id, _standing(j), age(j.created_at, now), age(j.completed_at, now)] for j in found
            ]
            print_table(["ID", "USER", "STATUS", "STARTED", "ENDED"], rows, shrink=(0, 1))
        else:
            print("no jobs", file=sys.stderr)

    run(Options.of(ctx, server, namespace, creds, embedded), work)


def show(
    ctx: typer.Context,
    stream_id: StreamId,
    as_json: AsJson = False,
    server: Server = None,
    namespace: Namespace = None,
    creds: Creds = None,
    embedded: Embedded = False,
) -> None:
    """Show one job.

    With --json its record, and the number of subscribers on all replicas.
    """

    async def work(jobs: JobManager) -> None:
        job = await jobs.get(stream_id)
        if job is None:
            raise JobNotFoundError(stream_id)
        subscribers = await jobs.count_subscribers(stream_id)
        if as_json:
            emit_json({**to_dict(job), "subscribers": subscribers})
            return
        try:
            state = await jobs.resume_state(stream_id)
        except ResumeError as exc:
            state = None
            complain(exc)
        print_fields(_fields(job, state, subscribers))

    run(Options.of(ctx, server, namespace, creds, embedded), work)


def _standing(job: Job) -> str:
    return f"{job.status.value} ({job.end_reason.value})" if job.end_reason else job.status.value


def _fields(job: Job, state: ResumeState | None, subscribers: int) -> list[tuple[str, object]]:
    now = time.time()
    until = job.completed_at / 1000 if job.completed_at else now
    fields: list[tuple[str, object]] = [
        ("stream id", job.stream_id),
        ("status", _standing(job)),
        ("user", job.user_id),
        ("tenant", job.tenant_id),
        ("conversation", job.conversation_id),
        ("generation", job.generation),
        ("owner", job.owner),
        ("started", age(job.created_at, now)),
        ("last active", age(job.last_active_at, now) if job.last_active_at else None),
        (
            "ended",
            f"{age(job.completed_at, now)}, after {span(until - job.created_at / 1000)}" if job.completed_at else None,
        ),
        ("error", job.error),
        ("subscribers", subscribers),
        ("model", job.model),
        ("endpoint", job.endpoint),
        ("sender", job.sender),
        ("prompt tokens", job.prompt_tokens),
        ("user message", job.user_message.text if job.user_message else None),
        ("final event", job.final_event),
        ("metadata", _json(job.metadata) if job.metadata is not None else None),
    ]
    if state is not None and state.generation == job.generation:
        parts = state.aggregated_content
        texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
        fields += [
            ("content", f"{len(parts)} parts, {sum(map(len, texts))} characters of text" if parts else None),
            ("unclaimed usage", f"{len(state.collected_usage)} entries" if state.collected_usage else None),
            ("cursor", state.cursor),
        ]
    return fields


def tail(
    ctx: typer.Context,
    stream_id: StreamId,
    after: Annotated[
        str | None, typer.Option("--after", metavar="CURSOR", help="Only events after this cursor.")
    ] = None,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0, help="Wait for a job that is not there yet.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print whole records: type, index, cursor, data.")] = False,
    server: Server = None,
    namespace: Namespace = None,
    creds: Creds = None,
    embedded: Embedded = False,
) -> None:
    """Print the events of a job, until it ends.

    All so far, then live, as JSON lines. Standard output gets the events and nothing else; how it ended, and the
    cursor to go on from, go to stderr. With --json the terminal record is a line too. Exit status 0 after done or
    aborted, 1 after error.
    """

    async def work(jobs: JobManager) -> int:
        async with jobs.subscribe(stream_id, after=after, wait=wait) as events:
            try:
                async for event in events:
                    if as_json:
                        emit_json(to_dict(event))
                    elif not event.is_terminal:
                        emit_raw(event.raw)
                    if event.is_terminal:
                        return _tell_end(event, quiet=as_json)
            finally:
                if not as_json and (cursor := events.cursor or after):
                    print(f"cursor: {cursor}", file=sys.stderr, flush=True)
        if not as_json:
            print("the generation had ended at this cursor", file=sys.stderr)
        return 0

    run(Options.of(ctx, server, namespace, creds, embedded), work)


def _tell_end(event: StreamEvent, *, quiet: bool) -> int:
    if not quiet:
        reason = f" ({event.end_reason.value})" if event.end_reason else ""
        detail = "" if event.data is None else f": {event.data if isinstance(event.data, str) else _json(event.data)}"
        print(printable(f"{event.type.value}{reason} after {event.index} events{detail}"), file=sys.stderr)
    return FAILED if event.type == EventType.ERROR else 0


def abort(
    ctx: typer.Context,
    stream_id: StreamId,
    generation: Annotated[
        str | None, typer.Option("--generation", metavar="G", help="Only if this generation is the newest.")
    ] = None,
    as_json: AsJson = False,
    server: Server = None,
    namespace: Namespace = None,
    creds: Creds = None,
    embedded: Embedded = False,
) -> None:
    """Stop a job, wherever it runs.

    The abort claims the usage recorded so far, so nobody else will get these entries: they are printed, one JSON
    object per line, to be billed from here.
    """

    async def work(jobs: JobManager) -> int:
        result = await jobs.abort(stream_id, generation=generation)
        if as_json:
            emit_json(to_dict(result))
        if not result.success:
            complain(_REFUSED.get(result.reason or "", f"not aborted: {result.reason}").format(repr(stream_id)))
            return FAILED
        if not as_json:
            _tell_abort(stream_id, result)
        return 0

    run(Options.of(ctx, server, namespace, creds, embedded), work)


_REFUSED = {
    "not_found": "no job {}: nothing to abort",
    "ended": "job {} has already ended: nothing was changed",
    "replaced": "job {} has a newer generation: nothing was changed; leave out --generation to abort that one",
}


def _tell_abort(stream_id: str, result: AbortResult) -> None:
    how = "the owner confirmed" if result.acknowledged else "the owner did not answer; it is fenced off"
    print_fields(
        [
            ("aborted", stream_id),
            ("generation", result.job_data.generation if result.job_data else None),
            ("acknowledged", f"{'yes' if result.acknowledged else 'no'} ({how})"),
            ("text", f"{len(result.text)} characters in {len(result.content)} parts"),
            ("usage", f"{len(result.collected_usage)} entries claimed"),
        ]
    )
    for entry in result.collected_usage:
        emit_json(to_dict(entry))


def _json(value: Any) -> str:
    return json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
