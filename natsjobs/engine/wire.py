"""Bodies and cursors, version 1. Pure: bytes in, values out; the only place that spells a body.

A message in a generation's log is one JSON object whose ``type`` is one of:

==================  =======  =============================================================================
type                subject  means
==================  =======  =============================================================================
``open``            .log     the first message; nothing is ever appended to a log that has none (A6)
``events``          .log     one or more events, the first has ``index``
``part``            .log     one piece of an event above ``max_payload``; ``part`` is [k, n]
``cleared``         .log     tombstone of a log that goes on at ``index``
``gone``            both     tombstone of a log that is over
``final``           .end     one piece of a large final event, directly before its terminal record
``done`` …          .end     ``done``, ``error`` or ``aborted``: the terminal record; ``index`` counts the events
==================  =======  =============================================================================

Every message names its ``writer``, a random token per appender, so that a writer whose acknowledgement was lost
recognises its own message (A5). Types that this version does not know are kept: their index counts (C5).
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from natsjobs.engine import garbage
from natsjobs.errors import EventTooLargeError, InvalidCursorError, InvalidEventError
from natsjobs.models import EndReason, EventType, JobStatus

TERMINAL: Final = frozenset({"done", "error", "aborted"})
STATUS_OF: Final = {"done": JobStatus.COMPLETE, "error": JobStatus.ERROR, "aborted": JobStatus.ABORTED}
KIND_OF: Final = {status.value: kind for kind, status in STATUS_OF.items()}

UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding bytes may raise that somebody else sent; the last for JSON that is nested too deeply."""

