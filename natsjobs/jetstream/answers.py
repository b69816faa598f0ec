"""What JetStream's API answers to a leader read and to a question about a stream, decoded.

Owns the form of these two answers alone; what they mean, and what follows from an error in one of them, is for whoever
asked. An answer that says neither what was asked nor an error is none of the API's: ``says_something``.

A question about a stream is answered by its leader, and also, as if nothing were wrong, by every replica that knows of
no leader: a node that was cut off goes on for ever with what it held then. Such an answer is a refusal here, the one
that a leader read gets of the same node.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from natsjobs.jetstream.faults import NO_LEADER, ServerError


class Stored(msgspec.Struct, frozen=True):
    """A message, with its headers as they are stored."""

    subject: str
    seq: int
    time: str
    data: bytes = b""
    hdrs: bytes = b""


class Found(msgspec.Struct, frozen=True):
    """The answer to a leader read; that there is no message is an error of its own."""

    message: Stored | None = None
    error: ServerError | None = None

    @property
    def says_something(self) -> bool:
        """Whether it holds what was asked for."""
        return self.message is not None

    @property
    def refusal(self) -> ServerError | None:
        """Why it does not."""
        return self.error


class Numbers(msgspec.Struct, frozen=True):
    """The state of a stream."""

    last_seq: int = 0
    last_ts: str = ""
    bytes: int = 0
    subjects: dict[str, int] | None = None


class Limits(msgspec.Struct, frozen=True):
    """What is needed of its settings."""

    max_bytes: int = -1


class Group(msgspec.Struct, frozen=True):
    """The replicas of a stream, as one of them sees them; a stream with a single one names that."""

    leader: str = ""


class Info(msgspec.Struct, frozen=True):
    """The answer to a question about a stream; ``total`` and ``offset`` are of its subjects, which come in parts."""

    created: str = ""
    ts: str = ""
    total: int = 0
    offset: int = 0
    state: Numbers = Numbers()
    config: Limits = Limits()
    cluster: Group | None = None
    error: ServerError | None = None

    @property
    def says_something(self) -> bool:
        """Whether it holds what was asked for."""
        return bool(self.created)

    @property
    def refusal(self) -> ServerError | None:
        """Why it does not, or why that must not be believed."""
        if self.error is None and self.cluster is not None and not self.cluster.leader:
            return _LEADERLESS
        return self.error


_LEADERLESS = ServerError(503, NO_LEADER, "a replica answered that knows of no leader")

T = TypeVar("T", Found, Info)

found_decoder = msgspec.json.Decoder(Found)
info_decoder = msgspec.json.Decoder(Info)
