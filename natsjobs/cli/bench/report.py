"""The table of a benchmark: medians, spread and ratios; for people, for a README, and as JSON."""

from __future__ import annotations

import os
import platform
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any, TypeAlias

from natsjobs import __version__, embedded
from natsjobs.cli.bench.catalog import COLUMNS, Row, Source
from natsjobs.cli.bench.stage import Contender, Figures

Measured: TypeAlias = dict[tuple[str, Contender], list[Figures]]
"""Figures of every round, by work and contender."""
Failed: TypeAlias = dict[tuple[str, Contender], str]
"""Who lost something or broke, in which work, and how; there are no figures of it then."""

_KEPT = 0.97
"""A side that reaches less of its pace than this has fallen behind."""


class Result:
    """One row with what was measured for it."""

    def __init__(self, row: Row, measured: Measured, failed: Failed | None = None) -> None:
        """``measured`` may lack the other side, or both when it was interrupted."""
        self.row = row
        self._measured = measured
        self._failed = failed or {}

    @property
    def sources(self) -> list[Source]:
        """Ours, and what it is compared with."""
        return [source for source in (self.row.ours, self.row.other) if source is not None]

    @property
    def is_there(self) -> bool:
        """Whether there is anything to show: a figure, or that somebody failed."""
        return any((s.work, s.contender) in self._failed or self.rounds(s) for s in self.sources)

    def rounds(self, source: Source | None, column: str | None = None) -> list[float]:
        """A figure of every round; empty when it was not measured."""
        if source is None:
            return []
        found = self._measured.get((source.work, source.contender), [])
        return [figures[column or source.column] for figures in found if (column or source.column) in figures]

    def median(self, source: Source | None, column: str | None = None) -> float | None:
        """Of the rounds."""
        found = self.rounds(source, column)
        return statistics.median(found) if found else None

    def spread(self, source: Source | None) -> float | None:
        """How far the rounds lie apart: half of (largest - smallest), by the median; ``None``: there is only one."""
        found = self.rounds(source)
        if len(found) < 2 or not statistics.median(found):
            return None
        return (max(found) - min(found)) / 2 / statistics.median(found)

    @property
    def ratio(self) -> float | None:
        """Ours to the other one."""
        ours, other = self.median(self.row.ours), self.median(self.row.other)
        return None if ours is None or not other else ours / other

    @property
    def reached(self) -> bool | None:
        """Whether it is what is to be reached; ``None``: nothing is to be, or nothing to compare with."""
        wanted = self.row.reach
        if wanted is None:
            return None
        value = self.median(self.row.ours) if wanted.unit else self.ratio
        if value is None:
            return None
        return value >= wanted.value if wanted.sign == "≥" else value <= wanted.value

    @property
    def remarks(self) -> str:
        """Who failed, and who did not keep the pace and how much of it was reached."""
        found = [f"{s.contender.name} failed" for s in self.sources if (s.work, s.contender) in self._failed]
        found += [
            f"{source.contender.name} reached {pace:.0%} of the pace"
            for source in self.sources
            if (pace := self.median(source, "pace")) is not None and pace < _KEPT
        ]
        return "; ".join(found)


HEADS = (
    "row",
    "work",
    "natsjobs",
    "",
    "other",
    "",
    "unit",
    "ratio",
    "reach",
    "",
    "CPU µs p/r/s",
    "other",
    "MB p/r",
    "other",
    "",
)

_LEGEND = """
Medians of the rounds, ± half of what lies between the smallest and the largest. The ratio is natsjobs to what it is
compared with: the peer is the same design on Redis. CPU is that of the producer and the reader together, for each
event. Events have 150 bytes. `natsjobs bench --help` explains every row.
""".strip()


def lines(results: Iterable[Result]) -> list[list[str]]:
    """The table for a terminal: one list of cells for each row."""
    return [
        [
            one.row.name,
            one.row.what,
            shown(one.median(one.row.ours)),
            _spread(one.spread(one.row.ours)),
            shown(one.median(one.row.other)),
            _spread(one.spread(one.row.other)),
            COLUMNS[one.row.ours.column].unit,
            ratio_of(one),
            reach_of(one.row),
            {True: "yes", False: "NO", None: "-"}[one.reached],
            _several(one, one.row.ours, ("producer", "reader", "server")),
            _several(one, one.row.other, ("producer", "reader", "server")),
            _several(one, one.row.ours, ("producer MB", "reader MB")),
            _several(one, one.row.other, ("producer MB", "reader MB")),
            one.remarks,
        ]
        for one in results
    ]


