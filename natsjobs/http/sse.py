"""Events as server-sent events. Pure: bytes in, bytes out.

Guarantees that nothing in an event can end a line or a frame early: ids and names lose their control characters, and
data that spans lines becomes one ``data:`` line each, which the reader joins again.
"""

from __future__ import annotations

import re

import msgspec

from natsjobs.models import EndReason, EventType, StreamEvent

HEARTBEAT = b": still here\n"
"""A comment: readers skip it, and a connection that is gone is noticed. One line end, as with ``retry``: a blank line
ends a frame, and httpx-sse gives out also those that hold no data."""

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}
"""What keeps caches and proxies from holding events back."""

_LINE_END = re.compile(rb"\r\n|\r|\n")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_json = msgspec.json.Encoder().encode


def encode_sse(event: StreamEvent, *, raw: bool = False) -> bytes:
    """One frame: ``id`` is the cursor, ``data`` the record as ``to_dict`` gives it, on one line.

    Ordinary events have no name, so that ``EventSource.onmessage`` gets them; the others are named by their type:
    ``done``, ``error``, ``aborted``.

    Args:
        event: What a reader gave.
        raw: ``data`` is the stored JSON instead, untouched.
    """
    cursor = event.cursor if event.cursor.isprintable() else _CONTROL.sub("", event.cursor)
    payload = event.raw if raw else _record(event)
    if event.type == EventType.EVENT:
        return b"id: %b\n%b\n" % (cursor.encode(), data_lines(payload))
    name = _CONTROL.sub("", event.type.value)
    return b"id: %b\nevent: %b\n%b\n" % (cursor.encode(), name.encode(), data_lines(payload))


def data_lines(payload: bytes) -> bytes:
    """The payload as ``data:`` lines, without the blank line that ends a frame."""
    if b"\n" in payload or b"\r" in payload:
        return b"".join(b"data: " + line + b"\n" for line in _LINE_END.split(payload))
    return b"data: " + payload + b"\n"


def retry(milliseconds: int) -> bytes:
    """How long readers wait before they connect again; a line of the frame that follows."""
    return b"retry: %d\n" % milliseconds


class _Record(msgspec.Struct, omit_defaults=True, rename="camel"):
    """The wire form of an event, as ``to_dict`` gives it."""

    type: EventType
    index: int
    cursor: str
    generation: str
    data: msgspec.Raw
    end_reason: EndReason | None = None


def _record(event: StreamEvent) -> bytes:
    """The wire form of the record with its data spliced in: nothing is decoded on the way."""
    return _json(
        _Record(event.type, event.index, event.cursor, event.generation, msgspec.Raw(event.raw), event.end_reason)
    )
