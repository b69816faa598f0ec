"""The demo's verdict: it is worth something only if it finds every kind of broken promise."""

from __future__ import annotations

from typing import Any

import pytest

from natsjobs.cli.demo.ledger import Ledger, Measure, Record, canonical, compare

VALUES = [canonical({"n": n}) for n in range(6)]
GOOD = list(enumerate(VALUES))


def reports(browser: str, count: int, *, end: str = "done", reason: str | None = None) -> list[dict[str, Any]]:
    """What a viewer reports of a whole generation."""
    base = {"browser": browser, "generation": "g1"}
    events = [
        {"is": "event", "index": n, "type": "event", "reason": None, "value": {"n": n}, "cursor": f"c{n}", **base}
        for n in range(count)
    ]
    return [*events, {"is": "end", "index": count, "type": end, "reason": reason, "cursor": "cend", **base}]


def performed(count: int = 6) -> tuple[Ledger, Record, list[dict[str, Any]]]:
    """A ledger with one complete generation, its worker's side done, and what the one browser is going to report."""
    ledger = Ledger()
    record = ledger.open(Record("conv", "an answer", "done"))
    record.take({"is": "started", "generation": "g1"}, 0.0)
    for n in range(count):
        record.take({"is": "emit", "value": {"n": n}}, 0.0)
    record.take({"is": "stored", "count": count}, 0.0)
    ledger.finished = True
    return ledger, record, reports("browser 1", count)


def feed(record: Record, told: list[dict[str, Any]]) -> None:
    """Give the ledger all reports."""
    for report in told:
        record.take(report, 1.0)


def test_a_perfect_performance_has_nothing_to_complain_about() -> None:
    """Every event once, in order, and the right end: the verdict is good."""
    ledger, record, told = performed()
    feed(record, told)
    assert ledger.complaints() == []
    assert ledger.summary(1.0)["ok"] is True


def test_comparison_counts_each_kind_of_fault() -> None:
    """Lost, doubled, reordered and changed events are told apart."""
    swapped = [*GOOD[:2], GOOD[3], GOOD[2], *GOOD[4:]]
    changed = [*GOOD[:5], (5, canonical({"n": 6}))]
    assert compare(VALUES, GOOD, promised=6).holds
    assert compare(VALUES, [*GOOD[:2], *GOOD[3:]], promised=6).lost == 1
    assert compare(VALUES, GOOD[:-1], promised=6).lost == 1
    assert compare(VALUES, [*GOOD[:3], *GOOD[2:]], promised=6).doubled == 1
    assert compare(VALUES, swapped, promised=6).reordered == 1
    assert compare(VALUES, changed, promised=6).wrong == 1
    assert compare(VALUES, [*GOOD, (6, VALUES[0])], promised=6).wrong == 1
    assert not compare(VALUES, swapped, promised=6).holds


def test_equal_in_python_is_not_equal_in_json() -> None:
    """A value that changed its type on the way was changed."""
    assert len({canonical(value) for value in (1, 1.0, True, "1")}) == 4
    assert canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda told: told.pop(2), id="lost"),
        pytest.param(lambda told: told.pop(5), id="last one lost"),
        pytest.param(lambda told: told.insert(2, told[2]), id="doubled"),
        pytest.param(lambda told: told.insert(4, told.pop(1)), id="reordered"),
        pytest.param(lambda told: told[3].update(value={"n": 99}), id="changed"),
        pytest.param(lambda told: told[3].update(generation="g0"), id="of another generation"),
        pytest.param(lambda told: told.pop(), id="no end"),
        pytest.param(lambda told: told.append(told[-1]), id="two ends"),
        pytest.param(lambda told: told[-1].update(type="error"), id="wrong end"),
        pytest.param(lambda told: told[-1].update(reason="owner_lost"), id="wrong reason"),
        pytest.param(lambda told: told[-1].update(index=5), id="end with a wrong count"),
    ],
)
def test_a_broken_promise_is_found(spoil: Any) -> None:
    """Whatever is spoilt of a browser's reports, the verdict is bad."""
    ledger, record, told = performed()
    spoil(told)
    feed(record, told)
    assert ledger.complaints()
    assert ledger.summary(1.0)["ok"] is False


def test_an_event_that_was_acknowledged_counts_as_promised() -> None:
    """A dead worker's acknowledged event must arrive, even where the end record says there are fewer."""
    ledger, record, _ = performed()
    record.end_type, record.end_reason = "error", "owner_lost"
    feed(record, reports("browser 1", 4, end="error", reason="owner_lost"))
    assert any("2 events lost" in complaint for complaint in ledger.complaints())


def test_an_event_that_was_never_acknowledged_may_be_missing() -> None:
    """What a killed worker had not got acknowledged is no loss, if all browsers agree."""
    ledger, record, _ = performed()
    record.end_type, record.end_reason, record.stored = "error", "owner_lost", 3
    feed(record, reports("browser 1", 4, end="error", reason="owner_lost"))
    feed(record, reports("browser 2", 4, end="error", reason="owner_lost"))
    assert ledger.complaints() == []


def test_browsers_that_disagree_are_found() -> None:
    """Two viewers of one generation see one end."""
    ledger, record, _ = performed()
    record.end_type, record.end_reason, record.stored = "error", "owner_lost", 3
    feed(record, reports("browser 1", 4, end="error", reason="owner_lost"))
    feed(record, reports("browser 2", 5, end="error", reason="owner_lost"))
    assert "an answer: the browsers saw different ends" in ledger.complaints()


def test_being_too_late_is_found() -> None:
    """A time over its limit, or that never came, is a broken promise."""
    ledger, record, told = performed()
    feed(record, told)
    ledger.measures.append(Measure("crash", 2.9, 3.0))
    assert ledger.complaints() == []
    ledger.measures += [Measure("slow", 3.1, 3.0), Measure("never", None, 3.0)]
    assert len(ledger.complaints()) == 2


def test_a_demo_that_stopped_halfway_did_not_hold() -> None:
    """No complaint about what happened is no proof while the rest did not happen."""
    ledger, record, told = performed()
    feed(record, told)
    ledger.finished = False
    assert ledger.complaints()
