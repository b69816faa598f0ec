"""A chat that answers one question at a time: a second POST while an answer runs is a 409 that names the running one.

So a request that is sent twice (an impatient user, a retrying proxy, two tabs) never pays for the model twice.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, TypeAlias

from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse

import natsjobs

Work: TypeAlias = Callable[[natsjobs.JobRun], Awaitable[None]]

router = APIRouter()


def jobs_of(request: Request) -> natsjobs.JobManager:
    return request.app.state.jobs


def work_of(request: Request) -> Work:
    return request.app.state.work


Jobs = Annotated[natsjobs.JobManager, Depends(jobs_of)]


@router.post("/chats/{chat}")
async def ask(
    chat: str, jobs: Jobs, work: Annotated[Work, Depends(work_of)], x_user: Annotated[str, Header()]
) -> JSONResponse:
    try:
        job = await jobs.spawn(chat, work, user_id=x_user, if_running="reject")
    except natsjobs.JobRunningError as error:
        if error.job.user_id != x_user:
            return JSONResponse({"error": "not your chat"}, 403)
        return JSONResponse({"error": "still answering", "generation": error.job.generation}, 409)
    return JSONResponse({"generation": job.generation})


def create_app(servers: str, work: Work, *, config: natsjobs.Config | None = None) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        async with natsjobs.connect(servers, config=config) as jobs:
            app.state.jobs, app.state.work = jobs, work
            yield

    app = FastAPI(lifespan=lifespan)
    app.include_router(router)
    return app
