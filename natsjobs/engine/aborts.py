"""Abort: a signal to everybody who listens, and a request to the owner that ends in a fact.

Two paths, because they answer two questions. The broadcast on ``{ns}.abort.{stream_id}`` reaches every replica that
registered a callback. The acknowledged request goes to the owner's own subject, so a dead owner costs no time-out
(C3). Both name the generation, so a late one cannot hit the next turn; a message without it is answered with an error
(B9), which is what a person with the ``nats`` CLI sees.

The fact is the terminal record: whoever is asked to abort makes sure that one stands before it says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from natsjobs.engine import garbage, wire
from natsjobs.engine.callbacks import call_and_wait
from natsjobs.engine.content_state import ContentState
from natsjobs.engine.context import Context
from natsjobs.engine.jobs import JobRecord, read_record
from natsjobs.engine.ledger import Ledger
from natsjobs.engine.ports import Incoming, Interest, NoReplyError, NoRespondersError
from natsjobs.engine.runs import Runs
from natsjobs.engine.terminals import End
from natsjobs.errors import ConfigError, JobClosedError, JobNotFoundError, NatsJobsError, PermissionDeniedError
from natsjobs.interfaces import Callback
from natsjobs.models import AbortResult, ContentPart, EndReason
from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub

_log = logging.getLogger(__name__)

_PATHS = 4  # times timing.abort: after that a signal comes by neither of its two paths any more
# Whoever asks stores a larger final event himself, so that it goes over the wire once; so he does with half a message.
_FINAL_BYTES = 131_072
_ROOM = 4_096  # below max_payload, for the rest of an owner's answer: ids, and why the end could not be stored


class AbortRegistration:
    """Implements ``natsjobs.interfaces.Registration``."""

    __slots__ = ("_aborts", "callback", "generation", "stream_id")

    def __init__(self, aborts: Aborts, stream_id: str, generation: str | None, callback: Callback) -> None:
        self._aborts, self.stream_id, self.generation, self.callback = aborts, stream_id, generation, callback

    async def dispose(self) -> None:
        """Remove just this callback."""
        await self._aborts.remove(self)


class Aborts:
    """Abort callbacks of one replica, and both sides of an abort."""

    def __init__(self, context: Context, runs: Runs, ledger: Ledger, content: ContentState) -> None:
        """Empty."""
        self._context, self._runs, self._ledger, self._content = context, runs, ledger, content
        runs.on_disowned = self.deafen
        self._registrations: dict[str, list[AbortRegistration]] = {}
        self._interests: dict[str, Interest] = {}
        self._owned: dict[str, int] = {}  # generations that are owned here, or about to be, per stream id
        # One per stream id: with NATS away each subscribe waits for its time-out, and others must not wait with it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # Signals that were heard, newest last: one comes by two paths, and both answers say what its callbacks did.
        self._heard: dict[tuple[str, str, str], asyncio.Future[int]] = {}

    async def add(self, stream_id: str, generation: str | None, callback: Callback) -> AbortRegistration:
        """Call back at every signal; when this returns no later one is missed."""
        registration = AbortRegistration(self, stream_id, generation, callback)
        async with self._lock(stream_id):
            await (await self._hold(stream_id)).confirm()
            self._registrations.setdefault(stream_id, []).append(registration)
        return registration

    async def listen(self, stream_id: str) -> None:
        """A run of this stream id is about to be owned here: whoever then registers a callback has missed nothing."""
        self._owned[stream_id] = self._owned.get(stream_id, 0) + 1
        async with self._lock(stream_id):
            await self._hold(stream_id)

    def deafen(self, stream_id: str) -> None:
        """As many times as ``listen``: it is not owned here, or not any more; with callbacks it is listened on."""
        left = self._owned.pop(stream_id, 1) - 1
        if left:
            self._owned[stream_id] = left
        elif stream_id not in self._registrations:
            self._context.spawn(self._drop_unused(stream_id), "natsjobs deafen")

    async def _drop_unused(self, stream_id: str) -> None:
        async with self._lock(stream_id):
            if stream_id not in self._registrations and stream_id not in self._owned:
                await self._drop(stream_id)

    async def _hold(self, stream_id: str) -> Interest:
        interest = self._interests.get(stream_id)
        if interest is None:
            subject = self._context.subjects.abort(stream_id)
            interest = await self._context.link.bus.subscribe(subject, self._on_broadcast, sure=False)
            self._interests[stream_id] = interest
        return interest

    async def remove(self, registration: AbortRegistration) -> None:
        """Drop one callback; idempotent."""
        async with self._lock(registration.stream_id):
            left = self._registrations.get(registration.stream_id, [])
            if registration in left:
                left.remove(registration)
            if not left:
                self._registrations.pop(registration.stream_id, None)
                if registration.stream_id not in self._owned:
                    await self._drop(registration.stream_id)

    async def close(self) -> None:
        """Drop all callbacks."""
        for name in list(self._interests):
            async with self._lock(name):
                await self._drop(name)

    def _lock(self, stream_id: str) -> asyncio.Lock:
        return self._locks.setdefault(stream_id, asyncio.Lock())

    async def _drop(self, stream_id: str) -> None:
        self._registrations.pop(stream_id, None)
        interest = self._interests.pop(stream_id, None)
        if interest is not None:
            await interest.unsubscribe()

    # -- hearing a signal ---------------------------------------------------------------------------------------

    def _on_broadcast(self, message: Incoming) -> None:
        self._context.answer(self._answer_broadcast(message), "natsjobs abort signal")

    async def _answer_broadcast(self, message: Incoming) -> None:
        answer: dict[str, Any]
        signal = _signal(message.body)
        if signal is None:
            garbage.skipped("an abort signal", message.subject, message.body)
            answer = {"error": 'an abort names "generation" and "id": {"generation":"…","id":"any text"}'}
        else:
            stream_id = self._stream_id_of(message.subject)
            heard = await self.hear(stream_id, signal["generation"], signal["id"]) if stream_id else 0
            answer = {"replica": self._context.replica_id, "heard": heard}
        await self._context.reply(message, wire.ascii_json(answer))

    def _stream_id_of(self, subject: str) -> str | None:
        stream_id = self._context.subjects.split_abort(subject)
        return stream_id if stream_id in self._registrations else None

    async def hear(self, stream_id: str, generation: str, signal_id: str) -> int:
        """Run the callbacks for a signal, once; how many ran, also for who hears of it again."""
        key = (stream_id, generation, signal_id)  # the id is the sender's, and may be used for several jobs
        if (earlier := self._heard.get(key)) is not None:
            return await asyncio.shield(earlier)
        ran: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._heard[key] = ran
        loop, both_came = asyncio.get_running_loop(), _PATHS * self._context.config.timing.abort
        loop.call_later(both_came, self._heard.pop, key, None)
        while len(self._heard) > 4096:
            del self._heard[next(iter(self._heard))]
        wanted = [r for r in self._registrations.get(stream_id, []) if r.generation in {None, generation}]
        try:
            for registration in wanted:
                await call_and_wait(f"an on_abort callback of {stream_id}", registration.callback)
        finally:
            ran.set_result(len(wanted))
        return len(wanted)

    # -- the owner's side ---------------------------------------------------------------------------------------

    async def answer_owner(self, request: dict[str, Any], *, travels: bool = True) -> dict[str, Any]:
        """``signal``: run the callbacks. ``abort``: run them, store what is queued, end the generation, report.

        ``travels``: the answer is a message, and live content that is too large for one is left out: ``contentBytes``
        says how large it is. Who does not know that field folds the log as he does without live content.
        """
        stream_id, generation = str(request.get("stream", "")), str(request.get("generation", ""))
        mine = (stream_id, generation) in self._runs.owned
        answer: dict[str, Any] = {"replica": self._context.replica_id, "mine": mine}
        if not mine:
            return answer
        answer["heard"] = await self.hear(stream_id, generation, str(request.get("id", "")))
        if request.get("op") != "abort":
            return answer
        if live := self._content.live_parts(stream_id):
            answer |= self._carried(live) if travels else {"content": live}
        if not request.get("defer"):
            end = End("aborted", EndReason.ABORT, str(request["id"]), msgspec.json.encode(request.get("final")))
            try:
                await self._runs.end(stream_id, generation, end)
            except NatsJobsError as error:
                answer["failed"] = str(error)
        else:
            with contextlib.suppress(NatsJobsError):  # then the caller finds it out when he writes the end
                await self._runs.flush(stream_id, generation)
        return answer

    def _carried(self, live: list[ContentPart]) -> dict[str, Any]:
        carried = msgspec.json.encode(live)
        if len(carried) > self._context.link.max_payload - _ROOM:
            return {"contentBytes": len(carried)}
        return {"content": msgspec.Raw(carried)}

    # -- the caller's side --------------------------------------------------------------------------------------

    async def signal(self, stream_id: str, generation: str | None) -> bool:
        """Tell everybody; whether an owner's callbacks have run."""
        record = await read_record(self._context, stream_id)
        if record is None:
            raise JobNotFoundError(stream_id)
        generation = generation or record.generation
        signal_id = wire.random_token(16)
        body = wire.ascii_json({"generation": generation, "id": signal_id})
        await self._context.link.bus.publish(self._context.subjects.abort(stream_id), body)
        if record.generation != generation or record.status.is_terminal:
            return False
        answer = await self._ask_owner(record, {"op": "signal", "generation": generation, "id": signal_id})
        return bool(answer and answer.get("heard"))

    async def _ask_owner(self, record: JobRecord, request: dict[str, Any]) -> dict[str, Any] | None:
        """The owner's answer; ``None``: nobody there, none in time, somebody else's (A2), or it may not be asked."""
        owner = record.job.owner
        if owner is None:
            return None
        request = {**request, "stream": record.stream_id}
        if owner == self._context.replica_id:
            return await self._ask_here(request)
        subject = self._context.subjects.owner(owner)
        try:
            reply = await self._context.link.bus.request(
                subject, msgspec.json.encode(request), timeout=self._context.config.timing.abort
            )
        except (NoRespondersError, NoReplyError):
            return None
        except PermissionDeniedError as error:  # the end is what counts, and is a permission of its own
            _log.warning("the owner of %s is not asked to stop: %s", record.stream_id, error)
            return None
        answer = wire.decode_object(reply)
        return answer if answer and answer.get("replica") == owner and answer.get("mine") else None

    async def _ask_here(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """This replica is the owner, and its callbacks may take as long as another's (promise 6)."""
        answering = self._context.tasks.spawn(self.answer_owner(request, travels=False), "natsjobs abort")
        await asyncio.wait({answering}, timeout=self._context.config.timing.abort)
        if not answering.done() or answering.cancelled() or answering.exception() is not None:
            return None  # as from an owner elsewhere; a failure is in the log, and the end is written all the same
        return answering.result()

    async def abort(self, stream_id: str, generation: str | None, final_event: Any) -> AbortResult:
        """Stop the run wherever it is; afterwards a terminal record stands."""
        result = await self._abort(stream_id, generation, final_event)
        outcome = "acknowledged" if result.acknowledged else "unacknowledged"
        hub.add(measures.ABORTS, 1, outcome if result.success else "refused")
        return result

    async def _abort(self, stream_id: str, generation: str | None, final_event: Any) -> AbortResult:
        context = self._context
        raw = wire.encode_event(final_event, limit=context.config.limits.event_bytes, enc_hook=context.config.enc_hook)
        record = await read_record(context, stream_id)
        if record is None:
            return AbortResult(success=False, reason="not_found")
        if generation is not None and record.generation != generation:
            return AbortResult(success=False, reason="replaced", job_data=record.job)
        generation = record.generation
        if record.status.is_terminal:
            return AbortResult(success=False, reason="ended", job_data=record.job)
        request_id = wire.random_token(16)
        request: dict[str, Any] = {"op": "abort", "generation": generation, "id": request_id}
        if len(raw) <= min(_FINAL_BYTES, context.link.max_payload // 2):
            request["final"] = msgspec.Raw(raw)
        else:
            request["defer"] = True
        answer = await self._ask_owner(record, request)
        end = End("aborted", EndReason.ABORT, request_id, raw)
        try:
            terminal, ended = await self._runs.end(stream_id, generation, end)
        except JobClosedError:
            return AbortResult(success=False, reason="ended", job_data=record.job)
        if terminal.request != request_id:
            reason = "replaced" if terminal.reason is EndReason.REPLACED else "ended"
            return AbortResult(success=False, reason=reason, job_data=(ended or record).job)
        content = await self._content_of(stream_id, generation, answer)
        return AbortResult(
            success=True,
            job_data=(ended or record).job,
            content=content,
            final_event=msgspec.json.decode(raw),
            text=joined_text(content),
            collected_usage=await self._ledger.claim(stream_id, generation),
            acknowledged=answer is not None,
        )

    async def _content_of(self, stream_id: str, generation: str, answer: dict[str, Any] | None) -> list[ContentPart]:
        """The live content that the owner gave, else the log's; none where a fold fails, for the job has ended."""
        answer = answer or {}
        if (content := answer.get("content")) is not None:
            try:
                return msgspec.convert(content, list[ContentPart])
            except msgspec.ValidationError as error:
                garbage.skipped("the answer of an owner", f"{stream_id}: {error}", content)
        if isinstance(size := answer.get("contentBytes"), int):
            _log.warning(
                "the live content of %s has %d bytes, more than a message of its owner's may have, so what the log "
                "holds is used; raise max_payload of the server, abort in the process that runs the job, or set "
                "Config.fold if its events are of your own form", stream_id, size,
            )  # fmt: skip
        try:
            return await self._content.folded(stream_id, generation)
        except ConfigError:
            _log.exception("%s is aborted, without its content", stream_id)
            return []


def joined_text(parts: list[ContentPart]) -> str:
    """All text parts in one string, for token counting."""
    return "".join(part["text"] for part in parts if part.get("type") == "text" and isinstance(part.get("text"), str))


def _signal(body: bytes) -> dict[str, str] | None:
    signal = wire.decode_object(body)
    if signal is None or not all(isinstance(signal.get(name), str) and signal[name] for name in ("generation", "id")):
        return None
    return signal
