"""The table of the fault suite: what was done to the system, and what its users saw of it.

Owns: the ``row`` fixture that a fault test counts into, the options ``--long`` and ``--seed``, and the table that is
printed when the session ends (rows travel with the test reports, so they survive pytest-xdist). A plugin of
``conftest.py``; it knows nothing of natsjobs.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

_PROPERTY = "fault-row"


@dataclass
class Row:
    """One line of the table. A test fills in what it measures; what stays ``None`` is printed as ``-``."""

    name: str
    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    """What was done, how often: ``{"SIGKILL stream leader": 12}``."""
    emitted: int | None = None
    acknowledged: int | None = None
    """Events whose writer heard that they are stored."""
    seen: int | None = None
    """Events that reached viewers, summed over viewers."""
    lost: int | None = None
    doubled: int | None = None
    reordered: int | None = None
    stall: float | None = None
    """Longest time a viewer or writer waited for the next event or acknowledgement, seconds."""
    detected: list[float] = field(default_factory=list)
    """From the fault until its victims' viewers knew, seconds."""
    notes: dict[str, Any] = field(default_factory=dict)
    """More figures, printed as ``key=value``."""

    def fault(self, what: str, times: int = 1) -> None:
        """Count a fault."""
        self.faults[what] += times

    def viewer(self, sent: Sequence[Hashable], seen: Sequence[Hashable]) -> None:
        """Count what one viewer got of what it should have got; the values of ``sent`` are all different."""
        place = {value: number for number, value in enumerate(sent)}
        times = Counter(seen)
        assert not times.keys() - place.keys(), f"never sent: {list(times.keys() - place.keys())[:5]}"
        self.seen = (self.seen or 0) + len(seen)
        self.lost = (self.lost or 0) + len(place.keys() - times.keys())
        self.doubled = (self.doubled or 0) + sum(count - 1 for count in times.values())
        places = [place[value] for value in dict.fromkeys(seen)]
        self.reordered = (self.reordered or 0) + sum(b < a for a, b in itertools.pairwise(places))

    def stalled(self, seconds: float) -> None:
        """Note a wait; the longest is kept."""
        self.stall = max(self.stall or 0.0, seconds)

    def whole(self) -> None:
        """Nothing lost, doubled or out of order, and somebody did look."""
        assert self.seen, "no viewer was counted"
        assert (self.lost, self.doubled, self.reordered) == (0, 0, 0), self


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this test's random choices; printed in the table, and given again with ``--seed``."""
    given = request.config.getoption("--seed")
    return int(given) if given is not None else random.SystemRandom().randrange(1_000_000)


@pytest.fixture
def row(request: pytest.FixtureRequest, seed: int) -> Iterator[Row]:
    """This test's line of the table; also when the test fails."""
    made = Row(request.node.name, seed)
    yield made
    request.node.user_properties.append((_PROPERTY, json.dumps(vars(made))))


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the long form was asked for (``--long``)."""
    return bool(request.config.getoption("--long"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Both options, for ``python -m pytest tests/faults --long --seed 7``."""
    group = parser.getgroup("faults")
    group.addoption("--long", action="store_true", help="run the long form of the fault tests")
    group.addoption("--seed", type=int, default=None, help="seed of the fault tests' random choices")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table, when there is one."""
    # A fixture's teardown runs after the call's report was made, so the rows come with the teardown reports.
    rows = [
        {**json.loads(text), "outcome": report.outcome}
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "teardown"
        for name, text in report.user_properties
        if name == _PROPERTY
    ]
    failed = {report.nodeid.rpartition("::")[2] for report in terminalreporter.stats.get("failed", [])}
    if rows:
        terminalreporter.section("faults")
        for line in _table(rows, failed):
            terminalreporter.write_line(line)


_COLUMNS = ("emitted", "acknowledged", "seen", "lost", "doubled", "reordered")


def _table(rows: Iterable[dict[str, Any]], failed: set[str]) -> Iterator[str]:
    heads = ("emitted", "acked", "seen", "lost", "doubled", "reordered", "stall s", "detected s", "seed")
    yield " | ".join(("what was done", *heads))
    for row in sorted(rows, key=lambda one: one["name"]):
        detected = row["detected"]
        found = f"{min(detected):.2f}-{max(detected):.2f} ({len(detected)})" if detected else "-"
        cells = ["-" if row[column] is None else str(row[column]) for column in _COLUMNS]
        stall = "-" if row["stall"] is None else f"{row['stall']:.2f}"
        done = ", ".join(f"{count}x {what}" for what, count in row["faults"].items())
        mark = " FAILED" if row["name"] in failed else ""
        yield f"{row['name']}{mark}: {done or '-'} | " + " | ".join((*cells, stall, found, str(row["seed"])))
        if row["notes"]:
            yield "    " + " ".join(f"{key}={value}" for key, value in row["notes"].items())
