"""Typed answers of readers: unknown, lost, replaced, garbage; never a silent gap and never a hang."""

from __future__ import annotations

import pytest
from making import rest, write
from waiting import eventually, read_all, soon, take

from natsjobs import (
    GenerationReplacedError,
    HistoryLostError,
    InvalidCursorError,
    JobNotFoundError,
    ResumeError,
)


@pytest.fixture(params=["subscribe", "read"])
def read(request, replica_b):
    """Both doors to a reader, on replica B."""
    return replica_b.manager.subscribe if request.param == "subscribe" else replica_b.transport.read


# -- typed answers -----------------------------------------------------------------------------------------------


async def test_an_unknown_id_is_an_error_on_entering(read):
    """Not on calling, and at once without ``wait``."""
    reader = read("nobody")
    with pytest.raises(JobNotFoundError) as missing:
        async with reader:
            pytest.fail("entered")
    assert missing.value.stream_id == "nobody"


@pytest.mark.parametrize(
    "garbage",
    ["", "x", "0", "-1", "....", "a.b.c", "{}", "null", "\x00", "ü", "1" * 10_000, " ", "=41", "%00", "☃" * 50],
)
async def test_garbage_is_no_cursor(replica, read, garbage):
    """InvalidCursorError, which is a ValueError, on entering."""
    await write(replica, ["a"])
    with pytest.raises(InvalidCursorError) as refused:
        await read_all(read, "s1", after=garbage)
    assert isinstance(refused.value, ValueError)


async def test_a_cursor_that_was_changed_gives_a_typed_answer_or_the_truth(replica, read):
    """One character changed or cut: an error of resuming, or exactly the events after an index."""
    await write(replica, list(range(20)))
    whole = await read_all(read, "s1")
    cursor = whole[10].cursor
    changed = {cursor[:-1], cursor + "0", cursor[1:], cursor.upper(), cursor[::-1]} - {cursor}
    changed |= {cursor[:n] + ("1" if cursor[n] != "1" else "2") + cursor[n + 1 :] for n in range(len(cursor))}
    for one in sorted(changed):
        try:
            got = await read_all(read, "s1", after=one)
        except ResumeError:
            continue
        assert got == whole[len(whole) - len(got) :]


@pytest.mark.b_writes
async def test_the_cursor_of_a_replaced_generation_names_the_newest(replica, replica_b, read):
    """Also the terminal cursor of the old one."""
    await write(replica, ["a"])
    cursors = [event.cursor for event in await read_all(read, "s1")]
    new = await write(replica_b, ["b"])
    for cursor in cursors:
        with pytest.raises(GenerationReplacedError) as replaced:
            await read_all(read, "s1", after=cursor)
        assert (replaced.value.stream_id, replaced.value.generation) == ("s1", new)


async def test_naming_another_generation_names_the_newest(replica, read):
    """An old one, or one that never was."""
    old = await write(replica, ["a"])
    new = await write(replica, ["b"])
    with pytest.raises(GenerationReplacedError) as replaced:
        await read_all(read, "s1", generation=old)
    assert replaced.value.generation == new
    with pytest.raises(ResumeError):
        await read_all(read, "s1", generation="never")


async def test_a_cursor_of_another_job_is_a_typed_error(replica, read):
    """Never the events of this one."""
    await write(replica, ["a"], "s1")
    await write(replica, ["b"], "s2")
    cursor = (await read_all(read, "s2"))[0].cursor
    with pytest.raises(ResumeError):
        await read_all(read, "s1", after=cursor)


async def test_a_cursor_of_a_deleted_job_has_lost_its_history(replica, read):
    """Without the cursor the id is simply unknown."""
    await write(replica, ["a", "b"])
    cursor = (await read_all(read, "s1"))[0].cursor
    await replica.store.delete_job("s1")
    with pytest.raises(HistoryLostError) as lost:
        await read_all(read, "s1", after=cursor)
    assert lost.value.stream_id == "s1"
    with pytest.raises(JobNotFoundError):
        await read_all(read, "s1")


async def test_four_distinct_answers(backend):
    """After completion, after expiry, with garbage, with the cursor of the previous generation."""
    config = backend.config(retention={"finished": 1.0})
    a, b = await backend.replica(config), await backend.replica(config)
    read = b.manager.subscribe
    await a.store.create_job("s1", "alice")
    await a.store.append_chunk("s1", "a")
    async with read("s1") as events:
        (first,) = await take(events, 1)
        await a.store.update_job("s1", status="complete")
        (end,) = await soon(rest(events))

    async def gone() -> bool:
        await a.store.cleanup()
        return not await a.store.has_job("s1")

    await eventually(gone, within=30)
    for cursor in (first.cursor, end.cursor):
        with pytest.raises(HistoryLostError):
            await read_all(read, "s1", after=cursor)
    with pytest.raises(JobNotFoundError):
        await read_all(read, "s1")
    with pytest.raises(InvalidCursorError):
        await read_all(read, "s1", after="garbage")
    await a.store.create_job("s1", "alice")
    with pytest.raises(GenerationReplacedError):
        await read_all(read, "s1", after=first.cursor)
