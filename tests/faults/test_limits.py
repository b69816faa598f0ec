"""Limits of the server hit on purpose: typed errors, nothing torn or lost, and all is well when the limit is lifted."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from backends import FAST, NatsBackend
from fault_table import Row
from jetstream_kit import Server, server
from waiting import check_whole, eventually, read_all, soon, values

import natsjobs
from natsjobs import (
    Config,
    EventTooLargeError,
    JobManager,
    StreamEvent,
    StreamFullError,
    UnavailableError,
    UnsupportedServerError,
)
from natsjobs.config import Limits, Timing

KIB = 1024
FULL = "x" * 8 * KIB


def settings(**plain: Any) -> Config:
    """Short timings; the servers here have one namespace each."""
    timing, limits = plain.pop("timing", {}), plain.pop("limits", {})
    return Config(**{"namespace": "limits", **plain}, timing=Timing(**{**FAST, **timing}), limits=Limits(**limits))


async def outcome(call: Awaitable[Any]) -> Exception | None:
    """What a call raises that must neither hang nor raise anything untyped."""
    try:
        await soon(call, within=30)
    except natsjobs.NatsJobsError as error:
        return error
    return None


# -- max_bytes --------------------------------------------------------------------------------------------------------


async def _produce(jobs: JobManager, stream_id: str, sent: list[Any]) -> StreamFullError:
    """One run at full speed until it is refused; ``sent`` is what was acknowledged."""

    async def body() -> None:
        async with jobs.start(stream_id, user_id="alice") as run:
            while True:
                group = [f"{len(sent) + n} {FULL}" for n in range(5)]
                for event in group:
                    await run.emit(event)
                await run.flush()
                sent.extend(group)

    with pytest.raises(StreamFullError) as full:
        await soon(body(), within=60)
    return full.value


async def test_many_writers_at_full_speed_leave_room_for_every_end(newest_server: str, row: Row, long: bool) -> None:
    """Four replicas with three runs each fill a stream: the server refuses nothing, and every run ends in the log."""
    limit = (256 if long else 16) * KIB * KIB
    async with NatsBackend("nats", newest_server) as backend:
        replicas = [await backend.replica() for _ in range(4)]
        await backend.limit(limit)
        sent: dict[str, list[Any]] = {f"s{n}": [] for n in range(12)}
        began = time.monotonic()
        refusals = await asyncio.gather(*(_produce(replicas[n % 4].manager, f"s{n}", sent[f"s{n}"]) for n in range(12)))
        took = time.monotonic() - began
        row.fault("stream at 90 %")
        held = await backend.held()
        row.notes |= {
            "max_bytes": limit,
            "held": held,
            "full": f"{held / limit:.1%}",
            "MB/s": f"{held / took / 1e6:.0f}",
        }
        assert all(refusal.limit == limit for refusal in refusals), "refused by the server, not before it"
        assert 0.8 * limit < held < limit
        row.emitted = row.acknowledged = sum(map(len, sent.values()))
        for stream_id, events in sent.items():
            seen = await read_all(replicas[1].manager.subscribe, stream_id, within=60)
            # What was on its way when the first was refused may be stored too, in order behind the acknowledged.
            assert values(seen)[: len(events)] == events
            row.viewer(events, values(seen)[: len(events)])
            assert [event.type for event in seen if event.is_terminal] == ["error"]
            assert "max_bytes" in seen[-1].data
        row.whole()
        assert await replicas[2].manager.active("alice") == []


async def _stuff(backend: NatsBackend) -> None:
    """Fill the stream to its last byte, as code that knows no headroom does."""
    nc = await backend.admin()
    for size in (4096, 256, 1):
        while b"error" not in (await nc.request(backend.subjects.log("filler", "x"), b"x" * size, timeout=10)).data:
            pass


async def test_a_stream_that_others_fill_to_the_brim(newest_server: str, row: Row) -> None:
    """Every end is refused with a typed error, kept, and stored once there is room; no create ends its predecessor."""
    ways = ("complete", "fail", "abort", "delete", "replace", "reap", "go on")
    async with NatsBackend("nats", newest_server) as backend:
        owner, other = await backend.replica(), await backend.replica()
        doomed = await backend.replica()
        await backend.limit(256 * KIB)
        for name in ways:
            store = (doomed if name == "reap" else owner).store
            await store.create_job(name, "alice")
            for n in range(5):
                await store.append_chunk(name, n)
        await _stuff(backend)
        row.fault("stream at 100 %")
        refused = {
            "complete": await outcome(owner.store.update_job("complete", status="complete", final_event='"done"')),
            "fail": await outcome(owner.transport.emit_error("fail", "broke")),
            "abort": await outcome(other.manager.abort("abort")),
            "delete": await outcome(other.store.delete_job("delete")),
            "replace": await outcome(other.store.create_job("replace", "bob")),
            "go on": await outcome(owner.store.append_chunk("go on", "x" * 20 * KIB)),
        }
        assert all(isinstance(error, StreamFullError) for error in refused.values()), refused
        await doomed.kill()
        killed = time.monotonic()
        row.fault("SIGKILL owner")
        await asyncio.sleep(FAST["lease"] + 1)  # what must not happen meanwhile has no event to wait for
        running = {job.stream_id for job in await other.store.get_running_jobs()}
        assert running == set(ways)
        await backend.limit(512 * KIB)
        expected = {"complete": "complete", "fail": "error", "abort": "aborted", "delete": "aborted", "reap": "error"}

        async def all_over() -> bool:
            jobs = {name: await other.manager.get(name) for name in expected}
            return all(job is None or job.status == expected[name] for name, job in jobs.items())

        await eventually(all_over, within=30)
        row.detected.append(time.monotonic() - killed)
        assert (await other.manager.get("replace")).user_id == "alice"
        assert (await other.manager.get("replace")).status == "running"
        # What was heard of last may be older than the room there is now; 5 is queued by the call that succeeds.
        await eventually(lambda: _goes_on(owner.store))
        await owner.store.update_job("go on", status="error", error="over")
        row.emitted = row.acknowledged = 0
        for name in (*expected, "go on"):
            seen = await read_all(other.manager.subscribe, name)
            sent = [*range(5), "x" * 20 * KIB, 5] if name == "go on" else [*range(5)]
            check_whole(seen, sent)
            row.viewer(sent, values(seen))
            row.emitted += len(sent)
            row.acknowledged += len(sent)
        row.whole()


async def _goes_on(store: Any) -> bool:
    return await outcome(store.append_chunk("go on", 5)) is None


# -- accounts ---------------------------------------------------------------------------------------------------------

ACCOUNT = """
jetstream: {store_dir: "$STORE"}
accounts: {APP: {jetstream: {max_file: 1500000}, users: [{user: app, password: pw}]}}
no_auth_user: app
"""


async def test_an_account_at_its_limit(tmp_path: Path, row: Row) -> None:
    """Storage of the account used up: typed, and the end is stored once an operator has raised the limit."""
    with server(tmp_path, ACCOUNT) as running:
        async with natsjobs.connect(running.url, config=settings()) as jobs:
            sent: list[Any] = []
            refused = await _produce(jobs, "s1", sent)
            row.fault("account at max_file")
            assert "account" in str(refused)
            assert not refused.outcome_unknown
            assert (await jobs.get("s1")).status in {"running", "error"}
            running.rewrite(lambda text: text.replace("1500000", "15000000"))
            running.signal(signal.SIGHUP)
            seen = await read_all(jobs.subscribe, "s1")
            assert values(seen)[: len(sent)] == sent
            assert seen[-1].type == "error"
            row.emitted = row.acknowledged = len(sent)
            row.viewer(sent, values(seen)[: len(sent)])
            row.whole()
            assert (await jobs.get("s1")).status == "error"
            async with jobs.start("s2", user_id="alice") as run:
                await run.emit("works")


async def test_an_account_that_demands_max_bytes(tmp_path: Path) -> None:
    """The error names the setting; with it stream and bucket are created with a limit, and an operator's is kept."""
    text = ACCOUNT.replace("max_file: 1500000", "max_file: 50000000, max_bytes_required: true")
    with server(tmp_path, text) as running:
        with pytest.raises(UnsupportedServerError, match="NATSJOBS_MAX_BYTES"):
            async with natsjobs.connect(running.url, config=settings()):
                pass
        for limit in (20_000_000, None, 30_000_000):
            async with natsjobs.connect(running.url, config=settings(max_bytes=limit)) as jobs:
                async with jobs.start("s1", user_id="alice") as run:
                    await run.emit("works")
                check_whole(await read_all(jobs.subscribe, "s1"), ["works"])
        nc = await nats.connect(running.url)
        js = nc.jetstream()
        assert (await js.stream_info("limits_events")).config.max_bytes == 20_000_000
        assert (await js.stream_info("KV_limits_jobs")).config.max_bytes == 2_000_000
        await nc.close()


