"""What a reading of a log makes of messages that come late, or more than once."""

from __future__ import annotations

import msgspec
import pytest

from natsjobs.engine import wire
from natsjobs.engine.replay import Batch, Replay, Verdict


def entry(index: int, text: str, part: tuple[int, int] | None = None) -> wire.Entry:
    """An event, or a piece of one."""
    data = msgspec.Raw(msgspec.json.encode(text))
    kind = "events" if part is None else "part"
    return wire.Entry(type=kind, index=index, writer="w", events=[data] if part is None else [], part=part, data=data)


@pytest.mark.parametrize("late", [1, 2])
def test_what_comes_late_takes_nothing_from_an_event_in_pieces(late: int) -> None:
    """It lies before the pieces; what lies between them, and is stored behind the first, makes them void."""
    replay = Replay(0, 0)
    for seq in (1, 2):
        assert isinstance(replay.feed(seq, entry(seq - 1, "small"), end=False), Batch)
    assert replay.feed(3, entry(2, '"bi', (0, 2)), end=False) is Verdict.NOTHING
    assert replay.feed(late, entry(late - 1, "small"), end=False) is Verdict.NOTHING
    found = replay.feed(4, entry(2, 'g"', (1, 2)), end=False)
    assert isinstance(found, Batch)
    assert (found.index, found.raws, replay.next) == (2, [b'"big"'], 3)


def test_what_lies_between_pieces_makes_them_void() -> None:
    """Another writer has taken the index (B2)."""
    replay = Replay(0, 0)
    assert replay.feed(1, entry(0, '"bi', (0, 2)), end=False) is Verdict.NOTHING
    assert isinstance(replay.feed(2, entry(0, "other"), end=False), Batch)
    assert replay.feed(3, entry(1, 'g"', (1, 2)), end=False) is Verdict.GAP
