"""A chat server: POST starts an answer in the background, GET streams it and survives every broken connection.

The browser's ``EventSource`` sends the id of the last frame it got as ``Last-Event-ID`` when it reconnects, to
whatever replica the load balancer picks; the frame id is the event's cursor, so it goes on exactly there.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, TypeAlias

from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

import natsjobs

Model: TypeAlias = Callable[[str], AsyncIterator[str]]
"""A prompt in, tokens out."""


class Prompt(BaseModel):
    """What the browser posts."""

    text: str


class Started(BaseModel):
    """What it gets back at once, long before the answer is complete."""

    chat: str
    generation: str


router = APIRouter()


def jobs_of(request: Request) -> natsjobs.JobManager:
    return request.app.state.jobs


def model_of(request: Request) -> Model:
    return request.app.state.model


def user_of(x_user: Annotated[str, Header()]) -> str:
    """Stands for the application's real authentication."""
    return x_user


Jobs = Annotated[natsjobs.JobManager, Depends(jobs_of)]
User = Annotated[str, Depends(user_of)]


@router.post("/chats/{chat}")
async def ask(chat: str, prompt: Prompt, jobs: Jobs, user: User, model: Annotated[Model, Depends(model_of)]) -> Started:
    async def answer(run: natsjobs.JobRun) -> None:
        text = ""
        async for token in model(prompt.text):
            text += token
            await run.emit({"token": token})
        await run.complete({"text": text})

    job = await jobs.spawn(chat, answer, user_id=user, conversation_id=chat)
    return Started(chat=chat, generation=job.generation)


async def opened(
    chat: str, jobs: Jobs, user: User, last_event_id: Annotated[str | None, Header()] = None
) -> AsyncIterator[natsjobs.EventReader]:
    """Opened before the response begins, so that what is wrong is a status code, and left when it ends."""
    job = await jobs.get(chat)
    if job is None or job.user_id != user:
        raise HTTPException(404, "no such chat")
    try:
        async with jobs.subscribe(chat, after=last_event_id) as events:
            yield events
    except natsjobs.JobNotFoundError as error:
        raise HTTPException(404, "no such chat") from error
    except natsjobs.InvalidCursorError as error:
        raise HTTPException(400, str(error)) from error
    except natsjobs.HistoryLostError as error:
        raise HTTPException(410, str(error)) from error
    except natsjobs.GenerationReplacedError as error:
        raise HTTPException(409, str(error)) from error


@router.get("/chats/{chat}/events")
async def watch(events: Annotated[natsjobs.EventReader, Depends(opened)]) -> StreamingResponse:
    async def frames() -> AsyncIterator[bytes]:
        async for event in events:
            yield f"id: {event.cursor}\nevent: {event.type.value}\ndata: ".encode() + event.raw + b"\n\n"

    return StreamingResponse(frames(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@router.get("/chats/{chat}/viewers")
async def viewers(chat: str, jobs: Jobs, user: User) -> int:
    job = await jobs.get(chat)
    if job is None or job.user_id != user:
        raise HTTPException(404, "no such chat")
    return await jobs.count_subscribers(chat)


def create_app(servers: str, model: Model, *, config: natsjobs.Config | None = None) -> FastAPI:
    """One replica; start as many as you like on the same NATS."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        async with natsjobs.connect(servers, config=config) as jobs:
            app.state.jobs, app.state.model = jobs, model
            yield

    app = FastAPI(lifespan=lifespan)
    app.include_router(router)
    return app
