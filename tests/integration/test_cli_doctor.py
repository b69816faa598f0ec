"""``natsjobs doctor`` in every condition that it knows: real servers, each with what it is to find."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from backends import NatsBackend
from jetstream_kit import Proxy, Space, cluster, config, server, space
from test_cli import Cli
from waiting import eventually, soon

import natsjobs
from natsjobs import Config
from natsjobs.cli.checks import Doctor, Finding, judge_clock
from natsjobs.jetstream import NatsLink


@pytest.fixture
def cli(newest_server: str) -> Iterator[Cli]:
    """The command line, on a server that runs."""
    made = Cli(newest_server)
    yield made
    made.close()


@pytest.fixture
async def healthy(newest_server: str) -> AsyncIterator[Space]:
    """A namespace with stream and bucket."""
    async with space(newest_server) as made:
        yield made


async def examine(url: str | list[str], settings: Config, role: Any = None) -> dict[str, list[Finding]]:
    """All findings, by check."""
    found: dict[str, list[Finding]] = {}
    link = NatsLink.dial(url, settings)
    async with link.visit() as inspection:
        async for finding in Doctor(link, inspection, settings, role).findings():
            found.setdefault(finding.check, []).append(finding)
            assert bool(finding.fix) == (finding.level != "ok"), finding
    return found


def levels(findings: list[Finding]) -> list[str]:
    """How bad they are."""
    return [finding.level for finding in findings]


async def edit(made: Space, stream: str, **changes: Any) -> None:
    """Change a stream as an operator would."""
    reply = await made.nc.request(f"$JS.API.STREAM.INFO.{stream}", timeout=5)
    settings = json.loads(reply.data)["config"] | changes
    reply = await made.nc.request(f"$JS.API.STREAM.UPDATE.{stream}", json.dumps(settings).encode(), timeout=5)
    assert "error" not in json.loads(reply.data), reply.data


# -- the command ------------------------------------------------------------------------------------------------------


async def test_where_all_is_well_it_says_so(cli: Cli) -> None:
    """With a job running: every check is made, none is a problem, and the status is 0."""
    async with cli.connect() as jobs, jobs.start("s", user_id="alice") as run:
        await run.emit(1)
        status, out, err = await cli.run("doctor")
        assert (status, err) == (0, ""), out
        assert "0 problems, 1 warnings, 0 skipped" in out
        assert "1 replicas, 1 running jobs, each with its owner" in out
        status, out, err = await cli.run("doctor", "--json", "--role", "worker")
        assert (status, err) == (0, "")
        answer = json.loads(out)
        assert (answer["namespace"], answer["status"]) == (cli.namespace, "ok")
        made = ["server", "jetstream", "settings", "space", "replicas", "clock", "consumers", "subjects", "listeners"]
        names = list(dict.fromkeys(check["check"] for check in answer["checks"]))
        assert names == [*made, "permissions", "owners"]
        assert {check["level"] for check in answer["checks"]} == {"ok", "warning"}


async def test_it_creates_nothing_and_a_problem_is_status_1(cli: Cli) -> None:
    """A namespace that was never set up is one, and still is afterwards."""
    for _ in range(2):
        status, out, _ = await cli.run("doctor")
        assert status == 1
        assert f"the stream {cli.namespace}_events is missing" in out
        assert "→ natsjobs setup" in out


@pytest.mark.parametrize("arguments", [["--server", "nats://127.0.0.1:1"], ["--namespace", "a.b"]])
async def test_when_it_cannot_look_the_status_is_2(cli: Cli, arguments: list[str]) -> None:
    """No server, or settings that cannot be: one line, no findings."""
    cli.env["NATSJOBS_TIMING_REQUEST"] = "0.5"
    status, out, err = await cli.run("doctor", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)


async def test_refused_credentials_are_no_finding(tmp_path: Path, cli: Cli) -> None:
    """It could not look: 2."""
    with server(tmp_path, "authorization: {user: u, password: p}\n") as made:
        status, out, err = await cli.run("doctor", "--server", made.url)
    assert (status, out) == (2, "")
    assert "credentials" in err


# -- the server -------------------------------------------------------------------------------------------------------


async def test_a_server_that_is_too_old_is_named(too_old_server: str) -> None:
    """With the version that is needed."""
    (found,) = (await examine(too_old_server, config()))["server"]
    assert (found.level, found.fix) == ("problem", "upgrade it to 2.11 or newer")


async def test_a_server_without_jetstream_is_named(tmp_path: Path) -> None:
    """With the setting that switches it on; what depends on it is skipped or missing, and nothing hangs."""
    with server(tmp_path, "") as made:
        found = await examine(made.url, config(request=1.0))
    assert levels(found["jetstream"]) == ["problem"]
    assert "store_dir" in found["jetstream"][0].fix
    assert levels(found["settings"]) == ["skipped"]


async def test_an_account_that_is_nearly_full_is_named(tmp_path: Path) -> None:
    """Its limit stops every stream in it."""
    text = (
        'jetstream: {store_dir: "$STORE"}\nno_auth_user: u\n'
        "accounts: {A: {users: [{user: u, password: p}], jetstream: {max_file: 40K, max_mem: 1M}}}\n"
    )
    with server(tmp_path, text) as made:
        async with space(made.url) as room:
            await room.append(b"x" * 34_000)
            found = await examine(made.url, room.config)
    assert levels(found["jetstream"]) == ["warning"]
    assert "max_storage" in found["jetstream"][0].fix


async def test_a_server_that_falls_silent_is_a_finding_and_the_checks_go_on(newest_server: str) -> None:
    """Behind a wire that carries nothing any more the round trip has no end: that is said, and what comes next too."""
    settings = config(request=0.3)
    async with Proxy(int(newest_server.rpartition(":")[2])) as proxy:
        link = NatsLink.dial(proxy.url, settings)
        async with link.visit() as inspection:
            await proxy.cut()
            async with contextlib.aclosing(Doctor(link, inspection, settings, None).findings()) as findings:
                silent, following = [await soon(anext(findings)) for _ in range(2)]
    assert (silent.check, silent.level, following.check) == ("server", "skipped", "jetstream")
    assert "has not answered within 0.3 s" in silent.found


# -- stream and bucket ------------------------------------------------------------------------------------------------


async def test_other_settings_are_named_with_the_command_that_mends_them(healthy: Space) -> None:
    """One finding for each, for the stream that has them."""
    await edit(healthy, healthy.names.events_stream, discard="old", allow_direct=False)
    found = (await examine(healthy.nc.connected_url.geturl(), healthy.config))["settings"]
    assert levels(found) == ["problem", "problem", "ok"]
    assert "discard" in found[0].found
    assert f"nats stream edit {healthy.names.events_stream} --discard='new'" in found[0].fix


@pytest.mark.parametrize(("share", "level"), [(0.5, "ok"), (0.85, "warning"), (0.95, "problem")])
async def test_a_stream_that_fills_up_is_named_in_time(healthy: Space, share: float, level: str) -> None:
    """From 80 % on a warning, from 90 % a problem."""
    await healthy.append(b"x" * 10_000)
    used = (await healthy.link.events.state()).bytes
    await edit(healthy, healthy.names.events_stream, max_bytes=int(used / share))
    found = (await examine(healthy.nc.connected_url.geturl(), healthy.config))["space"]
    assert levels(found) == [level, "ok"]


async def test_in_a_cluster_it_looks_at_replicas(tmp_path: Path) -> None:
    """One replica is a warning; a node that is away is a problem."""
    async with cluster(tmp_path) as (servers, made):
        urls = [one.url for one in servers.values()]

        async def whole() -> bool:
            return levels((await examine(urls, made.config))["replicas"]) == ["ok", "ok"]

        await eventually(whole, within=60)  # the replicas of a new stream have to catch up
        async with space(urls, config(replicas=1)) as alone:
            found = await examine(urls, alone.config)
            assert levels(found["replicas"]) == ["warning", "warning"]
            assert "--replicas=3" in found["replicas"][0].fix
        servers["n3"].stop()
        alive = urls[:2]

        async def noticed() -> bool:
            with contextlib.suppress(KeyError):
                return levels((await examine(alive, made.config))["replicas"]) == ["problem", "problem"]
            return False

        await eventually(noticed, within=60)


async def test_consumers_are_named(healthy: Space) -> None:
    """Somebody's watch costs the server, and natsjobs has none."""
    watch = await healthy.nc.jetstream().subscribe(healthy.names.all_events, durable="somebody", ordered_consumer=False)
    found = (await examine(healthy.nc.connected_url.geturl(), healthy.config))["consumers"]
    assert levels(found) == ["warning"]
    assert "somebody" in found[0].found
    await watch.unsubscribe()


