"""Figures of what goes wrong: a gap on the live path, a stream that fills up, NATS away."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from backends import MemoryBackend, NatsBackend
from prometheus_client import CollectorRegistry
from waiting import eventually

import natsjobs
from natsjobs import telemetry
from natsjobs.memory import MemorySystem

Value = Callable[..., float | None]


@pytest.fixture
def value() -> Iterator[Value]:
    """A measure's value in Prometheus."""
    with telemetry.prometheus(CollectorRegistry()) as export:
        yield lambda name, **labels: export.registry.get_sample_value(name, labels)


async def test_a_gap_on_the_live_path_is_counted_and_repaired(backend: NatsBackend, value: Value) -> None:
    """A later event arrives, those before it did not: the reader gets all from the log."""
    replica = await backend.replica()
    async with replica.manager.start("s", user_id="u") as run, replica.manager.subscribe("s") as events:
        await run.emit(0)
        assert (await anext(events)).data == 0
        await replica.lose_live_messages()
        ahead = {"type": "events", "index": 2, "writer": "w", "events": [2]}
        transport = replica.transport
        (tail,) = transport._tails._tails.values()
        live = backend.subjects.live_scope("s", run.generation)
        interest = await replica.store.replica.context.link.bus.subscribe(live, tail._on_live)
        subject = backend.subjects.live("s").replace(">", f"{run.generation}.log")
        nc = await backend.admin()
        await nc.publish(subject, json.dumps(ahead).encode(), headers={"Nats-Sequence": "999999"})
        await eventually(lambda: value("natsjobs_live_gaps_total") == 1)
        await interest.unsubscribe()
        await run.emit(1)
        assert (await anext(events)).data == 1


async def test_the_limits_of_the_streams_are_measured(backend: NatsBackend, value: Value) -> None:
    """Size and limit, of stream and bucket, as the last readiness check saw them; without a limit there is none."""
    replica = await backend.replica()
    name = backend.subjects.events_stream
    settings = (await backend.api(f"STREAM.INFO.{name}"))["config"] | {"max_bytes": 1_000_000}
    assert "error" not in await backend.api(f"STREAM.UPDATE.{name}", settings)
    assert value("natsjobs_stream_limit_bytes", stream="events") is None
    await replica.store.check()
    assert value("natsjobs_stream_limit_bytes", stream="events") == 1_000_000
    assert value("natsjobs_stream_limit_bytes", stream="jobs") is None
    size = value("natsjobs_stream_size_bytes", stream="jobs")
    assert size is not None
    assert size > 0
    await replica.close()
    assert value("natsjobs_stream_size_bytes", stream="jobs") is None


async def test_what_cannot_be_stored_is_counted(value: Value) -> None:
    """A lease that cannot be renewed, an append without an answer: NATS is away, and it shows before jobs end."""
    backend = MemoryBackend()
    config = backend.config(timing={"lease": 1.5, "renew": 0.1, "give_up": 0.3, "request": 0.3})
    replica: Any = await backend.replica(config)
    await replica.store.create_job("s", "alice")
    replica.link.disconnect()
    await eventually(lambda: value("natsjobs_lease_failures_total") >= 1)
    await replica.transport.emit_chunk("s", 1)
    await eventually(lambda: value("natsjobs_appends_total", outcome="unavailable"))
    assert value("natsjobs_events_queued") == 1
    assert value("natsjobs_connected") == 0
    replica.link.reconnect()
    await backend.close()


async def test_a_full_stream_is_counted(value: Value) -> None:
    """Every attempt, until somebody makes room."""
    store = natsjobs.MemoryJobStore(natsjobs.Config(), system=MemorySystem(max_bytes=2_000))
    await store.initialize()
    await store.create_job("s", "alice")
    try:
        with pytest.raises(natsjobs.StreamFullError):
            await store.append_chunk("s", "x" * 3_000)
        assert value("natsjobs_appends_total", outcome="full") == 1
    finally:
        await store.destroy()
