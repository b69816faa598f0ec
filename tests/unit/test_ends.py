"""The quiet look of those who wait for an end: whom it asks when replicas do not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from virtual_time import Virtual

from natsjobs import Config, UnavailableError
from natsjobs.engine import wire
from natsjobs.engine.context import Context
from natsjobs.engine.ends import Ends
from natsjobs.errors import NatsJobsError
from natsjobs.memory import MemorySystem


@pytest.fixture
def clock() -> Iterator[Virtual]:
    """Waiting takes no time."""
    with Virtual() as clock:
        yield clock


@pytest.mark.parametrize("error", [UnavailableError("nobody answers"), None])
def test_an_end_is_seen_also_when_no_replica_can_be_asked(clock: Virtual, error: NatsJobsError | None) -> None:
    """Each watch looks at the leader then, who has it."""

    async def scene() -> None:
        system = MemorySystem()
        link = system.link()
        await link.open()
        context = Context(link, Config())
        ends, ended = Ends(context, lambda *_: 0.0), list[str]()
        context.on_terminal = lambda stream_id, *_: ended.append(stream_id)

        async def nobody(*_: Any) -> None:
            if error is not None:
                raise error

        link.events.newest = nobody  # type: ignore[method-assign, assignment]
        end = wire.end_body("done", 0, "w", previous=2, reason=None, request=None, data=b"null")
        for name in ("s0", "s1", "s2"):
            await link.events.append(context.subjects.log(name, "g"), b"x")
            await ends.listen(name, "g")
            ends._schedule(ends._watches[name, "g"])
        for watch in ends._watches.values():
            assert watch.interest is not None
            await watch.interest.unsubscribe()
        await link.events.append(context.subjects.end("s1", "g"), end)
        await asyncio.sleep(10.0)
        assert set(ended) == {"s1"}
        await ends.close()
        await context.tasks.close()
        await link.close()

    clock.run(scene())
