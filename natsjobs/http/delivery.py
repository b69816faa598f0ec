"""What one request wants to see of a job: which events, as which bytes, under which headers.

Two ways: server-sent events with cursors, for ``EventSource`` and everything like it, and the AI SDK's stream of UI
message chunks. Both decide before the response begins, so that "nothing to send" is a status and not an empty stream.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

import msgspec

from natsjobs.errors import HistoryLostError
from natsjobs.http import sse
from natsjobs.interfaces import EventReader
from natsjobs.models import EventType, StreamEvent

_PATIENCE = 5.0


class Start(msgspec.Struct, frozen=True):
    """How a response begins: its headers, and the first bytes of its body."""

    headers: dict[str, str]
    body: bytes = b""


class Delivery(Protocol):
    """One request's way of seeing a job."""

    @property
    def ends_cleanly(self) -> bool:
        """Whether a response that stops before the terminal record may end like a complete one."""
        ...

    async def begin(self, events: EventReader) -> Start | None:
        """Look at what there is; ``None``: nothing to send (204)."""
        ...

    def encode(self, event: StreamEvent) -> bytes:
        """The bytes of one event, maybe none."""
        ...


class Frames:
    """Server-sent events with cursors."""

    ends_cleanly = True  # a reader knows by the missing terminal event, connects again, and is told why if it must be

    def __init__(self, *, raw: bool, after: str | None, retry: float) -> None:
        self._raw, self._after, self._retry = raw, after, retry

    async def begin(self, events: EventReader) -> Start | None:
        """Nothing to send to a client that has the terminal record already: ``EventSource`` stops on 204 only."""
        body = sse.retry(round(self._retry * 1000))
        if self._after is not None:
            # Of a job that goes on only what is there at once is looked at; the rest may take for ever.
            patience = _PATIENCE if events.job.status.is_terminal else 0
            try:
                async with asyncio.timeout(patience):
                    body += self.encode(await anext(events))
            except TimeoutError:
                pass
            except StopAsyncIteration:
                return None
        return Start(sse.HEADERS, body)

    def encode(self, event: StreamEvent) -> bytes:
        """One frame."""
        return sse.encode_sse(event, raw=self._raw)


class _Chunk(msgspec.Struct):
    type: str = ""


_chunk = msgspec.json.Decoder(_Chunk)
_json = msgspec.json.Encoder().encode


class Chunks:
    """The AI SDK's UI message stream: every event is a chunk, and it ends with ``finish`` and ``[DONE]``."""

    ends_cleanly = False  # the SDK takes a clean end for the whole answer, and resumes after a broken one only

    def __init__(self, start_index: int | None) -> None:
        """``start_index`` as ``WorkflowChatTransport`` gives it; ``None``: all chunks, if the job is active."""
        self._wanted = start_index
        self._start = max(0, start_index or 0)
        self._finished = False

    async def begin(self, events: EventReader) -> Start | None:
        """Nothing to send when nothing is active; who gives an index gets the rest of an ended job, too.

        Raises:
            HistoryLostError: The chunks at that index are gone, and counting would go wrong.
        """
        if self._wanted is None and events.job.status.is_terminal:
            return None
        headers = {**sse.HEADERS, "x-vercel-ai-ui-message-stream": "v1"}
        stored = events.stored
        if self._wanted is not None:
            headers["x-workflow-stream-tail-index"] = str(stored - 1)
            if self._wanted < 0:
                self._start = max(0, stored + self._wanted)
        if stored == 0:
            return Start(headers)
        try:
            async with asyncio.timeout(_PATIENCE):
                first = await anext(events)
        except TimeoutError:  # all that were stored have been cleared
            beginning, body = stored, b""
        else:
            beginning, body = first.index, self.encode(first)
        if self._wanted is not None and self._start < beginning:
            raise HistoryLostError(events.job.stream_id, f"it begins at event {beginning}")
        return Start(headers, body)

    def encode(self, event: StreamEvent) -> bytes:
        """One chunk; for the terminal record what the SDK needs to know that this was all."""
        if event.is_terminal:
            return self._end(event)
        if event.type != EventType.EVENT:
            return b""
        with contextlib.suppress(msgspec.DecodeError):  # no chunk: whoever emitted it will hear from the SDK
            self._finished = self._finished or _chunk.decode(event.raw).type == "finish"
        return _frame(event.raw) if event.index >= self._start else b""

    def _end(self, event: StreamEvent) -> bytes:
        body = b""
        if event.type == EventType.ABORTED:
            body += _frame(b'{"type":"abort"}')
        elif event.type == EventType.ERROR:
            body += _frame(_json({"type": "error", "errorText": str(event.data)}))
        # Without a finish chunk the SDK's transports would connect again, for ever.
        if not self._finished or event.type == EventType.ABORTED:
            body += _frame(b'{"type":"finish"}')
        return body + _frame(b"[DONE]")


def _frame(payload: bytes) -> bytes:
    return sse.data_lines(payload) + b"\n"
