"""What the benchmark makes of its figures: medians, ratios, what is reached, the table and the picture."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from xml.etree import ElementTree as ET

import msgspec
import pytest

from natsjobs.cli.bench import picture, report
from natsjobs.cli.bench.catalog import COLUMNS, WORKS, Reach, Row, Source
from natsjobs.cli.bench.producing import filling
from natsjobs.cli.bench.report import Failed, Measured, Result
from natsjobs.cli.bench.rows import ROWS
from natsjobs.cli.bench.sides import chunks, quantile
from natsjobs.cli.bench.stage import OURS, PEER

FASTER = Row("r", "a row", Source("w", OURS, "events/s"), Source("w", PEER, "events/s"), Reach("≥", 2.0))
CHEAPER = Row("r", "a <row> & more", Source("w", OURS, "cpu"), Source("w", PEER, "cpu"), Reach("≤", 0.45))
SMALL = Row("r", "a <row> & more", Source("w", OURS, "kB"), None, Reach("≤", 20.0, "kB"))


def measured(column: str, ours: list[float], peer: list[float]) -> Measured:
    """Rounds of both sides."""
    return {("w", OURS): [{column: one} for one in ours], ("w", PEER): [{column: one} for one in peer]}


def test_a_ratio_is_that_of_the_medians_of_all_rounds():
    """One slow round changes nothing."""
    one = Result(FASTER, measured("events/s", [30, 1, 20], [10, 11, 2]))
    assert (one.ratio, one.reached) == (2.0, True)
    assert one.spread(FASTER.ours) == pytest.approx(29 / 2 / 20)
    assert Result(FASTER, measured("events/s", [30], [10])).spread(FASTER.ours) is None


@pytest.mark.parametrize(
    ("row", "column", "ours", "peer", "reached"),
    [
        (FASTER, "events/s", 19.9, 10.0, False),
        (FASTER, "events/s", 20.0, 10.0, True),
        (CHEAPER, "cpu", 4.5, 10.0, True),
        (CHEAPER, "cpu", 4.6, 10.0, False),
        (SMALL, "kB", 20.1, 1.0, False),
        (SMALL, "kB", 19.0, 1.0, True),
    ],
)
def test_what_is_to_be_reached_is_compared_as_it_says(row, column, ours, peer, reached):
    """At least or at most, of the ratio, or of our own figure when there is a unit."""
    assert Result(row, measured(column, [ours], [peer])).reached is reached


def test_without_the_other_side_nothing_is_claimed():
    """No ratio, nothing reached; an own figure still is."""
    alone: Measured = {("w", OURS): [{"events/s": 5.0, "kB": 3.0}]}
    assert (Result(FASTER, alone).ratio, Result(FASTER, alone).reached) == (None, None)
    assert Result(SMALL, alone).reached is True


def test_who_does_not_keep_the_pace_is_named():
    """With the part of it that was reached."""
    slow: Measured = {
        ("w", OURS): [{"cpu": 1.0, "pace": 0.99}],
        ("w", PEER): [{"cpu": 1.0, "pace": 0.2}],
    }
    assert Result(CHEAPER, slow).remarks == "peer reached 20% of the pace"
    assert "peer reached 20% of the pace" in report.markdown([Result(CHEAPER, slow)])
    assert "peer reached 20% of the pace" in report.lines([Result(CHEAPER, slow)])[0]


def test_the_table_has_as_many_cells_as_heads():
    """For a row with everything, and for one with nothing."""
    results = [Result(FASTER, measured("events/s", [4], [2])), Result(SMALL, {})]
    assert {len(cells) for cells in report.lines(results)} == {len(report.HEADS)}
    lines = report.markdown(results).splitlines()
    assert len({line.count("|") for line in lines[:4]}) == 1


def test_the_table_of_a_readme_is_in_groups_and_says_how_and_where_it_was_measured():
    """A line above each group; figures with their spread; rounds, machine and versions, and no date."""
    rows = [replace(FASTER, group="Logs | more"), replace(FASTER, group="Logs | more"), replace(CHEAPER, group="Pace")]
    said = report.markdown([Result(row, measured(row.ours.column, [4, 6, 5], [2])) for row in rows])
    assert said.count("| **Logs &#124; more** |") == said.count("| **Pace** |") == 1
    assert "| a row | 5 ±20% events/s | 2 (peer) | 2.5\u00d7 | ≥ 2\u00d7 | yes | 3 |" in said
    assert "| a <row> & more | 5 ±20% µs/event | 2 (peer) | 2.5\u00d7 | ≤ 0.45\u00d7 | **no** | 3 |" in said
    end = said.splitlines()[-1]
    assert re.fullmatch(r"Measured on: cores \d+, cpu .+, python .+, natsjobs .+, nats-py .+, nats-server .+", end)
    assert str(datetime.now(UTC).year) not in said


def test_who_failed_is_named_and_has_no_figure():
    """In the tables and in JSON; a row of which nothing is known is none."""
    failed: Failed = {("w", PEER): "event 4 came in place of 3"}
    one = Result(FASTER, {("w", OURS): [{"events/s": 3.0}]}, failed)
    assert (one.ratio, one.reached, one.remarks) == (None, None, "peer failed")
    assert "peer failed" in report.markdown([one])
    assert report.as_json([one], {}, failed)["failed"] == [
        {"work": "w", "contender": "peer", "error": "event 4 came in place of 3"}
    ]
    assert Result(FASTER, {}, failed).is_there
    assert not Result(FASTER, {}).is_there


def test_the_picture_is_well_formed_and_says_who_is_ahead():
    """Names are escaped; a row whose own figure counts is no bar."""
    results = [
        Result(FASTER, measured("events/s", [40], [10])),
        Result(CHEAPER, measured("cpu", [20], [10])),
        Result(SMALL, measured("kB", [20], [10])),
    ]
    root = ET.fromstring(picture.picture(results))
    bars = [one.get("class") for one in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert bars == ["page", "ahead", "behind"]
    assert {"4\u00d7", "0.5\u00d7"} <= {one.text for one in root.iter("{http://www.w3.org/2000/svg}text")}
    ET.fromstring(picture.picture([]))


def test_a_quantile_is_a_value_that_was_measured():
    """The smallest that is not exceeded by at least that part."""
    values = list(range(1, 101))
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1.0)) == (50, 99, 100)
    assert (quantile([7], 0.99), quantile([], 0.5)) == (7, 0.0)
    assert chunks([1, 2, 3], 2) == [[1, 2], [3]]


def test_an_event_has_the_size_that_is_said():
    """Encoded as both sides store it, give or take a digit of its number."""
    event = {"t": 123_456_789_012_345, "n": 123, "x": filling(150)}
    assert len(msgspec.json.encode(event)) == 150


def test_every_row_names_works_and_figures_that_exist_and_every_work_has_a_row():
    """So that nothing is measured in vain."""
    used = set()
    for row in ROWS.values():
        for source in filter(None, (row.ours, row.other)):
            assert source.work in WORKS
            assert source.column in COLUMNS
            used.add(source.work)
    assert used == set(WORKS)
