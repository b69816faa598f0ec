"""The private parts of nats-py, touched here and nowhere else; with a way to do without most of them.

Owns how bytes get into and out of a ``nats.aio.client.Client``, and its four callbacks. Everything above sees plain
functions and raw header bytes. Three things are not to be had from nats-py's public names:

- *Callbacks* of a connection that was given to us. They are chained (the user's go on working) and put back at the
  end; without them a lost connection could not be noticed, so an unknown nats-py is refused.
- *Lean delivery.* nats-py parses every header into a dictionary and wakes a task for every message, which is most of
  the cost of a small one. Messages of our own subscriptions go straight from the socket to the handler (``frames``),
  and from nats-py's parser to it where nats-py is in the middle of reading.
- *Sending without waiting.* ``Client.publish`` may swallow a cancellation and may buffer for hours what then arrives
  late. Our commands go into its buffer in one step, and leave it again when the connection breaks (B9).

Where a private name of the last two is missing, public calls are used instead: slower, the same results, except that
what nats-py has buffered when a connection breaks is then sent after the reconnect.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias
from weakref import WeakValueDictionary

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import ConnectionClosedError, ConnectionDrainingError
from nats.errors import Error as NatsError

from natsjobs.errors import UnsupportedServerError
from natsjobs.jetstream.headers import header_bytes, raw_headers
from natsjobs.jetstream.socket import drop_socket, read_no_more, read_past, socket_of
from natsjobs.jetstream.turn import TurnEnd
from natsjobs.tasks import Tasks

_log = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[str, str, bytes, bytes], None]
"""Called with subject, reply subject, body and raw headers (``b""``: none); must not block."""

_CALLBACKS = ("_disconnected_cb", "_reconnected_cb", "_closed_cb", "_error_cb")
_DIRECT = (
    "_process_msg", "_pending", "_pending_data_size", "_flush_queue", "_pongs", "_transport", "_sid", "_subs", "stats",
)  # fmt: skip
_NEVER = 86_400
_CLOSE = 2.0
_FULL = 65_536
"""So much is written without waiting for the end of the turn: a long one must not keep the server idle."""
_CROWDED = 4 * 1024 * 1024
"""With more than this unsent, the socket is stuck: senders wait for room."""


class Listener(Protocol):
    """Who wants to know what happens to a connection."""

    def on_disconnected(self) -> None:
        """It broke, or was closed."""
        ...

    def on_connected(self) -> None:
        """It is back, and all subscriptions with it."""
        ...

    def on_closed(self) -> None:
        """It is closed for good."""
        ...

    def on_error(self, error: Exception) -> None:
        """Something went wrong that no caller is waiting for, a denied permission for instance."""
        ...


class _Command(bytes):
    """One of our commands in nats-py's buffer, to be found again there."""


