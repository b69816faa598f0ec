"""``gateway``: the ASGI application, to be mounted in another one or run alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from natsjobs.errors import NatsJobsError
from natsjobs.http import problems, requests
from natsjobs.http.access import Authorize
from natsjobs.http.chat import Chat
from natsjobs.http.desk import Desk, OnAbort
from natsjobs.http.figures import Figures
from natsjobs.http.listing import Listing
from natsjobs.http.openapi import Description
from natsjobs.http.page import Page
from natsjobs.http.settings import GatewayConfig
from natsjobs.http.streams import Streams
from natsjobs.manager import JobManager

_READY = 5.0


def gateway(
    jobs: JobManager,
    *,
    authorize: Authorize,
    on_abort: OnAbort | None = None,
    config: GatewayConfig | None = None,
) -> Gateway:
    """Jobs over HTTP: events, records, resume states, aborts. The application owns ``jobs`` and outlives the gateway.

    Args:
        jobs: An open manager, on any replica.
        authorize: Asked once per request for jobs or figures, see ``Authorize``; ``owners`` makes one.
        on_abort: Gets the result of every abort, with the usage that it claimed: bill it there. Without it the
            usage is in the answer, for the client to bill.
        config: Limits and intervals.
    """
    return Gateway(Desk(jobs, authorize, config or GatewayConfig(), on_abort))


class Gateway:
    """An ASGI application; made by ``gateway``."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._figures = Figures(desk)
        routes: list[BaseRoute] = [
            *Streams(desk).routes(),
            *Listing(desk).routes(),
            *Chat(desk).routes(),
            *self._figures.routes(),
            Route("/healthz", self._healthz, methods=["GET"]),
            Route("/readyz", self._readyz, methods=["GET"]),
            *(Page().routes() if desk.config.page else ()),
        ]
        self._app = Starlette(
            routes=[*routes, Description(routes).route],
            middleware=_cors(desk.config.origins),
            exception_handlers={
                NatsJobsError: problems.of_library,
                HTTPException: problems.of_http,
                PermissionError: problems.of_refusal,
                Exception: problems.of_defect,
            },
            lifespan=self._lifespan,
        )
        self._app.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._figures.counting(send) as counted:
            try:
                scope = requests.exact(scope)
            except HTTPException as error:
                await (await problems.of_http(Request(scope), error))(scope, receive, counted)
                return
            await self._app(scope, receive, counted)

    @property
    def open_streams(self) -> int:
        """Event streams that are open now."""
        return self._desk.feeds.admission.open

    def close(self) -> None:
        """End all event streams; ``/readyz`` says so from now on. Servers wait for open responses when they stop.

        Clients connect again, to another replica, and miss nothing. No job is touched.
        """
        self._desk.feeds.close()
        self._figures.close()

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncGenerator[None]:
        yield
        self.close()

    async def _healthz(self, _: Request) -> Response:
        """This process answers."""
        return problems.json_answer({"status": "ok"})

    async def _readyz(self, _: Request) -> Response:
        """NATS answers, and the stream and the bucket are there."""
        if self._desk.feeds.closing:
            return problems.problem(503, "closing", "this gateway is being stopped")
        try:
            async with asyncio.timeout(_READY):
                await self._desk.jobs.store.check()
        except TimeoutError:
            return problems.problem(503, "unavailable", "NATS does not answer")
        return problems.json_answer({"status": "ready"})


def _cors(origins: tuple[str, ...]) -> list[Middleware]:
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID"],
            expose_headers=["retry-after", "x-vercel-ai-ui-message-stream", "x-workflow-stream-tail-index"],
            allow_credentials="*" not in origins,
        )
    ]
