"""What the engine stands on: every implementation of the ports does the same, on every server that is supported."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import nats
import pytest

from natsjobs.config import Config
from natsjobs.engine.ports import (
    Incoming,
    Link,
    NoReplyError,
    NoRespondersError,
    Sent,
    StreamMissingError,
    WrongSequenceError,
)
from natsjobs.engine.subjects import Subjects
from natsjobs.errors import EventTooLargeError, NotOpenError
from natsjobs.jetstream import NatsLink
from natsjobs.memory import MemoryLink, MemorySystem

SERVERS = {"nats-2.15": "newest_server", "nats-2.11": "oldest_server"}


class Ground:
    """One namespace on one server, and links to it."""

    def __init__(self, url: str | None) -> None:
        self.names = Subjects(f"p{uuid.uuid4().hex[:12]}")
        self._url = url
        self._system = MemorySystem(self.names.namespace)
        self._links: list[Link] = []
        self._connections: list[Any] = []

    def log(self, generation: str = "g") -> str:
        """The log subject of a generation."""
        return self.names.log("s", generation)

    def end(self, generation: str = "g") -> str:
        """The end subject of a generation."""
        return self.names.end("s", generation)

    def scope(self, generation: str = "g") -> str:
        """The filter that guards both."""
        return self.names.scope("s", generation)

    def key(self, *ids: str) -> str:
        """The subject of a key of the kind ``owner``."""
        return self.names.record("owner", *ids)

    async def link(self) -> Link:
        """A new, open link."""
        link = await self._new()
        self._links.append(link)
        await link.open()
        return link

    async def _new(self) -> Link:
        if self._url is None:
            return self._system.link()
        return NatsLink(await self.connection(), Config(namespace=self.names.namespace))

    async def connection(self) -> Any:
        """A connection past the library."""
        assert self._url
        nc = await nats.connect(self._url, reconnect_time_wait=0.05, max_reconnect_attempts=-1, error_cb=_ignore)
        self._connections.append(nc)
        return nc

    async def remove_streams(self) -> None:
        """Lose the streams, past the library."""
        if self._url is None:
            self._system.remove_streams()
            return
        nc = await self.connection()
        for stream in (self.names.events_stream, self.names.records_stream):
            answer = await nc.request(f"$JS.API.STREAM.DELETE.{stream}", timeout=10)
            assert json.loads(answer.data)

    def drop(self, link: Link) -> None:
        """Break the connection of a link once; it comes back by itself."""
        if isinstance(link, MemoryLink):
            link.disconnect()
            link.reconnect()
        else:
            nc = self._connections[self._links.index(link)]
            nc._transport._io_writer.transport.abort()

    async def close(self) -> None:
        """Close everything, and check that the links leave no task behind."""
        for link in self._links:
            for _ in range(4):  # more often than it was opened is fine
                await link.close()
        await self.remove_streams()
        for nc in self._connections:
            await nc.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 3
        while left := asyncio.all_tasks() - {asyncio.current_task()}:
            assert loop.time() < deadline, f"tasks left over: {left}"
            await asyncio.sleep(0.01)


class Ear:
    """Hears the bus and lets a test wait for what it hears."""

    def __init__(self) -> None:
        self.heard: list[Incoming] = []
        self._more = asyncio.Event()

    def __call__(self, incoming: Incoming) -> None:
        self.heard.append(incoming)
        self._more.set()

    async def until(self, count: int) -> list[Incoming]:
        """Wait for so many messages; all that were heard."""
        async with asyncio.timeout(10):
            while len(self.heard) < count:
                self._more.clear()
                await self._more.wait()
        return self.heard

    @property
    def bodies(self) -> list[bytes]:
        """What was heard."""
        return [incoming.body for incoming in self.heard]


async def _ignore(_: Exception) -> None:
    """What a connection reports here was provoked."""


@pytest.fixture(params=["memory", *SERVERS])
async def ground(request: pytest.FixtureRequest) -> AsyncIterator[Ground]:
    """A namespace of its own."""
    ground = Ground(request.getfixturevalue(SERVERS[request.param]) if request.param in SERVERS else None)
    try:
        yield ground
    finally:
        await ground.close()


@pytest.fixture
async def link(ground: Ground) -> Link:
    """An open link."""
    return await ground.link()


@pytest.fixture
async def other(ground: Ground, link: Link) -> Link:
    """A second link to the same server: another process."""
    return await ground.link()


def answering(link: Link, answer: bytes, tasks: set[asyncio.Task[None]]) -> Any:
    """A handler that answers every request."""

    def handle(incoming: Incoming) -> None:
        assert incoming.reply.startswith("_INBOX.")
        task = asyncio.create_task(link.bus.publish(incoming.reply, answer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    return handle


# -- appending ----------------------------------------------------------------------------------------------------


async def test_sequences_start_at_one_in_each_stream(ground: Ground, link: Link) -> None:
    """The two streams count for themselves, over all their subjects."""
    assert await link.events.append(ground.log("a"), b"1") == 1
    assert await link.events.append(ground.log("b"), b"2") == 2
    assert await link.records.append(ground.key("a"), b"3") == 1


async def test_an_append_that_expects_what_is_there_is_stored(ground: Ground, link: Link) -> None:
    """0 for nothing, then each time the sequence of the one before, on both subjects of the scope."""
    scope = ground.scope()
    assert await link.events.append(ground.log(), b"1", expect=0, scope=scope) == 1
    assert await link.events.append(ground.log("other"), b"-") == 2
    assert await link.events.append(ground.log(), b"2", expect=1, scope=scope) == 3
    assert await link.events.append(ground.end(), b"3", expect=3, scope=scope) == 4


@pytest.mark.parametrize("wrong", [0, 1, 3, 99])
async def test_an_append_that_expects_something_else_is_refused(ground: Ground, link: Link, wrong: int) -> None:
    """Nothing is stored, and the refusal names the true last sequence of the scope."""
    await link.events.append(ground.log(), b"1")
    await link.events.append(ground.end(), b"2")
    await link.events.append(ground.log("other"), b"3")
    with pytest.raises(WrongSequenceError) as caught:
        await link.events.append(ground.log(), b"x", expect=wrong, scope=ground.scope())
    assert caught.value.last == 2
    assert (await link.events.state()).last_seq == 3


async def sent(ground: Ground, link: Link, body: bytes, expect: int) -> tuple[int, Sent]:
    """What ``done`` was told about an append that was sent, which was not while it was being sent."""
    told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    way = link.events.send(ground.log(), body, expect=expect, scope=ground.scope(), done=told.set_result)
    assert way is not None
    assert not told.done()
    async with asyncio.timeout(20):
        return await told, way


async def test_an_append_can_be_sent_without_a_task(ground: Ground, link: Link) -> None:
    """One after the other; what was told is true."""
    for n in range(3):
        tasks = asyncio.all_tasks()
        seq, way = await sent(ground, link, str(n).encode(), n)
        assert seq == n + 1 == await way.outcome()
        assert asyncio.all_tasks() <= tasks
    assert [message.body for message in await link.events.page(ground.scope(), 1)] == [b"0", b"1", b"2"]


async def test_an_append_that_was_sent_and_not_stored_says_why(ground: Ground, link: Link) -> None:
    """``done`` hears 0, and whoever asks then hears what ``append`` would have raised."""
    await link.events.append(ground.log(), b"1")
    seq, way = await sent(ground, link, b"x", 0)
    assert seq == 0
    with pytest.raises(WrongSequenceError) as caught:
        await way.outcome()
    assert caught.value.last == 1
    assert (await link.events.state()).last_seq == 1


async def test_whoever_wants_to_send_at_the_end_of_a_turn_is_called_once(ground: Ground, link: Link) -> None:
    """Not before the turn is over; also who asks for it in the callback of another, and on a link that is closed."""
    called: list[int] = []

    def first() -> None:
        called.append(1)
        link.at_turn_end(lambda: called.append(3))

    link.at_turn_end(first)
    link.at_turn_end(lambda: called.append(2))
    assert called == []
    async with asyncio.timeout(20):
        while len(called) < 3:
            await asyncio.sleep(0)
    assert called == [1, 2, 3]
    assert (await link.events.state()).last_seq == 0
    assert called == [1, 2, 3]
    await link.close()
    link.at_turn_end(lambda: called.append(4))
    async with asyncio.timeout(20):
        while len(called) < 4:
            await asyncio.sleep(0)
    await link.open()


async def test_what_cannot_be_sent_at_once_is_not_sent(ground: Ground, link: Link) -> None:
    """Because it is too large, or the link is closed; ``append`` says so."""
    told: list[int] = []
    large = b"x" * (link.max_payload - 1000)
    assert link.events.send(ground.log(), large, expect=0, scope=ground.scope(), done=told.append) is None
    assert await link.events.state()
    await link.close()
    assert link.events.send(ground.log(), b"1", expect=0, scope=ground.scope(), done=told.append) is None
    await link.open()
    assert (await link.events.state()).last_seq == 0
    assert not told


async def test_without_a_scope_the_subject_itself_is_meant(ground: Ground, link: Link) -> None:
    """Other subjects of the same generation do not matter then."""
    await link.events.append(ground.log(), b"1")
    await link.events.append(ground.end(), b"2")
    assert await link.events.append(ground.log(), b"3", expect=1) == 3


async def test_expecting_something_where_nothing_is_is_refused_with_zero(ground: Ground, link: Link) -> None:
    """So a writer learns that its log is gone."""
    with pytest.raises(WrongSequenceError) as caught:
        await link.events.append(ground.log(), b"x", expect=7, scope=ground.scope())
    assert caught.value.last == 0


async def test_of_racing_writers_one_wins(ground: Ground, link: Link, other: Link) -> None:
    """Two links, two subjects, one guard: each round exactly one append is stored, and all agree which."""
    last = 0
    for round_ in range(20):
        writers = [(link, ground.log()), (other, ground.end()), (other, ground.log()), (link, ground.end())]
        body = str(round_).encode()
        tries = (w.events.append(subject, body, expect=last, scope=ground.scope()) for w, subject in writers)
        results = await asyncio.gather(*tries, return_exceptions=True)
        won = [result for result in results if isinstance(result, int)]
        assert len(won) == 1, results
        assert all(isinstance(result, int | WrongSequenceError) for result in results), results
        last = won[0]
    assert len(await other.events.page(ground.scope(), 1, batch=100)) == 20


@pytest.mark.parametrize("body", [b"", b"\x00\xff\r\n", "äöü€".encode(), b"x" * 100_000], ids=len)
async def test_bodies_come_back_as_they_went(ground: Ground, link: Link, other: Link, body: bytes) -> None:
    """By every way of reading, and on the bus."""
    ear = Ear()
    await other.bus.subscribe(ground.names.live("s"), ear)
    await link.events.append(ground.log(), body)
    first, last = await other.events.next(ground.scope()), await other.events.last(ground.log())
    assert first
    assert last
    page = await other.events.page(ground.scope(), 1)
    assert [first.body, last.body, page[0].body, (await ear.until(1))[0].body] == [body] * 4


async def test_the_largest_body_fits_and_a_larger_one_is_refused(ground: Ground, link: Link) -> None:
    """The limit is 1 KiB below ``max_payload``; what is over it costs neither the stream nor the connection."""
    limit = link.max_payload - 1024
    assert await link.events.append(ground.log(), b"x" * limit, expect=0, scope=ground.scope(), ttl=60) == 1
    with pytest.raises(EventTooLargeError) as caught:
        await link.events.append(ground.log(), b"x" * (link.max_payload + 1))
    assert caught.value.size == link.max_payload + 1
    assert (await link.events.state()).last_seq == 1
    assert link.connected_since


# -- reading ------------------------------------------------------------------------------------------------------


async def test_next_is_the_first_that_matches_from_there_on(ground: Ground, link: Link) -> None:
    """With and without wildcards; nothing behind the end."""
    for subject in (ground.log("a"), ground.log("b"), ground.end("a"), ground.log("a")):
        await link.events.append(subject, b"x")

    async def place(subject_filter: str, seq: int) -> int | None:
        found = await link.events.next(subject_filter, seq)
        return found and found.seq

    assert [await place(ground.log("a"), seq) for seq in (1, 2, 4, 5)] == [1, 4, 4, None]
    assert [await place(ground.scope("a"), seq) for seq in (1, 2, 3, 4)] == [1, 3, 3, 4]
    assert [await place(ground.names.all_generations("s"), seq) for seq in (1, 2, 5)] == [1, 2, None]
    assert await place(ground.log("c"), 1) is None


async def test_last_is_the_newest_that_matches(ground: Ground, link: Link) -> None:
    """With and without wildcards, and everything about the message."""
    await link.events.append(ground.log("a"), b"1")
    await link.events.append(ground.end("a"), b"2")
    await link.events.append(ground.log("b"), b"3")
    now = (await link.events.state()).now
    found = await link.events.last(ground.scope("a"))
    assert found
    assert (found.subject, found.seq, found.body, found.marker) == (ground.end("a"), 2, b"2", None)
    assert abs(found.time - now) < 5
    everywhere = await link.events.last(ground.names.all_events)
    assert everywhere
    assert everywhere.seq == 3
    assert await link.events.last(ground.scope("c")) is None


async def test_pages_are_whole_and_in_order(ground: Ground, link: Link) -> None:
    """Page by page, from any sequence on, every message that matches comes once; then an empty list."""
    wanted = [n for n in range(1, 151) if n % 3]
    for n in range(1, 151):
        subject = ground.end("a") if n % 5 == 0 and n % 3 else ground.log("a" if n % 3 else "b")
        await link.events.append(subject, str(n).encode())
    got: list[int] = []
    while page := await link.events.page(ground.scope("a"), got[-1] + 1 if got else 1):
        assert len(page) <= 64
        assert [message.body for message in page] == [str(message.seq).encode() for message in page]
        got += [message.seq for message in page]
    assert got == wanted
    assert [m.seq for m in await link.events.page(ground.scope("a"), 100, batch=3)] == [100, 101, 103]
    assert await link.events.page(ground.scope("a"), 151) == []
    assert await link.events.page(ground.scope("c"), 1) == []


async def test_a_page_over_many_subjects_is_in_order(ground: Ground, link: Link) -> None:
    """All keys of a kind, in the order of their last writes."""
    for n in range(40):
        await link.records.append(ground.key(f"k{n}"), b"old")
    for n in range(0, 40, 2):
        await link.records.append(ground.key(f"k{n}"), b"new")
    await link.records.append(ground.names.record("job", "k"), b"another kind")
    page = await link.records.page(ground.names.records("owner"), 1)
    odd, even = range(1, 40, 2), range(0, 40, 2)
    assert [m.subject for m in page] == [ground.key(f"k{n}") for n in [*odd, *even]]
    assert [m.seq for m in page] == sorted(m.seq for m in page)
    last = await link.records.last(ground.names.records("owner"))
    assert last
    assert last.subject == ground.key("k38")
    found = await link.records.next(ground.names.records("owner"), page[5].seq + 1)
    assert found
    assert found.subject == page[6].subject


async def test_a_page_is_bounded_in_bytes_and_never_empty_for_that(ground: Ground, link: Link) -> None:
    """Five messages of 40 kB and a limit of 100 kB: few at a time; a limit below one message: one."""
    for _ in range(5):
        await link.events.append(ground.log(), b"x" * 40_000)
    assert 1 <= len(await link.events.page(ground.scope(), 1, max_bytes=100_000)) <= 3
    assert [m.seq for m in await link.events.page(ground.scope(), 3, max_bytes=10)] == [3]


async def test_the_newest_of_many_subjects_come_at_once(ground: Ground, link: Link, other: Link) -> None:
    """With and without wildcards, oldest first; what is not there is left out."""
    for n in range(6):
        await link.records.append(ground.key("u", f"k{n % 4}"), b"%d" % n)
    await link.records.append(ground.key("v", "k0"), b"v")

    async def newest(*filters: str) -> list[bytes] | None:
        found = await other.records.newest(filters)
        return None if found is None else [message.body for message in found]

    assert await newest(ground.names.records("owner", "u")) == [b"2", b"3", b"4", b"5"]
    assert await newest(ground.key("u", "k1"), ground.key("v", "k0"), ground.key("u", "none")) == [b"5", b"v"]
    assert await newest(ground.names.records("owner", "w")) == []


@pytest.mark.parametrize(("count", "size"), [(65, 1), (1030, 1), (9, 65_536)])
async def test_more_newest_than_a_page_do_not_come_at_once(ground: Ground, link: Link, count: int, size: int) -> None:
    """A part would look like all, but for the newest, which is never in it; the oldest servers send them all."""
    await asyncio.gather(*(link.records.append(ground.key("u", f"k{n}"), b"x" * size) for n in range(count)))
    found = await link.records.newest([ground.names.records("owner", "u")])
    assert found is None or len(found) == count or found[-1].seq < count


async def test_of_many_subjects_only_what_is_newer_comes(ground: Ground, link: Link, other: Link) -> None:
    """The newest message of each, from a sequence on, oldest first, and how far the stream was."""
    names = [f"g{n}" for n in range(256)]
    scopes = [ground.scope(name) for name in names]
    assert await other.events.newer(scopes, 1) is None
    for name in names:
        await link.events.append(ground.log(name), b"x" * (50_000 if name < "g19" else 1))
    for name in ("g7", "g3"):
        await link.events.append(ground.end(name), name.encode())
    await link.events.append(ground.log("of another"), b"")

    async def newer(seq: int) -> list[int]:
        found: list[int] = []
        while True:
            answer = await other.events.newer(scopes, seq)
            assert answer is not None
            assert answer.upto == 259
            found += [message.seq for message in answer.messages]
            if answer.whole:
                return found
            seq = found[-1] + 1

    assert await newer(1) == [*range(1, 259)]
    assert await newer(200) == [*range(200, 259)]
    assert await newer(257) == [257, 258]
    assert await newer(259) == []


async def test_it_is_told_how_many_of_many_subjects_hold_something(ground: Ground, link: Link, other: Link) -> None:
    """However many there are, and however large their messages."""
    names = [ground.log(f"s{n}") for n in range(256)]
    assert await other.events.held(names[:3]) == 0
    await asyncio.gather(
        *(link.events.append(name, b"x" * (200_000 if name in names[:4] else 1)) for name in names[1:])
    )
    await link.events.append(names[1], b"more")
    await link.events.append(ground.end("s0"), b"no log")

    async def held(*asked: str) -> int:
        found = await other.events.held(asked)
        assert found is not None
        return found

    assert await held(*names) == 255
    assert await held(*names[:9]) == 8
    assert await held(*names[1:4]) == 3
    assert await held(names[1]) == 1
    assert await held(names[0]) == 0


async def test_subjects_are_counted(ground: Ground, link: Link) -> None:
    """Only those that match and hold something."""
    for subject in (ground.log("a"), ground.log("a"), ground.end("a"), ground.log("b")):
        await link.events.append(subject, b"x")
    assert await link.events.subjects(ground.scope("a")) == {ground.log("a"): 2, ground.end("a"): 1}
    assert await link.events.subjects(ground.names.all_generations("s")) == {
        ground.log("a"): 2,
        ground.end("a"): 1,
        ground.log("b"): 1,
    }
    assert await link.events.subjects(ground.scope("c")) == {}


async def test_the_state_tells_what_is_there(ground: Ground, link: Link, other: Link) -> None:
    """Two links see the same stream, it grows, and its clock goes on."""
    before = await link.events.state()
    assert before.last_seq == 0
    assert before.last_time <= 0
    await link.events.append(ground.log(), b"x" * 1000)
    after = await other.events.state()
    assert after.created == before.created
    assert after.last_seq == 1
    assert after.bytes >= before.bytes + 1000
    assert after.now >= before.now
    newest = await link.events.last(ground.scope())
    assert newest is not None
    assert after.last_time == newest.time


# -- what replaces and removes ------------------------------------------------------------------------------------


async def test_a_key_holds_its_newest_value_only(ground: Ground, link: Link) -> None:
    """The records keep one message per subject; the events keep all."""
    for body in (b"1", b"2"):
        await link.records.append(ground.key("a"), body)
        await link.events.append(ground.log(), body)
    assert [m.body for m in await link.records.page(ground.key("a"), 1)] == [b"2"]
    assert [m.body for m in await link.events.page(ground.log(), 1)] == [b"1", b"2"]


async def test_a_rollup_replaces_its_subject_and_nothing_else(ground: Ground, link: Link, other: Link) -> None:
    """Guarded like any append; it arrives live; a writer that expects what it replaced is refused."""
    for subject in (ground.log("a"), ground.log("b"), ground.log("a"), ground.end("a")):
        await link.events.append(subject, b"x")
    ear = Ear()
    await other.bus.subscribe(ground.names.live("s"), ear)
    with pytest.raises(WrongSequenceError):
        await link.events.append(ground.log("a"), b"gone", expect=3, scope=ground.scope("a"), rollup=True, ttl=60)
    assert await link.events.append(ground.log("a"), b"gone", expect=4, scope=ground.scope("a"), rollup=True) == 5
    assert [m.seq for m in await link.events.page(ground.names.all_events, 1)] == [2, 4, 5]
    assert [(i.seq, i.body, i.marker) for i in await ear.until(1)] == [(5, b"gone", None)]
    with pytest.raises(WrongSequenceError) as caught:
        await link.events.append(ground.log("a"), b"x", expect=3, scope=ground.scope("a"))
    assert caught.value.last == 5


async def test_a_removal_leaves_a_marker(ground: Ground, link: Link, other: Link) -> None:
    """It is read and heard as a marker, may carry a body, and is the sequence that the next writer expects."""
    ear = Ear()
    await other.bus.subscribe(ground.names.changes("owner"), ear)
    await link.records.append(ground.key("a"), b"value")
    assert await link.records.append(ground.key("a"), b"17", expect=1, marker=True, ttl=60) == 2
    with pytest.raises(WrongSequenceError):
        await other.records.append(ground.key("a"), b"late", expect=1)
    found = await other.records.last(ground.key("a"))
    page = await other.records.page(ground.names.records("owner"), 1)
    first = await other.records.next(ground.names.records("owner"))
    assert found
    assert (found.seq, found.body, found.marker) == (2, b"17", "PURGE")
    assert [found] == page == [first]
    heard = await ear.until(2)
    assert [(i.seq, i.body, i.marker) for i in heard] == [(1, b"value", None), (2, b"17", "PURGE")]
    assert ground.names.split_record(heard[1].subject) == ("owner", "a")
    assert await other.records.append(ground.key("a"), b"again", expect=2) == 3


async def test_a_record_that_expires_leaves_a_marker(ground: Ground, link: Link, other: Link) -> None:
    """The server says so on the bus; the marker is empty, has a sequence of its own and can be written over."""
    ear = Ear()
    await other.bus.subscribe(ground.names.changes("owner"), ear)
    await link.records.append(ground.key("a"), b"value", ttl=0.2)
    stored = await link.records.last(ground.key("a"))
    heard = await ear.until(2)
    assert stored
    assert (heard[1].seq, heard[1].body, heard[1].marker) == (2, b"", "MaxAge")
    assert ground.names.split_record(heard[1].subject) == ("owner", "a")
    marker = await other.records.last(ground.key("a"))
    assert marker
    assert (marker.seq, marker.body, marker.marker) == (2, b"", "MaxAge")
    assert marker.time - stored.time >= 0.99  # whole seconds, rounded up
    assert await other.records.append(ground.key("a"), b"again", expect=2, ttl=60) == 3


async def test_a_record_that_is_renewed_does_not_expire(ground: Ground, link: Link) -> None:
    """A newer value has its own TTL or none: that of the older one is forgotten."""
    ear = Ear()
    await link.bus.subscribe(ground.names.changes("owner"), ear)
    for key in ("a", "b", "c"):
        await link.records.append(ground.key(key), b"1", ttl=1)
    await link.records.append(ground.key("a"), b"2")
    await link.records.append(ground.key("b"), b"2", ttl=60)
    await ear.until(6)
    assert (ear.heard[5].seq, ear.heard[5].marker) == (6, "MaxAge")
    await link.records.append(ground.key("d"), b"later", ttl=1)
    await ear.until(8)
    assert [ground.names.split_record(i.subject) for i in ear.heard if i.marker] == [("owner", "c"), ("owner", "d")]


async def test_a_removal_that_expires_leaves_nothing(ground: Ground, link: Link) -> None:
    """A marker with a TTL goes without another marker, and the key is as new."""
    ear = Ear()
    await link.bus.subscribe(ground.names.changes("owner"), ear)
    await link.records.append(ground.key("a"), b"1")
    await link.records.append(ground.key("a"), b"", marker=True, ttl=1)
    await link.records.append(ground.key("b"), b"1", ttl=2)
    await ear.until(4)
    assert [(i.seq, i.marker) for i in ear.heard] == [(1, None), (2, "PURGE"), (3, None), (4, "MaxAge")]
    assert await link.records.last(ground.key("a")) is None
    assert await link.records.append(ground.key("a"), b"2", expect=0) == 5


async def test_an_event_that_expires_leaves_nothing(ground: Ground, link: Link) -> None:
    """No marker, no subject; only 0 may be expected afterwards."""
    ear = Ear()
    await link.bus.subscribe(f"{ground.names.live_prefix}>", ear)
    await link.events.append(ground.log(), b"1", ttl=1)
    async with asyncio.timeout(10):
        while await link.events.next(ground.log()):
            await asyncio.sleep(0.05)
    assert await link.events.subjects(ground.names.all_events) == {}
    with pytest.raises(WrongSequenceError) as caught:
        await link.events.append(ground.log(), b"2", expect=1, scope=ground.scope())
    assert caught.value.last == 0
    assert await link.events.append(ground.log(), b"2", expect=0, scope=ground.scope()) == 2
    assert [i.seq for i in await ear.until(2)] == [1, 2]


# -- what is stored is published ----------------------------------------------------------------------------------


async def test_what_is_appended_is_heard_in_order(ground: Ground, link: Link, other: Link) -> None:
    """Under the live subject, with its sequence, on every link, own ones included."""
    near, far = Ear(), Ear()
    await link.bus.subscribe(ground.names.live("s"), near)
    await other.bus.subscribe(ground.names.live_end("s", "g"), far)
    for n in range(50):
        await link.events.append(ground.log(), str(n).encode())
    await link.events.append(ground.end(), b"end")
    heard = await near.until(51)
    assert [(i.seq, i.body) for i in heard] == [*((n + 1, str(n).encode()) for n in range(50)), (51, b"end")]
    assert {ground.names.split_event(i.subject) for i in heard} == {("s", "g", "log"), ("s", "g", "end")}
    assert [(i.seq, i.reply, i.marker) for i in await far.until(1)] == [(51, "", None)]


async def test_what_is_heard_is_stored(ground: Ground, link: Link, other: Link) -> None:
    """Whoever hears a message can read it: durable before visible."""
    ear = Ear()
    await other.bus.subscribe(ground.names.live("s"), ear)
    for n in range(20):
        task = asyncio.create_task(link.events.append(ground.log(), b"x"))
        heard = (await ear.until(n + 1))[n]
        assert await other.events.next(ground.log(), heard.seq)
        await task


async def test_namespaces_do_not_hear_each_other(ground: Ground, link: Link) -> None:
    """An interest in everything of one namespace hears nothing of another on the same server."""
    ear = Ear()
    await link.bus.subscribe(f"{ground.names.namespace}x.>", ear)
    await link.bus.subscribe(f"{ground.names.namespace}.live.>", ear)
    await link.records.append(ground.key("a"), b"1")
    await link.bus.publish(ground.names.abort("s"), b"2")
    await link.events.append(ground.log(), b"3")
    await ear.until(1)
    assert ear.bodies == [b"3"]


# -- the bus ------------------------------------------------------------------------------------------------------


async def test_what_is_published_after_subscribe_returned_is_heard(ground: Ground, link: Link, other: Link) -> None:
    """By another link on the same server, from the first message on, in order, with wildcards."""
    for n in range(20):
        ear = Ear()
        interest = await other.bus.subscribe(f"{ground.names.namespace}.n{n}.*", ear)
        for word in (b"a", b"b", b"c"):
            await link.bus.publish(f"{ground.names.namespace}.n{n}.{word.decode()}", word)
        await ear.until(3)
        assert ear.bodies == [b"a", b"b", b"c"]
        assert {i.seq for i in ear.heard} == {0}
        await interest.unsubscribe()


async def test_what_is_asked_behind_an_interest_confirms_it(ground: Ground, link: Link, other: Link) -> None:
    """Nothing is waited for before the answer, and then nothing more."""
    for n in range(20):
        ear, subject = Ear(), f"{ground.names.namespace}.n{n}"
        interest = await other.bus.subscribe(subject, ear, sure=False)
        await other.events.last(ground.log())
        await interest.confirm()
        await link.bus.publish(subject, b"x")
        await ear.until(1)
        await interest.unsubscribe()


async def test_an_interest_is_confirmed_without_a_question_too(ground: Ground, link: Link, other: Link) -> None:
    """Then that is waited for, as ``subscribe`` does by itself."""
    for n in range(20):
        ear, subject = Ear(), f"{ground.names.namespace}.n{n}"
        interest = await other.bus.subscribe(subject, ear, sure=False)
        await interest.confirm()
        await link.bus.publish(subject, b"x")
        await ear.until(1)
        await interest.unsubscribe()


async def test_an_interest_that_was_ended_hears_nothing(ground: Ground, link: Link) -> None:
    """Twice is fine, others are not touched, and to a requester nobody is there any more."""
    gone, there = Ear(), Ear()
    subject = ground.names.abort("s")
    first = await link.bus.subscribe(subject, gone)
    second = await link.bus.subscribe(subject, there)
    await first.unsubscribe()
    await first.unsubscribe()
    await link.bus.publish(subject, b"x")
    await there.until(1)
    assert not gone.heard
    await second.unsubscribe()
    with pytest.raises(NoRespondersError):
        await link.bus.request(subject, b"?", timeout=5)


async def test_a_handler_that_fails_loses_nothing_of_later_messages(ground: Ground, link: Link) -> None:
    """The loop's exception handler hears of it, or the log; the interest goes on."""
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    ear = Ear()

    def handle(incoming: Incoming) -> None:
        ear(incoming)
        if incoming.body == b"1":
            raise RuntimeError("provoked")

    await link.bus.subscribe(ground.names.abort("s"), handle)
    for body in (b"1", b"2"):
        await link.bus.publish(ground.names.abort("s"), body)
    await ear.until(2)
    assert ear.bodies == [b"1", b"2"]


