"""Headers of messages, read from the raw bytes: a dictionary of all of them costs more than the message. Pure."""

from __future__ import annotations

from datetime import datetime

_MARKERS = {"MaxAge": "MaxAge", "Purge": "PURGE", "Remove": "DEL"}


def status_of(headers: bytes) -> int:
    """The status line of raw headers; 0: none."""
    code = headers[9:12]
    return int(code) if code.isdigit() else 0


def header_of(headers: bytes, name: bytes) -> bytes | None:
    """The value of a header; ``name`` as the server spells it."""
    start = headers.find(b"\r\n" + name + b": ")
    if start < 0:
        return None
    start += len(name) + 4
    return headers[start : headers.index(b"\r\n", start)]


def marker_of(headers: bytes) -> str | None:
    """What removal a message marks, if any: ``"PURGE"``, ``"DEL"`` or ``"MaxAge"``."""
    if (operation := header_of(headers, b"KV-Operation")) is not None:
        return operation.decode()
    if (reason := header_of(headers, b"Nats-Marker-Reason")) is not None:
        return _MARKERS.get(reason.decode(), reason.decode())
    return None


def seconds_of(text: str) -> float:
    """Seconds since the epoch of a time as the server writes it."""
    return datetime.fromisoformat(text).timestamp()
