"""A client that stays attached to a conversation over many turns, in both forms the library has.

``Pulling`` iterates one reader with ``follow=True``: replay, live, the end of the turn, the next turn. ``Pushed``
registers handlers with ``transport.subscribe``: live only, called in order, until it unsubscribes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import natsjobs


@dataclass
class Turn:
    """One turn as the client saw it."""

    text: str = ""
    ended: str | None = None


@dataclass
class Conversation:
    """What the client shows; ``changed`` is notified on every event."""

    turns: list[Turn] = field(default_factory=list[Turn])
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    cursor: str | None = None

    async def add(self, kind: str, data: Any, cursor: str | None = None) -> None:
        async with self.changed:
            if not self.turns or self.turns[-1].ended:
                self.turns.append(Turn())
            if kind == "event":
                self.turns[-1].text += data["token"]
            else:
                self.turns[-1].ended = kind
            self.cursor = cursor
            self.changed.notify_all()

    async def until_ended(self, turns: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: sum(turn.ended is not None for turn in self.turns) >= turns)

    async def until_text(self, text: str) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: bool(self.turns) and self.turns[-1].text.endswith(text))


async def pull(jobs: natsjobs.JobManager, chat: str, shown: Conversation) -> None:
    """Runs until it is cancelled; may begin before the first turn; goes on after ``shown.cursor``."""
    async with jobs.subscribe(chat, after=shown.cursor, wait=60, follow=True) as events:
        async for event in events:
            await shown.add(event.type.value, event.data, event.cursor)


async def push(transport: natsjobs.EventTransport, chat: str, shown: Conversation) -> natsjobs.Subscription:
    """The same with handlers; the caller unsubscribes."""

    async def done(final: Any) -> None:
        await shown.add("done", final)

    async def failed(error: str) -> None:
        await shown.add("error", error)

    async def aborted(final: Any) -> None:
        await shown.add("aborted", final)

    async def chunk(event: Any) -> None:
        await shown.add("event", event)

    return await transport.subscribe(chat, on_chunk=chunk, on_done=done, on_error=failed, on_aborted=aborted)
