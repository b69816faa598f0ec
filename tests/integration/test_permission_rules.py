"""Every rule of ``deploy/nats/accounts.conf`` is needed: each role does all it does, once per rule without it.

The programs below do everything that a role is for, against a counterpart that may do everything. With all rules
nothing fails and the server refuses nothing. Without one rule something must break: an operation fails, or the server
refuses something that was sent without waiting for an answer (what that costs is time: presence that heals late, an
end that is seen at the next look). The short form takes a few rules by chance (``--seed``), ``--long`` takes all.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import guarded
import pytest
from backends import GuardedBackend, Replica
from fault_table import Row
from guarded import NAMESPACE, GuardedServer, guarded_server
from nats.aio.client import Client
from waiting import Calls, Heard, check_whole, emit_stored, read_all, take

from natsjobs.jetstream import link_for

EVENTS, RECORDS = f"{NAMESPACE}_events", f"KV_{NAMESPACE}_jobs"
SHORT = 4


async def serve_and_view(me: Replica, other: Replica) -> None:
    """What workers and gateways both do: view, count, signal, stop, sweep, and answer the questions of others."""
    heard, left = Heard(), Calls()
    await heard.attach(me.transport, "later")  # an id that has no job yet
    await me.transport.on_all_subscribers_left("shown", left)
    await other.store.create_job("later", "u")
    await emit_stored(other.transport, "later", "one")
    await heard.until(1)
    # presence, asked for and asking
    await other.store.create_job("shown", "u")
    async with other.manager.subscribe("shown"):
        assert await me.transport.count_subscribers("shown") == 1
        async with me.manager.subscribe("shown"):
            assert await other.transport.count_subscribers("shown") == 2
    await left.until(1)
    # signals, both ways
    calls, stopped = Calls(), Calls()
    await me.transport.on_abort("later", calls)
    await other.transport.emit_abort("later")
    await calls.until(1)
    await other.transport.on_abort("shown", stopped)
    assert await me.transport.emit_abort("shown")
    # the end of a job, by its owner and over its head
    await other.store.record_usage("shown", {"output_tokens": 1})
    result = await me.manager.abort("shown")
    assert result.success
    assert result.acknowledged
    assert len(result.collected_usage) == 1
    assert await me.store.update_job("later", metadata={"seen": True})
    context = me.store.replica.context
    await context.link.bus.publish(context.subjects.wake("later"), b"{}")
    ended = Calls()
    await me.transport.on_end("later", ended)
    await me.transport.emit_error("later", "over")
    await ended.until(1)
    check_whole(await read_all(me.manager.subscribe, "later"), ["one"])
    assert [job.stream_id for job in await me.manager.list_jobs(status="error")] == ["later"]
    await me.store.cleanup()


async def worker(backend: GuardedBackend) -> None:
    """All that a worker does."""
    me, other = await backend.replica(), await backend.replica(role="admin")
    await serve_and_view(me, other)
    async with me.manager.start("s", user_id="u", conversation_id="c") as run:
        async with other.manager.subscribe("s") as events:
            for number in range(3):
                await run.emit(number)
            await take(events, 3)
        await run.save_run_steps([{"id": "a"}])
        await run.record_usage({"output_tokens": 3})
        await run.complete("bye")
    assert len(await run.claim_usage()) == 1
    assert (await other.manager.get("s")).status == "complete"
    assert await me.store.delete_job("s")
    assert await other.manager.get("s") is None
    # is this replica alive? the answer to a ping
    answer = await other.store.replica.liveness.missing_runs(me.store.replica.context.replica_id, [])
    assert answer == []


async def gateway(backend: GuardedBackend) -> None:
    """All that a gateway does."""
    me, other = await backend.replica(role="gateway"), await backend.replica(role="admin")
    await serve_and_view(me, other)
    answer = await other.store.replica.liveness.missing_runs(me.store.replica.context.replica_id, [])
    assert answer == []


async def operator(backend: GuardedBackend) -> None:
    """What the ``nats`` command and ours do for an operator."""
    other = await backend.replica(role="admin")
    nc = await backend.connection("operator")
    try:
        await _nats_commands(nc, other)
    finally:
        await nc.close()
    me = await backend.replica(role="operator")  # `natsjobs ls`, `show`, `tail` and `abort`
    await other.store.create_job("mine", "u")
    assert [job.stream_id for job in await me.manager.list_jobs()] == ["mine", "s"]
    async with me.manager.subscribe("mine"):
        assert await other.transport.count_subscribers("mine") == 1
    assert await me.transport.count_subscribers("mine") == 0
    assert (await me.manager.abort("mine")).acknowledged
    await me.transport.emit_abort("s")


async def _nats_commands(nc: Client, other: Replica) -> None:
    seen: dict[str, int] = {}

    async def note(msg: Any) -> None:
        seen[msg.subject] = seen.get(msg.subject, 0) + 1

    for subject in (f"{NAMESPACE}.>", f"$KV.{NAMESPACE}_jobs.>", "$JS.EVENT.>"):
        await nc.subscribe(subject, cb=note)
    await nc.flush()
    await other.store.create_job("s", "u")
    for _ in range(3):
        await other.store.append_chunk("s", "x" * 900_000)
    js = nc.jetstream()
    names = [info.config.name for info in await js.streams_info()]
    assert {EVENTS, RECORDS} <= set(names)
    await js.get_last_msg(EVENTS, f"{NAMESPACE}.events.s.*.log")
    # `stream view`: a pull consumer with acks; `kv watch`: an ordered push consumer, beyond what flow control lets by
    pull = await js.pull_subscribe(f"{NAMESPACE}.events.>", durable="pager", stream=EVENTS)
    for msg in await pull.fetch(2, timeout=3):
        await msg.ack_sync(timeout=3)
    await js.delete_consumer(EVENTS, "pager")
    ordered = await js.subscribe(f"{NAMESPACE}.events.>", stream=EVENTS, ordered_consumer=True)
    for _ in range(4):
        await ordered.next_msg(timeout=3)
    await ordered.unsubscribe()
    kv = await js.key_value(f"{NAMESPACE}_jobs")
    await kv.put("note.operator", b"{}")
    assert any(subject.startswith(f"{NAMESPACE}.live.s.") for subject in seen)
    assert f"$KV.{NAMESPACE}_jobs.job.s" in seen
    owner = other.store.replica.context.replica_id
    await nc.request(f"{NAMESPACE}.owner.{owner}", b'{"op":"ping"}', timeout=3)


async def setup(backend: GuardedBackend) -> None:
    """``natsjobs setup`` in an empty account."""
    nc = await backend.connection("setup")
    link = link_for(nc, backend.config())
    try:
        await link.open()
        await link.close()
    finally:
        await nc.close()
    assert {EVENTS, RECORDS} <= set((await backend.api("STREAM.NAMES"))["streams"])


PROGRAMS: dict[str, Callable[[GuardedBackend], Awaitable[None]]] = {
    "worker": worker,
    "gateway": gateway,
    "operator": operator,
    "setup": setup,
}
NOT_PROVABLE = {
    ("operator", "publish", "$JS.ACK.>"),
    ("operator", "publish", "$JS.FC.>"),
    # The application's: tests/deploy/test_stack.py hands out work by it.
    ("worker", "publish", "app.>"),
    ("worker", "subscribe", "app.>"),
}
"""Hidden by ``allow_responses``, which lets a client answer what it was sent, once and for a minute. A person pages
through a stream for longer, and flow control is answered late by a slow terminal."""


@asynccontextmanager
async def backend_on(server: GuardedServer) -> AsyncIterator[GuardedBackend]:
    """A namespace on the server, emptied afterwards whatever happened."""
    backend = GuardedBackend("guarded", server.url)
    try:
        yield backend
    finally:
        for replica in reversed(backend.replicas):
            try:
                await replica.close()
            except Exception as error:  # noqa: BLE001 - what it may not do may be to leave
                backend.errors.append(str(error))
            await replica.nc.close()  # type: ignore[attr-defined]
        for name in (EVENTS, RECORDS):
            await backend.api(f"STREAM.DELETE.{name}")
        await (await backend.admin()).close()


async def what_breaks(server: GuardedServer, role: str) -> str:
    """Run a role's program; what went wrong, ``""``: nothing."""
    found = ""
    async with backend_on(server) as backend:
        try:
            if role != "setup":  # which does that itself
                await backend.prepare()
            async with asyncio.timeout(12):
                await PROGRAMS[role](backend)
        except Exception as error:  # noqa: BLE001 - anything that a missing rule makes of it
            found = f"failed: {type(error).__name__}: {error}"[:200]
    refused = [text for text in backend.errors if "permissions violation" in text]
    return found or (f"refused: {refused[0]}" if refused else "")


@pytest.mark.parametrize("role", guarded.ROLES)
async def test_with_all_rules_a_role_does_all_it_is_for_and_nothing_is_refused(role: str) -> None:
    """The programs work; so what breaks below breaks for want of the rule."""
    with guarded_server() as server:
        assert await what_breaks(server, role) == ""


async def test_without_any_one_rule_something_breaks(row: Row, seed: int, long: bool) -> None:
    """Each rule is there for something that stops working without it."""
    every = [rule for rule in guarded.rules() if rule not in NOT_PROVABLE]
    chosen = every if long else random.Random(seed).sample(every, SHORT)
    needless, only_refused = [], []
    with guarded_server() as server:
        for rule in chosen:
            server.stop()
            server.accounts(guarded.without(*rule))
            server.start()
            what = await what_breaks(server, rule[0])
            row.fault("rule taken out")
            if not what:
                needless.append(rule)
            elif what.startswith("refused"):
                only_refused.append(" ".join(rule))
    row.notes = {"rules": len(every), "only_refused": len(only_refused)}
    if long:
        print("only refused, nothing failed:", json.dumps(only_refused, indent=1))
    assert needless == []