def markdown(results: Iterable[Result]) -> str:
    """The table for a README, in groups, and below it how and where it was measured."""
    heads = ("work", "natsjobs", "compared with", "ratio", "to reach", "reached", "rounds")
    table = [_cells(heads), _cells(("---",) * len(heads))]
    group = ""
    for one in results:
        if one.row.group != group:
            group = one.row.group
            table.append(_cells((f"**{group}**", *[""] * (len(heads) - 1))))
        unit = COLUMNS[one.row.ours.column].unit
        table.append(
            _cells(
                (
                    one.row.what + (f" ({one.remarks})" if one.remarks else ""),
                    _worded(one, one.row.ours, unit),
                    _worded(one, one.row.other, f"({other_name(one.row)})") if one.row.other else "-",
                    ratio_of(one),
                    reach_of(one.row),
                    {True: "yes", False: "**no**", None: "-"}[one.reached],
                    str(len(one.rounds(one.row.ours))),
                )
            )
        )
    return "\n".join([*table, "", _LEGEND, "", f"Measured on: {where()}."]) + "\n"


def _worded(one: Result, source: Source, behind: str) -> str:
    """A figure, its spread, and what stands behind it."""
    return " ".join(filter(None, (shown(one.median(source)), _spread(one.spread(source)), behind)))


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def other_name(row: Row) -> str:
    """What a row is compared with, in words."""
    if row.other is None:
        return ""
    if row.other.contender != row.ours.contender:
        return row.other.contender.name
    return row.other.work if row.other.work != row.ours.work else row.other.column


def ratio_of(one: Result) -> str:
    """The ratio, for people."""
    return "-" if one.ratio is None else f"{shown(one.ratio)}×"


def reach_of(row: Row) -> str:
    """What is to be reached, for people."""
    wanted = row.reach
    return "-" if wanted is None else f"{wanted.sign} {wanted.value:g}{' ' + wanted.unit if wanted.unit else '×'}"


def shown(value: float | None) -> str:
    """A figure with three digits that count."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _spread(value: float | None) -> str:
    return "" if value is None else f"±{value:.0%}"


def _several(one: Result, source: Source | None, columns: Sequence[str]) -> str:
    found = [one.median(source, column) for column in columns]
    return "/".join(shown(value) for value in found) if any(value is not None for value in found) else ""


def as_json(results: Sequence[Result], measured: Measured, failed: Failed) -> dict[str, Any]:
    """Everything, for programs; these keys stay.

    ``machine``: names and versions. ``columns``: for every figure ``unit``, ``better`` (``more`` or ``less``) and
    ``meaning``. ``rows``: ``name``, ``what``, ``ours`` and ``other`` (``null``, or ``work``, ``contender``, ``column``,
    ``median``, ``spread``, ``rounds``), ``ratio``, ``reach`` (``null``, or ``sign``, ``value``, ``unit``: ``""`` for
    the ratio), ``reached``. ``measured``: ``work``, ``contender``, and ``rounds``: every figure of every round.
    ``failed``: ``work``, ``contender``, and ``error``: who lost something or broke, of which there are no figures.
    What was not measured is ``null``, or an empty list of rounds.
    """
    return {
        "machine": machine(),
        "columns": {
            name: {"unit": one.unit, "better": one.better, "meaning": one.meaning} for name, one in COLUMNS.items()
        },
        "rows": [
            {
                "name": one.row.name,
                "what": one.row.what,
                "ours": _source(one, one.row.ours),
                "other": _source(one, one.row.other),
                "ratio": one.ratio,
                "reach": one.row.reach
                and {"sign": one.row.reach.sign, "value": one.row.reach.value, "unit": one.row.reach.unit},
                "reached": one.reached,
            }
            for one in results
        ],
        "measured": [
            {"work": work, "contender": contender.name, "rounds": rounds}
            for (work, contender), rounds in measured.items()
        ],
        "failed": [
            {"work": work, "contender": contender.name, "error": error} for (work, contender), error in failed.items()
        ],
    }


def _source(one: Result, source: Source | None) -> dict[str, Any] | None:
    if source is None:
        return None
    return {
        "work": source.work,
        "contender": source.contender.name,
        "column": source.column,
        "median": one.median(source),
        "spread": one.spread(source),
        "rounds": one.rounds(source),
    }


def machine() -> dict[str, str]:
    """Where it was measured, and with what."""
    versions = {"cores": str(os.cpu_count()), "cpu": _processor(), "system": platform.platform(terse=True)}
    versions |= {"python": platform.python_version(), "natsjobs": __version__}
    for name in ("nats-py", "redis", "hiredis", "uvloop"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    versions["nats-server"] = _version([str(embedded.find_binary()), "--version"])
    if (redis := shutil.which("redis-server")) is not None:
        versions["redis-server"] = _version([redis, "--version"])
    return versions


def where() -> str:
    """The same on one line."""
    return ", ".join(f"{name} {value}" for name, value in machine().items())


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - of the kernel
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _version(argv: list[str]) -> str:
    said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout  # noqa: S603 - a server that is measured
    found = re.search(r"\d+\.\d+\.\d+", said)
    return found.group() if found else "?"
