"""Whether anybody watches a run of this replica: one that nobody watches collects its events for longer.

Owns that answer for every run that is owned here, and which of the two lingers its writer has by it. It neither counts
viewers (``presence``, ``census``) nor holds events back (``appender``).

A run counts as watched until the opposite is known. Once it has lingered for a while, news of joins is listened for,
and *then* it is asked whether any replica has viewers: "no responders" means unwatched, until a join is heard.
Everything else means watched: an answer, silence, a refusal, NATS away, a join while the question was under way, a
reconnect. It is asked again after leaves, and now and then: a replica may have died, and a join may have been lost.

Guarantees that whoever is heard to join has at once what was held back, that no emit waits for any of this, and that
nothing is left when a run or the replica ends. It needs neither task nor timer while nothing is asked: what happens by
itself happens when a message leaves that was held back, so a run that emits nothing costs nothing.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from natsjobs.engine import census
from natsjobs.engine.context import Context
from natsjobs.engine.linger import Linger
from natsjobs.engine.ports import Interest
from natsjobs.errors import PermissionDeniedError, UnavailableError

_log = logging.getLogger(__name__)

_FIRST = 2.0
"""A run counts as watched until it has lingered this long: whoever follows its beginning is never in question."""
_SOON = 1.0
"""After a leave and a reconnect it is asked at most this much later; many leave together, or reload a page."""
_EVERY = 3.0
"""Leases between two questions: one small request, and what it may find is rare."""


class Writer(Protocol):
    """Who writes the events of a generation: an ``Appender``."""

    stream_id: str
    generation: str

    def collect(self, linger: Linger) -> None:
        """Collect this long from now on; with a shorter linger what is held back leaves at once."""
        ...


class Audience:
    """Who of the writers of one replica is watched."""

    def __init__(self, context: Context) -> None:
        """Nothing happens before a writer lingers."""
        self._context = context
        self._short, self._long = context.linger, context.linger_unwatched
        self._watches: dict[str, _Watch] = {}
        # Subscribers on this replica: a connection may not hear what it says itself (``no_echo``).
        self._here: dict[str, int] = {}
        self._leaving: set[Interest] = set()
        self._forget: Callable[[], None] | None = None
        self._opened = self._told = False

    def open(self) -> None:
        """From now on writers are heeded."""
        self._opened = True

    async def close(self) -> None:
        """Ask nobody, listen to nobody any more; the tasks of this replica have ended before."""
        self._opened = False
        if self._forget is not None:
            self._forget()
            self._forget = None
        for watch in self._watches.values():
            if watch.interest is not None:
                self._leaving.add(watch.interest)
        self._watches.clear()
        for interest in list(self._leaving):
            await self._unsubscribe(interest)

    # -- subscribers here ---------------------------------------------------------------------------------------

    def come(self, stream_id: str) -> None:
        """A subscriber of this replica has joined."""
        self._here[stream_id] = self._here.get(stream_id, 0) + 1
        if (watch := self._watches.get(stream_id)) is not None:
            self._on_join(watch)

    def go(self, stream_id: str, count: int = 1) -> None:
        """So many have left."""
        left = self._here.pop(stream_id, 0) - count
        if left > 0:
            self._here[stream_id] = left
        elif (watch := self._watches.get(stream_id)) is not None:
            self._on_leave(watch)

    # -- writers ------------------------------------------------------------------------------------------------

    def heed(self, writer: Writer) -> None:
        """A message of an owned run leaves that was held back. Never waits."""
        if self._long is None or not self._opened:
            return
        watch = self._watches.get(writer.stream_id)
        if watch is None or watch.writer is not writer:
            watch = self._begin(writer, watch)
        now = time.monotonic()
        watch.early -= min(self._short.seconds, now - watch.heeded)
        watch.heeded = now
        if watch.early <= 0 and not watch.asking and now >= watch.ask_at:
            watch.asking = True
            self._context.spawn(self._ask(watch), f"natsjobs audience of {writer.stream_id}")

    def _begin(self, writer: Writer, earlier: _Watch | None) -> _Watch:
        if earlier is not None:
            self._end(earlier)
        if self._forget is None:
            self._forget = self._context.link.on_reconnect(self._on_reconnect)
        watch = self._watches[writer.stream_id] = _Watch(writer)
        return watch

    def forget(self, stream_id: str, generation: str) -> None:
        """This run is not owned here any more."""
        watch = self._watches.get(stream_id)
        if watch is not None and watch.writer.generation == generation:
            self._end(watch)

    def _end(self, watch: _Watch) -> None:
        del self._watches[watch.writer.stream_id]
        watch.closed = True
        watch.writer.collect(self._short)  # nobody would tell it of a join
        if watch.interest is not None:
            self._leaving.add(watch.interest)
            self._context.spawn(self._unsubscribe(watch.interest), "natsjobs audience leaves")

    async def _unsubscribe(self, interest: Interest) -> None:
        await interest.unsubscribe()
        self._leaving.discard(interest)

    # -- news and questions -------------------------------------------------------------------------------------

    def _on_join(self, watch: _Watch) -> None:
        watch.news += 1
        watch.writer.collect(self._short)

    def _on_leave(self, watch: _Watch) -> None:
        if watch.ask_at < math.inf:  # else it was denied, and would be again
            watch.ask_at = min(watch.ask_at, _soon())

    def _on_reconnect(self) -> None:
        """Whoever came meanwhile was not heard."""
        for watch in self._watches.values():
            self._on_join(watch)
            watch.ask_at = min(watch.ask_at, _soon())

    async def _ask(self, watch: _Watch) -> None:
        pause = self._context.config.timing.lease * _EVERY
        watch.ask_at = time.monotonic() + pause * random.uniform(0.8, 1.2)  # noqa: S311
        news, linger = watch.news, None
        try:
            if await self._is_deserted(watch) and watch.news == news and not watch.closed:
                linger = self._long
        finally:
            watch.asking = False
            watch.writer.collect(linger or self._short)

    async def _is_deserted(self, watch: _Watch) -> bool:
        stream_id = watch.writer.stream_id
        try:
            if watch.interest is None:  # first, so that nobody can join between the answer and this
                joined, left = partial(self._on_join, watch), partial(self._on_leave, watch)
                interest = await census.follow(self._context, stream_id, joined, left)
                if watch.closed:
                    await interest.unsubscribe()
                    return False
                watch.interest = interest
            return stream_id not in self._here and await census.is_deserted(self._context, stream_id)
        except PermissionDeniedError as error:
            watch.ask_at = math.inf  # until there is another connection, which may have other permissions
            if not self._told:
                self._told = True
                _log.info("runs of this replica count as watched, and collect events for timing.linger only: %s", error)
        except UnavailableError as error:
            _log.debug("whether %s is watched is not known: %s", stream_id, error)
        return False


def _soon() -> float:
    return time.monotonic() + _SOON * random.uniform(0.5, 1)  # noqa: S311


class _Watch:
    """One run that is, or may be, watched."""

    __slots__ = ("ask_at", "asking", "closed", "early", "heeded", "interest", "news", "writer")

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.early = _FIRST
        """How long it has still to linger before anything is asked, seconds."""
        self.heeded = -math.inf
        self.interest: Interest | None = None
        self.ask_at = -math.inf
        self.news = 0
        """Joins that were heard, and reconnects: an answer to what was asked before says nothing."""
        self.asking = self.closed = False
