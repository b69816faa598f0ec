"""One open response at its end: whenever the client goes, the reader is left in good order."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import pytest
from waiting import soon

import natsjobs
from natsjobs.http import GatewayConfig
from natsjobs.http.delivery import Frames
from natsjobs.http.feed import Feed, Feeds


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("when", ["with the last byte", "while the reader is left"])
async def test_a_client_that_goes_at_the_end_does_not_disturb_the_reader(when: str, method: str) -> None:
    """Leaving a reader gives back a subscription and says so to other replicas; half of that would stay for ever."""
    gone, leaving = asyncio.Event(), asyncio.Event()
    asked = False
    left = []

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await (gone if when == "with the last byte" and method == "GET" else leaving).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            gone.set()

    async with natsjobs.connect("memory://") as jobs:
        async with jobs.start("s", user_id="alice") as run:
            await run.emit(1)

        @asynccontextmanager
        async def reader() -> Any:
            async with jobs.subscribe("s") as events:
                yield events
                leaving.set()
                for _ in range(10):  # as long as the news of the client takes to get around
                    await asyncio.sleep(0)
                left.append("in good order")

        feed = Feed(Feeds(GatewayConfig()), "s", reader, Frames(raw=True, after=None, retry=1))
        await soon(feed({"type": "http", "method": method}, receive, send))
    assert left == ["in good order"]
