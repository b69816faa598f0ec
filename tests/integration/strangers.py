"""Strangers: raw requests to a real server, past the library, as other writers and operators make them."""

from __future__ import annotations

import base64
import json
from typing import Any, NamedTuple

from backends import NatsBackend
from gates import Gate
from nats.aio.client import Client


class Stored(NamedTuple):
    """A stored message as ``nats stream get`` shows it."""

    seq: int
    subject: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        """The JSON in it; ``None``: empty."""
        return json.loads(self.raw) if self.raw else None


class Stranger:
    """Somebody else with a connection to the server and knowledge of the wire layout."""

    def __init__(self, nc: Client, backend: NatsBackend) -> None:
        self.nc = nc
        self.subjects = backend.subjects
        self.events, self.bucket = self.subjects.events_stream, self.subjects.records_stream

    @staticmethod
    async def of(backend: NatsBackend) -> Stranger:
        """On the connection of the backend that is nobody's replica."""
        return Stranger(await backend.admin(), backend)

    async def ask(self, subject: str, body: object = None, *, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """A request; the answer."""
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        reply = await self.nc.request(subject, raw, timeout=10, headers=headers)
        answer: dict[str, Any] = json.loads(reply.data)
        return answer

    async def api(self, operation: str, body: object = None) -> dict[str, Any]:
        """A request to the JetStream API, such as ``STREAM.INFO.{stream}``."""
        return await self.ask(f"$JS.API.{operation}", body)

    async def store(self, subject: str, body: object, **headers: str) -> int:
        """Store a message, whatever the library thinks of it; its sequence. ``Nats_TTL="1"`` is a header."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.ask(subject, body, headers=named or None)
        assert "error" not in answer, answer
        return int(answer["seq"])

    async def append(self, stream_id: str, generation: str, body: object, *, end: bool = False) -> int:
        """Append to a log behind its newest message, guarded as every writer's appends are."""
        scope = self.subjects.scope(stream_id, generation)
        newest = await self.get(self.events, last_by_subj=scope)
        subject = (self.subjects.end if end else self.subjects.log)(stream_id, generation)
        return await self.store(
            subject,
            body,
            Nats_Expected_Last_Subject_Sequence=str(newest.seq if newest else 0),
            Nats_Expected_Last_Subject_Sequence_Subject=scope,
        )

    async def get(self, stream: str, **query: object) -> Stored | None:
        """``nats stream get``: by ``seq``, ``last_by_subj``, or ``seq`` and ``next_by_subj``."""
        found = (await self.api(f"STREAM.MSG.GET.{stream}", query)).get("message")
        if found is None:
            return None
        lines = base64.b64decode(found.get("hdrs", "")).decode().split("\r\n")[1:]
        headers = dict(line.split(": ", 1) for line in lines if line)
        return Stored(found["seq"], found["subject"], headers, base64.b64decode(found.get("data", "")))

    async def all(self, stream: str, subject_filter: str) -> list[Stored]:
        """Every message that matches, in order."""
        found: list[Stored] = []
        while (
            one := await self.get(stream, seq=found[-1].seq + 1 if found else 1, next_by_subj=subject_filter)
        ) is not None:
            found.append(one)
        return found

    async def log(self, stream_id: str, generation: str) -> list[Stored]:
        """The messages of one generation."""
        return await self.all(self.events, self.subjects.scope(stream_id, generation))

    async def keys(self, kind: str) -> list[str]:
        """Subjects of the bucket that hold anything, markers of removal included."""
        query = {"subjects_filter": f"{self.subjects.record_prefix}{kind}.>"}
        info = await self.api(f"STREAM.INFO.{self.bucket}", query)
        return list(info["state"].get("subjects") or {})

    async def remake(self, stream: str) -> None:
        """Delete a stream and create it again with the same settings: its sequences start at 1."""
        settings = (await self.api(f"STREAM.INFO.{stream}"))["config"]
        await self.api(f"STREAM.DELETE.{stream}")
        settings["metadata"] = {k: v for k, v in settings["metadata"].items() if not k.startswith("_nats")}
        answer = await self.api(f"STREAM.CREATE.{stream}", settings)
        assert "error" not in answer or answer["error"]["err_code"] == 10058, answer  # or the library was quicker


def part(index: int, writer: str, number: int, count: int, data: str, *, first: int = 0) -> dict[str, Any]:
    """One piece of an event, as it is on the wire."""
    return {"type": "part", "index": index, "writer": writer, "part": [number, count], "first": first, "data": data}


def events_of(index: int, writer: str, *events: object) -> dict[str, Any]:
    """A message of events, as it is on the wire."""
    return {"type": "events", "index": index, "writer": writer, "events": list(events)}


def gate_records(replica: Any, method: str) -> Gate:
    """Let a replica's next changes (or reads) of its bucket wait at a gate: the pause of a busy process."""
    gate = Gate(replica.store.replica.context.records, method)
    replica.store.replica.context.records = gate
    return gate
