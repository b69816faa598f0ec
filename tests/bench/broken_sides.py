"""Sides that do not do what they promise, on a real server: what the benchmark must not give figures for."""

from __future__ import annotations

from typing import Any

from natsjobs.cli.bench.ours import Ours

_BROKEN = 3


class Losing(Ours):
    """The event number 3 of every job is lost."""

    async def start(self, stream_id: str, user: str) -> Any:
        """A job that breaks its promise, unless it only warms up."""
        run = await super().start(stream_id, user)
        if user != "warm":
            run.emit = self.broken(run.emit)
        return run

    def broken(self, emit: Any) -> Any:
        async def losing(event: Any) -> None:
            if event["n"] != _BROKEN:
                await emit(event)

        return losing


class Swapping(Losing):
    """The events number 3 and 4 of every job come the other way round."""

    def broken(self, emit: Any) -> Any:
        held: list[Any] = []

        async def swapping(event: Any) -> None:
            if event["n"] == _BROKEN:
                held.append(event)
                return
            await emit(event)
            if held:
                await emit(held.pop())

        return swapping


class Doubling(Losing):
    """The event number 3 of every job comes twice."""

    def broken(self, emit: Any) -> Any:
        async def doubling(event: Any) -> None:
            await emit(event)
            if event["n"] == _BROKEN:
                await emit(event)

        return doubling


class Forgetting(Losing):
    """Nothing comes after the event number 2 of a job."""

    def broken(self, emit: Any) -> Any:
        async def forgetting(event: Any) -> None:
            if event["n"] < _BROKEN:
                await emit(event)

        return forgetting
