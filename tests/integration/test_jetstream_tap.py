"""The private parts of nats-py: they are what we think they are, and without them everything works too."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from jetstream_kit import Space, config, no_tasks_left, server, space, subscriptions
from nats.aio.client import Client
from waiting import eventually

from natsjobs.engine.ports import Incoming, NoReplyError, NoRespondersError, WrongSequenceError
from natsjobs.errors import EventTooLargeError, UnavailableError, UnsupportedServerError
from natsjobs.jetstream import tap as tapping
from natsjobs.jetstream.frames import Frames
from natsjobs.jetstream.inbox import Waiting
from natsjobs.jetstream.tap import Tap, tap_of
from natsjobs.jetstream.turn import TurnEnd


@pytest.fixture
async def plain(newest_server: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Space]:
    """A namespace over a nats-py that lacks one of the private names."""
    monkeypatch.setattr(tapping, "_DIRECT", (*tapping._DIRECT, "_renamed_in_the_next_version"))
    async with space(newest_server) as made:
        assert not tap_of(made.nc).direct
        yield made


def test_this_nats_py_has_all_the_names() -> None:
    """A new version that renames one is noticed here, and costs users nothing but speed."""
    assert Tap(Client()).direct


def test_a_client_whose_callbacks_are_unknown_is_refused() -> None:
    """Without them a lost connection could not be noticed."""
    nc = Client()
    del nc._closed_cb
    with pytest.raises(UnsupportedServerError, match="_closed_cb"):
        Tap(nc)


async def test_without_private_names_the_ports_do_the_same(plain: Space) -> None:
    """Appends, reads, pages, live messages, markers, requests, refusals."""
    live: list[Incoming] = []
    changes: list[Incoming] = []
    await plain.link.bus.subscribe(plain.names.live("s"), live.append)
    await plain.link.bus.subscribe(plain.names.changes("owner"), changes.append)
    for n in range(100):
        assert await plain.append(b"x" * n, expect=n) == n + 1
    with pytest.raises(WrongSequenceError) as refused:
        await plain.append(b"x", expect=3)
    assert refused.value.last == 100
    page = await plain.link.events.page(plain.scope, 1)
    assert [message.seq for message in page] == list(range(1, 65))
    assert await plain.link.events.page(plain.scope, 101) == []
    assert (await plain.link.events.last(plain.scope)) == (await plain.link.events.page(plain.scope, 100))[0]
    await eventually(lambda: [one.seq for one in live] == list(range(1, 101)))
    seq = await plain.link.records.append(plain.record, b"{}", expect=0)
    await plain.link.records.append(plain.record, b"", expect=seq, marker=True)
    await eventually(lambda: [one.marker for one in changes] == [None, "PURGE"])
    with pytest.raises(NoRespondersError):
        await plain.link.bus.request("nobody", b"", timeout=5)
    await plain.link.bus.subscribe("silent", lambda _: None)
    with pytest.raises(NoReplyError):
        await plain.link.bus.request("silent", b"", timeout=0.1)
    with pytest.raises(EventTooLargeError):
        await plain.append(b"x" * plain.link.max_payload)
    assert plain.nc.is_connected


async def test_without_private_names_a_restart_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing late, everything back, nothing left."""
    monkeypatch.setattr(tapping, "_DIRECT", (*tapping._DIRECT, "_renamed_in_the_next_version"))
    with server(tmp_path) as running:
        async with space(running.url, config(request=1.0)) as here:
            before = asyncio.all_tasks()
            heard: list[bytes] = []
            interest = await here.link.bus.subscribe("some.where", lambda one: heard.append(one.body))
            running.stop()
            await eventually(lambda: here.link.connected_since is None)
            await here.link.bus.publish("some.where", b"late")
            with pytest.raises(UnavailableError):
                await here.append(b"late")
            running.start()
            await eventually(lambda: here.link.connected_since is not None)
            assert await here.append(b"1", expect=0) == 1
            await here.link.bus.publish("some.where", b"now")
            await eventually(lambda: heard == [b"now"])
            await interest.unsubscribe()
            assert "some.where" not in await subscriptions(here.nc)
            current = {here.nc._reading_task, here.nc._ping_interval_task, here.nc._flusher_task}
            await no_tasks_left(before | current)


async def test_cancelling_at_any_moment_harms_no_connection(newest_server: str) -> None:
    """nats-py would go deaf for good if a flush of it were cancelled; ours may be, a thousand times."""
    async with space(newest_server) as here:
        interests = len(await subscriptions(here.nc))

        async def work(n: int) -> None:
            interest = await here.link.bus.subscribe(f"w.{n}", lambda _: None)
            try:
                await here.append(b"x")
                await here.link.events.page(here.scope, 1)
            finally:
                await interest.unsubscribe()

        for n in range(200):
            tasks = [asyncio.create_task(work(5 * n + k)) for k in range(5)]
            for _ in range(n % 12):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(one is None or isinstance(one, asyncio.CancelledError) for one in done), (
                done
            )  # some were through
        assert await here.link.events.last(here.scope) is not None
        await work(0)
        assert len(await subscriptions(here.nc)) == interests
        assert len(here.link._wire._inbox) == 0


async def test_what_the_user_does_on_the_same_connection_is_untouched(newest_server: str) -> None:
    """Their subscriptions, headers, requests and KV work as ever while a link is open."""
    async with space(newest_server) as here:
        got: list[Any] = []

        async def receive(msg: Any) -> None:
            got.append((msg.data, msg.headers))
            if msg.reply:
                await msg.respond(b"re")

        await here.nc.subscribe("user.subject", cb=receive)
        await here.nc.publish("user.subject", b"1", headers={"a": "b"})
        assert (await here.nc.request("user.subject", b"2", timeout=5)).data == b"re"
        assert got == [(b"1", {"a": "b"}), (b"2", None)]
        kv = await here.nc.jetstream().create_key_value(bucket=f"{here.config.namespace}_users")
        await kv.put("k", b"v")
        assert (await kv.get("k")).value == b"v"
        await here.nc.jetstream().delete_key_value(f"{here.config.namespace}_users")


