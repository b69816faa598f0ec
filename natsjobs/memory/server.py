"""The server side of the memory system: two streams and the interests of all links, in one event loop.

Owns what is stored, who listens, and the one timer that makes expiry punctual; the timer exists only while a link is
open. Knows nothing of connections: who listens says itself whether it can hear.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from natsjobs.engine.ports import Incoming, StreamMissingError
from natsjobs.engine.subjects import Subjects
from natsjobs.memory.stream import StreamSettings, StreamStore
from natsjobs.memory.tree import SubjectTree

_MARKER_TTL = 60.0


class Listener(Protocol):
    """Whoever has interest in a subject."""

    @property
    def subject(self) -> str:
        """A subject or a filter."""
        ...

    def deliver(self, incoming: Incoming) -> bool:
        """Hand over in a later turn of the loop; whether the system counts this as an interest."""
        ...


class MemoryServer:
    """What the links of one system share: its streams and everybody's interests."""

    def __init__(
        self,
        namespace: str = "natsjobs",
        retention_log: float = 86_400.0,
        *,
        max_payload: int = 1_048_576,
        max_bytes: int = -1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``retention_log`` is the age at which events go; ``max_bytes`` limits the events; ``clock`` is its time."""
        self.namespace = namespace
        self.max_payload = max_payload
        self._names = Subjects(namespace)
        self._clock = clock
        self._settings = {
            "events": StreamSettings(
                prefix=self._names.events_prefix,
                republish_prefix=self._names.live_prefix,
                max_age=retention_log,
                max_bytes=max_bytes,
            ),
            "records": StreamSettings(
                prefix=self._names.record_prefix,
                republish_prefix=self._names.changes_prefix,
                newest_only=True,
                marker_ttl=_MARKER_TTL,
            ),
        }
        self._stores: dict[str, StreamStore] = {}
        self._interests: SubjectTree[dict[Listener, None]] = SubjectTree()
        self._open_links: set[object] = set()
        self._loop: asyncio.AbstractEventLoop | None = None  # the one of _timer
        self._timer: asyncio.TimerHandle | None = None
        self.inboxes = itertools.count(1)
        self.create_streams()

    def interests(self, subject_filter: str = ">") -> list[str]:
        """The subjects and filters that somebody subscribes to now, one entry per interest."""
        return [s for s, interests in self._interests.below(subject_filter) for _ in interests]

    def create_streams(self) -> None:
        """Create the streams that are not there."""
        for name, settings in self._settings.items():
            if name not in self._stores:
                self._stores[name] = StreamStore(settings, self._clock, self.route)

    def remove_streams(self) -> None:
        """Lose everything that is stored, as a server that lost its disk.

        The next ``open`` of a link creates the streams anew, and so does the first call that finds them missing.
        """
        self._stores.clear()
        self._disarm()

    def limit(self, name: str, max_bytes: int) -> None:
        """Another ``max_bytes`` for a stream, named by its role (``"events"``, ``"records"``); -1: none."""
        self._settings[name] = msgspec.structs.replace(self._settings[name], max_bytes=max_bytes)
        if name in self._stores:
            self._stores[name].limit(max_bytes)

    def expire(self) -> None:
        """Let what is due by the clock expire now, markers included, instead of at the next call or timer."""
        for store in self._stores.values():
            store.expire()
        self.arm()

    def store(self, name: str) -> StreamStore:
        """A stream by its role.

        Raises:
            StreamMissingError: It was removed; it is there again for the next call.
        """
        if name not in self._stores:
            self.create_streams()
            raise StreamMissingError(f"there is no stream of {name}")
        return self._stores[name]

    def route(self, incoming: Incoming) -> bool:
        """Deliver to all interests, in later turns of the loop; whether there was any."""
        heard = False
        for interests in self._interests.matching(incoming.subject):
            for interest in interests:
                heard |= interest.deliver(incoming)
        return heard

    def add_interest(self, interest: Listener) -> None:
        """Deliver to it from now on."""
        interests = self._interests.get(interest.subject)
        if interests is None:
            self._interests.put(interest.subject, interests := {})
        interests[interest] = None

    def remove_interest(self, interest: Listener) -> None:
        """Deliver to it no more; idempotent."""
        interests = self._interests.get(interest.subject)
        if interests and interest in interests:
            del interests[interest]
            if not interests:
                self._interests.remove(interest.subject)

    def opened(self, link: object) -> None:
        """A link is in use: markers are punctual from now on."""
        self._open_links.add(link)
        self.create_streams()
        self.arm()

    def closed(self, link: object) -> None:
        """A link is not in use any more; with the last one the timer goes."""
        self._open_links.discard(link)
        if not self._open_links:
            self._disarm()

    def arm(self) -> None:
        """Wake up when the next TTL ends. Only the records need it: the events' TTLs end without a trace."""
        store = self._stores.get("records")
        deadline = store.next_deadline if store else None
        if deadline is None or not self._open_links:
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + max(0.001, deadline - self._clock())
        if self._timer is not None:
            if self._loop is loop and self._timer.when() <= when + 0.001:
                return
            self._disarm()
        self._loop, self._timer = loop, loop.call_at(when, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.expire()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
