"""Pages of a log that several want at once, and that nobody wants any more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from waiting import eventually, soon

from natsjobs import Config, NotOpenError
from natsjobs.engine.context import Context
from natsjobs.engine.pages import Ahead, Pages, page_of
from natsjobs.engine.replay import Replay
from natsjobs.memory import MemorySystem


class Log:
    """Of whose pages a test says when they come."""

    def __init__(self) -> None:
        self.asked = self.given_up = 0
        self.may_come = asyncio.Event()

    async def page(self, *_: Any) -> list[Any]:
        """When it may come."""
        self.asked += 1
        try:
            await self.may_come.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return []

    async def next(self, *_: Any) -> None:
        """Nothing."""


async def turns() -> None:
    """More of the loop than it takes to give up a page."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_reader_is_told_when_it_is_closed_in_the_turn_in_which_it_asks() -> None:
    """The reading is cancelled before it has begun."""
    link = MemorySystem().link()
    context = Context(link, Config())
    pages = Pages(context, "s", "g")
    asked = pages.ask(Replay(0, 0))
    pages.close()
    with pytest.raises(NotOpenError):
        await soon(page_of(asked))
    await context.tasks.close()


async def test_a_page_is_read_as_long_as_somebody_wants_it() -> None:
    """Whoever goes takes nothing from the others; when the last is gone it is given up, and read anew for the next."""
    link = MemorySystem().link()
    link._events = log = Log()  # type: ignore[assignment]
    context = Context(link, Config())
    pages = Pages(context, "s", "g")
    first, second, third = Ahead(pages), Ahead(pages), Ahead(pages)
    first.foresee(0, 0)
    second.foresee(0, 0)
    await asyncio.sleep(0)
    first.drop()
    await turns()
    assert (log.asked, log.given_up) == (1, 0)
    waiting = asyncio.ensure_future(third.read(0, 0))
    await asyncio.sleep(0)
    second.drop()
    await turns()
    assert (log.asked, log.given_up) == (1, 0)
    waiting.cancel()
    await asyncio.wait([waiting])
    del waiting  # its traceback holds what it waited for
    third.drop()
    await eventually(lambda: log.given_up and not pages._tasks)
    assert (log.asked, log.given_up) == (1, 1)
    waiting = asyncio.ensure_future(third.read(0, 0))
    log.may_come.set()
    assert (await waiting).empty
    assert (log.asked, log.given_up) == (2, 1)
    await context.tasks.close()
