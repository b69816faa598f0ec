"""Newest messages that many want at once: asked for together, and never other than the leader would have it."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import nats
import pytest
from jetstream_kit import BOTH, Space, config, server, space
from nats.aio.client import Client
from nats.aio.msg import Msg
from timeline_kit import spying
from waiting import eventually, known, soon

from natsjobs.config import Timing
from natsjobs.engine.ports import Message
from natsjobs.errors import NotOpenError, PermissionDeniedError, UnavailableError

AT_ONCE = 32
"""Reads of one stream that are under way at the leader at most; when more stand in line, it is a crowd."""
GROUP = 256
REQUEST = 4.0
API = {"get": "STREAM.MSG.GET", "info": "STREAM.INFO", "direct": "DIRECT.GET"}
MAPPINGS = ", ".join(f'"$JS.API.{api}.*": "asked.{kind}.$1"' for kind, api in API.items())


class Desk:
    """Between a client and its server: questions pass, or a test does something else with them."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self.asked: dict[str, list[Msg]] = defaultdict(list)
        self.instead: dict[str, Callable[[Msg], Awaitable[None]]] = {}
        """What is done with questions of a kind."""
        self._doing: set[asyncio.Task[Any]] = set()

    async def hear(self, msg: Msg) -> None:
        """One more question."""
        kind = msg.subject.split(".")[1]
        self.asked[kind].append(msg)
        task = asyncio.ensure_future(self.instead.get(kind, self.pass_on)(msg))
        self._doing.add(task)
        task.add_done_callback(self._doing.discard)

    async def pass_on(self, msg: Msg, body: bytes | None = None) -> None:
        """Let the server answer; ``body``: to another question."""
        _, kind, name = msg.subject.split(".")
        await self._nc.publish(f"$JS.hub.API.{API[kind]}.{name}", body or msg.data, reply=msg.reply)

    async def keep(self, _: Msg) -> None:
        """It stays here."""

    async def status(self, msg: Msg, code: str) -> None:
        """An answer without a message."""
        head = f"NATS/1.0 {code}\r\n\r\n"
        await self._nc._send_command(f"HPUB {msg.reply} {len(head)} {len(head)}\r\n{head}\r\n".encode())
        await self._nc.flush()

    def lasts(self) -> list[str]:
        """Of whom the newest message was read at the leader."""
        queries = [json.loads(msg.data) for msg in self.asked["get"]]
        return [query["last_by_subj"] for query in queries if "last_by_subj" in query]

    def groups(self) -> list[list[str]]:
        """Who was asked for together."""
        return [json.loads(msg.data)["multi_last"] for msg in self.asked["direct"]]

    def clear(self) -> None:
        """Forget what was asked."""
        self.asked.clear()

    def leave(self) -> None:
        """Nothing goes on behind the test's back."""
        for task in self._doing:
            task.cancel()


@pytest.fixture
def settings() -> str:
    """More of the server's settings."""
    return ""


@pytest.fixture
async def desk(tmp_path: Path, settings: str) -> AsyncIterator[Desk]:
    """On a server of its own, whose leader reads, descriptions and pages go by way of it."""
    text = f'{settings}jetstream: {{store_dir: "$STORE", domain: "hub"}}\nmappings: {{{MAPPINGS}}}\n'
    with server(tmp_path, text) as running:
        nc = await nats.connect(running.url)
        made = Desk(nc)
        await nc.subscribe("asked.>", cb=made.hear)
        await known(nc)
        yield made
        made.leave()
        await nc.close()


@pytest.fixture
async def here(desk: Desk) -> AsyncIterator[Space]:
    """A namespace on that server."""
    async with space(desk._nc.connected_url.geturl(), config(request=REQUEST)) as made:
        yield made


async def logs(here: Space, count: int) -> list[str]:
    """So many logs with a message each; their filters."""
    names = [f"j{number}" for number in range(count)]
    await asyncio.gather(*(here.link.events.append(here.names.log(name, "g"), name.encode()) for name in names))
    return [here.names.scope(name, "g") for name in names]


def crowd(here: Space) -> list[asyncio.Task[Any]]:
    """So many who read something else at the leader that the line is long; of both streams."""
    streams = (here.link.events, here.link.records)
    return [asyncio.ensure_future(stream.next("nobody.*")) for stream in streams for _ in range(2 * AT_ONCE + 1)]


