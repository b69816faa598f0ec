"""Two POSTs at once to ``exclusive_app``, over real HTTP, on one replica and on two."""

from __future__ import annotations

import asyncio

import pytest
from exclusive_app import create_app
from serving import Serve

import natsjobs


class Answers:
    """The paid work: counts how often it was begun, and ends when it is told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.finish = asyncio.Event()

    async def __call__(self, run: natsjobs.JobRun) -> None:
        self.begun += 1
        await run.emit({"token": "hello"})
        await self.finish.wait()


@pytest.mark.parametrize("replicas", [1, 2])
async def test_of_two_posts_at_once_one_starts_and_one_is_told_so(
    natsjobs_server: str, config: natsjobs.Config, serve: Serve, replicas: int
) -> None:
    """200 and 409, the 409 names the generation of the 200; ten rounds, and the work was begun once in each."""
    work = Answers()
    apps = [await serve(create_app(natsjobs_server, work, config=config)) for _ in range(replicas)]
    for turn in range(10):
        answers = await asyncio.gather(apps[0].post(f"/chats/c{turn}"), apps[-1].post(f"/chats/c{turn}"))
        assert sorted(answer.status_code for answer in answers) == [200, 409]
        assert len({answer.json()["generation"] for answer in answers}) == 1
        assert (await apps[-1].post(f"/chats/c{turn}", headers={"X-User": "mallory"})).status_code == 403
    async with natsjobs.connect(natsjobs_server, config=config) as jobs, jobs.subscribe("c9") as events:
        assert (await anext(events)).data == {"token": "hello"}
        assert work.begun == 10
        work.finish.set()
        assert (await anext(events)).type is natsjobs.EventType.DONE
    assert (await apps[0].post("/chats/c9")).status_code == 200
