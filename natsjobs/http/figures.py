"""``/metrics``: what ``natsjobs.telemetry`` measures, for Prometheus; and the gateway's own part of the measures.

Owns the registry that is served, and who may ask for it: figures name no user and no job, but how busy a service is
may be nobody's business, so by default the hook is asked (``Action.OBSERVE``). A scraper on a pod's network has no
token: ``metrics="open"``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Generator, Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Message, Send

from natsjobs.errors import NatsJobsError
from natsjobs.http.access import Action
from natsjobs.http.again import meant
from natsjobs.http.desk import Desk
from natsjobs.http.problems import problem
from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import Gauge, hub

_log = logging.getLogger(__name__)

_PATIENCE = 2.0
"""How long a scrape waits for the sizes of stream and bucket; with NATS away it goes without them."""


class Figures:
    """Counts requests, and serves all measures of the process."""

    def __init__(self, desk: Desk) -> None:
        """Measures from now on, until ``close``."""
        self._desk = desk
        self._open = 0
        self._export = None
        if desk.config.metrics != "off":
            try:
                from prometheus_client import CollectorRegistry, ProcessCollector

                from natsjobs.telemetry.scrape import PrometheusExport
            except ModuleNotFoundError:
                _log.debug("no /metrics without prometheus-client")
            else:
                # Of its own: an application may have exported the same measures with the registry of the process.
                registry = CollectorRegistry()
                ProcessCollector(registry=registry)
                self._export = PrometheusExport(registry)
        hub.watch(self)

    def routes(self) -> list[BaseRoute]:
        """Where it is; nowhere when it is off."""
        return [] if self._desk.config.metrics == "off" else [Route("/metrics", self.metrics, methods=["GET"])]

    def gauges(self) -> Iterable[Gauge]:
        """How this gateway stands."""
        yield measures.HTTP_OPEN, (), self._open
        yield measures.HTTP_FEEDS, (), self._desk.feeds.admission.open

    @contextlib.contextmanager
    def counting(self, send: Send) -> Generator[Send]:
        """Count one request, and how it is answered."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                hub.add(measures.HTTP_RESPONSES, 1, str(meant(message)))
            await send(message)

        self._open += 1
        try:
            yield counted
        finally:
            self._open -= 1

    async def metrics(self, request: Request) -> Response:
        """All measures in Prometheus' text format."""
        if self._desk.config.metrics == "authorized":
            await self._desk.ask(request, None, Action.OBSERVE)
        if self._export is None:
            return problem(501, "not_installed", "pip install 'natsjobs[prometheus]' in the gateway's environment")
        with contextlib.suppress(NatsJobsError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._desk.jobs.store.check()  # which measures the stream and the bucket
        body, content_type = self._export.text()
        return Response(body, headers={"Cache-Control": "no-store", "Content-Type": content_type})

    def close(self) -> None:
        """Measure nothing any more; the last figures can still be had. Idempotent."""
        if self._export is not None:
            self._export.detach()
