"""``Desk``: what every endpoint has in common: the jobs, the hook, the open feeds, and how an abort is carried out."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import msgspec
from starlette.requests import Request

from natsjobs.http import access, requests
from natsjobs.http.access import Action, Authorize
from natsjobs.http.feed import Feeds
from natsjobs.http.settings import GatewayConfig
from natsjobs.manager import JobManager
from natsjobs.models import AbortResult, to_dict

_log = logging.getLogger(__name__)

OnAbort: TypeAlias = Callable[[AbortResult], Awaitable[None] | None]
"""Called with every abort that was carried out, plain or async, before the client is answered."""


class Desk:
    """The parts that a request is handled with."""

    def __init__(self, jobs: JobManager, authorize: Authorize, config: GatewayConfig, on_abort: OnAbort | None) -> None:
        self.jobs, self.config = jobs, config
        self.feeds = Feeds(config)
        self._authorize, self._on_abort = authorize, on_abort

    async def admit(self, request: Request, action: Action) -> str:
        """The stream id of the path, if whoever asks may do this with it."""
        stream_id = requests.path_id(request, "stream_id")
        await self.ask(request, stream_id, action)
        return stream_id

    async def ask(self, request: Request, stream_id: str | None, action: Action) -> object:
        """Ask the application's hook; what it returned. Raises what refuses."""
        return await access.ask(self._authorize, request, stream_id, action)

    async def abort(self, stream_id: str, generation: str | None) -> AbortResult:
        """Abort, and hand the usage that this claimed to exactly one: ``on_abort``, or else the client.

        Raises:
            Exception: What ``on_abort`` raised. The job has ended all the same, and the log holds the usage.
        """
        result = await self.jobs.abort(stream_id, generation=generation)
        if not result.success or self._on_abort is None:
            return result
        try:
            called = self._on_abort(result)
            if inspect.isawaitable(called):
                await called
        except Exception:
            usage = [to_dict(entry) for entry in result.collected_usage]
            _log.exception("on_abort failed for job %r; the usage it was given: %s", stream_id, usage)
            raise
        return msgspec.structs.replace(result, collected_usage=[])
