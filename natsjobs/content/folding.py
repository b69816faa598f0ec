"""``fold`` and ``ContentFold``: events in, content parts and run steps out.

Owns the reading of an event and the list of run steps; the rules by which content grows are in ``baseline`` and
``slots``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Protocol, TypeAlias

from natsjobs.content.baseline import Baseline
from natsjobs.content.payload import Fields, copied, fields, items, listed_calls, text, whole
from natsjobs.content.slots import Slots
from natsjobs.errors import InvalidArgumentError
from natsjobs.models import ContentPart, RunStep

Compat: TypeAlias = Literal["3.1", "3.6"]
"""A version of LibreChat's agents package whose results are reproduced exactly."""


class _Rules(Protocol):
    def step(self, step_id: str, index: int, step: Fields) -> None: ...
    def delta(self, step_id: str, entries: list[Any]) -> None: ...
    def call_delta(self, step_id: str, calls: list[Any], delta: Fields) -> None: ...
    def completed(self, result: Fields) -> None: ...
    def agent_update(self, part: Fields) -> None: ...
    def steer(self, index: int, part: Fields) -> None: ...
    def parts(self) -> list[Fields]: ...
    def card_positions(self) -> dict[str, int]: ...


def fold(events: Iterable[Any], *, compat: Compat | None = None) -> list[ContentPart]:
    """The content parts of an answer, from its event values (``StreamEvent.data``) in order.

    See ``ContentFold`` for what counts as an event and for ``compat``.

    Raises:
        InvalidArgumentError: ``compat`` is not a known version.
    """
    folded = ContentFold(compat=compat)
    for event in events:
        folded.add(event)
    return folded.parts


class ContentFold:
    """Content parts and run steps of an answer that grows event by event.

    An event is ``{"event": name, "data": {…}}`` with one of LibreChat's names; anything else, and whatever is
    malformed, is left alone and never raises. Each event must be added once: one that is added again counts again.

    ``compat=None`` gives the behaviour of agents 3.6 and also joins argument fragments that do not repeat the name of
    their tool, so that a half-written call shows its arguments. ``"3.1"`` and ``"3.6"`` reproduce those versions.

    Raises:
        InvalidArgumentError: ``compat`` is not a known version.
    """

    def __init__(self, *, compat: Compat | None = None) -> None:
        self._rules: _Rules
        if compat == "3.1":
            self._rules = Baseline()
        elif compat is None or compat == "3.6":
            self._rules = Slots(unnamed_args=compat is None)
        else:
            raise InvalidArgumentError("compat", f'{compat!r} is not a known version; use "3.1", "3.6" or None')
        self._run_steps: dict[str, RunStep] = {}

    def add(self, event: Any) -> None:
        """Take the next event. Neither changes nor keeps it."""
        name, data = fields(event).get("event"), fields(fields(event).get("data"))
        if not isinstance(name, str) or not data:
            return
        try:
            self._add(name, data)
        except RecursionError:  # deeper than any answer; it was met while the payload was copied, before it counted
            return

    @property
    def parts(self) -> list[ContentPart]:
        """The content so far, without holes; a copy that is the caller's."""
        return self._rules.parts()

    @property
    def run_steps(self) -> list[RunStep]:
        """The run steps so far, newest form of each id, in order of first appearance; a copy that is the caller's.

        A step with tool calls carries the position of its card in ``parts`` as ``index`` (not with ``compat="3.1"``,
        which leaves the index of its event).
        """
        positions = self._rules.card_positions()
        steps: list[RunStep] = copied(list(self._run_steps.values()))
        for step in steps:
            if listed_calls(step) is not None and (position := positions.get(step["id"])) is not None:
                step["index"] = position
        return steps

    def _add(self, name: str, data: Fields) -> None:
        delta, step_id = fields(data.get("delta")), text(data.get("id"))
        if name == "on_run_step":
            self._keep_step(step_id, data)
            if step_id and (index := whole(data.get("index"))) is not None:
                self._rules.step(step_id, index, data)
        elif name in {"on_message_delta", "on_reasoning_delta"}:
            content = delta.get("content")
            self._rules.delta(step_id, [content] if isinstance(content, dict) else items(content))
        elif name == "on_run_step_delta":
            if delta.get("type") == "tool_calls":
                self._rules.call_delta(step_id, items(delta.get("tool_calls")), delta)
        elif name == "on_run_step_completed":
            self._keep_step(step_id, data)
            self._rules.completed(fields(data.get("result")))
        elif name == "on_agent_update":
            self._rules.agent_update(data)
        elif name == "on_steer_applied":
            part, index = fields(data.get("part")), whole(data.get("index"))
            if index is not None and text(part.get("type")):
                self._rules.steer(index, part)

    def _keep_step(self, step_id: str, step: Fields) -> None:
        if step_id:
            self._run_steps[step_id] = copied(step)
