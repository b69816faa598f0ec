"""Who is alive: leases, suspicion, proof of death, and the end of what a dead owner left behind.

A lapsed lease is a suspicion, not a death (A1): after an outage all leases may have lapsed while every owner lives.
Death is: the lease is still absent at the leader, *and* two pings a pause apart stay without a valid answer, *and*
the judge itself has had an unbroken connection for longer than anybody's longest reconnect wait. Silence counts like
"no responders" (A2), a ping that this replica may not send counts for nothing; an answer counts only if it is ours and
names the replica.

How a lapsed lease is noticed: the bucket republishes the server's expiry marker, which makes it quick, and every
replica reads all leases every third of a lease, which makes it certain (A3). Suspicion stays until the owner is back
or its jobs are ended. The key's TTL is the promised lease less the time that the proof takes, in whole seconds, which
is all that NATS counts in; two renewals always fit in it, so that one may be lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from natsjobs.config import RECONNECT_WAIT
from natsjobs.engine import garbage, wire
from natsjobs.engine.aborts import Aborts
from natsjobs.engine.context import Context
from natsjobs.engine.jobs import is_generation
from natsjobs.engine.patience import patiently
from natsjobs.engine.ports import Incoming, Interest, Message, NoReplyError, NoRespondersError
from natsjobs.engine.records import slot_of
from natsjobs.engine.runs import Runs, lost_end
from natsjobs.errors import JobClosedError, NatsJobsError, PermissionDeniedError, UnavailableError
from natsjobs.models import EndReason
from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub

_log = logging.getLogger(__name__)

_REAP_AT_ONCE = 16
_ASK_BYTES = 24_576
"""Of runs in one ping: with what stands around them it fits into the smallest message, and so does the answer."""
_OWNER_BYTES = 256  # as much as any id may have


class Liveness:
    """Keeps this replica's lease and judges the others."""

    def __init__(self, context: Context, runs: Runs, aborts: Aborts) -> None:
        """Nothing happens before ``start``."""
        self._context, self._runs, self._aborts = context, runs, aborts
        lease = context.config.timing.lease
        self._ttl = max(1, int(lease * 0.7))
        self._renew = min(context.config.timing.renew, self._ttl / 2)
        self._pause = lease / 10
        self._known: set[str] = set()
        self._judged: set[str] = set()
        self._interests: list[Interest] = []
        self._forget: Callable[[], None] | None = None
        self.reaped = 0

    @property
    def _key(self) -> str:
        return self._context.subjects.record("owner", self._context.replica_id)

    # -- being alive --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Answer for this replica, hold a lease, watch the others."""
        bus, subjects = self._context.link.bus, self._context.subjects
        # One by one: what a refusal leaves behind has to be known.
        self._interests.append(await bus.subscribe(subjects.owner(self._context.replica_id), self._on_request))
        self._interests.append(await bus.subscribe(subjects.changes("owner"), self._on_lease_change))
        # A bucket that was just made on a cluster has no leader for a moment.
        await patiently(self.renew, limit=self._context.config.timing.request)
        self._forget = self._context.link.on_reconnect(self._on_reconnect)
        self._context.spawn(self._renew_for_ever(), "natsjobs lease")
        self._context.spawn(self._watch_for_ever(), "natsjobs owners")

    async def stop(self) -> None:
        """Give the lease back; the runs have ended before."""
        if self._forget is not None:
            self._forget()
        for interest in self._interests:
            await interest.unsubscribe()
        self._interests = []
        if self._context.link.connected_since is None:
            return
        try:
            async with asyncio.timeout(self._context.config.timing.abort):
                await self._context.records.remove(self._key, expect=None)
        except (NatsJobsError, TimeoutError) as error:
            _log.info("the lease of this replica was not given back, it lapses: %s", error)

    async def renew(self) -> None:
        """Without expectation: after a marker the remembered revision would be wrong for ever (C8)."""
        value = {"replica": self._context.replica_id, "runs": len(self._runs.owned), "at": int(time.time() * 1000)}
        await self._context.link.records.append(self._key, wire.ascii_json(value), ttl=self._ttl)

    async def _renew_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._renew)
            await self._renew_quietly()

    async def _renew_quietly(self) -> None:
        try:
            await self.renew()
        except Exception as error:  # noqa: BLE001 - the ping still vouches for us; the next renewal tries again
            _log.info("lease not renewed: %s", error)
            hub.add(measures.LEASE_FAILURES)

    def _on_reconnect(self) -> None:
        hub.add(measures.RECONNECTS)
        self._context.spawn(self._renew_quietly(), "natsjobs lease after reconnect")

    def _on_request(self, message: Incoming) -> None:
        self._context.answer(self._answer(message), "natsjobs owner request")

    async def _answer(self, message: Incoming) -> None:
        request = wire.decode_object(message.body)
        answer: dict[str, Any] = {"replica": self._context.replica_id}
        if request is None:
            garbage.skipped("a request to an owner", message.subject, message.body)
            answer["error"] = 'send a JSON object with "op": "ping", "signal" or "abort"'
        elif request.get("op") in ("signal", "abort") and isinstance(request.get("id"), str):
            answer = await self._aborts.answer_owner(request)
        else:
            asked = _asked(request.get("runs"))
            answer["missing"] = [run for run in asked if run not in self._runs.owned]
            answer["runs"] = len(self._runs.owned)
        await self._context.reply(message, msgspec.json.encode(answer))

    # -- watching the others ------------------------------------------------------------------------------------

    def _on_lease_change(self, message: Incoming) -> None:
        parts = self._context.subjects.split_record(message.subject)
        if parts is None or len(parts) != 2:
            return
        if message.marker is None:
            self._known.add(parts[1])
        else:
            self.suspect(parts[1])

    async def _watch_for_ever(self) -> None:
        while True:
            try:
                await self.look()
            except UnavailableError as error:
                _log.info("leases could not be read: %s", error)
            await asyncio.sleep(self._context.config.timing.lease / 3)

    async def look(self) -> set[str]:
        """Read all leases; suspect every known owner without one. The owners that have one."""
        slots = await self._context.records.list(self._context.subjects.records("owner"))
        split = self._context.subjects.split_record
        alive = {parts[1] for slot in slots if (parts := split(slot.key)) is not None}
        for owner in self._known - alive:
            self.suspect(owner)
        self._known |= alive
        return alive

    def suspect(self, owner: str) -> None:
        """Judge an owner without a lease, in the background, once at a time."""
        if owner == self._context.replica_id or owner in self._judged:
            return
        if not 0 < len(owner.encode()) <= _OWNER_BYTES:
            garbage.skipped("a lease", "its name is too long", owner)
            return
        self._known.add(owner)
        self._judged.add(owner)
        self._context.spawn(self._judge(owner), f"natsjobs judge {owner}")

    async def _judge(self, owner: str) -> None:
        try:
            while not await self._has_lease(owner):
                if await self._is_dead(owner):
                    await self._reap(owner)
                    self._known.discard(owner)
                    return
                await asyncio.sleep(self._context.config.timing.lease / 3)
        except UnavailableError as error:
            _log.info("owner %s could not be judged: %s; trying again", owner, error)
        finally:
            self._judged.discard(owner)

    async def _has_lease(self, owner: str) -> bool:
        slot = await self._context.records.read(self._context.subjects.record("owner", owner))
        return slot.value is not None

    async def _is_dead(self, owner: str) -> bool:
        """Two silent pings, a lease still absent, and a judge whose own connection was whole all the while."""
        since = await self._steady()
        if await self._ping(owner):
            return False
        await asyncio.sleep(self._pause)
        if await self._ping(owner) or await self._has_lease(owner):
            return False
        return self._context.link.connected_since == since

    async def _steady(self) -> float:
        """Wait until this replica's own connection is older than anybody's longest reconnect wait."""
        while True:
            since = self._context.link.connected_since
            missing = RECONNECT_WAIT + 1 if since is None else since + RECONNECT_WAIT + 1 - time.monotonic()
            if since is not None and missing <= 0:
                return since
            await asyncio.sleep(max(0.01, missing))

    async def _ping(self, owner: str) -> bool:
        return await self.missing_runs(owner, []) is not None

    async def missing_runs(self, owner: str, runs: list[tuple[str, str]]) -> list[tuple[str, str]] | None:
        """Which of these runs a living owner does not have; ``None``: no valid answer (A4)."""
        subject, missing = self._context.subjects.owner(owner), list[tuple[str, str]]()
        for asked in _parts(runs):
            request = msgspec.json.encode({"op": "ping", "runs": asked})
            try:
                reply = await self._context.link.bus.request(subject, request, timeout=max(self._pause, 0.2))
                answer = msgspec.json.decode(reply, type=_Pong)
            except PermissionDeniedError as error:  # nobody was asked, so there is no silence to conclude from
                _log.warning("owner %s passes for alive: %s", owner, error)
                return []
            except (NoRespondersError, NoReplyError, *wire.UNREADABLE):
                return None
            if answer.replica != owner:
                return None
            missing += [run for run in asked if run in answer.missing]
        return missing

    # -- ending what is left ------------------------------------------------------------------------------------

    async def _reap(self, owner: str) -> None:
        """Give every job of a dead owner its terminal record."""
        subjects = self._context.subjects
        left: list[tuple[str, str]] = []

        def take(page: Iterable[Message]) -> None:
            for message in page:
                parts = subjects.split_record(message.subject)
                entry = slot_of(message).value or {}
                generation = entry.get("generation")
                if parts is not None and len(parts) == 3 and entry.get("owner") == owner and is_generation(generation):
                    left.append((parts[2], str(generation)))

        await self._context.records.visit(subjects.records("active"), take)
        if left:
            _log.warning("owner %s is gone; ending its %d jobs", owner, len(left))
        hub.add(measures.OWNERS_LOST)
        await self.end_lost(left)

    async def end_lost(self, runs: list[tuple[str, str]]) -> int:
        """End runs whose owner is gone; how many of them this replica ended."""
        gate = asyncio.Semaphore(_REAP_AT_ONCE)

        async def end(stream_id: str, generation: str) -> bool:
            async with gate:
                lost = lost_end("the process that ran this job is gone", EndReason.OWNER_LOST)
                try:
                    terminal, _ = await self._runs.end(stream_id, generation, lost)
                except (JobClosedError, UnavailableError) as error:
                    _log.info("job %s of a lost owner was not ended here: %s", stream_id, error)
                    return False
                return terminal.request == lost.request

        ended = sum(await asyncio.gather(*(end(*run) for run in runs)))
        self.reaped += ended
        hub.add(measures.JOBS_REAPED, ended)
        return ended


def _parts(runs: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """As many as fit into one ping each; at least one part."""
    part, size = list[tuple[str, str]](), 0
    for run in runs:
        more = len(msgspec.json.encode(run)) + 1
        if part and size + more > _ASK_BYTES:
            yield part
            part, size = [], 0
        part.append(run)
        size += more
    yield part


class _Pong(msgspec.Struct):
    replica: str
    missing: set[tuple[str, str]] = set()


def _asked(runs: object) -> list[tuple[str, str]]:
    try:
        return msgspec.convert(runs or [], list[tuple[str, str]])
    except msgspec.ValidationError:
        return []
