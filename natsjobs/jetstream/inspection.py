"""``Inspection``: looks at a namespace on a server and changes nothing. For ``natsjobs doctor``.

Owns the questions, and what may be concluded from an answer, a silence and a refusal. It judges nothing. Guarantees
that nothing is created, stored or removed, also where it finds out what this user may do: an append that it tries
names a sequence that no stream has, so a stream refuses it, and a subscription is given up at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import msgspec

from natsjobs.config import Config
from natsjobs.engine.ports import StreamMissingError
from natsjobs.engine.subjects import Subjects
from natsjobs.errors import PermissionDeniedError, UnavailableError
from natsjobs.jetstream.faults import NO_STREAM, RequestFailedError, ServerError, of_server
from natsjobs.jetstream.headers import NOBODY, seconds_of, status_of
from natsjobs.jetstream.inbox import WireInterest
from natsjobs.jetstream.setup import NEVER, api_prefix
from natsjobs.jetstream.tap import server_info
from natsjobs.jetstream.wire import Wire

PROBE = "natsjobs-doctor"
"""The id in all subjects that are tried: nobody's job."""
_EAR = f"{PROBE}-ear"
"""The one that is listened to: a refusal names only the subject, and must not be taken for that of a request."""


class Echo(StrEnum):
    """What became of a request that nobody should answer."""

    REFUSED = "refused"  # at once: nobody listens
    ANSWERED = "answered"
    SILENT = "silent"  # somebody listens
    DENIED = "denied"  # this user may not ask


class ServerFacts(msgspec.Struct, frozen=True):
    """The server of this connection. ``known``: how many servers it names to clients."""

    version: str
    name: str
    cluster: str
    known: int
    jetstream: bool
    max_payload: int
    round_trip: float


class StreamFacts(msgspec.Struct, frozen=True):
    """A stream: settings, state and replicas as the server tells them, and the clocks of both sides."""

    config: dict[str, Any]
    state: dict[str, Any]
    cluster: dict[str, Any]
    server_time: float
    our_time: float


