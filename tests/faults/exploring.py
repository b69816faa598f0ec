"""Hypothesis as the fault suite uses it: one seed for everything, nothing kept between runs, no time limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st


def explore(seed: int, examples: int, strategy: st.SearchStrategy[Any], trial: Callable[[Any], None]) -> None:
    """Try examples; the smallest that fails is reported as a literal, and comes again with the same ``--seed``."""

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
        trial(example)

    attempt()
