"""The port ``Stream`` on real servers: the newest and the oldest that is supported."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import pytest
from jetstream_kit import Space, cluster, config, leader_of, space
from timeline_kit import DeafProxy
from waiting import eventually

from natsjobs.engine.ports import Incoming, StreamMissingError, WrongSequenceError
from natsjobs.errors import EventTooLargeError, StreamFullError, UnavailableError
from natsjobs.jetstream.answers import Info, Numbers


@pytest.fixture(params=["newest_server", "oldest_server"])
async def here(request: pytest.FixtureRequest) -> AsyncIterator[Space]:
    """A namespace on a server of either version."""
    async with space(request.getfixturevalue(request.param)) as made:
        yield made


async def test_what_was_appended_is_read_back_as_it_was_stored(here: Space) -> None:
    """Subject, sequence, body and server time come back, from the leader and from a page alike."""
    before = time.time()
    assert await here.append(b'{"a":1}', expect=0) == 1
    assert await here.append("ü\r\n\x00".encode(), expect=1) == 2
    first, second = await here.link.events.page(here.scope, 1)
    assert (first.subject, first.seq, first.body, first.marker) == (here.log, 1, b'{"a":1}', None)
    assert second.body == "ü\r\n\x00".encode()
    assert before - 5 < first.time <= second.time < time.time() + 5
    for message in (first, second):
        found = await here.link.events.next(here.scope, message.seq)
        assert found is not None
        assert abs(found.time - message.time) < 1e-3
        assert (found.subject, found.seq, found.body, found.marker) == (
            message.subject,
            message.seq,
            message.body,
            None,
        )
    assert await here.link.events.last(here.scope) == await here.link.events.next(here.scope, 2)


async def test_nothing_there_is_none_and_an_empty_page(here: Space) -> None:
    """Readers tell nothing apart from an error."""
    assert await here.link.events.next(here.scope) is None
    assert await here.link.events.last(here.scope) is None
    assert await here.link.events.page(here.scope, 1) == []
    await here.append(b"x", expect=0)
    assert await here.link.events.next(here.scope, 2) is None
    assert await here.link.events.page(here.scope, 2) == []


async def test_of_racing_writers_exactly_one_wins_each_place(here: Space) -> None:
    """Compare-and-set over log and end, under one filter; the losers learn the true last sequence."""

    async def write(subject: str, expect: int) -> bool:
        try:
            await here.link.events.append(subject, b"x", expect=expect, scope=here.scope)
        except WrongSequenceError as error:
            refusals.append((expect, error.last))
            return False
        return True

    refusals: list[tuple[int, int | None]] = []

    last = 0
    for _ in range(40):
        won = await asyncio.gather(*(write(subject, last) for subject in (here.log, here.end, here.log)))
        assert sum(won) == 1
        newest = await here.link.events.last(here.scope)
        assert newest is not None
        last = newest.seq
    assert last == 40
    assert len(refusals) == 80
    assert all(named is None or named == expected + 1 for expected, named in refusals)


async def test_a_refused_append_names_the_last_sequence(here: Space) -> None:
    """10071 carries the number, so that the next attempt can be right."""
    await here.append(b"1", expect=0)
    with pytest.raises(WrongSequenceError) as refused:
        await here.append(b"2", expect=0)
    assert refused.value.last == 1
    with pytest.raises(WrongSequenceError) as refused:
        await here.link.events.append(here.names.log("other", "g"), b"2", expect=7)
    assert refused.value.last == 0


async def test_a_rollup_replaces_all_earlier_messages_of_the_subject(here: Space) -> None:
    """One message is left, and the next writer has to expect it."""
    for n in range(3):
        await here.append(b"x", expect=n)
    assert await here.append(b"gone", expect=3, rollup=True, ttl=3600) == 4
    assert [message.body for message in await here.link.events.page(here.scope, 1)] == [b"gone"]
    with pytest.raises(WrongSequenceError) as refused:
        await here.append(b"zombie", expect=3)
    assert refused.value.last == 4


async def test_a_ttl_ends_a_message_of_the_log_without_a_marker(here: Space) -> None:
    """Fractions are rounded up to whole seconds, and nothing stays."""
    await here.append(b"x", expect=0, ttl=0.2)
    assert await here.link.events.last(here.scope) is not None

    async def gone() -> bool:
        return await here.link.events.last(here.scope) is None

    await eventually(gone)
    assert (await here.link.events.state()).last_seq == 1


async def test_a_lapsed_lease_is_seen_by_those_who_watch_the_bucket(here: Space) -> None:
    """The marker arrives on ``{ns}.kv.>`` soon after the TTL: the markers' own, longer TTL does not raise it."""
    heard: list[Incoming] = []
    await here.link.bus.subscribe(here.names.changes("owner"), heard.append)
    started = time.monotonic()
    seq = await here.link.records.append(here.record, b'{"id":"me"}', ttl=1)
    await eventually(lambda: len(heard) == 2)
    assert 0.9 < time.monotonic() - started < 4
    put, marker = heard
    assert (put.body, put.seq, put.marker) == (b'{"id":"me"}', seq, None)
    assert (marker.body, marker.seq, marker.marker) == (b"", seq + 1, "MaxAge")
    assert here.names.split_record(marker.subject) == ("owner", "me")
    stored = await here.link.records.last(here.record)
    assert stored is not None
    assert (stored.marker, stored.seq) == ("MaxAge", seq + 1)
    assert await here.link.records.append(here.record, b"again", expect=seq + 1) == seq + 2


