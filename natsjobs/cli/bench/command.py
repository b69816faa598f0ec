"""``natsjobs bench`` itself: which rows, how many rounds, and the order in which the contenders take turns."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from natsjobs.cli.bench import picture, report, servers
from natsjobs.cli.bench.catalog import WORKS, Row, Work
from natsjobs.cli.bench.report import Failed, Measured, Result
from natsjobs.cli.bench.rows import ROWS
from natsjobs.cli.bench.servers import BenchError
from natsjobs.cli.bench.stage import Contender, Figures, Stage
from natsjobs.cli.options import FAILED, guard, run_async
from natsjobs.cli.output import emit_json, print_table


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[ROW]...", help="Which, by the names below; default all.")
    ] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Rounds of everything; default 1 to 5.")] = None,
    scale: Annotated[float, typer.Option("--scale", min=0.001, max=1, help="A part of the work, to try it.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table for a README.")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Write a picture (SVG).")] = None,
    transcripts: Annotated[
        Path | None,
        typer.Option("--transcripts", metavar="DIR", exists=True, file_okay=False, help="Recorded streams (.jsonl)."),
    ] = None,
) -> None:
    """Measure this library and the same design on Redis, on the same work, in alternating rounds.

    Starts its own servers. Without redis-server, or without the libraries redis and hiredis, it measures natsjobs
    alone. Leave the machine alone meanwhile; what it is about to do, and how long that takes, is told first.
    """
    plan = Plan(scale, rounds, _recorded(transcripts))
    plan.choose(names or list(ROWS), explicit=bool(names))

    def show() -> None:
        results = [one for row in plan.rows if (one := Result(row, plan.measured, plan.failed)).is_there]
        if plot is not None:
            plot.write_text(picture.picture(results), encoding="utf-8")
        if as_json:
            emit_json(report.as_json(results, plan.measured, plan.failed))
        elif as_markdown:
            print(report.markdown(results), end="")
        else:
            print_table(report.HEADS, report.lines(results), shrink=(1,))
            print(report.where())

    async def work() -> int:
        try:
            await plan.carry_out()
        finally:  # also when it is stopped: what was measured so far took its time
            show()
        return FAILED if plan.failed else 0

    raise typer.Exit(guard(lambda: run_async(work())))


def _recorded(folder: Path | None) -> list[list[Any]]:
    """The events of recorded streams, as they come on the wire of an application."""
    if folder is None:
        return []
    return [
        [msgspec.json.decode(line) for line in file.read_bytes().splitlines() if line.strip()]
        for file in sorted(folder.glob("*.jsonl"))
    ]


def say(line: str) -> None:
    """To whoever waits."""
    print(line, file=sys.stderr, flush=True)


@dataclass
class Plan:
    """What is measured in this run: the rows, and for them every work with its contenders."""

    scale: float
    rounds: int | None
    transcripts: Sequence[Sequence[Any]]
    rows: list[Row] = field(default_factory=list[Row])
    works: dict[str, list[Contender]] = field(default_factory=dict[str, list[Contender]])
    measured: Measured = field(default_factory=dict[tuple[str, Contender], list[Figures]])
    failed: Failed = field(default_factory=dict[tuple[str, Contender], str])

    def choose(self, names: Sequence[str], *, explicit: bool) -> None:
        """Take rows by name, in the order of the table.

        Those that cannot be measured here are left out, and named when they were asked for.

        Raises:
            typer.BadParameter: There is no such row.
        """
        if unknown := [name for name in names if name not in ROWS]:
            raise typer.BadParameter(f"no row {unknown[0]!r}; there are: {', '.join(ROWS)}")
        missing = _missing()
        for row in (row for name, row in ROWS.items() if name in names):
            if WORKS[row.ours.work].transcripts and not self.transcripts:
                if explicit:
                    raise typer.BadParameter(f"{row.name} needs --transcripts DIR, a folder of recorded streams")
                continue
            if not self._possible(row.ours.contender, missing):
                continue
            self.rows.append(row)
            for source in filter(None, (row.ours, row.other)):
                contenders = self.works.setdefault(source.work, [])
                if source.contender not in contenders and self._possible(source.contender, missing):
                    contenders.append(source.contender)
        for what, why in missing.items():
            say(f"{what} is not here: {why}")

    @staticmethod
    def _possible(contender: Contender, missing: dict[str, str]) -> bool:
        return not (
            (contender.server == "redis" and "redis" in missing)
            or (contender.settings.get("uvloop") and "uvloop" in missing)
        )

    def rounds_of(self, work: Work) -> int:
        """How often it is measured."""
        return self.rounds or work.rounds

    @property
    def seconds(self) -> float:
        """About how long it takes."""
        return sum(
            self.rounds_of(WORKS[name]) * len(contenders) * (2 + WORKS[name].seconds * self.scale)
            for name, contenders in self.works.items()
        )

    async def carry_out(self) -> None:
        """Measure everything; the order of the contenders turns round with every round.

        Whoever loses something in a work, or breaks, has no figure of it and is not asked again: ``failed`` says how.
        The others go on.
        """
        busy = os.getloadavg()[0]
        if busy > 0.5:
            say(f"warning: this machine is busy (load {busy:.1f}): figures of time and latency will be too large")
        left = self.seconds
        say(f"{len(self.rows)} rows, {len(self.works)} works, about {left / 60:.0f} minutes")
        for name, contenders in self.works.items():
            work = WORKS[name]
            for number in range(self.rounds_of(work)):
                for contender in contenders if number % 2 == 0 else reversed(contenders):
                    left -= 2 + work.seconds * self.scale
                    if (name, contender) in self.failed:
                        continue
                    begin = time.monotonic()
                    said = await self._tried(work, contender)
                    took = f"({time.monotonic() - begin:.0f} s, {max(0.0, left) / 60:.0f} min left)"
                    say(f"{name} {number + 1}/{self.rounds_of(work)} {contender.name}: {said} {took}")

    async def _tried(self, work: Work, contender: Contender) -> str:
        """One round of one contender; what came of it, in words."""
        try:
            figures = await self._once(work, contender)
        except Exception as error:  # noqa: BLE001 - whatever broke, what the others have is kept
            said = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
            self.failed[work.name, contender] = said
            self.measured.pop((work.name, contender), None)
            return f"FAILED: {said}"
        self.measured.setdefault((work.name, contender), []).append(figures)
        return ", ".join(f"{column} {report.shown(value)}" for column, value in figures.items())

    async def _once(self, work: Work, contender: Contender) -> Figures:
        with servers.started(contender.server) as server:
            stage = Stage(contender, server, self.scale, self.transcripts)
            try:
                return await work.measure(stage)
            finally:
                await stage.close()


def _missing() -> dict[str, str]:
    found: dict[str, str] = {}
    if not servers.has_redis():
        found["redis"] = "natsjobs is measured alone (needs redis-server, and pip install redis hiredis)"
    if not servers.has_uvloop():
        found["uvloop"] = "its row is left out (pip install uvloop)"
    return found
