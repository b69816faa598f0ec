"""Headers of messages, as raw bytes: a dictionary of all of them costs more than the message. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

NOBODY = 503
"""The status line of an answer that says: nobody listens on this subject."""
_SUBJECT, SEQUENCE, _STORED_AT, PENDING, UP_TO, _OPERATION, _REASON = (
    b"\r\n%b: " % name
    for name in (
        b"Nats-Subject",
        b"Nats-Sequence",
        b"Nats-Time-Stamp",
        b"Nats-Num-Pending",
        b"Nats-UpTo-Sequence",
        b"KV-Operation",
        b"Nats-Marker-Reason",
    )
)
# For ``header_of`` and ``number_of``: names as the server spells them, with what surrounds them.
_DIGITS = 18  # below 2 ** 63, like every sequence
_USUAL = re.compile(rb"\r\nNats-Subject: ([^\r]+)\r\nNats-Sequence: ([0-9]{1,18})\r\nNats-Time-Stamp: ([^\r]+)\r\n")
"""The three as servers have always written them, one behind the other."""
_MARKERS = {"MaxAge": "MaxAge", "Purge": "PURGE", "Remove": "DEL"}


def status_of(headers: bytes) -> int:
    """The status line of raw headers; 0: none."""
    code = headers[9:12]
    return int(code) if code.isdigit() else 0


def header_of(headers: bytes, name: bytes) -> bytes | None:
    """The value of a header; ``name``: one of above. The server's own come last: one before them is the sender's."""
    start = headers.rfind(name)
    if start < 0:
        return None
    start += len(name)
    stop = headers.find(b"\r\n", start)
    return headers[start : stop if stop >= 0 else None]


def number_of(headers: bytes, name: bytes) -> int | None:
    """The whole number in a header; ``None``: no header, or somebody else's text in it."""
    text = header_of(headers, name)
    return int(text) if text is not None and text.isdigit() and len(text) <= _DIGITS else None


def marker_of(headers: bytes) -> str | None:
    """What removal a message marks, if any: ``"PURGE"``, ``"DEL"`` or ``"MaxAge"``."""
    if headers.find(b"KV-Operation") < 0 and headers.find(b"Nats-Marker-Reason") < 0:
        return None  # nearly always
    if (operation := header_of(headers, _OPERATION)) is not None:
        return operation.decode("utf-8", "replace")
    if (reason := header_of(headers, _REASON)) is not None:
        text = reason.decode("utf-8", "replace")
        return _MARKERS.get(text, text)
    return None


def stored_of(headers: bytes) -> tuple[str, int, float] | None:
    """Subject, sequence and time of a message that the server sends from a stream; ``None``: they do not say."""
    subject: bytes | None
    number: int | None
    at: bytes | None
    if (usual := _USUAL.match(headers, max(0, headers.rfind(_SUBJECT)))) is not None:
        subject, digits, at = usual.groups()
        number = int(digits)
    else:
        subject, number, at = header_of(headers, _SUBJECT), number_of(headers, SEQUENCE), header_of(headers, _STORED_AT)
    if subject is None or number is None or at is None:
        return None
    try:
        return subject.decode("utf-8", "replace"), number, seconds_of(at.decode())
    except ValueError:
        return None


def seconds_of(text: str) -> float:
    """Seconds since the epoch of a time as the server writes it."""
    return datetime.fromisoformat(text).timestamp()


def header_bytes(headers: Mapping[str, str]) -> bytes:
    """Headers as they go over the wire."""
    return "".join(["NATS/1.0\r\n", *(f"{name}: {value}\r\n" for name, value in headers.items()), "\r\n"]).encode()


def raw_headers(headers: Mapping[str, str] | None) -> bytes:
    """What somebody else has parsed into a dictionary, as it came."""
    if not headers:
        return b""
    status = f" {headers['Status']}" if "Status" in headers else ""
    text = header_bytes({name: value for name, value in headers.items() if name not in {"Status", "Description"}})
    return text.replace(b"NATS/1.0", f"NATS/1.0{status}".encode(), 1)
