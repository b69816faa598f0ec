"""Headers of messages, as raw bytes: a dictionary of all of them costs more than the message. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

NOBODY = 503
"""The status line of an answer that says: nobody listens on this subject."""
_DIGITS = 18  # below 2 ** 63, like every sequence
_MARKERS = {"MaxAge": "MaxAge", "Purge": "PURGE", "Remove": "DEL"}


def status_of(headers: bytes) -> int:
    """The status line of raw headers; 0: none."""
    code = headers[9:12]
    return int(code) if code.isdigit() else 0


def header_of(headers: bytes, name: bytes) -> bytes | None:
    """The value of a header; ``name`` as the server spells it. Its own come last: one before them is the sender's."""
    before = b"\r\n%b: " % name
    start = headers.rfind(before)
    if start < 0:
        return None
    start += len(before)
    stop = headers.find(b"\r\n", start)
    return headers[start : stop if stop >= 0 else None]


def number_of(headers: bytes, name: bytes) -> int | None:
    """The whole number in a header; ``None``: no header, or somebody else's text in it."""
    text = header_of(headers, name)
    return int(text) if text is not None and text.isdigit() and len(text) <= _DIGITS else None


def marker_of(headers: bytes) -> str | None:
    """What removal a message marks, if any: ``"PURGE"``, ``"DEL"`` or ``"MaxAge"``."""
    if b"KV-Operation" not in headers and b"Nats-Marker-Reason" not in headers:
        return None  # nearly always
    if (operation := header_of(headers, b"KV-Operation")) is not None:
        return operation.decode("utf-8", "replace")
    if (reason := header_of(headers, b"Nats-Marker-Reason")) is not None:
        text = reason.decode("utf-8", "replace")
        return _MARKERS.get(text, text)
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
