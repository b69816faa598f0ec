"""``Feed``: one open response, from a reader to a socket, as plain ASGI.

Owns the reader, the bytes that wait for one client, and the end of both. Three parts work side by side: the body
moves events into a small buffer, a writer sends what is there in one piece and a heartbeat when nothing is, and a
watcher waits for the client to leave. Whichever ends first ends the others, so a client that goes away, or takes
nothing, holds nothing. A feed never touches the job.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from natsjobs.errors import NatsJobsError, ResumeError
from natsjobs.http import sse
from natsjobs.http.admission import Admission
from natsjobs.http.delivery import Delivery, Start
from natsjobs.http.problems import nothing
from natsjobs.http.settings import GatewayConfig
from natsjobs.interfaces import EventReader
from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub

_log = logging.getLogger(__name__)

CUT = "natsjobs.cut"
"""In the ASGI scope's ``state``: a server's way of closing a connection at once. Plain ASGI has none."""


class _LeftError(Exception):
    """The client went away."""


class _CutError(Exception):
    """The client is shown out; the text says why."""


class _StoppedError(Exception):
    """The gateway is closing."""


class Feeds:
    """All open feeds of one gateway."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.admission = Admission(config.connections, config.stream_connections)
        self.open: set[Feed] = set()
        self.closing = False

    def close(self) -> None:
        """End every feed, and each new one when it begins; their clients connect again, elsewhere."""
        self.closing = True
        for feed in self.open:
            feed.stop()


class Feed:
    """A response that follows one job."""

    def __init__(
        self,
        feeds: Feeds,
        stream_id: str,
        reader: Callable[[], AbstractAsyncContextManager[EventReader, None]],
        delivery: Delivery,
    ) -> None:
        self._feeds, self._config = feeds, feeds.config
        self._stream_id, self._reader, self._delivery = stream_id, reader, delivery
        self._waiting: list[bytes] = []
        self._size = 0
        self._more = asyncio.Event()
        self._room = asyncio.Event()
        self._complete = self._stopping = False
        self._over = self._broken = False

    def stop(self) -> None:
        """End the response; the job goes on."""
        self._stopping = True
        self._more.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request. Errors on the way to the first byte are raised, for the answer to name them."""
        if self._feeds.closing:
            raise HTTPException(503, "this gateway is being stopped; try again", {"Retry-After": "1"})
        problem: Exception | None = None
        with self._feeds.admission.admit(self._stream_id):
            self._feeds.open.add(self)
            try:
                async with asyncio.TaskGroup() as group:
                    watcher = group.create_task(self._watch(receive))
                    problem = await self._answer(scope, receive, send, group)
                    watcher.cancel()
            except* _LeftError:
                _log.debug("a reader of job %r has left", self._stream_id)
            except* _CutError as cuts:
                _log.info("a reader of job %r was cut: %s", self._stream_id, cuts.exceptions[0])
                self._broken = True
                hub.add(measures.HTTP_CUT)
            except* _StoppedError:
                _log.debug("a reader of job %r was sent away", self._stream_id)
            finally:
                self._feeds.open.discard(self)
        if problem is not None:
            raise problem
        if self._broken and (cut := scope.get("state", {}).get(CUT)) is not None:
            cut()

    async def _answer(self, scope: Scope, receive: Receive, send: Send, group: asyncio.TaskGroup) -> Exception | None:
        try:
            async with self._reader() as events:
                try:
                    start = await self._delivery.begin(events)
                    if start is not None and scope["method"] != "HEAD":
                        await self._stream(start, events, send, group)
                        return None
                finally:
                    # From here on nobody can be too early: the reader is left in peace.
                    self._over = True
            await (nothing() if start is None else Response(headers=start.headers))(scope, receive, send)
        except NatsJobsError as error:
            return error
        return None

    async def _stream(self, start: Start, events: EventReader, send: Send, group: asyncio.TaskGroup) -> None:
        headers = [(name.lower().encode(), value.encode()) for name, value in start.headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if start.body:
            self._put(start.body)
        writer = group.create_task(self._write(send))
        try:
            async for event in events:
                if frame := self._delivery.encode(event):
                    self._put(frame)
                    if self._size >= self._config.buffer_bytes:
                        self._room.clear()
                        await self._room.wait()
            self._complete = self._over = True
        except NatsJobsError as error:
            # The status is out. Whoever connects again with the last id gets the reason as one.
            log = _log.info if isinstance(error, ResumeError) else _log.warning
            log("a reader of job %r was stopped: %s", self._stream_id, error)
            self._stopping = True
        self._more.set()
        await writer

    def _put(self, data: bytes) -> None:
        self._waiting.append(data)
        self._size += len(data)
        self._more.set()

    async def _write(self, send: Send) -> None:
        while self._complete or not self._stopping:
            if not self._waiting:
                if self._complete:
                    break
                await self._wait()
                continue
            data = b"".join(self._waiting)
            self._waiting.clear()
            self._size = 0
            self._room.set()
            await self._send(send, data, more=True)
        if self._complete or self._delivery.ends_cleanly:
            await self._send(send, b"", more=False)
        else:
            self._broken = True
        if not self._complete:
            raise _StoppedError

    async def _wait(self) -> None:
        self._more.clear()
        try:
            async with asyncio.timeout(self._config.heartbeat):
                await self._more.wait()
        except TimeoutError:
            self._put(sse.HEARTBEAT)

    async def _send(self, send: Send, data: bytes, *, more: bool) -> None:
        try:
            async with asyncio.timeout(self._config.send_timeout):
                await send({"type": "http.response.body", "body": data, "more_body": more})
                hub.add(measures.HTTP_FEED_BYTES, len(data))
        except OSError as error:  # some servers say it here; a time-out is an OSError, too
            if not isinstance(error, TimeoutError):
                raise _LeftError from None
            raise _CutError(f"it took nothing for {self._config.send_timeout:g} s") from None

    async def _watch(self, receive: Receive) -> None:
        """Wait for the client to leave. It has nothing more to say, so one that talks on is shown out."""
        heard = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                if self._over:
                    return
                raise _LeftError
            heard += len(message.get("body", b""))
            if heard > self._config.request_bytes and not self._over:
                raise _CutError("it sent more than a request")
