"""The chat server of ``fastapi_app``, over real HTTP, on two replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import httpx
from fastapi_app import create_app
from httpx_sse import ServerSentEvent, aconnect_sse
from serving import Serve

import natsjobs

TOKENS = [f"token {i} äöü\n" for i in range(200)]
ANSWER = "".join(TOKENS)


class PausingModel:
    """Says half of the answer, then waits until it is told to go on."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __call__(self, prompt: str) -> AsyncIterator[str]:
        for i, token in enumerate(TOKENS):
            if i == len(TOKENS) // 2:
                await self.go_on.wait()
            yield token


async def frames(
    client: httpx.AsyncClient, chat: str, *, after: str | None = None, stop: int | None = None
) -> list[ServerSentEvent]:
    """What a browser gets: until the answer ends, or until it loses the connection after ``stop`` frames."""
    got: list[ServerSentEvent] = []
    headers = {"Last-Event-ID": after} if after else {}
    async with aconnect_sse(client, "GET", f"/chats/{chat}/events", headers=headers) as source:
        source.response.raise_for_status()
        async with aclosing(source.aiter_sse()) as stream:
            async for frame in stream:
                got.append(frame)
                if len(got) == stop:
                    break
    return got


def as_sent(got: list[ServerSentEvent]) -> list[tuple[str, str, str]]:
    return [(frame.id, frame.event, frame.data) for frame in got]


def text_of(got: list[ServerSentEvent]) -> str:
    return "".join(frame.json()["token"] for frame in got if frame.event == "event")


async def test_a_reconnect_on_another_replica_gives_the_identical_text(
    natsjobs_server: str, config: natsjobs.Config, serve: Serve
) -> None:
    """Half seen on one replica, the connection breaks, the rest comes from the other: nothing missing or doubled."""
    model = PausingModel()
    a = await serve(create_app(natsjobs_server, model, config=config))
    b = await serve(create_app(natsjobs_server, model, config=config))
    (await a.post("/chats/c1", json={"text": "hello"})).raise_for_status()

    seen = await frames(b, "c1", stop=37)
    model.go_on.set()
    rest = await frames(a, "c1", after=seen[-1].id)

    assert text_of(seen + rest) == ANSWER
    assert [frame.event for frame in seen + rest] == ["event"] * len(TOKENS) + ["done"]
    assert rest[-1].json() == {"text": ANSWER}


async def test_a_connection_that_breaks_at_every_frame_still_gives_the_identical_text(
    natsjobs_server: str, config: natsjobs.Config, serve: Serve
) -> None:
    """Forty reconnects in a row, in turn on both replicas, while the answer is being written."""
    model = PausingModel()
    a = await serve(create_app(natsjobs_server, model, config=config))
    b = await serve(create_app(natsjobs_server, model, config=config))
    (await a.post("/chats/c1", json={"text": "hello"})).raise_for_status()

    seen: list[ServerSentEvent] = []
    for i in range(40):
        seen += await frames((a, b)[i % 2], "c1", after=seen[-1].id if seen else None, stop=1)
    model.go_on.set()
    seen += await frames(a, "c1", after=seen[-1].id)

    assert text_of(seen) == ANSWER


async def test_two_viewers_and_a_late_one_see_the_same_frames(
    natsjobs_server: str, config: natsjobs.Config, serve: Serve
) -> None:
    """Live from the first event, attached in the middle, or after the end: the same frames with the same ids."""
    model = PausingModel()
    a = await serve(create_app(natsjobs_server, model, config=config))
    (await a.post("/chats/c1", json={"text": "hello"})).raise_for_status()

    async with asyncio.TaskGroup() as tabs:
        first = tabs.create_task(frames(a, "c1"))
        await frames(a, "c1", stop=50)
        second = tabs.create_task(frames(a, "c1"))
        model.go_on.set()
    late = await frames(a, "c1")

    assert as_sent(first.result()) == as_sent(second.result()) == as_sent(late)
    assert text_of(late) == ANSWER


async def test_after_the_end_a_reconnect_ends_at_once(
    natsjobs_server: str, config: natsjobs.Config, serve: Serve
) -> None:
    """A browser that reconnects after the terminal frame gets an empty answer, not a second one."""
    model = PausingModel()
    model.go_on.set()
    a = await serve(create_app(natsjobs_server, model, config=config))
    (await a.post("/chats/c1", json={"text": "hello"})).raise_for_status()
    end = (await frames(a, "c1"))[-1]
    assert await frames(a, "c1", after=end.id) == []


async def test_a_closed_tab_is_no_viewer_any_more_and_the_answer_goes_on(
    natsjobs_server: str, config: natsjobs.Config, serve: Serve
) -> None:
    """Disconnected is not aborted: the last viewer leaves, and the whole answer is there for the next one."""
    model = PausingModel()
    a = await serve(create_app(natsjobs_server, model, config=config))
    (await a.post("/chats/c1", json={"text": "hello"})).raise_for_status()
    await frames(a, "c1", stop=3)
    async with asyncio.timeout(20):
        while (await a.get("/chats/c1/viewers")).json() != 0:
            pass
    model.go_on.set()
    assert text_of(await frames(a, "c1")) == ANSWER


async def test_what_is_wrong_is_a_status_code(natsjobs_server: str, config: natsjobs.Config, serve: Serve) -> None:
    """Unknown chat, somebody else's chat, a garbage cursor, a cursor of the answer before: all told apart."""
    model = PausingModel()
    model.go_on.set()
    a = await serve(create_app(natsjobs_server, model, config=config))
    assert (await a.get("/chats/nothing/events")).status_code == 404
    (await a.post("/chats/c1", json={"text": "hello"})).raise_for_status()
    assert (await a.get("/chats/c1/events", headers={"X-User": "mallory"})).status_code == 404
    assert (await a.get("/chats/c1/events", headers={"Last-Event-ID": "garbage"})).status_code == 400
    earlier = (await frames(a, "c1"))[0].id
    (await a.post("/chats/c1", json={"text": "hello again"})).raise_for_status()
    assert (await a.get("/chats/c1/events", headers={"Last-Event-ID": earlier})).status_code == 409
