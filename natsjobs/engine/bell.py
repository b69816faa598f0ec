"""What the readers of a tail wait for: a bell each, all rung in one go.

Owns who waits and how they are woken; why is the tail's business. A bell is what asyncio calls an object compatible
with futures, so a task waits for it as it does for a future, and a cancellation ends that at once and for this one
alone. Unlike a future it is made once for a reader, not for every wake-up, and the loop is asked once for all readers
of a tail, not once for each: with a thousand of them that is half of what a wake-up costs.

Guarantees that nobody waits any more after a ring that came when he waited already. Whoever finds that there is
nothing to do but to wait does so in the same step, so nothing comes in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any, cast


class Bell:
    """Awaited by one task at a time, as often as it likes. It keeps nothing: a ring while nobody waits is not heard."""

    __slots__ = ("_asyncio_future_blocking", "_cut", "_loop", "callback", "context", "taken")

    def __init__(self) -> None:
        """For the loop that runs."""
        self.callback: Callable[[Bell], object] | None = None
        """Goes on with the task that waits; ``None``: nobody does, or it goes on already."""
        self.context: Context | None = None
        self.taken = False
        """A task waits for it, or was woken and has not gone on yet: what that one is to hear is its own."""
        self._loop = asyncio.get_running_loop()
        self._cut: tuple[object, ...] | None = None  # the cancellation that ended the waiting, and what it says
        self._asyncio_future_blocking = False

    def ring(self) -> None:
        """Let the task that waits go on, if one does."""
        callback, self.callback = self.callback, None
        if callback is not None:
            self._loop.call_soon(callback, self, context=self.context)

    # -- what a task wants of a future

    def __await__(self) -> Generator[Any, None, None]:
        if self.taken:
            raise RuntimeError("another task waits for this bell, and would never wake; take a spare one")
        self._asyncio_future_blocking = True
        return cast("Generator[Any, None, None]", iter((self,)))  # it has all of one that is used here, in C

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Where it may be awaited."""
        return self._loop

    def add_done_callback(self, callback: Callable[[Bell], object], *, context: Context | None = None) -> None:
        """A task waits from now on."""
        self.callback, self.context, self.taken = callback, context, True

    def cancel(self, msg: object = None) -> bool:
        """The task that waits was cancelled; also when it was rung already, and has not gone on yet."""
        self._cut = (msg,) if msg is not None else ()
        self.ring()
        return True

    def result(self) -> None:
        """What the task hears as it goes on."""
        self.taken = False
        if self._cut is not None:
            cut, self._cut = self._cut, None
            raise asyncio.CancelledError(*cut)


class Bells:
    """Those of all readers of one tail, whether they wait or not."""

    def __init__(self) -> None:
        """None yet."""
        self._bells: dict[Bell, None] = {}
        self._spare: list[Bell] = []
        self._rung = False

    def add(self, bell: Bell) -> None:
        """Ring this one too."""
        self._bells[bell] = None

    def remove(self, bell: Bell) -> None:
        """Ring it no more; who waits in its place at a spare one looks what has become of the reader."""
        self._bells.pop(bell, None)
        for spare in self._spare:
            spare.ring()

    def spare(self) -> Bell:
        """One for a task that finds the bell of its reader taken by another; to be awaited at once."""
        self._spare = [bell for bell in self._spare if bell.taken]
        self._spare.append(Bell())
        return self._spare[-1]

    def ring(self) -> None:
        """Let all who wait go on, in the next turn of the loop, in the order in which they came."""
        if not self._rung and (self._bells or self._spare):
            self._rung = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._rung = False
        try:
            for bell in (*self._bells, *self._spare):
                callback, context = bell.callback, bell.context
                if callback is not None and context is not None:
                    bell.callback = None
                    context.run(callback, bell)
        except BaseException:  # what one of the tasks ended with ends the program, but for that the others must run
            self.ring()
            raise
