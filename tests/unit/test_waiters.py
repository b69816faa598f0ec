"""Everybody who waits for events to be stored gets an error of his own, and nobody's frames are held by it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
from logged import Log

from natsjobs import EventTooLargeError, JobClosedError, NatsJobsError, NotOpenError, StreamFullError
from natsjobs.config import Limits
from natsjobs.engine.appender import Appender
from natsjobs.engine.backlog import Backlog

KINDS = [
    StreamFullError("full", size=9, limit=10),
    JobClosedError("s1", "g1"),
    EventTooLargeError(9, 8),
    NotOpenError("closed"),
]


@pytest.mark.parametrize("error", KINDS, ids=lambda error: type(error).__name__)
async def test_each_who_waits_gets_an_error_of_his_own(error: NatsJobsError) -> None:
    """For an event to be stored, for room, for an empty queue: the same text and attributes, never the same object."""
    backlog = Backlog(Limits(queue_events=1))
    backlog.add(b"1")
    waiting: list[asyncio.Future[Any]] = [backlog.expect(1), backlog.expect(1)]
    waiting += [backlog.line_up(1).free, backlog.expect_drained(), backlog.expect_drained()]
    assert backlog.fail(error)
    got = [future.exception() for future in waiting]
    assert len({id(one) for one in [error, *got]}) == 1 + len(waiting)
    for one in got:
        assert (type(one), str(one), vars(one)) == (type(error), str(error), vars(error))


async def test_a_defect_of_ours_is_told_as_it_is() -> None:
    """There may be no way to copy it, and whoever waits must hear of it."""

    class DefectError(Exception):
        def __init__(self, one: object, two: object) -> None:
            super().__init__(f"{one} {two}")

    backlog, defect = Backlog(Limits()), DefectError(1, 2)
    future = backlog.expect(1)
    assert backlog.fail(defect)
    assert future.exception() is defect


@pytest.fixture
async def log() -> AsyncIterator[Log]:
    """Jobs a and b; nothing is held back for longer than a second."""
    log = Log(0.0, request=0.1)
    await log.start("a", "b")
    yield log
    await log.close()


def writer(log: Log, name: str) -> Appender:
    """The writer of a job."""
    found = log.store.replica.runs.local(name, None)
    assert found is not None
    return found


class Marker:
    """Something that a caller's frame holds."""


async def waits(appender: Appender, marker: Marker) -> NatsJobsError:
    """A caller who waits until what was queued is stored; what he is told."""
    held = marker
    try:
        await appender.flush()
    except NatsJobsError as error:
        assert held is marker
        return error
    raise AssertionError("stored")


async def told(appenders: list[Appender], how: Any) -> tuple[list[NatsJobsError], list[weakref.ref[Marker]]]:
    """What three callers of each are told when this happens while they wait, and what their frames held."""
    markers = [Marker() for _ in appenders for _ in range(3)]
    refs = [weakref.ref(marker) for marker in markers]
    for appender in appenders:
        appender.offer(b"1")
    tasks = [asyncio.create_task(waits(appenders[n // 3], marker)) for n, marker in enumerate(markers)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    how()
    return await asyncio.gather(*tasks), refs


def refused(appender: Appender) -> NatsJobsError:
    """What the next caller is told at once."""
    with pytest.raises(NatsJobsError) as caught:
        appender.offer(b"2")
    return caught.value


async def check(got: list[NatsJobsError], refs: list[weakref.ref[Marker]], kind: type[NatsJobsError]) -> None:
    """Each has one of his own, and when they are dropped nothing else holds what their callers held."""
    assert {type(one) for one in got} == {kind}
    assert len({id(one) for one in got}) == len(refs)
    got.clear()
    await asyncio.sleep(0)  # what woke this task up holds them until then
    gc.collect()
    assert [ref() for ref in refs] == [None] * len(refs)


async def test_the_end_of_a_generation_is_told_to_each_caller_anew(log: Log) -> None:
    """Also to whoever comes later; the writer, which remembers it, holds nobody's frames."""
    appender = writer(log, "a")
    got, refs = await told([appender], lambda: appender.fence(None))
    assert refused(appender) is not appender.closed
    await check(got, refs, JobClosedError)
    assert appender.closed is not None
    assert appender.closed.__traceback__ is None


async def test_a_store_that_closes_tells_each_caller_anew(log: Log) -> None:
    """Of all its jobs, and the next call of each too."""
    appenders = [writer(log, "a"), writer(log, "b")]
    why = NotOpenError("closed")
    got, refs = await told(appenders, lambda: [appender.release(why) for appender in appenders])
    await check(got, refs, NotOpenError)
    for appender in appenders:
        appender.release(why)
    errors = [refused(appender) for appender in appenders]
    assert len({id(error) for error in [why, *errors]}) == 3
