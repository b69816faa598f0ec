"""Reading event payloads that cannot be trusted, and the pieces of a content part that all rules share.

Every reader here gives an empty value for what is missing or of the wrong type; nothing raises.
"""

from __future__ import annotations

from typing import Any, TypeGuard

Fields = dict[str, Any]
"""A JSON object."""


class Growing:
    """Text that comes in fragments: adding one costs the fragment, not the text so far; joined when it is read."""

    __slots__ = ("_fragments",)

    def __init__(self, first: str = "") -> None:
        self._fragments = [first]

    def add(self, fragment: str) -> Growing:
        """Append; itself."""
        self._fragments.append(fragment)
        return self

    def __str__(self) -> str:
        if len(self._fragments) > 1:
            self._fragments = ["".join(self._fragments)]
        return self._fragments[0]


def _is_object(value: Any) -> TypeGuard[Fields]:
    return isinstance(value, dict)


def _is_array(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def copied(value: Any) -> Any:
    """A JSON value that shares nothing with the original; growing text becomes a plain string."""
    if _is_object(value):
        return {key: copied(item) for key, item in value.items()}
    if _is_array(value):
        return [copied(item) for item in value]
    return str(value) if isinstance(value, Growing) else value


def fields(value: Any) -> Fields:
    """The JSON object itself, or an empty one."""
    return value if _is_object(value) else {}


def items(value: Any) -> list[Any]:
    """The JSON array itself, or an empty one."""
    return value if _is_array(value) else []


def text(value: Any) -> str:
    """The string itself, or an empty one for anything else and for blanks."""
    return value if isinstance(value, str) and value.strip() else ""


def whole(value: Any) -> int | None:
    """A whole number that is not negative: an index."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def origin(step: Fields) -> Fields:
    """The marks of the agent that works on a step: what every part of the step carries."""
    marks: Fields = {}
    if agent := text(step.get("agentId")):
        marks["agentId"] = agent
    if (group := step.get("groupId")) is not None and isinstance(group, int | str):
        marks["groupId"] = group
    return marks


def listed_calls(step: Fields) -> list[Fields] | None:
    """The tool calls that a run step lists; ``None`` when it is no step of tool calls."""
    details = fields(step.get("stepDetails"))
    if details.get("type") != "tool_calls":
        return None
    return [call for item in items(details.get("tool_calls")) if (call := fields(item))]


def merged_args(old: Any, new: Any, *, final: bool) -> Any:
    """Arguments of a call after an update: strings are joined, an object on either side is replaced.

    A final update replaces what is there, unless it brings nothing.
    """
    if not isinstance(new, str | dict | list):
        new = None
    if final:
        return copied(new) if new is not None else ("" if old is None else old)
    if isinstance(new, dict | list):
        return copied(new)
    fragment = new or ""
    if isinstance(old, Growing):
        return old.add(fragment)
    return Growing(old + fragment) if isinstance(old, str) else Growing(fragment)


def call_part(old: Fields, call: Fields, *, args: Any, final: bool) -> Fields:
    """A tool call part that takes the place of one that held the call ``old``."""
    card: Fields = {
        "id": text(call.get("id")) or text(old.get("id")),
        "name": text(call.get("name")) or text(old.get("name")),
        "args": args,
        "type": "tool_call",
    }
    if final:
        output = call.get("output")
        card["progress"] = 1
        card["output"] = copied(output) if output is not None else old.get("output", "")
    return {"type": "tool_call", "tool_call": card}
