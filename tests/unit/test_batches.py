"""Batches of events: their cursors, whoever asks, and what joining them keeps."""

from __future__ import annotations

from itertools import pairwise

import pytest

from natsjobs.engine.replay import Batch, joined
from natsjobs.engine.window import Window
from natsjobs.engine.wire import Cursor
from natsjobs.models import EventType

GENERATION = "0123456789abcdefghi"


def batch(index: int, count: int, seq: int, kind: EventType = EventType.EVENT) -> Batch:
    """So many events, each of its own number."""
    return Batch(index, [b"%d" % number for number in range(index, index + count)], seq, kind)


@pytest.mark.parametrize(("index", "count"), [(0, 1), (0, 3), (998, 1), (999, 1), (997, 5), (1, 2500), (99_998, 3)])
def test_every_event_has_the_cursor_of_its_place(index: int, count: int) -> None:
    """Ten digits of the place after it, and where to look: also across a thousand, and across several."""
    one = batch(index, count, 77)
    expected = [f"{GENERATION}-{place:010d}-77" for place in range(index + 1, index + count + 1)]
    assert one.cursors(GENERATION) == expected
    assert one.cursors(GENERATION) is one.cursors(GENERATION)  # made once for all readers


def test_joining_batches_changes_no_event_and_no_cursor() -> None:
    """Each cursor names the message of its event: one that names a later message would begin behind its successor."""
    count = 40
    single = [batch(3 * k, 3, 10 + 2 * k) for k in range(count)]
    raws = [raw for one in single for raw in one.raws]
    cursors = [cursor for one in single for cursor in list(one.cursors(GENERATION))]
    made = joined(single, GENERATION, 16)
    assert [raw for one in made for raw in one.raws] == raws
    assert [cursor for one in made for cursor in one.cursors(GENERATION)] == cursors
    assert [Cursor.parse(cursor).hint for cursor in cursors] == [10 + 2 * (k // 3) for k in range(3 * count)]
    assert [one.index for one in made] == list(range(0, 3 * count, 18))
    assert all(before.next == after.index for before, after in pairwise(made))
    assert [one.seq for one in made][-1] == 10 + 2 * (count - 1)  # where a reader that has it all looks next


def test_a_batch_of_another_kind_stays_by_itself() -> None:
    """Its events are handed on under their own type."""
    strange = EventType("strange")
    made = joined([batch(0, 2, 1), batch(2, 1, 2, strange), batch(3, 2, 3)], GENERATION, 16)
    assert [(one.type, one.index, len(one.raws)) for one in made] == [
        (EventType.EVENT, 0, 2),
        (strange, 2, 1),
        (EventType.EVENT, 3, 2),
    ]


def test_the_window_keeps_cursors_of_the_newest_batch_only() -> None:
    """Who lags has them made again; a thousand events of a job that somebody reads do not hold a thousand texts."""
    window, batches = Window(1024), [batch(3 * k, 3, k + 1) for k in range(5)]
    for one in batches:
        window.add(one)
        one.cursors(GENERATION)
    assert [one.made is not None for one in batches] == [False, False, False, False, True]
    assert batches[0].cursors(GENERATION)[0] == f"{GENERATION}-0000000001-1"