async def newest(here: Space, filters: list[str], *, stream: Any = None) -> list[Message | None]:
    """All of them at once, in a crowd."""
    before = crowd(here)
    found = asyncio.gather(*((stream or here.link.events).last(one) for one in filters))
    try:
        return await soon(found)
    finally:
        await asyncio.gather(*before, return_exceptions=True)


async def test_few_are_read_at_the_leader_each_by_one_question(here: Space, desk: Desk) -> None:
    """Nobody takes a longer way because a few others ask at the same time."""
    filters = await logs(here, 2 * AT_ONCE)
    desk.clear()
    found = await soon(asyncio.gather(*(here.link.events.last(one) for one in filters)))
    assert [message.body.decode() for message in found if message] == [f"j{number}" for number in range(len(filters))]
    assert (sorted(desk.lasts()), len(desk.asked)) == (sorted(filters), 1)


async def test_many_are_asked_for_together_in_groups(here: Space, desk: Desk) -> None:
    """Two questions for hundreds; who came first is in the first group."""
    filters = await logs(here, 2 * GROUP + 10)
    desk.clear()
    found = await newest(here, filters)
    assert [message.body.decode() for message in found if message] == [f"j{number}" for number in range(len(filters))]
    assert desk.lasts() == []
    assert len(desk.asked["info"]) == 3
    assert sorted(desk.groups()) == sorted([filters[:GROUP], filters[GROUP : 2 * GROUP], filters[2 * GROUP :]])


async def test_who_has_to_read_at_the_leader_does_so_in_any_crowd(here: Space, desk: Desk) -> None:
    """``alone``; and so do those whose filter an answer to many could not be told apart for."""
    filters = await logs(here, 3)
    desk.clear()
    before = crowd(here)
    everything = f"{here.names.events_prefix}>"
    asking = [here.link.events.last(one, alone=True) for one in filters] + [here.link.events.last(everything)]
    found = await soon(asyncio.gather(*asking))
    await asyncio.gather(*before)
    assert [message.body for message in found if message] == [b"j0", b"j1", b"j2", b"j2"]
    assert (sorted(desk.lasts()), desk.groups()) == (sorted([*filters, everything]), [])


@BOTH
async def test_what_is_asked_for_together_is_what_the_leader_says(server_name: str, request: Any) -> None:
    """Markers, lapsed and removed records, bodies of every size, strange headers, logs with an end and without."""
    async with space(request.getfixturevalue(server_name)) as here:
        records, events, names = here.link.records, here.link.events, here.names
        keys = {one: names.record("owner", one) for one in ("purged", "lapsed", "kept", "leased", "gone", "never")}
        for key in keys.values():
            if key != keys["never"]:
                await records.append(key, b"first")
        await records.append(keys["lapsed"], b"x", ttl=1)
        await records.append(keys["purged"], b"left", marker=True, ttl=600)
        await records.append(keys["leased"], b'{"a": "\xc3\xbc"}', ttl=600)
        await records.append(keys["gone"], b"", marker=True, ttl=1)

        async def lapsed() -> bool:
            message = await records.last(keys["lapsed"])
            return message is not None and message.marker == "MaxAge" and await records.last(keys["gone"]) is None

        await eventually(lapsed)
        sizes = [0, 1, 5_000, 300_000, 524_288, 700_000, here.link.max_payload - 1024]
        for number, size in enumerate(sizes):
            await events.append(names.log(f"b{number}", "g"), b"x" * size)
            await events.append(names.log(f"e{number}", "g"), b"x")
            await events.append(names.end(f"e{number}", "g"), b"y" * min(size, 9_000), ttl=600)
        await events.append(names.log("e1", "g"), b"behind the end", rollup=True)
        strange = names.log("strange", "g")
        heads = {"KV-Operation": "DEL", "Nats-Subject": "another", "Nats-Sequence": "7", "X": "y"}
        await here.nc.jetstream().publish(strange, b"", headers=heads)
        wanted = [(records, key) for key in keys.values()] + [(events, strange)]
        for name in [f"{letter}{number}" for letter in "be" for number in range(len(sizes))]:
            wanted += [(events, names.scope(name, "g")), (events, names.log(name, "g")), (events, names.end(name, "g"))]
        leader = [await stream.last(one, alone=True) for stream, one in wanted]
        async with spying(here.nc, "$JS.API.STREAM.MSG.GET.>") as read:
            before = crowd(here)
            together = await soon(asyncio.gather(*(stream.last(one) for stream, one in wanted)))
            await asyncio.gather(*before)
            await known(here.nc)
        assert together == leader
        markers = {key: message.marker for (_, key), message in zip(wanted, leader, strict=True) if message}
        assert [markers.get(keys[one]) for one in ("purged", "lapsed", "kept")] == ["PURGE", "MaxAge", None]
        alone = [query["last_by_subj"] for msg in read if "last_by_subj" in (query := json.loads(msg.data))]
        assert sorted(alone) == sorted(one for (_, one), message in zip(wanted, leader, strict=True) if message is None)


