"""Random programs of operations on one stream id, on several replicas: the library does what the model says."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
from backends import Backend, MemoryBackend, NatsBackend
from exploring import explore
from fault_table import Row
from hypothesis import strategies as st
from model import Op
from model_runner import REPLICAS, Session
from virtual_time import Virtual

from natsjobs import Config
from natsjobs.memory import MemorySystem

QUICK = {"lease": 9.0, "renew": 4.0, "request": 3.0, "abort": 2.0, "give_up": 20.0, "look": 2.0, "sweep": 15.0}
SHORT = {"running": 40.0, "finished": 60.0, "orphan": 30.0, "tombstone": 300.0}

READS = ("get", "view", "view", "view", "follow", "watch", "active", "count", "state", "catch_up")
EVENTS = ("emit", "emit", "append", "flush")
ENDS = ("done", "fail", "update", "abort", "delete")
WRITES = ("usage_entry", *EVENTS * 6, "create", "claim", *ENDS)
FAULTS = ("kill", "leave", "drop", "mute")
WAITS = ("settle", "expire", "forget")

ALONE = (*READS * 2, *WRITES, "create", "clear", *FAULTS)

SCENES = (
    ("create", "view", "mute", "append", "done"),
    ("create", "view", "append", "mute", "abort"),
    ("create", "append", "state", "clear", "view", "append", "view"),
    ("create", "follow", "append", "create", "append", "done"),
    ("create", "usage_entry", "abort", "claim", "view"),
    ("create", "view", "emit", "drop", "append", "catch_up"),
    ("create", "watch", "emit", "flush", "delete", "create", "view"),
)
SLOW_SCENES = (
    ("create", "view", "append", "kill", "settle", "get", "view"),
    ("create", "watch", "kill", "settle", "active"),
    ("create", "view", "append", "expire", "view"),
    ("create", "append", "done", "state", "forget", "view", "create"),
)


def ops(kinds: tuple[str, ...]) -> st.SearchStrategy[Op]:
    """Any of these operations."""
    return st.builds(Op, st.sampled_from(kinds), st.integers(0, REPLICAS - 1), st.integers(0, 7))


def programs(*, waits: bool, together: bool) -> st.SearchStrategy[list[list[Op]]]:
    """Blocks of operations; with ``together`` most of them have several at the same time."""
    alone = ops(ALONE + (WAITS if waits else ())).map(lambda op: [op])
    crowd = st.lists(ops(WRITES), min_size=2, max_size=4)
    blocks = (st.one_of(crowd, alone) if together else alone).map(lambda block: [block])
    scenes = st.sampled_from(SCENES + (SLOW_SCENES if waits else ())).flatmap(
        lambda kinds: st.tuples(*(ops((kind,)).map(lambda op: [op]) for kind in kinds)).map(list)
    )
    pieces = st.lists(st.one_of(blocks, blocks, blocks, blocks, scenes), min_size=5, max_size=30)
    return pieces.map(lambda found: [[Op("create", 0, 1)], *(block for piece in found for block in piece)])


class Failures(logging.Handler):
    """What no run may log: errors of background tasks and of handlers. That a replica was killed is told, too."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "natsjobs may not replace it" not in (text := self.format(record)):
            self.records.append(text)


async def carry_out(backend: Backend, config: Config, program: list[list[Op]], row: Row) -> None:
    """One program on one backend."""
    failures = Failures()
    logging.getLogger("natsjobs").addHandler(failures)
    session = Session(backend, config)
    try:
        await session.start()
        try:
            await session.run(program)
            await session.finish()
        except AssertionError as error:
            error.add_note("\n".join(session.trace))
            raise
        finally:
            await session.close()
        assert not failures.records, failures.records
    finally:
        logging.getLogger("natsjobs").removeHandler(failures)
    row.emitted = (row.emitted or 0) + session.emitted
    row.seen = (row.seen or 0) + session.seen
    for op in (op for block in program for op in block):
        row.fault(op.kind)


def on_memory(program: list[list[Op]], row: Row) -> None:
    """In memory, on a clock of its own."""
    with Virtual() as clock:
        backend = MemoryBackend()
        backend.system = MemorySystem(clock=lambda: time.time())
        config = backend.config(timing=QUICK, retention=SHORT)
        clock.run(carry_out(backend, config, program, row))


def on_nats(url: str, program: list[list[Op]], row: Row, *, waits: bool) -> None:
    """On a real server, in a namespace of its own."""
    backend = NatsBackend("nats", url)
    retention = {"running": 4.0, "finished": 3.0, "orphan": 3.0} if waits else {}
    config = backend.config(timing={"give_up": 12.0, "sweep": 2.0}, retention=retention)
    asyncio.run(carry_out(backend, config, program, row))


@pytest.mark.parametrize("together", [False, True], ids=["one-by-one", "at-once"])
@pytest.mark.timeout(0)
def test_memory_does_what_the_model_says(row: Row, seed: int, long: bool, together: bool) -> None:
    """Also while time passes: leases lapse, jobs expire, records go."""
    explore(seed, 20_000 if long else 40, programs(waits=True, together=together), lambda p: on_memory(p, row))


@pytest.mark.parametrize("together", [False, True], ids=["one-by-one", "at-once"])
@pytest.mark.timeout(0)
def test_nats_does_what_the_model_says(row: Row, seed: int, long: bool, together: bool, newest_server: str) -> None:
    """As memory does, so both agree; in the long form also while time passes."""
    strategy = programs(waits=long, together=together)
    explore(seed, 2_000 if long else 10, strategy, lambda p: on_nats(newest_server, p, row, waits=long))