@pytest.mark.parametrize(("skew", "level"), [(0.2, "ok"), (-4.9, "ok"), (60, "warning"), (-60, "warning")])
def test_a_clock_that_is_wrong_is_named(skew: float, level: str) -> None:
    """In the direction in which it is."""
    found = judge_clock(skew)
    assert found.level == level
    assert ("ahead" in found.found) == (skew > 0)


# -- others -----------------------------------------------------------------------------------------------------------


async def test_a_stream_that_captures_our_subjects_is_a_problem(healthy: Space) -> None:
    """It answers pings, and a dead owner seems to live."""
    ns, name = healthy.config.namespace, f"{healthy.config.namespace}_archive"
    await healthy.nc.jetstream().add_stream(name=name, subjects=[f"{ns}.owner.>"])
    try:
        found = await examine(healthy.nc.connected_url.geturl(), healthy.config)
    finally:
        await healthy.nc.jetstream().delete_stream(name)
    assert levels(found["subjects"]) == ["problem"]
    assert name in found["subjects"][0].found
    assert levels(found["listeners"]) == ["problem"]
    assert ".owner.probe is answered" in found["listeners"][0].found


async def test_a_spy_is_a_warning(healthy: Space) -> None:
    """Whoever subscribes to everything makes dead owners silent instead of absent."""
    spy = await healthy.nc.subscribe(f"{healthy.config.namespace}.>")
    await healthy.nc.flush()
    found = await examine(healthy.nc.connected_url.geturl(), healthy.config)
    assert levels(found["listeners"]) == ["warning"] * 3
    await spy.unsubscribe()


