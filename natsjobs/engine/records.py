"""The bucket: job records, the active index, leases, claims; each change a compare-and-set on its revision.

Owns how a key is read (at the leader, whatever decides something: a follower was stale in 7-12 % of reads right
after a write), how it is removed (a purge marker with its own TTL, never a plain delete, which stays for ever, B6)
and how keys are listed. Knows nothing of what the records mean.

A list is complete for everything that existed when it was called: the newest message at the leader is the barrier, and
what a replica gives must reach it. A page of keys comes by one question, at the cost of these keys. For more the leader
names the keys, by its index, and their values come a page of keys at a time, each page with the newest one of all in
it, which says whether that replica has the barrier; what is too much for an answer comes by halves. A page by sequence
costs what lies between and before: of 100,000 jobs the server needs 30-60 ms for 64 keys, by key it is 3 ms. What was
stored lately, whatever its key, lies at the end of the stream and is read by sequence.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec

from natsjobs.engine import garbage, wire
from natsjobs.engine.patience import FINAL, Backoff, patiently
from natsjobs.engine.ports import PAGE, Link, Message, StreamMissingError, StreamState, WrongSequenceError
from natsjobs.errors import StreamFullError, UnavailableError
from natsjobs.tasks import in_steps, together

_T = TypeVar("_T")

_PAGE = PAGE - 1  # keys in a question, beside that of the barrier
_ALL, _SIDE_BY_SIDE = ">", 256
"""Everything, and so much of it in a page: it lies in one place, where the beginning of a page costs the most."""
_TRIES = 3
"""So often a replica that lags is asked for a page of keys before the leader gives them one by one."""


class ConflictError(Exception):
    """Somebody else changed the key first: read it again."""


class Slot(msgspec.Struct, frozen=True):
    """A key as read at the leader. ``value`` is ``None`` for a key that is absent or was removed.

    ``revision`` is what the next compare-and-set has to name (0: never written, or gone without a trace).
    ``left`` is what a removal left behind (the previous ``createdAt``), ``time`` when it was stored, server clock.
    """

    key: str
    revision: int
    value: dict[str, Any] | None
    left: dict[str, Any] | None = None
    time: float = 0.0


class Records:
    """Reads and writes of one bucket, over whole subjects as ``Subjects.record`` spells them."""

    def __init__(self, link: Link, *, patience: float, give_up: float) -> None:
        """``patience``: how long a read tries, ``give_up``: how long a write does, seconds."""
        self._link = link
        self._patience = patience
        self._give_up = give_up

    async def read(self, key: str) -> Slot:
        """The key now, at the leader."""
        message = await self._last(key)
        return Slot(key, 0, None) if message is None else slot_of(message)

    async def _last(self, key: str) -> Message | None:
        return await self._ask(lambda: self._link.records.last(key))

    async def write(self, key: str, value: Any, *, expect: int | None, ttl: float | None = None) -> int:
        """Set a key; its new revision. ``expect=None`` overwrites whatever is there.

        Raises:
            ConflictError: The revision is not ``expect`` any more.
            StreamFullError: At once: waiting empties no bucket.
            UnavailableError: NATS was away for longer than ``give_up``.
            PermissionDeniedError: At once.
        """
        return await self._store(key, wire.ascii_json(value), expect=expect, ttl=ttl, marker=False)

    async def remove(self, key: str, *, expect: int | None, left: dict[str, Any] | None = None, ttl: float = 1) -> None:
        """Remove a key; ``left`` stays readable for ``ttl`` seconds. Raises as ``write`` does."""
        await self._store(key, wire.ascii_json(left) if left else b"", expect=expect, ttl=ttl, marker=True)

    async def _store(self, key: str, body: bytes, *, expect: int | None, ttl: float | None, marker: bool) -> int:
        backoff = Backoff(self._give_up)
        unsure = False
        while True:
            try:
                return await self._link.records.append(key, body, expect=expect, ttl=ttl, marker=marker)
            except WrongSequenceError as refusal:
                # After a lost acknowledgement the refusal may be our own write: bodies of racing writers differ by
                # their writer tokens, so equal bytes are ours.
                stored = await self._last(key) if unsure else None
                if stored is not None and stored.body == body and (stored.marker is not None) == marker:
                    return stored.seq
                if refusal.last is not None or backoff.expired:
                    raise ConflictError(key) from None
                unsure = True  # 10164: another append is in flight; nothing is decided yet
            except StreamMissingError as error:
                raise UnavailableError(f"the bucket does not exist: {error}; run `natsjobs setup`") from None
            except FINAL as error:
                raise _final(error, unsure=unsure) from None
            except UnavailableError as error:
                unsure = unsure or error.outcome_unknown
                if backoff.expired:
                    raise UnavailableError(str(error), outcome_unknown=unsure) from None
            await backoff.pause()

    async def list(self, key_filter: str) -> list[Slot]:
        """Every key that matches and has a value, oldest change first."""
        found: list[Message] = []
        await self.visit(key_filter, found.extend)
        found.sort(key=lambda message: message.seq)
        return [slot for message in found if (slot := slot_of(message)).value is not None]

    async def visit(self, key_filter: str, take: Callable[[Iterable[Message]], None]) -> None:
        """Hand over every key that matches, a page at a time as it comes: each once, in no order, markers as well.

        As complete as a list, and it holds nothing: what ``take`` keeps is its business. It must neither block for
        longer than a page needs, nor raise.
        """
        barrier, found = await together(self._last(key_filter), self._newest([key_filter]))
        if barrier is None:
            return
        if found and found[-1].seq >= barrier.seq:
            take(found)
        else:  # too many, or a replica that lags
            await self.pick([*await self.names(key_filter)], key_filter, take)

    async def names(self, key_filter: str) -> dict[str, int]:
        """The keys that match, by the index of the leader: values that are there, and markers."""
        return await self._ask(lambda: self._link.records.subjects(key_filter))

    async def state(self) -> StreamState:
        """The whole bucket, at the leader."""
        return await self._ask(self._link.records.state)

    async def _newest(self, filters: Sequence[str]) -> Sequence[Message] | None:
        """What a replica has of these; ``None``: too much, or nothing for a question as long as this."""
        try:
            return await self._link.records.newest(filters)
        except UnavailableError:
            return ()  # the leader says what is wrong

    async def pick(self, keys: Sequence[str], key_filter: str, take: Callable[[Iterable[Message]], None]) -> None:
        """``visit`` for some of the keys that match, as ``names`` has named them."""
        if not keys:
            return
        barrier = await self._last(key_filter)  # not older than any of these keys
        parts, tries = deque(keys[start : start + _PAGE] for start in range(0, len(keys), _PAGE)), _TRIES
        while parts and barrier is not None:  # when nothing matches any more, nothing is left of the others
            part = parts.popleft()
            answer = await self._newest([*part, barrier.subject]) if tries else None
            if answer is None and tries and len(part) > 1:
                parts.extendleft((part[len(part) // 2 :], part[: len(part) // 2]))
                continue
            if answer is not None and not (answer and answer[-1].seq >= barrier.seq):  # it lags
                tries -= 1
                parts.appendleft(part)
                barrier = await self._last(key_filter)  # it may be gone by now
                continue
            if answer is None:
                stored = [await self._last(key) for key in part]
                answer = [message for message in stored if message is not None]
            tries, wanted = _TRIES, set(part)
            take(message for message in answer if message.subject in wanted)

    async def changes(self, seq: int, upto: int, take: Callable[[Iterable[Message]], None]) -> None:
        """Hand over what was stored from ``seq`` to ``upto`` and is still there, whatever its key: in order, by pages.

        A key that is written again meanwhile may come twice, or later than ``upto`` and then perhaps not at all.
        ``take`` as in ``visit``.
        """
        records = self._link.records
        while seq <= upto:
            page = await self._ask(partial(records.page, _ALL, seq, batch=_SIDE_BY_SIDE))
            if not page:
                if (newer := await self._ask(partial(records.next, _ALL, seq))) is None:
                    return
                page = [newer]  # the replica lags
            for step in in_steps(page):
                take(step)
                await asyncio.sleep(0)
            seq = page[-1].seq + 1

    async def _ask(self, question: Callable[[], Awaitable[_T]]) -> _T:
        try:
            return await patiently(question, limit=self._patience)
        except StreamMissingError as error:
            raise UnavailableError(f"the bucket does not exist: {error}; run `natsjobs setup`") from None


def slot_of(message: Message) -> Slot:
    """A stored message as the key that it is the value of, or whose removal it marks."""
    record = wire.decode_object(message.body) if message.body else None
    if message.body and record is None:
        garbage.skipped("a key of the bucket", message.subject, message.body)
    if message.marker is not None:
        return Slot(message.subject, message.seq, None, record, message.time)
    return Slot(message.subject, message.seq, record, None, message.time)


def _final(error: UnavailableError, *, unsure: bool) -> UnavailableError:
    """What no waiting mends, as the writer of a key hears it."""
    if isinstance(error, StreamFullError):
        error = StreamFullError(f"the bucket is full: {error}", size=error.size, limit=error.limit)
    error.outcome_unknown = unsure
    return error
