"""LibreChat's generation manager on the two interfaces alone: no ``JobManager``, any backend.

Every step of the original's life of a generation is one call of ``JobStore`` or ``EventTransport``; the comments say
where one call of ours does what took two there.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import natsjobs


class Generations:
    """One replica: creates, tells, completes, aborts and resumes generations."""

    def __init__(self, store: natsjobs.JobStore, transport: natsjobs.EventTransport) -> None:
        self.store = store
        self.transport = transport
        self.stopped: dict[str, asyncio.Event] = {}

    async def create_job(self, stream_id: str, user_id: str, message: natsjobs.UserMessage) -> natsjobs.Job:
        """Create, and listen for the abort of exactly this generation."""
        job = await self.store.create_job(
            stream_id,
            user_id,
            stream_id,
            user_message=message,
            response_message_id=f"{message.message_id}_",
            sender="AI",
            endpoint="agents",
        )
        stopped = self.stopped[job.generation] = asyncio.Event()
        await self.transport.on_abort(stream_id, stopped.set, generation=job.generation)
        return job

    async def emit_chunk(self, job: natsjobs.Job, event: dict[str, Any]) -> None:
        """Into the log and to every subscriber: one write, so the original's ``appendChunk`` falls away."""
        await self.transport.emit_chunk(job.stream_id, event, generation=job.generation)

    async def complete_job(self, job: natsjobs.Job, final_event: dict[str, Any]) -> None:
        await self.transport.emit_done(job.stream_id, final_event, generation=job.generation)

    async def fail_job(self, job: natsjobs.Job, error: str) -> None:
        await self.transport.emit_error(job.stream_id, error, generation=job.generation)

    async def abort_job(self, stream_id: str) -> dict[str, Any] | None:
        """Signal, read what there is, end it, bill it; the final event that viewers got, ``None``: too late.

        The original's ``emitDone`` followed by status aborted is one ``update_job`` here.
        """
        job = await self.store.get_job(stream_id)
        if job is None or job.status.is_terminal:
            return None
        await self.transport.emit_abort(stream_id, generation=job.generation)
        content = await self.store.get_content_parts(stream_id) or []
        final = {
            "final": True,
            "conversation": {"conversationId": job.conversation_id},
            "requestMessage": natsjobs.to_dict(job.user_message) if job.user_message else None,
            "responseMessage": {"messageId": job.response_message_id, "content": content, "unfinished": True},
            "aborted": True,
        }
        won = await self.store.update_job(
            stream_id, expected_generation=job.generation, status="aborted", final_event=json.dumps(final)
        )
        return final if won else None


class Screen:
    """What one browser tab shows: folds the resume state and everything after it."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.finals: list[Any] = []
        self.errors: list[str] = []
        self.ended = asyncio.Event()

    def on_chunk(self, event: Any) -> None:
        self.events.append(event)

    def on_done(self, final: Any) -> None:
        self.finals.append(final)
        self.ended.set()

    async def on_error(self, error: str) -> None:
        self.errors.append(error)
        self.ended.set()


async def resume(store: natsjobs.JobStore, transport: natsjobs.EventTransport, stream_id: str) -> tuple[str, Any]:
    """A tab that comes back: what was said until now, then the rest; the whole text and the final event."""
    state = await store.get_resume_state(stream_id)
    if state is None:
        raise LookupError(stream_id)
    text = "".join(part["text"] for part in state.aggregated_content)
    async with transport.read(stream_id, after=state.cursor) as events:
        async for event in events:
            if event.is_terminal:
                return text, event.data
            text += text_of(event.data)
    raise AssertionError("a reader ends only after a terminal record")


def step(step_id: str, index: int = 0) -> dict[str, Any]:
    """A message part begins."""
    return {
        "event": "on_run_step",
        "data": {
            "id": step_id,
            "index": index,
            "type": "message_creation",
            "stepDetails": {"type": "message_creation"},
        },
    }


def delta(step_id: str, text: str) -> dict[str, Any]:
    """Some more of its text."""
    content = [{"type": "text", "text": text}]
    return {"event": "on_message_delta", "data": {"id": step_id, "delta": {"content": content}}}


def text_of(event: dict[str, Any]) -> str:
    """The text that an event adds."""
    if event["event"] != "on_message_delta":
        return ""
    return event["data"]["delta"]["content"][0]["text"]
