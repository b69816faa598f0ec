"""Token usage: recorded per model call, kept until claimed, each entry handed out exactly once.

One bucket key per entry, ``usage.{stream_id}.{generation}.{entry}``, so recording never contends and outlives the
owner, the job and its replacement. A claim is a compare-and-set from the entry to ``{"claimed": token}``: of any
number of claimers one wins, and its own retry after a lost acknowledgement recognises the token. A claimer that dies
after its claim loses the entry: at most once, on purpose.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from natsjobs.engine import garbage, wire
from natsjobs.engine.context import Context
from natsjobs.engine.records import ConflictError, Slot
from natsjobs.errors import EventTooLargeError, InvalidArgumentError, InvalidEventError, NotOpenError
from natsjobs.models import UsageMetadata, to_dict
from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub
from natsjobs.usage import usage_from

_CLAIM_TTL = 3600.0
_ENTRY_BYTES = 65_536
_AT_ONCE = 32


_log = logging.getLogger(__name__)


class Ledger:
    """Records and claims usage entries; also the lists that model callbacks append to on this replica."""

    def __init__(self, context: Context) -> None:
        """Empty."""
        self._context = context
        self._kept: dict[tuple[str, str], list[UsageMetadata]] = {}  # claimed here and not handed out yet
        self._lists: dict[str, list[Any]] = {}
        self._recorded: dict[str, list[Any]] = {}  # entries of a list that were recorded; held, so ids stay unique
        # Entries of a list whose recording was begun and not seen to its end, with their generation and key.
        self._begun: dict[str, list[tuple[Any, str, str]]] = {}

    # -- entries ------------------------------------------------------------------------------------------------

    async def record(self, stream_id: str, generation: str, usage: UsageMetadata | Mapping[str, Any]) -> None:
        """Store one entry, durable when it returns."""
        await self._record(stream_id, generation, wire.random_token(16), usage)

    async def _record(
        self, stream_id: str, generation: str, entry_id: str, usage: UsageMetadata | Mapping[str, Any]
    ) -> None:
        try:
            wire.encode_event(usage, limit=1 << 40)
        except InvalidEventError as error:
            raise InvalidArgumentError("usage", str(error)) from None
        entry = usage_from(usage)
        value = {**to_dict(entry), "id": entry_id}
        limit = min(_ENTRY_BYTES, self._context.record_bytes)
        if (size := len(wire.ascii_json(value))) > limit:
            raise EventTooLargeError(size, limit, field="usage")
        key = self._context.subjects.record("usage", stream_id, generation, entry_id)
        await self._context.records.write(key, value, expect=0, ttl=self._context.config.retention.usage)
        _measure((stream_id, generation), entry)

    async def unclaimed(self, stream_id: str, generation: str) -> list[UsageMetadata]:
        """What nobody has claimed."""
        return [_entry(slot) for slot in await self._slots(stream_id, generation)]

    async def claim(self, stream_id: str, generation: str) -> list[UsageMetadata]:
        """Take every unclaimed entry that no other claimer takes first.

        What was taken when another entry failed, or the caller was cancelled, is kept for the next claim here: nobody
        else could ever bill it.
        """
        key, mine = (stream_id, generation), list[UsageMetadata]()
        slots = await self._slots(stream_id, generation)
        work = self._context.tasks.spawn(self._take(slots, mine), "natsjobs claim")
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            work.add_done_callback(lambda _: self._keep(key, mine))
            raise
        failure = NotOpenError("the job store was closed meanwhile") if work.cancelled() else work.result()
        if failure is not None:
            self._keep(key, mine)
            raise failure
        return [*self._kept.pop(key, []), *mine]

    def _keep(self, key: tuple[str, str], taken: list[UsageMetadata]) -> None:
        if taken:
            self._kept.setdefault(key, []).extend(taken)

    async def _take(self, slots: list[Slot], taken: list[UsageMetadata]) -> BaseException | None:
        """Claim these entries, each by a compare-and-set; the first failure, after all have been tried."""
        token = wire.random_token(16)
        gate = asyncio.Semaphore(_AT_ONCE)

        async def take(slot: Slot) -> None:
            async with gate:
                try:
                    await self._context.records.write(
                        slot.key, {"claimed": token}, expect=slot.revision, ttl=_CLAIM_TTL
                    )
                except ConflictError:
                    return
                taken.append(_entry(slot))

        results = await asyncio.gather(*(take(slot) for slot in slots), return_exceptions=True)
        return next((result for result in results if result is not None), None)

    async def _slots(self, stream_id: str, generation: str) -> list[Slot]:
        slots = await self._context.records.list(self._context.subjects.records("usage", stream_id, generation))
        return [slot for slot in slots if slot.value is not None and "claimed" not in slot.value and _readable(slot)]

    # -- local lists --------------------------------------------------------------------------------------------

    def watch(self, stream_id: str, usage: list[Any]) -> None:
        """Record what this list holds at the next flush, end or abort."""
        if not isinstance(usage, list):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgumentError("usage", f"must be a list, not {type(usage).__name__}")
        self._lists[stream_id] = usage
        self._recorded[stream_id] = []
        self._begun[stream_id] = []

    def forget(self, stream_id: str) -> None:
        """The generation of the list is over and recorded."""
        self._lists.pop(stream_id, None)
        self._recorded.pop(stream_id, None)
        self._begun.pop(stream_id, None)

    @property
    def named(self) -> set[str]:
        """Stream ids with a list."""
        return set(self._lists)

    def listed(self, stream_id: str) -> list[UsageMetadata]:
        """Entries of the local list that are not recorded yet."""
        return [usage_from(entry) for entry in self._new(stream_id)]

    def _new(self, stream_id: str) -> list[Any]:
        listed = self._lists.get(stream_id)
        if not listed:
            return []
        known = {id(entry) for entry in self._recorded[stream_id]}
        return [entry for entry in listed if entry is not None and id(entry) not in known]

    async def record_listed(self, stream_id: str, generation: str) -> None:
        """Record the new entries of the local list, each once."""
        if not (entries := self._new(stream_id)):
            return
        recorded, begun = self._recorded[stream_id], self._begun[stream_id]
        for entry in entries:
            if any(other is entry for other in recorded):
                continue  # by another caller, while this one waited for the entries before
            recorded.append(entry)  # first, so that a second caller does not record it too
            # A call that was cut off, or gave up, may have stored it all the same: the next one names the same key.
            known = next((one for one in begun if one[0] is entry), None)
            trying = known or (entry, generation, wire.random_token(16))
            if known is None:
                begun.append(trying)
            try:
                await self._record(stream_id, trying[1], trying[2], entry)
            except ConflictError:
                pass
            except (InvalidArgumentError, EventTooLargeError) as error:
                _log.warning("an entry of the usage list of %s cannot be recorded: %s", stream_id, error)
            except BaseException:
                recorded[:] = [other for other in recorded if other is not entry]
                raise
            begun[:] = [other for other in begun if other is not trying]


def _measure(run: tuple[str, str], entry: UsageMetadata) -> None:
    for kind, tokens in (("input", entry.input_tokens), ("output", entry.output_tokens)):
        hub.add(measures.TOKENS, max(0, tokens or 0), kind)
    if hub.tracer is not None:
        with hub.tracing() as tracer:
            tracer.add_usage(run, to_dict(entry))


def _entry(slot: Slot) -> UsageMetadata:
    return usage_from(slot.value or {})


def _readable(slot: Slot) -> bool:
    try:
        _entry(slot)
    except InvalidArgumentError as error:
        garbage.skipped("a usage entry", f"{slot.key}: {error}", slot.value)
        return False
    return True
