"""An ASGI application under uvicorn that owns endless runs and shows them through the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import natsjobs
from natsjobs.http import gateway


async def for_ever(run: natsjobs.JobRun) -> None:
    """Numbers."""
    number = 0
    while True:
        await run.emit(number)
        number += 1
        await asyncio.sleep(0.02)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """The library lives as long as the application."""
    async with natsjobs.connect() as jobs:
        app.mount("/jobs", gateway(jobs, authorize=lambda request, stream_id, action: "somebody"))
        for number in range(3):
            await jobs.spawn(f"s{number}", for_ever, user_id="alice")
        yield


app = FastAPI(lifespan=lifespan)
