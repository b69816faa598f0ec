"""A connection that nats-py closes for good, whatever its reconnect settings: an expired JWT, a changed password, a
removed user, too many connections, an oversized message of other code.

A connection of its own (``connect(url)``) the library replaces, and nothing above notices. One that was given
(``connect(nc=nc)``) it may not replace: every call and every reader says so, in bounded time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import nats
import pytest
from fault_table import Row
from jetstream_kit import Server, quiet, server
from jwt_kit import Operator
from waiting import Heard, eventually, soon

import natsjobs
from natsjobs import Config, ConnectionLostError, NotOpenError
from natsjobs.config import Timing

TIMING = Timing(lease=3.0, renew=1.0, request=3.0, abort=1.0, give_up=30.0, look=0.3)
JETSTREAM = 'jetstream: {store_dir: "$STORE"}\n'
PASSWORD = JETSTREAM + "authorization: {users: [{user: u, password: one}, {user: admin, password: p}]}\n"
SOON = 2 * TIMING.request
"""The longest that anybody may wait before he is told that a given connection is gone; most hear it at once."""


@pytest.fixture
def config() -> Config:
    """A namespace of one's own."""
    return Config(namespace="death", timing=TIMING)


class Follower:
    """A viewer that writes down what it gets, and when."""

    def __init__(self, jobs: natsjobs.JobManager, row: Row) -> None:
        self.got: list[int] = []
        self.end: natsjobs.StreamEvent | None = None
        self._row = row
        self.task = asyncio.create_task(self._follow(jobs))

    async def _follow(self, jobs: natsjobs.JobManager) -> None:
        last = time.monotonic()
        async with jobs.subscribe("s", wait=20) as events:
            async for event in events:
                self._row.stalled(time.monotonic() - last)
                last = time.monotonic()
                if event.is_terminal:
                    self.end = event
                else:
                    self.got.append(event.data)


class Producer:
    """An owner that emits numbers until it is told to complete."""

    def __init__(self, jobs: natsjobs.JobManager) -> None:
        self.sent = 0
        self.done = asyncio.Event()
        self.task = asyncio.create_task(self._produce(jobs))

    async def _produce(self, jobs: natsjobs.JobManager) -> None:
        async with jobs.start("s", user_id="alice") as run:
            while not self.done.is_set():
                await run.emit(self.sent)
                self.sent += 1
                await asyncio.sleep(0.005)
            await run.complete(self.sent)


# -- connections of its own -----------------------------------------------------------------------------------------


class Scene:
    """A server, how to connect to it, and how to make connections die on it and let them live again."""

    def __init__(self, running: Server, folder: Path) -> None:
        self.running, self.folder = running, folder
        self.options: dict[str, Any] = {}
        self.managers: list[natsjobs.JobManager] = []

    def connections(self) -> list[Any]:
        """nats-py's clients below the managers, at this moment."""
        return [manager.store.replica.context.link.nc for manager in self.managers]  # type: ignore[attr-defined]

    async def reload(self, change: Callable[[str], str]) -> None:
        """Another configuration, in the running server."""
        self.running.rewrite(change)
        self.running.signal(signal.SIGHUP)


async def _oversized(scene: Scene) -> None:
    for nc in scene.connections():
        await nc.publish("x", b"x" * nc.max_payload, headers={"a": "header"})


async def _password(scene: Scene) -> None:
    scene.options["now"][0] = "two"
    await scene.reload(lambda text: text.replace("password: one", "password: two"))


async def _removed(scene: Scene) -> None:
    await scene.reload(lambda text: text.replace("user: u,", "user: nobody,"))
    await _all_refused(scene)
    await scene.reload(lambda text: text.replace("user: nobody,", "user: u,"))


async def _too_many(scene: Scene) -> None:
    await scene.reload(lambda text: text + "max_connections: 1\n")
    await eventually(lambda: sum(not nc.is_connected for nc in scene.connections()) >= len(scene.managers) - 1)
    await scene.reload(lambda text: text.replace("max_connections: 1\n", ""))


