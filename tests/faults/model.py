"""What one stream id must do: a pure model of its generations, and of one generation's log.

Owns the rules: which answers an operation may have, and what it leaves behind. Knows nothing of how operations are
carried out (``model_runner`` does that) nor of time. Where the library is free (who wins a race, whether a dead
owner's job has been ended yet), the model holds every ``World`` that is still possible; an answer that fits none of
them is a defect. Operations that ran at the same time must fit one order of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

STATUS = {"done": "complete", "error": "error", "aborted": "aborted"}


@dataclass(frozen=True)
class End:
    """A terminal record: its kind, its reason and its data."""

    kind: str
    reason: str | None = None
    data: Any = None


LOST = End("error", "owner_lost", "the process that ran this job is gone")
EXPIRED = End("error", "expired", "the job had no activity for too long")
SHUTDOWN = End("error", "shutdown", "the run's process shut down before it was finished")


@dataclass(frozen=True)
class Op:
    """One operation. ``replica``: who carries it out; ``pick``: its free choice, whatever that is for its kind."""

    kind: str
    replica: int = 0
    pick: int = 0

    def __repr__(self) -> str:
        return f"Op({self.kind!r}, {self.replica}, {self.pick})"


@dataclass(frozen=True)
class Asked:
    """An operation as it was carried out: with the generation it named and what it wrote."""

    kind: str
    generation: str | None = None
    who: int = 0
    """The incarnation of a replica that asked."""
    end: End | None = None
    reject: bool = False
    cursor: tuple[str, int] | str | None = None
    """(generation, position), ``"garbage"``, or ``None``: from the start."""
    base: int = 0
    """How many events a clearing found."""


@dataclass(frozen=True)
class World:
    """One way things may stand: every generation with its end, and whether the newest still has its record."""

    ends: tuple[tuple[str, End | None], ...] = ()
    owner: int = -1
    exists: bool = False
    base: int = 0
    """Events of the newest generation before this index were cleared."""

    @property
    def newest(self) -> str | None:
        """The newest generation."""
        return self.ends[-1][0] if self.ends else None

    @property
    def end(self) -> End | None:
        """How the newest generation ended."""
        return self.ends[-1][1] if self.ends else None

    @property
    def running(self) -> bool:
        """Whether there is a job that has not ended."""
        return self.exists and self.end is None

    def ended(self, end: End) -> World:
        """The same, with the newest generation ended."""
        return replace(self, ends=(*self.ends[:-1], (self.ends[-1][0], end)))

    def end_of(self, generation: str) -> End | None:
        """How any generation ended."""
        return dict(self.ends).get(generation)


Outcome = tuple[Any, World]


def step(world: World, asked: Asked, answer: Any) -> Iterator[Outcome]:
    """What may be answered, and how things then stand. ``answer`` only names what the library chooses itself."""
    if asked.kind == "create":
        yield _create(world, asked, answer)
    elif asked.kind in _WRITES:
        yield _WRITES[asked.kind](world, asked)
    else:
        yield _READS[asked.kind](world, asked), world
        if isinstance(asked.cursor, tuple) and asked.cursor[0] == world.newest and asked.cursor[1] < world.base:
            yield ("entered", world.newest), world  # a replica that still holds what was cleared may give it


def _create(world: World, asked: Asked, answer: Any) -> Outcome:
    if world.running and asked.reject:
        return "running", world
    if world.running:
        world = world.ended(End("aborted", "replaced"))
    if not isinstance(answer, tuple) or any(answer[1] <= generation for generation, _ in world.ends):
        return "a generation that sorts behind all earlier ones", world
    return answer, World((*world.ends, (answer[1], None)), asked.who, exists=True)


def _refused(world: World, asked: Asked, *, ended: bool = False) -> str | None:
    """Why a write to a generation is refused. ``ended``: an ended one may be written to."""
    if not world.exists:
        return "closed" if asked.generation else "not_found"
    if asked.generation not in {None, world.newest} or (world.end is not None and not ended):
        return "closed"
    return None


def _append(world: World, asked: Asked) -> Outcome:
    return _refused(world, asked) or "stored", world


def _finish(world: World, asked: Asked) -> Outcome:
    assert asked.end is not None
    refusal = _refused(world, asked)
    return (refusal, world) if refusal else ("ended", world.ended(asked.end))


def _update(world: World, asked: Asked) -> Outcome:
    assert asked.end is not None
    return (False, world) if _refused(world, asked) else (True, world.ended(asked.end))


def _abort(world: World, asked: Asked) -> Outcome:
    assert asked.end is not None
    if not world.exists:
        return "not_found", world
    if asked.generation not in {None, world.newest}:
        return "replaced", world
    return ("ended", world) if world.end else ("aborted", world.ended(asked.end))


def _delete(world: World, asked: Asked) -> Outcome:
    if not world.exists or asked.generation not in {None, world.newest}:
        return False, world
    if world.end is None:
        world = world.ended(End("aborted", "deleted"))
    return True, replace(world, exists=False)


def _clear(world: World, asked: Asked) -> Outcome:
    refusal = _refused(world, asked, ended=True)
    return (refusal, world) if refusal else ("cleared", replace(world, base=asked.base))


def _leave(world: World, asked: Asked) -> Outcome:
    """A replica is closed in good order."""
    return "left", world.ended(SHUTDOWN) if world.running and world.owner == asked.who else world


def _get(world: World, asked: Asked) -> Any:
    if not world.exists:
        return None
    end = world.end
    return (world.newest, STATUS[end.kind], end.reason) if end else (world.newest, "running", None)


def _active(world: World, asked: Asked) -> Any:
    return world.running


def _count(world: World, asked: Asked) -> Any:
    return int(world.exists), int(world.running)


def _read(world: World, asked: Asked) -> Any:
    cursor = asked.cursor
    if cursor == "garbage":
        return "invalid"
    if not world.exists:
        return "not_found" if cursor is None else "lost"
    if cursor is None:
        return "entered", world.newest
    if cursor[0] != world.newest:
        return "replaced"
    return "lost" if int(cursor[1]) < world.base or int(cursor[1]) > 1_000_000 else ("entered", world.newest)


_WRITES: dict[str, Callable[[World, Asked], Outcome]] = {
    "append": _append,
    "finish": _finish,
    "update": _update,
    "abort": _abort,
    "delete": _delete,
    "clear": _clear,
    "leave": _leave,
}
_READS = {"get": _get, "active": _active, "count": _count, "read": _read}


def after(worlds: Iterable[World], done: list[tuple[Asked, Any]], drift: Drift) -> set[World]:
    """The worlds that are left after these operations, which ran at the same time, were answered as they were."""
    todo = [(world, frozenset(range(len(done)))) for world in worlds]
    seen: set[tuple[World, frozenset[int]]] = set()
    while todo:
        here = todo.pop()
        if here in seen:
            continue
        seen.add(here)
        world, left = here
        todo += [(one, left) for one in drift.worlds({world})]
        for number in left:
            asked, answer = done[number]
            todo += [(one, left - {number}) for said, one in step(world, asked, answer) if said == answer]
            if len(done) > 1 and (begun := _begun(world, asked)) is not None:
                todo.append((begun, left))
    return {world for world, left in seen if not left}


def _begun(world: World, asked: Asked) -> World | None:
    """What others may see of an operation that takes two steps: first the end, then the record."""
    if not world.running or asked.generation not in {None, world.newest}:
        return None
    if asked.kind == "create" and not asked.reject:
        return world.ended(End("aborted", "replaced"))
    return world.ended(End("aborted", "deleted")) if asked.kind == "delete" else None


@dataclass(frozen=True)
class Drift:
    """What may happen by itself now: a dead owner's job ends, an idle one expires, an old record goes."""

    dead: frozenset[int] = frozenset()
    idle: bool = False
    old: bool = False

    def worlds(self, worlds: Iterable[World]) -> set[World]:
        """These, and all that they may have become."""
        found = set(worlds)
        for world in list(found):
            ends = ([LOST] if world.owner in self.dead else []) + ([EXPIRED] if self.idle else [])
            if world.running:
                found |= {world.ended(end) for end in ends}
        if self.old:
            found |= {replace(world, exists=False) for world in found if world.exists and not world.running}
        return found


