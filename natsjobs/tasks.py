"""``Tasks``: the one place where background tasks live.

It owns the tasks it started: it holds them (the loop alone would let them be collected), logs what they fail with, and
at ``close`` cancels and awaits them. It decides nothing about what they do, and a task that fails touches neither its
siblings nor the task that started it; unlike a ``TaskGroup`` it may be used and closed from different tasks. A task
that ignores its cancellation (only callers' code does) holds up no ``close`` that was given a patience.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar, overload

from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
_U = TypeVar("_U")
_V = TypeVar("_V")

_STEP = 128


def in_steps(items: Iterable[_T]) -> Iterator[list[_T]]:
    """All of these, a few at a time: who goes through thousands gives the loop a turn behind each step.

    They are taken as they are now; what is added or goes meanwhile is not seen.
    """
    left = iter(list(items))
    while step := list(islice(left, _STEP)):
        yield step


@overload
async def together(first: Coroutine[Any, Any, _T], second: Coroutine[Any, Any, _U], /) -> tuple[_T, _U]: ...
@overload
async def together(
    first: Coroutine[Any, Any, _T], second: Coroutine[Any, Any, _U], third: Coroutine[Any, Any, _V], /
) -> tuple[_T, _U, _V]: ...
async def together(*coros: Coroutine[Any, Any, Any]) -> tuple[Any, ...]:
    """Await a few things at once: what they give, in the same order.

    The first failure is raised, plainly. Before that, or before this call is cancelled, the others are cancelled and
    have ended: nothing goes on behind the caller's back.
    """
    tasks = [asyncio.create_task(coro) for coro in coros]  # noqa: TID251 - none of them outlives this call
    try:
        return tuple(await asyncio.gather(*tasks))
    except BaseException as failure:
        cut: BaseException = failure
        for task in tasks:
            if not task.cancelling():  # a second request would cut short what they do about the first
                task.cancel()
        while left := [task for task in tasks if not task.done()]:
            try:
                await asyncio.wait(left)
            except asyncio.CancelledError as error:  # they were asked to stop already
                cut = error
        for task in tasks:
            if not task.cancelled():
                task.exception()  # seen
        if cut is not failure:
            raise cut from failure
        raise


class Latch:
    """Something that happens once. Unlike an ``asyncio.Event`` it weighs next to nothing until somebody waits."""

    __slots__ = ("_future", "happened")

    def __init__(self) -> None:
        self.happened = False
        self._future: asyncio.Future[None] | None = None

    def set(self) -> None:
        """It has happened; twice is fine."""
        self.happened = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        """Wait until it has happened."""
        if not self.happened:
            self._future = self._future or asyncio.get_running_loop().create_future()
            await asyncio.wait({self._future})  # which a caller who is cancelled does not cancel for the others


class Tasks:
    """A set of background tasks with one owner. Works in one event loop; nothing is thread-safe."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called: nothing can be spawned any more."""
        return self._closed

    def spawn(self, coro: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        """Run ``coro`` in a task of its own. An exception that ends it is logged, whether or not anyone awaits it.

        Raises:
            RuntimeError: ``close`` was called; the coroutine was closed without having run.
        """
        if self._closed:
            coro.close()
            raise RuntimeError(f"task {name!r} was not started: these tasks are closed, nothing would end it")
        task = asyncio.create_task(coro, name=name)  # noqa: TID251 - this is the class the rule points to
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def close(self, *, patience: float | None = None) -> None:
        """Take no new tasks, cancel those that run and wait until they have ended. Twice is fine.

        Called from one of its own tasks it ends all the others; that one ends by itself.

        Args:
            patience: Seconds; what has not ended then is logged by name and left to itself. ``None``: for ever.
        """
        self._closed = True
        caller = asyncio.current_task()
        if others := {task for task in self._tasks if task is not caller}:
            for task in others:
                task.cancel()
            _, left = await asyncio.wait(others, timeout=patience)
            for task in left:
                _log.warning(
                    "%s was cancelled and has not ended within %s s; it is left to itself", task.get_name(), patience
                )

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            _log.error("background task %s failed", task.get_name(), exc_info=exc)
            hub.add(measures.TASK_FAILURES)
