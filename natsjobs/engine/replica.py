"""One replica: the parts of the engine put together on one link, opened and closed as a whole.

A store and any number of transports share a replica; the first that opens it starts the background work, the last
that closes it ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable

from natsjobs.config import Config
from natsjobs.engine.aborts import Aborts
from natsjobs.engine.audience import Audience
from natsjobs.engine.content_state import ContentState
from natsjobs.engine.context import Context
from natsjobs.engine.creation import Creation
from natsjobs.engine.ledger import Ledger
from natsjobs.engine.liveness import Liveness
from natsjobs.engine.ports import Link, StreamMissingError, StreamState
from natsjobs.engine.runs import Runs, lost_end
from natsjobs.engine.terminals import End
from natsjobs.engine.upkeep import Upkeep
from natsjobs.errors import NatsJobsError, NotOpenError, UnavailableError
from natsjobs.models import EndReason
from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import Gauge, hub

_log = logging.getLogger(__name__)


class Replica:
    """Everything below a store and its transports."""

    def __init__(self, link: Link, config: Config) -> None:
        """No I/O."""
        self.context = Context(link, config)
        self.ledger = Ledger(self.context)
        self.content = ContentState(self.context)
        self.audience = Audience(self.context)
        self.runs = Runs(self.context, self.ledger, self.audience)
        self.aborts = Aborts(self.context, self.runs, self.ledger, self.content)
        self.creation = Creation(self.context, self.runs, self.content, self.ledger, self.aborts)
        self.liveness = Liveness(self.context, self.runs, self.aborts)
        self.upkeep = Upkeep(self.context, self.runs, self.liveness, self.content)
        self._users: set[object] = set()
        self._lock = asyncio.Lock()
        self._states: dict[str, StreamState] = {}

    @property
    def config(self) -> Config:
        """Its settings."""
        return self.context.config

    async def open(self, user: object) -> None:
        """Start for one user; raises what ``Link.open`` does."""
        async with self._lock:
            if not self._users:
                await self.context.link.open()
                try:
                    await self.liveness.start()
                    self.upkeep.start()
                    self.audience.open()
                    self.context.spawn(self.context.headroom.watch(lambda: bool(self.runs.owned)), "natsjobs headroom")
                except BaseException:
                    await self._stop()
                    raise
            self._users.add(user)
            hub.watch(self)

    async def close(self, user: object) -> None:
        """One user less; the last one stops everything. Runs of this replica must have ended before."""
        async with self._lock:
            if user not in self._users:
                return
            self._users.discard(user)
            if not self._users:
                await self._stop()

    async def check(self, *, opened: bool) -> None:
        """Ask for both streams; what is wrong with them is an ``UnavailableError``."""
        if not opened:
            raise NotOpenError("this job store is not open: call `await store.initialize()` first")
        link = self.context.link
        for name, what, stream in (("events", "stream", link.events), ("jobs", "bucket", link.records)):
            try:
                self._states[name] = await stream.state()
            except StreamMissingError as error:
                raise UnavailableError(f"the {what} does not exist any more; run: natsjobs setup") from error

    def gauges(self) -> Iterable[Gauge]:
        """How this replica stands, for ``natsjobs.telemetry``."""
        yield measures.JOBS_RUNNING, (), len(self.runs.owned)
        yield measures.EVENTS_QUEUED, (), self.runs.queued
        yield measures.READERS, (), self.context.readers
        yield measures.CONNECTED, (), self.context.link.connected_since is not None
        for name, state in self._sizes().items():
            yield measures.STREAM_SIZE, (name,), state.bytes
            if state.max_bytes > 0:
                yield measures.STREAM_LIMIT, (name,), state.max_bytes

    def _sizes(self) -> dict[str, StreamState]:
        """What was last seen of stream and bucket, by ``check`` or by whoever keeps room for ends."""
        seen, looked = dict(self._states), self.context.headroom.fresh
        if looked is not None and ("events" not in seen or looked.now > seen["events"].now):
            seen["events"] = looked
        return seen

    async def _stop(self) -> None:
        hub.forget(self)
        try:
            await self.runs.drain()
            await asyncio.gather(self.liveness.stop(), self.context.answered())
            await self.aborts.close()
            await self.runs.ends.close()
            await self.context.renew_tasks()
            await self.audience.close()
        finally:
            self.runs.close()
            await self.context.link.close()

    async def shut_down(self, by: object) -> None:
        """End the runs that were created by one store with ``SHUTDOWN``; says which ends could not be stored.

        It waits ``timing.request`` for NATS; ends that have failed before were waited for already, and with NATS away
        they are not tried again.
        """
        away, tried = self.context.link.connected_since is None, self.runs.unstored
        others = {run for run, one in self.runs.owned.items() if one.by is not by}
        owned = self.runs.owned.keys() - others
        ends = {run: tried.get(run) or _shutdown() for run in owned if not (away and run in tried)}
        patience = self.config.timing.abort if ends.keys() <= tried.keys() else self.config.timing.request

        async def stop(stream_id: str, generation: str) -> None:
            with contextlib.suppress(NatsJobsError):
                await self.runs.end(stream_id, generation, ends[stream_id, generation])

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await asyncio.gather(*(stop(*run) for run in ends))
        for run, end in ends.items():
            if run in self.runs.owned:  # NATS is away: nobody can wait for that while a process is being stopped
                self.runs.unstored.setdefault(run, end)
        for stream_id, generation in self.runs.unstored.keys() - others:
            _log.warning(
                "the end of job %s (generation %s) could not be stored; it is ended when the lease lapses",
                stream_id,
                generation,
            )


def _shutdown() -> End:
    return lost_end("the run's process shut down before it was finished", EndReason.SHUTDOWN)