async def _expired(scene: Scene) -> None:
    """The file is replaced only after the time of the old credentials was over."""
    await _all_refused(scene)
    scene.options["operator"].user(scene.options["file"], lives=None)


async def _all_refused(scene: Scene) -> None:
    seen = scene.options["first"]
    await eventually(lambda: not any(nc.is_connected for nc in seen), what="the server ends all connections")


CAUSES: dict[str, tuple[str, Callable[[Scene], Awaitable[None]]]] = {
    "oversized publish": (JETSTREAM, _oversized),
    "password changed": (PASSWORD, _password),
    "user removed for a while": (PASSWORD, _removed),
    "max_connections": (JETSTREAM, _too_many),
    "JWT expired": ("operator", _expired),
}


def _credentials(scene: Scene, kind: str, operator: Operator) -> dict[str, Any]:
    """Options of ``connect`` for this server."""
    if kind == PASSWORD:
        now = scene.options["now"] = ["one"]
        return {"user": "u", "password": lambda: now[0]}
    if kind == "operator":
        file = scene.options["file"] = operator.user(scene.folder / "user.creds", lives=4)
        scene.options["operator"] = operator
        return {"user_credentials": str(file)}
    return {}


@pytest.mark.parametrize("cause", CAUSES)
async def test_a_connection_of_its_own_that_dies_for_good_is_replaced_unnoticed(
    tmp_path: Path, config: Config, row: Row, cause: str, long: bool
) -> None:
    """The owner goes on, viewers go on, nothing is lost or doubled; rotated credentials are read again."""
    kind, kill = CAUSES[cause]
    operator = Operator()
    with server(tmp_path, operator.config if kind == "operator" else kind) as running:
        scene = Scene(running, tmp_path)
        options = _credentials(scene, kind, operator)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                opened = natsjobs.connect(running.url, config=config, **options)
                scene.managers.append(await stack.enter_async_context(opened))
            owner, other = scene.managers
            producer = Producer(owner)
            viewers = [Follower(other, row), Follower(other, row), Follower(owner, row)]
            for _ in range(5 if long and kind == JETSTREAM else 1):
                await eventually(lambda: all(viewer.got for viewer in viewers))
                scene.options["first"] = scene.connections()
                await kill(scene)
                row.fault(cause)
                await eventually(lambda: all(nc.is_connected for nc in scene.connections()))
                assert not producer.task.done()
                after = producer.sent
                for viewer in viewers:
                    await eventually(lambda viewer=viewer, after=after: viewer.got[-1] > after + 20)
            late = Follower(other, row)
            producer.done.set()
            await soon(producer.task)
            for viewer in [*viewers, late]:
                await soon(viewer.task)
                row.viewer(range(producer.sent), viewer.got)
                assert viewer.end is not None
                assert (viewer.end.type, viewer.end.index) == ("done", producer.sent)
            row.emitted = row.acknowledged = producer.sent
            row.whole()
            dead = [nc for nc in scene.options["first"] if nc.is_closed]
            assert dead or cause == "user removed for a while", "nats-py closed it for good"
            assert not set(map(id, dead)) & set(map(id, scene.connections()))
            row.notes["replaced"] = len(dead)


# -- given connections ------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def given(running: Server, config: Config, **options: Any) -> AsyncIterator[tuple[Any, natsjobs.JobManager]]:
    """A connection that the test has opened, and a manager on it."""
    nc = await nats.connect(running.url, error_cb=quiet, max_reconnect_attempts=-1, **options)
    async with natsjobs.connect(nc=nc, config=config) as jobs:
        yield nc, jobs
    await nc.close()


async def _told(call: Callable[[], Awaitable[Any]], row: Row, why: str) -> None:
    """A call gives the error that says it, in bounded time."""
    started = time.monotonic()
    with pytest.raises(ConnectionLostError, match=why) as told:
        await soon(call())
    took = time.monotonic() - started
    assert took < SOON
    row.stalled(took)
    assert "natsjobs may not replace it" in str(told.value)


