"""Error translation: every class of nats-py and every code that matters has a meaning of ours."""

from __future__ import annotations

import inspect

import nats.errors
import nats.js.errors
import pytest

from natsjobs.engine.ports import StreamMissingError, WrongSequenceError
from natsjobs.errors import ConfigError, NatsJobsError, StreamFullError, UnavailableError, UnsupportedServerError
from natsjobs.jetstream.faults import ServerError, is_mapped, of_nats, of_server, translated

CLASSES = {
    kind
    for module in (nats.errors, nats.js.errors)
    for _, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, Exception) and kind.__module__.startswith("nats.")
}
PORT_ERRORS = ("WrongSequenceError", "NoRespondersError", "StreamMissingError")


@pytest.mark.parametrize("kind", sorted(CLASSES, key=lambda kind: (kind.__module__, kind.__name__)))
def test_every_class_of_nats_py_is_mapped(kind: type[Exception]) -> None:
    """A class that a new nats-py brings fails here until somebody says what it means."""
    assert is_mapped(kind)
    meant = of_nats(_instance(kind), "testing")
    assert isinstance(meant, NatsJobsError) or type(meant).__name__ in PORT_ERRORS


def _instance(kind: type[Exception]) -> Exception:
    """One, whatever its constructor wants; numbers, so that those that compute with them can be shown."""
    for count in range(5):
        try:
            error = kind(*([1] * count))
            str(error)
        except (TypeError, AttributeError):
            continue
        return error
    raise AssertionError(kind)


def test_an_unknown_error_of_nats_py_is_seen_by_the_enumeration() -> None:
    """The test above can fail."""
    assert not is_mapped(type("BrandNewError", (nats.errors.Error,), {}))


@pytest.mark.parametrize(
    ("code", "err_code", "description", "meant"),
    [
        (400, 10071, "wrong last sequence: 17", WrongSequenceError),
        (400, 10164, "wrong last sequence", WrongSequenceError),
        (503, 10077, "maximum bytes exceeded", StreamFullError),
        (500, 10047, "insufficient storage resources available", StreamFullError),
        (400, 10002, "resource limits exceeded for account", StreamFullError),
        (404, 10059, "stream not found", StreamMissingError),
        (503, 10008, "JetStream system temporarily unavailable", UnavailableError),
        (400, 10027, "maximum number of streams reached", StreamFullError),
        (503, 10039, "JetStream not enabled for account", UnavailableError),
        (503, 10076, "JetStream not enabled", UnavailableError),
        (400, 10113, "account requires a stream config to have max bytes set", UnsupportedServerError),
        (400, 10122, "stream max bytes exceeds account limit max stream bytes", UnsupportedServerError),
        (400, 10166, "per-message ttl is disabled", UnsupportedServerError),
        (500, 10074, "replicas > 1 not supported in non-clustered mode", UnsupportedServerError),
        (429, 10167, "rate limit", UnavailableError),
        (503, 0, "", UnavailableError),
    ],
)
def test_the_err_code_decides(code: int, err_code: int, description: str, meant: type[Exception]) -> None:
    """Not the HTTP-like code: 503 is a full stream, a missing leader, or JetStream switched off."""
    error = of_server(ServerError(code, err_code, description), "appending")
    assert type(error) is meant
    if isinstance(error, WrongSequenceError):
        assert error.last == (17 if err_code == 10071 else None)
    if isinstance(error, UnavailableError):
        assert not error.outcome_unknown


def test_what_is_ours_passes_and_the_rest_is_translated() -> None:
    """No error of nats-py leaves the context manager."""
    with pytest.raises(StreamMissingError), translated("testing"):
        raise StreamMissingError("there is no stream")
    with pytest.raises(UnavailableError, match="testing: nats: connection closed"), translated("testing"):
        raise nats.errors.ConnectionClosedError
    with pytest.raises(UnavailableError), translated("testing"):
        raise ConnectionRefusedError
    with pytest.raises(ConfigError), translated("testing"):
        raise TypeError("unexpected keyword")
