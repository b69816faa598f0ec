"""How many event streams may be open at once: in the process, and for one stream id. Counts, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from starlette.exceptions import HTTPException


class Admission:
    """Counters with a limit. Not thread-safe; there is one event loop."""

    def __init__(self, connections: int, stream_connections: int) -> None:
        self._limit, self._stream_limit = connections, stream_connections
        self._open = 0
        self._streams: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """Streams that are open now."""
        return self._open

    @contextmanager
    def admit(self, stream_id: str) -> Generator[None]:
        """Count one for the length of the block.

        Raises:
            HTTPException: 503 when the process is full, 429 when the stream id is.
        """
        if self._open >= self._limit:
            raise HTTPException(503, "too many open streams here; try again soon", {"Retry-After": "2"})
        if self._streams[stream_id] >= self._stream_limit:
            raise HTTPException(429, "too many readers of this job here; try again soon", {"Retry-After": "2"})
        self._open += 1
        self._streams[stream_id] += 1
        try:
            yield
        finally:
            self._open -= 1
            self._streams[stream_id] -= 1
            if not self._streams[stream_id]:
                del self._streams[stream_id]
