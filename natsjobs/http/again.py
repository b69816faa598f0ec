"""``Again``: a refusal that will pass, said so that ``EventSource`` comes again.

By the HTML standard any status but 200 ends an ``EventSource`` for good. It connects again, with the id of the last
event, when its connection breaks or its stream ends. So who accepts ``text/event-stream`` is answered 429 and 503 with
a stream that says only when to come again, and why, and ends; ``Retry-After`` tells programs the same. Everybody else
gets the status, and so do measures: ``meant`` is for whoever counts.
"""

from __future__ import annotations

import random

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from natsjobs.http import sse

_PASSING = {429, 503}
_MEANT = "natsjobs.status"
_PAUSE = 2
_SPREAD = 1.5
"""All who were refused together do not come again together."""


def meant(message: Message) -> int:
    """The status of a response that begins, as it is without ``Again``."""
    status: int = message.pop(_MEANT, message["status"])
    return status


class Again:
    """Middleware of a route whose answers are server-sent events."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        said = b""

        async def again(message: Message) -> None:
            nonlocal said
            if message["type"] == "http.response.start" and message["status"] in _PASSING:
                said = _begin(message, persistent=scope["http_version"].startswith("1"))
            elif said:
                message["body"] = said + message["body"] + b"\n"  # a problem: JSON, on one line and in one piece
            await send(message)

        await self._app(scope, receive, again if _is_listening(scope) else send)


def _begin(message: Message, *, persistent: bool) -> bytes:
    """Make it the start of a stream; what that says before the reason."""
    status, message["status"] = message["status"], 200
    message[_MEANT] = status
    headers = MutableHeaders(scope=message)
    pause = headers.get("retry-after", "")
    if not pause.isdecimal():
        headers["retry-after"] = pause = str(_PAUSE)
    del headers["content-length"]
    headers.update(sse.HEADERS)
    if persistent:
        headers["connection"] = "close"  # else it comes again to this very process, whoever else there is
    return sse.retry(round(int(pause) * 1000 * random.uniform(1, _SPREAD))) + b": %d " % status  # noqa: S311 - no secret


def _is_listening(scope: Scope) -> bool:
    accepted = Headers(scope=scope).get("accept", "").lower().split(",")
    return scope["method"] == "GET" and any(kind.partition(";")[0].strip() == "text/event-stream" for kind in accepted)
