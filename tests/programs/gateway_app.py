"""The gateway inside a FastAPI application: the application knows its users, the gateway does the rest."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing

from fastapi import FastAPI

import natsjobs
from natsjobs.http import bearer, gateway, owners

TOKENS = {"token-of-alice": "alice", "token-of-bob": "bob"}  # stands for the application's real authentication


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    async with natsjobs.connect() as jobs:
        with closing(gateway(jobs, authorize=owners(jobs, bearer(TOKENS)))) as mounted:
            app.state.jobs = jobs
            app.mount("/jobs", mounted)
            yield


app = FastAPI(lifespan=lifespan)
