"""Errors as answers: one JSON object with ``error`` (for programs) and ``message`` (for people).

What an outage or a defect looks like inside is for the log, not for clients: their answer has a fixed text. The
handlers are coroutines because Starlette runs plain functions in threads.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from natsjobs.errors import (
    ConfigError,
    GenerationReplacedError,
    HistoryLostError,
    InvalidArgumentError,
    InvalidCursorError,
    JobClosedError,
    JobNotFoundError,
    NatsJobsError,
)

_log = logging.getLogger(__name__)

_STATUS: list[tuple[type[NatsJobsError], int, str]] = [
    (JobNotFoundError, 404, "job_not_found"),
    (GenerationReplacedError, 409, "generation_replaced"),
    (HistoryLostError, 410, "history_lost"),
    (InvalidCursorError, 400, "invalid_cursor"),
    (InvalidArgumentError, 400, "invalid_argument"),
    (JobClosedError, 409, "job_closed"),
]
_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    429: "too_many_readers",
    503: "unavailable",
}


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON body that no cache keeps and no browser takes for anything else."""
    return Response(
        msgspec.json.encode(value),
        status,
        {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **(headers or {})},
        "application/json",
    )


def nothing() -> Response:
    """204, without a body."""
    return Response(status_code=204, headers={"Cache-Control": "no-store"})


def problem(status: int, code: str, message: str, **fields: Any) -> Response:
    """The answer to a request that failed."""
    return json_answer({"error": code, "message": message, **fields}, status)


async def of_library(request: Request, error: Exception) -> Response:
    """An error of natsjobs."""
    if isinstance(error, ConfigError):  # a ``fold`` of the application's: no waiting mends it
        _log.error("a request could not be answered: %s", error, exc_info=error)
        return await of_defect(request, error)
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            names = {"stream_id": "streamId", "generation": "generation", "field": "field"}
            fields = {wire: value for name, wire in names.items() if (value := getattr(error, name, None))}
            return problem(status, code, str(error), **fields)
    _log.warning("a request could not be answered: %s: %s", type(error).__name__, error)
    answer = problem(503, "unavailable", "the jobs cannot be reached right now; try again soon")
    answer.headers["Retry-After"] = "2"
    return answer


async def of_http(_: Request, error: Exception) -> Response:
    """An error that is a status already; authorization hooks raise these too."""
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "error")
    headers = dict(error.headers) if error.headers else None
    return json_answer({"error": code, "message": error.detail}, error.status_code, headers)


async def of_refusal(_: Request, error: Exception) -> Response:
    """``PermissionError`` of an authorization hook. Its text stays here."""
    _log.info("refused: %s", error)
    return problem(403, "forbidden", "you may not do this")


async def of_defect(_: Request, _error: Exception) -> Response:
    """Anything else. Starlette raises it once more behind the answer, so that the server logs it."""
    return problem(500, "internal_error", "something went wrong here; the gateway's log says what")
