"""Looks that take long, at a leader that is slow or asked by many: what comes meanwhile waits for none of them."""

from __future__ import annotations

import asyncio

from timeline_kit import NEVER, Timelines
from waiting import check_whole, emit_stored, eventually, known, soon, take

from natsjobs.engine.ports import Message


class Answers:
    """Of looks: they stay where they are until the test lets them go."""

    def __init__(self) -> None:
        self.waiting = 0
        self.may_go = asyncio.Event()

    async def hold(self, found: list[Message]) -> list[Message]:
        """In the place of the way back."""
        self.waiting += 1
        await self.may_go.wait()
        self.waiting -= 1
        return found


async def test_what_follows_on_is_given_while_a_look_is_under_way(many: Timelines) -> None:
    """Among thousands a look may stand in line for seconds: nobody waits for it who need not."""
    owner, viewer = await many.add(), await many.add(config=many.config(timing={"look": NEVER}))
    await owner.store.create_job("s", "alice")
    answers, strange = Answers(), await many.admin()
    async with viewer.manager.subscribe("s") as events:
        await emit_stored(owner.transport, "s", 0)
        got = await take(events, 1)
        viewer.link.events.after_log = answers.hold
        await strange.publish(many.subjects.wake("s"), b"")
        await eventually(lambda: answers.waiting)
        for number in range(1, 4):
            await emit_stored(owner.transport, "s", number)
            got += await take(events, 1)
        assert answers.waiting
        answers.may_go.set()
        await owner.transport.emit_done("s", "end")
        got += await take(events, 1)
    check_whole(got, [0, 1, 2, 3])


async def test_an_end_waits_for_the_look_that_is_under_way(many: Timelines) -> None:
    """It is believed when it was read; what came before it was given."""
    owner, viewer = await many.add(), await many.add(config=many.config(timing={"look": NEVER}))
    await owner.store.create_job("s", "alice")
    answers, strange = Answers(), await many.admin()
    async with viewer.manager.subscribe("s") as events:
        await emit_stored(owner.transport, "s", 0)
        got = await take(events, 1)
        viewer.link.events.after_log = answers.hold
        await strange.publish(many.subjects.wake("s"), b"")
        await eventually(lambda: answers.waiting)
        await emit_stored(owner.transport, "s", 1)
        await owner.transport.emit_done("s", "end")
        got += await take(events, 1)
        end = asyncio.ensure_future(anext(events))
        await known(viewer.nc)
        assert not end.done()
        answers.may_go.set()
        got.append(await soon(end))
    check_whole(got, [0, 1])
