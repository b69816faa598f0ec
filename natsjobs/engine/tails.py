"""The tails of one transport, counted: opened by the first reader of a generation, closed by the last.

Owns how many readers each tail has, not what a tail holds. Guarantees that an attach that failed holds nothing, and
that a tail whose history is lost is not given to a new reader.
"""

from __future__ import annotations

from collections.abc import Callable

from natsjobs.engine.context import Context
from natsjobs.engine.lookout import Lookout
from natsjobs.engine.tail import Tail


class Tails:
    """All generations that are followed here."""

    def __init__(self, context: Context) -> None:
        """Empty."""
        self._context = context
        self._lookout = Lookout(context)
        self._tails: dict[tuple[str, str], Tail] = {}
        self._newest: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._tails)

    def newest(self, stream_id: str) -> str | None:
        """The newest generation that is followed here."""
        return self._newest.get(stream_id)

    async def enter(self, stream_id: str, generation: str, foresee: Callable[[Tail], None] | None = None) -> Tail:
        """Attach one reader. Raises as ``Tail.open`` does; then nothing is held.

        ``foresee`` is called with the tail before it is opened: what it asks for goes out together with that.
        """
        key = (stream_id, generation)
        tail = self._tails.get(key)
        if tail is None or tail.lost is not None:
            tail = self._tails[key] = Tail(self._context, self._lookout, stream_id, generation)
            self._newest[stream_id] = max(generation, self._newest.get(stream_id, ""))
        tail.users += 1
        try:
            if foresee is not None:
                foresee(tail)
            await tail.open()
        except BaseException:
            await self.leave(tail)
            raise
        return tail

    async def leave(self, tail: Tail) -> None:
        """Detach one reader; the last one closes the tail."""
        tail.users -= 1
        if tail.users <= 0:
            key = (tail.stream_id, tail.generation)
            if self._tails.get(key) is tail:
                del self._tails[key]
                if self._newest.get(tail.stream_id) == tail.generation:
                    del self._newest[tail.stream_id]
            await tail.close()

    async def close(self) -> None:
        """Close all, whoever still reads, or is only attaching."""
        tails, self._tails, self._newest = list(self._tails.values()), {}, {}
        for tail in tails:
            await tail.close()
        self._lookout.close()
