"""What errors mean: nats-py's classes and the server's codes, translated in this one place.

Owns both tables. It does not decide whether to try again. Guarantees that what leaves ``translated`` is an error of
``natsjobs.errors`` or of the ports. Of the server's answers the ``err_code`` decides: HTTP-like codes and classes mix
up what must be told apart (a full stream and a missing leader are both "503").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager

import msgspec
import nats.errors as core
import nats.js.errors as js

from natsjobs.engine.ports import NoReplyError, NoRespondersError, StreamMissingError, WrongSequenceError
from natsjobs.errors import (
    ConfigError,
    EventTooLargeError,
    InvalidArgumentError,
    NatsJobsError,
    StreamFullError,
    UnavailableError,
    UnsupportedServerError,
)

NO_MESSAGE = 10037
NO_STREAM = 10059
NO_LEADER = 10008
OTHER_CONFIG = 10058
WRONG_SEQUENCE = frozenset({10071, 10164})
FULL = frozenset({10002, 10023, 10027, 10028, 10047, 10077})
"""Stream, account or disk is full; 10027: the account has all the streams that it may have."""
NO_JETSTREAM = frozenset({10035, 10039, 10076})
NO_TTL = frozenset({10165, 10166})
TOO_LARGE = 10054
NOT_POSSIBLE = frozenset({10052, 10065, 10074, 10113, 10122})
"""Settings this server refuses: a change, overlapping subjects, replicas without a cluster, ``max_bytes``."""
_ADVICE = {
    10113: "; set max_bytes (NATSJOBS_MAX_BYTES)",
    10122: "; lower max_bytes (NATSJOBS_MAX_BYTES)",
}

_TIMEOUT: tuple[type[Exception], ...] = (core.TimeoutError, core.FlushTimeoutError, core.DrainTimeoutError)
_AWAY: tuple[type[Exception], ...] = (
    core.StaleConnectionError,
    core.UnexpectedEOF,
    core.ConnectionClosedError,
    core.ConnectionDrainingError,
    core.ConnectionReconnectingError,
    core.NoServersError,
    core.OutboundBufferLimitError,
    core.ProtocolError,
    core.SlowConsumerError,
    core.BadSubscriptionError,
    core.ServerNotInPoolError,
    js.NoStreamResponseError,
    js.TooManyStalledMsgsError,
    js.ConsumerSequenceMismatchError,
    js.FetchTimeoutError,
)
_CONNECT: tuple[type[Exception], ...] = (
    core.AuthorizationError,
    core.InvalidUserCredentialsError,
    core.SecureConnRequiredError,
    core.SecureConnWantedError,
    core.SecureConnFailedError,
    core.JsonParseError,
)
_ARGUMENT: tuple[type[Exception], ...] = (
    core.BadSubjectError,
    core.BadHeaderError,
    core.BadTimeoutError,
    core.InvalidCallbackTypeError,
    core.NotJSMessageError,
    core.MsgAlreadyAckdError,
    js.InvalidKeyError,
    js.InvalidBucketNameError,
    js.InvalidObjectNameError,
    js.BadObjectMetaError,
    js.LinkIsABucketError,
    js.DigestMismatchError,
    js.ObjectAlreadyExists,
)
_NAMED = (js.KeyWrongLastSequenceError, js.BucketNotFoundError)
_TABLE: tuple[tuple[tuple[type[Exception], ...], Callable[[str], Exception]], ...] = (
    ((core.NoRespondersError,), NoRespondersError),
    ((core.MaxPayloadError,), lambda _: EventTooLargeError(0, 0, field="message")),
    (
        (js.KeyValueLimitMarkerTTLNotSupportedError,),
        lambda text: UnsupportedServerError(f"{text}; upgrade nats-server"),
    ),
    ((js.KeyWrongLastSequenceError,), lambda _: WrongSequenceError(None)),
    ((js.BucketNotFoundError,), StreamMissingError),
    (_CONNECT, lambda text: UnavailableError(f"{text}; check the address, the credentials and the TLS settings")),
    (_ARGUMENT, lambda text: InvalidArgumentError("nats", text)),
    (_AWAY, UnavailableError),
    (_TIMEOUT, lambda text: UnavailableError(text, outcome_unknown=True)),
)
_LAST = re.compile(r"(\d+)\s*\Z")


class ServerError(msgspec.Struct, frozen=True):
    """The ``error`` of an answer of JetStream."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class RequestFailedError(Exception):
    """A request got no answer; the ports say it in their own words. It does not leave this package.

    Attributes:
        sent: It may have reached somebody.
        denied: A permission is missing; the text names it.
    """

    def __init__(self, why: str, *, sent: bool, denied: bool = False) -> None:
        super().__init__(why)
        self.sent = sent
        self.denied = denied


def of_server(error: ServerError, doing: str) -> Exception:
    """The exception for an error answer. ``doing`` begins its text: what was tried."""
    code, text = error.err_code, f"{doing}: {error.description} (error {error.err_code or error.code})"
    if code in WRONG_SEQUENCE:
        found = _LAST.search(error.description) if code != 10164 else None  # the one without a number
        return WrongSequenceError(int(found[1]) if found else None)
    if code == NO_STREAM:
        return StreamMissingError(text)
    if code in FULL:
        return StreamFullError(f"{text}; raise the limit of the stream or the account, or shorten the retention")
    if code == TOO_LARGE:
        return UnsupportedServerError(f"{text}; remove max_msg_size from the stream's settings")
    if code in NO_JETSTREAM:
        # Also what a server says while it starts, and after its disk was full: it may pass.
        return UnavailableError(f"{text}; enable JetStream for this account; if it was on, look at the server's disk")
    if code in NO_TTL:
        return UnsupportedServerError(f"{text}; the stream needs allow_msg_ttl, which can be switched on")
    if code in NOT_POSSIBLE or code == OTHER_CONFIG:
        return UnsupportedServerError(f"{text}{_ADVICE.get(code, '')}")
    # Everything else: no leader yet, overloaded, shutting down. Nothing was done, and it may pass.
    return UnavailableError(text)


def of_nats(error: Exception, doing: str) -> Exception:
    """The exception for one that nats-py (or the socket below it) raised."""
    text = f"{doing}: {error or type(error).__name__}"
    if isinstance(error, js.APIError) and not isinstance(error, _NAMED):
        code, err_code, description = (vars(error).get(name) for name in ("code", "err_code", "description"))
        return of_server(ServerError(code or 0, err_code or 0, description or str(error)), doing)
    for kinds, make in _TABLE:
        if isinstance(error, kinds):
            return make(text)
    return UnavailableError(text, outcome_unknown=True)


def is_mapped(kind: type[Exception]) -> bool:
    """Whether ``of_nats`` knows this class by name, and not only as some error of nats-py."""
    return issubclass(kind, (js.APIError, *(one for kinds, _ in _TABLE for one in kinds))) or kind in {
        core.Error,
        js.Error,
    }


@contextmanager
def translated(doing: str) -> Generator[None, None, None]:
    """Around every call into nats-py: what it raises leaves as an error of ours.

    Raises:
        UnavailableError: The connection is away or was refused, or something took too long.
        InvalidArgumentError: A subject or a header that nats-py refuses.
        ConfigError: An option that nats-py refuses.
    """
    try:
        yield
    except (NatsJobsError, WrongSequenceError, NoRespondersError, NoReplyError):
        raise
    except (core.Error, OSError, TimeoutError) as error:
        raise of_nats(error, doing) from error
    except (TypeError, ValueError, ImportError, AssertionError) as error:
        raise ConfigError("options", f"{doing}: {error}") from error
