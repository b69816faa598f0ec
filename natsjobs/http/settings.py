"""``GatewayConfig``: every number of the gateway that a user may change. Seconds are floats, sizes are bytes."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from natsjobs.errors import ConfigError

LONGEST_HEARTBEAT = 15.0
"""Proxies commonly close what was silent for 30 to 60 seconds; the interface promises this much."""


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one gateway.

    Attributes:
        connections: Open event streams in this process; one more is refused (503).
        stream_connections: The same for one stream id (429).
        request_bytes: Largest request body (413).
        request_timeout: A request body must have arrived within this (408).
        send_timeout: A client that takes nothing for this long is cut; it can resume.
        buffer_bytes: Waiting for one client, beyond what the socket holds; then its reader waits.
        heartbeat: A comment is sent after this much silence, at most 15.
        retry: How long ``EventSource`` waits before it connects again.
        metrics: Who gets ``/metrics``: ``"authorized"``: whom the hook lets ``OBSERVE``; ``"open"``: everybody who
            can connect, for a scraper on a network that is trusted; ``"off"``: nobody.
        page: Whether the live view is served at ``/``. It holds no data; its requests are authorized like any others.
        origins: Web pages of other origins that may use the gateway (CORS); ``("*",)``: all, without cookies.

    Raises:
        ConfigError: A value that cannot work.
    """

    connections: int = 10_000
    stream_connections: int = 5_000
    request_bytes: int = 65_536
    request_timeout: float = 10.0
    send_timeout: float = 30.0
    buffer_bytes: int = 65_536
    heartbeat: float = 10.0
    retry: float = 1.0
    metrics: Literal["authorized", "open", "off"] = "authorized"
    page: bool = True
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("connections", "stream_connections", "request_bytes", "buffer_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"must be 1 or more, not {getattr(self, name)}")
        for name in ("request_timeout", "send_timeout", "heartbeat"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(name, f"must be a number of seconds above 0, not {value}")
        if self.heartbeat > LONGEST_HEARTBEAT:
            raise ConfigError("heartbeat", f"must be {LONGEST_HEARTBEAT:g} seconds or less, not {self.heartbeat:g}")
        if self.metrics not in ("authorized", "open", "off"):
            raise ConfigError("metrics", f'must be "authorized", "open" or "off", not {self.metrics!r}')
        if not (math.isfinite(self.retry) and self.retry >= 0):
            raise ConfigError("retry", f"must be a number of seconds, not {self.retry}")
