"""Carries out programs of operations on replicas, and holds what they answer against the model.

A program is a list of blocks; the operations of a block run at the same time. Owns the replicas, the numbers that
events, usage entries and ends are told apart by, and a witness: a replica that is never harmed and reads every
generation from its start. ``Session.finish`` ends what runs and checks everything that anybody was given.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from backends import Backend, Replica
from model import Asked, Drift, End, Log, Op, World, Written, after
from model_viewers import Viewer, Watcher, end_in
from waiting import eventually

from natsjobs import Config, ConnectionLostError
from natsjobs.engine.wire import Cursor
from natsjobs.errors import (
    GenerationReplacedError,
    HistoryLostError,
    InvalidCursorError,
    JobClosedError,
    JobNotFoundError,
    JobRunningError,
)

Block = Sequence[Op]
REPLICAS = 3
_ANSWERS = {
    JobClosedError: "closed",
    JobNotFoundError: "not_found",
    JobRunningError: "running",
    InvalidCursorError: "invalid",
    HistoryLostError: "lost",
    GenerationReplacedError: "replaced",
}
_ERRORS = tuple(_ANSWERS)
_WITHIN = 30.0


class Session:
    """One run of one program on one stream id."""

    def __init__(self, backend: Backend, config: Config) -> None:
        self.backend, self.config = backend, config
        self.worlds: set[World] = {World()}
        self.trace: list[str] = []
        self.seen = self.emitted = 0
        self._now = 0
        self._numbers = 0
        self._slots: list[tuple[int, Replica]] = []
        self._dead: set[int] = set()
        self._alone, self._dropped = True, False
        self._generations: list[str] = []
        self._logs: dict[str, Log] = {}
        self._witnesses: dict[str, Viewer] = {}
        self._viewers: list[Viewer] = []
        self._watchers: list[tuple[int, Watcher]] = []
        self._cursors: list[tuple[str, int, str]] = []
        self._usage: dict[int, str] = {}
        self._claimed: list[int] = []
        self._removed: set[str] = set()
        self._touched = self._calm = time.monotonic()

    async def start(self) -> None:
        """Open the replicas."""
        self._witness = await self.backend.replica(self.config)
        for number in range(REPLICAS):
            self._slots.append((number, await self.backend.replica(self.config)))

    async def run(self, program: Sequence[Block]) -> None:
        """All blocks, one after the other."""
        for block in program:
            await self._block(block)

    async def _block(self, block: Block) -> None:
        self._now += 1
        if any(op.kind in {"delete", "clear", "forget"} for op in block):
            await self._witnessed()
        known, self._alone = list(self._generations), len(block) == 1
        before = self._drift().worlds(self.worlds)
        answers = await asyncio.gather(*(getattr(self, f"_{op.kind}")(op, known) for op in block))
        self.trace.append(", ".join(f"{op} -> {said}" for op, (_, said) in zip(block, answers, strict=True)))
        done = [(asked, said) for asked, said in answers if asked is not None]
        drift = self._drift()
        left = drift.worlds(after(before, done, drift))
        assert left, "no order of these answers is possible:\n" + "\n".join([*self.trace, f"before: {before}"])
        self.worlds = left
        for asked, said in done:
            if asked.kind == "create" and isinstance(said, tuple):
                self._generations = sorted({*self._generations, said[1]})
        if (newest := self._generations[-1:]) and newest[0] not in self._logs:
            await self._attend(newest[0])
        if any(asked.kind == "create" for asked, _ in done) or all(world.running for world in left):
            self._calm = time.monotonic()

    def _drift(self) -> Drift:
        running, finished = self.config.retention.running, self.config.retention.finished
        idle = running > 0 and time.monotonic() - self._touched > running * 0.4
        old = time.monotonic() - self._calm > finished * 0.4
        if old:
            self._removed |= set(self._generations)
        return Drift(frozenset(self._dead), idle, old)

    async def _attend(self, generation: str) -> None:
        witness = Viewer(self._witness, start=0, follow=False)
        if await self._ask(witness.enter("s", None)) == generation:
            self._logs[generation], self._witnesses[generation] = Log(generation), witness
            if generation in self._removed:
                witness.excused = True
        else:
            await witness.close()

    async def _ask(self, call: Awaitable[Any]) -> Any:
        """An answer as the model writes it."""
        try:
            return await call
        except _ERRORS as error:
            return next(said for kind, said in _ANSWERS.items() if isinstance(error, kind))

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _named(self, op: Op, known: list[str]) -> str | None:
        """The generation that an operation names: the newest, and now and then an earlier one."""
        if not known:
            return None
        return known[-2] if op.pick == 7 and len(known) > 1 else known[-1]

    # -- writing ------------------------------------------------------------------------------------------------

    async def _create(self, op: Op, known: list[str]) -> tuple[Asked, Any]:
        who, replica = self._slots[op.replica]
        reject = op.pick % 3 == 0
        said = await self._ask(replica.store.create_job("s", "alice", if_running="reject" if reject else "replace"))
        self._touched = time.monotonic()
        return Asked("create", None, who, reject=reject), said if isinstance(said, str) else (
            "created",
            said.generation,
        )

    async def _write(self, op: Op, known: list[str], call: Callable[..., Awaitable[Any]]) -> tuple[Asked, Any, Any]:
        who, generation = self._slots[op.replica][0], self._named(op, known)
        written = Written(self._number(), who, self._now)
        log = self._logs.get(generation or "")
        if log is not None:
            log.written.append(written)
        self.emitted += 1
        said = await self._ask(call("s", written.value, generation=generation))
        if isinstance(said, str):
            written.refused = True
        elif said is None:
            written.place = self._number()
        if not isinstance(said, str):
            self._touched = time.monotonic()
        return Asked("append", generation, who), said, (log, written)

    async def _emit(self, op: Op, known: list[str]) -> tuple[Asked | None, Any]:
        for _ in range(op.pick % 4 + 1):
            asked, said, _ = await self._write(op, known, self._slots[op.replica][1].transport.emit_chunk)
            if isinstance(said, str):
                return asked, said
        return None, "queued"

    async def _append(self, op: Op, known: list[str]) -> tuple[Asked, Any]:
        asked, said, (log, written) = await self._write(op, known, self._slots[op.replica][1].store.append_chunk)
        if isinstance(said, str):
            return asked, said
        assert log is not None, f"stored in a generation that nobody made: {asked}"
        written.index, written.stored = said, self._now
        return asked, "stored"

    async def _flush(self, op: Op, known: list[str]) -> tuple[Asked | None, Any]:
        who, replica = self._slots[op.replica]
        generation = self._named(op, known)
        queued = self._queued(generation, who)
        said = await self._ask(replica.transport.flush("s", generation=generation))
        self._stored(queued if said is None else [])
        return (Asked("append", generation, who), said) if said is not None else (None, "flushed")

    def _queued(self, generation: str | None, who: int) -> list[Written]:
        log = self._logs.get(generation or "")
        return log.queued_by(who) if log is not None else []

    def _stored(self, written: list[Written]) -> None:
        for one in written:
            one.stored = self._now

    # -- ending -------------------------------------------------------------------------------------------------

    async def _end(self, op: Op, known: list[str], end: End, call: Callable[..., Awaitable[Any]]) -> tuple[Asked, Any]:
        who, generation = self._slots[op.replica][0], self._named(op, known)
        queued = self._queued(generation, who)
        said = await self._ask(call(generation))
        self._stored(queued if said in {None, True} else [])
        kind = "finish" if said is None or isinstance(said, str) else "update"
        return Asked(kind, generation, who, end), "ended" if said is None else said

    async def _done(self, op: Op, known: list[str]) -> tuple[Asked, Any]:
        data = {"final": self._number()}
        transport = self._slots[op.replica][1].transport
        return await self._end(
            op,
            known,
            End("done", None, json.dumps(data)),
            lambda g: transport.emit_done("s", json.dumps(data), generation=g),
        )

    async def _fail(self, op: Op, known: list[str]) -> tuple[Asked, Any]:
        text, transport = f"boom {self._number()}", self._slots[op.replica][1].transport
        return await self._end(
            op, known, End("error", None, text), lambda g: transport.emit_error("s", text, generation=g)
        )

    async def _update(self, op: Op, known: list[str]) -> tuple[Asked, Any]:
        text, store = f"text {self._number()}", self._slots[op.replica][1].store
        status = ("complete", "error", "aborted")[op.pick % 3]
        end = (End("done", None, text), End("error", None, text), End("aborted", "abort", text))[op.pick % 3]
        fields = {"error": text} if status == "error" else {"final_event": json.dumps(text)}
        return await self._end(
            op, known, end, lambda g: store.update_job("s", expected_generation=g, status=status, **fields)
        )

    async def _abort(self, op: Op, known: list[str]) -> tuple[Asked, Any]:
        who, replica = self._slots[op.replica]
        generation, data = self._named(op, known), self._number()
        if op.pick == 0 and len(known) < 2:
            generation = None
        queued = [
            one
            for owner in {world.owner for world in self.worlds}
            for one in self._queued(known[-1] if known else None, owner)
        ]
        result = await replica.manager.abort("s", generation=generation, final_event=data)
        asked = Asked("abort", generation, who, End("aborted", "abort", data))
        if not result.success:
            assert not result.collected_usage, "nothing may be claimed"
            return asked, result.reason
        assert result.job_data is not None
        self._claim_given(result.job_data.generation, result.collected_usage)
        if result.acknowledged and [result.job_data.generation] == known[-1:]:
            self._stored(queued)
        return asked, "aborted"

    async def _delete(self, op: Op, known: list[str]) -> tuple[Asked, Any]:
        who, replica = self._slots[op.replica]
        generation = self._named(op, known)
        self._excuse(set(known))
        said = await replica.store.delete_job("s", expected_generation=generation)
        return Asked("delete", generation, who), said

    async def _clear(self, op: Op, known: list[str]) -> tuple[Asked, Any]:
        who, replica = self._slots[op.replica]
        generation = self._named(op, known)
        for number, slot in self._slots:
            queued = self._queued(generation, number)
            self._stored(queued if await self._ask(slot.transport.flush("s", generation=generation)) is None else [])
        base = await self._length(generation)
        if generation is not None and base is not None:
            await self._caught_up(self._witnesses[generation], base)
        self._excuse({generation or ""})
        said = await self._ask(replica.store.clear_content_state("s", generation=generation))
        if said is None and base is not None:
            assert await self._length(generation) in {base, None}, "events came or went with the clearing"
        return Asked("clear", generation, who, base=base or 0), "cleared" if said is None else said

    async def _length(self, generation: str | None) -> int | None:
        """How many events the generation has, if it is the newest and its witness is there."""
        state = await self._witness.store.get_resume_state("s")
        if state is None or state.generation != generation or generation not in self._witnesses:
            return None
        return Cursor.parse(state.cursor).position

    def _excuse(self, generations: set[str]) -> None:
        self._removed |= generations
        for viewer in [*self._viewers, *(self._witnesses[g] for g in generations if g in self._witnesses)]:
            viewer.excused = True

    # -- reading ------------------------------------------------------------------------------------------------

    async def _get(self, op: Op, known: list[str]) -> tuple[Asked, Any]:
        job = await self._slots[op.replica][1].store.get_job("s")
        said = None if job is None else (job.generation, job.status.value, job.end_reason and job.end_reason.value)
        return Asked("get"), said

    async def _active(self, op: Op, known: list[str]) -> tuple[Asked, Any]:
        found = await self._slots[op.replica][1].store.get_active_job_ids_by_user("alice")
        return Asked("active"), found == ["s"]

    async def _count(self, op: Op, known: list[str]) -> tuple[Asked, Any]:
        store = self._slots[op.replica][1].store
        jobs = await store.list_jobs(user_id="alice")
        assert [job.stream_id for job in jobs] in (["s"], [])
        return Asked("count"), (len(jobs), sum(job.status == "running" for job in jobs))

    async def _state(self, op: Op, known: list[str]) -> tuple[Asked, Any]:
        state = await self._slots[op.replica][1].store.get_resume_state("s")
        if state is None:
            return Asked("active"), False
        position = Cursor.parse(state.cursor).position
        if (log := self._logs.get(state.generation)) is not None:
            assert position >= sum(one.stored is not None and one.stored < self._now for one in log.written)
            self._cursors.append((state.generation, position, state.cursor))
        return Asked("active"), not state.status.is_terminal

    async def _view(self, op: Op, known: list[str]) -> tuple[Asked, Any]:
        replica = self._slots[op.replica][1]
        cursor, text = self._cursor(op.pick, known)
        start = int(cursor[1]) if isinstance(cursor, tuple) else None
        viewer = Viewer(replica, start=start, follow=False)
        said = await self._ask(viewer.enter("s", text))
        asked = Asked("read", cursor=cursor)
        if said not in known:
            await viewer.close()
            return asked, said
        if start is None and (bases := {world.base for world in self.worlds if world.newest == said}):
            viewer.start = min(bases)
        viewer.excused = viewer.excused or said in self._removed
        self._viewers.append(viewer)
        return asked, ("entered", said)

    def _cursor(self, pick: int, known: list[str]) -> tuple[Any, str | None]:
        strange = [
            (None, None),
            ("garbage", ("x", "", "0" * 19 + "-0-0", "é" * 40)[self._now % 4]),
            (("0" * 19, 0), str(Cursor("0" * 19, 0, 0))),
        ]
        if known:
            strange.append(((known[-1], 2_000_000), str(Cursor(known[-1], 2_000_000, 1))))
        for viewer in self._viewers:
            strange += [((e.generation, e.index + 1), e.cursor) for e in viewer.events]
        strange += [((generation, position), text) for generation, position, text in self._cursors]
        return strange[0] if pick < 3 else strange[(pick * 31 + self._now * 7) % len(strange)]

    async def _follow(self, op: Op, known: list[str]) -> tuple[Asked | None, Any]:
        viewer = Viewer(self._slots[op.replica][1], start=None, follow=True)
        said = await self._ask(viewer.enter("s", None))
        if said not in known:
            await viewer.close()
            return Asked("read"), said
        viewer.excused = said in self._removed
        self._viewers.append(viewer)
        return Asked("read"), ("entered", said)

    async def _watch(self, op: Op, known: list[str]) -> tuple[Asked | None, Any]:
        generation = self._named(op, known)
        if generation is None:
            return None, "nothing to watch"
        who, replica = self._slots[op.replica]
        watcher = Watcher(replica, generation)
        await watcher.enter("s")
        self._watchers.append((who, watcher))
        return None, "watching"

    async def _catch_up(self, op: Op, known: list[str]) -> tuple[Asked | None, Any]:
        await self._witnessed()
        for viewer in self._viewers:
            if known and not viewer.excused and self._lives(viewer.replica) and viewer.events:
                seen = self._witnesses[known[-1]].values(known[-1]) if known[-1] in self._witnesses else []
                if viewer.events[-1].generation == known[-1] and not viewer.over and seen:
                    await eventually(
                        lambda v=viewer, last=seen[-1], g=known[-1]: v.over or last in v.values(g),
                        within=_WITHIN,
                        what=f"a viewer gets {seen[-1]}; it has {viewer.values(known[-1])}",
                    )
        return None, "caught up"

    async def _witnessed(self) -> None:
        """The witness of the newest generation has what is known to be stored."""
        for generation, witness in self._witnesses.items():
            if not witness.excused:
                await self._caught_up(witness, 0, self._logs[generation].acknowledged())

    async def _caught_up(self, viewer: Viewer, count: int, values: set[int] | None = None) -> None:
        def there() -> bool:
            got = {e.data for e in viewer.events if not e.is_terminal}
            return viewer.over or (len(got) >= count and not (values or set()) - got)

        await eventually(there, within=_WITHIN, what=f"the witness gets {count} events, {values}: {viewer.events}")

    # -- usage --------------------------------------------------------------------------------------------------

    async def _usage_entry(self, op: Op, known: list[str]) -> tuple[Asked | None, Any]:
        generation = self._named(op, known)
        if generation is None:
            return None, "no turn"
        number = self._number()
        store = self._slots[op.replica][1].store
        await store.record_usage("s", {"input_tokens": number, "model": "m"}, generation=generation)
        self._usage[number] = generation
        return None, "recorded"

    async def _claim(self, op: Op, known: list[str]) -> tuple[Asked | None, Any]:
        generation = self._named(op, known)
        if generation is not None:
            due = {n for n, g in self._usage.items() if g == generation} - set(self._claimed)
            given = await self._slots[op.replica][1].store.claim_usage("s", generation=generation)
            self._claim_given(generation, given)
            assert not (self._alone and due - set(self._claimed)), f"nobody got {due - set(self._claimed)}"
        return None, "claimed"

    def _claim_given(self, generation: str, entries: list[Any]) -> None:
        for entry in entries:
            number = entry.input_tokens
            assert number not in self._claimed, f"usage {number} was handed out twice"
            assert self._usage.get(number, generation) == generation, f"usage {number} is another turn's"
            self._claimed.append(number)

    # -- faults -------------------------------------------------------------------------------------------------

    def _lives(self, replica: Replica) -> bool:
        return replica is self._witness or any(replica is one for _, one in self._slots)

    async def _replaced(self, op: Op) -> int:
        who, _ = self._slots[op.replica]
        self._slots[op.replica] = (who + 100, await self.backend.replica(self.config))
        return who

    async def _kill(self, op: Op, known: list[str]) -> tuple[Asked | None, Any]:
        """With a pick of 4 and above it is the owner who dies."""
        owners = {world.owner for world in self.worlds} if op.pick >= 4 else set()
        mine = [number for number, (who, _) in enumerate(self._slots) if who in owners]
        op = Op("kill", mine[0] if mine else op.replica, op.pick)
        who, replica = self._slots[op.replica]
        told = [one.error for one in self._viewers if one.replica is replica]
        assert not any(isinstance(error, ConnectionLostError) for error in told), told
        await replica.kill()
        self._dead.add(who)
        await self._replaced(op)
        return None, f"killed {who}"

    async def _leave(self, op: Op, known: list[str]) -> tuple[Asked, Any]:
        who, replica = self._slots[op.replica]
        certain = len(self.worlds) == 1 and not self._dropped
        mine = {world.newest for world in self.worlds if certain and world.running}
        queued = [one for generation in mine for one in self._queued(generation, who)]
        await replica.close()
        self._stored(queued)
        await self._replaced(op)
        return Asked("leave", None, who), "left"

    async def _drop(self, op: Op, known: list[str]) -> tuple[Asked | None, Any]:
        self._dropped = True
        await self._slots[op.replica][1].drop_connection()
        return None, "dropped"

    async def _mute(self, op: Op, known: list[str]) -> tuple[Asked | None, Any]:
        for _, replica in self._slots:
            await replica.lose_live_messages()
        return None, "mute"

    # -- waiting ------------------------------------------------------------------------------------------------

    async def _settle(self, op: Op, known: list[str]) -> tuple[Asked | None, Any]:
        """A dead owner's job is ended by those who are left, about as soon as its lease says."""
        if not any(world.running and world.owner in self._dead for world in self.worlds):
            return None, "nobody died"
        limit = max(self.config.timing.lease * 3, 20.0)
        await self._until(lambda job: job is None or job.status != "running", limit)
        return await self._get(op, known)

    async def _expire(self, op: Op, known: list[str]) -> tuple[Asked | None, Any]:
        """Nobody does anything until a running job has ended by itself."""
        running = self.config.retention.running
        if not 0 < running < 100 or not any(world.running for world in self.worlds):
            return None, "nothing runs"
        await self._until(lambda job: job is None or job.status != "running", running * 10)
        return await self._get(op, known)

    async def _forget(self, op: Op, known: list[str]) -> tuple[Asked | None, Any]:
        """Nobody does anything until an ended job is gone."""
        if self.config.retention.finished > 100 or all(world.running for world in self.worlds):
            return None, "nothing ended"
        self._excuse(set(known))
        await self._until(lambda job: job is None or job.status == "running", self.config.retention.finished * 10)
        return await self._get(op, known)

    async def _until(self, check: Callable[[Any], bool], limit: float) -> None:
        async def there() -> bool:
            return check(await self._witness.store.get_job("s"))

        await eventually(there, within=limit)

    # -- the end ------------------------------------------------------------------------------------------------

    async def finish(self) -> None:
        """End what runs, let everybody read to the end, and check all that anybody was given."""
        slots, self._slots = self._slots, [(-2, self._witness)]
        await self._block([Op("abort", 0, 1)])
        await self._block([Op("get")])
        self._slots = slots
        for generation, witness in self._witnesses.items():
            await eventually(lambda w=witness: w.over, within=_WITHIN, what=f"the witness of {generation} ends")
        ends = {g: end for g, witness in self._witnesses.items() if (end := witness.end(g)) is not None}
        for generation, witness in self._witnesses.items():
            self._logs[generation].seen = witness.values(generation)
            self.seen += len(witness.events)
            assert witness.excused or (generation in ends and witness.error is None), (witness.error, witness.events)
            if not witness.error:
                self._logs[generation].check()
                assert ends[generation].index == witness.events[0].index + len(witness.events) - 1
        fitting = {w for w in self.worlds if all(w.end_of(g) == end_in(end) for g, end in ends.items())}
        assert fitting, f"viewers were told {[(g, end_in(end)) for g, end in ends.items()]}; possible: {self.worlds}"
        await self._check_viewers(ends)
        await self._check_usage()

    async def _check_viewers(self, ends: dict[str, Any]) -> None:
        logs = {g: log for g, log in self._logs.items() if not self._witnesses[g].error}
        last = self._generations[-1] if self._generations else ""
        for viewer in self._viewers:
            if self._lives(viewer.replica):
                done = (
                    (lambda v=viewer: v.over or v.end(last) is not None) if viewer.follow else (lambda v=viewer: v.over)
                )
                if last in ends:
                    await eventually(done, within=_WITHIN, what=f"a viewer ends; it has {viewer.events}")
                if not viewer.follow and viewer.error is None and viewer.events:
                    assert viewer.events[-1].is_terminal
            await viewer.close()
            viewer.check(logs, ends, alive=self._lives(viewer.replica))
            self.seen += len(viewer.events)
        for who, watcher in self._watchers:
            removed = watcher.generation in self._removed
            if any(who == alive for alive, _ in self._slots) and watcher.generation in ends and not removed:
                await eventually(lambda w=watcher: w.ends, within=_WITHIN, what="a callback for an end is called")
            watcher.check(ends, removed=removed)

    async def _check_usage(self) -> None:
        for generation in self._generations:
            self._claim_given(generation, await self._witness.store.claim_usage("s", generation=generation))
        assert sorted(self._claimed) == sorted(self._usage), f"recorded {self._usage}, handed out {self._claimed}"

    async def close(self) -> None:
        """Leave everything, whether or not it went well."""
        for viewer in [*self._viewers, *self._witnesses.values()]:
            await viewer.close()
        await self.backend.close()
