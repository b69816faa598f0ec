"""What a request says: its ids, its numbers, its body. Owns the checks that come before anything is asked of NATS."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from natsjobs.http.settings import GatewayConfig

_LONGEST_ID = 3_900
"""Bytes; nothing longer can be a NATS subject, whatever the settings."""


def exact(scope: Scope) -> Scope:
    """The scope with a path in which every slash separates: those inside an id stay encoded, as does the percent sign.

    Servers decode the path, after which an encoded slash cannot be told from a real one. The path as it was sent is
    there, too, but a mounting application may have changed the decoded one alone; then that one counts.

    Raises:
        HTTPException: 404; the path is no text.
    """
    path = str(scope["path"])
    try:
        segments = [unquote_to_bytes(piece).decode() for piece in bytes(scope.get("raw_path") or b"").split(b"/")]
    except UnicodeDecodeError:
        raise HTTPException(404, "not found") from None
    if "/".join(segments) != path:
        segments = path.split("/")
    mine = "/".join(segment.replace("%", "%25").replace("/", "%2F") for segment in segments)
    return {**scope, "path": mine, "root_path": str(scope.get("root_path", "")).replace("%", "%25")}


def _plain(text: str) -> str:
    """What ``exact`` encoded."""
    return text.replace("%2F", "/").replace("%25", "%")


def root(request: Request) -> str:
    """Where the gateway is mounted; empty: at the root."""
    return _plain(str(request.scope.get("root_path", "")))


def path_id(request: Request, name: str) -> str:
    """An id in the path.

    Raises:
        HTTPException: 400; it is longer than any id can be.
    """
    value = _plain(str(request.path_params[name]))
    if len(value.encode()) > _LONGEST_ID:
        raise HTTPException(400, "the id is too long")
    return value


def cursor(request: Request) -> str | None:
    """Where the reader wants to go on: the header that ``EventSource`` sends, else the query."""
    if given := request.headers.get("last-event-id"):
        return given
    query = {name.lower(): value for name, value in request.query_params.items()}
    return query.get("last-event-id") or query.get("after") or None


def switch(request: Request, name: str) -> bool:
    """A yes or no of the query.

    Raises:
        HTTPException: 400; it is neither.
    """
    value = request.query_params.get(name, "0").lower()
    if value not in {"0", "1", "true", "false"}:
        raise HTTPException(400, f"{name}: give 1 or 0")
    return value in {"1", "true"}


def index(request: Request, name: str) -> int | None:
    """A whole number of the query, maybe negative.

    Raises:
        HTTPException: 400; it is none.
    """
    value = request.query_params.get(name)
    if value is None or value == "":
        return None
    digits = value.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 15):
        raise HTTPException(400, f"{name}: give a whole number")
    return int(value)


async def json_object(request: Request, config: GatewayConfig) -> dict[str, Any]:
    """The body: a JSON object, or nothing.

    Raises:
        HTTPException: 400, 408 or 413; it is something else, too slow or too large.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(config.request_timeout):
            async for piece in request.stream():
                body += piece
                if len(body) > config.request_bytes:
                    raise HTTPException(413, f"the body is larger than {config.request_bytes} bytes")
    except TimeoutError:
        raise HTTPException(408, "the body did not arrive in time") from None
    except ClientDisconnect:
        raise HTTPException(400, "the body did not arrive") from None
    if not body.strip():
        return {}
    try:
        value: Any = msgspec.json.decode(bytes(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(value, dict):
        raise HTTPException(400, "the body is not a JSON object")
    return value  # pyright: ignore[reportUnknownVariableType]
