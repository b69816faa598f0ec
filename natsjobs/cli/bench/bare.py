"""nats-py by itself: what it costs to send and to hear the same bytes, as the limit that the library works against.

Owns the only use of nats-py outside ``natsjobs.jetstream``: whoever measures what the library adds must have it without
the library. Not a system to use: there is no replay, no record, no owner. ``Bare`` publishes on core NATS, where
nothing is stored and nobody answers; ``BareJetStream`` publishes into a stream and awaits every acknowledgement, as
nats-py's documentation shows it. Both are heard by plain subscriptions, one for each reader.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
import nats

from natsjobs.cli.bench.sides import Followed

_connect = cast("Any", nats).connect  # its options have no types
_STREAM = "bare"
_END = b"null"  # no event of the benchmark is null


class Message:
    """A message in the reader's hand."""

    __slots__ = ("_body", "is_terminal")

    def __init__(self, body: bytes) -> None:
        """As it came."""
        self._body = body
        self.is_terminal = body == _END

    @property
    def cursor(self) -> str:
        """There is none."""
        return ""

    @property
    def data(self) -> Any:
        """Decoded."""
        return msgspec.json.decode(self._body)


class BareRun:
    """A subject."""

    def __init__(self, client: Any, js: Any, subject: str) -> None:
        """``js``: publish into the stream and await the acknowledgement."""
        self._client, self._js, self._subject = client, js, subject

    async def emit(self, event: Any) -> None:
        """One message."""
        await self._send(msgspec.json.encode(event))

    async def flush(self) -> None:
        """The server has read everything."""
        await self._client.flush()

    async def finish(self) -> None:
        """The end is the last message."""
        await self._send(_END)
        await self._client.flush()

    async def _send(self, body: bytes) -> None:
        if self._js is None:
            await self._client.publish(self._subject, body)
        else:
            await self._js.publish(self._subject, body)


class Bare:
    """One process with a plain connection."""

    durable = False

    def __init__(self, client: Any, js: Any) -> None:
        """Use ``open``."""
        self._client, self._js = client, js

    @classmethod
    async def open(cls, url: str, settings: dict[str, Any]) -> Bare:  # noqa: ARG003 - there are none
        """Connect."""
        client = await _connect(url)
        if not cls.durable:
            return cls(client, None)
        js = client.jetstream()
        await js.add_stream(name=_STREAM, subjects=[f"{_STREAM}.>"])
        return cls(client, js)

    async def start(self, stream_id: str, user: str) -> BareRun:  # noqa: ARG002 - a subject has no user
        """Nothing has to be made."""
        return BareRun(self._client, self._js, f"{_STREAM}.{stream_id}")

    @asynccontextmanager
    async def follow(self, stream_id: str, after: str | None = None) -> AsyncGenerator[Followed]:
        """Subscribed when it is entered; there is no replay."""
        assert after is None
        subscription = await self._client.subscribe(f"{_STREAM}.{stream_id}")
        await self._client.flush()
        try:
            yield (Message(message.data) async for message in subscription.messages)
        finally:
            await subscription.unsubscribe()

    async def active(self, user: str) -> list[str]:
        """Nobody knows."""
        raise NotImplementedError

    async def stored(self) -> int:
        """What the stream takes; on core NATS nothing is stored."""
        if self._js is None:
            return 0
        return int((await self._js.stream_info(_STREAM)).state.bytes)

    async def close(self) -> None:
        """Leave."""
        await self._client.close()


class BareJetStream(Bare):
    """Every message acknowledged by JetStream before the next one of its job goes."""

    durable = True


async def stream_bytes(url: str, stream: str) -> int:
    """What JetStream says that a stream takes."""
    client = await _connect(url.split(","))
    try:
        return int((await client.jetstream().stream_info(stream)).state.bytes)
    finally:
        await client.close()
