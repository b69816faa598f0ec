"""What the servers hold, read past the library: every event and every terminal record of a namespace."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nodes import Space, api
from waiting import eventually

_BATCH = 500
_ENDS = ("done", "error", "aborted")


@dataclass
class Stored:
    """One generation as it is stored."""

    numbers: list[int] = field(default_factory=list)
    """The first element of every event, in the order of the log."""
    ends: list[dict[str, Any]] = field(default_factory=list)
    """Terminal records, decoded."""
    after_end: int = 0
    """Messages behind the first terminal record."""

    @property
    def whole(self) -> bool:
        """Every number once, in order, and one end."""
        return self.numbers == list(range(len(self.numbers))) and len(self.ends) == 1 and not self.after_end


async def stored(nc: Client, space: Space) -> dict[str, dict[str, Stored]]:
    """By stream id and generation."""
    found: dict[str, dict[str, Stored]] = {}
    for subject, body in await _messages(nc, space):
        stream_id, generation, kind = space.subjects.split_event(subject)  # type: ignore[misc]
        one = found.setdefault(stream_id, {}).setdefault(generation, Stored())
        entry = json.loads(body)
        one.after_end += bool(one.ends)
        if kind == "end" and entry["type"] in _ENDS:
            one.ends.append(entry)
        one.numbers += [event[0] for event in entry.get("events", ())]
    return found


async def one_generation(nc: Client, space: Space) -> dict[str, Stored]:
    """By stream id, where each id had one turn."""
    found = await stored(nc, space)
    assert all(len(generations) == 1 for generations in found.values())
    return {stream_id: next(iter(generations.values())) for stream_id, generations in found.items()}


async def _messages(nc: Client, space: Space) -> list[tuple[str, bytes]]:
    """Everything in the events stream; any replica may answer, so until nothing is missing."""
    stream = space.subjects.events_stream

    async def state() -> dict[str, Any] | None:
        return (await api(nc, f"STREAM.INFO.{stream}")).get("state")

    wanted = await eventually(state)
    found: dict[int, tuple[str, bytes]] = {}

    async def complete() -> bool:
        seq = max(found, default=0) + 1
        while seq <= wanted["last_seq"]:
            page = await _page(nc, stream, seq)
            if not page:
                break
            found.update(page)
            seq = max(found) + 1
        return len(found) >= wanted["messages"]

    await eventually(complete, within=60)
    return [found[seq] for seq in sorted(found)]


async def _page(nc: Client, stream: str, seq: int) -> dict[int, tuple[str, bytes]]:
    found: dict[int, tuple[str, bytes]] = {}
    over = asyncio.Event()

    async def hear(msg: Msg) -> None:
        headers = msg.headers or {}
        if "Status" in headers or "Nats-Sequence" not in headers:
            over.set()
        else:
            found[int(headers["Nats-Sequence"])] = (headers["Nats-Subject"], msg.data)

    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox, cb=hear)
    query = {"seq": seq, "batch": _BATCH, "next_by_subj": ">"}
    await nc.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(query).encode(), reply=inbox)
    try:
        async with asyncio.timeout(5):
            await over.wait()
    except TimeoutError:
        return {}
    finally:
        await subscription.unsubscribe()
    return found
