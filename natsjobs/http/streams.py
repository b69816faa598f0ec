"""The endpoints about jobs: events, record, resume state, abort, a user's active jobs."""

from __future__ import annotations

from functools import partial

from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from natsjobs.errors import JobNotFoundError
from natsjobs.http import requests
from natsjobs.http.access import Action
from natsjobs.http.again import Again
from natsjobs.http.delivery import Frames
from natsjobs.http.desk import Desk
from natsjobs.http.feed import Feed
from natsjobs.http.problems import json_answer, problem
from natsjobs.models import to_dict

_REFUSED = {
    "ended": "the job had ended already; nothing was changed",
    "replaced": "the job has a newer generation; nothing was changed",
}


class Streams:
    """``/streams/…`` and ``/users/…``."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> list[BaseRoute]:
        """Where they are."""
        return [
            Route("/streams/{stream_id}/events", self.events, methods=["GET"], middleware=[Middleware(Again)]),
            Route("/streams/{stream_id}/state", self.state, methods=["GET"]),
            Route("/streams/{stream_id}/abort", self.abort, methods=["POST"]),
            Route("/streams/{stream_id}", self.job, methods=["GET"]),
            Route("/users/{user_id}/active", self.active, methods=["GET"]),
        ]

    async def events(self, request: Request) -> ASGIApp:
        """Server-sent events: replay from the cursor, live, the terminal record, the end."""
        stream_id = await self._desk.admit(request, Action.READ)
        after, raw = requests.cursor(request), requests.switch(request, "raw")
        delivery = Frames(raw=raw, after=after, retry=self._desk.config.retry)
        return Feed(self._desk.feeds, stream_id, partial(self._desk.jobs.subscribe, stream_id, after=after), delivery)

    async def job(self, request: Request) -> Response:
        """The job record."""
        stream_id = await self._desk.admit(request, Action.READ)
        job = await self._desk.jobs.get(stream_id)
        if job is None:
            raise JobNotFoundError(stream_id)
        return json_answer(to_dict(job))

    async def state(self, request: Request) -> Response:
        """What a page needs to draw itself and go on after ``cursor``."""
        stream_id = await self._desk.admit(request, Action.READ)
        state = await self._desk.jobs.resume_state(stream_id)
        if state is None:
            raise JobNotFoundError(stream_id)
        return json_answer(to_dict(state))

    async def abort(self, request: Request) -> Response:
        """Stop the job, wherever it runs. The body may name the ``generation`` that is meant."""
        stream_id = await self._desk.admit(request, Action.ABORT)
        body = await requests.json_object(request, self._desk.config)
        generation = body.pop("generation", None)
        if body or not (generation is None or isinstance(generation, str)):
            raise HTTPException(400, 'the body may have one field: "generation", a string')
        result = await self._desk.abort(stream_id, generation)
        if not result.success:
            if result.reason == "not_found":
                raise JobNotFoundError(stream_id)
            status, message = 409, _REFUSED.get(result.reason or "", "it was not aborted")
            return problem(status, f"job_{result.reason}", message, streamId=stream_id)
        return json_answer(to_dict(result))

    async def active(self, request: Request) -> Response:
        """Stream ids of the user's jobs that have not ended."""
        user_id = requests.path_id(request, "user_id")
        await self._desk.ask(request, None, Action.LIST)
        tenant = request.query_params.get("tenant") or None
        return json_answer({"streamIds": await self._desk.jobs.active(user_id, tenant_id=tenant)})