async def test_a_request_gets_its_answer(ground: Ground, link: Link, other: Link) -> None:
    """Many at once, each its own."""
    tasks: set[asyncio.Task[None]] = set()

    def echo(incoming: Incoming) -> None:
        task = asyncio.create_task(other.bus.publish(incoming.reply, incoming.body))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    await other.bus.subscribe(ground.names.owner("r"), echo)
    requests = (link.bus.request(ground.names.owner("r"), str(n).encode(), timeout=10) for n in range(50))
    assert await asyncio.gather(*requests) == [str(n).encode() for n in range(50)]


async def test_a_request_to_nobody_fails_at_once(ground: Ground, link: Link, other: Link) -> None:
    """Long before the time is over, as a request and as a gathering."""
    async with asyncio.timeout(2):
        with pytest.raises(NoRespondersError):
            await link.bus.request(ground.names.owner("r"), b"?", timeout=30)
        with pytest.raises(NoRespondersError):
            await link.bus.gather(ground.names.presence("s"), b"?", timeout=30)


async def test_silence_is_not_absence(ground: Ground, link: Link, other: Link) -> None:
    """Interest without an answer is another error, after the time."""
    ear = Ear()
    await other.bus.subscribe(ground.names.owner("r"), ear)
    begun = asyncio.get_running_loop().time()
    with pytest.raises(NoReplyError):
        await link.bus.request(ground.names.owner("r"), b"1", timeout=0.2)
    with pytest.raises(NoReplyError):
        await link.bus.gather(ground.names.owner("r"), b"2", timeout=0.2)
    assert asyncio.get_running_loop().time() - begun >= 0.39
    assert ear.bodies == [b"1", b"2"]


