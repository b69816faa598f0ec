"""Hypothesis as the fault suite uses it: one seed for everything, nothing kept between runs, no time limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

FAILED = Path(__file__).resolve().parents[2] / ".cache" / "failed"
"""A file per seed takes the first example that failed, at once: a report may never come, or be cut off."""


def explore(seed: int, examples: int, strategy: st.SearchStrategy[Any], trial: Callable[[Any], None]) -> None:
    """Try examples; the smallest that fails is reported as a literal, and comes again with the same ``--seed``."""
    kept = FAILED / f"{seed}.txt"
    failed = False

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @hypothesis.given(strategy)
    def attempt(example: Any) -> None:
        nonlocal failed
        try:
            trial(example)
        except Exception as error:
            if not failed:
                _keep(kept, example, error)
            failed = True
            error.add_note(f"with --seed {seed}; the first example that failed is in {kept}")
            raise

    attempt()


def _keep(file: Path, example: Any, error: Exception) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as out:
        print(repr(example), repr(error), *getattr(error, "__notes__", ()), "", sep="\n", file=out)
