"""Content and run steps of a generation: live objects on this replica, saved steps, and the fold of the log.

Owns what becomes of callers' objects: content is given out in its JSON form only, which ``Config.enc_hook`` helps to
find. A live object that has none is told in the log and counts as absent; what ``Config.fold`` does wrong is a
``ConfigError`` for whoever asks for content, and nobody else's.
"""

from __future__ import annotations

import logging
import traceback
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

import msgspec

from natsjobs.content import ContentFold
from natsjobs.engine import garbage, wire
from natsjobs.engine.context import Context
from natsjobs.engine.patience import patiently
from natsjobs.engine.ports import StreamMissingError, WrongSequenceError
from natsjobs.engine.replay import Batch, Replay, Verdict
from natsjobs.engine.terminals import find_terminal, position_after
from natsjobs.errors import ConfigError, EventTooLargeError, InvalidArgumentError
from natsjobs.models import ContentPart, EventType, RunStep

_log = logging.getLogger(__name__)

Fold: TypeAlias = Callable[[Iterable[Any]], list[ContentPart]]

_PARTS, _STEPS = "content_parts", "run_steps"


class Folded(msgspec.Struct):
    """What a log holds up to a position."""

    content: list[ContentPart]
    run_steps: list[RunStep]
    cursor: wire.Cursor


