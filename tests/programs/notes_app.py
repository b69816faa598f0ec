"""A small application with a service of its own, written to be tested: it is given a ``JobManager``, it opens none."""

from __future__ import annotations

import natsjobs


class Summaries:
    """Summarizes documents in the background; pages ask for the state, or follow it."""

    def __init__(self, jobs: natsjobs.JobManager) -> None:
        self._jobs = jobs

    async def start(self, document: str, text: str, *, user: str) -> str:
        """The generation; the work goes on after this returns."""

        async def work(run: natsjobs.JobRun) -> None:
            lines = text.splitlines()
            if not lines:
                raise ValueError("the document is empty")
            for line in lines:
                await run.emit({"line": line.split(".")[0]})
            await run.update(metadata={"lines": len(lines)})

        job = await self._jobs.spawn(document, work, user_id=user)
        return job.generation

    async def summary(self, document: str) -> list[str]:
        """All lines, however far it is now.

        Raises:
            RuntimeError: It failed.
        """
        lines: list[str] = []
        async with self._jobs.subscribe(document) as events:
            async for event in events:
                if event.type is natsjobs.EventType.EVENT:
                    lines.append(event.data["line"])
                elif event.type is natsjobs.EventType.ERROR:
                    raise RuntimeError(event.data)
        return lines

    async def in_progress(self, user: str) -> list[str]:
        return await self._jobs.active(user)
