"""The typed events of ``typed_events`` come back equal and of their type, from memory and from NATS."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest
from typed_events import (
    ModelResponse,
    PartEnd,
    PartStart,
    TextDelta,
    ToolCall,
    Usage,
    dataclasses,
    encode_pydantic,
    models,
    structs,
)

import natsjobs

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


async def test_structs_come_back_as_structs(jobs: natsjobs.JobManager) -> None:
    """A tagged union of Structs; a tuple inside stays a tuple, because the type says so."""
    sent = [TextDelta("a"), ToolCall("search", {"q": ["ä", 1.5, None]}, (1, 2)), TextDelta("b")]
    async with jobs.start("c1", user_id="alice") as run:
        for event in sent:
            await run.emit(event)
    async with jobs.subscribe("c1") as events:
        assert [event async for event in structs(events)] == sent


async def test_dataclasses_come_back_as_dataclasses(jobs: natsjobs.JobManager) -> None:
    """Nested, with a UUID and an aware datetime down to the microsecond."""
    sent = [
        ModelResponse(UUID(int=7), AT, "hello", Usage(3, 4), ["x"]),
        ModelResponse(UUID(int=8), AT, "", Usage(0, 0)),
    ]
    async with jobs.start("c1", user_id="alice") as run:
        for event in sent:
            await run.emit(event)
    async with jobs.subscribe("c1") as events:
        assert [event async for event in dataclasses(events)] == sent


async def test_pydantic_models_come_back_as_models(jobs: natsjobs.JobManager) -> None:
    """By ``model_dump(mode="json")`` or as the JSON pydantic wrote itself; read with ``validate_json(event.raw)``."""
    sent = [PartStart(index=0, content="a"), PartEnd(index=0, at=AT)]
    async with jobs.start("c1", user_id="alice") as run:
        await run.emit(sent[0].model_dump(mode="json"))
        await run.emit(msgspec.Raw(sent[1].model_dump_json().encode()))
    async with jobs.subscribe("c1") as events:
        assert [event async for event in models(events)] == sent


async def test_a_pydantic_model_without_a_hook_is_refused_and_the_run_goes_on(jobs: natsjobs.JobManager) -> None:
    """The error is typed and comes from ``emit`` itself; nothing of the event was sent."""
    async with jobs.start("c1", user_id="alice") as run:
        with pytest.raises(natsjobs.InvalidEventError):
            await run.emit(PartStart(index=0, content="a"))
        await run.emit({"still": "here"})
    async with jobs.subscribe("c1") as events:
        assert [event.data async for event in events] == [{"still": "here"}, None]


@pytest.mark.parametrize("backend", ["memory", "nats"])
async def test_with_a_hook_pydantic_models_may_be_emitted_as_they_are(natsjobs_server: str, backend: str) -> None:
    """``Config(enc_hook=…)``, also deep inside other values."""
    config = natsjobs.Config(namespace=f"hook-{backend}", enc_hook=encode_pydantic)
    server = natsjobs_server if backend == "nats" else "memory://"
    async with natsjobs.connect(server, config=config) as jobs:
        async with jobs.start("c1", user_id="alice") as run:
            await run.emit(PartStart(index=0, content="a"))
            await run.emit({"nested": [PartEnd(index=0, at=AT)]})
        async with jobs.subscribe("c1") as events:
            first, second, end = [event async for event in events]
        assert PartStart.model_validate_json(first.raw) == PartStart(index=0, content="a")
        assert second.data["nested"][0]["kind"] == "part_end"
        assert end.type is natsjobs.EventType.DONE
