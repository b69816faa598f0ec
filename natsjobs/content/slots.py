"""The rules of agents 3.6 (August 2026), and the default, which also joins unnamed argument fragments.

Every step and every tool call has a slot of its own. Slots are places in the answer: a new one is made at the index
the producer names or behind the last one, whichever is further on, so what was drawn never moves, except that a steer
may be put in between. A slot without content leaves no part.

Two things that the recorded behaviour leaves open are decided here: a fragment that names a call never goes into a slot
that belongs to another call, and a second step at the index of a tool call gets a slot of its own for its calls.
"""

from __future__ import annotations

from bisect import bisect_left
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


class _Slot:
    """A place in the answer."""

    __slots__ = ("at", "call_id", "early_args", "marks", "part")

    def __init__(self, at: int) -> None:
        self.at = at
        self.part: Fields | None = None
        self.call_id = ""
        self.marks: Fields = {}
        self.early_args: Any = None
        """Fragments that came before the name of their call; they count once it has one."""


class _Step:
    """A run step and the slots of its calls; the first is also where its text goes."""

    __slots__ = ("home", "marks", "slot_of_chunk", "slots")

    def __init__(self, home: _Slot) -> None:
        self.home = home
        self.marks: Fields = {}
        self.slots: list[_Slot] = []
        self.slot_of_chunk: dict[int, _Slot] = {}

    def of_call(self, call_id: str) -> _Slot | None:
        """The slot bound to a call."""
        return next((slot for slot in self.slots if slot.call_id == call_id), None) if call_id else None

    def for_call(self, call_id: str, chunk: int | None) -> _Slot | None:
        """Where a fragment that names its call goes: the call's slot, its number's, the first that has no call."""
        if slot := self.of_call(call_id):
            return slot
        slot = self._of_chunk(chunk)
        if slot is not None and not slot.call_id:
            return slot
        claimed = [] if chunk is None else list(self.slot_of_chunk.values())
        return next((slot for slot in self.slots if not slot.call_id and slot not in claimed), None)

    def for_fragment(self, chunk: int | None) -> _Slot | None:
        """Where a fragment that names no call goes: its number's slot, the only one, the first without a number."""
        if slot := self._of_chunk(chunk) or self.only_slot:
            return slot
        claimed = list(self.slot_of_chunk.values())
        return next((slot for slot in self.slots if slot not in claimed), None) if chunk is not None else None

    def _of_chunk(self, chunk: int | None) -> _Slot | None:
        return None if chunk is None else self.slot_of_chunk.get(chunk)

    @property
    def only_slot(self) -> _Slot | None:
        """The slot, if there is exactly one."""
        return self.slots[0] if len(self.slots) == 1 else None


