"""``Connection``: one NATS connection at a time, given or our own, kept for as long as somebody needs it.

Owns how it is made and taken up, what happens when it breaks or is closed for good (an own one is made anew, of a given
one everybody who waits has to hear), the move away from a server behind which no stream answers or stores (B4; when
that is so, ``failing`` knows), and the knowledge of how it is. What is sent over it is the wire's business; interests
are kept here because a new connection needs them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable

from nats.aio.client import Client

from natsjobs.errors import ConnectionLostError, NatsJobsError, NotOpenError, PermissionDeniedError, UnavailableError
from natsjobs.jetstream.connecting import Dialer
from natsjobs.jetstream.dropped import Dropped
from natsjobs.jetstream.failing import Failing
from natsjobs.jetstream.faults import RequestFailedError, translated
from natsjobs.jetstream.inbox import Inbox, WireInterest, names
from natsjobs.jetstream.tap import Tap, tap_of
from natsjobs.tasks import Tasks

_log = logging.getLogger(__name__)

MOVE_AFTER = 5.0
MOVE_EVERY = 10.0
_STUCK = 15.0
_DIAL = 5.0
_AGAIN = 0.5
"""Between two new connections: what closes the first for good may close the second as well."""
_LINGER = 0.25
"""How long a broken connection may take to tell; then it is waiting for a peer that is gone."""
_TOO_MANY = "maximum subscriptions exceeded"


class Connection:
    """One connection at a time, given or our own; the base of ``Wire``."""

    def __init__(self, source: Client | Dialer) -> None:
        """Nothing is sent before ``start``."""
        self._source = source
        self._tap: Tap | None = None
        self._up = asyncio.Event()
        self._since: float | None = None
        self._failing = Failing()
        self._moved = 0.0
        self._renewed = -math.inf
        self._inbox = Inbox()
        self._published: deque[str] = deque(maxlen=64)  # lately, without waiting for an answer
        self._interests: set[WireInterest] = set()
        self.forget: Callable[[WireInterest], None] = self._interests.discard
        self._callbacks: dict[object, Callable[[], None]] = {}
        self._dropped = Dropped(self._interests, lambda: self._tap if self.ready else None, self._call_back)
        self._again: asyncio.Task[None] | None = None
        self._tasks = Tasks()
        self._recovering = False
        self._whole = False  # the connection was taken up, with all interests

    # -- life ---------------------------------------------------------------------------------------------------------

    @property
    def nc(self) -> Client:
        """The present connection.

        Raises:
            NotOpenError: There is none.
        """
        if self._tap is None:
            raise NotOpenError("the link to NATS is not open; open the store or the manager first (`async with`)")
        return self._tap.nc

    @property
    def connected_since(self) -> float | None:
        """Monotonic time since which the connection is unbroken and no stream request failed; ``None``: away."""
        return self._since if self._tap is not None and self._tap.nc.is_connected else None

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after every reconnect, and what is like one, as the port says; the function removes it."""
        key = object()
        self._callbacks[key] = callback

        def remove() -> None:
            self._callbacks.pop(key, None)

        return remove

    async def start(self, limit: float) -> None:
        """Connect if the connection is our own, and take up the inbox.

        Raises:
            UnavailableError: No connection within ``limit`` seconds, or the inbox may not be subscribed.
        """
        deadline = time.monotonic() + limit
        self._tasks = Tasks()
        nc = await self._source.dial(limit) if isinstance(self._source, Dialer) else self._source
        try:
            await self._take_up(nc, deadline)
        except BaseException:
            if isinstance(self._source, Dialer):
                await nc.close()
            await self.stop()
            raise
        self._mark_up()

    async def stop(self) -> None:
        """Take everything of ours off the connection, and close it if it is our own. Twice is fine."""
        await self._tasks.close()
        tap, self._tap = self._tap, None
        self._recovering, self._inbox.prefix = False, ""
        self._up.clear()
        self._inbox.lost("the link to NATS was closed")
        self._callbacks.clear()
        for interest in list(self._interests):
            await interest.unsubscribe()
        if tap is not None:
            tap.remove(self)
            if isinstance(self._source, Dialer):
                await tap.close()

    async def _take_up(self, nc: Client, deadline: float) -> None:
        """Make ``nc`` the present connection, with the inbox and all interests on it."""
        tap, started = tap_of(nc), time.monotonic()
        with translated("using the connection"):
            if nc.is_closed:
                raise ConnectionLostError("it was closed before it was used")
            if self._tap is not None:
                self._tap.remove(self)
                if _is_crowded(self._tap):
                    self._make_room()
            self._tap, self._whole = tap, False
            tap.add(self)
            if not self._inbox.prefix:
                self._inbox.prefix = f"{nc.new_inbox()}."
                answers = WireInterest(self._inbox_subject, self._inbox.answered, self.forget)
                answers.confirmed = True  # nothing works without it: it is never the one too many
                self._interests.add(answers)
            for interest in list(self._interests):
                await interest.attach(tap)
        await self._sure(self._inbox_subject, started, deadline, new=True)

    def _make_room(self) -> None:
        """The server takes no more: those that it has not confirmed are not made again; if that is no help, the last.

        Answers that came behind its refusal may have been taken for confirmations.
        """
        refused = [one for one in self._interests if not one.is_known(self._inbox.heard)]
        if not refused and not self._whole:
            others = [one for one in self._interests if one.subject != self._inbox_subject]
            refused = sorted(others, key=lambda one: one.started)[-1:]
        for interest in refused:
            interest.refuse()

    @property
    def _inbox_subject(self) -> str:
        return f"{self._inbox.prefix}*"

    def is_inbox(self, subject: str) -> bool:
        """Whether an answer may go there: inboxes begin with ``_`` or as our own, and no stream or API does."""
        return subject.startswith(("_", f"{self._inbox.prefix.rsplit('.', 2)[0]}."))

    async def _sure(
        self, subject: str, started: float, deadline: float, *, before: float = math.inf, new: bool = False
    ) -> None:
        """Wait until the server has processed a SUB that was made after ``started``.

        ``before``: how many requests had been made then; a server takes commands in their order, so whoever has the
        answer to a later one waits for nothing. ``new``: on a connection that is being taken up; if it dies meanwhile
        (a JWT that ends in this very second) nobody else will replace it.

        Raises:
            UnavailableError: It did not.
            PermissionDeniedError: It refused it.
        """
        ours = subject == self._inbox_subject
        while True:
            tap, left = self._tap, deadline - time.monotonic()
            if tap is not None:
                _check_room(tap, subject, ours=ours)
            if tap is not None and tap.nc.is_closed and (new or not isinstance(self._source, Dialer)):
                why = str(tap.nc.last_error or "somebody closed it")
                if isinstance(self._source, Dialer):
                    raise UnavailableError(f"subscribing to {subject}: the new connection was closed again: {why}")
                raise ConnectionLostError(why)
            if tap is None or left <= 0:
                raise UnavailableError(f"subscribing to {subject}: NATS did not answer")
            known = self._inbox.heard > before
            if not known and tap.nc.is_connected:
                known = await (self._taken_up(tap, left) if new else tap.barrier(left))
            _check_room(tap, subject, ours=ours)
            if known:
                break
            await asyncio.sleep(0.02)  # away: nats-py subscribes again by itself, the next barrier tells
        if self._inbox.denial(started, subject):
            doing = "connect with an inbox_prefix that this user may subscribe to" if ours else "listening"
            raise PermissionDeniedError(doing, subject=subject, action="subscribe")

    async def _taken_up(self, tap: Tap, limit: float) -> bool:
        """As ``Tap.barrier``; nats-py tells nobody of a connection that is closed while it is being opened."""
        barrier = self._tasks.spawn(tap.barrier(limit), "natsjobs barrier")
        try:
            while not barrier.done() and not tap.nc.is_closed:
                await asyncio.wait({barrier}, timeout=0.1)
            return barrier.done() and barrier.result()
        finally:
            barrier.cancel()

    # -- what the tap tells -------------------------------------------------------------------------------------------

    def on_disconnected(self) -> None:
        """Requests that wait have lost their answers."""
        self._up.clear()
        self._since = None
        self._inbox.lost("the connection to NATS broke")
        self._watch()

    def on_connected(self) -> None:
        """Requests can be sent again."""
        self._mark_up()
        self._call_back()

    def _call_back(self) -> None:
        for callback in list(self._callbacks.values()):
            try:
                callback()
            except Exception:  # noqa: BLE001 - the other callbacks must come as well
                _log.exception("a callback after a reconnect failed")

    def _mark_up(self) -> None:
        self._since, self._failing = time.monotonic(), Failing()
        self._whole = True
        self._up.set()

    def on_closed(self) -> None:
        """Closed for good: an own connection is made anew, of a given one everybody who waits has to hear."""
        self.on_disconnected()
        if self._tap is not None and not isinstance(self._source, Dialer):
            _log.error("%s", ConnectionLostError(str(self._tap.nc.last_error or "somebody closed it")))
            self._call_back()

    def on_error(self, error: Exception) -> None:
        """A denied permission comes only here; it is told to the request that it was for, else to the log."""
        text = str(error)
        if self._dropped.note(text) and (self._again is None or self._again.done()) and not self._tasks.closed:
            self._again = self._tasks.spawn(self._dropped.make_again(), "natsjobs subscribe again")
        if "permissions violation" in text and not self._inbox.denied(text):
            for subject in [subject for subject in self._published if names(text, subject)]:
                self._published.remove(subject)
                _log.warning("%s", PermissionDeniedError("a message was not sent", subject=subject))

    # -- coming back --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """nats-py reconnects by itself, unless it closed the connection for good or its reconnecting got stuck."""
        if isinstance(self._source, Dialer) and self._tap is not None and not self._recovering:
            self._recovering = True
            self._tasks.spawn(self._recover(self._source), "natsjobs reconnect")

    async def _recover(self, dialer: Dialer) -> None:
        wait = 0.05
        try:
            while not self._up.is_set() and self._tap is not None:
                nc = self._tap.nc
                if not nc.is_closed and time.monotonic() - dialer.tried_at < _STUCK:
                    await self._until_up(0.25)
                    continue
                _log.warning("the NATS connection was closed for good (%s); making a new one", nc.last_error)
                try:
                    await self._tap.close()
                    await asyncio.sleep(max(0.0, self._renewed + _AGAIN - time.monotonic()))
                    await self._renew(dialer)
                except NatsJobsError as error:
                    _log.warning("no new NATS connection yet: %s", error)
                    await asyncio.sleep(wait)
                    wait = min(wait * 2, 2.0)
        finally:
            self._recovering = False

    async def _renew(self, dialer: Dialer) -> None:
        nc = await dialer.dial(_DIAL)
        self._renewed = time.monotonic()
        try:
            await self._take_up(nc, time.monotonic() + _DIAL)
        except BaseException:
            await nc.close()
            raise
        if nc.is_closed:  # behind the answer that it was taken up; nobody tells us of that once more
            raise UnavailableError(f"the new connection was closed again: {nc.last_error}")
        self.on_connected()

    async def _until_up(self, limit: float) -> bool:
        if not self._up.is_set():
            try:
                async with asyncio.timeout(limit):
                    await self._up.wait()
            except TimeoutError:
                return False
        return True

    # -- how it goes --------------------------------------------------------------------------------------------------

    def went_well(self, *, stored: bool) -> None:
        """A stream request was answered by a stream; ``stored``: it was an append, and is stored."""
        now = time.monotonic()
        self._failing.well(now, stored=stored)
        if self._since is None and self._up.is_set():
            self._since = now

    def went_wrong(self, started: float, *, write: bool) -> None:
        """A stream request that was sent at ``started`` got no answer of a stream; ``write``: it was an append."""
        self._since = None
        self._failing.wrong(started, write=write)
        now = time.monotonic()
        why = self._failing.why(now, MOVE_AFTER)
        due = why and now - self._moved >= MOVE_EVERY
        if due and isinstance(self._source, Dialer) and self._tap is not None and self._up.is_set():
            nc = self._tap.nc
            if self._source.avoid(nc):
                self._moved = now
                _log.warning("%s for %.0f s on %s; trying another server", why, MOVE_AFTER, nc)
                self._tasks.spawn(nc.force_reconnect(), "natsjobs move")

    @property
    def max_payload(self) -> int:
        """Largest message of the server, headers included."""
        return self.nc.max_payload

    @property
    def ready(self) -> bool:
        """Whether something can be sent right now."""
        return self._tap is not None and self._up.is_set() and self._tap.nc.is_connected

    async def connected(self, limit: float) -> None:
        """Wait until something can be sent.

        Raises:
            RequestFailedError: Not within ``limit`` seconds.
            ConnectionLostError: The connection was given, and is closed.
        """
        await self._ready(limit)

    async def _ready(self, limit: float) -> Tap:
        deadline = time.monotonic() + limit
        while not self.ready or (self._tap is not None and self._tap.crowded):
            nc = self.nc
            left = deadline - time.monotonic()
            if nc.is_closed and not isinstance(self._source, Dialer):
                raise ConnectionLostError(str(nc.last_error or "somebody closed it"))
            if left <= 0:
                raise RequestFailedError("the connection to NATS is away", sent=False)
            if self._up.is_set():  # broken and not told yet, or its socket is stuck
                if nc.is_reconnecting and limit - left > _LINGER and self._tap is not None:
                    self._tap.abort()
                await asyncio.sleep(min(0.01, left))
            else:
                await self._until_up(left)
        assert self._tap is not None
        return self._tap


def _check_room(tap: Tap, subject: str, *, ours: bool) -> None:
    """nats-py closes the connection over one subscription too many; a new one is whole when nobody insists."""
    if not ours and _is_crowded(tap):
        raise too_many(subject)


def _is_crowded(tap: Tap) -> bool:
    error = tap.nc.last_error
    return error is not None and _TOO_MANY in str(error)


def too_many(subject: str) -> UnavailableError:
    """What a subscription that was one too many means."""
    return UnavailableError(
        f"subscribing to {subject} was refused: {_TOO_MANY}; raise max_subscriptions of the server or the account, "
        "or spread the followers over more processes"
    )