class ContentState:
    """Reads content and steps; holds the live objects that callers registered."""

    def __init__(self, context: Context) -> None:
        """Empty."""
        self._context = context
        self._graphs: dict[str, Callable[[], object | None]] = {}
        self._parts: dict[str, list[ContentPart]] = {}
        self._told: set[tuple[str, str]] = set()

    # -- live objects -------------------------------------------------------------------------------------------

    def set_graph(self, stream_id: str, graph: object) -> None:
        """Hold it weakly where its type allows that."""
        try:
            self._graphs[stream_id] = weakref.ref(graph)
        except TypeError:
            self._graphs[stream_id] = lambda: graph

    def set_parts(self, stream_id: str, parts: list[ContentPart]) -> None:
        """A list that the caller goes on filling."""
        if not isinstance(parts, list):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgumentError("parts", f"must be a list, not {type(parts).__name__}")
        self._parts[stream_id] = parts

    def forget(self, stream_id: str) -> None:
        """A new generation has nothing of the old one's."""
        self._graphs.pop(stream_id, None)
        self._parts.pop(stream_id, None)
        self._told -= {(stream_id, _PARTS), (stream_id, _STEPS)}

    @property
    def named(self) -> set[str]:
        """Stream ids with a live object."""
        return self._graphs.keys() | self._parts.keys()

    def _of_graph(self, stream_id: str, attribute: str) -> Any:
        """An attribute of the live graph; one that raises counts as absent."""
        reference = self._graphs.get(stream_id)
        graph = reference() if reference is not None else None
        try:
            found = getattr(graph, attribute, None)
            return found() if callable(found) else found
        except Exception as error:  # noqa: BLE001 - a disposed graph may raise anything (scenario 33)
            _log.info("the live graph of %s has no %s: %r; using the log", stream_id, attribute, error)
            return None

    def live_parts(self, stream_id: str) -> list[ContentPart]:
        """Content of the live object, empty when there is none."""
        return self._live(stream_id, _PARTS, self._parts.get(stream_id) or self._of_graph(stream_id, _PARTS))

    def live_steps(self, stream_id: str) -> list[RunStep]:
        """Run steps of the live object, empty when there are none."""
        return self._live(stream_id, _STEPS, self._of_graph(stream_id, _STEPS))

    def _live(self, stream_id: str, what: str, found: Any) -> list[dict[str, Any]]:
        """A copy of a live list; one without a JSON form counts as absent, and nobody's call fails for it."""
        try:
            return self._plain(part for part in found if part) if found else []
        except Exception as error:  # noqa: BLE001 - callers' objects may do anything
            if (stream_id, what) not in self._told:
                self._told.add((stream_id, what))
                _log.warning(
                    "the live %s of %s have no JSON form, so what the log holds is used: %s; put plain dicts into them "
                    '(pydantic: model_dump(mode="json")), or set Config(enc_hook=...)', what, stream_id, _short(error),
                )  # fmt: skip
            return []

    def _plain(self, parts: Iterable[Any]) -> list[dict[str, Any]]:
        """The JSON form of callers' objects, NaN as ``null``; whatever they raise when they have none."""
        raw = msgspec.json.Encoder(enc_hook=self._context.config.enc_hook).encode(list(parts))
        if not wire.is_shallow(raw) and not wire.is_json(b"[%b]" % raw):  # as it stands in the answer to an abort
            raise ValueError("nested too deeply")
        return msgspec.json.decode(raw, type=list[dict[str, Any]])

    # -- the log ------------------------------------------------------------------------------------------------

    async def folded(self, stream_id: str, generation: str) -> list[ContentPart]:
        """Content folded from the log, up to the newest event at the leader. Raises as ``fold`` does."""
        return (await self.fold(stream_id, generation)).content

    async def folded_steps(self, stream_id: str, generation: str) -> list[RunStep]:
        """Run steps folded from the log; ``Config.fold`` has no part in these."""
        return (await self._fold(stream_id, generation, None)).run_steps

    async def fold(self, stream_id: str, generation: str) -> Folded:
        """Content and steps folded from the log, with the cursor behind the last event.

        Raises:
            ConfigError: ``Config.fold`` raised, or gave something that is no content; its cause says what.
        """
        return await self._fold(stream_id, generation, self._context.config.fold)

    async def _fold(self, stream_id: str, generation: str, custom: Fold | None) -> Folded:
        steps = ContentFold()
        values: list[Any] = []
        cursor = wire.Cursor(generation, 0, 0)
        async for batch in self._batches(stream_id, generation):
            for raw in batch.raws if batch.type is EventType.EVENT else ():  # others only count (C5)
                try:
                    value = msgspec.json.decode(raw)
                except wire.UNREADABLE as error:
                    garbage.skipped("an event", f"of {generation}: {error}", raw)
                    continue
                steps.add(value)
                if custom is not None:
                    values.append(value)
            cursor = wire.Cursor(generation, batch.index + len(batch.raws), batch.seq)
        content = self._custom(custom, values, stream_id) if custom is not None else steps.parts
        return Folded(content, steps.run_steps, cursor)

    def _custom(self, fold: Fold, values: list[Any], stream_id: str) -> list[ContentPart]:
        try:
            return self._plain(fold(values))
        except Exception as error:
            raise ConfigError(
                "fold",
                f"no content parts for the events of job {stream_id!r}: {_short(error)}; it is called with all events "
                "of a log, must pass over what it does not know, and gives a list of dicts",
            ) from error

    async def _batches(self, stream_id: str, generation: str) -> AsyncIterator[Batch]:
        """All events that are in the log now; the leader decides where it ends."""
        context, events = self._context, self._context.link.events
        scope = context.subjects.scope(stream_id, generation)
        replay = Replay(0, 0)
        while True:
            seq = replay.seq + 1
            try:
                page = await patiently(partial(events.page, scope, seq), limit=context.patience)
                if not page:
                    first = await patiently(partial(events.next, scope, seq), limit=context.patience)
                    page = [first] if first is not None else []
            except StreamMissingError:
                page = []
            if not page:
                return
            for message in page:
                entry = wire.decode(message.body)
                verdict = replay.feed(message.seq, entry, end=message.subject.endswith(".end"))
                if isinstance(verdict, Batch):
                    yield verdict
                elif verdict in {Verdict.CLEARED, Verdict.GAP} and entry is not None:
                    # Removed on purpose, or expired: the content begins behind it.
                    replay = Replay(entry.index, message.seq)
                    verdict = replay.feed(message.seq, entry, end=message.subject.endswith(".end"))
                    if isinstance(verdict, Batch):
                        yield verdict
                    else:
                        yield Batch(entry.index, [], message.seq)

    # -- saved steps --------------------------------------------------------------------------------------------

    async def save_steps(self, stream_id: str, generation: str, steps: Sequence[RunStep]) -> None:
        """Store the whole list."""
        value = _plain_steps(steps, self._context.record_bytes)
        key = self._context.subjects.record("steps", stream_id, generation)
        ttl = max(self._context.config.retention.running * 2, self._context.config.retention.finished, 60)
        await self._context.records.write(key, {"steps": value, "write": wire.random_token()}, expect=None, ttl=ttl)

    async def saved_steps(self, stream_id: str, generation: str) -> list[RunStep]:
        """The stored list."""
        slot = await self._context.records.read(self._context.subjects.record("steps", stream_id, generation))
        try:
            return msgspec.convert((slot.value or {}).get("steps", []), list[RunStep])
        except msgspec.ValidationError:
            return []

    async def drop_steps(self, stream_id: str, generation: str) -> None:
        """Remove the stored list."""
        key = self._context.subjects.record("steps", stream_id, generation)
        if (await self._context.records.read(key)).value is not None:
            await self._context.records.remove(key, expect=None)

    # -- removal ------------------------------------------------------------------------------------------------

    async def clear(self, stream_id: str, generation: str) -> bool:
        """Replace the events of a log that has ended by a tombstone; False: it has not ended, its writer has to."""
        context, events = self._context, self._context.link.events
        log, end = context.subjects.log(stream_id, generation), context.subjects.end(stream_id, generation)
        scope = context.subjects.scope(stream_id, generation)
        while True:
            newest = await patiently(partial(events.last, scope), limit=context.patience)
            if newest is None:
                return True
            terminal = await find_terminal(context.link, end, newest)
            if terminal is None:
                return position_after(newest, 0) is None
            body = wire.tombstone_body("cleared", terminal.index, wire.random_token())
            try:
                await events.append(log, body, expect=newest.seq, scope=scope, rollup=True)
            except WrongSequenceError:
                continue  # somebody else cleared or removed it
            return True


def _short(error: Exception) -> str:
    """An exception of somebody else's in one line, also one that cannot be printed."""
    return traceback.format_exception_only(error)[0].strip()[:200]


def _plain_steps(steps: Sequence[RunStep], limit: int) -> list[Any]:
    if isinstance(steps, str | bytes) or not isinstance(steps, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgumentError("steps", f"must be a list of run steps, not {type(steps).__name__}")
    plain: list[Any] = msgspec.json.decode(wire.encode_event(list(steps), limit=1 << 40))
    if not all(isinstance(step, dict) for step in plain):
        raise InvalidArgumentError("steps", "every run step must be a JSON object")
    if (size := len(wire.ascii_json(plain))) > limit:
        raise EventTooLargeError(size, limit, field="steps")
    return plain


def merge_steps(saved: list[RunStep], folded: list[RunStep]) -> list[RunStep]:
    """Both lists by id: the log's entry wins, in order of first appearance (scenario 77)."""
    by_id: dict[Any, RunStep] = {}
    for number, step in enumerate([*saved, *folded]):
        step_id = step.get("id")
        by_id[step_id if isinstance(step_id, str) else ("unnamed", number)] = step
    return list(by_id.values())