class Slots:
    """State of one fold."""

    def __init__(self, *, unnamed_args: bool) -> None:
        self._unnamed_args = unnamed_args
        self._slots: list[_Slot] = []  # in order of ``at``
        self._slot_of_index: dict[int, _Slot] = {}
        self._slot_of_call: dict[str, _Slot] = {}
        self._slot_of_steer: dict[str, _Slot] = {}
        self._steps: dict[str, _Step] = {}

    # -- events -------------------------------------------------------------------------------------------------

    def step(self, step_id: str, index: int, step: Fields) -> None:
        """A run step began: it reserves its slots."""
        home = self._at_index(index)
        known = self._steps.setdefault(step_id, _Step(home))
        known.home = home
        known.marks.update(origin(step))
        home.marks.update(known.marks)
        calls = listed_calls(step)
        if calls is None or not (known.slots or home.call_id):
            known.slots = [home]
        taken: list[_Slot] = []
        for call in calls or ():
            call_id = text(call.get("id"))
            free = (slot for slot in known.slots if not slot.call_id and slot not in taken)
            slot = known.of_call(call_id) or next(free, None) or self._further(known)
            taken.append(slot)
            self._bind(slot, call_id)
            self._put_call(slot, call)

    def delta(self, step_id: str, entries: list[Any]) -> None:
        """Text, thoughts or other parts of a step."""
        if step := self._steps.get(step_id):
            for entry in entries:
                self._put(step.home, fields(entry))

    def call_delta(self, step_id: str, calls: list[Any], delta: Fields) -> None:
        """Fragments of tool calls of a step."""
        step = self._steps.get(step_id)
        if step is None:
            return
        extra = {key: delta[key] for key in ("auth", "expires_at") if delta.get(key) is not None}
        for call in map(fields, calls):
            if call and (slot := self._route(step, text(call.get("id")), whole(call.get("index")))):
                self._put_call(slot, {**call, **extra, "id": text(call.get("id")) or slot.call_id})

    def completed(self, result: Fields) -> None:
        """A tool call, or a summary, has its result."""
        step = self._steps.get(text(result.get("id")))
        if result.get("type") == "summary":
            if step and (summary := fields(result.get("summary"))):
                self._replace(step.home, {**copied(summary), "type": "summary"})
            return
        call = fields(result.get("tool_call"))
        call_id = text(call.get("id"))
        slot = step.of_call(call_id) if step else None
        slot = slot or self._slot_of_call.get(call_id) or (step.only_slot if step else None)
        if call and slot:
            self._bind(slot, call_id)
            self._put_call(slot, call, final=True)

    def agent_update(self, part: Fields) -> None:
        """Another agent took over."""
        index = whole(fields(part.get("agent_update")).get("index"))
        if index is not None:
            self._put(self._at_index(index), part)

    def steer(self, index: int, part: Fields) -> None:
        """The user's text in mid-run: set at its place, what is there already moves behind it."""
        steer_id = text(part.get("steerId"))
        slot = self._slot_of_steer.get(steer_id)
        if slot is None:
            slot = self._inserted(index)
        if steer_id:
            self._slot_of_steer[steer_id] = slot
        slot.part = copied(part)

    # -- results ------------------------------------------------------------------------------------------------

    def parts(self) -> list[Fields]:
        """The parts in order of their slots, without holes."""
        return [copied(slot.part) for slot in self._slots if slot.part is not None]

    def card_positions(self) -> dict[str, int]:
        """Of each step with tool calls: the position of its first card in ``parts()``."""
        filled = [slot for slot in self._slots if slot.part is not None]
        position = {id(slot): number for number, slot in enumerate(filled) if _holds(slot, "tool_call")}
        cards = {name: [position[id(s)] for s in step.slots if id(s) in position] for name, step in self._steps.items()}
        return {name: min(places) for name, places in cards.items() if places}

    # -- slots --------------------------------------------------------------------------------------------------

    def _at_index(self, index: int) -> _Slot:
        """The slot of an index of the producer; a new index never gets a place before an older one."""
        if (slot := self._slot_of_index.get(index)) is None:
            slot = self._slot_of_index[index] = self._appended(index)
        return slot

    def _appended(self, at_least: int = 0) -> _Slot:
        slot = _Slot(max(at_least, self._slots[-1].at + 1 if self._slots else 0))
        self._slots.append(slot)
        return slot

    def _further(self, step: _Step) -> _Slot:
        slot = self._appended()
        slot.marks.update(step.marks)
        step.slots.append(slot)
        return slot

    def _inserted(self, at: int) -> _Slot:
        place = bisect_left(self._slots, at, key=lambda slot: slot.at)
        if place < len(self._slots) and self._slots[place].at == at:
            for later in self._slots[place:]:
                later.at += 1
            # The producer counts the steer from now on, so it names what lies behind it by the next index.
            self._slot_of_index = {i + 1 if i >= at else i: slot for i, slot in self._slot_of_index.items()}
        slot = _Slot(at)
        self._slots.insert(place, slot)
        return slot

    def _bind(self, slot: _Slot, call_id: str) -> None:
        if call_id:
            slot.call_id = slot.call_id or call_id
            self._slot_of_call[call_id] = slot

    def _route(self, step: _Step, call_id: str, chunk: int | None) -> _Slot | None:
        slot = step.for_call(call_id, chunk) if call_id else step.for_fragment(chunk)
        if slot is None:
            if not call_id and chunk is None and step.slots:
                return None  # it could belong to any of them
            slot = self._further(step)
        if chunk is not None:
            step.slot_of_chunk[chunk] = slot
        self._bind(slot, call_id)
        return slot

    # -- parts --------------------------------------------------------------------------------------------------

    def _put(self, slot: _Slot, part: Fields) -> None:
        kind = text(part.get("type"))
        if not kind or (slot.part is not None and not kind.startswith(slot.part["type"])):
            return
        if kind.startswith("text"):
            self._put_text(slot, part)
        elif kind.startswith("think"):
            if isinstance(thought := part.get("think"), str):
                self._replace(slot, {"type": "think", "think": _grown(slot, "think", thought)})
        elif kind == "tool_call":
            if call := fields(part.get("tool_call")):
                self._put_call(slot, call)
        elif kind == "summary":
            content = _longer((slot.part or {}).get("content"), part.get("content"))
            self._replace(slot, copied({**part, "content": content}))
        elif kind in {"agent_update", "toolCall", "toolResponse"}:
            self._replace(slot, copied(part))
        elif slot.part is None:  # an image, or what we do not know: that it was there, without its content
            self._replace(slot, {"type": kind})

    def _put_text(self, slot: _Slot, part: Fields) -> None:
        fragment, citations, held = part.get("text"), items(part.get("citations")), slot.part or {}
        if not isinstance(fragment, str):
            if not citations:
                return
            fragment = ""
        new: Fields = {"type": "text", "text": _grown(slot, "text", fragment)}
        ids = items(part.get("tool_call_ids"))
        if not ids and citations and not fragment:
            ids = items(held.get("tool_call_ids"))
        if ids:
            new["tool_call_ids"] = copied(ids)
        if known := [*items(held.get("citations")), *copied(citations)]:
            new["citations"] = known
        self._replace(slot, new)

    def _put_call(self, slot: _Slot, call: Fields, *, final: bool = False) -> None:
        if slot.part is not None and not _holds(slot, "tool_call"):
            return
        old = fields((slot.part or {}).get("tool_call"))
        if old.get("progress") == 1 and not final:
            return
        old_args, args = old.get("args", slot.early_args), call.get("args")
        if not text(call.get("name")) and not final:
            if not self._unnamed_args:
                return
            if slot.part is None:
                slot.early_args = merged_args(old_args, args, final=False)
                return
        # An empty fragment says nothing about an object that is there; 3.6 itself lets it erase the object.
        keep = self._unnamed_args and not final and args in ("", None) and isinstance(old_args, dict | list)
        merged: Any = copied(old_args) if keep else merged_args(old_args, args, final=final)
        part = call_part(old, call, args=merged, final=final)
        for key in ("auth", "expires_at", "outcome"):
            value = call.get(key) if key != "outcome" or final else None
            if value is not None or (value := old.get(key)) is not None:
                part["tool_call"][key] = copied(value)
        self._replace(slot, part)

    @staticmethod
    def _replace(slot: _Slot, part: Fields) -> None:
        slot.part = {**part, **slot.marks}


def _holds(slot: _Slot, kind: str) -> bool:
    return slot.part is not None and slot.part["type"] == kind


def _grown(slot: _Slot, name: str, fragment: str) -> Growing:
    held = (slot.part or {}).get(name)
    return held.add(fragment) if isinstance(held, Growing) else Growing(fragment)


def _longer(held: Any, more: Any) -> Any:
    """The content of a summary after a delta: text joins text, a list joins a list, else the newer one stands."""
    if isinstance(held, str) and isinstance(more, str):
        return held + more
    if items(held) and items(more):
        return [*items(held), *items(more)]
    return more or held
