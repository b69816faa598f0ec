"""Readers that are closed by somebody else while they ask for something: they say so, and hold nothing afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from timeline_kit import NEVER, Timelines
from waiting import emit_stored, eventually, soon, take, values

from natsjobs import NotOpenError
from natsjobs.engine.ports import Message


async def test_a_reader_that_is_closed_while_it_reads_a_page_says_so(many: Timelines) -> None:
    """Whatever the answer is, and while others read on; what it would have asked next is nobody's business any more."""
    owner = await many.add()
    viewer = await many.add(config=many.config(limits={"reader_events": 4}, timing={"look": NEVER}))
    await owner.store.create_job("s", "u")
    asked, answer = asyncio.Event(), asyncio.Event()

    async def nothing(*_: Any, **__: Any) -> list[Message]:
        asked.set()
        await soon(answer.wait())
        return []

    async def nobody(*_: Any) -> None:
        """The leader has nothing either."""

    async with viewer.manager.subscribe("s") as other:
        reading = viewer.transport.read("s")
        slow = await reading.__aenter__()
        for number in range(20):
            await emit_stored(owner.transport, "s", number)
        await eventually(lambda: slow.stored == 20)
        stream: Any = viewer.link.events
        stream.page, stream.next = nothing, nobody
        waiting = asyncio.ensure_future(anext(slow))
        await soon(asked.wait())
        await reading.close()
        answer.set()
        with pytest.raises(NotOpenError):
            await soon(waiting)
        del stream.page, stream.next
        assert values(await take(other, 20)) == list(range(20))


async def test_a_reader_that_is_closed_while_it_enters_the_next_turn_holds_nothing(many: Timelines) -> None:
    """It had been waiting for it; the tail that it was about to read is left again."""
    owner, viewer = await many.add(), await many.add()
    await owner.store.create_job("s", "u")
    idle = sorted(viewer.interests())
    entering, entered = asyncio.Event(), asyncio.Event()

    async def held_up(subject: str) -> None:
        if subject == many.subjects.scope("s", second.generation):
            entering.set()
            await soon(entered.wait())

    reading = viewer.transport.read("s", follow=True)
    events = await reading.__aenter__()
    await owner.transport.emit_done("s", None)
    assert (await take(events, 1))[-1].is_terminal
    waiting = asyncio.ensure_future(anext(events))
    viewer.link.events.after_last = held_up
    second = await owner.store.create_job("s", "u")
    await soon(entering.wait())
    await reading.close()
    entered.set()
    with pytest.raises(NotOpenError):
        await soon(waiting)
    await eventually(lambda: sorted(viewer.interests()) == idle)
    assert not len(viewer.transport._tails)
