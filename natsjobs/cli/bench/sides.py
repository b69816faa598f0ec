"""What is measured of a side: start a job, emit, flush, finish, follow, list. Nothing here knows which side it is."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeAlias, TypeVar

Item = TypeVar("Item")


class Seen(Protocol):
    """One event in a reader's hand. What the two sides give has these names, so that no layer is measured with it."""

    @property
    def cursor(self) -> str:
        """Where to go on after it."""
        ...

    @property
    def data(self) -> Any:
        """The event, decoded."""
        ...

    @property
    def is_terminal(self) -> bool:
        """The end of the job, the last that comes."""
        ...


Followed: TypeAlias = AsyncIterator[Seen]


class Run(Protocol):
    """A job that runs here."""

    async def emit(self, event: Any) -> None:
        """Append one event; returns when it is on its way, in order with the others of this job."""
        ...

    async def flush(self) -> None:
        """Returns when everything emitted so far is stored."""
        ...

    async def finish(self) -> None:
        """Append the terminal record; returns when everything is stored."""
        ...


class Side(Protocol):
    """One process of an application, on one of the two systems."""

    async def start(self, stream_id: str, user: str) -> Run:
        """Create a job."""
        ...

    def follow(self, stream_id: str, after: str | None = None) -> AbstractAsyncContextManager[Followed]:
        """Attached when it is entered: replay after a cursor, then live."""
        ...

    async def active(self, user: str) -> list[str]:
        """Stream ids of a user's running jobs."""
        ...

    async def stored(self) -> int:
        """Bytes that the logs of all jobs take at the server, as it counts them; records of jobs are not counted."""
        ...

    async def close(self) -> None:
        """Leave."""
        ...


def chunks(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """In parts of a size."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def quantile(ordered: Sequence[float], part: float) -> float:
    """The smallest value that at least this part of them does not exceed; 0 of nothing."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else 0.0