async def test_a_removed_record_leaves_a_marker_until_its_ttl_and_then_nothing(here: Space) -> None:
    """KV PURGE by compare-and-set: seen by watchers, by the leader and in pages; then gone from enumerations."""
    heard: list[Incoming] = []
    await here.link.bus.subscribe(here.names.changes("owner"), heard.append)
    seq = await here.link.records.append(here.record, b"x", expect=0)
    with pytest.raises(WrongSequenceError):
        await here.link.records.append(here.record, b"", expect=seq + 1, marker=True, ttl=1)
    removed = await here.link.records.append(here.record, b"", expect=seq, marker=True, ttl=1)
    found = await here.link.records.last(here.record)
    assert found is not None
    assert (found.seq, found.marker) == (removed, "PURGE")
    assert [message.marker for message in await here.link.records.page(here.record, 1)] == ["PURGE"]
    await eventually(lambda: [one.marker for one in heard] == [None, "PURGE"])

    async def gone() -> bool:
        return await here.link.records.last(here.record) is None

    await eventually(gone)
    assert await here.link.records.subjects(f"{here.names.record_prefix}>") == {}


async def test_the_bucket_keeps_one_message_per_key_and_pages_over_all_of_them(here: Space) -> None:
    """An enumeration by wildcard, page by page, has every key once."""
    keys = {here.names.record("active", "u", f"c{n}") for n in range(150)}
    for _ in range(2):
        await asyncio.gather(*(here.link.records.append(key, b"{}") for key in keys))
    seen: list[str] = []
    at = 1
    while page := await here.link.records.page(here.names.records("active"), at):
        assert len(page) <= 64
        seen += [message.subject for message in page]
        at = page[-1].seq + 1
    assert sorted(seen) == sorted(keys)
    assert await here.link.records.subjects(here.names.records("active")) == dict.fromkeys(keys, 1)


async def test_a_page_has_at_least_one_message_however_large(here: Space) -> None:
    """``max_bytes`` bounds a page and never blocks a reader."""
    large = b"x" * (here.link.max_payload - 2048)
    for n, body in enumerate([large, b"s", large, b"s"]):
        await here.append(body, expect=n)
    sizes: list[list[int]] = []
    at = 1
    while page := await here.link.events.page(here.scope, at, max_bytes=1000):
        sizes.append([len(message.body) for message in page])
        at = page[-1].seq + 1
    assert [size for page in sizes for size in page] == [len(large), 1, len(large), 1]
    assert all(len(page) == 1 for page in sizes if page[0] > 1000)