@pytest.mark.parametrize(
    ("cause", "why"), [("oversized", "(?i)payload"), ("expired", "(?i)expired"), ("closed", "somebody closed it")]
)
async def test_a_given_connection_that_dies_for_good_is_told_by_every_call_and_reader(
    tmp_path: Path, config: Config, row: Row, caplog: pytest.LogCaptureFixture, cause: str, why: str
) -> None:
    """Nobody hangs: readers, waiting readers, bodies and new calls get ConnectionLostError; others end the job."""
    operator = Operator()
    text = operator.config if cause == "expired" else JETSTREAM
    with server(tmp_path, text) as running:
        lives = operator.user(tmp_path / "short.creds", lives=4) if cause == "expired" else None
        options = {} if lives is None else {"user_credentials": str(lives)}
        kept = {} if lives is None else {"user_credentials": str(operator.user(tmp_path / "long.creds", lives=None))}
        async with (
            natsjobs.connect(running.url, config=config, **kept) as judge,
            given(running, config, **options) as (
                nc,
                jobs,
            ),
        ):
            elsewhere = Follower(judge, row)
            producer = Producer(jobs)
            heard = Heard()
            await heard.attach(jobs.transport, "s")
            viewers = [Follower(jobs, row), Follower(jobs, row)]
            waiting = asyncio.create_task(_enter(jobs, "not there yet"))
            await eventually(lambda: all(len(viewer.got) > 20 for viewer in [*viewers, elsewhere]) and heard.chunks)
            if cause == "oversized":
                await nc.publish("x", b"x" * nc.max_payload, headers={"a": "header"})
            elif cause == "closed":
                await nc.close()
            row.fault(f"given connection {cause}")
            await eventually(lambda: nc.is_closed)
            died = time.monotonic()
            for task in [producer.task, waiting, *(viewer.task for viewer in viewers)]:
                with pytest.raises(ConnectionLostError, match=why):
                    await soon(task)
                row.detected.append(time.monotonic() - died)
            assert max(row.detected) < SOON
            for viewer in viewers:
                assert viewer.got == list(range(len(viewer.got))), "what it got is whole"
            for call in (
                lambda: jobs.get("s"),
                lambda: jobs.list_jobs(),
                lambda: jobs.abort("s"),
                lambda: jobs.resume_state("s"),
                lambda: jobs.claim_usage("s"),
                lambda: jobs.active("alice"),
                lambda: jobs.store.check(),
                lambda: jobs.store.cleanup(),
                lambda: _enter(jobs, "s"),
                lambda: _start(jobs),
                lambda: jobs.transport.subscribe("t", on_chunk=print),
                lambda: jobs.count_subscribers("s"),
            ):
                await _told(call, row, why)
            messages = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
            assert any("natsjobs may not replace it" in message for message in messages)
            assert any("its handlers hear nothing more" in message for message in messages)
            await soon(elsewhere.task)
            assert elsewhere.end is not None
            assert elsewhere.end.end_reason == "owner_lost"
            assert elsewhere.end.index >= max(len(viewer.got) for viewer in viewers)
            row.viewer(range(elsewhere.end.index), elsewhere.got)
            row.whole()
            left = time.monotonic()
        assert time.monotonic() - left < SOON
        with pytest.raises(NotOpenError):
            await jobs.get("s")


async def _enter(jobs: natsjobs.JobManager, stream_id: str) -> None:
    async with jobs.subscribe(stream_id, wait=60):
        pass


async def _start(jobs: natsjobs.JobManager) -> None:
    async with jobs.start("t", user_id="alice"):
        pass


async def test_a_given_connection_that_is_closed_already_is_refused_at_once(
    newest_server: str, config: Config, row: Row
) -> None:
    """Entering says what to do, and leaves nothing behind."""
    nc = await nats.connect(newest_server)
    await nc.close()
    with pytest.raises(ConnectionLostError, match="before it was used"):
        async with natsjobs.connect(nc=nc, config=config):
            pytest.fail("entered")
    row.fault("closed before")
