"""How a connection of our own is opened and comes back: options, jitter, which server next.

Owns the numbers of reconnecting. It does not watch the connection; ``connection`` does, and asks for a new one when
nats-py has closed the old one for good (an expired token, credentials changed under it, an oversized message).
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import inspect
import logging
import random
import ssl
import time
from collections.abc import Iterable, Mapping
from typing import Any

from nats.aio.client import Client, Server

from natsjobs.config import RECONNECT_WAIT
from natsjobs.errors import ConfigError, UnavailableError
from natsjobs.jetstream.credentials import check_url, ready, secrets_of, split_urls, without_user
from natsjobs.jetstream.faults import translated
from natsjobs.jetstream.socket import drop_socket

_log = logging.getLogger(__name__)

OURS = frozenset(
    {
        "allow_reconnect",
        "closed_cb",
        "disconnected_cb",
        "error_cb",
        "max_reconnect_attempts",
        "reconnect_time_wait",
        "reconnect_to_server_handler",
        "reconnected_cb",
        "servers",
    }
)
"""Options of ``nats.connect`` that are not the user's."""

_DEFAULTS: dict[str, Any] = {"name": "natsjobs", "ping_interval": 10, "max_outstanding_pings": 2}
_FIRST_WAIT = 0.05
_DISCARD = 1.0
_TLS = ("no ssl context", "ssl", "tls")
_REFUSED = ("authorization", "authentication", "user jwt", "credentials")


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what nats-py would refuse later, and what is ours.

    Raises:
        ConfigError: ``field`` names the option.
    """
    known = set(inspect.signature(Client.connect).parameters) - {"self"}
    for name in options:
        if name in OURS:
            raise ConfigError(name, "reconnecting and callbacks are natsjobs' own; leave this option out")
        if name not in known:
            near = difflib.get_close_matches(name, known - OURS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(name, f"no option of nats.connect{hint}")


class Dialer:
    """Opens connections to one set of servers, each with the same options."""

    def __init__(self, servers: str | Iterable[str], options: Mapping[str, Any]) -> None:
        """``servers``: URLs, or one string of them with commas.

        Raises:
            ConfigError: An option is unknown or not the user's.
        """
        check_options(options)
        urls = servers.split(",") if isinstance(servers, str) else servers
        given = [url.strip() for url in urls if url.strip()]
        self._servers, self._options = split_urls(given, {**_DEFAULTS, **options})
        self._secrets = secrets_of(given, self._options)
        if not self._servers:
            raise ConfigError("servers", "name at least one server, like nats://localhost:4222")
        for url in self._servers:
            check_url(without_user(url))
        self.tried_at = time.monotonic()
        self._avoid: str | None = None

    async def dial(self, limit: float) -> Client:
        """A connected client; it reconnects for ever by itself.

        Raises:
            UnavailableError: No server answered within ``limit`` seconds, or it refused the credentials.
            ConfigError: An option has an impossible value.
        """
        nc = Client()
        trouble: list[str] = []
        opening, options, deadline = True, ready(self._options), time.monotonic() + limit

        async def note(error: Exception) -> None:
            text = self._clean(str(error) or type(error).__name__)
            if not opening:
                _log.info("connection to NATS: %s", text)
                return
            if time.monotonic() > deadline:
                # The time-out below cancelled nats-py in the moment when an attempt failed: `asyncio.wait_for` of
                # Python 3.11 then loses the cancellation, and nats-py would try for ever.
                raise TimeoutError
            trouble.append(text)
            if any(word in text.lower() for word in _REFUSED):  # leaves `connect`, which would try for ever
                raise UnavailableError(f"NATS refused the connection: {text}; check the credentials")
            if is_about_tls(error):
                raise UnavailableError(
                    f"no TLS connection: {text}; check the address, the authority that is trusted (CA), "
                    "and whether the server wants a certificate of the client"
                )

        try:
            with translated(f"connecting to {self._named()}"):
                async with asyncio.timeout(limit):
                    await nc.connect(
                        servers=self._servers,
                        error_cb=note,
                        max_reconnect_attempts=-1,
                        reconnect_time_wait=_FIRST_WAIT,  # type: ignore[arg-type]  # seconds, floats work
                        reconnect_to_server_handler=functools.partial(self._next, nc),
                        **options,
                    )
        except BaseException as error:
            opening = False
            await _discard(nc)
            # nats-py does not read why a server drops a connection before it has said who it is.
            heard = ", ".join(list(dict.fromkeys(trouble))[-3:])
            if isinstance(error, UnavailableError) and isinstance(error.__cause__, TimeoutError):
                raise UnavailableError(
                    f"no NATS server answered at {self._named()} within {limit:g} s"
                    f"{f' ({heard})' if heard else ''}; check the address and that it runs"
                    f"{', its TLS settings and its max_connections' if heard else ''}"
                ) from None
            if isinstance(error, ConfigError):
                raise ConfigError(error.field, self._clean(str(error).removeprefix(f"{error.field}: "))) from None
            if isinstance(error, UnavailableError):
                raise UnavailableError(self._clean(str(error))) from None
            raise
        opening = False
        return nc

    def avoid(self, nc: Client) -> bool:
        """Go to another server than the present one at the next reconnect; whether there is another."""
        url = nc.connected_url
        self._avoid = url.netloc if url else None
        return len(nc.server_pool) > 1

    def _next(self, nc: Client, servers: list[Server], info: dict[str, Any]) -> tuple[Server | None, float]:
        """nats-py asks before every attempt: where, and after how many seconds. Must not fail, it would spin."""
        del info
        self.tried_at = time.monotonic()
        drop_socket(nc)  # nats-py forgets the sockets of attempts that failed after they were connected
        if not servers:
            return None, RECONNECT_WAIT
        others = [server for server in servers if server.uri.netloc != self._avoid] or servers
        self._avoid = None
        least = min(server.reconnects for server in others)
        chosen = random.choice([server for server in others if server.reconnects == least])  # noqa: S311
        longest = min(RECONNECT_WAIT, _FIRST_WAIT * 2 ** min(least, 10))
        return chosen, random.uniform(0, longest)  # noqa: S311 - spreads reconnects, no secret

    def _named(self) -> str:
        """The servers without the passwords that their URLs may hold."""
        return ", ".join(map(without_user, self._servers))

    def _clean(self, text: str) -> str:
        """A text of nats-py's or below without what is secret."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def is_about_tls(error: Exception) -> bool:
    """Whether it is TLS that failed. A socket that does not open is none of it, whatever words are in its text."""
    if isinstance(error, OSError):
        return isinstance(error, ssl.SSLError)
    return any(word in str(error).lower() for word in _TLS)


async def _discard(nc: Client) -> None:
    """Close a client that never got connected: nats-py asserts that it was, and waits for a peer that is gone."""
    try:
        async with asyncio.timeout(_DISCARD):
            await nc.close()
    except (AssertionError, TimeoutError):
        drop_socket(nc)