@BOTH
async def test_what_was_stored_before_somebody_asked_is_never_missed(server_name: str, request: Any, seed: int) -> None:
    """B3: hundreds ask again and again while others write, replace and remove; each knows what was acknowledged."""
    chance = Random(seed)
    async with space(request.getfixturevalue(server_name)) as here, space_of(here) as other:
        events, records, names = here.link.events, here.link.records, here.names
        at = {names.scope(f"j{n}", "g"): 0 for n in range(300)} | {
            names.record("owner", f"o{n}"): 0 for n in range(300)
        }
        places, over = list(at), False

        async def write() -> None:
            while not over:
                place = chance.choice(places)
                if place.endswith(".*"):
                    subject = place[:-1] + chance.choice(["log", "end"])
                    seq = await other.link.events.append(
                        subject, b"x" * chance.randrange(3000), rollup=chance.random() < 0.3
                    )
                else:
                    seq = await other.link.records.append(
                        place, b"x" * chance.randrange(900), marker=chance.random() < 0.1
                    )
                at[place] = max(at[place], seq)

        async def read(place: str) -> None:
            known_seq = at[place]
            found = await (events if place.endswith(".*") else records).last(place)
            assert (found.seq if found else 0) >= known_seq
            assert found is None or found.subject == place or found.subject[:-3] == place[:-1]
            answered[found is not None] += 1

        answered = Counter[bool]()
        writers = [asyncio.ensure_future(write()) for _ in range(8)]
        async with spying(here.nc, "$JS.API.DIRECT.GET.>") as groups:
            for _ in range(6):
                before = crowd(here)
                await soon(asyncio.gather(*(read(place) for place in places)))
                await asyncio.gather(*before)
            over = True
            await asyncio.gather(*writers)
            await known(here.nc)
        assert len(groups) >= 12, "nobody was asked for together"
        assert answered[True] > 600


def space_of(here: Space, limit: float = REQUEST) -> Any:
    """Another connection to the same namespace; ``limit``: the time of a request."""
    return space(here.nc.connected_url.geturl(), msgspec.structs.replace(here.config, timing=Timing(request=limit)))


def behind(desk: Desk, times: int, upto: int) -> Callable[[Msg], Awaitable[None]]:
    """A replica that answers so many questions as if it had applied no more than so many messages."""
    left = times

    async def answer(msg: Msg) -> None:
        nonlocal left
        left -= 1
        old = {"up_to_seq": upto} if left >= 0 else {}
        await desk.pass_on(msg, json.dumps({**json.loads(msg.data), **old}).encode())

    return answer


async def test_a_replica_that_is_behind_is_not_believed(here: Space, desk: Desk) -> None:
    """It is so for a moment: as soon as it has reached the leader, what it says counts. And that by one message."""
    filters = await logs(here, 20)
    await newest(here, filters)
    seq = await here.link.events.append(here.names.log("j0", "g"), b"newer")
    desk.clear()
    desk.instead["direct"] = behind(desk, 2, seq - 1)
    found = await newest(here, filters)
    assert [message.body for message in found if message] == [b"newer", *(b"j%d" % n for n in range(1, 20))]
    assert found[0] is not None
    assert found[0].seq == seq
    assert (len(desk.groups()), desk.lasts()) == (3, [])


async def test_replicas_that_stay_behind_are_left_alone(here: Space, desk: Desk) -> None:
    """Everybody reads at the leader then, and nobody tries in vain for a while."""
    filters = await logs(here, 20)
    await here.link.events.append(here.names.log("j0", "g"), b"newer")
    desk.clear()
    desk.instead["direct"] = behind(desk, 100, 20)
    for _ in range(2):
        found = await newest(here, filters)
        assert [message.body for message in found if message] == [b"newer", *(b"j%d" % n for n in range(1, 20))]
    assert (len(desk.asked["info"]), len(desk.groups())) == (1, 3)
    assert sorted(desk.lasts()) == sorted([*filters, *filters])


