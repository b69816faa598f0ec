"""The public names are fixed: other programs are written against them."""

from __future__ import annotations

import importlib

import pytest

import natsjobs
from natsjobs import errors

RECORDS = """
    AbortResult ContentPart EndReason EventType InputTokenDetails Job JobChanges JobFields JobStatus ResumeState
    RunStep StreamEvent UsageMetadata UserMessage to_dict
"""
SETTINGS = "Config Limits Retention Timing"
INTERFACES = "EventReader EventTransport JobStore Registration Subscription"
IMPLEMENTATIONS = "MemoryEventTransport MemoryJobStore NatsEventTransport NatsJobStore"
MANAGER = "JobManager JobRun connect"
ERRORS = """
    ConfigError EventTooLargeError GenerationReplacedError HistoryLostError InvalidCursorError InvalidEventError
    InvalidIdError JobClosedError JobNotFoundError JobRunningError NatsJobsError NotOpenError ResumeError SpendError
    UnavailableError UnsupportedServerError
"""
OURS = "ConnectionLostError InvalidArgumentError PermissionDeniedError StreamFullError"
"""Errors beyond the fixed names: callers can catch them, so they are public too."""

NAMES = " ".join([RECORDS, SETTINGS, INTERFACES, IMPLEMENTATIONS, MANAGER, ERRORS, OURS]).split()

MODULES = {
    "natsjobs.usage": ["UsageTotals", "spend_collected_usage"],
    "natsjobs.content": ["ContentFold", "fold"],
    "natsjobs.embedded": ["server"],
    "natsjobs.memory": ["MemorySystem"],
    "natsjobs.http": [
        "Action",
        "Authorize",
        "Gateway",
        "GatewayConfig",
        "Only",
        "bearer",
        "encode_sse",
        "gateway",
        "named_user",
        "owners",
        "this_machine",
    ],
}


def test_all_is_the_sorted_list_of_public_names() -> None:
    """Nothing is missing, nothing slipped in, and every name is there."""
    assert natsjobs.__all__ == sorted(NAMES)
    for name in natsjobs.__all__:
        assert getattr(natsjobs, name) is not None


@pytest.mark.parametrize(("module", "names"), MODULES.items())
def test_public_modules_have_their_names(module: str, names: list[str]) -> None:
    """What the interface describes by module is there."""
    loaded = importlib.import_module(module)
    for name in names:
        assert hasattr(loaded, name), name


def test_every_error_is_public_and_has_one_root() -> None:
    """Whatever the package raises can be named by its callers, and ``except NatsJobsError`` catches all of it."""
    classes = {
        name: value for name, value in vars(errors).items() if isinstance(value, type) and name.endswith("Error")
    }
    assert classes.keys() <= set(NAMES)
    for value in classes.values():
        assert issubclass(value, natsjobs.NatsJobsError)


def test_the_drawn_error_tree_is_the_real_one() -> None:
    """The tree at the top of ``errors.py`` shows every class below its parent."""
    drawn: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if "Error" in line and (line.strip().startswith("NatsJobsError") or "──" in line):
            name = next(word for word in line.replace("─", " ").split() if word.endswith("Error"))
            drawn.append((line.index(name), name))
    assert sorted(name for _, name in drawn) == sorted(
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.NatsJobsError)
    )
    path: list[tuple[int, str]] = []
    for depth, name in drawn:
        while path and path[-1][0] >= depth:
            path.pop()
        if path:
            assert getattr(errors, path[-1][1]) in getattr(errors, name).__bases__
        path.append((depth, name))
