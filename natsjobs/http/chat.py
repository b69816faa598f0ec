"""The AI SDK's endpoints: a chat is a job, its id the stream id, and its events are UI message chunks.

``useChat({ resume: true })`` asks for ``GET /api/chat/{id}/stream`` and takes 204 for "nothing is active";
``WorkflowChatTransport`` adds ``startIndex``, the number of chunks that it has, or negative: how many it wants.
"""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from natsjobs.errors import HistoryLostError, JobNotFoundError
from natsjobs.http import requests
from natsjobs.http.access import Action
from natsjobs.http.delivery import Chunks
from natsjobs.http.desk import Desk
from natsjobs.http.feed import Feed
from natsjobs.http.problems import json_answer, nothing
from natsjobs.models import to_dict


class Chat:
    """``/api/chat/…``."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> list[BaseRoute]:
        """Where they are."""
        return [
            Route("/api/chat/{stream_id}/stream", self.stream, methods=["GET"]),
            Route("/api/chat/{stream_id}/stop", self.stop, methods=["POST"]),
        ]

    async def stream(self, request: Request) -> ASGIApp:
        """All chunks from the first, or from ``startIndex``, then live, then ``[DONE]``."""
        start = requests.index(request, "startIndex")
        try:
            stream_id = await self._desk.admit(request, Action.READ)
        except JobNotFoundError:
            if start is not None:
                raise
            return nothing()
        feed = Feed(self._desk.feeds, stream_id, partial(self._desk.jobs.subscribe, stream_id), Chunks(start))
        return feed if start is not None else _NothingActive(feed)

    async def stop(self, request: Request) -> Response:
        """Stop the answer. A stop that comes too late is no error: there is nothing left to stop."""
        stream_id = await self._desk.admit(request, Action.ABORT)
        await requests.json_object(request, self._desk.config)
        result = await self._desk.abort(stream_id, None)
        if result.reason == "not_found":
            raise JobNotFoundError(stream_id)
        usage = [to_dict(entry) for entry in result.collected_usage]
        return json_answer({"stopped": result.success, "collectedUsage": usage})


class _NothingActive:
    """A feed whose job is not there: for ``useChat`` that is no error."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._feed(scope, receive, send)
        except (JobNotFoundError, HistoryLostError):
            await nothing()(scope, receive, send)
