"""NATS cannot be reached at all: every public call returns in bounded time, and says what is wrong (pitfalls 1.15)."""

from __future__ import annotations

import asyncio
import inspect
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from fault_table import Row
from nodes import Node
from waiting import Calls

import natsjobs
from natsjobs import JobManager, JobRun, NatsJobsError, UnavailableError

STORE: dict[str, Callable[[Any], Any]] = {
    "initialize": lambda it: it.initialize(),
    "check": lambda it: it.check(),
    "create_job": lambda it: it.create_job("new", "alice"),
    "get_job": lambda it: it.get_job("s"),
    "has_job": lambda it: it.has_job("s"),
    "update_job": lambda it: it.update_job("s", sender="x"),
    "delete_job": lambda it: it.delete_job("t"),
    "list_jobs": lambda it: it.list_jobs(),
    "get_running_jobs": lambda it: it.get_running_jobs(),
    "get_active_job_ids_by_user": lambda it: it.get_active_job_ids_by_user("alice"),
    "get_job_count": lambda it: it.get_job_count(),
    "get_job_count_by_status": lambda it: it.get_job_count_by_status("running"),
    "cleanup": lambda it: it.cleanup(),
    "get_content_parts": lambda it: it.get_content_parts("s"),
    "get_run_steps": lambda it: it.get_run_steps("s"),
    "save_run_steps": lambda it: it.save_run_steps("s", [{"id": "1"}]),
    "get_resume_state": lambda it: it.get_resume_state("s"),
    "append_chunk": lambda it: it.append_chunk("s", 1),
    "clear_content_state": lambda it: it.clear_content_state("s"),
    "get_collected_usage": lambda it: it.get_collected_usage("s"),
    "record_usage": lambda it: it.record_usage("s", {"input_tokens": 1}),
    "claim_usage": lambda it: it.claim_usage("s"),
    "abort_job": lambda it: it.abort_job("t"),
}
TRANSPORT: dict[str, Callable[[Any], Any]] = {
    "subscribe": lambda it: it.subscribe("s", on_chunk=Calls()),
    "emit_chunk": lambda it: it.emit_chunk("other", 1),
    "flush": lambda it: it.flush("queued"),
    "emit_done": lambda it: it.emit_done("t", None),
    "emit_error": lambda it: it.emit_error("t", "x"),
    "emit_abort": lambda it: it.emit_abort("s"),
    "on_abort": lambda it: it.on_abort("s", Calls()),
    "on_end": lambda it: it.on_end("other", Calls()),
    "count_subscribers": lambda it: it.count_subscribers("s"),
    "count_events": lambda it: it.count_events("s"),
    "on_all_subscribers_left": lambda it: it.on_all_subscribers_left("s", Calls()),
    "cleanup": lambda it: it.cleanup("s"),
}
MANAGER: dict[str, Callable[[Any], Any]] = {
    "start": lambda it: entered(it.start("new2", user_id="alice")),
    "spawn": lambda it: it.spawn("new3", lambda run: run.wait_aborted(), user_id="alice"),
    "subscribe": lambda it: entered(it.subscribe("s")),
    "abort": lambda it: it.abort("t"),
    "claim_usage": lambda it: it.claim_usage("s"),
    "resume_state": lambda it: it.resume_state("s"),
    "get": lambda it: it.get("s"),
    "list_jobs": lambda it: it.list_jobs(),
    "active": lambda it: it.active("alice"),
    "count_subscribers": lambda it: it.count_subscribers("s"),
    "count_events": lambda it: it.count_events("s"),
}
RUN: dict[str, Callable[[Any], Any]] = {
    "flush": lambda it: it.flush(),
    "record_usage": lambda it: it.record_usage({"input_tokens": 1}),
    "claim_usage": lambda it: it.claim_usage(),
    "save_run_steps": lambda it: it.save_run_steps([{"id": "1"}]),
    "update": lambda it: it.update(sender="x"),
}
ENDS: dict[str, Callable[[Any], Any]] = {"complete": lambda it: it.complete("x"), "fail": lambda it: it.fail("x")}
NEED_NOBODY = {"store.initialize", "transport.cleanup", "transport.on_abort", "manager.drain", "leaving connect"}
"""What says nothing: open already, local (a run's aborts are listened for since it began), or a way out, which logs
what it could not store."""
WAITS_ON_PURPOSE = {"emit", "wait_aborted"}
"""``emit`` queues, and waits only for room; ``wait_aborted`` waits for an abort."""