_BASE32 = "0123456789abcdefghijklmnopqrstuv"
_ANY_BASE32: Final = (_BASE32 * 8).encode()  # a digit for every byte
_MOST_EVENTS = 9_999_999_999  # what a cursor has digits for
_MOST_MESSAGES = 999_999_999_999_999_999  # the same for a sequence
_DEEPEST = 256  # nesting of an event: below Python's recursion limit for every reader, however deep its own stack is
_BYTES = (bytes, bytearray, memoryview)
_NO_BRACKETS = bytes(set(range(256)) - set(b'"[]{}'))
_CURSOR = re.compile(r"([0-9a-v]{19})-([0-9]{10})-([0-9]{1,18})\Z")
_encoder = msgspec.json.Encoder()


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One decoded log message; which fields matter depends on ``type``."""

    type: str
    index: int = 0
    writer: str = ""
    events: list[msgspec.Raw] = []
    part: tuple[int, int] | None = None
    first: int = 0
    previous: int = 0
    reason: str | None = None
    request: str | None = None
    owner: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def next_index(self) -> int:
        """The index after this message: what the next writer has to use."""
        if self.type == "events":
            return self.index + len(self.events)
        if self.type == "part":
            return self.index + 1 if self.part and self.part[0] == self.part[1] - 1 else self.index
        if self.type in _TAKES_NO_INDEX:
            return self.index
        return self.index + 1


_TAKES_NO_INDEX = TERMINAL | {"open", "cleared", "gone", "final"}
_decoder = msgspec.json.Decoder(Entry)


def decode(body: bytes) -> Entry | None:
    """The entry, or ``None`` for bytes that somebody else put into our subject (counted)."""
    try:
        entry = _decoder.decode(body)
        if not body.isascii():
            body.decode()  # the decoder does not look into what it keeps as it is
    except UNREADABLE as error:
        garbage.skipped("a message in an event log", str(error), body)
        return None
    if (why := _impossible(entry)) is not None:
        garbage.skipped("a message in an event log", why, body)
        return None
    return entry


def _impossible(entry: Entry) -> str | None:
    """Why nobody of ours can have written this."""
    if not 0 <= entry.index <= _MOST_EVENTS or (entry.part is not None and not 0 <= entry.part[0] < entry.part[1]):
        return "impossible numbers"
    if not 0 <= entry.first <= _MOST_MESSAGES:
        return "an impossible sequence"
    if entry.type == "events" or entry.type == "open":
        return None
    text = bytes(memoryview(entry.data)[:1]) == b'"'
    if entry.type in {"part", "final"} and (entry.part is None or not text):
        return "a piece that is no text"
    if entry.type == "error" and not text and not entry.first:
        return "an error that is no text"
    return None


def is_json(raw: bytes) -> bool:
    """Whether these bytes are one JSON value that every reader can open."""
    try:
        msgspec.json.decode(raw)
        _check_depth(raw)
    except (*UNREADABLE, InvalidEventError):
        return False
    return True


def encode_event(event: Any, *, limit: int, enc_hook: Any = None) -> bytes:
    """An event as one line of JSON.

    Raises:
        InvalidEventError: It has no JSON form.
        EventTooLargeError: It has more than ``limit`` bytes.
    """
    if isinstance(event, msgspec.Raw):
        raw = bytes(event)
        try:
            msgspec.json.decode(raw)
        except UNREADABLE as error:
            raise InvalidEventError(f"the msgspec.Raw event is not one JSON value: {error}") from None
    elif isinstance(event, _BYTES):
        raise InvalidEventError("an event of bytes has no JSON form; decode it, or wrap encoded JSON in msgspec.Raw")
    else:
        raw = _encode_checked(event, enc_hook)
    if len(raw) > limit:
        raise EventTooLargeError(len(raw), limit)
    if len(raw) > 2 * _DEEPEST and raw.count(b"[") + raw.count(b"{") > _DEEPEST:
        _check_depth(raw)
    return raw


def _check_depth(raw: bytes) -> None:
    """Take the innermost pairs of brackets away again and again: cheap for what is wide, bounded for what is deep."""
    plain = raw.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NO_BRACKETS)
    left = re.sub(rb'"[^"]*"', b"", plain)
    for _ in range(_DEEPEST):
        if not left:
            return
        left = left.replace(b"[]", b"").replace(b"{}", b"")
    if left:
        raise InvalidEventError(f"the event is nested more than {_DEEPEST} deep: not every reader could open it")


def _encode_checked(event: Any, enc_hook: Any) -> bytes:
    encoder = _encoder if enc_hook is None else msgspec.json.Encoder(enc_hook=enc_hook)
    try:
        raw = encoder.encode(event)
    except (TypeError, ValueError, NotImplementedError, OverflowError, RecursionError) as error:
        raise InvalidEventError(
            f"an event of type {type(event).__name__} has no JSON form: {error}; "
            'pass plain data (pydantic: model_dump(mode="json")), or set Config(enc_hook=...)'
        ) from None
    if b"null" in raw and _has_nan(event, enc_hook):
        raise InvalidEventError("NaN and Infinity have no JSON form")
    return raw


def _has_nan(value: Any, enc_hook: Any) -> bool:
    """Whether a NaN or an Infinity is inside: msgspec writes them as ``null``, which would lose them silently."""
    if isinstance(value, float):
        return value != value or value in (float("inf"), float("-inf"))
    if value is None or isinstance(value, str | int | bytes):
        return False
    if isinstance(value, dict):
        return any(_has_nan(v, enc_hook) for v in value.values())  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, list | tuple | set | frozenset):
        return any(_has_nan(v, enc_hook) for v in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    try:
        plain = msgspec.to_builtins(value, enc_hook=enc_hook)
    except (TypeError, ValueError, NotImplementedError):
        return False
    return plain is not value and _has_nan(plain, enc_hook)


_object_decoder = msgspec.json.Decoder(dict[str, Any])


def decode_object(body: bytes) -> dict[str, Any] | None:
    """A JSON object that somebody sent or stored; ``None`` for anything else, also for what cannot be written again."""
    try:
        found = _object_decoder.decode(body)
        if not is_shallow(body):
            _check_depth(body)
    except (*UNREADABLE, InvalidEventError):
        return None
    return found


def is_shallow(body: bytes) -> bool:
    """Whether JSON has too few brackets to be nested too deeply; with more it may be all the same."""
    return body.count(b"[") + body.count(b"{") <= _DEEPEST


# -- building bodies ------------------------------------------------------------------------------------------------


def open_body(owner: str, writer: str) -> bytes:
    """The first message of a log."""
    return _encoder.encode({"type": "open", "index": 0, "owner": owner, "writer": writer})


def events_body(index: int, writer: str, events: list[bytes]) -> bytes:
    """Several events in one message; they are already JSON and are not looked at again."""
    return b'{"type":"events","index":%d,"writer":"%s","events":[%s]}' % (index, writer.encode(), b",".join(events))


def part_body(kind: str, index: int, writer: str, part: tuple[int, int], first: int, data: str) -> bytes:
    """One piece (``kind``: ``part`` or ``final``); ``first`` is the sequence of piece 0, 0 in piece 0 itself."""
    return _encoder.encode({"type": kind, "index": index, "writer": writer, "part": part, "first": first, "data": data})


def tombstone_body(kind: str, index: int, writer: str) -> bytes:
    """``cleared`` (the log goes on at ``index``) or ``gone``."""
    return _encoder.encode({"type": kind, "index": index, "writer": writer})


def end_body(
    kind: str,
    index: int,
    writer: str,
    *,
    previous: int,
    reason: EndReason | None,
    request: str | None,
    data: bytes,
    first: int = 0,
) -> bytes:
    """A terminal record. ``previous`` is the sequence before it; ``first``: where the pieces of ``data`` begin."""
    fields: dict[str, Any] = {"type": kind, "index": index, "writer": writer, "previous": previous}
    if reason is not None:
        fields["reason"] = reason.value
    if request is not None:
        fields["request"] = request
    if first:
        fields["first"] = first
    fields["data"] = msgspec.Raw(data)
    return _encoder.encode(fields)


def group(queue: Iterable[bytes], most: int, limit: int) -> list[bytes]:
    """The events at the head of a queue that go in one message: of ``most`` bytes, or one alone of ``limit``.

    Empty: the first is too large for one.
    """
    size, events = 0, list[bytes]()
    for raw in queue:
        size += len(raw) + 1
        if size > min(most, limit) and (events or size > limit):
            break
        events.append(raw)
    return events


def split_text(raw: bytes, size: int) -> list[str]:
    """JSON bytes in pieces of at most ``size`` bytes, never inside a character."""
    pieces: list[str] = []
    start = 0
    while start < len(raw):
        stop = min(start + size, len(raw))
        while stop < len(raw) and raw[stop] & 0xC0 == 0x80:
            stop -= 1
        pieces.append(raw[start:stop].decode())
        start = stop
    return pieces


_ascii = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode


def ascii_json(value: Any) -> bytes:
    """One line of ASCII JSON: ``nats kv get`` prints anything else as base64."""
    return _ascii(value).encode()


# -- ids and cursors ------------------------------------------------------------------------------------------------


def random_token(chars: int = 10) -> str:
    """Random base 32 digits, 5 bits each."""
    return secrets.token_bytes(chars).translate(_ANY_BASE32).decode()


def generation_id(created_at: int) -> str:
    """A new generation id: 9 digits of time, so that a stream id's generations sort, and 50 random bits (C6)."""
    digits = ""
    for _ in range(9):
        digits = _BASE32[created_at & 31] + digits
        created_at >>= 5
    return digits + random_token()


