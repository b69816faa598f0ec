"""Interrupting one task from outside, once, without leaving a trace: what ends the body of a run.

It owns the request to cancel the task (``Task.cancel``) and taking it back (``Task.uncancel``); it does not know why.
It guarantees that requests of others are never mistaken for its own: like ``asyncio.timeout`` it goes by the *number*
of requests (``Task.cancelling``), never by the message of a ``CancelledError``, which libraries drop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


class Interrupt:
    """At most one ``CancelledError`` in one task between ``arm`` and ``release``."""

    __slots__ = ("_before", "_due", "_holds", "_over", "_reason", "_task", "fired")

    def __init__(self, reason: str) -> None:
        self._reason = reason
        self._task: asyncio.Task[Any] | None = None
        self._before = 0
        self._due = False
        self._holds = 0
        self._over = False
        self.fired = False
        """Whether the task was asked to stop; from then on a ``CancelledError`` in it may be ours."""

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """The task that would be interrupted."""
        return self._task

    def arm(self, task: asyncio.Task[Any], *, before: int | None = None) -> None:
        """Name the task. If the interrupt is already due, it comes at the task's next await.

        ``before``: what ``task.cancelling()`` was when the interruptible part began; ``None``: it begins now.
        """
        self._task = task
        self._before = task.cancelling() if before is None else before
        self._deliver()

    def fire(self) -> None:
        """Interrupt the task at the await where it is, or at its next one; every later call does nothing."""
        self._due = True
        self._deliver()

    @contextmanager
    def held(self) -> Generator[None]:
        """Put the interrupt off until the block is left: for a call of the task that causes it itself."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            self._deliver()

    def _deliver(self) -> None:
        if self._due and self._task is not None and not self._holds and not self.fired and not self._over:
            self.fired = True
            self._task.cancel(self._reason)

    @property
    def by_others(self) -> bool:
        """Whether somebody else has asked the task to stop since ``arm`` (and has not taken it back)."""
        return self._task is not None and self._task.cancelling() > self._before + (self.fired and not self._over)

    async def release(self) -> asyncio.CancelledError | None:
        """No interrupt from here on. Takes back the request, also when its ``CancelledError`` was not raised yet.

        Returns:
            A ``CancelledError`` that somebody else asked for and that came up meanwhile: the caller raises it.
        """
        if self._over or not self.fired or self._task is None:
            self._over = True
            return None
        caught = None
        if asyncio.current_task() is self._task:
            # A request made during the task's own step is raised at its next await. That await has to be here:
            # before Python 3.13 uncancel() does not withdraw it, and later only when no other request is counted.
            # A TaskGroup of Python 3.13 repeats requests that way, too.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError as exc:
                caught = exc
        self._over = True
        self._task.uncancel()
        return caught if self.by_others else None


async def outlast(
    work: asyncio.Task[Any], *, patience: float, cancelled: bool = False
) -> asyncio.CancelledError | None:
    """Wait for ``work`` even when the caller is cancelled; from then on for ``patience`` seconds at most.

    Args:
        work: A task that somebody else holds and that goes on when this returns early.
        patience: Seconds.
        cancelled: The caller has been cancelled already.

    Returns:
        The first ``CancelledError`` that arrived meanwhile: the caller raises it.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + patience if cancelled else None
    caught = None
    while not work.done():
        left = None if deadline is None else deadline - clock()
        if left is not None and left <= 0:
            break
        try:
            await asyncio.wait({work}, timeout=left)
        except asyncio.CancelledError as exc:
            caught = caught or exc
            deadline = clock() + patience if deadline is None else deadline
    return caught
