"""Where the demo's events come from: the text in this package, a text file, or a recorded stream (JSONL).

Owns how a text is cut into pieces like a model's, and how any event is shown as text on the screen. Pure but for
reading the file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeGuard

import msgspec

MIN_EVENTS = 4
_PIECE = re.compile(r"\s*\S{1,7}|\s+")
_STEP = "step_demo"
_TEXT_PATHS = (
    ("data", "delta", "content"),
    ("choices", "delta"),
    ("candidates", "content", "parts"),
    ("delta",),
    ("content",),
    ("text",),
)
_TEXT_KEYS = ("text", "content", "reasoning", "reasoning_content", "thinking", "partial_json", "delta")


class InputError(ValueError):
    """The input cannot be streamed; says why."""


def load(path: Path | None) -> list[Any]:
    """The events of a file (``None``: of the text in this package). A ``.jsonl`` file is one event per line.

    Raises:
        InputError: Not readable, not UTF-8, a line is not JSON, or fewer than ``MIN_EVENTS`` events.
    """
    source = Path(__file__).with_name("answer.txt") if path is None else path
    try:
        text = source.read_text(encoding="utf-8")
    except OSError as exc:
        raise InputError(f"{source}: {exc.strerror}") from None
    except UnicodeDecodeError as exc:
        raise InputError(f"{source} is not UTF-8 (byte {exc.start})") from None
    events = _records(source, text) if source.suffix in {".jsonl", ".ndjson"} else _deltas(text)
    if len(events) < MIN_EVENTS:
        raise InputError(f"{source} gives {len(events)} events; the demo needs at least {MIN_EVENTS} to interrupt them")
    return events


def _records(source: Path, text: str) -> list[Any]:
    events: list[Any] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                events.append(msgspec.json.decode(line))
            except msgspec.DecodeError as exc:
                raise InputError(f"{source}, line {number} is not JSON: {exc}") from None
    return events


def _deltas(text: str) -> list[Any]:
    """A text as the events that chat servers send: one step, then a delta per piece."""
    step = {"id": _STEP, "index": 0, "stepDetails": {"type": "message_creation"}}
    events: list[Any] = [{"event": "on_run_step", "data": step}]
    for piece in _PIECE.findall(text.strip()):
        delta = {"content": [{"type": "text", "text": piece}]}
        events.append({"event": "on_message_delta", "data": {"id": _STEP, "delta": delta}})
    return events


def shown(event: Any) -> str:
    """What a person would see of an event: the text in it, whichever provider's form it has; else nothing."""
    if isinstance(event, str):
        return event
    if str(_step_into(event, "type")).endswith(".done"):
        return ""  # repeats what its deltas have said
    for path in _TEXT_PATHS:
        found: Any = event
        for key in path:
            found = _step_into(found, key)
        if text := _text_of(found):
            return text
    return ""


def _is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_array(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _step_into(value: Any, key: str) -> Any:
    if _is_array(value):
        return _step_into(value[0], key) if value else None
    return value.get(key) if _is_object(value) else None


def _text_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    if _is_array(value):
        return "".join(_text_of(item) for item in value)
    if _is_object(value):
        return next((text for key in _TEXT_KEYS if isinstance(text := value.get(key), str) and text), "")
    return ""


def is_chat(event: Any) -> bool:
    """Whether the library's own content folding reads the event, so that an abort returns its text."""
    return _step_into(event, "event") in {"on_run_step", "on_message_delta"}
