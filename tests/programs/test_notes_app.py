"""How an application tests itself: in memory, fast and alone, and against the real server of the fixture."""

from __future__ import annotations

import asyncio

import pytest
from notes_app import Summaries

import natsjobs

TEXT = "First. More\nSecond. More\nThird. More"


async def test_a_summary_has_every_line(jobs: natsjobs.JobManager) -> None:
    """Started, followed, finished, and no longer in progress."""
    app = Summaries(jobs)
    generation = await app.start("doc", TEXT, user="alice")
    assert await app.summary("doc") == ["First", "Second", "Third"]
    async with asyncio.timeout(20):  # the log ends first; the record says so a moment later
        while (job := await jobs.get("doc")) is not None and job.status == "running":
            await asyncio.sleep(0)
    assert job is not None
    assert (job.generation, job.status, job.metadata) == (generation, "complete", {"lines": 3})
    assert await app.in_progress("alice") == []


async def test_a_failed_summary_tells_why(jobs: natsjobs.JobManager, caplog: pytest.LogCaptureFixture) -> None:
    """The exception of the work is the error its readers get; nobody has to wait for the task; it is logged too."""
    app = Summaries(jobs)
    await app.start("doc", "", user="alice")
    with pytest.raises(RuntimeError, match="the document is empty"):
        await app.summary("doc")
    async with asyncio.timeout(20):
        while "the document is empty" not in caplog.text:
            await asyncio.sleep(0)


async def test_two_memory_systems_know_nothing_of_each_other() -> None:
    """Every ``connect("memory://")`` is a system of its own, so tests cannot disturb each other."""
    async with natsjobs.connect("memory://") as one, natsjobs.connect("memory://") as two:
        await Summaries(one).start("doc", TEXT, user="alice")
        assert await two.get("doc") is None
        with pytest.raises(natsjobs.JobNotFoundError):
            await Summaries(two).summary("doc")


def test_the_fixture_needs_no_async_plugin(natsjobs_server: str, config: natsjobs.Config) -> None:
    """A plain function with ``asyncio.run`` uses the same server."""

    async def main() -> list[str]:
        async with natsjobs.connect(natsjobs_server, config=config) as jobs:
            app = Summaries(jobs)
            await app.start("doc", TEXT, user="alice")
            return await app.summary("doc")

    assert asyncio.run(main()) == ["First", "Second", "Third"]
