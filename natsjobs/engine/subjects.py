"""Names on the wire, version 1, and the escaping of ids. Pure; the only place that spells a subject.

An id becomes exactly one subject token: ``[A-Za-z0-9_-]`` pass, every other byte of its UTF-8 form becomes ``=XX``.
Reversible, without collisions, and no id can act as a wildcard or add a token.
"""

from __future__ import annotations

import re
from functools import lru_cache

from natsjobs.errors import InvalidIdError

_PLAIN = re.compile(r"[A-Za-z0-9_-]+\Z")
_PLAIN_BYTES = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def check_id(value: object, field: str, limit: int = 256) -> str:
    """The id itself, if it can be one.

    Raises:
        InvalidIdError: Not a string, empty, lone surrogates, or more than ``limit`` bytes in UTF-8.
    """
    if not isinstance(value, str):
        raise InvalidIdError(field, f"must be a string, not {type(value).__name__}")
    if not value:
        raise InvalidIdError(field, "must not be empty")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidIdError(field, "has lone surrogates and no UTF-8 form") from None
    if size > limit:
        raise InvalidIdError(field, f"has {size} bytes in UTF-8, the limit is {limit}")
    return value


def escape(value: str) -> str:
    """An id as one subject token: ``alice@example.com`` is ``alice=40example=2Ecom``."""
    return value if _PLAIN.match(value) else _escaped(value)


@lru_cache(maxsize=8192)
def _escaped(value: str) -> str:
    """Remembered, for it takes long; of what passes as it is nothing is, among ten thousand ids a memory only costs."""
    return "".join(chr(b) if b in _PLAIN_BYTES else f"={b:02X}" for b in value.encode())


def unescape(token: str) -> str:
    """The id of a token.

    Raises:
        ValueError: The token was not written by ``escape``.
    """
    if "=" not in token:
        if not _PLAIN.match(token):
            raise ValueError(token)
        return token
    head, *rest = token.split("=")
    out = bytearray(head.encode())
    for part in rest:
        out.append(int(part[:2], 16))
        out += part[2:].encode()
    value = out.decode()
    if escape(value) != token:
        raise ValueError(token)
    return value


class Subjects:
    """Every name of one namespace."""

    def __init__(self, namespace: str) -> None:
        """``namespace`` is one subject token, checked by ``Config``."""
        self.namespace = namespace
        self.events_stream = f"{namespace}_events"
        self.bucket = f"{namespace}_jobs"
        self.records_stream = f"KV_{self.bucket}"
        self.events_prefix = f"{namespace}.events."
        self.live_prefix = f"{namespace}.live."
        self.record_prefix = f"$KV.{self.bucket}."
        self.changes_prefix = f"{namespace}.kv."

    # -- the event log ------------------------------------------------------------------------------------------

    def log(self, stream_id: str, generation: str) -> str:
        """Open record and events of a generation."""
        return f"{self.events_prefix}{escape(stream_id)}.{escape(generation)}.log"

    def end(self, stream_id: str, generation: str) -> str:
        """Terminal record of a generation."""
        return f"{self.events_prefix}{escape(stream_id)}.{escape(generation)}.end"

    def log_beside(self, end: str) -> str:
        """The log of the generation of which this is the ``end``."""
        return f"{end[:-3]}log"

    def scope(self, stream_id: str, generation: str) -> str:
        """The one filter that guards every append of a generation (B10: never another)."""
        return f"{self.events_prefix}{escape(stream_id)}.{escape(generation)}.*"

    def all_generations(self, stream_id: str) -> str:
        """Everything in the log of a stream id."""
        return f"{self.events_prefix}{escape(stream_id)}.>"

    @property
    def all_events(self) -> str:
        """Everything in the events stream."""
        return f"{self.events_prefix}>"

    def live(self, stream_id: str) -> str:
        """The live tail of a stream id, all generations."""
        return f"{self.live_prefix}{escape(stream_id)}.>"

    def live_scope(self, stream_id: str, generation: str) -> str:
        """The live tail of one generation."""
        return f"{self.live_prefix}{escape(stream_id)}.{escape(generation)}.*"

    def live_end(self, stream_id: str, generation: str) -> str:
        """The live terminal record of one generation."""
        return f"{self.live_prefix}{escape(stream_id)}.{escape(generation)}.end"

    def split_event(self, subject: str) -> tuple[str, str, str] | None:
        """(stream id, generation, ``"log"`` or ``"end"``) of an events or live subject; ``None``: not one of ours."""
        parts = subject.split(".")
        if len(parts) != 5 or parts[0] != self.namespace or parts[4] not in {"log", "end"}:
            return None
        try:
            return unescape(parts[2]), parts[3], parts[4]
        except ValueError:
            return None

    # -- the bucket ---------------------------------------------------------------------------------------------

    def record(self, kind: str, *ids: str) -> str:
        """The subject of a bucket key: ``record("active", user, stream_id)``. Every id is escaped."""
        return f"{self.record_prefix}{kind}.{'.'.join(escape(i) for i in ids)}"

    def records(self, kind: str, *ids: str) -> str:
        """The filter for all keys of a kind below these ids."""
        return ".".join([f"{self.record_prefix}{kind}", *(escape(i) for i in ids), ">"])

    def split_record(self, subject: str) -> tuple[str, ...] | None:
        """(kind, id, …) of a bucket subject or of its republished form; ``None``: not one of ours."""
        for prefix in (self.changes_prefix, self.record_prefix):
            if subject.startswith(prefix):
                rest = subject[len(prefix) :]
                kind, *tokens = rest.split(".")
                try:
                    return (kind, *(unescape(t) for t in tokens))
                except ValueError:
                    return None
        return None

    def changes(self, kind: str) -> str:
        """Where the bucket republishes changes of all keys of a kind."""
        return f"{self.changes_prefix}{kind}.>"

    # -- core subjects ------------------------------------------------------------------------------------------

    def abort(self, stream_id: str) -> str:
        """Abort signals, broadcast."""
        return f"{self.namespace}.abort.{escape(stream_id)}"

    def split_abort(self, subject: str) -> str | None:
        """The stream id of an abort subject; ``None``: not one of ours."""
        prefix = f"{self.namespace}.abort."
        try:
            return unescape(subject[len(prefix) :]) if subject.startswith(prefix) else None
        except ValueError:
            return None

    def presence(self, stream_id: str) -> str:
        """Requests for subscriber counts; interest only while a replica has some."""
        return f"{self.namespace}.presence.{escape(stream_id)}"

    def joined(self, stream_id: str) -> str:
        """Joins and leaves of subscribers."""
        return f"{self.namespace}.joined.{escape(stream_id)}"

    def wake(self, stream_id: str) -> str:
        """Look at the log now: a terminal record was stored whose acknowledgement was lost."""
        return f"{self.namespace}.wake.{escape(stream_id)}"

    def owner(self, replica_id: str) -> str:
        """Requests to one replica: are these runs yours, stop this one."""
        return f"{self.namespace}.owner.{escape(replica_id)}"
