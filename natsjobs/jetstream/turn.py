"""The end of the present turn of the loop: what has to be done before what the turn made is written, and the writing.

Owns that both happen once, in this order, however often they are asked for. Knows nothing of what is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class TurnEnd:
    """The next end of a turn."""

    __slots__ = ("_before", "_coming", "_write")

    def __init__(self, write: Callable[[], None]) -> None:
        """``write`` is called at the end of each turn for which that was asked."""
        self._write = write
        self._before: list[Callable[[], None]] = []
        self._coming = False

    def expect(self) -> None:
        """There is something to write."""
        if not self._coming:
            self._coming = True
            asyncio.get_running_loop().call_soon(self._come)

    def before(self, callback: Callable[[], None]) -> None:
        """Call back once before it is written; what is asked for in there belongs to the same end of a turn."""
        self._before.append(callback)
        self.expect()

    def _come(self) -> None:
        before, self._before = self._before, []
        try:
            for callback in before:
                callback()
        finally:
            self._coming = False
            if self._before:
                self.expect()
            self._write()