# -- connections and subscriptions ------------------------------------------------------------------------------------


async def test_one_connection_too_many_is_refused(tmp_path: Path) -> None:
    """Typed, in time, with a hint at the limit (the server drops it without a word); it works when another has gone."""
    with server(tmp_path, 'max_connections: 1\njetstream: {store_dir: "$STORE"}\n') as running:
        async with natsjobs.connect(running.url, config=settings()):
            with pytest.raises(UnavailableError, match="max_connections"):
                await soon(_connects(running.url))
        await eventually(lambda: _connects_at_last(running.url))


async def _connects(url: str) -> bool:
    async with natsjobs.connect(url, config=settings()):
        return True


async def _connects_at_last(url: str) -> bool:
    try:
        return await _connects(url)
    except UnavailableError:
        return False


async def view(jobs: JobManager, stream_id: str, seen: list[StreamEvent]) -> None:
    """Read a job to its end."""
    async with jobs.subscribe(stream_id) as events:
        async for event in events:
            seen.append(event)  # noqa: PERF401 - others look on


async def test_one_subscription_too_many_is_refused_and_disturbs_nobody(tmp_path: Path, row: Row) -> None:
    """It would hear nothing: a typed error at once. The others lose nothing, and one that leaves makes room."""
    with server(tmp_path, 'max_subscriptions: 24\njetstream: {store_dir: "$STORE"}\n') as running:
        async with natsjobs.connect(running.url, config=settings()) as jobs:
            sent, heard = [], []
            async with jobs.start("s1", user_id="alice") as run:
                seen: list[StreamEvent] = []
                viewer = asyncio.create_task(view(jobs, "s1", seen))
                followers = []
                refused: list[Exception] = []
                while len(refused) < 3:
                    try:
                        followers.append(
                            await soon(jobs.transport.subscribe(f"f{len(followers)}", on_chunk=heard.append))
                        )
                        assert len(followers) < 24
                    except UnavailableError as error:
                        refused.append(error)
                    await run.emit(len(sent))
                    await run.flush()
                    sent.append(len(sent))
                row.fault("maximum subscriptions exceeded", len(refused))
                assert all("maximum subscriptions exceeded" in str(error) for error in refused), refused
                await followers.pop().unsubscribe()
                await followers.pop().unsubscribe()
                await eventually(lambda: len(seen) == len(sent))  # what follows s1 here is back behind the last break
                await soon(jobs.transport.subscribe("s1", on_chunk=heard.append))
                await run.emit("heard")
                sent.append("heard")
            await soon(viewer)
            row.emitted = row.acknowledged = len(sent)
            row.viewer(sent, values(seen))
            row.whole()
            check_whole(seen, sent)
            await eventually(lambda: heard == ["heard"])


