"""Garbage for everything that is read from the wire, and somebody who puts it there.

Owns the strategies (what a hostile or broken writer may send) and the ``Vandal`` that writes past the library: into the
streams, on core subjects, with headers, as an answer. Knows the wire layout, not what the library makes of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

from backends import Backend, MemoryBackend, NatsBackend
from hypothesis import strategies as st

SPECIAL = [
    b"", b"{", b"[]", b"null", b'"x"', b"{}", b"\xff\xfe", b"NaN", b'{"type":', b"[" * 5000, b'{"a":' * 3000,
    b'{"type":"events","index":0,"events":["\xff"]}', b'{"type":"events","index":0,"events":[1e999]}',
    b'{"type":"events","index":1e3}', b'{"type":"events","index":-1,"events":[1]}', b'{"type":"part"}',
    b'{"type":"events","index":0,"events":' + b"[" * 900 + b"]" * 901 + b"}",
    b'{"type":"events","type":"done","index":0}',
    b'{"type":"error","index":0,"data":{"x":1}}', b'{"type":"error","index":0,"first":1,"data":null}',
    b'{"type":"part","index":0,"writer":"v","part":[0,1],"data":"{"}', b'{"type":"part","part":[0,1],"data":"\xff"}',
    b'{"type":"final","index":0,"part":[0,1],"data":"{"}', b'{"type":"done","index":-5,"data":1}',
    b'{"op":{},"id":"x"}', b'{"op":["abort"],"id":"x"}', b'{"op":"abort","id":"x","final":1e999}', b"\x00" * 64,
    b'{"op":"ping","runs":[[1,2]]}', b'{"event":1}', b'{"replica":"r","count":"many"}',
]  # fmt: skip
"""What has broken somebody's reader before, or was made to."""


def one_of(values: Sequence[Any]) -> st.SearchStrategy[Any]:
    """As ``sampled_from``, with a short name in reports however long the values are."""
    return st.integers(0, len(values) - 1).map(values.__getitem__)


_NUMBERS = st.one_of(
    one_of([0, -1, 1 << 31, 1 << 53, 1 << 63, 1 << 64, 10**30, -(1 << 63)]), st.integers(-3, 9), st.floats()
)
_TEXTS = st.one_of(st.text(max_size=8), one_of(["x" * 5000, "é", "\ud800", "a.b", "*", ">", " ", "\r\n"]))
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_TEXTS, inner, max_size=4)),
    max_leaves=12,
)


def _bytes(value: object) -> bytes:
    return json.dumps(value).encode()


def like(shape: dict[str, list[Any]]) -> st.SearchStrategy[bytes]:
    """Objects of this shape with some fields missing, of wrong types, or cut off."""
    fields = {name: st.one_of(one_of(values), one_of(values), _JSON) for name, values in shape.items()}
    whole = st.fixed_dictionaries({}, optional=fields).map(_bytes)
    return st.one_of(whole, st.tuples(whole, st.integers(1, 30)).map(lambda cut: cut[0][: -cut[1]]))


ENTRY = {
    "type": ["part", "final", "events", "open", "cleared", "strange", "", "error"],
    "index": [0, 1, 3],
    "writer": ["v", "w"],
    "events": [[1], [], [{"type": "text"}]],
    "part": [[0, 1], [0, 2], [1, 2], [1, 1], [-1, 1], [0, 0], [2, 1 << 40]],
    "first": [0, 1, -1, 1 << 60, 1 << 70],
    "previous": [0, -1],
    "reason": ["abort", "", "weird"],
    "request": ["r"],
    "owner": ["o"],
    "data": ["text", "{", None, {"x": 1}],
}
RECORD = {
    "streamId": ["good", "bad", "x" * 300],
    "userId": ["alice", "", "u" * 5000],
    "status": ["running", "complete", "weird", 1],
    "createdAt": [0, -1, 1 << 62, 10**30, 1.5],
    "generation": ["g", "", "a.b", "*", "x" * 5000],
    "owner": ["ghost", "o" * 5000, "", None],
    "finalEvent": ["{", "1"],
    "finalSeq": [1, -1, 1 << 70],
    "steps": [[1], [{}], "x"],
    "input_tokens": [1, -1, "x", 1 << 70],
    "claimed": [1],
    "replica": ["r"],
    "tenantId": ["t", 1],
}
REQUEST = {
    "op": ["ping", "abort", "signal", ["abort"], {}],
    "id": ["i", 1, "x" * 5000],
    "stream": ["bad", 1],
    "generation": ["g", 1],
    "runs": [[["a", "b"]], [[1]], "x"],
    "event": ["join", "leave", 1],
    "replica": ["r", 1],
    "count": [1, -1, 1 << 70, "x"],
    "mine": [True, 1],
    "heard": [1],
    "content": [["x"], [{"type": "text"}], 1],
    "missing": [[["good", "g"]], [1]],
    "seq": [0, -1, "x", 1 << 70],
    "stream_name": ["x"],
    "error": [{"code": 1}, "x", None],
}

