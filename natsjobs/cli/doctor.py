"""``natsjobs doctor``: is everything as the library needs it, and what is to be done if it is not?

Owns how findings are printed, and the exit status: 0 (warnings among it are no problem), 1 problems, 2 it could not
look. ``checks`` holds the questions. Changes nothing, on the server or anywhere.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from natsjobs.cli.checks import Doctor, Finding
from natsjobs.cli.options import FAILED, USAGE, AsJson, Creds, Embedded, Namespace, Options, Server, run_at
from natsjobs.cli.output import complain, emit_json, printable
from natsjobs.config import Config
from natsjobs.errors import NatsJobsError
from natsjobs.jetstream import NatsLink


class Role(StrEnum):
    """What a user is for."""

    WORKER = "worker"
    GATEWAY = "gateway"


def doctor(
    ctx: typer.Context,
    as_json: AsJson = False,
    role: Annotated[Role | None, typer.Option("--role", help="This user must be able to do that.")] = None,
    server: Server = None,
    namespace: Namespace = None,
    creds: Creds = None,
    embedded: Embedded = False,
) -> None:
    """Check server, stream, bucket, permissions and owners, and say how to mend what is wrong.

    Exit status: 0, 1 (problems), 2 (it could not look). Changes nothing. It does not see everything: set
    ping_interval: 10s and ping_max: 2 on the servers, or a machine that vanishes is noticed after minutes.
    """
    options = Options.of(ctx, server, namespace, creds, embedded)

    async def work(servers: list[str], config: Config) -> int:
        try:
            link = NatsLink.dial(servers, config, **options.connect_options())
            async with link.visit() as inspection:
                examined = Doctor(link, inspection, config, role.value if role else None)
                findings = [finding async for finding in examined.findings()]
        except NatsJobsError as error:
            complain(error)
            return USAGE
        problems = sum(finding.level == "problem" for finding in findings)
        if as_json:
            status = "problems" if problems else "ok"
            emit_json({"namespace": config.namespace, "status": status, "checks": findings})
        else:
            _print(findings)
        return FAILED if problems else 0

    run_at(options, work)


def _print(findings: list[Finding]) -> None:
    for finding in findings:
        print(printable(f"{finding.level:<8} {finding.check:<12} {finding.found}"))
        if finding.fix:
            print(printable(f"{'':<21} → {finding.fix}"))
    names = {"problem": "problems", "warning": "warnings", "skipped": "skipped"}
    counts = [f"{sum(finding.level == level for finding in findings)} {name}" for level, name in names.items()]
    print(f"\n{', '.join(counts)}")