# -- max_payload ------------------------------------------------------------------------------------------------------


async def test_a_max_payload_that_is_too_small_is_refused(tmp_path: Path) -> None:
    """Below 32 KiB a record with the longest ids does not surely fit; the error says what to raise, and to what."""
    with server(tmp_path, 'max_payload: 16384\njetstream: {store_dir: "$STORE"}\n') as running:
        refused = await outcome(_connects(running.url))
    assert isinstance(refused, UnsupportedServerError)
    assert all(word in str(refused) for word in ("max_payload", "16384", "32768"))


async def test_the_smallest_max_payload_is_enough_for_everything(tmp_path: Path, row: Row, seed: int) -> None:
    """Events, ends and errors of any size, long ids, content in an abort; a record that is too large is refused."""
    rng = random.Random(seed)
    with server(tmp_path, 'max_payload: 32768\njetstream: {store_dir: "$STORE"}\n') as running:
        async with (
            natsjobs.connect(running.url, config=settings()) as jobs,
            natsjobs.connect(running.url, config=settings()) as others,
        ):
            name, user = "é" * 128, "ü" * 128
            sent = [
                rng.choice(["x", '"', "\\", "é", "👋"]) * rng.choice([1, 100, 10_000, 29_000, 31_000, 33_000, 200_000])
                for _ in range(30)
            ]
            async with jobs.start(name, user_id=user, metadata={"pad": "m" * 10_000}) as run:
                with pytest.raises(EventTooLargeError) as large:
                    await run.update(metadata={"pad": "m" * 20_000})
                assert large.value.field == "metadata"
                with pytest.raises(EventTooLargeError):
                    await run.save_run_steps([{"id": "s", "text": "x" * 20_000}])
                with pytest.raises(EventTooLargeError):
                    await run.record_usage({"input_tokens": 1, "note": "x" * 20_000})
                for event in sent:
                    await run.emit(event)
                await run.complete({"text": "é" * 40_000})
            seen = await read_all(others.subscribe, name)
            check_whole(seen, sent)
            row.emitted = row.acknowledged = len(sent)
            row.viewer([*enumerate(sent)], [*enumerate(values(seen))])
            row.whole()
            assert seen[-1].data == {"text": "é" * 40_000}
            ended = await others.get(name)
            assert (ended.status, "é" * 40_000 in ended.final_event) == ("complete", True)
            with pytest.raises(RuntimeError):
                async with jobs.start("failed", user_id=user, metadata={"pad": "m" * 10_000}):
                    raise RuntimeError("é" * 100_000)
            assert (await others.get("failed")).error.startswith("ééé")
            job = await jobs.store.create_job("aborted", user)
            jobs.store.set_content_parts("aborted", [{"type": "text", "text": "t" * 60_000}])
            aborted = await others.abort("aborted", generation=job.generation, final_event="f" * 60_000)
            assert (aborted.success, aborted.acknowledged) == (True, True)
            assert (await read_all(jobs.subscribe, "aborted"))[-1].data == "f" * 60_000
            many = [f"{n:03d}{'i' * 253}" for n in range(130)]  # their owner is asked about all of them
            await asyncio.gather(*(jobs.store.create_job(one, "bob") for one in many))
            assert await others.store.cleanup() == 0
            assert {job.stream_id for job in await others.store.get_running_jobs()} == set(many)


