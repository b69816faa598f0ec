"""The port ``Link``: opening, sharing and closing; what happens when the server or the connection goes."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import msgspec
import nats
import pytest
from jetstream_kit import Proxy, Server, config, no_tasks_left, server, space, subscriptions
from listening import free_port
from waiting import eventually

from natsjobs.engine.ports import NoReplyError, StreamMissingError
from natsjobs.engine.subjects import Subjects
from natsjobs.errors import ConfigError, NotOpenError, PermissionDeniedError, UnavailableError
from natsjobs.jetstream import NatsLink, link_for
from natsjobs.jetstream.connecting import Dialer
from natsjobs.jetstream.link import check_version

JETSTREAM = 'jetstream: {store_dir: "$STORE"}\n'
CALLBACKS = ("_error_cb", "_disconnected_cb", "_reconnected_cb", "_closed_cb", "_process_msg")


async def test_a_given_connection_stays_open_with_nothing_left_on_it(newest_server: str) -> None:
    """No task, no subscription, no callback; twice is fine, and it can be opened again."""
    nc = await nats.connect(newest_server)
    callbacks = {name: getattr(nc, name) for name in CALLBACKS}
    before = asyncio.all_tasks()
    link = link_for(nc, config())
    for _ in range(2):
        await link.open()
        await link.bus.subscribe("left.over", lambda _: None)
        await link.events.state()
        await link.close()
        await link.close()
        await no_tasks_left(before)
        assert await subscriptions(nc) == []
        assert {name: getattr(nc, name) for name in CALLBACKS} == callbacks
        assert "_process_msg" not in vars(nc)
        with pytest.raises(NotOpenError):
            await link.events.state()
    assert nc.is_connected
    await nc.close()


async def test_an_own_connection_goes_with_the_link(newest_server: str) -> None:
    """Nothing runs on after ``close``."""
    before = asyncio.all_tasks()
    link = NatsLink.dial(newest_server, config(), name="mine")
    await link.open()
    nc = link.nc
    await link.close()
    assert nc.is_closed
    await no_tasks_left(before)


async def test_store_and_transport_on_one_connection_share_one_link(newest_server: str) -> None:
    """The last ``close`` releases; another namespace is another link; nothing keeps the connection alive."""
    nc = await nats.connect(newest_server)
    settings = config()
    first, second = link_for(nc, settings), link_for(nc, settings)
    other = link_for(nc, config())
    assert first is second is not other
    assert link_for(nc, msgspec.structs.replace(settings, create=False)) is not first, "it may do less"
    await asyncio.gather(first.open(), second.open(), other.open())
    assert len(await subscriptions(nc)) == 2
    await first.close()
    assert (await second.events.state()).last_seq == 0
    await other.close()
    await second.close()
    assert await subscriptions(nc) == []
    await nc.close()


async def test_many_processes_may_open_at_once(newest_server: str) -> None:
    """Who comes first creates; all find the same stream."""
    settings = config()
    links = [NatsLink.dial(newest_server, settings) for _ in range(6)]
    await asyncio.gather(*(link.open() for link in links))
    assert len({(await link.events.state()).created for link in links}) == 1
    assert len({(await link.records.state()).created for link in links}) == 1
    await asyncio.gather(*(link.close() for link in links))


async def test_the_users_callbacks_go_on_working_and_are_put_back(tmp_path: Path) -> None:
    """Ours come first, theirs follow; a callback the user sets meanwhile is left alone."""
    heard: list[str] = []

    async def away() -> None:
        heard.append("away")

    async def back() -> None:
        heard.append("back")

    async def failed(error: Exception) -> None:
        heard.append("failed")

    async def closed() -> None:
        heard.append("closed")

    with server(tmp_path) as running:
        options = {"reconnect_time_wait": 0.05, "max_reconnect_attempts": -1}
        nc = await nats.connect(
            running.url, error_cb=failed, disconnected_cb=away, reconnected_cb=back, closed_cb=closed, **options
        )
        link = link_for(nc, config())
        await link.open()
        running.stop()
        await eventually(lambda: "away" in heard and "failed" in heard)
        running.start()
        await eventually(lambda: "back" in heard)
        await eventually(lambda: link.connected_since is not None)
        nc._closed_cb = away
        await link.close()
        assert (nc._disconnected_cb, nc._reconnected_cb, nc._error_cb, nc._closed_cb) == (away, back, failed, away)
        await nc.close()


async def test_after_a_restart_everything_goes_on(tmp_path: Path) -> None:
    """Subscriptions are back, callbacks told, the connection counts as new, and what was stored is there."""
    with server(tmp_path) as running:
        link = NatsLink.dial(running.url, settings := config())
        await link.open()
        names = Subjects(settings.namespace)
        heard: list[bytes] = []
        await link.bus.subscribe(names.live("s"), lambda one: heard.append(one.body))
        told: list[str] = []
        link.on_reconnect(lambda: told.append("kept"))
        link.on_reconnect(lambda: told.append("removed"))()
        assert await link.events.append(names.log("s", "g"), b"1", expect=0) == 1
        since = link.connected_since
        assert since is not None
        assert since <= time.monotonic()
        running.stop()
        await eventually(lambda: link.connected_since is None)
        assert told == []
        running.start()
        await eventually(lambda: told == ["kept"])
        assert link.connected_since is not None
        assert link.connected_since > since
        assert await link.events.append(names.log("s", "g"), b"2", expect=1) == 2
        await eventually(lambda: heard == [b"1", b"2"])
        await link.close()


async def test_a_short_outage_is_waited_for(tmp_path: Path) -> None:
    """A read that meets a restart is answered when the server is back, without an error."""
    with server(tmp_path) as running:
        async with space(running.url) as here:
            await here.append(b"1", expect=0)
            running.stop()
            await eventually(lambda: here.link.connected_since is None)
            reading = asyncio.create_task(here.link.events.last(here.scope))
            running.start()
            found = await reading
            assert found is not None
            assert found.body == b"1"


async def test_an_append_in_flight_fails_when_the_connection_breaks(newest_server: str) -> None:
    """At once, not after the time-out, and it may have happened; a read is sent again instead."""
    async with Proxy(int(newest_server.rpartition(":")[2])) as proxy, space(proxy.url, config(request=20.0)) as here:
        await here.append(b"1", expect=0)
        await proxy.cut()
        appending = asyncio.create_task(here.append(b"2", expect=1))
        reading = asyncio.create_task(here.link.events.last(here.scope))
        await eventually(lambda: len(here.link._wire._inbox) == 2)
        proxy.drop()
        started = time.monotonic()
        with pytest.raises(UnavailableError) as failed:
            await appending
        assert failed.value.outcome_unknown
        found = await reading
        assert found is not None
        assert found.body == b"1"
        assert time.monotonic() - started < 5


async def test_a_stream_that_a_restart_lost_is_made_again(tmp_path: Path) -> None:
    """Memory with one replica: the append says that the stream is gone, the next one works (B11)."""
    with server(tmp_path) as running:
        async with space(running.url, config(storage="memory", allow_loss=True)) as here:
            await here.append(b"1", expect=0)
            created = (await here.link.events.state()).created
            running.stop()
            await eventually(lambda: here.link.connected_since is None)
            running.start()
            await eventually(lambda: here.link.connected_since is not None)
            with pytest.raises(StreamMissingError):
                await here.append(b"2", expect=1)
            assert await here.append(b"first", expect=0) == 1
            assert await here.link.records.append(here.record, b"{}") == 1
            assert (await here.link.events.state()).created != created


async def test_a_connection_closed_for_good_is_made_anew(tmp_path: Path) -> None:
    """Somebody sends too much over it: nats-py gives up, the link does not; interests come back too."""
    with server(tmp_path) as running:
        link = NatsLink.dial(running.url, settings := config())
        await link.open()
        first = link.nc
        heard: list[bytes] = []
        await link.bus.subscribe("some.where", lambda one: heard.append(one.body))
        told: list[str] = []
        link.on_reconnect(lambda: told.append("back"))
        await first.publish("x", b"x" * link.max_payload, headers={"some": "header"})
        await eventually(lambda: first.is_closed)
        await eventually(lambda: told == ["back"])
        assert link.nc is not first
        names = Subjects(settings.namespace)
        assert await link.events.append(names.log("s", "g"), b"1", expect=0) == 1
        await link.bus.publish("some.where", b"again")
        await eventually(lambda: heard == [b"again"])
        await link.close()
        await no_tasks_left({asyncio.current_task()})


async def test_refused_for_a_while_an_own_connection_comes_back(tmp_path: Path) -> None:
    """The password is changed under us and back: the link keeps trying, and leaves no sockets behind."""
    text = JETSTREAM + "authorization: {user: u, password: one}\n"
    with server(tmp_path, text) as running:
        link = NatsLink.dial(running.url, config(), user="u", password="one")
        await link.open()
        told: list[str] = []
        link.on_reconnect(lambda: told.append("back"))
        running.rewrite(lambda text: text.replace("password: one", "password: two"))
        running.signal(signal.SIGHUP)
        await eventually(lambda: "authorization" in str(link.nc.last_error).lower())
        assert link.connected_since is None
        with pytest.raises(NoReplyError):
            await link.bus.request("some.where", b"?", timeout=0.2)
        running.rewrite(lambda text: text.replace("password: two", "password: one"))
        running.signal(signal.SIGHUP)
        await eventually(lambda: told == ["back"])
        assert (await link.events.state()).last_seq == 0
        await link.close()


async def test_a_given_connection_that_is_closed_says_so(newest_server: str) -> None:
    """Nobody can open it again but its owner."""
    nc = await nats.connect(newest_server)
    link = link_for(nc, config())
    await link.open()
    await nc.close()
    with pytest.raises(UnavailableError, match="closed"):
        await link.events.state()
    await link.close()
    with pytest.raises(UnavailableError, match="closed"):
        await link.open()


async def test_a_server_that_answers_nothing_is_left_for_another(tmp_path: Path) -> None:
    """The connection never breaks, and still the link moves on after five seconds (B4)."""
    first, second = Server(tmp_path, JETSTREAM), Server(tmp_path, JETSTREAM)
    first.start()
    second.start()
    try:
        link = NatsLink.dial([first.url, second.url], config(request=1.0), dont_randomize=True, ping_interval=60)
        await link.open()
        assert link.nc.connected_url.port == first.port
        first.signal(signal.SIGSTOP)
        started = time.monotonic()

        async def answered() -> bool:
            try:
                await link.events.state()
            except (UnavailableError, StreamMissingError):
                return False
            return True

        await eventually(answered, within=15)
        assert link.nc.connected_url.port == second.port
        assert time.monotonic() - started > 4.5
        first.signal(signal.SIGCONT)
        await link.close()
    finally:
        first.stop()
        second.stop()


async def test_a_denied_permission_is_named_at_once(tmp_path: Path) -> None:
    """The server tells nobody in particular; the caller hears what is missing, not a time-out."""
    settings = config(request=10.0)
    ns = settings.namespace
    text = JETSTREAM + (
        "authorization: {users: [\n"
        "  {user: admin, password: p}\n"
        f'  {{user: viewer, password: p, permissions: {{publish: {{deny: ["{ns}.events.>", "ask"]}}, '
        'subscribe: {deny: ["secret"]}}}\n'
        '  {user: deaf, password: p, permissions: {subscribe: {allow: ["_OTHER.>"]}}}\n'
        f'  {{user: guest, password: p, permissions: {{publish: {{deny: ["$JS.API.STREAM.CREATE.>"]}}}}}}\n'
        "]}\n"
    )
    with server(tmp_path, text) as running:
        guest = NatsLink.dial(running.url, settings, user="guest", password="p")
        with pytest.raises(Exception, match="natsjobs setup"):
            await guest.open()
        async with space(running.url, settings, user="admin", password="p"):
            await guest.open()
            await guest.close()
            async with space(running.url, settings, user="viewer", password="p") as here:
                started = time.monotonic()
                with pytest.raises(
                    PermissionDeniedError, match=rf"permission denied.*publish to {ns}.events"
                ) as denied:
                    await here.append(b"x", expect=0)
                assert not denied.value.outcome_unknown
                with pytest.raises(PermissionDeniedError, match=r"permission denied.*subscribe to secret"):
                    await here.link.bus.subscribe("secret", lambda _: None)
                with pytest.raises(PermissionDeniedError, match=r"permission denied.*publish to ask"):
                    await here.link.bus.request("ask", b"", timeout=10)
                assert time.monotonic() - started < 3
                assert here.link.connected_since is not None
                assert await here.link.events.page(here.scope, 1) == []
            deaf = NatsLink.dial(running.url, settings, user="deaf", password="p")
            with pytest.raises(UnavailableError, match="inbox_prefix"):
                await deaf.open()
            able = NatsLink.dial(running.url, settings, user="deaf", password="p", inbox_prefix="_OTHER")
            await able.open()
            await able.close()


async def test_nobody_there_is_said_in_time() -> None:
    """With the address, without the password in it."""
    port = free_port()
    link = NatsLink.dial(f"nats://user:hunter2@127.0.0.1:{port}", config(request=0.5))
    started = time.monotonic()
    with pytest.raises(UnavailableError) as failed:
        await link.open()
    assert time.monotonic() - started < 3
    assert f"127.0.0.1:{port}" in str(failed.value)
    assert "hunter2" not in str(failed.value)


async def test_a_time_out_in_the_moment_of_a_failure_is_one_all_the_same() -> None:
    """Many attempts end while one of their connects is just being refused; each must end (before, every other hung)."""
    address = f"nats://127.0.0.1:{free_port()}"
    attempts = [Dialer(address, {}).dial(0.05 + number / 400) for number in range(200)]
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*attempts, return_exceptions=True)
    assert all(isinstance(answer, UnavailableError) and address in str(answer) for answer in answers), set(answers)


async def test_refused_credentials_are_said_at_once(tmp_path: Path) -> None:
    """Not after trying for as long as a server that is down is waited for."""
    with server(tmp_path, JETSTREAM + "authorization: {user: u, password: one}\n") as running:
        started = time.monotonic()
        link = NatsLink.dial(running.url, config(request=20.0), user="u", password="two")
        with pytest.raises(UnavailableError, match=r"(?i)authorization"):
            await link.open()
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("option", ["error_cb", "max_reconnect_attempts", "reconnect_to_server_handler", "passwort"])
def test_options_that_are_ours_or_nobodys_are_refused(option: str) -> None:
    """Before anything is sent; a near miss is named."""
    with pytest.raises(ConfigError) as refused:
        NatsLink.dial("nats://127.0.0.1", config(), **{option: "x"})
    assert refused.value.field == option
    if option == "passwort":
        assert "password" in str(refused.value)


async def test_without_jetstream_the_error_says_what_is_missing(tmp_path: Path) -> None:
    """In the time of one request."""
    with server(tmp_path, "") as running:
        link = NatsLink.dial(running.url, config(request=1.0))
        started = time.monotonic()
        with pytest.raises(UnavailableError, match="JetStream"):
            await link.open()
        assert time.monotonic() - started < 4


async def test_the_servers_that_are_supported_pass_the_check(newest_server: str, oldest_server: str) -> None:
    """2.11 and newer."""
    for url in (newest_server, oldest_server):
        nc = await nats.connect(url)
        check_version(nc)
        await nc.close()