async def test_all_answers_are_gathered(ground: Ground, link: Link, other: Link) -> None:
    """Until the time is over, or until it is enough."""
    tasks: set[asyncio.Task[None]] = set()
    for word, by in ((b"a", link), (b"b", other), (b"c", other)):
        await by.bus.subscribe(ground.names.presence("s"), answering(by, word, tasks))
    assert sorted(await link.bus.gather(ground.names.presence("s"), b"?", timeout=0.3)) == [b"a", b"b", b"c"]
    async with asyncio.timeout(10):
        some = await link.bus.gather(ground.names.presence("s"), b"?", timeout=60, enough=lambda got: len(got) == 2)
    assert len(some) >= 2


# -- the link -----------------------------------------------------------------------------------------------------


async def test_a_link_is_opened_and_closed_as_often_as_one_likes(ground: Ground, link: Link) -> None:
    """A store and a transport share one; it stays the same one."""
    await link.open()
    assert link.connected_since is not None
    assert link.max_payload == 1_048_576
    await link.events.append(ground.log(), b"1")
    await link.open()
    assert (await link.events.state()).last_seq == 1


async def test_a_broken_connection_comes_back_with_its_interests(ground: Ground, link: Link, other: Link) -> None:
    """The callbacks run once requests succeed; one that was removed does not."""
    ear, back = Ear(), asyncio.Event()
    await link.bus.subscribe(ground.names.live("s"), ear)
    before = link.connected_since
    assert before is not None
    link.on_reconnect(back.set)
    removed: list[int] = []
    link.on_reconnect(lambda: removed.append(1))()
    ground.drop(link)
    async with asyncio.timeout(10):
        await back.wait()
    assert link.connected_since is not None
    assert link.connected_since > before
    assert await link.events.append(ground.log(), b"1") == 1
    assert await other.events.append(ground.log(), b"2") == 2
    await ear.until(2)
    assert ear.bodies == [b"1", b"2"]
    assert not removed