@pytest.mark.parametrize("first", [100_000, 600_000], ids=["a group", "an event in pieces"])
async def test_a_max_payload_that_is_lowered_under_a_run(tmp_path: Path, row: Row, first: int) -> None:
    """The server closes the connection over what is too large now: it is made anew, and all goes in smaller pieces."""
    with server(tmp_path, 'max_payload: 262144\njetstream: {store_dir: "$STORE"}\n') as running:
        async with natsjobs.connect(running.url, config=settings(timing={"give_up": 30.0})) as jobs:
            sent = ["a" * 100_000]
            async with jobs.start("s1", user_id="alice") as run:
                await run.emit(sent[0])
                await run.flush()
                running.rewrite(lambda text: text.replace("262144", "40000"))
                running.signal(signal.SIGHUP)
                row.fault("max_payload lowered")
                sent += ["b" * first, *(f"{n}" + "c" * 9_000 for n in range(20)), "d" * 200_000]
                for event in sent[1:]:
                    await run.emit(event)
                await soon(run.flush(), within=40)
                await run.complete("e" * 60_000)
            seen = await read_all(jobs.subscribe, "s1")
            check_whole(seen, sent)
            assert seen[-1].data == "e" * 60_000
            row.emitted = row.acknowledged = len(sent)
            row.viewer(sent, values(seen))
            row.whole()


