"""Whether a run is watched, where the news of it does not come: lost, not allowed, or from a replica that is silent."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from jetstream_kit import server
from strangers import Stranger
from timeline_kit import HookedReplica, Timelines
from waiting import Heard, known

from natsjobs.engine import audience

LINGERS = {"linger": 0.02, "linger_unwatched": 0.3}
PAUSE = 0.005


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked as soon as something was held back, and often."""
    monkeypatch.setattr(audience, "_FIRST", 0.0)
    monkeypatch.setattr(audience, "_SOON", 0.0)
    monkeypatch.setattr(audience, "_EVERY", 0.1)


def linger(owner: HookedReplica, stream_id: str = "s") -> float:
    """How long a job collects now."""
    writer = owner.store.replica.runs.local(stream_id, None)
    assert writer is not None
    return float(writer._pace.linger.seconds)


async def emit(owner: HookedReplica, count: int, stream_id: str = "s") -> None:
    """So many events, each a moment after the other."""
    for number in range(count):
        await owner.transport.emit_chunk(stream_id, number)
        await asyncio.sleep(PAUSE)


async def emit_until(owner: HookedReplica, expected: float) -> None:
    """Emit until the job collects for so long."""
    async with asyncio.timeout(20):
        while linger(owner) != expected:
            await emit(owner, 1)


async def test_a_viewer_whose_join_was_lost_is_found_by_the_next_question(many: Timelines) -> None:
    """The server never tells the owner of it."""
    owner, other = await many.add(config=many.config(timing=LINGERS)), await many.add()
    await owner.store.create_job("s", "alice")
    await emit_until(owner, LINGERS["linger_unwatched"])
    await owner.stop_hearing(many.subjects.joined("s"))
    heard = Heard()
    await heard.attach(other.transport, "s")
    await emit_until(owner, LINGERS["linger"])
    await owner.transport.emit_done("s", None)
    await heard.until(1)


async def test_a_silent_replica_may_have_viewers(many: Timelines) -> None:
    """It has interest in the question, and does not answer: nothing is held for longer."""
    owner = await many.add(config=many.config(timing=LINGERS))
    stranger = await Stranger.of(many)
    asked: list[Any] = []

    async def hear(message: Any) -> None:
        asked.append(message)

    sub = await stranger.nc.subscribe(many.subjects.presence("s"), cb=hear)
    await known(stranger.nc)
    await owner.store.create_job("s", "alice")
    async with asyncio.timeout(20):
        while len(asked) < 3:
            await emit(owner, 1)
            assert linger(owner) == LINGERS["linger"]
    await sub.unsubscribe()
    await emit_until(owner, LINGERS["linger_unwatched"])


@pytest.mark.parametrize(
    "denied", ['subscribe: {deny: ["*.joined.*"]}', 'publish: {deny: ["*.presence.*"]}'], ids=["to listen", "to ask"]
)
async def test_who_may_not_know_of_viewers_has_none_wait(
    tmp_path: Path, denied: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Runs count as watched, which is said once, and the server is not asked again and again."""
    users = (
        "authorization: {users: [{user: admin, password: p}, "
        f"{{user: worker, password: p, permissions: {{{denied}}}}}]}}\n"
    )
    with server(tmp_path, f'jetstream: {{store_dir: "$STORE"}}\n{users}') as running:
        async with Timelines("nats", running.url.replace("://", "://admin:p@")) as many:
            violations: list[Exception] = []

            async def complained(error: Exception) -> None:
                violations.append(error)

            login = {"url": running.url, "user": "worker", "password": "p", "error_cb": complained}
            owner = await many.add(config=many.config(timing=LINGERS), **login)
            with caplog.at_level(logging.INFO):
                for stream_id in ("s", "t"):
                    await owner.store.create_job(stream_id, "alice")
                    await emit(owner, 60, stream_id)
                    assert linger(owner, stream_id) == LINGERS["linger"]
            said = [record for record in caplog.records if "count as watched" in record.message]
            assert [record.levelname for record in said] == ["INFO"]
            assert len(violations) <= 2, "once for each run"
