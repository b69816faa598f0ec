"""Every scenario of the behaviour to match is covered by a test or listed with the reason why not."""

from __future__ import annotations

import ast
from pathlib import Path

from scenarios import LEFT_OUT, PARTLY, TOTAL


def _marked() -> set[int]:
    """Numbers that a test names with the scenario marker."""
    numbers: set[int] = set()
    for path in Path(__file__).resolve().parents[1].rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.scenario":
                numbers |= {ast.literal_eval(argument) for argument in node.args}
    return numbers


def test_every_scenario_is_covered_or_left_out_for_a_reason():
    """None is forgotten, and none is both."""
    marked = _marked()
    every = set(range(1, TOTAL + 1))
    assert marked | set(LEFT_OUT) == every, f"nowhere: {sorted(every - marked - set(LEFT_OUT))}"
    assert not marked & set(LEFT_OUT)
    assert set(PARTLY) <= marked
    assert all(LEFT_OUT.values())
