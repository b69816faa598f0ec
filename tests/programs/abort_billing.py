"""A chat that can be stopped: what was said until then is saved before the answer, and every model call is billed once.

The run bills what it used when it ends; whoever stops it bills what the abort claimed. Each entry of usage goes to
exactly one of the two, whatever happens in between, because ``claim_usage`` and ``abort`` hand it out only once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import natsjobs
from natsjobs.usage import spend_collected_usage

Step: TypeAlias = dict[str, Any]
Model: TypeAlias = Callable[[], AsyncIterator[Step]]
"""Gives ``{"text": …}`` for a piece of the answer and ``{"usage": …}`` at the end of a model call."""


class Ledger:
    """The billing database: an entry has an id, and billing it twice is what must not happen."""

    def __init__(self) -> None:
        self.billed: list[str | None] = []
        self.tokens = 0

    async def spend(self, entry: natsjobs.UsageMetadata) -> None:
        self.billed.append(entry.id)
        self.tokens += entry.output_tokens or 0


class Messages:
    """The message database."""

    def __init__(self) -> None:
        self.saved: dict[str, tuple[str, bool]] = {}

    async def save(self, chat: str, text: str, *, unfinished: bool) -> None:
        self.saved[chat] = (text, unfinished)


class Chat:
    """One replica of the service."""

    def __init__(self, jobs: natsjobs.JobManager, ledger: Ledger, messages: Messages) -> None:
        self.jobs = jobs
        self.ledger = ledger
        self.messages = messages

    async def answer(self, chat: str, user: str, model: Model) -> None:
        """One turn. Bills when it is over, in whatever way: outside the block no abort can interrupt that."""
        run = None
        try:
            async with self.jobs.start(chat, user_id=user) as run:
                text = await self._talk(run, model)
                await run.complete({"text": text})
                await self.messages.save(chat, text, unfinished=False)
        finally:
            if run is not None:
                await spend_collected_usage(await run.claim_usage(), self.ledger.spend)

    async def _talk(self, run: natsjobs.JobRun, model: Model) -> str:
        text = ""
        await run.emit(_event("on_run_step", index=0, stepDetails={"type": "message_creation"}))
        async for step in model():
            if "usage" in step:
                await run.record_usage(step["usage"])
            else:
                text += step["text"]
                delta = {"content": [{"type": "text", "text": step["text"]}]}
                await run.emit(_event("on_message_delta", delta=delta))
        return text

    async def stop(self, chat: str) -> natsjobs.AbortResult:
        """The stop button: when this returns, the partial message is saved and what it cost is billed."""
        result = await self.jobs.abort(chat, final_event={"stopped": True})
        if result.success:
            await self.messages.save(chat, result.text, unfinished=True)
            await spend_collected_usage(result.collected_usage, self.ledger.spend)
        return result


def _event(name: str, **data: Any) -> dict[str, Any]:
    return {"event": name, "data": {"id": "step-1", **data}}
