"""The newest generation of a stream id, watched: what a reader that waits, or stays over several turns, waits for.

The job record is the truth. The bucket republishes its changes, which makes waiting quick; that path may lose
messages like any live path, so while nothing comes the record is read again (C11; ``Looks``), and
after every reconnect. What came that way is never believed, for anybody may publish there: the generation that it
names is only told to who waits, so that he can attach to it while the record is being read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeAlias

import msgspec

from natsjobs.engine import wire
from natsjobs.engine.context import Context
from natsjobs.engine.jobs import JobRecord, is_generation, read_record
from natsjobs.engine.patience import FINAL, Looks, patiently
from natsjobs.engine.ports import Incoming, Interest
from natsjobs.engine.terminals import find_terminal
from natsjobs.errors import UnavailableError
from natsjobs.tasks import together

Attach: TypeAlias = Callable[[str], Coroutine[Any, Any, None]]


class _News(msgspec.Struct):
    generation: str | None = None


_news = msgspec.json.Decoder(_News)


class Turns:
    """Waits for generations of one stream id."""

    def __init__(self, context: Context, stream_id: str) -> None:
        """Nothing happens before ``open``."""
        self._context, self._stream_id = context, stream_id
        self._interest: Interest | None = None
        self._forget: Callable[[], None] | None = None
        self._news = asyncio.Event()
        self._named: str | None = None  # what the news said, until the record is read
        self.closed = False

    async def open(self) -> None:
        """Listen; when it returns no later generation is missed."""
        subjects = self._context.subjects
        key = subjects.record("job", self._stream_id)
        subject = subjects.changes_prefix + key[len(subjects.record_prefix) :]
        # Whoever waits reads the record next, and has that answer behind this.
        self._interest = await self._context.link.bus.subscribe(subject, self._on_change, sure=False)
        self._forget = self._context.link.on_reconnect(self._news.set)

    def _on_change(self, message: Incoming) -> None:
        try:
            named = _news.decode(message.body).generation
        except wire.UNREADABLE:  # a marker of a removal, or a stranger's
            named = None
        self._named = named if is_generation(named) else None
        self._news.set()

    async def close(self) -> None:
        """Stop listening; who waits is woken and finds it closed."""
        self.closed = True
        self._news.set()
        if self._forget is not None:
            self._forget()
        if self._interest is not None:
            await self._interest.unsubscribe()

    async def wait(
        self, *, after: str | None, timeout: float | None = None, attach: Attach | None = None
    ) -> JobRecord | None:
        """The record as soon as its generation is another than ``after``; ``None``: closed, or not in time.

        ``attach`` is called with a generation that the record will probably name, while it is being read.

        Raises:
            ConnectionLostError: The connection was given, and is closed for good.
            PermissionDeniedError: The record may not be read.
        """
        looks = Looks(self._context.config.timing.look)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not self.closed:
                    self._news.clear()
                    try:
                        record = await self._read(attach)
                    except FINAL:
                        raise
                    except UnavailableError:
                        record = None
                    if record is not None and record.generation != after:
                        return record
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(looks.next()):
                            await self._news.wait()
                        looks.news()
        return None

    async def _read(self, attach: Attach | None) -> JobRecord | None:
        named, self._named = self._named, None
        if named is None or attach is None:
            return await read_record(self._context, self._stream_id)
        record, _ = await together(read_record(self._context, self._stream_id), attach(named))
        return record

    async def oldest_after(self, given: str | None, newest: str) -> str:
        """The generation that follows ``given``: several may have begun meanwhile, and their ids sort."""
        if given is None:
            return newest
        subjects = self._context.subjects
        found = await patiently(
            lambda: self._context.link.events.subjects(subjects.all_generations(self._stream_id)),
            limit=self._context.patience,
        )
        # Without an end it was never a turn: its create died, or lost a race, before the record named it (A6).
        names = {parts[1] for subject in found if (parts := subjects.split_event(subject)) and parts[2] == "end"}
        for name in sorted(name for name in names if given < name < newest):
            end = subjects.end(self._stream_id, name)
            last = await patiently(partial(self._context.link.events.last, end), limit=self._context.patience)
            if last is not None and await find_terminal(self._context.link, end, last) is not None:
                return name  # what somebody else put there would keep a follower waiting for ever
        return newest