async def _leaderless(desk: Desk, msg: Msg) -> None:
    name = msg.subject.split(".")[2]
    info = json.loads((await desk._nc.request(f"$JS.hub.API.STREAM.INFO.{name}", timeout=5)).data)
    await msg.respond(json.dumps({**info, "cluster": {"name": "c"}}).encode())


TROUBLE: dict[str, tuple[str, Callable[[Desk, Msg], Awaitable[None]]]] = {
    "no answer to the barrier": ("info", lambda desk, msg: desk.keep(msg)),
    "nobody there for the barrier": ("info", lambda desk, msg: desk.status(msg, "503")),
    "a barrier without a leader": ("info", _leaderless),
    "a refusal": ("info", lambda _, msg: msg.respond(b'{"error": {"code": 503, "err_code": 10008}}')),
    "no answer of a replica": ("direct", lambda desk, msg: desk.keep(msg)),
    "no replica": ("direct", lambda desk, msg: desk.status(msg, "503")),
    "nothing found": ("direct", lambda desk, msg: desk.status(msg, "404")),
    "too much": ("direct", lambda desk, msg: desk.status(msg, "413")),
    "broken": ("direct", lambda desk, msg: desk.status(msg, "500")),
}


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_who_cannot_be_asked_for_together_reads_at_the_leader(here: Space, desk: Desk, trouble: str) -> None:
    """All of the group have what they came for, whatever it was that went wrong."""
    filters = await logs(here, 40)
    desk.clear()
    kind, instead = TROUBLE[trouble]
    desk.instead[kind] = lambda msg: instead(desk, msg)
    found = await newest(here, filters)
    assert [message.body for message in found if message] == [b"j%d" % n for n in range(40)]
    assert sorted(desk.lasts()) == sorted(filters)


@pytest.mark.parametrize("settings", ["max_payload: 32768\n"])
async def test_a_question_that_is_too_long_is_asked_one_by_one(here: Space, desk: Desk) -> None:
    """The longest ids, and a server that takes the least that is enough."""
    names = [f"{n:03d}{'i' * 125}" for n in range(250)]
    await asyncio.gather(*(here.link.events.append(here.names.log(name, "g"), name.encode()) for name in names))
    desk.clear()
    found = await newest(here, [here.names.scope(name, "g") for name in names])
    assert [message.body.decode() for message in found if message] == names
    assert (len(desk.lasts()), desk.groups()) == (250, [])


async def test_whoever_is_cancelled_takes_nothing_from_the_others(here: Space, desk: Desk) -> None:
    """While he waits for his group he is not asked for; while his group is asked, the others have their answers."""
    filters = await logs(here, 2 * GROUP + 40)
    desk.clear()
    may_go = asyncio.Event()

    async def hold(msg: Msg) -> None:
        await may_go.wait()
        await desk.pass_on(msg)

    desk.instead["info"] = hold
    before = crowd(here)
    asking = [asyncio.ensure_future(here.link.events.last(one)) for one in filters]
    await eventually(lambda: len(desk.asked["info"]) == 2)  # two groups are under way
    gone = [0, 7, GROUP + 3, *range(2 * GROUP + 5, 2 * GROUP + 25)]
    for number in gone:
        asking[number].cancel()
        with suppress(asyncio.CancelledError):
            await asking[number]
    may_go.set()
    left = [one for number, one in enumerate(asking) if number not in gone]
    found = await soon(asyncio.gather(*left))
    assert [message.body for message in found] == [b"j%d" % n for n in range(len(filters)) if n not in gone]
    await asyncio.gather(*before)
    assert desk.lasts() == []
    assert sum(len(group) for group in desk.groups()) == len(filters) - 20


async def test_nobody_waits_for_the_large_messages_of_others_who_has_his(here: Space, desk: Desk) -> None:
    """What is too much for one answer comes in parts."""
    small, large = here.names.log("a", "g"), here.names.log("b", "g")
    await here.link.events.append(small, b"small")
    for name in ("b", "c"):
        await here.link.events.append(here.names.log(name, "g"), b"x" * 600_000)
    may_go = asyncio.Event()

    async def hold_the_second(msg: Msg) -> None:
        if len(desk.groups()) > 1:
            await may_go.wait()
        await desk.pass_on(msg)

    desk.instead["direct"] = hold_the_second
    before = crowd(here)
    asking = [
        asyncio.ensure_future(here.link.events.last(one)) for one in (small, large, here.names.scope("c", "g"), small)
    ]
    first, *_, again = asking
    assert await soon(first) == await soon(again)
    assert (await soon(asking[1])).subject == large
    assert not {small, large} & {*desk.lasts()}
    may_go.set()
    assert (await soon(asking[2])).subject == here.names.log("c", "g")
    await asyncio.gather(*before)