class Tap:
    """One client, shared by all links on it. ``tap_of`` gives the one of a client."""

    def __init__(self, nc: Client) -> None:
        """Nothing is touched before the first ``add``."""
        missing = [name for name in _CALLBACKS if not hasattr(nc, name)]
        if missing:
            raise UnsupportedServerError(
                f"nats-py {getattr(nats, '__version__', '')} has no {', '.join(missing)}: natsjobs could not notice "
                "a lost connection; install nats-py 2.16"
            )
        self.nc = nc
        self.direct = all(hasattr(nc, name) for name in _DIRECT)
        self._inner: Any = nc  # Any on purpose: private names from here on
        self._public: Any = nc  # and here because nats-py leaves some of its types open
        self._listeners: list[Listener] = []
        self._handlers: dict[int, Handler] = {}
        self._saved: dict[str, Any] = {}
        self._ours: dict[str, Any] = {}
        self._below: dict[str, Any] = {}
        self._barriers: set[asyncio.Future[bool]] = set()
        self._never: Any = object()  # stands where nats-py wants a future that it would set
        self._queue: asyncio.Queue[Msg] | None = None
        self._tasks = Tasks()
        self._turn = TurnEnd(self._write_out)

    # -- what happens to the connection -----------------------------------------------------------------------------

    def add(self, listener: Listener) -> None:
        """Tell ``listener`` from now on."""
        if not self._listeners:
            self._install()
        self._listeners.append(listener)

    def remove(self, listener: Listener) -> None:
        """Tell it no more. With the last one everything of ours is taken out of the client."""
        if listener in self._listeners:
            self._listeners.remove(listener)
            if not self._listeners:
                self._uninstall()

    def _install(self) -> None:
        self._saved = {name: getattr(self._inner, name) for name in _CALLBACKS}
        self._ours = {
            "_disconnected_cb": self._disconnected,
            "_reconnected_cb": self._reconnected,
            "_closed_cb": self._closed,
            "_error_cb": self._error,
        }
        if self.direct:
            self._saved["_process_msg"] = self._inner._process_msg
            self._ours["_process_msg"] = self._deliver
        for name in self._ours.keys() - self._below.keys():
            setattr(self._inner, name, self._ours[name])
        self._saved |= self._below
        self._below = {}
        if self.direct:
            read_past(self.nc, self._hand_over)

    def _uninstall(self) -> None:
        """Put back what was there; what somebody else put in meanwhile stays (ours below it only passes on)."""
        for name, ours in self._ours.items():
            theirs = self._saved[name]
            if getattr(self._inner, name) != ours:
                self._below[name] = theirs
            elif name == "_process_msg" and getattr(theirs, "__func__", None) is Client._process_msg:  # pyright: ignore[reportPrivateUsage]
                del self._inner._process_msg
            else:
                setattr(self._inner, name, theirs)
        if self.direct:
            read_no_more(self.nc)

    def _tell(self, event: str, *args: object) -> None:
        for listener in list(self._listeners):
            try:
                getattr(listener, event)(*args)
            except Exception:  # noqa: BLE001 - the others must be told as well
                _log.exception("%s failed", event)

    async def _disconnected(self) -> None:
        if self.direct:
            kept = [command for command in self._inner._pending if not isinstance(command, _Command)]
            self._inner._pending = kept
            self._inner._pending_data_size = sum(map(len, kept))
        for barrier in self._barriers:
            if not barrier.done():
                barrier.set_result(False)
        self._tell("on_disconnected")
        await self._pass_on("_disconnected_cb")

    async def _reconnected(self) -> None:
        if self.direct and self._listeners:  # else ours is only below somebody else's
            read_past(self.nc, self._hand_over)
        self._tell("on_connected")
        await self._pass_on("_reconnected_cb")

    async def _closed(self) -> None:
        self._tell("on_closed")
        await self._pass_on("_closed_cb")

    async def _error(self, error: Exception) -> None:
        self._tell("on_error", error)
        await self._pass_on("_error_cb", error)

    async def _pass_on(self, name: str, *args: object) -> None:
        if (theirs := self._saved.get(name)) is not None:
            await theirs(*args)

    # -- in -----------------------------------------------------------------------------------------------------------

    async def subscribe(self, subject: str, handler: Handler) -> Subscription:
        """Subscribe; the server knows of it only after ``barrier``.

        Raises:
            nats.errors.Error: The connection is closed or draining.
        """
        if not self.direct:

            async def receive(msg: Msg) -> None:
                handler(msg.subject, msg.reply, msg.data, raw_headers(msg.headers))

            public: Subscription = await _uncancelled(self._public.subscribe(subject, cb=receive))
            return public
        if self.nc.is_closed:
            raise ConnectionClosedError
        if self.nc.is_draining:
            raise ConnectionDrainingError
        inner = self._inner
        inner._sid += 1
        sid: int = inner._sid
        # nats-py makes it anew after a reconnect. It never delivers to it, as we come before it; so one queue, for ever
        # empty, does for all of them: each would weigh as much as the rest of a job.
        subscription = Subscription(self.nc, sid, subject, future=self._never)
        self._queue = subscription._pending_queue = self._queue or subscription._pending_queue  # pyright: ignore[reportPrivateUsage]
        inner._subs[sid] = subscription
        self._handlers[sid] = handler
        self._put(f"SUB {subject}  {sid}\r\n".encode())
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Stop; the handler is not called any more, from the moment of the call on."""
        if self.direct:
            sid: int = subscription._id  # pyright: ignore[reportPrivateUsage]
            self._handlers.pop(sid, None)
            if self._inner._subs.pop(sid, None) is not None and self.nc.is_connected:
                self._put(f"UNSUB {sid}\r\n".encode())
            return
        with contextlib.suppress(NatsError):  # closed or draining: the interest goes with the connection
            await _uncancelled(subscription.unsubscribe())

    async def _deliver(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        """What nats-py has read itself."""
        if not self._hand_over(sid, subject, reply, data, headers or b""):
            await self._saved["_process_msg"](sid, subject, reply, data, headers)

    def _hand_over(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> bool:
        """Give one message to whom it belongs; whether that is for us to do."""
        handler = self._handlers.get(sid)
        if handler is None and sid in self._inner._subs:
            return False
        stats = self._inner.stats
        stats["in_msgs"] += 1
        stats["in_bytes"] += len(data)
        if handler is None:  # it came after the end of its subscription
            return True
        try:
            # Whoever publishes may use any bytes; what is no UTF-8 is no subject of ours.
            handler(
                subject.decode("utf-8", "replace"), reply.decode("utf-8", "replace") if reply else "", data, headers
            )
        except Exception:  # noqa: BLE001 - anything that left here would end nats-py's reading for good
            _log.exception("handler of %s failed", subject)
        return True

    # -- out ----------------------------------------------------------------------------------------------------------

    async def send(
        self, subject: str, body: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Hand one message to the connection, which must be connected. In direct mode nothing waits in here.

        Raises:
            nats.errors.Error: In public mode only: the connection is closed or its buffer is full.
        """
        if not self.direct:
            await _uncancelled(self.nc.publish(subject, body, reply=reply, headers=dict(headers) if headers else None))
            return
        self.push(subject, body, reply, header_bytes(headers) if headers else b"")

    def push(self, subject: str, body: bytes, reply: str, head: bytes) -> None:
        """As ``send``, in direct mode only; ``head``: the headers as they go over the wire."""
        if head:
            line = f"HPUB {subject} {reply} {len(head)} {len(head) + len(body)}\r\n"
            command = b"".join((line.encode(), head, body, b"\r\n"))
        else:
            command = b"".join((f"PUB {subject} {reply} {len(body)}\r\n".encode(), body, b"\r\n"))
        stats = self._inner.stats
        stats["out_msgs"] += 1
        stats["out_bytes"] += len(body)
        self._put(command)

    def _put(self, command: bytes) -> None:
        inner = self._inner
        inner._pending.append(_Command(command))
        inner._pending_data_size += len(command)
        if inner._pending_data_size >= _FULL:
            self._write_out()
        else:
            self._turn.expect()

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Call back before what this turn of the loop makes is written. In direct mode only."""
        self._turn.before(callback)

    def _write_out(self) -> None:
        """Write what this turn of the loop has made, at once where the socket takes it; else nats-py waits for it."""
        inner = self._inner
        socket = socket_of(self.nc)
        if inner.is_connected and socket is not None and not (socket.is_closing() or socket.get_write_buffer_size()):
            if inner._pending:
                socket.writelines(inner._pending)
            inner._pending, inner._pending_data_size = [], 0
            return
        queue = inner._flush_queue
        if queue.empty():
            queue.put_nowait(asyncio.get_running_loop().create_future())

    @property
    def crowded(self) -> bool:
        """More is unsent than a healthy socket leaves."""
        return self.nc.pending_data_size > _CROWDED

    def abort(self) -> None:
        """Drop the socket of a connection that is broken, with what it has not taken.

        nats-py waits, before it reconnects, until a dead peer has taken all that was written: up to a quarter of an
        hour when a cable is cut, and what is taken in the end arrives late.
        """
        drop_socket(self.nc)

    async def close(self) -> None:
        """Close a connection of our own; a peer that takes nothing any more does not hold it up."""
        try:
            async with asyncio.timeout(_CLOSE):
                await self.nc.close()
        except TimeoutError:
            self.abort()

    async def barrier(self, limit: float) -> bool:
        """Whether the server has, within ``limit`` seconds, processed everything that was sent so far.

        nats-py's own ``flush`` writes its PING ahead of what it has buffered; and a PONG that comes after a time-out
        or a cancellation of it ends nats-py's reading, so no future that waits for one may ever be cancelled.
        """
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[bool] = loop.create_future()
        self._barriers.add(answered)
        try:
            if self.direct:
                self._ping(answered)
            else:
                while self.nc.pending_data_size and self.nc.is_connected:  # noqa: ASYNC110 - nats-py tells nobody
                    await asyncio.sleep(0)
                self._flush(answered)
            await asyncio.wait({answered}, timeout=limit)
            return answered.done() and answered.result()
        finally:
            self._barriers.discard(answered)

    def _flush(self, answered: asyncio.Future[bool]) -> None:
        flush = self._tasks.spawn(self.nc.flush(timeout=_NEVER), "natsjobs flush")
        flush.add_done_callback(lambda _: _succeed(answered))
        # A broken connection forgets its PONGs, so then it may be cancelled, and must be.
        answered.add_done_callback(lambda _: flush.cancel() if not answered.result() else None)

    def _ping(self, answered: asyncio.Future[bool]) -> None:
        inner = self._inner
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        pong.add_done_callback(lambda _: _succeed(answered))
        if inner._pending:
            inner._transport.writelines(inner._pending[:])
            inner._pending = []
        inner._pongs.append(pong)
        inner._transport.write(b"PING\r\n")
        inner._pending_data_size = 6  # above 0, or the flusher would not drain the transport
        self._turn.expect()


_taps: WeakValueDictionary[int, Tap] = WeakValueDictionary()


def tap_of(nc: Client) -> Tap:
    """The tap of a client, the same for all that ask while any of them keeps it."""
    tap = _taps.get(id(nc))
    if tap is None or tap.nc is not nc:
        tap = _taps[id(nc)] = Tap(nc)
    return tap


def server_info(nc: Client) -> Mapping[str, Any]:
    """What the server of this connection said of itself when it was made."""
    inner: Any = nc
    return dict(inner._server_info)


def _succeed(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(True)


async def _uncancelled(awaitable: Any) -> Any:
    """Await something of nats-py that may swallow a cancellation; then raise it here."""
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    result = await awaitable
    if task and task.cancelling() > before:
        raise asyncio.CancelledError
    return result
