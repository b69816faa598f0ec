"""Events as server-sent events. Pure: bytes in, bytes out.

Guarantees that nothing in an event can end a line or a frame early: ids and names lose their control characters, and
data that spans lines becomes one ``data:`` line each, which the reader joins again.
"""

from __future__ import annotations

import re

import msgspec

from natsjobs.models import EventType, StreamEvent

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
    head = f"id: {_CONTROL.sub('', event.cursor)}\n"
    if event.type != EventType.EVENT:
        head += f"event: {_CONTROL.sub('', event.type.value)}\n"
    return head.encode() + data_lines(event.raw if raw else _record(event)) + b"\n"


def data_lines(payload: bytes) -> bytes:
    """The payload as ``data:`` lines, without the blank line that ends a frame."""
    if b"\n" in payload or b"\r" in payload:
        return b"".join(b"data: " + line + b"\n" for line in _LINE_END.split(payload))
    return b"data: " + payload + b"\n"


def retry(milliseconds: int) -> bytes:
    """How long readers wait before they connect again; a line of the frame that follows."""
    return b"retry: %d\n" % milliseconds


def _record(event: StreamEvent) -> bytes:
    """The wire form of the record with its data spliced in: nothing is decoded on the way."""
    reason = b"" if event.end_reason is None else b',"endReason":' + _json(event.end_reason.value)
    return b'{"type":%b,"index":%d,"cursor":%b,"generation":%b,"data":%b%b}' % (
        _json(event.type.value),
        event.index,
        _json(event.cursor),
        _json(event.generation),
        event.raw,
        reason,
    )