async def outcome(ground: Ground, link: Link) -> int:
    """Of an append that was sent."""
    _, way = await sent(ground, link, b"2", 1)
    return await way.outcome()


CALLS: dict[str, Callable[[Ground, Link], Awaitable[object]]] = {
    "append": lambda ground, link: link.events.append(ground.log(), b"2", expect=1, scope=ground.scope()),
    "send": outcome,
    "next": lambda ground, link: link.events.next(ground.log()),
    "last": lambda ground, link: link.events.last(ground.log()),
    "page": lambda ground, link: link.events.page(ground.log(), 1),
    "subjects": lambda ground, link: link.events.subjects(ground.scope()),
    "state": lambda ground, link: link.events.state(),
}


@pytest.mark.parametrize("call", CALLS)
async def test_missing_streams_are_named_as_such(ground: Ground, link: Link, call: str) -> None:
    """By the call that finds out, whichever it is; soon they are there anew, and that shows."""
    before = await link.events.state()
    await link.events.append(ground.log(), b"1")
    await ground.remove_streams()
    with pytest.raises(StreamMissingError):
        await CALLS[call](ground, link)
    async with asyncio.timeout(10):
        while True:
            try:
                after = await link.events.state()
            except StreamMissingError:
                await asyncio.sleep(0.1)
            else:
                break
    assert after.created != before.created
    assert after.last_seq == 0
    assert await link.events.append(ground.log(), b"1", expect=0, scope=ground.scope()) == 1


async def test_every_open_has_its_close(ground: Ground, link: Link) -> None:
    """The last close ends the link's interests, and calls say what is missing; then it can be opened again."""
    ear = Ear()
    await link.bus.subscribe(ground.names.abort("s"), ear)
    await link.open()
    await link.close()
    await link.bus.publish(ground.names.abort("s"), b"1")
    await ear.until(1)
    await link.close()
    assert link.connected_since is None
    await link.bus.publish(ground.names.abort("s"), b"1")  # which is silent
    with pytest.raises(NotOpenError):
        await link.events.state()
    with pytest.raises(NotOpenError):
        await link.bus.subscribe(ground.names.abort("s"), ear)
    with pytest.raises(NotOpenError):
        await link.bus.request(ground.names.abort("s"), b"?", timeout=1)
    await link.open()
    with pytest.raises(NoRespondersError):
        await link.bus.request(ground.names.abort("s"), b"?", timeout=5)
