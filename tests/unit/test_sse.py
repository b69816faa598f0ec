"""Frames of server-sent events: every reader takes them apart the same way, whatever is in them."""

from __future__ import annotations

import json

import pytest
from httpx_sse._decoders import SSEDecoder
from hypothesis import given
from hypothesis import strategies as st

from natsjobs import EndReason, EventType, StreamEvent, to_dict
from natsjobs.http import encode_sse


def event(**changes):
    """An event."""
    fields = {"type": EventType.EVENT, "index": 3, "cursor": "g-0000000004-9", "generation": "g", "raw": b'{"a":1}'}
    return StreamEvent(**{**fields, **changes})


def parse(frame: bytes):
    """What readers get: the frames in these bytes."""
    decoder = SSEDecoder()
    lines = frame.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]
    return [found for line in lines if (found := decoder.decode(line)) is not None]


def test_a_frame_holds_the_cursor_and_the_whole_record():
    """``id`` is the cursor, ``data`` what ``to_dict`` gives; ordinary events have no name."""
    (frame,) = parse(encode_sse(event()))
    assert (frame.id, frame.event) == ("g-0000000004-9", "message")
    assert json.loads(frame.data) == to_dict(event())


def test_raw_forwards_the_stored_bytes():
    """Not a byte of the data is changed."""
    assert encode_sse(event(raw=b'{"a": 1.50}'), raw=True) == b'id: g-0000000004-9\ndata: {"a": 1.50}\n\n'


@pytest.mark.parametrize("kind", ["done", "error", "aborted"])
def test_terminal_records_are_named(kind):
    """By their type, with the reason in the record."""
    end = event(type=EventType(kind), raw=b'"x"', end_reason=EndReason.SHUTDOWN)
    (frame,) = parse(encode_sse(end))
    assert frame.event == kind
    assert json.loads(frame.data) == to_dict(end)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("break_", [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n"])
def test_json_over_several_lines_stays_one_event(break_, raw):
    """A line end between two JSON tokens ends neither the line nor the frame for the reader."""
    (frame,) = parse(encode_sse(event(raw=b'{"a":' + break_ + b"1}"), raw=raw))
    found = json.loads(frame.data)
    assert (found if raw else found["data"]) == {"a": 1}


HOSTILE = st.text(st.sampled_from("\r\n\0:ab idevt{}\"'é\u2028"), max_size=40)


@given(HOSTILE, HOSTILE, st.recursive(HOSTILE, lambda inner: st.lists(inner, max_size=3)), st.booleans())
def test_nothing_in_an_event_adds_a_line_or_a_frame(cursor, kind, value, raw):
    """Whatever a cursor, a type or a value holds: one frame, with that value."""
    hostile = event(cursor="c" + cursor, type=EventType("k" + kind), raw=json.dumps(value).encode())
    (frame,) = parse(encode_sse(hostile, raw=raw))
    found = json.loads(frame.data)
    assert (found if raw else found["data"]) == value
    assert frame.retry is None
