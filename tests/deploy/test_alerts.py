"""Alerts: a gateway is driven into every condition, and the measure that the rule reads moves at its /metrics."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from backends import NatsBackend
from gateways import Served, gateways
from jetstream_kit import Server
from jetstream_kit import server as own_server
from manifests import DEPLOY
from prometheus_client.parser import text_string_to_metric_families
from waiting import eventually

from natsjobs.errors import NatsJobsError
from natsjobs.http import GatewayConfig
from natsjobs.telemetry import MEASURES

RULES = yaml.safe_load((DEPLOY / "k8s/overlays/monitoring/prometheusrule.yaml").read_text())["spec"]["groups"][0][
    "rules"
]
ELSEWHERE = {"NatsjobsConsumers"}  # it reads the exporter of NATS
SELECTOR = re.compile(r"((?:natsjobs|nats)_[a-z_]+)(?:\{([^}]*)\})?")
HISTOGRAM = re.compile(r"_(bucket|sum|count)$")
QUICK = {"lease": 1.5, "renew": 0.5, "request": 0.5, "abort": 0.3, "give_up": 3.0, "sweep": 0.5}


class World:
    """A server of its own, a gateway with /metrics, and replicas beside it in this process."""

    def __init__(self, backend: NatsBackend, server: Server) -> None:
        self.backend, self.server = backend, server
        self.gate: Served

    async def replica(self, **config: Any) -> Any:
        """Another replica; ``config`` as in ``Backend.config``."""
        timing = {**QUICK, **config.pop("timing", {})}
        return await self.backend.replica(self.backend.config(timing=timing, **config))

    async def scrape(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Every sample at /metrics."""
        text = (await self.gate.client.get("/metrics")).text
        families = text_string_to_metric_families(text)
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}

    async def read(self, expression: str) -> list[float]:
        """For each selector of a rule: the sum of the samples that it matches."""
        found, sums = await self.scrape(), []
        for name, wanted in selectors(expression):
            matching = [
                value for (one, labels), value in found.items() if one == name and matches(dict(labels), wanted)
            ]
            sums.append(sum(matching))
        return sums


