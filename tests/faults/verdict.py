"""The verdict on a test in which every run completed: what was emitted is stored once and was seen once, everywhere."""

from __future__ import annotations

from collections.abc import Sequence

from fault_table import Row
from nats.aio.client import Client
from nodes import Space
from owners import Owner
from stored import one_generation
from viewers import Viewers


async def nothing_lost(row: Row, nc: Client, space: Space, owners: Sequence[Owner], viewers: Viewers) -> None:
    """Count everything into the table, and assert that nothing was lost, doubled or reordered, and one end per job."""
    sent: dict[str, int] = {}
    for one in owners:
        one.completed()
        one.count(row)
        sent |= {name: owned.emitted for name, owned in one.jobs.items()}
    viewers.count(row, sent)
    logs = await one_generation(nc, space)
    row.notes |= {
        "jobs": len(sent),
        "viewers": len(viewers.all),
        "attaches": sum(viewer.attached for viewer in viewers.all),
        "refused": sum(viewer.refused for viewer in viewers.all),
        "ends": sum(len(log.ends) for log in logs.values()),
    }
    assert logs.keys() == sent.keys()
    for name, count in sent.items():
        assert logs[name].whole, name
        assert len(logs[name].numbers) == count, name
    assert row.notes["ends"] == len(sent)
    assert {viewer.end.type for viewer in viewers.all if viewer.end is not None} == {"done"}
    row.whole()