async def test_links_that_leave_out_of_order_leave_nothing(newest_server: str) -> None:
    """Also when somebody else has wrapped what we had wrapped, and when we come back below it."""
    nc = await nats.connect(newest_server)
    original = nc._error_cb
    heard: list[str] = []

    class Recorder:
        def on_disconnected(self) -> None: ...
        def on_connected(self) -> None: ...
        def on_closed(self) -> None: ...
        def on_error(self, error: Exception) -> None:
            heard.append(str(error))

    tap, first, second = tap_of(nc), Recorder(), Recorder()
    tap.add(first)
    ours = nc._error_cb

    async def theirs(error: Exception) -> None:
        heard.append("theirs")
        await ours(error)

    nc._error_cb = theirs
    tap.add(second)
    tap.remove(first)
    tap.remove(second)
    assert nc._error_cb is theirs
    tap.add(first)
    assert nc._error_cb is theirs
    await nc._error_cb(RuntimeError("x"))
    assert heard == ["theirs", "x"]
    nc._error_cb = ours
    tap.remove(first)
    assert nc._error_cb == original
    await nc.close()


async def test_below_what_somebody_else_put_in_nothing_is_read_past_nats_py(newest_server: str) -> None:
    """Our callback stays there and only passes on, also that the connection is back."""
    nc = await nats.connect(newest_server)

    class Nobody:
        def on_disconnected(self) -> None: ...
        def on_connected(self) -> None: ...
        def on_closed(self) -> None: ...
        def on_error(self, error: Exception) -> None: ...

    tap, nobody = tap_of(nc), Nobody()
    tap.add(nobody)
    ours, back = nc._reconnected_cb, asyncio.Event()

    async def theirs() -> None:
        await ours()
        back.set()

    nc._reconnected_cb = theirs
    tap.remove(nobody)
    nc._transport._io_writer.transport.abort()
    await asyncio.wait_for(back.wait(), 20)
    assert not isinstance(nc._transport._io_writer.transport.get_protocol(), Frames)
    await nc.close()


@contextmanager
def counted_writes(nc: Client) -> Iterator[list[int]]:
    """How many commands each write to the socket had."""
    writes, socket = list[int](), nc._transport._io_writer.transport
    writelines = socket.writelines

    def counted(commands: list[bytes]) -> None:
        writes.append(len(commands))
        writelines(commands)

    socket.writelines = counted
    yield writes
    del socket.writelines


async def test_what_one_turn_makes_is_one_write(newest_server: str) -> None:
    """What is sent at once and what is sent at the end of the turn; every write may wake another core."""
    async with space(newest_server) as here:
        with counted_writes(here.nc) as writes:
            answers = [asyncio.get_running_loop().create_future() for _ in range(3)]

            def send(number: int) -> None:
                subject, scope = here.names.log("s", f"g{number}"), here.names.scope("s", f"g{number}")
                assert here.link.events.send(subject, b"x", expect=0, scope=scope, done=answers[number].set_result)

            send(0)
            here.link.at_turn_end(lambda: send(2))
            send(1)
            assert writes == []
            assert sorted(await asyncio.gather(*answers)) == [1, 2, 3]
            assert writes == [3]


async def test_a_long_turn_is_written_while_it_goes_on(newest_server: str) -> None:
    """So the server is at work meanwhile, and little is held; nothing is lost or written twice."""
    async with space(newest_server) as here:
        answers = list[asyncio.Future[int]]()
        with counted_writes(here.nc) as writes:
            for number in range(100):
                answers.append(asyncio.get_running_loop().create_future())
                subject, scope = here.names.log("s", f"g{number}"), here.names.scope("s", f"g{number}")
                done = answers[-1].set_result
                assert here.link.events.send(subject, b"x" * 10_000, expect=0, scope=scope, done=done)
                assert writes or number < 10
        assert sorted(await asyncio.gather(*answers)) == list(range(1, 101))


async def test_an_append_leaves_nothing_to_the_garbage_collector(newest_server: str) -> None:
    """What waits in a circle waits for a collection, which stops everything for milliseconds."""
    async with space(newest_server) as here:
        gc.collect()
        gc.disable()
        try:
            for number in range(20):
                answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
                done = answer.set_result
                assert here.link.events.send(here.log, b"x", expect=number, scope=here.scope, done=done)
                assert await answer == number + 1
            await here.append(b"x")
            await here.link.events.state()
            await asyncio.sleep(0)
            assert [one for one in gc.get_objects() if isinstance(one, Waiting)] == []
        finally:
            gc.enable()


async def test_a_callback_that_fails_keeps_nothing_from_being_written() -> None:
    """Neither in this turn nor in a later one; the loop hears of it."""
    loop, heard, written = asyncio.get_running_loop(), list[object](), list[int]()
    loop.set_exception_handler(lambda _, context: heard.append(context["exception"]))
    turn = TurnEnd(lambda: written.append(len(written)))

    def fail() -> None:
        raise RuntimeError("a defect")

    try:
        turn.before(fail)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert written == [0]
        turn.expect()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert written == [0, 1]
        assert [str(error) for error in heard] == ["a defect"]
    finally:
        loop.set_exception_handler(None)
