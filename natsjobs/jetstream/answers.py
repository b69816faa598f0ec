"""What JetStream's API answers to a leader read and to a question about a stream, decoded.

Owns the form of these two answers alone; what they mean, and what follows from an error in one of them, is for whoever
asked. An answer that says neither what was asked nor an error is none of the API's: ``says_something``.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from natsjobs.jetstream.faults import ServerError


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


class Numbers(msgspec.Struct, frozen=True):
    """The state of a stream."""

    last_seq: int = 0
    bytes: int = 0
    subjects: dict[str, int] | None = None


class Limits(msgspec.Struct, frozen=True):
    """What is needed of its settings."""

    max_bytes: int = -1


class Info(msgspec.Struct, frozen=True):
    """The answer to a question about a stream; ``total`` and ``offset`` are of its subjects, which come in parts."""

    created: str = ""
    ts: str = ""
    total: int = 0
    offset: int = 0
    state: Numbers = Numbers()
    config: Limits = Limits()
    error: ServerError | None = None

    @property
    def says_something(self) -> bool:
        """Whether it holds what was asked for."""
        return bool(self.created)


T = TypeVar("T", Found, Info)

found_decoder = msgspec.json.Decoder(Found)
info_decoder = msgspec.json.Decoder(Info)