class Cursor(msgspec.Struct, frozen=True):
    """A reader's position: it has read ``position`` records of ``generation`` (a terminal record counts as one)."""

    generation: str
    position: int
    hint: int

    def __str__(self) -> str:
        return f"{self.generation}-{self.position:010d}-{self.hint}"

    @staticmethod
    def parse(text: object) -> Cursor:
        """Read one back.

        Raises:
            InvalidCursorError: It was not written by this library.
        """
        match = _CURSOR.match(text) if isinstance(text, str) else None
        if match is None:
            raise InvalidCursorError(text)
        return Cursor(match[1], int(match[2]), int(match[3]))


class Terminal(msgspec.Struct, frozen=True):
    """A terminal record as read from the log. ``raw``: its data as JSON."""

    type: EventType
    index: int
    seq: int
    writer: str
    reason: EndReason | None
    request: str | None
    raw: bytes

    @property
    def status(self) -> JobStatus:
        """The job status that belongs to it."""
        return STATUS_OF[self.type.value]

    @staticmethod
    def of(entry: Entry, seq: int, raw: bytes | None = None) -> Terminal:
        """From a terminal entry; ``raw`` when its data was stored in pieces before it."""
        if raw is not None and (not is_json(raw) or (entry.type == "error" and raw[:1] != b'"')):
            garbage.skipped("a final event in pieces", f"sequence {seq}", raw)
            raw = b'""' if entry.type == "error" else b"null"
        return Terminal(
            EventType(entry.type),
            entry.index,
            seq,
            entry.writer,
            EndReason(entry.reason) if entry.reason else None,
            entry.request,
            bytes(entry.data) if raw is None else raw,
        )
