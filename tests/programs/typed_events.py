"""Events of an agent framework, emitted as they are and read back typed: dataclasses, msgspec Structs, pydantic.

What is emitted becomes JSON; ``StreamEvent.raw`` is that JSON, so a typed decoder reads it without a detour.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias
from uuid import UUID

import msgspec
from pydantic import BaseModel, Field, TypeAdapter

import natsjobs


class TextDelta(msgspec.Struct, frozen=True, tag="text"):
    text: str


class ToolCall(msgspec.Struct, frozen=True, tag="tool_call"):
    name: str
    args: dict[str, Any]
    parts: tuple[int, ...] = ()


StructEvent: TypeAlias = TextDelta | ToolCall


@dataclass(frozen=True)
class Usage:
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class ModelResponse:
    id: UUID
    at: datetime
    text: str
    usage: Usage
    tags: list[str] = field(default_factory=list[str])


class PartStart(BaseModel):
    kind: Literal["part_start"] = "part_start"
    index: int
    content: str


class PartEnd(BaseModel):
    kind: Literal["part_end"] = "part_end"
    index: int
    at: datetime


PydanticEvent: TypeAlias = Annotated[PartStart | PartEnd, Field(discriminator="kind")]

_structs = msgspec.json.Decoder(StructEvent)
_dataclasses = msgspec.json.Decoder(ModelResponse)
_models: TypeAdapter[PartStart | PartEnd] = TypeAdapter(PydanticEvent)


def encode_pydantic(value: Any) -> Any:
    """For ``Config(enc_hook=…)``: pydantic models may then be emitted as they are."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise NotImplementedError(type(value).__name__)


async def structs(events: natsjobs.EventReader) -> AsyncIterator[StructEvent]:
    async for event in events:
        if event.type is natsjobs.EventType.EVENT:
            yield _structs.decode(event.raw)


async def dataclasses(events: natsjobs.EventReader) -> AsyncIterator[ModelResponse]:
    async for event in events:
        if event.type is natsjobs.EventType.EVENT:
            yield _dataclasses.decode(event.raw)


async def models(events: natsjobs.EventReader) -> AsyncIterator[PartStart | PartEnd]:
    async for event in events:
        if event.type is natsjobs.EventType.EVENT:
            yield _models.validate_json(event.raw)