USERS = """
jetstream: {store_dir: "$STORE"}
authorization: {users: [
  {user: admin, password: p}
  {user: worker, password: p, permissions: {publish: {deny: ["NS.live.>", "NS.kv.>"]}}}
  {user: gateway, password: p, permissions: {publish: {deny: ["NS.live.>", "NS.kv.>", "NS.events.*.*.log"]}}}
  {user: deaf, password: p, permissions: {
    publish: {deny: ["NS.kv.>", "$JS.API.DIRECT.GET.NS_events", "$JS.API.CONSUMER.>", "$JS.API.STREAM.NAMES"]}
    subscribe: {deny: ["NS.joined.*"]}}}
]}
"""


@asynccontextmanager
async def guarded(folder: Path) -> AsyncIterator[tuple[Config, Any]]:
    """A server with users; settings, and how a user connects."""
    settings = config()
    with server(folder, USERS.replace("NS", settings.namespace)) as made:
        address = made.url.removeprefix("nats://")
        async with space(f"nats://admin:p@{address}", settings):
            yield settings, lambda user: f"nats://{user}:p@{address}"


async def test_it_says_what_a_user_may_and_lacks(tmp_path: Path) -> None:
    """Enough for a role is fine; less is named as the rules that would grant it; too much is a warning."""
    async with guarded(tmp_path) as (settings, url):
        ns = settings.namespace
        (worker,) = (await examine(url("worker"), settings, "worker"))["permissions"]
        assert (worker.level, worker.found) == ("ok", "this user may run jobs")
        (gateway,) = (await examine(url("gateway"), settings))["permissions"]
        assert (gateway.level, gateway.found) == ("ok", "this user may follow and abort jobs")
        (wrong,) = (await examine(url("gateway"), settings, "worker"))["permissions"]
        assert wrong.level == "problem"
        assert wrong.found.endswith(f": publish {ns}.events.*.*.log")
        found = await examine(url("deaf"), settings)
        lacks, more = found["permissions"]
        assert levels([lacks, more]) == ["warning", "warning"]
        assert lacks.found.endswith(f": publish $JS.API.DIRECT.GET.{ns}_events, subscribe {ns}.joined.*")
        assert more.found == f"this user may publish {ns}.live.>, which only the server should"
        assert levels(found["subjects"]) == ["skipped"]
        assert "$JS.API.STREAM.NAMES" in found["subjects"][0].found


async def test_finding_out_what_is_allowed_stores_nothing_and_wakes_nobody(backend: NatsBackend) -> None:
    """Neither a message in a stream, nor anything that a replica would take for one of its own."""
    replica = await backend.replica()
    async with replica.manager.start("s", user_id="u") as run, replica.manager.subscribe("s") as events:
        await run.emit(1)
        await run.flush()
        link = replica.store.replica.context.link
        before = [(await stream.state()).last_seq for stream in (link.events,)]
        keys = await link.records.subjects(">")
        await examine(backend.url, replica.config, "worker")
        assert [(await stream.state()).last_seq for stream in (link.events,)] == before
        assert set(await link.records.subjects(">")) == set(keys)
        assert (await anext(events)).data == 1


# -- owners -----------------------------------------------------------------------------------------------------------


async def test_jobs_of_an_owner_that_is_gone_are_named(backend: NatsBackend) -> None:
    """At once as one that does not answer; when its lease has lapsed and nobody ended them, as a problem."""
    settings = backend.config(timing={"lease": 1.5, "renew": 0.5})
    replica = await backend.replica(settings)
    await replica.store.create_job("abandoned", "u")
    assert levels((await examine(backend.url, settings))["owners"]) == ["ok"]
    await replica.kill()
    (found,) = (await examine(backend.url, settings))["owners"]
    assert "abandoned" in found.found

    async def lapsed() -> Any:
        (found,) = (await examine(backend.url, settings))["owners"]
        return found.level == "problem" and found

    found = await eventually(lapsed)
    assert "is gone" in found.found
    assert "start one" in found.fix


async def test_a_running_job_without_an_owner_is_named(backend: NatsBackend) -> None:
    """Somebody changed its record; nobody would ever look after it but the sweep."""
    replica = await backend.replica()
    job = await replica.store.create_job("nobody's", "u")
    record = natsjobs.to_dict(job) | {"owner": None}
    await backend.put_record(record, "job", "nobody's")
    (found,) = (await examine(backend.url, replica.config))["owners"]
    assert (found.level, found.found) == ("problem", "running without an owner: nobody's")
