"""What becomes of a server that cannot be reached, before any of the others was tried."""

from __future__ import annotations

import ssl
import sys

import nats.errors
import pytest

import natsjobs
from natsjobs.errors import ConfigError
from natsjobs.jetstream.connecting import is_about_tls


class WebsocketError(OSError):
    """As the client of a websocket has it: one class for every socket that does not open, with "ssl" in its text."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (WebsocketError(111, "Cannot connect to host 127.0.0.1:1 ssl:default [Connect call failed]"), False),
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)"), False),
        (ssl.SSLCertVerificationError("certificate verify failed"), True),
        (nats.errors.Error("nats: no ssl context provided"), True),
        (nats.errors.Error("nats: empty response from server"), False),
    ],
)
def test_a_socket_that_does_not_open_is_no_failure_of_tls(error: Exception, expected: bool) -> None:
    """Of one that is down the next server in the list knows nothing; what is wrong with TLS ends the attempt."""
    assert is_about_tls(error) is expected


@pytest.mark.parametrize("url", ["ws://127.0.0.1:1", "nats://127.0.0.1:1,wss://127.0.0.1:1"])
async def test_a_websocket_without_its_client_says_what_to_install(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and not as a server that does not answer."""
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ConfigError, match="install aiohttp") as failed:
        await natsjobs.connect(url).__aenter__()
    assert failed.value.field == "servers"
