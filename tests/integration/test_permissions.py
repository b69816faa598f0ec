"""What each user of ``deploy/nats`` cannot do, and that the shipped files are what nats-server takes.

That they can do what they must is the contract suite's business: it runs under these files. That each single rule is
needed is shown in ``test_permission_rules.py``.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import guarded
import nats
import pytest
from backends import GuardedBackend
from guarded import NAMESPACE, OTHER, SHIPPED, GuardedServer, guarded_server
from listening import free_port
from nats.aio.client import Client
from versions import OLDEST, server_binary
from waiting import Heard, check_whole, eventually, read_all, soon, take, values

import natsjobs
from natsjobs import EndReason, NatsJobsError, PermissionDeniedError, UnsupportedServerError
from natsjobs.embedded import find_binary
from natsjobs.engine.terminals import End

EVENTS, RECORDS = f"{NAMESPACE}_events", f"KV_{NAMESPACE}_jobs"
FORGED = b'{"type":"events","index":1,"writer":"me","events":["forged"]}'


@pytest.fixture
async def backend(permissions_server: str) -> AsyncIterator[GuardedBackend]:
    """The shipped namespace on a server with the shipped permissions."""
    backend = GuardedBackend("guarded", permissions_server)
    await backend.prepare()
    try:
        yield backend
    finally:
        await backend.close()


class User:
    """A raw connection as one user, which writes down what the server refuses."""

    def __init__(self, nc: Client, violations: list[str]) -> None:
        self.nc = nc
        self.violations = violations

    async def may_publish(self, subject: str, body: bytes = b"", reply: str = "", **headers: str) -> bool:
        """Publish; whether the server let it through."""
        await self.nc.publish(subject, body, reply=reply, headers=headers or None)
        return not await self._refused(subject)

    async def may_subscribe(self, subject: str) -> bool:
        """Subscribe; whether the server let it."""
        subscription = await self.nc.subscribe(subject)
        refused = await self._refused(subject)
        if not refused:
            await subscription.unsubscribe()
        return not refused

    async def _refused(self, subject: str) -> bool:
        await settled(self.nc)  # what the server says to what was sent before comes before its answer to this
        return any(f'"{subject.lower()}"' in text for text in self.violations)


@pytest.fixture
async def user(backend: GuardedBackend) -> AsyncIterator[Any]:
    """Call it with a user's name: a raw connection."""
    opened: list[Client] = []

    async def make(name: str) -> User:
        violations: list[str] = []

        async def note(error: Exception) -> None:
            violations.append(str(error))

        opened.append(await nats.connect(backend.url, error_cb=note, **guarded.login(name)))
        return User(opened[-1], violations)

    yield make
    for nc in opened:
        await nc.close()


async def settled(nc: Client) -> None:
    """Wait until the server has answered all that was sent; no role may publish to its inbox, as ``known`` does."""
    async with asyncio.timeout(20):
        while nc.pending_data_size:  # else nats-py writes its PING ahead of it
            await asyncio.sleep(0)
        await nc.flush()


