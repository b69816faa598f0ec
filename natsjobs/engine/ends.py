"""Callbacks for the end of a generation, whoever writes it; no subscriber, and no decode of its events.

A watch listens to the live subject of the terminal record only, so an owner does not receive its own events back.
That path may lose messages, so a silent watch looks at the log like a reader does (A7; ``patience.Looks``), and after
every reconnect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from natsjobs.engine import wire
from natsjobs.engine.callbacks import call
from natsjobs.engine.context import Context
from natsjobs.engine.patience import Looks
from natsjobs.engine.ports import Interest, StreamMissingError
from natsjobs.engine.terminals import end_event, find_terminal
from natsjobs.errors import UnavailableError
from natsjobs.interfaces import EndCallback
from natsjobs.models import EndReason, EventType

_DELETED = wire.Terminal(EventType.ABORTED, 0, 0, "", EndReason.DELETED, None, b"null")


class Ends:
    """All watched generations of one replica."""

    def __init__(self, context: Context) -> None:
        """Empty."""
        self._context = context
        self._watches: dict[tuple[str, str], _Watch] = {}

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._watches

    async def add(self, stream_id: str, generation: str, callback: EndCallback) -> EndRegistration:
        """Call back once; at once if the generation has already ended."""
        key = (stream_id, generation)
        watch = self._watches.get(key)
        if watch is None:
            watch = self._watches[key] = _Watch(self._context, stream_id, generation)
        registration = EndRegistration(self, watch, callback)
        watch.registrations.append(registration)
        try:
            await watch.open()
        except BaseException:
            await self.remove(registration)
            raise
        return registration

    async def remove(self, registration: EndRegistration) -> None:
        """Drop one callback; the last one ends the watch."""
        watch = registration.watch
        if registration in watch.registrations:
            watch.registrations.remove(registration)
        if not watch.registrations:
            key = (watch.stream_id, watch.generation)
            if self._watches.get(key) is watch:
                del self._watches[key]
            await watch.close()

    def fire(self, stream_id: str, generation: str, terminal: wire.Terminal | None) -> None:
        """The end was seen; ``None``: the log is gone without one, which is told like a deletion."""
        watch = self._watches.pop((stream_id, generation), None)
        if watch is None:
            return
        registrations, watch.registrations = watch.registrations, []
        self._context.spawn(watch.close(), "natsjobs close watch")
        event = end_event(generation, terminal or _DELETED)
        for registration in registrations:
            registration.fired = True
            # Called now, not in a task: a run that ends because everything closes must hear of it before that.
            left = call(f"an on_end callback of {stream_id}", registration.callback, event)
            if left is not None:
                self._context.spawn(left, "natsjobs on_end callback")

    async def close(self) -> None:
        """End all watches."""
        for key, watch in list(self._watches.items()):
            self._watches.pop(key, None)
            await watch.close()


class EndRegistration:
    """Implements ``natsjobs.interfaces.Registration``."""

    def __init__(self, ends: Ends, watch: _Watch, callback: EndCallback) -> None:
        self._ends, self.watch, self.callback = ends, watch, callback
        self.fired = False

    async def dispose(self) -> None:
        """Remove just this callback."""
        await self._ends.remove(self)


class _Watch:
    def __init__(self, context: Context, stream_id: str, generation: str) -> None:
        self.stream_id, self.generation = stream_id, generation
        self.registrations: list[EndRegistration] = []
        self._context = context
        self._interest: Interest | None = None
        self._forget: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._lock = asyncio.Lock()
        self._looking = self._closed = False
        self._looks = Looks(context.config.timing.look)

    async def open(self) -> None:
        """Listen, then look once: what came before is seen too."""
        async with self._lock:
            if self._interest is not None or self._closed:
                return
            subject = self._context.subjects.live_end(self.stream_id, self.generation)
            self._interest = await self._context.link.bus.subscribe(subject, lambda _: self._look_now())
            self._forget = self._context.link.on_reconnect(self._look_now)
        self._schedule()
        self._look_now()

    async def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._forget is not None:
            self._forget()
        async with self._lock:
            interest, self._interest = self._interest, None
            if interest is not None:
                await interest.unsubscribe()

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._closed:
            self._timer = asyncio.get_running_loop().call_later(self._looks.next(), self._on_quiet)

    def _on_quiet(self) -> None:
        self._schedule()
        self._look_now()

    def _look_now(self) -> None:
        if not self._looking and not self._closed:
            self._looking = True
            self._context.spawn(self._look(), f"natsjobs end of {self.stream_id}")

    async def _look(self) -> None:
        subjects, events = self._context.subjects, self._context.link.events
        end = subjects.end(self.stream_id, self.generation)
        try:
            message = await events.last(end)
            terminal = await find_terminal(self._context.link, end, message) if message is not None else None
            gone = (
                message is None
                and self._looks.silent > 1
                and await events.last(subjects.scope(self.stream_id, self.generation)) is None
            )
        except StreamMissingError:
            terminal, gone = None, True
        except UnavailableError:
            return
        finally:
            self._looking = False
        if terminal is not None or gone:
            self._context.on_terminal(self.stream_id, self.generation, terminal)
