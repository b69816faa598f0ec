"""Looks that take long, at a leader that is slow or asked by many: what comes meanwhile waits for none of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from timeline_kit import NEVER, HookedReplica, Timelines
from waiting import check_whole, emit_stored, eventually, known, soon, take

from natsjobs import StreamEvent
from natsjobs.engine.ports import Message


class Scene:
    """A reader that has the first event, and whose look stays where it is until the test lets it go."""

    def __init__(self, owner: HookedReplica, viewer: HookedReplica, events: Any, got: list[StreamEvent]) -> None:
        self.owner, self.viewer, self.events, self.got = owner, viewer, events, got
        self.waiting = 0
        self.may_go = asyncio.Event()

    async def hold(self, found: list[Message]) -> list[Message]:
        """In the place of the way back."""
        self.waiting += 1
        await self.may_go.wait()
        self.waiting -= 1
        return found


@asynccontextmanager
async def looking(many: Timelines) -> AsyncIterator[Scene]:
    """While its look is under way."""
    owner, viewer = await many.add(), await many.add(config=many.config(timing={"look": NEVER}))
    await owner.store.create_job("s", "alice")
    strange = await many.admin()
    async with viewer.manager.subscribe("s") as events:
        await emit_stored(owner.transport, "s", 0)
        scene = Scene(owner, viewer, events, await take(events, 1))
        viewer.link.events.after_log = scene.hold
        await strange.publish(many.subjects.wake("s"), b"")
        await eventually(lambda: scene.waiting)
        yield scene


async def test_what_follows_on_is_given_while_a_look_is_under_way(many: Timelines) -> None:
    """Among thousands a look may stand in line for seconds: nobody waits for it who need not."""
    async with looking(many) as here:
        for number in range(1, 4):
            await emit_stored(here.owner.transport, "s", number)
            here.got += await take(here.events, 1)
        assert here.waiting
        here.may_go.set()
        await here.owner.transport.emit_done("s", "end")
        here.got += await take(here.events, 1)
    check_whole(here.got, [0, 1, 2, 3])


async def test_an_end_waits_for_the_look_that_is_under_way(many: Timelines) -> None:
    """It is believed when it was read; what came before it was given."""
    async with looking(many) as here:
        await emit_stored(here.owner.transport, "s", 1)
        await here.owner.transport.emit_done("s", "end")
        here.got += await take(here.events, 1)
        end = asyncio.ensure_future(anext(here.events))
        await known(here.viewer.nc)
        assert not end.done()
        here.may_go.set()
        here.got.append(await soon(end))
    check_whole(here.got, [0, 1])
