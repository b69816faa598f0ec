"""How long a connection has been failing, from what is told of its requests."""

from __future__ import annotations

import time

import pytest

from natsjobs.jetstream.failing import Failing

AFTER = 5.0


@pytest.fixture
def began() -> float:
    """When a connection was made."""
    return time.monotonic()


@pytest.fixture
def failing(began: float) -> Failing:
    """Nothing has been asked yet."""
    del began
    return Failing()


def test_what_was_asked_first_counts_whichever_fails_first(failing: Failing, began: float) -> None:
    """An append ends at its deadline; a read of a second later, that was refused before, does not hide it."""
    failing.wrong(began + 2, write=False)
    assert not failing.why(began + 5.5, AFTER)
    failing.wrong(began + 0.5, write=True)
    assert failing.why(began + 5.5, AFTER)


def test_a_slow_failure_says_nothing_of_the_time_before_the_last_answer(failing: Failing, began: float) -> None:
    """It counts from that answer on."""
    failing.well(began + 3, stored=False)
    failing.wrong(began + 1, write=False)
    assert not failing.why(began + 7.5, AFTER)
    assert failing.why(began + 8, AFTER)


def test_what_was_asked_of_another_server_is_not_held_against_this_one(failing: Failing, began: float) -> None:
    """A read that is repeated on a new connection began before it."""
    failing.wrong(began - 4, write=False)
    assert not failing.why(began + 4.5, AFTER)


def test_one_answer_is_enough(failing: Failing, began: float) -> None:
    """Requests that fail are many when a stream has no leader for a moment."""
    failing.wrong(began, write=False)
    failing.well(began + 4, stored=False)
    assert not failing.why(began + 6, AFTER)


def test_answers_are_not_enough_where_nothing_is_stored(failing: Failing, began: float) -> None:
    """A leader that was cut off answers reads; whoever stores something is with a true one."""
    failing.wrong(began, write=True)
    failing.well(began + 4, stored=False)
    assert not failing.why(began + 4.5, AFTER)
    failing.wrong(began + 4.5, write=False)
    assert "stored" in failing.why(began + 5.1, AFTER)
    failing.well(began + 5, stored=True)
    failing.wrong(began + 1, write=True)
    assert not failing.why(began + 9.5, AFTER)
    assert failing.why(began + 10, AFTER)
