"""The port ``Bus`` on real servers: interest, answers, and nothing that is delivered late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest
from jetstream_kit import Proxy, Space, config, server, space, subscriptions
from waiting import eventually

from natsjobs.engine.ports import Incoming, NoReplyError, NoRespondersError
from natsjobs.errors import InvalidArgumentError, UnavailableError


@pytest.fixture(params=["newest_server", "oldest_server"])
async def here(request: pytest.FixtureRequest) -> AsyncIterator[Space]:
    """A namespace on a server of either version."""
    async with space(request.getfixturevalue(request.param)) as made:
        yield made


async def test_after_subscribe_returns_nothing_is_missed(here: Space, request: pytest.FixtureRequest) -> None:
    """Another connection publishes at once, 300 times: every message arrives, in order, with subject and body."""
    other = await nats.connect(here.nc.connected_url.netloc)
    for n in range(300):
        heard: list[Incoming] = []
        interest = await here.link.bus.subscribe(f"{here.config.namespace}.{n}", heard.append)
        for body in (b"1", b"2"):
            await other.publish(f"{here.config.namespace}.{n}", body)
        await other.flush()
        await eventually(lambda heard=heard: len(heard) == 2)
        assert [(one.subject, one.body, one.seq, one.marker) for one in heard] == [
            (f"{here.config.namespace}.{n}", b"1", 0, None),
            (f"{here.config.namespace}.{n}", b"2", 0, None),
        ]
        await interest.unsubscribe()
    await other.close()


async def test_live_messages_carry_their_sequence(here: Space) -> None:
    """What a stream republishes names its place in the stream, in order."""
    heard: list[Incoming] = []
    await here.link.bus.subscribe(here.names.live("s"), heard.append)
    for n in range(50):
        await here.append(str(n).encode(), expect=n)
    await eventually(lambda: len(heard) == 50)
    assert [(one.seq, one.body) for one in heard] == [(n + 1, str(n).encode()) for n in range(50)]
    assert {one.subject for one in heard} == {f"{here.names.live_prefix}s.g.log"}


async def test_after_unsubscribe_the_handler_is_not_called(here: Space) -> None:
    """Twice is fine; what was on its way is dropped."""
    heard: list[Incoming] = []
    interest = await here.link.bus.subscribe("some.where", heard.append)
    await here.link.bus.publish("some.where", b"1")
    await eventually(lambda: heard)
    await here.link.bus.publish("some.where", b"2")
    await interest.unsubscribe()
    await interest.unsubscribe()
    with pytest.raises(NoRespondersError):
        await here.link.bus.request("some.where", b"?", timeout=2)
    assert len(heard) == 1


async def test_a_handler_that_raises_loses_nothing_that_follows(here: Space) -> None:
    """It is logged; the connection and the subscription go on."""
    heard: list[bytes] = []

    def handle(incoming: Incoming) -> None:
        heard.append(incoming.body)
        raise RuntimeError("a broken handler")

    await here.link.bus.subscribe("some.where", handle)
    for body in (b"1", b"2"):
        await here.link.bus.publish("some.where", body)
    await eventually(lambda: heard == [b"1", b"2"])
    assert await here.append(b"x", expect=0) == 1


async def test_a_request_is_answered_by_the_first(here: Space) -> None:
    """The answer is published to where the request says."""

    def answer(incoming: Incoming) -> None:
        tasks.append(asyncio.create_task(here.link.bus.publish(incoming.reply, b"re " + incoming.body)))

    tasks: list[asyncio.Task[None]] = []
    await here.link.bus.subscribe("ask", answer)
    assert await here.link.bus.request("ask", b"1", timeout=5) == b"re 1"
    assert await asyncio.gather(*(here.link.bus.request("ask", str(n).encode(), timeout=5) for n in range(50))) == [
        f"re {n}".encode() for n in range(50)
    ]
    await asyncio.gather(*tasks)


@pytest.mark.parametrize(("namespace", "inbox"), [("_jobs", "_INBOX"), ("jobs", "jobs"), ("jobs", "answers")])
async def test_a_request_names_an_inbox_for_its_answer_or_nothing(
    newest_server: str, namespace: str, inbox: str
) -> None:
    """Whoever may ask must not choose what we publish to, however our own names and inboxes begin."""
    async with space(newest_server, config(namespace=namespace), inbox_prefix=inbox.encode()) as here:
        heard: list[str] = []
        await here.link.bus.subscribe("asked", lambda one: heard.append(one.reply))
        purge = f"$JS.API.STREAM.PURGE.{here.names.events_stream}"
        for reply in (here.log, here.names.abort("s"), here.record, purge, "some.where", "_INBOX.them", "answers.us"):
            await here.nc.publish("asked", b"", reply=reply)
        await eventually(lambda: len(heard) == 7)
        assert heard == ["", "", "", "", "", "_INBOX.them", "answers.us" if inbox == "answers" else ""]


async def test_nobody_is_told_at_once_and_silence_after_the_time(here: Space) -> None:
    """No interest is no silence: the one decides, the other is only a suspicion."""
    started = time.monotonic()
    with pytest.raises(NoRespondersError):
        await here.link.bus.request("nobody", b"", timeout=10)
    with pytest.raises(NoRespondersError):
        await here.link.bus.gather("nobody", b"", timeout=10)
    assert time.monotonic() - started < 2
    await here.link.bus.subscribe("silent", lambda _: None)
    for ask in (here.link.bus.request, here.link.bus.gather):
        started = time.monotonic()
        with pytest.raises(NoReplyError):
            await ask("silent", b"", timeout=0.3)
        assert 0.25 < time.monotonic() - started < 2


async def test_gather_takes_all_answers_or_enough_of_them(here: Space) -> None:
    """Until the time is up, or the caller has what it wants."""
    other = await nats.connect(here.nc.connected_url.netloc)

    async def answer(msg: object) -> None:
        await msg.respond(b"x")  # type: ignore[attr-defined]

    for _ in range(3):
        await other.subscribe("count", cb=answer)
    await other.request("count", b"", timeout=5)  # a barrier, which flush() is not: the interest is known after it
    started = time.monotonic()
    assert await here.link.bus.gather("count", b"", timeout=0.5) == [b"x"] * 3
    assert time.monotonic() - started > 0.45
    started = time.monotonic()
    got = await here.link.bus.gather("count", b"", timeout=10, enough=lambda answers: len(answers) >= 3)
    assert (got, time.monotonic() - started < 3) == ([b"x"] * 3, True)
    await other.close()


async def test_a_cancelled_request_leaves_nothing(here: Space) -> None:
    """Its place is free, its answer is dropped, and the next one works."""
    await here.link.bus.subscribe("silent", lambda _: None)
    task = asyncio.create_task(here.link.bus.request("silent", b"", timeout=30))
    await eventually(lambda: len(here.link._wire._inbox) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(here.link._wire._inbox) == 0
    assert await here.append(b"x", expect=0) == 1


async def test_subjects_that_are_none_are_refused(here: Space) -> None:
    """Nothing that a caller spells becomes another command of the protocol."""
    for subject in ("", "a b", "a\r\nPUB b 0\r\n"):
        with pytest.raises(InvalidArgumentError):
            await here.link.bus.publish(subject, b"")
        with pytest.raises(InvalidArgumentError):
            await here.link.bus.request(subject, b"", timeout=1)


async def test_while_the_connection_is_away_nothing_is_kept_for_later(tmp_path: Path) -> None:
    """Publishes and requests of an outage never arrive, the interest does come back (B9)."""
    with server(tmp_path) as running:
        async with space(running.url, config(request=1.0)) as here:
            heard: list[bytes] = []
            await here.link.bus.subscribe("abort", lambda one: heard.append(one.body))
            waiting = asyncio.create_task(here.link.bus.request("abort", b"before", timeout=30))
            await eventually(lambda: heard == [b"before"])
            running.stop()
            with pytest.raises(NoReplyError):
                await waiting
            await eventually(lambda: here.link.connected_since is None)
            await here.link.bus.publish("abort", b"late")
            with pytest.raises(NoReplyError):
                await here.link.bus.request("abort", b"late", timeout=0.3)
            with pytest.raises(UnavailableError) as away:
                await here.append(b"late", expect=0)
            assert not away.value.outcome_unknown
            with pytest.raises(UnavailableError):
                await here.link.bus.subscribe("more", lambda _: None)
            back = asyncio.Event()
            here.link.on_reconnect(back.set)
            running.start()
            await asyncio.wait_for(back.wait(), 20)
            await here.link.bus.publish("abort", b"after")
            await eventually(lambda: b"after" in heard)
            assert heard == [b"before", b"after"]
            assert "more" not in await subscriptions(here.nc)
            assert await here.link.events.last(here.scope) is None


async def test_a_cut_cable_is_noticed_and_makes_nothing_arrive_late(newest_server: str) -> None:
    """An append that timed out is not sent by the connection later, whatever was buffered, and a new one is made."""
    port = int(newest_server.rpartition(":")[2])
    async with (
        Proxy(port) as proxy,
        space(newest_server) as watcher,
        space(
            proxy.url,
            config(namespace=watcher.config.namespace, request=0.5),
            ping_interval=1,
            max_outstanding_pings=1,
        ) as here,
    ):
        await here.append(b"1", expect=0)
        await proxy.cut()
        lost = await asyncio.gather(  # more than the socket takes, so that the rest waits in nats-py
            *(here.append(f"late {n}".encode().ljust(900_000)) for n in range(20)), return_exceptions=True
        )
        assert {type(error) for error in lost} == {UnavailableError}

        async def works() -> bool:
            try:
                return await here.append(b"2") > 1
            except UnavailableError:
                return False

        await eventually(works, within=10)
        stored = [message.body[:2] for message in await watcher.link.events.page(here.scope, 1)]
        assert stored == [b"1", b"2"]
