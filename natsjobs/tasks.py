"""``Tasks``: the one place where background tasks live.

It owns the tasks it started: it holds them (the loop alone would let them be collected), logs what they fail with, and
at ``close`` cancels and awaits them. It decides nothing about what they do, and a task that fails touches neither its
siblings nor the task that started it; unlike a ``TaskGroup`` it may be used and closed from different tasks. A task
that ignores its cancellation (only callers' code does) holds up no ``close`` that was given a patience.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


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
