"""Settings of stream and bucket: created as needed, checked when there, never changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nats
import pytest
from jetstream_kit import config, server, space, stream_config
from waiting import eventually

from natsjobs.config import Retention
from natsjobs.engine.subjects import Subjects
from natsjobs.errors import UnsupportedServerError
from natsjobs.jetstream import link_for
from natsjobs.jetstream.setup import differences, events_settings, records_settings, settings_of


@pytest.mark.parametrize("version", ["newest_server", "oldest_server"])
async def test_the_server_echoes_what_is_asked_for(version: str, request: pytest.FixtureRequest) -> None:
    """Every setting arrives: names, descriptions, republishing, TTLs, limits."""
    async with space(request.getfixturevalue(version)) as here:
        for wanted in settings_of(here.config):
            actual = await stream_config(here.nc, wanted["name"])
            assert differences(wanted, actual) == []
            metadata = actual.pop("metadata")
            assert metadata["natsjobs-wire"] == "1"
            asked = {name: value for name, value in wanted.items() if name != "metadata"}
            assert {name: actual[name] for name in asked} == asked
        assert here.config.namespace in events_settings(here.config)["description"]


async def test_what_an_operator_may_change_is_accepted(newest_server: str) -> None:
    """A limit, a description, metadata: the next one that opens does not mind, and leaves it."""
    async with space(newest_server) as here:
        changed = await stream_config(here.nc, here.names.events_stream)
        changed |= {"max_bytes": 50_000_000, "description": "ours", "metadata": {"team": "a"}, "compression": "s2"}
        await _update(here.nc, changed)
        async with space_without_cleanup(newest_server, here.config):
            pass
        assert (await stream_config(here.nc, here.names.events_stream))["description"] == "ours"


async def test_with_create_off_nothing_is_made_and_what_is_there_is_used(newest_server: str) -> None:
    """Where something else owns streams: a missing one is an error that says how to get it, also after a loss (B11)."""
    bound = config(create=False)
    nc = await nats.connect(newest_server)
    link = link_for(nc, bound)
    with pytest.raises(UnsupportedServerError, match=r"create is off.*|create off.*setup --print nack"):
        await link.open()
    names = Subjects(bound.namespace)
    missing = await nc.request(f"$JS.API.STREAM.INFO.{names.events_stream}", timeout=5)
    assert json.loads(missing.data)["error"]["err_code"] == 10059
    for settings in settings_of(bound):
        await nc.request(f"$JS.API.STREAM.CREATE.{settings['name']}", json.dumps(settings).encode(), timeout=5)
    async with space(newest_server, bound) as here:
        assert await here.append(b"{}", expect=0) == 1
    await nc.close()


async def test_other_settings_are_named_with_their_fix_and_left_alone(newest_server: str) -> None:
    """The error says each difference and a command; the stream stays as it was."""
    nc = await nats.connect(newest_server)
    settings = config(retention=Retention(log=7200))
    names = Subjects(settings.namespace)
    theirs: dict[str, Any] = {
        "name": names.events_stream,
        "subjects": [names.all_events],
        "storage": "file",
        "max_age": 3600 * 10**9,
        "discard": "old",
    }
    await nc.request(f"$JS.API.STREAM.CREATE.{names.events_stream}", json.dumps(theirs).encode(), timeout=5)
    before = await stream_config(nc, names.events_stream)
    subscribed = dict(nc._subs)
    with pytest.raises(UnsupportedServerError) as refused:
        await link_for(nc, settings).open()
    text = str(refused.value)
    for part in (
        f"stream {names.events_stream}",
        "max_age is 3600s, needed is 7200s: set retention.log to what it is, or",
        f"nats stream edit {names.events_stream} --max-age='7200s'",
        'discard is "old", needed is "new"',
        "--discard='new'",
        "allow_rollup_hdrs is false, needed is true",
        "allow_msg_ttl is false, needed is true",
        f"--republish-source='{names.all_events}' --republish-destination='{names.live_prefix}>'",
    ):
        assert part in text
    assert await stream_config(nc, names.events_stream) == before
    assert nc._subs == subscribed
    await nc.request(f"$JS.API.STREAM.DELETE.{names.events_stream}", timeout=5)
    await nc.close()


def test_every_setting_that_is_needed_is_compared() -> None:
    """Take away or turn round any one of them: it is named."""
    for wanted in settings_of(config()):
        assert differences(wanted, wanted) == []
        free = {"name", "description", "metadata", "max_consumers", "max_bytes", "duplicate_window", "deny_delete"}
        for field in wanted.keys() - free:
            value = wanted[field]
            other: Any = {"storage": "memory", "retention": "workqueue", "discard": "old", "republish": None}.get(
                field, 5
            )
            other = False if value is True else 0 if field.endswith(("_ttl", "replicas")) else other
            changed = {**wanted, "num_replicas": 3} if field == "num_replicas" else wanted
            assert [line.split()[0] for line in differences(changed, {**wanted, field: other})] == [field], field
        for field in ("sealed", "no_ack", "mirror", "sources", "subject_transform"):
            assert [line.split()[0] for line in differences(wanted, {**wanted, field: True})] == [field]
        headers_only = {**wanted, "republish": {**wanted["republish"], "headers_only": True}}
        assert [line.split()[0] for line in differences(wanted, headers_only)] == ["republish"]


def test_more_than_is_asked_for_will_do() -> None:
    """A command line with default settings works on three replicas."""
    wanted = records_settings(config())
    assert differences(wanted, {**wanted, "num_replicas": 3, "subject_delete_marker_ttl": 10**9}) == []
    memory = records_settings(config(storage="memory", allow_loss=True))
    assert differences(memory, {**memory, "storage": "file"}) == []


async def test_what_the_server_cannot_do_is_said(newest_server: str) -> None:
    """Three replicas without a cluster; subjects that another stream has."""
    nc = await nats.connect(newest_server)
    with pytest.raises(UnsupportedServerError, match="replicas"):
        await link_for(nc, config(replicas=3)).open()
    settings = config()
    other = {
        "name": f"{settings.namespace}_x",
        "subjects": [f"{settings.namespace}.>"],
        "storage": "memory",
        "no_ack": True,
    }
    await nc.request(f"$JS.API.STREAM.CREATE.{other['name']}", json.dumps(other).encode(), timeout=5)
    with pytest.raises(UnsupportedServerError, match="overlap"):
        await link_for(nc, settings).open()
    await nc.request(f"$JS.API.STREAM.DELETE.{other['name']}", timeout=5)
    await nc.close()


async def test_in_two_domains_each_append_counts_the_answer_of_its_own(tmp_path: Path) -> None:
    """Hub and leaf of one account both store what is meant for one of them; the right one's sequence is given (C7)."""
    hub_text = (
        'jetstream: {store_dir: "$STORE", domain: hub}\nserver_name: hub\nleafnodes: {listen: "127.0.0.1:LEAF"}\n'
    )
    leaf_text = (
        'jetstream: {store_dir: "$STORE", domain: leaf}\nserver_name: leaf\n'
        'leafnodes: {remotes: [{url: "nats-leaf://127.0.0.1:LEAF"}]}\n'
    )
    from listening import free_port

    port = str(free_port())
    with (
        server(tmp_path, hub_text.replace("LEAF", port)) as hub,
        server(tmp_path, leaf_text.replace("LEAF", port)) as leaf,
    ):
        nc = await nats.connect(leaf.url)

        async def joined() -> bool:
            try:
                await nc.request("$JS.hub.API.INFO", timeout=0.5)
            except nats.errors.Error:
                return False
            return True

        await eventually(joined)
        await nc.close()
        settings = config(domain="hub")
        name = settings.namespace
        async with space_without_cleanup(hub.url, settings) as there:
            for n in range(5):
                await there.append(b"x", expect=n)
            async with space_without_cleanup(leaf.url, config(domain="leaf", namespace=name)) as local:
                assert (local.link.events.domain, there.link.events.domain) == ("leaf", "hub")
                before = (await local.link.events.state()).last_seq
                # Without a guard: the other domain's stream would refuse it, and its refusal may come first.
                seq = await there.append(b"y")
                assert seq == (await there.link.events.state()).last_seq == 6
                for _ in range(5):
                    assert await local.append(b"z") == (await local.link.events.state()).last_seq
                await eventually(lambda: True)
                assert (await local.link.events.state()).last_seq > before


def space_without_cleanup(url: str, settings: Any) -> Any:
    """Another process on a namespace that is somebody else's to clean up."""
    from contextlib import asynccontextmanager

    from jetstream_kit import Space, quiet

    @asynccontextmanager
    async def opened() -> Any:
        nc = await nats.connect(url, error_cb=quiet)
        link = link_for(nc, settings)
        await link.open()
        try:
            yield Space(nc, link, settings)
        finally:
            await link.close()
            await nc.close()

    return opened()


async def _update(nc: Any, settings: dict[str, Any]) -> None:
    reply = await nc.request(f"$JS.API.STREAM.UPDATE.{settings['name']}", json.dumps(settings).encode(), timeout=5)
    assert "error" not in json.loads(reply.data)
