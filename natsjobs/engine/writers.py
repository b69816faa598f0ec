"""The writers of a replica, found by generation and by stream id.

Owns which writers are there, and which of them are of runs that are owned here, and nothing of what they do. Guarantees
that finding those of one stream id, or those that may go, costs by these, not by all that are there.
"""

from __future__ import annotations

from collections.abc import Iterator

from natsjobs.engine.appender import Appender


class Writers:
    """At most one for each generation."""

    def __init__(self) -> None:
        """Empty."""
        self._writers: dict[tuple[str, str], Appender] = {}
        self._others: dict[tuple[str, str], Appender] = {}
        self._generations: dict[str, list[str]] = {}

    def __iter__(self) -> Iterator[Appender]:
        """All of them as they are now, in the order in which they came. May be asked for from another thread."""
        return iter(list(self._writers.values()))

    def get(self, stream_id: str, generation: str) -> Appender | None:
        """The writer of a generation, if there is one."""
        return self._writers.get((stream_id, generation))

    def of(self, stream_id: str) -> list[Appender]:
        """Those of a stream id, in the order in which they came."""
        return [self._writers[stream_id, generation] for generation in self._generations.get(stream_id, ())]

    @property
    def others(self) -> list[Appender]:
        """Those of runs that are not, or not any more, owned here, in the order in which they became so."""
        return list(self._others.values())

    def add(self, writer: Appender, *, owned: bool) -> None:
        """One more; it takes the place of another one of its generation. ``owned``: until ``disown``."""
        key = (writer.stream_id, writer.generation)
        if owned:
            self._others.pop(key, None)
        else:
            self._others[key] = writer
        if key not in self._writers:
            self._generations.setdefault(writer.stream_id, []).append(writer.generation)
        self._writers[key] = writer

    def disown(self, stream_id: str, generation: str) -> None:
        """The run of this generation is not owned here any more; its writer, if there is one, stays for late calls."""
        key = (stream_id, generation)
        if key in self._writers:
            self._others.setdefault(key, self._writers[key])

    def remove(self, writer: Appender) -> None:
        """Forget one that is here."""
        del self._writers[writer.stream_id, writer.generation]
        self._others.pop((writer.stream_id, writer.generation), None)
        generations = self._generations[writer.stream_id]
        generations.remove(writer.generation)
        if not generations:
            del self._generations[writer.stream_id]

    def clear(self) -> None:
        """Forget all."""
        self._writers.clear()
        self._others.clear()
        self._generations.clear()