# -- the disk ---------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of its own of ``size`` bytes."""
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a small disk needs a mount, which only root can make")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small disk needs a mount: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_full_disk(tmp_path: Path, row: Row) -> None:
    """Typed within give_up; nothing acknowledged is lost, and the end is stored when there is space and a restart."""
    with small_disk(tmp_path / "disk", 4 * KIB * KIB) as disk:
        running = Server(tmp_path, f'jetstream: {{store_dir: "{disk}", max_file_store: 1GB}}\n')
        running.start()
        try:
            async with natsjobs.connect(running.url, config=settings(timing={"give_up": 3.0, "request": 2.0})) as jobs:
                ballast = disk / "ballast"
                ballast.write_bytes(b"x" * 2 * KIB * KIB)
                sent: list[Any] = []
                refused = await outcome(_fill_disk(jobs, sent))
                row.fault("disk full")
                assert isinstance(refused, UnavailableError)  # of 2.15: no acknowledgement; of 2.11: StreamFullError
                ballast.unlink()
                running.stop()
                running.start()
                row.fault("restart")
                seen = await read_all(jobs.subscribe, "s1", within=60)
                stored = values(seen)
                assert stored[: len(sent)] == sent
                assert len(stored) <= len(sent) + 1  # the one whose acknowledgement did not come
                assert [event.type for event in seen if event.is_terminal] == ["error"]
                row.emitted, row.acknowledged = len(sent) + 1, len(sent)
                row.viewer(sent, stored[: len(sent)])
                row.whole()
                await eventually(lambda: _is_over(jobs, "s1"))
                async with jobs.start("s2", user_id="alice") as run:
                    await run.emit("works")
        finally:
            running.stop()


async def _fill_disk(jobs: JobManager, sent: list[Any]) -> None:
    async with jobs.start("s1", user_id="alice") as run:
        while True:
            await run.emit(f"{len(sent)} {FULL}")
            await run.flush()
            sent.append(f"{len(sent)} {FULL}")


async def _is_over(jobs: JobManager, stream_id: str) -> bool:
    job = await jobs.get(stream_id)
    return job is not None and job.status.is_terminal


# -- our own limits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["queue_events", "queue_bytes"])
async def test_a_stalled_server_holds_the_producer_at_its_bound(tmp_path: Path, row: Row, kind: str) -> None:
    """While nothing is stored ``emit`` waits: the queue and one group under way are all that a run holds."""
    limits = {"queue_events": 50} if kind == "queue_events" else {"queue_bytes": 1_000_000}
    with server(tmp_path) as running:
        config = settings(limits=limits, timing={"give_up": 60.0})
        async with natsjobs.connect(running.url, config=config) as jobs:
            sent: list[Any] = []
            async with jobs.start("s1", user_id="alice") as run:
                await run.emit("first")
                await run.flush()
                running.signal(signal.SIGSTOP)
                row.fault("SIGSTOP server")
                producer = asyncio.create_task(_emit(run, sent, 400))
                count = -1
                while count != len(sent):  # until it stands still
                    count = len(sent)
                    await asyncio.sleep(0.5)
                held = not producer.done()
                running.signal(signal.SIGCONT)
                assert held
                row.notes |= {"waiting": count, "bytes": count * len(FULL)}
                if kind == "queue_events":
                    assert 50 <= count <= 50 + 262_144 // len(FULL)
                else:
                    assert 1_000_000 - len(FULL) <= count * (len(FULL) + 6) <= 1_000_000 + 262_144
                await soon(producer, within=40)
            seen = await read_all(jobs.subscribe, "s1")
            check_whole(seen, ["first", *sent])
            row.emitted = row.acknowledged = len(sent) + 1
            row.viewer(["first", *sent], values(seen))
            row.whole()


async def _emit(run: natsjobs.JobRun, sent: list[Any], count: int) -> None:
    for n in range(count):
        await run.emit(f"{n} {FULL}")
        sent.append(f"{n} {FULL}")