def selectors(expression: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Names and label matchers in an expression of PromQL."""
    return [(name, re.findall(r'(\w+)(=~|=)"([^"]*)"', labels or "")) for name, labels in SELECTOR.findall(expression)]


def matches(labels: dict[str, str], wanted: list[tuple[str, str, str]]) -> bool:
    """Whether a sample's labels fit the matchers."""
    return all(
        labels.get(name) == value if operator == "=" else re.fullmatch(value, labels.get(name, ""))
        for name, operator, value in wanted
    )


# -- the conditions ---------------------------------------------------------------------------------------------


async def disconnected(world: World) -> None:
    """NATS goes away."""
    await world.replica()
    world.server.stop()


async def owner_killed(world: World) -> None:
    """A worker dies, and the gateway proves it."""
    owner = await world.replica()
    await owner.store.create_job("s", "alice")
    await owner.kill()


async def silent_job(world: World) -> None:
    """Nothing happens in a job for longer than it may."""
    owner = await world.replica(retention={"running": 1.0})
    await owner.store.create_job("s", "alice")


async def abort_of_the_dead(world: World) -> None:
    """An abort whose owner does not answer."""
    owner = await world.replica()
    await owner.store.create_job("s", "alice")
    await owner.kill()
    assert (await world.gate.client.post("/streams/s/abort")).status_code == 200


async def filling(world: World) -> None:
    """85 % of a limited stream."""
    await world.backend.limit(1_000_000)
    for _ in range(5):
        await world.backend.fill(170_000)


async def full(world: World) -> None:
    """Somebody else fills the stream to the brim, and a job wants to end."""
    owner = await world.replica()
    await owner.store.create_job("s", "alice")
    await world.backend.limit(100_000)
    with suppress(AssertionError):
        while True:
            await world.backend.fill(10_000)
    with suppress(AssertionError):
        while True:
            await world.backend.fill(100)
    with suppress(NatsJobsError, TimeoutError):
        async with asyncio.timeout(2):
            await owner.transport.emit_done("s", {})


async def blocked(world: World) -> None:
    """NATS stands still, and a run's queue is full."""
    owner = await world.replica(
        limits={"queue_events": 1}, timing={"request": 5.0, "give_up": 20.0, "lease": 10.0, "renew": 3.0}
    )
    await owner.store.create_job("s", "alice")
    await owner.transport.emit_chunk("s", 0)
    await owner.transport.flush("s")
    world.server.signal(signal.SIGSTOP)
    emitting = asyncio.gather(*(owner.transport.emit_chunk("s", number) for number in range(4)))
    await asyncio.wait({emitting}, timeout=1.3)
    assert not emitting.done()
    world.server.signal(signal.SIGCONT)
    await emitting
    await owner.transport.flush("s")


async def garbage(world: World) -> None:
    """Somebody else writes into the bucket."""
    await world.backend.put_record(["not", "ours"], "job", "t")
    assert (await world.gate.client.get("/streams/t")).status_code == 404


async def failing_task(world: World) -> None:
    """A spawned body raises."""
    owner = await world.replica()

    async def body(run: Any) -> None:
        raise ValueError("a defect")

    await owner.manager.spawn("s", body, user_id="alice")


async def unready(world: World) -> None:
    """NATS goes away, and the readiness probe asks."""
    world.server.stop()
    assert (await world.gate.client.get("/readyz")).status_code == 503


CONDITIONS: dict[str, Callable[[World], Awaitable[None]]] = {
    "NatsjobsDisconnected": disconnected,
    "NatsjobsLeaseFailing": disconnected,
    "NatsjobsOwnersLost": owner_killed,
    "NatsjobsJobsExpired": silent_job,
    "NatsjobsAbortsUnacknowledged": abort_of_the_dead,
    "NatsjobsStreamFilling": filling,
    "NatsjobsStreamFull": full,
    "NatsjobsEmitBlocked": blocked,
    "NatsjobsAppendsSlow": blocked,
    "NatsjobsGarbage": garbage,
    "NatsjobsTaskFailed": failing_task,
    "NatsjobsGatewayErrors": unready,
}


def fires(alert: str, before: list[float], now: list[float]) -> bool:
    """Whether the condition of the rule holds for what its selectors read, as far as one look can tell."""
    if alert == "NatsjobsDisconnected":
        return before[0] >= 1 and now[0] < 1
    if alert == "NatsjobsStreamFilling":
        return now[1] > 0 and 0.8 < now[0] / now[1] <= 1
    if alert == "NatsjobsLeaseFailing":
        return now[0] - before[0] > 2
    if alert == "NatsjobsGatewayErrors":
        return now[0] > before[0] and (now[0] - before[0]) / (now[1] - before[1]) > 0.05
    return now[0] > before[0]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """All parts; what was stopped or paused goes on before it is left."""
    with own_server(tmp_path) as server:
        backend = NatsBackend("nats", server.url)
        made = World(backend, server)
        try:
            async with gateways() as start:
                replica = await made.replica()
                made.gate = await start(replica.manager, config=GatewayConfig(metrics="open"))
                yield made
        finally:
            if not server.running:
                server.start()
            await eventually(
                lambda: all(replica.nc.is_connected or replica.nc.is_closed for replica in backend.replicas)
            )
            await backend.close()


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if rule["alert"] not in ELSEWHERE], ids=lambda rule: rule["alert"]
)
async def test_the_condition_of_every_alert_moves_what_it_reads(world: World, rule: dict[str, Any]) -> None:
    """Healthy first: the alert is silent; then its condition, and it would fire."""
    alert, expression = rule["alert"], rule["expr"]
    before = await world.read(expression)
    assert not fires(alert, before, await world.read(expression))
    await CONDITIONS[alert](world)

    async def fired() -> bool:
        return fires(alert, before, await world.read(expression))

    await eventually(fired, within=30)
    if alert == "NatsjobsAppendsSlow":
        found = await world.scrape()
        name = "natsjobs_append_duration_seconds"
        quick = sum(v for (n, labels), v in found.items() if n == f"{name}_bucket" and dict(labels)["le"] == "1.0")
        assert found[f"{name}_count", ()] > quick


def test_every_alert_reads_measures_that_exist_and_says_what_to_do() -> None:
    """Misspelt names and labels never fire."""
    known = {measure.prometheus_name: measure for measure in MEASURES}
    assert {rule["alert"] for rule in RULES} == {*CONDITIONS, *ELSEWHERE}
    for rule in RULES:
        for name, labels in selectors(rule["expr"]):
            if name.startswith("natsjobs_"):
                measure = known[HISTOGRAM.sub("", name)]
                assert {label for label, *_ in labels} <= set(measure.labels)
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
        assert f"`{rule['alert']}`" in (DEPLOY / "README.md").read_text()


def test_the_dashboard_reads_measures_that_exist() -> None:
    """Every panel."""
    known = {measure.prometheus_name for measure in MEASURES}
    text = (DEPLOY / "k8s/overlays/monitoring/natsjobs.json").read_text()
    used = {HISTOGRAM.sub("", name) for name, _ in SELECTOR.findall(text) if name.startswith("natsjobs_")}
    assert used
    assert used <= known