@pytest.mark.parametrize(("count", "limit", "pace", "parts"), [(10, REQUEST, 0.0, 8), (6, 1.0, 0.4, 3)])
async def test_what_is_too_much_for_a_group_is_read_at_the_leader(
    here: Space, desk: Desk, count: int, limit: float, pace: float, parts: int
) -> None:
    """So many parts at most, and no more than come in the time of a request: then everybody asks for himself."""
    names = [f"j{number}" for number in range(count)]
    for name in names:
        await here.link.events.append(here.names.log(name, "g"), name.encode() * 300_000)

    async def slowly(msg: Msg) -> None:
        await asyncio.sleep(pace)  # its pace
        await desk.pass_on(msg)

    desk.instead["direct"] = slowly
    async with space_of(here, limit) as other:
        found = await newest(other, [here.names.scope(name, "g") for name in names])
        assert [message.body[:2].decode() for message in found if message] == names
        assert len(desk.groups()) <= parts
        assert len(desk.lasts()) == count


async def test_a_server_that_answers_nobody_keeps_nobody_waiting(here: Space, desk: Desk) -> None:
    """Each is told after the time of two requests at most, by an error of his own."""
    filters, limit = await logs(here, GROUP + AT_ONCE), 1.0
    times = list[float]()

    async def ask(one: str) -> Exception | None:
        try:
            await other.link.events.last(one)
        except UnavailableError as error:
            times.append(time.monotonic() - started)
            return error
        return None

    async with space_of(here, limit) as other:
        for kind in API:
            desk.instead[kind] = desk.keep
        before, started = crowd(other), time.monotonic()
        found = await soon(asyncio.gather(*(ask(one) for one in filters)))
        await asyncio.gather(*before, return_exceptions=True)
    assert len({id(error) for error in found if error is not None}) == len(filters)
    assert max(times) < 2 * limit + 0.9


async def test_a_link_that_is_closed_leaves_nobody_behind(here: Space, desk: Desk) -> None:
    """Neither those who are asked for nor those who wait for that."""
    filters = await logs(here, 3 * GROUP)
    async with space_of(here) as other:
        for kind in API:
            desk.instead[kind] = desk.keep
        before = crowd(other)
        desk.clear()
        asking = [asyncio.ensure_future(other.link.events.last(one)) for one in filters]
        await eventually(lambda: len(desk.asked["info"]) == 2)
        await other.link.close()
        found = await soon(asyncio.gather(*asking, *before, return_exceptions=True))
        assert {type(one) for one in found} <= {NotOpenError, UnavailableError}
        desk.instead.clear()
        await other.link.open()


@pytest.mark.parametrize("api", ["DIRECT.GET", "STREAM.INFO"])
async def test_who_may_only_read_at_the_leader_does_so(tmp_path: Path, api: str) -> None:
    """What else he may not do is tried once, and not for every group again."""
    user = 'user: u, password: p, permissions: {publish: {deny: ["$JS.API.NOTHING.>"]}}'
    refused = list[Exception]()

    async def hear(error: Exception) -> None:
        refused.append(error)

    with server(tmp_path, f'authorization: {{users: [{{{user}}}]}}\njetstream: {{store_dir: "$STORE"}}\n') as running:
        async with space(running.url.replace("//", "//u:p@"), config(request=REQUEST), error_cb=hear) as here:
            filters = await logs(here, 3 * GROUP)
            running.rewrite(lambda text: text.replace("NOTHING", api))
            running.signal(signal.SIGHUP)

            async def denied() -> bool:
                try:
                    await (here.link.events.state() if api == "STREAM.INFO" else here.link.events.held(["a"]))
                except PermissionDeniedError:
                    return True
                except UnavailableError:
                    return False
                return False

            await eventually(denied)
            before = len(refused)
            for _ in range(2):
                found = await newest(here, filters)
                assert [message.body for message in found if message] == [b"j%d" % n for n in range(len(filters))]
            await known(here.nc)
            assert 1 <= len(refused) - before <= 2  # two groups are under way at a time
            running.rewrite(lambda text: text.replace(api, "NOTHING"))
            running.signal(signal.SIGHUP)