async def test_a_page_ends_at_its_batch_and_its_bytes(here: Space) -> None:
    """Both limits hold, so a reader of small pages never stalls the writers."""
    for n in range(10):
        await here.append(b"x" * 1000, expect=n)
    page = await here.link.events.page(here.scope, 3, batch=4)
    assert [message.seq for message in page] == [3, 4, 5, 6]
    page = await here.link.events.page(here.scope, 1, max_bytes=3500)
    assert 1 <= len(page) <= 4
    assert [message.seq for message in page] == list(range(1, len(page) + 1))


@pytest.mark.parametrize("removed", [1, 4, 7, 30], ids=lambda n: f"{n} removed")
async def test_a_list_in_parts_misses_nothing_that_stays(
    here: Space, monkeypatch: pytest.MonkeyPatch, removed: int
) -> None:
    """The server counts anew for each part; what is removed between two moves others out of the next one's sight."""
    names, offsets = [f"subject.{n:03d}" for n in range(200)], list[int]()
    stay = set(names[100:])

    async def answer(query: dict[str, Any]) -> Info:
        """As a server that tells ten at a time, from which the first are removed meanwhile."""
        offset = query["offset"]
        offsets.append(offset)
        part = names[offset : offset + 10]
        told = Info(created="x", total=len(names), offset=offset, state=Numbers(subjects=dict.fromkeys(part, 1)))
        if names[0] not in stay:
            del names[: min(removed, names.index("subject.100"))]
        return told

    stream: Any = here.link.events
    monkeypatch.setattr(stream, "_ask", answer)
    assert stay <= (await stream.subjects(">")).keys()
    assert len(offsets) < 100


async def test_the_state_tells_the_stream_and_the_servers_clock(here: Space) -> None:
    """``created`` stays, ``last_seq`` and ``bytes`` grow, ``now`` runs."""
    before = await here.link.events.state()
    await here.append(b"x", expect=0)
    after = await here.link.events.state()
    assert before.created == after.created != ""
    assert (before.last_seq, after.last_seq, after.max_bytes) == (0, 1, -1)
    assert after.bytes > before.bytes
    assert before.now <= after.now
    assert abs(after.now - time.time()) < 5


async def test_too_large_is_refused_before_it_is_sent_and_the_connection_stays(here: Space) -> None:
    """The server would close the connection for good; up to the limit everything fits."""
    client_id = here.nc.client_id
    for size in (here.link.max_payload - 1023, here.link.max_payload + 1, 3 * here.link.max_payload):
        with pytest.raises(EventTooLargeError) as refused:
            await here.append(b"x" * size, expect=0)
        assert refused.value.size == size
    with pytest.raises(EventTooLargeError):
        await here.link.bus.publish("any.subject", b"x" * (here.link.max_payload + 1))
    long_id = here.names.log("é" * 128, "g")
    body = b"x" * (here.link.max_payload - 1024)
    assert await here.link.events.append(long_id, body, expect=0, scope=here.names.scope("é" * 128, "g")) == 1
    found = await here.link.events.last(long_id)
    assert found is not None
    assert found.body == body
    assert (here.nc.client_id, here.nc.is_connected) == (client_id, True)


async def test_a_full_stream_is_told_apart_from_an_unavailable_one(here: Space) -> None:
    """10077 arrives as a 503 and is a ``StreamFullError`` that did not happen."""
    js = here.nc.jetstream()
    info = await js.stream_info(here.names.events_stream)
    await js.update_stream(info.config, max_bytes=10_000)

    async def fill() -> None:
        for _ in range(100):
            await here.append(b"x" * 1000)

    with pytest.raises(StreamFullError) as full:
        await fill()
    assert not full.value.outcome_unknown
    assert (await here.link.events.state()).max_bytes == 10_000
    assert here.link.connected_since is not None