class Inspection:
    """Questions over one connection; made by ``NatsLink.visit``."""

    def __init__(self, wire: Wire, config: Config) -> None:
        """Nothing is sent here."""
        self._wire = wire
        self._limit = config.timing.request
        self._prefix = api_prefix(config)
        self._names = Subjects(config.namespace)

    # -- facts --------------------------------------------------------------------------------------------------------

    async def server(self) -> ServerFacts:
        """The server, by its own words and one round trip. Raises as ``Wire.round_trip`` does."""
        took, nc = await self._wire.round_trip(self._limit), self._wire.nc
        info = server_info(nc)
        return ServerFacts(
            str(info.get("version", "?")),
            str(info.get("server_name", "?")),
            str(info.get("cluster", "")),
            len(info.get("connect_urls") or ()),
            bool(info.get("jetstream")),
            nc.max_payload,
            took,
        )

    async def account(self) -> dict[str, Any]:
        """What JetStream grants this account. Raises as ``ask`` does."""
        return await self.ask("INFO", {})

    async def stream(self, name: str) -> StreamFacts | None:
        """A stream; ``None``: it does not exist. Raises as ``ask`` does."""
        began = time.time()
        try:
            answer = await self.ask(f"STREAM.INFO.{name}", {})
        except StreamMissingError:
            return None
        now = (began + time.time()) / 2
        server_time = seconds_of(answer["ts"]) if "ts" in answer else now
        return StreamFacts(answer["config"], answer["state"], answer.get("cluster") or {}, server_time, now)

    async def streams_on(self, subject: str) -> list[str]:
        """Streams that capture some of these subjects. Raises as ``ask`` does."""
        return [str(name) for name in (await self.ask("STREAM.NAMES", {"subject": subject})).get("streams") or ()]

    async def consumers(self, name: str) -> list[str]:
        """The first names of the stream's consumers. Raises as ``ask`` does."""
        return [str(one) for one in (await self.ask(f"CONSUMER.NAMES.{name}", {})).get("consumers") or ()]

    async def ask(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        """A request to the JetStream API.

        Raises:
            UnavailableError: No answer.
            PermissionDeniedError: This user may not ask.
            StreamMissingError: No such stream.
            UnsupportedServerError: No JetStream for this account.
        """
        subject = f"{self._prefix}.{operation}"
        try:
            reply, status = await self._wire.request(subject, msgspec.json.encode(body), _whole, limit=self._limit)
        except RequestFailedError as error:
            if error.denied:
                raise PermissionDeniedError("asking", subject=subject) from None
            raise UnavailableError(f"{subject}: {error}") from None
        if status == NOBODY:
            raise UnavailableError(f"{subject}: JetStream does not answer")
        answer: dict[str, Any] = msgspec.json.decode(reply)
        if "error" in answer:
            fault = msgspec.convert(answer["error"], ServerError)
            raise StreamMissingError(operation) if fault.err_code == NO_STREAM else of_server(fault, operation)
        return answer

    # -- what happens if ----------------------------------------------------------------------------------------------

    async def probe(self, subject: str) -> Echo:
        """A request that nobody should answer."""
        return await self._try(subject, {})

    async def may_publish(self, subject: str) -> bool:
        """Whether this user may; what is sent is refused by a stream, and says nothing to anybody else."""
        return await self._try(subject, {"Nats-Expected-Last-Subject-Sequence": str(NEVER)}) is not Echo.DENIED

    async def may_request(self, operation: str, body: dict[str, Any]) -> bool:
        """Whether this user may ask this of the JetStream API, which must be something that changes nothing."""
        return await self._try(f"{self._prefix}.{operation}", {}, msgspec.json.encode(body)) is not Echo.DENIED

    async def may_subscribe(self, subject: str) -> bool:
        """Whether this user may."""
        interest = WireInterest(subject, None, self._wire.forget)
        try:
            await self._wire.subscribe(interest, limit=self._limit)
        except PermissionDeniedError:
            return False
        await interest.unsubscribe()
        return True

    async def _try(self, subject: str, headers: Mapping[str, str], body: bytes = b"{}") -> Echo:
        try:
            _, status = await self._wire.request(subject, body, _whole, limit=min(1.0, self._limit), headers=headers)
        except RequestFailedError as error:
            return Echo.DENIED if error.denied else Echo.SILENT
        return Echo.REFUSED if status == NOBODY else Echo.ANSWERED

    async def missing(self, *, ends_only: bool) -> list[str]:
        """Permissions without which a worker (``ends_only``: a gateway) does not work, as rules that would grant them.

        Raises:
            UnavailableError: NATS went away.
        """
        tries = self._tries(ends_only=ends_only)
        granted = await asyncio.gather(*(attempt() for _, attempt in tries))
        return [rule for (rule, _), allowed in zip(tries, granted, strict=True) if not allowed]

    def _tries(self, *, ends_only: bool) -> list[tuple[str, Callable[[], Any]]]:
        names, ns = self._names, self._names.namespace

        def publish(rule: str, subject: str) -> tuple[str, Callable[[], Any]]:
            return f"publish {rule}", lambda: self.may_publish(subject)

        def api(operation: str, body: dict[str, Any]) -> tuple[str, Callable[[], Any]]:
            return f"publish {self._prefix}.{operation}", lambda: self.may_request(operation, body)

        def subscribe(rule: str, subject: str) -> tuple[str, Callable[[], Any]]:
            return f"subscribe {rule}", lambda: self.may_subscribe(subject)

        kinds = ["job", "active", "usage", *(() if ends_only else ("steps",))]
        core = ("abort", "owner", "presence", "joined", "wake")
        return [
            *([] if ends_only else [publish(f"{ns}.events.*.*.log", names.log(PROBE, "probe"))]),
            publish(f"{ns}.events.*.*.end", names.end(PROBE, "probe")),
            *(publish(f"{names.record_prefix}{kind}.>", names.record(kind, PROBE)) for kind in kinds),
            publish(f"{names.record_prefix}owner.*", names.record("owner", PROBE)),
            *(publish(f"{ns}.{kind}.*", f"{ns}.{kind}.{PROBE}") for kind in core),
            *(api(f"STREAM.INFO.{stream}", {}) for stream in (names.events_stream, names.records_stream)),
            *(api(f"STREAM.MSG.GET.{stream}", {"seq": 1}) for stream in (names.events_stream, names.records_stream)),
            *(api(f"DIRECT.GET.{stream}", {"seq": 1}) for stream in (names.events_stream, names.records_stream)),
            subscribe(f"{names.live_prefix}>", f"{names.live_prefix}{_EAR}.>"),
            subscribe(f"{names.changes_prefix}owner.>", names.changes("owner")),
            subscribe(f"{names.changes_prefix}job.*", f"{names.changes_prefix}job.{_EAR}"),
            *(subscribe(f"{ns}.{kind}.*", f"{ns}.{kind}.{_EAR}") for kind in core),
        ]


def _whole(body: bytes, headers: bytes) -> tuple[bytes, int]:
    return body, status_of(headers)