# -- one generation's log ---------------------------------------------------------------------------------------------


@dataclass
class Written:
    """One event. Times are numbers of steps of the program."""

    value: int
    writer: int
    issued: int
    stored: int | None = None
    index: int | None = None
    place: int | None = None
    """Set when its writer was told that it is in the queue: the order of these is the order in the log."""
    refused: bool = False


@dataclass
class Log:
    """Everything that was written to one generation, and what a witness read from it."""

    generation: str
    written: list[Written] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)

    def queued_by(self, writer: int) -> list[Written]:
        """What this writer has queued so far."""
        return [one for one in self.written if one.writer == writer and one.place is not None and one.stored is None]

    def acknowledged(self) -> set[int]:
        """Values that their writer knows to be stored."""
        return {one.value for one in self.written if one.stored is not None}

    def check(self) -> None:
        """What the witness saw is an order of what was written that keeps every promise to the writers."""
        place = {value: number for number, value in enumerate(self.seen)}
        assert len(place) == len(self.seen), f"doubled: {self.seen}"
        known = {one.value: one for one in self.written}
        assert not place.keys() - known.keys(), f"never written to this generation: {place.keys() - known.keys()}"
        assert not self.acknowledged() - place.keys(), f"lost: {self.acknowledged() - place.keys()}"
        for one in self.written:
            assert not (one.refused and one.value in place), f"refused and stored all the same: {one}"
            assert one.index in {None, place.get(one.value)}, f"stored elsewhere than its writer was told: {one}"
        for writer in {one.writer for one in self.written}:
            queued = [one for one in self.written if one.writer == writer and one.place is not None]
            mine = [one.value for one in sorted(queued, key=lambda one: one.place or 0)]
            assert [v for v in self.seen if v in mine] == mine[: sum(v in place for v in mine)], f"reordered: {mine}"
        for a, b in itertools.permutations([known[value] for value in self.seen], 2):
            if a.stored is not None and a.stored < b.issued:
                assert place[a.value] < place[b.value], f"{b} is before {a}"

    def check_run(self, start: int, values: list[int]) -> None:
        """A viewer's events are a contiguous run of the log."""
        assert values == self.seen[start : start + len(values)], (
            f"a viewer of {self.generation} got {values} from {start} on; the log is {self.seen}"
        )
