"""Reads of many keys at the price of one question to the leader: how far he is.

Owns when the answer of a replica is as good as a read at the leader: it says how far it was, and that is as far as he
was after the first of these reads had begun. So it holds all that was acknowledged before. One that lags is asked again
some milliseconds later. Guarantees that nothing is concluded from what is missing: who may not ask how far he is, gets
no answer or too large a one, and every key that an answer does not hold, is read at the leader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from natsjobs.engine.context import Context
from natsjobs.engine.patience import patiently
from natsjobs.engine.ports import PAGE, Newer, StreamMissingError
from natsjobs.engine.records import Slot, slot_of
from natsjobs.errors import PermissionDeniedError, UnavailableError
from natsjobs.tasks import together

_TRIES, _LAG = 3, 0.02


class Moment:
    """What the bucket was after ``matching`` was called, which comes first; then what ``read`` finds is not older."""

    def __init__(self, context: Context) -> None:
        """No I/O."""
        self._context = context
        self._barrier: int | None = None

    async def matching(self, key_filter: str) -> list[Slot]:
        """Every key that matches and has a value, as ``Records.list`` has them."""
        # The lease of this replica is there, too: where nothing else is, the answer would not say how far it goes.
        own = self._context.subjects.record("owner", self._context.replica_id)
        filters = [key_filter, own]
        self._barrier, answer = await together(self._leader(), self._ask(filters))
        answer = await self._reached(filters, answer)
        if answer is None or not answer.whole:
            return self._noted(await self._context.records.list(key_filter))
        slots = [slot_of(message) for message in answer.messages if message.subject != own]
        return self._noted([slot for slot in slots if slot.value is not None], answer.upto)

    def _noted(self, slots: list[Slot], upto: int = 0) -> list[Slot]:
        """What is read next is not older than these: another replica may be behind them, and yet up to the leader."""
        if self._barrier is not None:
            self._barrier = max(self._barrier, upto, *(slot.revision for slot in slots))
        return slots

    async def read(self, keys: Sequence[str]) -> list[Slot]:
        """As ``Records.read``, each of these."""
        slots: list[Slot] = []
        for start in range(0, len(keys), PAGE):
            part = keys[start : start + PAGE]
            answer = await self._reached(part, await self._ask(part) if self._barrier is not None else None)
            found = {message.subject: slot_of(message) for message in answer.messages} if answer is not None else {}
            slots += await asyncio.gather(*(self._slot(key, found.get(key)) for key in part))
        return slots

    async def _slot(self, key: str, found: Slot | None) -> Slot:
        return found if found is not None else await self._context.records.read(key)

    async def _leader(self) -> int | None:
        """How far the leader is; ``None``: who reads there is told why not, or reads there."""
        try:
            state = await patiently(self._context.link.records.state, limit=self._context.patience)
        except (PermissionDeniedError, StreamMissingError):
            return None
        return state.last_seq

    async def _ask(self, filters: Sequence[str]) -> Newer | None:
        try:
            return await self._context.link.records.newer(filters, 1, batch=PAGE)
        except UnavailableError:
            return None  # the leader says what is wrong

    async def _reached(self, filters: Sequence[str], answer: Newer | None) -> Newer | None:
        """This answer, or a later one that goes as far as the leader."""
        for _ in range(_TRIES):
            if answer is None or self._barrier is None or answer.upto >= self._barrier:
                break
            await asyncio.sleep(_LAG)
            answer = await self._ask(filters)
        reached = answer is not None and self._barrier is not None and answer.upto >= self._barrier
        return answer if reached else None