anything = st.one_of(one_of(SPECIAL), st.binary(max_size=40), _JSON.map(_bytes))
entries = st.one_of(anything, like(ENTRY))
records = st.one_of(anything, like(RECORD))
requests = st.one_of(anything, like(REQUEST))
HEADERS = [
    b"NATS/1.0\r\nNats-Sequence: garbage\r\n\r\n",
    b"NATS/1.0\r\nNats-Sequence: 1\r\nNats-Subject: x\r\nNats-Time-Stamp: never\r\n\r\n",
    b"NATS/1.0\r\nNats-Sequence: " + b"9" * 5000 + b"\r\n\r\n",
    b"NATS/1.0\r\nNats-Sequence: 999999999999999\r\n\r\n",
    b"NATS/1.0\r\nKV-Operation: \xff\xfe\r\nNats-Marker-Reason: \xff\r\n\r\n",
    b"NATS/1.0\r\nNats-Marker-Reason: \xff\r\n\r\n",
    b"NATS/1.0 404 Not\r\n\r\n",
    b"NATS/1.0 500 Broken\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0\r\nNats-Sequence: 5",
    b"garbage",
    b"",
]
headers = one_of(HEADERS)


class Vandal(Protocol):
    """Somebody who writes garbage past the library."""

    async def store(self, subject: str, body: bytes, head: bytes = b"") -> None:
        """Into a stream, whatever stands there."""
        ...

    async def say(self, subject: str, body: bytes, head: bytes = b"", reply: str = "") -> None:
        """On a core subject."""
        ...

    async def close(self) -> None:
        """Go away."""
        ...


class MemoryVandal:
    """On a link of the system in this process, which has no headers."""

    def __init__(self, backend: MemoryBackend) -> None:
        self._link = backend.system.link()
        self._subjects = backend.subjects

    async def store(self, subject: str, body: bytes, head: bytes = b"") -> None:
        await self._link.open()
        bucket = subject.startswith(self._subjects.record_prefix)
        await (self._link.records if bucket else self._link.events).append(subject, body)
        await self._link.close()

    async def say(self, subject: str, body: bytes, head: bytes = b"", reply: str = "") -> None:
        await self._link.open()
        await self._link.bus.publish(subject, body)
        await self._link.close()

    async def close(self) -> None:
        pass


class NatsVandal:
    """On a socket of its own: a client library would refuse to write half of it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._writer: asyncio.StreamWriter | None = None

    async def store(self, subject: str, body: bytes, head: bytes = b"") -> None:
        await self.say(subject, body, head)

    async def say(self, subject: str, body: bytes, head: bytes = b"", reply: str = "") -> None:
        reader, writer = await self._open()
        answer = f" {reply}" if reply else ""
        if head:
            line = f"HPUB {subject}{answer} {len(head)} {len(head) + len(body)}\r\n"
        else:
            line = f"PUB {subject}{answer} {len(body)}\r\n"
        writer.write(line.encode("utf-8", "surrogateescape") + head + body + b"\r\nPING\r\n")
        await reader.readuntil(b"PONG\r\n")

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._writer is None:
            parts = urlsplit(self._url)
            self._reader, self._writer = await asyncio.open_connection(parts.hostname, parts.port)
            self._writer.write(b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"echo":true}\r\n')
        return self._reader, self._writer

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            await self._writer.wait_closed()


def vandal_of(backend: Backend) -> Vandal:
    """One for this backend."""
    return NatsVandal(backend.url) if isinstance(backend, NatsBackend) else MemoryVandal(backend)  # type: ignore[arg-type]


class Watch(logging.Handler):
    """What the library logs while garbage comes, and what the loop was told."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.errors: list[str] = []
        self.warnings = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.warnings += 1
        if record.levelno >= logging.ERROR:
            self.errors.append(logging.Formatter().format(record))

    def __enter__(self) -> Self:
        logging.getLogger("natsjobs").addHandler(self)
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.errors.append(str(context)))
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("natsjobs").removeHandler(self)
        asyncio.get_running_loop().set_exception_handler(None)