GIVE_UP = 2.0
BOUND = 3 * GIVE_UP + 2
"""Seconds: a call may read, write and register one after the other, and this machine may be slow."""


async def entered(block: Any) -> None:
    """Enter and leave a block."""
    async with block:
        pass


def coroutines(kind: type) -> set[str]:
    """The public methods of a class that can touch the network."""
    found = {name for name, member in inspect.getmembers(kind) if inspect.iscoroutinefunction(member)}
    return {name for name in found if not name.startswith("_")}


def test_no_public_call_is_left_out():
    """A new coroutine needs its line in the lists above."""
    assert coroutines(natsjobs.JobStore) == STORE.keys() | {"end_job", "destroy"}
    assert coroutines(natsjobs.EventTransport) == TRANSPORT.keys() | {"destroy"}
    assert coroutines(JobManager) | {"start", "subscribe"} == MANAGER.keys() | {"drain"}
    assert coroutines(JobRun) == RUN.keys() | ENDS.keys() | WAITS_ON_PURPOSE


class Calling:
    """Calls, each with the time it took and what came of it."""

    def __init__(self) -> None:
        self.took: dict[str, float] = {}
        self.outcomes: dict[str, Any] = {}

    async def one(self, name: str, call: Callable[[Any], Any], part: Any) -> None:
        """One call; it may fail."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(30):
                self.outcomes[name] = await call(part)
        except (NatsJobsError, TimeoutError) as error:
            self.outcomes[name] = error
        self.took[name] = time.monotonic() - began

    async def all_at_once(self, parts: dict[str, tuple[dict[str, Callable[[Any], Any]], Any]]) -> None:
        """The calls of several tables."""
        async with asyncio.TaskGroup() as group:
            for what, (calls, part) in parts.items():
                for name, call in calls.items():
                    group.create_task(self.one(f"{what}.{name}", call, part))

    def check(self, row: Row) -> None:
        """None took long; all said what is wrong, but those that need nobody."""
        row.stalled(max(self.took.values()))
        row.notes |= {"calls": len(self.took), "slowest": max(self.took, key=lambda name: self.took[name])}
        assert max(self.took.values()) < BOUND, row
        quiet = {name for name, outcome in self.outcomes.items() if not isinstance(outcome, UnavailableError)}
        assert quiet == NEED_NOBODY, {name: self.outcomes[name] for name in quiet ^ NEED_NOBODY}
        for name in self.outcomes.keys() - quiet:
            assert re.search("NATS|no answer", str(self.outcomes[name])), (name, self.outcomes[name])


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_every_call_returns_in_bounded_time_with_a_clear_error(node: Node, row: Row, how: str):
    """A server that is gone, and one that takes everything and answers nothing; when it is back, life goes on."""
    space = node.space
    space.timing = {"lease": 6.0, "renew": 2.0, "request": 1.0, "abort": 0.5, "give_up": GIVE_UP}
    calling = Calling()
    async with space.replica() as there:
        await there.store.create_job("other", "alice")
        here = space.replica()
        jobs = await here.__aenter__()
        for name in ("s", "t", "queued"):
            await jobs.store.create_job(name, "alice")
            await jobs.store.append_chunk(name, 1)
        generation = (await jobs.get("t")).generation
        blocks = {name: jobs.start(f"run-{name}", user_id="alice") for name in (*RUN, *ENDS)}
        runs = {name: await block.__aenter__() for name, block in blocks.items()}
        node.kill() if how == "killed" else node.signal(signal.SIGSTOP)
        row.fault(f"NATS {how}")
        await jobs.transport.emit_chunk("queued", 2)
        for run in runs.values():
            await run.emit("queued, so not lost")
        ends = {"end_job": lambda it: it.end_job("t", generation=generation, status="complete")}
        tables = {
            "store": (STORE | ends, jobs.store),
            "transport": (TRANSPORT, jobs.transport),
            "manager": (MANAGER, jobs),
        }
        own = {f"run {name}": ({name: call}, runs[name]) for name, call in (RUN | ENDS).items()}
        await calling.all_at_once(tables | own)
        for name, block in blocks.items():
            await calling.one(f"leaving run {name}", lambda it: it.__aexit__(None, None, None), block)
        await calling.one("manager.drain", lambda it: it.drain(0), jobs)
        await calling.one("leaving connect", lambda it: it.__aexit__(None, None, None), here)
        node.launch() if how == "killed" else node.signal(signal.SIGCONT)
        calling.check(row)
        job = await there.get("other")
        assert job is not None
        assert job.status == "running"
