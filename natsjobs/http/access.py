"""Who may do what: the application's hook, and small parts to build one from.

The gateway asks the hook once per request for jobs or figures and obeys; it decides nothing itself and keeps no
identities. ``/healthz`` and ``/readyz`` are for probes and ask nobody, nor do the page's own files and
``/openapi.json``, in which nothing of anybody is.
"""

from __future__ import annotations

import hmac
import inspect
import ipaddress
from collections.abc import Awaitable, Callable, Collection, Mapping
from enum import StrEnum
from typing import TypeAlias
from urllib.parse import urlsplit

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request

from natsjobs.errors import JobNotFoundError
from natsjobs.http.requests import path_id
from natsjobs.manager import JobManager


class Action(StrEnum):
    """What a request wants. More may follow: refuse what you do not know."""

    READ = "read"
    """See the job, its state or its events."""
    ABORT = "abort"
    """Stop it."""
    LIST = "list"
    """List one user's jobs: ``stream_id`` is ``None``, the user is ``named_user(request)``."""
    OBSERVE = "observe"
    """See figures about the whole service (``/metrics``): ``stream_id`` is ``None``; nobody's id is in them."""
    BROWSE = "browse"
    """List the jobs of all users: for operators. Return ``Only(…)`` to let somebody see a part of them."""


class Only(msgspec.Struct, frozen=True):
    """What a hook may return for ``BROWSE`` and ``LIST``: whoever asks sees no other jobs. ``None`` does not narrow."""

    user_id: str | None = None
    tenant_id: str | None = None


Authorize: TypeAlias = Callable[[Request, str | None, Action], object]
"""``authorize(request, stream_id, action) -> identity``, plain or async.

What it returns is whoever asks, and lands in ``request.state.identity``; ``None`` or ``False`` refuses (403). It may
raise ``PermissionError`` (403), or a Starlette ``HTTPException`` or an error of natsjobs, which become the answer.
"""

Identify: TypeAlias = Callable[[Request], str | Awaitable[str | None] | None]
"""Request in, user id out; ``None``: nobody we know."""


def named_user(request: Request) -> str:
    """The user whose jobs are to be listed; empty: nobody in particular, as with ``BROWSE``."""
    if "user_id" in request.path_params:
        return path_id(request, "user_id")
    return request.query_params.get("user", "")


async def ask(authorize: Authorize, request: Request, stream_id: str | None, action: Action) -> object:
    """Ask the hook; what it returned.

    Raises:
        PermissionError: It refused.
    """
    identity = authorize(request, stream_id, action)
    if inspect.isawaitable(identity):
        identity = await identity
    if identity is None or identity is False:
        raise PermissionError(f"{action.value} of {stream_id!r}")
    request.state.identity = identity
    return identity


def bearer(tokens: Mapping[str, str]) -> Identify:
    """Users by ``Authorization: Bearer``; ``tokens`` maps each token to a user id. For ``owners``, and an example."""
    known = [(token.encode(), user) for token, user in tokens.items()]

    def identify(request: Request) -> str | None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        offered = given.strip().encode("utf-8", "surrogateescape")
        found = None
        for token, user in known:  # all of them: how long it takes says nothing about which one was close
            if hmac.compare_digest(token, offered):
                found = user
        return found if scheme.lower() == "bearer" else None

    return identify


_OPERATORS = {Action.READ, Action.ABORT, Action.LIST, Action.BROWSE, Action.OBSERVE}


def owners(jobs: JobManager, identify: Identify, *, operators: Collection[str] = ()) -> Authorize:
    """A hook by which everybody may use their own jobs, and nobody learns that others exist.

    Nobody known: 401. Somebody else's job is answered as one that does not exist. Costs one read of the job record.
    ``operators`` are users who may see, list and stop all jobs, and see the figures.
    """

    async def authorize(request: Request, stream_id: str | None, action: Action) -> object:
        user = identify(request)
        if inspect.isawaitable(user):
            user = await user
        if not user:
            raise HTTPException(401, "say who you are", {"WWW-Authenticate": "Bearer"})
        if user in operators and action in _OPERATORS:
            return user
        if action is Action.BROWSE:
            return Only(user)
        if action is Action.LIST:
            return user if named_user(request) == user else None
        if action not in {Action.READ, Action.ABORT} or stream_id is None:
            return None
        job = await jobs.get(stream_id)
        if job is None or job.user_id != user:
            raise JobNotFoundError(stream_id)
        return user

    return authorize


def this_machine(origins: Collection[str] = ()) -> Authorize:
    """A hook for a gateway that listens on loopback and lets every program there do everything.

    Not so the web pages in this machine's browsers: they are refused unless they come from loopback themselves or
    from ``origins``, and so are requests under any other host name, which is how a page gets around that (DNS
    rebinding).
    """

    def authorize(request: Request, _stream_id: str | None, _action: Action) -> object:
        origin = request.headers.get("origin")
        if not _is_here("//" + request.headers.get("host", "")):
            raise PermissionError("the host is not this machine")
        if origin is not None and origin not in origins and not _is_here(origin):
            raise PermissionError(f"a page of {origin}")
        return "local"

    return authorize


def _is_here(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