# -- the files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["newest", "oldest"])
@pytest.mark.parametrize("main", ["single.conf", "cluster.conf"])
def test_the_server_takes_the_files_with_the_example_environment(main: str, version: str) -> None:
    """``nats-server -t``; and a variable that is not set is an error that names it."""
    binary = find_binary() if version == "newest" else server_binary(OLDEST)
    example = dict(re.findall(r"^(\w+)=(.*)$", guarded.shipped("example.env"), re.MULTILINE))

    def check(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command = [str(binary), "-t", "-c", str(SHIPPED / main)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)

    assert check(example).returncode == 0, check(example).stderr
    missing = check({name: value for name, value in example.items() if name != "NATSJOBS_GATEWAY_PASSWORD"})
    assert missing.returncode == 1
    assert "NATSJOBS_GATEWAY_PASSWORD" in missing.stderr


def test_both_files_have_the_same_users_and_tell_silent_clients_apart(tmp_path: Path) -> None:
    """Users, pings and limits stand in files that both include."""
    for main in ("single.conf", "cluster.conf"):
        assert re.search(r'^include "common.conf"$', guarded.shipped(main), re.MULTILINE)
    common = guarded.shipped("common.conf")
    assert re.search(r'^ping_interval: "10s"\nping_max: 2\n', common, re.MULTILINE)
    assert re.search(r'^include "accounts.conf"$', common, re.MULTILINE)


def test_the_rules_are_in_the_words_of_this_version() -> None:
    """No wildcard is wider than a namespace, but the operator's; nobody may publish what only the server says."""
    seen = list(guarded.rules())
    assert {role for role, _, _ in seen} == set(guarded.ROLES)
    for role, kind, rule in seen:
        assert rule not in {">", "*", "_INBOX.>"}, (role, kind)
        assert kind != "publish" or not rule.startswith((f"{NAMESPACE}.live", f"{NAMESPACE}.kv", f"{NAMESPACE}.>"))
        if role != "operator" and kind == "publish":
            assert not re.search(r"PURGE|DELETE|CONSUMER|JS\.(API\.)?>", rule), (role, rule)
    ends = f"{NAMESPACE}.events.*.*.end"
    assert [rule for role, kind, rule in seen if role == "gateway" and ".events." in rule and kind == "publish"] == [
        ends
    ]


def test_another_namespace_is_one_word(tmp_path: Path) -> None:
    """The ``sed`` line of the file gives a file for another namespace, which names nothing of this one."""
    line = re.search(r"^#\s+(sed .*) accounts\.conf$", guarded.shipped("accounts.conf"), re.MULTILINE)
    assert line
    text = subprocess.run(
        ["sh", "-c", f"{line[1]} {SHIPPED / 'accounts.conf'}"], capture_output=True, text=True, check=True
    ).stdout
    rules = "\n".join(part.split("#")[0] for part in text.splitlines())
    assert NAMESPACE not in rules
    assert '"chat.events.*.*.end"' in rules
    (tmp_path / "accounts.conf").write_text(text)
    command = [str(find_binary()), "-t", "-c", str(tmp_path / "accounts.conf")]
    assert subprocess.run(command, check=False, env=guarded.settings(), timeout=30).returncode == 0


async def test_three_nodes_of_the_cluster_file_serve_all_roles(tmp_path: Path) -> None:
    """Three servers of one file, told apart by their environment; setup with three replicas, worker, gateway."""
    servers: list[GuardedServer] = []
    routes = [free_port() for _ in range(3)]
    shared = {
        f"NATS_ROUTE_{number}": f"nats-route://route:secret@127.0.0.1:{port}" for number, port in enumerate(routes, 1)
    }
    try:
        for number, port in enumerate(routes, 1):
            folder = tmp_path / str(number)
            folder.mkdir()
            own = {"NATS_NAME": f"n{number}", "NATS_CLUSTER_LISTEN": f"127.0.0.1:{port}"}
            made = GuardedServer(folder, main="cluster.conf", **shared, **own, NATS_ROUTE_PASSWORD="secret")
            servers.append(made)
            made.start()
        urls = [server.url for server in servers]
        config = natsjobs.Config(replicas=3, timing=natsjobs.Timing(request=10.0))

        async def set_up() -> bool:
            try:
                async with natsjobs.connect(urls, config=config, **guarded.login("admin")):
                    return True
            except NatsJobsError:  # no leader yet
                return False

        await eventually(set_up, within=60)
        worker = natsjobs.connect(urls, config=config, **guarded.login("worker"))
        gateway = natsjobs.connect(urls, config=config, **guarded.login("gateway"))
        async with worker as jobs, gateway as viewers:
            async with jobs.start("s", user_id="u") as run:
                await run.emit("x")
            check_whole(await read_all(viewers.subscribe, "s"), ["x"])
    finally:
        for server in servers:
            server.stop()


# -- binding only -------------------------------------------------------------------------------------------------


async def test_a_worker_says_who_makes_what_is_missing_and_binds_when_it_is_there(permissions_server: str) -> None:
    """Before ``setup`` one error that names the command; after it the worker opens without any right to create."""
    backend = GuardedBackend("guarded", permissions_server)
    try:
        for role in ("worker", "gateway"):
            opening = natsjobs.connect(permissions_server, config=backend.config(), **guarded.login(role))
            with pytest.raises(UnsupportedServerError, match=r"may not create it .*run `natsjobs setup`"):
                await soon(opening.__aenter__())
        await backend.prepare()
        worker = await backend.replica()
        await worker.store.create_job("s", "u")
    finally:
        await backend.close()


async def test_without_an_inbox_of_its_own_a_user_is_told_so(backend: GuardedBackend) -> None:
    """The default inbox is everybody's, so no role may read it."""
    login = {name: value for name, value in guarded.login("worker").items() if name != "inbox_prefix"}
    with pytest.raises(PermissionDeniedError, match="inbox_prefix") as denied:
        await soon(natsjobs.connect(backend.url, config=backend.config(), **login).__aenter__())
    assert denied.value.action == "subscribe"
    assert denied.value.subject.startswith("_INBOX.")


# -- a gateway ----------------------------------------------------------------------------------------------------


async def test_a_gateway_cannot_emit_events(backend: GuardedBackend, user: Any) -> None:
    """Neither through the library, which says what is missing at once, nor past it; nothing is stored or seen."""
    worker, gateway = await backend.replica(), await backend.replica(role="gateway")
    async with worker.manager.start("s", user_id="u") as run, gateway.manager.subscribe("s") as events:
        await run.emit("zero")
        got = await take(events, 1)
        log = backend.subjects.log("s", run.generation)
        with pytest.raises(PermissionDeniedError) as denied:
            await soon(gateway.store.append_chunk("s", "forged", generation=run.generation), within=3)
        assert (denied.value.subject, denied.value.action) == (log, "publish")
        assert not denied.value.outcome_unknown
        await gateway.transport.emit_chunk("s", "forged", generation=run.generation)
        with pytest.raises(PermissionDeniedError):
            await soon(gateway.transport.flush("s", generation=run.generation), within=3)
        raw = await user("gateway")
        assert not await raw.may_publish(log, FORGED)
        assert not await raw.may_publish(log, FORGED, **{"Nats-Rollup": "sub"})
        await run.emit("one")
        await run.complete("bye")
        got += await take(events, 2)
    check_whole(got, ["zero", "one"])
    check_whole(await read_all(worker.manager.subscribe, "s"), ["zero", "one"])


async def test_a_gateway_cannot_start_jobs(backend: GuardedBackend) -> None:
    """The attempt leaves no job, and says what is missing."""
    worker, gateway = await backend.replica(), await backend.replica(role="gateway")
    with pytest.raises(PermissionDeniedError, match=r"\.log"):
        await soon(gateway.store.create_job("s", "u"), within=5)
    assert await worker.manager.get("s") is None
    assert await backend.records("active") == []


async def test_a_gateway_aborts_whether_the_owner_lives_or_not(backend: GuardedBackend) -> None:
    """What it may append is the end: that is what an abort, and the end of a dead owner's job, are made of."""
    worker, gateway = await backend.replica(), await backend.replica(role="gateway")
    for stream_id in ("living", "dead"):
        job = await worker.store.create_job(stream_id, "u")
        await worker.store.append_chunk(stream_id, "zero")
        await worker.store.record_usage(stream_id, {"output_tokens": 3})
        if stream_id == "dead":
            await worker.kill()
        result = await soon(gateway.manager.abort(stream_id, generation=job.generation, final_event="bye"))
        assert result.success
        assert result.acknowledged is (stream_id == "living")
        assert [entry.output_tokens for entry in result.collected_usage] == [3]
        check_whole(await read_all(gateway.manager.subscribe, stream_id), ["zero"])
        assert (await gateway.manager.get(stream_id)).status == "aborted"


async def test_a_gateway_that_was_broken_into_can_write_ends_but_no_event(backend: GuardedBackend, user: Any) -> None:
    """The limit of what permissions give, as deploy/nats tells it: a forged end is believed, the events before it stay.

    An end that does not name the message before it is refused by the readers; nothing else about it can be checked.
    """
    worker, raw = await backend.replica(), await user("gateway")
    job = await worker.store.create_job("s", "u")
    await worker.store.append_chunk("s", "zero")
    end, log = backend.subjects.end("s", job.generation), backend.subjects.log("s", job.generation)
    newest = (await backend.api(f"STREAM.MSG.GET.{EVENTS}", {"last_by_subj": log}))["message"]["seq"]
    body = {"type": "done", "index": 1, "writer": "me", "previous": newest, "data": "forged"}
    answer = await raw.nc.request(end, json.dumps(body).encode(), timeout=5)
    assert json.loads(answer.data)["stream"] == EVENTS
    got = await read_all(worker.manager.subscribe, "s")
    assert values(got) == ["zero"]
    assert (got[-1].type, got[-1].data) == ("done", "forged")


async def test_a_gateway_leaves_the_log_of_a_job_it_deletes_to_a_worker(backend: GuardedBackend) -> None:
    """The job is gone at once, for everybody; its events go with the sweep of whoever may remove them."""
    config = backend.config(retention={"orphan": 0.1}, timing={"sweep": 600.0})
    worker, gateway = await backend.replica(config), await backend.replica(config, role="gateway")
    job = await worker.store.create_job("s", "u")
    await worker.store.append_chunk("s", "zero")
    await worker.store.save_run_steps("s", [{"id": "a"}])
    async with worker.manager.subscribe("s") as events:
        assert await soon(gateway.store.delete_job("s"))
        assert [event.end_reason for event in await take(events, 2)] == [None, "deleted"]
    assert await worker.manager.get("s") is None
    assert await gateway.store.delete_job("s") is False
    log = backend.subjects.log("s", job.generation)
    await soon(gateway.store.cleanup())
    assert not await _is_tombstone(backend, log)

    async def swept() -> bool:
        await worker.store.cleanup()
        return await _is_tombstone(backend, log)

    await eventually(swept)


async def _is_tombstone(backend: GuardedBackend, log: str) -> bool:
    import base64

    found = await backend.api(f"STREAM.MSG.GET.{EVENTS}", {"last_by_subj": log})
    return json.loads(base64.b64decode(found["message"]["data"]))["type"] == "gone"


@pytest.mark.parametrize("role", ["worker", "gateway"])
async def test_a_question_cannot_make_others_publish_where_it_likes(
    backend: GuardedBackend, user: Any, role: str
) -> None:
    """Answers go to inboxes only: who may ask an owner must not be able to let it speak to a stream, or to its API.

    ``allow_responses`` lets a user publish wherever a question asks it to, so the library looks.
    """
    asked, raw, admin = await backend.replica(role=role), await user("gateway"), await backend.admin()
    owner = backend.subjects.owner(asked.store.replica.context.replica_id)
    targets = [
        f"{NAMESPACE}.live.s.g.log",
        backend.subjects.log("s", "g"),
        f"$JS.API.STREAM.PURGE.{EVENTS}",
        "orders.new",
    ]
    heard: list[str] = []

    async def note(msg: Any) -> None:
        heard.append(msg.subject)

    for target in targets:
        await admin.subscribe(target, cb=note)
    await settled(admin)
    for target in targets:
        await raw.nc.publish(owner, b'{"op":"ping","runs":[]}', reply=target)
    answer = await raw.nc.request(owner, b'{"op":"ping","runs":[]}', timeout=5)  # behind the others, in order
    assert b'"missing"' in answer.data
    await settled(admin)
    assert heard == []
    assert not [text for text in backend.errors if "publish" in text]


# -- worker and gateway -------------------------------------------------------------------------------------------

API = [
    f"STREAM.CREATE.{EVENTS}",
    f"STREAM.CREATE.{NAMESPACE}_mirror",
    f"STREAM.UPDATE.{EVENTS}",
    f"STREAM.DELETE.{EVENTS}",
    f"STREAM.DELETE.{RECORDS}",
    f"STREAM.PURGE.{EVENTS}",
    f"STREAM.PURGE.{RECORDS}",
    f"STREAM.MSG.DELETE.{EVENTS}",
    f"STREAM.SNAPSHOT.{EVENTS}",
    f"STREAM.RESTORE.{EVENTS}",
    f"STREAM.LEADER.STEPDOWN.{EVENTS}",
    f"CONSUMER.CREATE.{EVENTS}",
    f"CONSUMER.CREATE.{EVENTS}.c",
    f"CONSUMER.CREATE.{EVENTS}.c.{NAMESPACE}.events.>",
    f"CONSUMER.DURABLE.CREATE.{EVENTS}.c",
    f"CONSUMER.DELETE.{EVENTS}.c",
    f"CONSUMER.MSG.NEXT.{EVENTS}.c",
]


@pytest.mark.parametrize("role", ["worker", "gateway"])
async def test_nobody_who_serves_can_change_streams_or_make_consumers(
    backend: GuardedBackend, user: Any, role: str
) -> None:
    """No create, update, delete, purge, snapshot or stepdown; and no consumer, which could be aimed at others."""
    worker, raw = await backend.replica(), await user(role)
    await worker.store.create_job("s", "u")
    await worker.store.append_chunk("s", "zero")
    before = [await backend.api(f"STREAM.INFO.{name}") for name in (EVENTS, RECORDS)]
    push = json.dumps({"stream_name": EVENTS, "config": {"deliver_subject": f"{NAMESPACE}.abort.s"}}).encode()
    for operation in API:
        assert not await raw.may_publish(f"$JS.API.{operation}", push if "CONSUMER" in operation else b""), operation
    after = [await backend.api(f"STREAM.INFO.{name}") for name in (EVENTS, RECORDS)]
    for old, new in zip(before, after, strict=True):
        assert (old["config"], old["created"]) == (new["config"], new["created"])
        assert new["state"]["messages"] >= old["state"]["messages"]
        assert new["state"]["consumer_count"] == 0
    assert f"{NAMESPACE}_mirror" not in (await backend.api("STREAM.NAMES"))["streams"]


@pytest.mark.parametrize("role", guarded.ROLES)
async def test_nobody_can_publish_what_only_the_server_says(backend: GuardedBackend, user: Any, role: str) -> None:
    """Live events and changes of records come from the streams: a viewer hears nothing else."""
    worker, raw = await backend.replica(), await user(role)
    job = await worker.store.create_job("s", "u")
    heard = Heard()
    await heard.attach(worker.transport, "s")
    for subject in (
        f"live.s.{job.generation}.log",
        f"live.s.{job.generation}.end",
        "kv.job.s",
        "kv.owner.r1",
        "live",
        "x",
    ):
        assert not await raw.may_publish(f"{NAMESPACE}.{subject}", FORGED), subject
    await worker.transport.emit_done("s", "bye")
    await heard.until(1)
    assert heard.all == [("done", "bye")]


@pytest.mark.parametrize("role", guarded.ROLES)
async def test_one_namespace_cannot_read_or_write_another(backend: GuardedBackend, user: Any, role: str) -> None:
    """Two namespaces, the same rules with another word, in one account: neither reaches the other."""
    other = await backend.stranger()
    job = await other.store.create_job("s", "u")
    await other.store.append_chunk("s", "secret")
    raw = await user(role)
    for subject in (
        *(f"$JS.API.{operation}.{OTHER}_events" for operation in ("STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET")),
        *(f"$JS.API.{operation}.KV_{OTHER}_jobs" for operation in ("STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET")),
        f"$JS.API.DIRECT.GET.{OTHER}_events.{OTHER}.events.>",
    ):
        if role != "operator":  # administers the account
            assert not await raw.may_publish(subject), subject
    for subject in ("abort.s", f"events.s.{job.generation}.log", f"events.s.{job.generation}.end", "owner.r", "wake.s"):
        assert not await raw.may_publish(f"{OTHER}.{subject}"), subject
    assert not await raw.may_publish(f"$KV.{OTHER}_jobs.job.s")
    for subject in (f"{OTHER}.live.>", f"{OTHER}.>", f"{OTHER}.abort.s", f"{OTHER}.kv.>", f"$KV.{OTHER}_jobs.>", ">"):
        assert not await raw.may_subscribe(subject), subject
    assert await other.manager.get("s") is not None
    mine = await backend.replica()
    assert await mine.manager.get("s") is None


@pytest.mark.parametrize("role", guarded.ROLES)
async def test_nobody_can_read_the_answers_to_anothers_requests(backend: GuardedBackend, user: Any, role: str) -> None:
    """Each role has an inbox prefix of its own, and may neither listen on nor publish to another's."""
    raw = await user(role)
    for one in (*guarded.ROLES, "other_worker"):
        inbox = guarded.login(one)["inbox_prefix"]
        if one != role:
            assert not await raw.may_subscribe(f"{inbox}.>")
            assert not await raw.may_subscribe(f"{inbox}.abc.*")
        assert not await raw.may_publish(f"{inbox}.abc.1", b"{}")
    for subject in (
        ">",
        "_INBOX.>",
        "*.abc.*",
        "$JS.API.>",
        f"$KV.{NAMESPACE}_jobs.*" if role == "gateway" else "$KV.>",
    ):
        assert not await raw.may_subscribe(subject), subject


async def test_a_gateway_cannot_write_run_steps_or_other_keys(backend: GuardedBackend, user: Any) -> None:
    """Only records, index, leases and usage, which an abort needs."""
    worker, gateway, raw = await backend.replica(), await backend.replica(role="gateway"), await user("gateway")
    await worker.store.create_job("s", "u")
    with pytest.raises(PermissionDeniedError, match=r"jobs\.steps\.s\."):
        await soon(gateway.store.save_run_steps("s", [{"id": "a"}]), within=3)
    assert await worker.store.get_run_steps("s") == []
    assert not await raw.may_publish(f"$KV.{NAMESPACE}_jobs.anything.else")
    other = await user("worker")
    assert not await other.may_publish(f"$KV.{NAMESPACE}_jobs.anything.else")


# -- an operator --------------------------------------------------------------------------------------------------


async def test_an_operator_writes_no_events_and_no_ends(backend: GuardedBackend, user: Any) -> None:
    """Who looks after the streams does not speak in them."""
    worker, raw = await backend.replica(), await user("operator")
    job = await worker.store.create_job("s", "u")
    await worker.store.append_chunk("s", "zero")
    for subject in (backend.subjects.log("s", job.generation), backend.subjects.end("s", job.generation)):
        assert not await raw.may_publish(subject, FORGED)
    operator = await backend.replica(role="operator")
    with pytest.raises(PermissionDeniedError, match=r"\.log"):
        await soon(operator.store.append_chunk("s", "forged"), within=3)
    assert (await soon(operator.manager.abort("s"))).acknowledged  # by asking the owner, who ends it
    check_whole(await read_all(worker.manager.subscribe, "s"), ["zero"])


async def test_an_operator_sees_everything(backend: GuardedBackend, user: Any) -> None:
    """What the ``nats`` command asks for: streams, subjects, messages, keys, consumers, live subjects."""
    worker, raw = await backend.replica(), await user("operator")
    live: list[str] = []

    async def note(msg: Any) -> None:
        live.append(msg.subject)

    for subject in (f"{NAMESPACE}.>", f"$KV.{NAMESPACE}_jobs.>", "$JS.EVENT.>"):
        await raw.nc.subscribe(subject, cb=note)
    await settled(raw.nc)
    job = await worker.store.create_job("s", "u")
    await worker.store.append_chunk("s", "zero")

    async def api(subject: str, body: object = None) -> Any:
        text = b"" if body is None else json.dumps(body).encode()
        found = json.loads((await raw.nc.request(f"$JS.API.{subject}", text, timeout=5)).data)
        assert "error" not in found, (subject, found)
        return found

    log = backend.subjects.log("s", job.generation)
    assert log in (await api(f"STREAM.INFO.{EVENTS}", {"subjects_filter": ">"}))["state"]["subjects"]
    assert {EVENTS, RECORDS} <= {one["config"]["name"] for one in (await api("STREAM.LIST"))["streams"]}
    assert (await api(f"STREAM.MSG.GET.{EVENTS}", {"last_by_subj": log}))["message"]["subject"] == log
    direct = await raw.nc.request(f"$JS.API.DIRECT.GET.{RECORDS}.$KV.{NAMESPACE}_jobs.job.s", b"", timeout=5)
    assert b'"running"' in direct.data
    await api(f"CONSUMER.NAMES.{EVENTS}")
    await eventually(lambda: f"{NAMESPACE}.live.s.{job.generation}.log" in live)
    await eventually(lambda: f"$KV.{NAMESPACE}_jobs.job.s" in live)
    assert raw.violations == []


# -- setup --------------------------------------------------------------------------------------------------------


async def test_setup_makes_streams_and_can_do_nothing_with_them(backend: GuardedBackend, user: Any) -> None:
    """It reads no message, removes nothing, and hears nothing."""
    raw = await user("setup")
    for operation in ("STREAM.MSG.GET", "DIRECT.GET", "STREAM.DELETE", "STREAM.PURGE", "STREAM.UPDATE"):
        assert not await raw.may_publish(f"$JS.API.{operation}.{EVENTS}"), operation
    assert not await raw.may_publish(f"$JS.API.STREAM.CREATE.{NAMESPACE}_mirror")
    for subject in (f"{NAMESPACE}.events.s.g.log", f"{NAMESPACE}.events.s.g.end", f"$KV.{NAMESPACE}_jobs.job.s"):
        assert not await raw.may_publish(subject), subject
    for subject in (f"{NAMESPACE}.>", f"{NAMESPACE}.live.>", f"$KV.{NAMESPACE}_jobs.>"):
        assert not await raw.may_subscribe(subject), subject


# -- a permission that is missing -----------------------------------------------------------------------------------


async def test_a_permission_taken_away_fails_the_run_which_still_ends() -> None:
    """The run hears at its next call what is missing; its viewers get the error; an abort of another job works."""
    config = natsjobs.Config(timing=natsjobs.Timing(request=2.0, give_up=20.0, look=0.3))
    with guarded_server() as server:
        async with natsjobs.connect(server.url, config=config, **guarded.login("admin")):
            pass
        worker = natsjobs.connect(server.url, config=config, **guarded.login("worker"))
        gateway = natsjobs.connect(server.url, config=config, **guarded.login("gateway"))
        async with worker as jobs, gateway as viewers:
            await jobs.store.create_job("other", "u")
            got: list[natsjobs.StreamEvent] = []

            async def watch() -> None:
                got.extend(await read_all(viewers.subscribe, "s", wait=10.0))

            async def refused() -> PermissionDeniedError:
                try:
                    async with asyncio.timeout(15), jobs.start("s", user_id="u") as run:
                        await run.emit("zero")
                        await run.flush()
                        server.accounts(guarded.without("worker", "publish", f"{NAMESPACE}.events.*.*.log"))
                        server.reload()
                        await run.emit("one")
                        await run.flush()
                except PermissionDeniedError as error:
                    return error
                pytest.fail("it was stored")

            error, _ = await asyncio.gather(refused(), watch())
            assert error.subject.startswith(f"{NAMESPACE}.events.s.")
            assert values(got) == ["zero"]
            assert got[-1].type == "error"
            assert "permission denied" in got[-1].data
            await jobs.transport.emit_chunk("other", "never stored")
            result = await soon(jobs.abort("other"), within=5)  # its own, with an event queued that is refused
            assert result.success
            server.accounts()
            server.reload()
            async with jobs.start("s", user_id="u") as run:
                await run.emit("again")
            check_whole(await read_all(viewers.subscribe, "s"), ["again"])


async def test_a_reader_that_may_not_read_pages_any_more_is_told_so() -> None:
    """Waiting, as in an outage, would be for ever: what is missing is raised in mid-iteration, and it can resume."""
    with guarded_server() as server:
        async with natsjobs.connect(server.url, **guarded.login("admin")) as jobs:
            await jobs.store.create_job("s", "u")
            sent = list(range(300))
            for number in sent:
                await jobs.store.append_chunk("s", number)
            gateway = natsjobs.connect(server.url, **guarded.login("gateway"))
            async with gateway as viewers, viewers.subscribe("s") as events:
                got = await take(events, 1)
                server.accounts(guarded.without("gateway", "publish", f"$JS.API.DIRECT.GET.{EVENTS}"))
                server.reload()
                while (what := await _next_or_denied(events)) != EVENTS:
                    got.append(what)
                server.accounts()
                server.reload()
                got += await take(events, len(sent) - len(got))
            assert values(got) == sent


async def _next_or_denied(events: Any) -> Any:
    """The next event, or the stream whose pages may not be read."""
    try:
        return (await take(events, 1, within=10))[0]
    except PermissionDeniedError as error:
        return error.subject.removeprefix("$JS.API.DIRECT.GET.")


async def test_an_abort_that_was_denied_is_not_carried_out_later() -> None:
    """Who asked was told that it failed; that the permission comes back is no reason to stop the job then."""
    with guarded_server() as server:
        async with (
            natsjobs.connect(server.url, **guarded.login("admin")) as jobs,
            natsjobs.connect(server.url, **guarded.login("gateway")) as viewers,
        ):
            await jobs.store.create_job("s", "u")
            server.accounts(guarded.without("gateway", "publish", f"{NAMESPACE}.events.*.*.end"))
            server.reload()
            # Without asking the owner, who would end the job by his own right.
            gateway = viewers.store.replica  # type: ignore[attr-defined]
            job = await viewers.get("s")
            assert job is not None
            end = End("aborted", EndReason.ABORT, "x", b"null")
            with pytest.raises(PermissionDeniedError):
                await gateway.runs.end("s", job.generation, end)
            server.accounts()
            server.reload()
            await eventually(lambda: gateway.context.link.connected_since is not None)
            await gateway.runs.retry_unstored()
            await jobs.transport.emit_done("s", "whole")
            assert [event.data for event in await read_all(viewers.subscribe, "s")] == ["whole"]