async def test_an_acknowledgement_that_is_none_is_an_unknown_outcome(here: Space) -> None:
    """Somebody else answers where the stream should, with anything: the write may have happened."""
    answers = [b"", b"garbage", b'{"stream": 7}', b"[1]", b"\xff\xfe", b'{"error": "no object"}', b"[" * 5000]

    async def reply(msg: Any) -> None:
        await msg.respond(answers[0])

    await here.nc.subscribe("elsewhere", cb=reply)
    while answers:
        with pytest.raises(UnavailableError) as unknown:
            await here.link.events.append("elsewhere", b"x")
        assert unknown.value.outcome_unknown, answers[0]
        answers.pop(0)


async def test_a_missing_stream_is_named_and_made_again(here: Space) -> None:
    """Every call says ``StreamMissingError``; the link creates the stream meanwhile (B11)."""
    calls: list[Any] = [
        lambda: here.append(b"x"),
        lambda: here.link.events.next(here.scope),
        lambda: here.link.events.last(here.scope),
        lambda: here.link.events.page(here.scope, 1),
        lambda: here.link.events.subjects(">"),
        lambda: here.link.events.state(),
    ]
    for call in calls:
        await asyncio.sleep(0)
        here.link._remade = 0.0
        here.link.events._looked = 0.0
        await here.nc.request(f"$JS.API.STREAM.DELETE.{here.names.events_stream}", timeout=5)
        with pytest.raises(StreamMissingError):
            await call()
        await call()


async def test_a_read_that_nobody_answers_is_asked_again(newest_server: str) -> None:
    """A stream without a leader drops what it is asked; who asked must not wait for a time-out when there is one."""
    async with DeafProxy(int(newest_server.rpartition(":")[2])) as wire, space(wire.url, config(request=30.0)) as here:
        await here.append(b"x", expect=0)
        for read in (here.link.events.last, here.link.events.next):
            wire.deaf = True
            reading = asyncio.ensure_future(read(here.scope))
            await eventually(lambda: wire.swallowed)
            wire.deaf, wire.swallowed = False, 0
            async with asyncio.timeout(10):
                assert await reading


async def answers_without_a_leader(made: Space) -> bool:
    """Whether the server goes so far as to describe a stream of which it knows no leader, as if nothing were wrong."""
    try:
        reply = await made.nc.request(f"$JS.API.STREAM.INFO.{made.names.events_stream}", timeout=1)
    except nats.errors.TimeoutError:
        return False  # it has not noticed yet
    answer = json.loads(reply.data)
    return "error" not in answer and "leader" not in answer["cluster"]


async def test_no_leader_fails_at_once_and_nothing_was_stored(tmp_path: Path) -> None:
    """Two of three servers gone: the engine hears it in no time, and backs off itself."""
    async with cluster(tmp_path) as (servers, made):
        await made.append(b"x", expect=0)
        leader = await leader_of(made)
        servers[leader].stop()
        others = [name for name in servers if name != leader]
        servers[others[0]].stop()

        async def fails_at_once() -> bool:
            started = time.monotonic()
            try:
                await made.append(b"y", expect=1)
            except UnavailableError as error:
                return not error.outcome_unknown and time.monotonic() - started < 1.5
            except WrongSequenceError:
                return False  # the leader has not noticed yet that it is alone, and holds an earlier attempt
            return False

        await eventually(fails_at_once, within=40)
        assert made.link.connected_since is None
        await eventually(lambda: answers_without_a_leader(made), within=40)
        for question in (made.link.events.state(), made.link.events.subjects(made.scope)):
            with pytest.raises(UnavailableError, match="knows of no leader"):
                await question
        assert made.link.connected_since is None, "what it was when the others went says nothing of how it is"
        servers[leader].start()
        servers[others[0]].start()

        async def works() -> bool:
            try:
                return bool(await made.append(b"y"))
            except UnavailableError:
                return False

        await eventually(works, within=40)
        assert made.link.connected_since is not None
