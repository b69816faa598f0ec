"""Handlers of live events: order, failures, slowness, and what unsubscribing means."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from making import start
from waiting import Calls, Heard, eventually, soon

from natsjobs import NotOpenError

# -- handlers ----------------------------------------------------------------------------------------------------


async def test_handlers_may_be_async_and_are_called_one_at_a_time(replica):
    """A slow one is never entered twice, and order holds."""
    await start(replica)
    busy = 0
    got: list = []

    async def slow(value: object) -> None:
        nonlocal busy
        busy += 1
        assert busy == 1
        for _ in range(5):
            await asyncio.sleep(0)
        got.append(value)
        busy -= 1

    await replica.transport.subscribe("s1", on_chunk=slow, on_done=slow)
    for n in range(20):
        await replica.transport.emit_chunk("s1", n)
    await replica.transport.emit_done("s1", "end")
    await eventually(lambda: len(got) == 21)
    assert got == [*range(20), "end"]


@pytest.mark.scenario(59)
@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_handler_that_raises_loses_nothing_of_later_events(replica, caplog, kind):
    """It is logged; the next events and the end arrive, also for another subscriber."""
    await start(replica)
    heard, other = Heard(), Heard()

    def plain(value: object) -> None:
        heard.all.append(("chunk", value))
        if value == 1:
            raise RuntimeError("handler broke")

    async def coroutine(value: object) -> None:
        plain(value)

    await replica.transport.subscribe(
        "s1",
        on_chunk=plain if kind == "plain" else coroutine,
        on_done=lambda value: heard.all.append(("done", value)),
    )
    await other.attach(replica.transport, "s1")
    for n in range(4):
        await replica.transport.emit_chunk("s1", n)
    await replica.transport.emit_done("s1", None)
    await heard.until(5)
    await other.until(5)
    assert heard.all == other.all == [*(("chunk", n) for n in range(4)), ("done", None)]
    assert "handler broke" in caplog.text


@pytest.mark.scenario(59)
async def test_a_slow_subscriber_holds_up_nobody(replica, replica_b):
    """While one handler waits, another subscriber of the same replica gets everything; later so does the slow one."""
    await start(replica)
    gate = asyncio.Event()
    slow: list = []

    async def stuck(value: object) -> None:
        await gate.wait()
        slow.append(value)

    await replica_b.transport.subscribe("s1", on_chunk=stuck, on_done=stuck)
    quick = Heard()
    await quick.attach(replica_b.transport, "s1")
    for n in range(200):
        await replica.transport.emit_chunk("s1", n)
    await replica.transport.emit_done("s1", "end")
    await quick.until(201)
    assert slow == []
    gate.set()
    await eventually(lambda: len(slow) == 201)
    assert slow == [*range(200), "end"]


@pytest.mark.parametrize("handler", ["on_aborted", "on_done"])
async def test_the_final_event_of_an_abort_goes_to_on_aborted_or_else_to_on_done(replica, replica_b, handler):
    """The value given to abort; None when none was given."""
    heard = Heard()
    await heard.attach(replica_b.transport, "s1", aborted=handler == "on_aborted")
    await start(replica)
    await replica.manager.abort("s1", final_event={"final": 1})
    await start(replica)
    await replica.manager.abort("s1")
    await heard.until(2)
    kind = handler.removeprefix("on_")
    assert heard.all == [(kind, {"final": 1}), (kind, None)]


async def test_only_on_chunk_is_required(replica):
    """An end without a handler for it is no trouble."""
    got: list = []
    await replica.transport.subscribe("s1", on_chunk=got.append)
    for turn in range(2):
        await start(replica)
        await replica.transport.emit_chunk("s1", turn)
        await replica.transport.emit_error("s1", "x")
    await eventually(lambda: got == [0, 1])


# -- unsubscribing -----------------------------------------------------------------------------------------------


async def test_after_unsubscribe_no_handler_runs_any_more(replica):
    """Not even one that was running when it was called."""
    await start(replica)
    entered, finished = asyncio.Event(), asyncio.Event()
    calls = 0

    async def handler(_value: object) -> None:
        nonlocal calls
        calls += 1
        entered.set()
        try:
            for _ in range(50):
                await asyncio.sleep(0)
        finally:
            finished.set()

    subscription = await replica.transport.subscribe("s1", on_chunk=handler)
    other = Heard()
    await other.attach(replica.transport, "s1")
    for n in range(5):
        await replica.transport.emit_chunk("s1", n)
    await soon(entered.wait())
    await subscription.unsubscribe()
    assert finished.is_set()
    seen = calls
    await replica.transport.emit_chunk("s1", "later")
    await replica.transport.emit_done("s1", None)
    await other.until(7)
    assert calls == seen


async def test_a_handler_may_unsubscribe_its_own_subscription(replica):
    """It does not wait for itself."""
    await start(replica)
    got: list = []

    async def once(value: object) -> None:
        got.append(value)
        await subscription.unsubscribe()

    subscription = await replica.transport.subscribe("s1", on_chunk=once)
    other = Heard()
    await other.attach(replica.transport, "s1")
    for n in range(3):
        await replica.transport.emit_chunk("s1", n)
    await replica.transport.emit_done("s1", None)
    await other.until(4)
    await eventually(lambda: replica.transport.get_subscriber_count("s1") == 1)
    assert got == [0]


async def test_no_handler_runs_before_subscribe_has_returned(replica, replica_b):
    """Also while events come all the time: a handler may use the subscription that it belongs to."""
    await start(replica)
    stop, made, rounds, early = asyncio.Event(), [], [], Calls()

    async def emitting() -> None:
        while not stop.is_set():
            await replica.transport.emit_chunk("s1", 1)
            await replica.transport.flush("s1")

    busy = asyncio.ensure_future(emitting())
    heard = 0

    def on_chunk(_: object) -> None:
        nonlocal heard
        heard += 1
        if len(made) <= len(rounds):
            early()

    for number in range(20):
        before = heard
        made.append(await replica_b.transport.subscribe("s1", on_chunk=on_chunk))
        await eventually(lambda before=before: heard > before)
        await made[-1].unsubscribe()
        rounds.append(number)
    stop.set()
    await soon(busy)
    assert early.count == 0


@pytest.mark.parametrize("leaving", ["cleanup", "destroy"])
async def test_a_subscription_that_is_made_while_its_transport_leaves_holds_nothing(backend, replica, leaving):
    """Wherever it is just then: it is refused, or gone with the others."""
    await start(replica)
    other = await backend.replica()
    await other.transport.count_subscribers("s1")
    idle = sorted(other.interests())
    for turns in range(0, 40, 2):
        at = (other.nc, other.config) if hasattr(other, "nc") else (other.store,)
        transport = type(other.transport)(*at)
        await transport.count_subscribers("s1")
        making = asyncio.ensure_future(transport.subscribe("s1", on_chunk=Calls()))
        for _ in range(turns):
            await asyncio.sleep(0)
        await (transport.cleanup("s1") if leaving == "cleanup" else transport.destroy())
        with contextlib.suppress(NotOpenError):
            made = await soon(making)
            if leaving == "cleanup":
                await made.unsubscribe()

        def left() -> list[str]:
            return [one for one in other.interests() if one not in idle]

        await eventually(lambda: not left(), what=f"nothing is left after {turns} turns")
        assert transport.get_subscriber_count("s1") == 0
        await transport.destroy()


@pytest.mark.scenario(53)
async def test_an_old_handle_never_touches_a_later_subscription(replica):
    """Called twice, and after cleanup and reuse of the id."""
    transport = replica.transport
    await start(replica)
    first, second = Heard(), Heard()
    old = await first.attach(transport, "s1")
    cleaned = await first.attach(transport, "s1")
    await old.unsubscribe()
    await old.unsubscribe()
    await transport.cleanup("s1")
    await second.attach(transport, "s1")
    await old.unsubscribe()
    await cleaned.unsubscribe()
    assert transport.get_subscriber_count("s1") == 1
    await transport.emit_chunk("s1", 1)
    await second.until(1)
    assert first.all == []


@pytest.mark.scenario(60)
async def test_cleanup_drops_everything_local_of_an_id(replica, replica_b):
    """Count 0, nothing delivered, not tracked; other ids and other replicas are untouched."""
    transport = replica.transport
    for stream_id in ("s1", "s2"):
        await start(replica, stream_id)
    mine, other, far = Heard(), Heard(), Heard()
    aborts, ends, left = Calls(), Calls(), Calls()
    await mine.attach(transport, "s1")
    await transport.on_abort("s1", aborts)
    await transport.on_end("s1", ends)
    await transport.on_all_subscribers_left("s1", left)
    await other.attach(transport, "s2")
    await far.attach(replica_b.transport, "s1")
    assert sorted(transport.get_tracked_stream_ids()) == ["s1", "s2"]
    await transport.cleanup("s1")
    assert transport.get_subscriber_count("s1") == 0
    assert not transport.is_first_subscriber("s1")
    assert transport.get_tracked_stream_ids() == ["s2"]
    for stream_id in ("s1", "s2"):
        await transport.emit_chunk(stream_id, stream_id)
    await replica_b.transport.emit_abort("s1")
    await transport.emit_done("s1", None)
    await far.until(2)
    await other.until(1)
    assert (mine.all, aborts.count, ends.count, left.count) == ([], 0, 0, 0)
    assert far.all == [("chunk", "s1"), ("done", None)]


async def test_cleanup_of_an_unknown_id_is_fine(transport):
    """Nothing to do, nothing raised."""
    await transport.cleanup("nobody")
    assert transport.get_tracked_stream_ids() == []


async def test_tracked_ids_are_those_with_something_local(replica):
    """A subscriber, a callback, a reader; without them nothing is tracked."""
    transport = replica.transport
    assert transport.get_tracked_stream_ids() == []
    for stream_id in ("s1", "s2", "s3"):
        await start(replica, stream_id)
    subscription = await Heard().attach(transport, "s1")
    registration = await transport.on_abort("s2", Calls())
    async with transport.read("s3"):
        assert sorted(transport.get_tracked_stream_ids()) == ["s1", "s2", "s3"]
    await subscription.unsubscribe()
    await registration.dispose()
    await eventually(lambda: transport.get_tracked_stream_ids() == [])


@pytest.mark.scenario(57)
@pytest.mark.b_writes
async def test_listeners_that_are_no_subscribers_are_not_counted(replica, replica_b, caplog):
    """on_abort and on_end: no subscriber, no warning while events flow; a later subscriber starts at the live edge."""
    transport = replica.transport
    await start(replica)
    await transport.on_abort("s1", Calls())
    await transport.on_end("s1", Calls())
    for n in range(300):
        await replica_b.transport.emit_chunk("s1", n)
    await replica_b.transport.flush("s1")
    assert transport.get_subscriber_count("s1") == 0
    assert not transport.is_first_subscriber("s1")
    assert await replica_b.transport.count_subscribers("s1") == 0
    heard = Heard()
    await heard.attach(transport, "s1")
    assert transport.is_first_subscriber("s1")
    await replica_b.transport.emit_chunk("s1", "live")
    await replica_b.transport.emit_done("s1", None)
    await heard.until(2)
    assert heard.all == [("chunk", "live"), ("done", None)]
    assert not [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]
