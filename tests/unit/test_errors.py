"""Errors say what happened and what to do next, and carry ids and positions as attributes."""

from __future__ import annotations

import copy
import pickle

import pytest

from natsjobs import errors
from natsjobs.errors import (
    ConfigError,
    ConnectionLostError,
    EventTooLargeError,
    GenerationReplacedError,
    HistoryLostError,
    InvalidArgumentError,
    InvalidCursorError,
    InvalidEventError,
    InvalidIdError,
    JobClosedError,
    JobNotFoundError,
    JobRunningError,
    NatsJobsError,
    NotOpenError,
    PermissionDeniedError,
    ResumeError,
    SpendError,
    StreamFullError,
    UnavailableError,
    UnsupportedServerError,
)
from natsjobs.models import EndReason, Job, JobStatus, UsageMetadata

JOB = Job(stream_id="s1", user_id="alice", status=JobStatus.RUNNING, created_at=1, generation="g1")
EXAMPLES = [
    NatsJobsError("text"),
    JobNotFoundError("s1"),
    JobRunningError(JOB),
    JobClosedError("s1", "g1"),
    JobClosedError("s1", "", JobStatus.ABORTED, EndReason.REPLACED),
    ResumeError("text"),
    InvalidCursorError({"not": "a cursor"}),
    HistoryLostError("s1", "expired"),
    GenerationReplacedError("s1", "g2"),
    InvalidArgumentError("compat", "unknown"),
    InvalidIdError("stream_id", "must not be empty"),
    InvalidEventError("NaN has no JSON form"),
    EventTooLargeError(9, 8),
    EventTooLargeError(9, 8, field="metadata"),
    ConfigError("timing.lease", "too short"),
    NotOpenError("use async with"),
    SpendError([(UsageMetadata(id="u1"), RuntimeError("no credit"))], {}),
    UnsupportedServerError("2.10 is too old"),
    UnavailableError("no answer", outcome_unknown=True),
    StreamFullError("full"),
    ConnectionLostError("expired"),
    PermissionDeniedError("appending", subject="natsjobs.events.s.g.log"),
]


def drawn_tree():
    """(class, parent) as the docstring of the module draws them."""
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        name = line.strip(" │├└─").split(" ")[0]
        if not name.endswith("Error"):
            continue
        depth = line.index(name)
        path = [one for one in path if one[0] < depth]
        yield name, path[-1][1] if path else "Exception", "(also ValueError)" in line
        path.append((depth, name))


def test_the_drawn_tree_is_the_real_one():
    """Every class is drawn once, below its parent, with the other base it has."""
    real = {
        (kind.__name__, kind.__bases__[0].__name__, ValueError in kind.__bases__)
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, NatsJobsError)
    }
    drawn = list(drawn_tree())
    assert set(drawn) == real
    assert len(drawn) == len(real)


def test_there_is_an_example_of_every_error():
    """So the tests below speak of all of them."""
    assert {type(error).__name__ for error in EXAMPLES} == {name for name, *_ in drawn_tree()}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_cross_processes(error):
    """Copied or pickled: the same class, text and attributes."""
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert {**vars(again), "failures": 0} == {**vars(error), "failures": 0}
    error.add_note("seen")
    assert pickle.loads(pickle.dumps(error)).__notes__ == error.__notes__


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_have_the_one_root_and_a_text(error):
    """``except NatsJobsError`` catches all; wrong input is a ValueError too."""
    assert isinstance(error, NatsJobsError)
    assert str(error)
    invalid = type(error).__name__.startswith("Invalid") or isinstance(error, ConfigError | EventTooLargeError)
    assert isinstance(error, ValueError) == invalid


def test_ids_and_positions_are_attributes():
    """Nobody parses text."""
    assert JobNotFoundError("s1").stream_id == "s1"
    assert JobRunningError(JOB).job is JOB
    closed = JobClosedError("s1", "g1", JobStatus.ERROR, EndReason.OWNER_LOST)
    assert (closed.stream_id, closed.generation) == ("s1", "g1")
    assert (closed.status, closed.end_reason) == ("error", "owner_lost")
    assert InvalidCursorError("x").cursor == "x"
    assert HistoryLostError("s1", "expired").stream_id == "s1"
    replaced = GenerationReplacedError("s1", "g2")
    assert (replaced.stream_id, replaced.generation) == ("s1", "g2")
    large = EventTooLargeError(9, 8, field="metadata")
    assert (large.size, large.limit, large.field) == (9, 8, "metadata")
    assert EventTooLargeError(9, 8).field == "event"
    assert ConfigError("timing.lease", "x").field == InvalidIdError("timing.lease", "x").field == "timing.lease"
    assert UnavailableError("x").outcome_unknown is False
    assert UnavailableError("x", outcome_unknown=True).outcome_unknown is True


@pytest.mark.parametrize(
    ("error", "texts"),
    [
        (JobNotFoundError("a b"), ["'a b'", "start()", "wait=seconds"]),
        (JobRunningError(JOB), ["'s1'", "g1", 'if_running="replace"']),
        (JobClosedError("s1", "g1", JobStatus.ABORTED, EndReason.REPLACED), ["g1", "ended as aborted (replaced)"]),
        (JobClosedError("s1", ""), ["the newest generation of job 's1' is over", "start a new generation"]),
        (InvalidCursorError("x" * 10_000), ["not a cursor: 'xxx", "StreamEvent.cursor", "None to read from the start"]),
        (HistoryLostError("s1", "it expired"), ["it expired", "subscribe again without a cursor"]),
        (GenerationReplacedError("s1", "g2"), ["g2", "follow=True"]),
        (EventTooLargeError(9, 8, field="metadata"), ["metadata has 9 bytes", "limit is 8", "split it"]),
        (SpendError([(1, RuntimeError("no credit"))], {}), ["1 usage entries", "no credit", "SpendError.failures"]),
    ],
)
def test_messages_say_what_happened_and_what_to_do_next(error, texts):
    """In a line of reasonable length."""
    for text in texts:
        assert text in str(error)
    assert len(str(error)) < 400
