"""The rules of agents 3.1 (January 2026): one part per index, as the producer numbered them.

Deliberate, because logs of that version were drawn this way: unnamed argument fragments are dropped, only the first
entry of a delta counts, a delta after the completion erases the output, and images lose their address. Steers did not
exist.
"""

from __future__ import annotations

from typing import Any

from natsjobs.content.payload import (
    Fields,
    Growing,
    call_part,
    copied,
    fields,
    items,
    listed_calls,
    merged_args,
    origin,
    text,
    whole,
)


class Baseline:
    """State of one fold."""

    def __init__(self) -> None:
        self._parts: dict[int, Fields] = {}
        self._index_of_step: dict[str, int] = {}
        self._call_of_step: dict[str, str] = {}
        self._origins: dict[int, Fields] = {}

    def step(self, step_id: str, index: int, step: Fields) -> None:
        """A run step began."""
        self._index_of_step[step_id] = index
        if marks := origin(step):
            self._origins.setdefault(index, {}).update(marks)
        for call in listed_calls(step) or ():
            if call_id := text(call.get("id")):
                self._call_of_step[step_id] = call_id
            self._put(index, {"type": "tool_call", "tool_call": call})

    def delta(self, step_id: str, entries: list[Any]) -> None:
        """Text, thoughts or other parts of a step."""
        index = self._index_of_step.get(step_id)
        if index is not None and entries:
            self._put(index, fields(entries[0]))

    def call_delta(self, step_id: str, calls: list[Any], delta: Fields) -> None:  # noqa: ARG002 - same for all rules
        """Fragments of tool calls of a step."""
        index = self._index_of_step.get(step_id)
        if index is None:
            return
        for call in map(fields, calls):
            chunk = {**call, "id": self._call_of_step.get(step_id), "args": call.get("args") or ""}
            self._put(index, {"type": "tool_call", "tool_call": chunk})

    def completed(self, result: Fields) -> None:
        """A tool call has its result."""
        index = self._index_of_step.get(text(result.get("id")))
        if index is not None and fields(result.get("tool_call")):
            self._put(index, {"type": "tool_call", "tool_call": result["tool_call"]}, final=True)

    def agent_update(self, part: Fields) -> None:
        """Another agent took over."""
        index = whole(fields(part.get("agent_update")).get("index"))
        if index is not None:
            self._put(index, part)

    def steer(self, index: int, part: Fields) -> None:
        """Nothing: this version knew no steers."""

    def parts(self) -> list[Fields]:
        """The parts in order of their index, without holes."""
        return [copied(self._parts[index]) for index in sorted(self._parts)]

    def card_positions(self) -> dict[str, int]:
        """Nothing: run steps keep the index their producer gave them."""
        return {}

    def _put(self, index: int, part: Fields, *, final: bool = False) -> None:
        kind = text(part.get("type"))
        if not kind or any(kind.startswith(name) and not isinstance(part.get(name), str) for name in ("text", "think")):
            return
        held = self._parts.setdefault(index, {"type": kind})
        if not kind.startswith(held["type"]):
            return
        if (new := self._merged(held, part, kind, final=final)) is not None:
            self._parts[index] = {**new, **self._origins.get(index, {})}

    @staticmethod
    def _merged(held: Fields, part: Fields, kind: str, *, final: bool) -> Fields | None:
        for name in ("text", "think"):
            if kind.startswith(name):
                grown = held.get(name)
                so_far = grown.add(part[name]) if isinstance(grown, Growing) else Growing(part[name])
                new: Fields = {"type": name, name: so_far}
                if name == "text" and (ids := items(part.get("tool_call_ids"))):
                    new["tool_call_ids"] = copied(ids)
                return new
        if kind == "agent_update":
            return {"type": kind, "agent_update": copied(part.get("agent_update"))}
        if kind == "image_url":
            return held
        if kind == "tool_call" and (call := fields(part.get("tool_call"))):
            if not text(call.get("name")) and not final:
                return None
            old = fields(held.get("tool_call"))
            return call_part(old, call, args=merged_args(old.get("args"), call.get("args"), final=final), final=final)
        return None
