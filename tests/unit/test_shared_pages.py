"""Pages of a log that several want at once, and that nobody wants any more."""

from __future__ import annotations

import asyncio
from typing import Any

from waiting import eventually

from natsjobs import Config
from natsjobs.engine.context import Context
from natsjobs.engine.pages import Ahead, Pages
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
    await asyncio.sleep(0)
    assert (log.asked, log.given_up) == (1, 0)
    waiting = asyncio.ensure_future(third.read(0, 0))
    await asyncio.sleep(0)
    second.drop()
    await asyncio.sleep(0)
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
