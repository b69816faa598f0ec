"""Servers that will not do: no JetStream, too old, streams with other settings. A typed error that says the fix."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import pytest
from jetstream_kit import config, server, stream_config
from listening import free_port
from nats.aio.client import Client
from waiting import soon

import natsjobs
from natsjobs import NatsJobsError, UnavailableError, UnsupportedServerError
from natsjobs.engine.subjects import Subjects

ACCOUNTS = """
jetstream: {store_dir: "$STORE"}
accounts: {
  APP: {jetstream: enabled, users: [{user: app, password: pw}]}
  BARE: {users: [{user: bare, password: pw}]}
  SMALL: {jetstream: {max_streams: 1}, users: [{user: small, password: pw}]}
}
"""


@pytest.fixture
async def nc(newest_server: str) -> AsyncIterator[Client]:
    """A connection past the library."""
    async with await nats.connect(newest_server) as nc:
        yield nc


async def refused(url: str, settings: Any = None, **options: Any) -> NatsJobsError:
    """What connecting raises; nothing is left running."""
    before = asyncio.all_tasks()
    with pytest.raises(NatsJobsError) as raised:
        async with asyncio.timeout(20), natsjobs.connect(url, config=settings or config(request=1.0), **options):
            pass
    assert not asyncio.all_tasks() - before
    return raised.value


async def test_a_server_without_jetstream_says_how_to_enable_it(tmp_path: Path) -> None:
    """Both when the server has none and when the account has none."""
    with server(tmp_path, "") as bare:
        error = await refused(bare.url)
    assert isinstance(error, UnavailableError | UnsupportedServerError)
    assert "JetStream" in str(error)
    assert "enable" in str(error)
    with server(tmp_path, ACCOUNTS) as running:
        error = await refused(running.url.replace("://", "://bare:pw@"))
        assert isinstance(error, UnavailableError | UnsupportedServerError)
        assert "JetStream" in str(error)
        assert "account" in str(error)
        error = await refused(running.url.replace("://", "://small:pw@"))
        assert isinstance(error, UnavailableError | UnsupportedServerError)
        assert "maximum number of streams" in str(error)
        error = await refused(running.url.replace("://", "://app:wrong@"))
        assert isinstance(error, UnavailableError)
        assert "credentials" in str(error)


async def test_a_server_that_is_too_old_is_refused_by_version(too_old_server: str) -> None:
    """2.10 takes settings that it does not know, and ignores them: nothing may be created there."""
    settings = config()
    error = await refused(too_old_server, settings)
    assert isinstance(error, UnsupportedServerError)
    assert "2.10" in str(error)
    assert "2.11" in str(error)
    assert "upgrade" in str(error)
    async with await nats.connect(too_old_server) as nc:
        names = json.loads((await nc.request("$JS.API.STREAM.NAMES", timeout=5)).data)["streams"] or []
    assert not [name for name in names if settings.namespace in name]


async def test_a_bucket_made_by_hand_is_refused_with_each_missing_setting(newest_server: str, nc: Client) -> None:
    """As ``nats kv add`` makes it: no republishing, no TTLs, no markers. It is left as it is (C10)."""
    settings = config()
    names = Subjects(settings.namespace)
    theirs = {
        "name": names.records_stream,
        "subjects": [f"{names.record_prefix}>"],
        "max_msgs_per_subject": 5,
        "discard": "new",
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": True,
        "storage": "file",
    }
    await nc.request(f"$JS.API.STREAM.CREATE.{names.records_stream}", json.dumps(theirs).encode(), timeout=5)
    before = await stream_config(nc, names.records_stream)
    error = await refused(newest_server, settings)
    assert isinstance(error, UnsupportedServerError)
    for part in (
        names.records_stream,
        "republish",
        "allow_msg_ttl",
        "subject_delete_marker_ttl",
        "max_msgs_per_subject is 5, needed is 1",
        f"nats stream edit {names.records_stream}",
    ):
        assert part in str(error)
    assert await stream_config(nc, names.records_stream) == before
    for name in (names.events_stream, names.records_stream):
        await nc.request(f"$JS.API.STREAM.DELETE.{name}", timeout=5)


async def test_a_fix_that_the_error_names_is_enough(newest_server: str, nc: Client) -> None:
    """Somebody applies what it says to the stream; the next connect works."""
    settings = config()
    names = Subjects(settings.namespace)
    theirs: dict[str, Any] = {"name": names.events_stream, "subjects": [names.all_events], "storage": "file"}
    await nc.request(f"$JS.API.STREAM.CREATE.{names.events_stream}", json.dumps(theirs).encode(), timeout=5)
    error = await refused(newest_server, settings)
    assert isinstance(error, UnsupportedServerError)
    fixed = {
        "discard": "new",
        "max_age": 86400 * 10**9,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,
        "republish": {"src": names.all_events, "dest": f"{names.live_prefix}>"},
    }
    for name in fixed:
        assert f"{name} is" in str(error)
    body = json.dumps({**theirs, **fixed}).encode()
    answer = json.loads((await nc.request(f"$JS.API.STREAM.UPDATE.{names.events_stream}", body, timeout=5)).data)
    assert "error" not in answer, answer
    async with natsjobs.connect(newest_server, config=settings) as jobs, jobs.start("s", user_id="u") as run:
        await run.emit("works")
    for name in (names.events_stream, names.records_stream):
        await nc.request(f"$JS.API.STREAM.DELETE.{name}", timeout=5)


async def test_nobody_there_is_said_within_the_time_of_a_request() -> None:
    """A closed port; and the error says what was tried."""
    port = free_port()
    error = await soon(refused(f"nats://127.0.0.1:{port}"))
    assert isinstance(error, UnavailableError)
    assert str(port) in str(error)
