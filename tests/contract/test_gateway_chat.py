"""The AI SDK's endpoints: what ``useChat`` and ``WorkflowChatTransport`` send, and what they need to get."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from waiting import eventually, soon

CHUNKS = [
    {"type": "start", "messageId": "m"},
    {"type": "text-start", "id": "t"},
    *({"type": "text-delta", "id": "t", "delta": f"{i} äöü\n"} for i in range(20)),
    {"type": "text-end", "id": "t"},
    {"type": "finish"},
]


async def begin(store, transport, chunks=CHUNKS):
    """A chat that has said this much."""
    await store.create_job("c", "alice")
    for chunk in chunks:
        await transport.emit_chunk("c", chunk)
    await transport.flush("c")


def chunks_of(response):
    """The chunks of a response, which must have come to its end."""
    frames = [frame for frame in response.text.split("\n\n") if frame]
    assert frames[-1] == "data: [DONE]"
    assert all(frame.startswith("data: ") for frame in frames)
    return [json.loads(frame[6:]) for frame in frames[:-1]]


async def test_an_active_chat_is_replayed_and_followed_to_its_end(gate, store, transport):
    """From the first chunk; with the header by which the SDK knows its own."""
    await begin(store, transport, CHUNKS[:10])
    reading = asyncio.create_task(gate.client.get("/api/chat/c/stream"))
    await eventually(lambda: transport.get_subscriber_count("c") == 1)
    for chunk in CHUNKS[10:]:
        await transport.emit_chunk("c", chunk)
    await transport.emit_done("c", {"not": "a chunk"})
    got = await soon(reading)
    assert got.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert got.headers["content-type"].startswith("text/event-stream")
    assert chunks_of(got) == CHUNKS


async def test_nothing_active_is_204(gate, store, transport):
    """Never begun, or ended: the page has nothing to resume."""
    assert (await gate.client.get("/api/chat/c/stream")).status_code == 204
    await begin(store, transport)
    await transport.emit_done("c", None)
    got = await gate.client.get("/api/chat/c/stream")
    assert (got.status_code, got.content) == (204, b"")


async def test_a_stop_ends_the_stream_with_abort_then_finish(gate, store, transport):
    """Whoever stops it, every reader's message is closed; a second stop is no error."""
    await begin(store, transport, CHUNKS[:5])
    reading = asyncio.create_task(gate.client.get("/api/chat/c/stream"))
    await eventually(lambda: transport.get_subscriber_count("c") == 1)
    assert (await gate.client.post("/api/chat/c/stop")).json()["stopped"] is True
    assert chunks_of(await soon(reading)) == [*CHUNKS[:5], {"type": "abort"}, {"type": "finish"}]
    again = await gate.client.post("/api/chat/c/stop")
    assert (again.status_code, again.json()["stopped"]) == (200, False)
    assert (await gate.client.post("/api/chat/none/stop")).status_code == 404


async def test_an_error_ends_the_stream_with_its_text_then_finish(gate, store, transport):
    """As the SDK shows errors."""
    await begin(store, transport, CHUNKS[:3])
    await transport.emit_error("c", "the model is away")
    got = await gate.client.get("/api/chat/c/stream?startIndex=3")
    assert chunks_of(got) == [{"type": "error", "errorText": "the model is away"}, {"type": "finish"}]


async def test_a_finish_is_added_when_the_producer_sent_none(gate, store, transport):
    """Without one the SDK's transport would connect again, for ever."""
    await begin(store, transport, CHUNKS[:-1])
    await transport.emit_done("c", None)
    assert chunks_of(await gate.client.get("/api/chat/c/stream?startIndex=0")) == CHUNKS


async def test_every_index_goes_on_exactly_there(gate, store, transport):
    """Also when the chat has ended meanwhile; behind the last one only the end is left."""
    await begin(store, transport)
    await transport.emit_done("c", None)
    for index in (0, 1, 7, len(CHUNKS) - 1, len(CHUNKS), len(CHUNKS) + 9):
        got = await gate.client.get(f"/api/chat/c/stream?startIndex={index}")
        assert chunks_of(got) == CHUNKS[index:]
        assert got.headers["x-workflow-stream-tail-index"] == str(len(CHUNKS) - 1)
    assert (await gate.client.get("/api/chat/none/stream?startIndex=0")).status_code == 404


async def test_a_negative_index_counts_from_the_tail_that_the_header_names(gate, store, transport):
    """Running or ended, and never before the first chunk."""
    await begin(store, transport)
    for index in (-1, -5, -1000):
        reading = asyncio.create_task(gate.client.send(_request(gate, index), stream=True))
        got = await soon(reading)
        assert got.headers["x-workflow-stream-tail-index"] == str(len(CHUNKS) - 1)
        lines = got.aiter_lines()
        first = json.loads((await soon(anext(lines)))[6:])
        assert first == CHUNKS[max(0, len(CHUNKS) + index)]
        await got.aclose()
    await transport.emit_done("c", None)
    assert chunks_of(await gate.client.get("/api/chat/c/stream?startIndex=-3")) == CHUNKS[-3:]


def _request(gate, index):
    return gate.client.build_request("GET", f"/api/chat/c/stream?startIndex={index}")


async def test_chunks_that_are_gone_are_410_not_a_gap(gate, store, transport):
    """A reader that counts chunks would put the rest in the wrong place."""
    await begin(store, transport, CHUNKS[:5])
    await store.clear_content_state("c")
    for chunk in CHUNKS[5:]:
        await transport.emit_chunk("c", chunk)
    await transport.emit_done("c", None)
    gone = await gate.client.get("/api/chat/c/stream?startIndex=2")
    assert (gone.status_code, gone.json()["error"]) == (410, "history_lost")
    assert chunks_of(await gate.client.get("/api/chat/c/stream?startIndex=5")) == CHUNKS[5:]


async def test_a_stream_that_is_broken_off_does_not_look_complete(gate, store, transport):
    """The SDK takes a clean end for the whole answer, and resumes only after a broken connection."""
    await begin(store, transport, CHUNKS[:5])
    reading = asyncio.create_task(gate.client.get("/api/chat/c/stream"))
    await eventually(lambda: transport.get_subscriber_count("c") == 1)
    gate.app.close()
    with pytest.raises(httpx.RemoteProtocolError):
        await soon(reading)
