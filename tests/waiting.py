"""Waiting on conditions and writing down what was heard, so that no test depends on luck with time."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from natsjobs import StreamEvent


async def eventually(check: Callable[[], Any], *, within: float = 20.0, what: str = "", pause: float = 0.02) -> Any:
    """Wait until ``check`` (plain or async) gives something true; that. ``pause``: between looks that cost more."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while True:
        found = check()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        if loop.time() > deadline:
            where = inspect.getsourcelines(check)
            raise AssertionError(f"not within {within} s: {what or ''.join(where[0]).strip()}")
        await asyncio.sleep(pause)


async def soon(awaitable: Any, *, within: float = 20.0) -> Any:
    """The result of something that must not hang."""
    async with asyncio.timeout(within):
        return await awaitable


async def read_all(
    read: Callable[..., Any], stream_id: str, *, within: float = 30.0, **options: Any
) -> list[StreamEvent]:
    """Everything a reader gives until it ends; ``read`` is ``JobManager.subscribe`` or ``EventTransport.read``."""
    async with asyncio.timeout(within), read(stream_id, **options) as events:
        return [event async for event in events]


async def take(events: Any, count: int, *, within: float = 20.0) -> list[StreamEvent]:
    """The next ``count`` events of a reader."""
    async with asyncio.timeout(within):
        return [await anext(events) for _ in range(count)]


async def emit_stored(transport: Any, stream_id: str, event: Any, *, generation: str | None = None) -> None:
    """Emit one event and wait until it is stored, or what kept it from being stored is raised."""
    await transport.emit_chunk(stream_id, event, generation=generation)
    await transport.flush(stream_id, generation=generation)


def values(events: list[StreamEvent]) -> list[Any]:
    """The values of the ordinary events."""
    return [event.data for event in events if event.type == "event"]


def check_whole(events: list[StreamEvent], expected: list[Any], *, first: int = 0) -> None:
    """Assert that a reader got every event from ``first`` on exactly once, in order, then one terminal record."""
    *body, end = events
    assert [event.index for event in body] == list(range(first, len(expected)))
    assert [event.data for event in body] == expected[first:]
    assert not any(event.is_terminal for event in body)
    assert end.is_terminal
    assert end.index == len(expected)
    assert len({event.generation for event in events}) == 1


class Heard:
    """The four handlers of ``EventTransport.subscribe``; writes down what they were called with, in order."""

    def __init__(self) -> None:
        self.all: list[tuple[str, Any]] = []

    def _only(self, kind: str) -> list[Any]:
        return [value for what, value in self.all if what == kind]

    @property
    def chunks(self) -> list[Any]:
        """Values given to ``on_chunk``."""
        return self._only("chunk")

    @property
    def done(self) -> list[Any]:
        """Values given to ``on_done``."""
        return self._only("done")

    @property
    def errors(self) -> list[Any]:
        """Values given to ``on_error``."""
        return self._only("error")

    @property
    def aborted(self) -> list[Any]:
        """Values given to ``on_aborted``."""
        return self._only("aborted")

    async def attach(self, transport: Any, stream_id: str, *, aborted: bool = True) -> Any:
        """Subscribe with these handlers; the subscription."""
        handlers: dict[str, Any] = {
            f"on_{kind}": (lambda value, kind=kind: self.all.append((kind, value)))
            for kind in ("chunk", "done", "error", *(["aborted"] if aborted else []))
        }
        return await transport.subscribe(stream_id, **handlers)

    async def until(self, count: int) -> None:
        """Wait until handlers were called ``count`` times."""
        await eventually(lambda: len(self.all) >= count, what=f"{count} calls, there are {self.all}")


class Calls:
    """A callback that counts its calls."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def __call__(self, *args: Any) -> None:
        self.got.append(args[0] if args else None)

    @property
    def count(self) -> int:
        """How often it was called."""
        return len(self.got)

    async def until(self, count: int) -> None:
        """Wait until it was called ``count`` times."""
        await eventually(lambda: self.count >= count, what=f"{count} calls, there were {self.count}")


async def known(nc: Any) -> None:
    """Wait until the server knows every subscription made on this connection; ``flush()`` does not tell that."""
    back = asyncio.Event()

    async def hear(_: object) -> None:
        back.set()

    sub = await nc.subscribe(inbox := nc.new_inbox(), cb=hear)
    await nc.publish(inbox, b"")
    await soon(back.wait())
    await sub.unsubscribe()
