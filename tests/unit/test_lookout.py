"""When many look at their logs, and what one question for all of them may and may not conclude."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from virtual_time import Virtual

from natsjobs import Config, ConnectionLostError, EventTooLargeError, PermissionDeniedError, UnavailableError
from natsjobs.engine.context import Context
from natsjobs.engine.followers import NEVER, UNCHECKED, Group
from natsjobs.engine.lookout import Lookout
from natsjobs.engine.patience import Looks
from natsjobs.engine.ports import MOST_NEWEST, Newer, StreamMissingError
from natsjobs.errors import NatsJobsError
from natsjobs.memory import MemoryLink, MemorySystem


@pytest.fixture
def clock() -> Iterator[Virtual]:
    """Waiting takes no time."""
    with Virtual() as clock:
        yield clock


class Stream:
    """A stream of the memory system on which a test can interfere, and which counts what it is asked."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.leader, self.read, self.questions = 0, 0, list[list[str]]()
        self.asked = defaultdict[str, list[float]](list)
        """By scope: when one question was for it, among others."""
        self.answer: Callable[[Newer | None], Newer | None] = lambda found: found

    async def state(self) -> Any:
        """How far it is."""
        self.leader += 1
        return await self._stream.state()

    async def last(self, name: str, **options: bool) -> Any:
        """The newest message."""
        return self._count(await self._stream.last(name, **options))

    async def next(self, name: str, seq: int) -> Any:
        """What comes next."""
        return self._count(await self._stream.next(name, seq))

    def _count(self, message: Any) -> Any:
        self.leader += 1
        self.read += len(message.body) if message is not None else 0
        return message

    async def newer(self, names: list[str], seq: int) -> Newer | None:
        """One question for many."""
        self.questions.append(names)
        for name in names:
            self.asked[name].append(time.monotonic())
        return self.answer(await self._stream.newer(names, seq))


class Scene:
    """A lookout, its followers and their stream."""

    def __init__(self, system: MemorySystem, link: MemoryLink) -> None:
        self.system, self.link = system, link
        self.events = Stream(link.events)
        link._events = self.events  # type: ignore[assignment]
        self.context = Context(link, Config())
        self.lookout = Lookout(self.context)
        self.size = 1

    def append(self, name: str) -> int:
        """One message of ``size`` bytes in the log of ``name``; its sequence."""
        subject = self.context.subjects.log(name, "g")
        options: dict[str, Any] = {"expect": None, "scope": None, "ttl": None, "rollup": False, "marker": False}
        return self.system.store("events").append(subject, b"x" * self.size, **options)

    def lose(self, follower: Follower) -> None:
        """The newest message of a log is gone, without a trace."""
        store = self.system.store("events")
        message = store.last(follower.scope)
        assert message is not None
        store._remove(message)

    def follower(self, name: str) -> Follower:
        """Of a new log, which holds one message that it knows."""
        return Follower(self, name, self.append(name))

    async def look(self, *followers: Follower) -> None:
        """All of these look now; when that is done."""
        for follower in followers:
            self.lookout.at_once(follower)
        await asyncio.sleep(0.2)


class Follower:
    """Remembers what it is told."""

    def __init__(self, scene: Scene, name: str, seq: int) -> None:
        self.scope, self.name = scene.context.subjects.scope(name, "g"), name
        self.due, self.checked = NEVER, UNCHECKED
        self.seq, self.waits, self.alone, self.unproven = seq, True, False, False
        self.told: list[Any] = []
        self.looked: list[float] = []  # by itself
        self.times: list[float] = []
        self.group: Group | None = None
        self.calm = True
        self._scene, self.looks = scene, Looks(2.0)

    def look(self, *, doubtful: bool = False) -> None:
        """It has to look at the leader."""
        self.told.append("doubt" if doubtful else "look")
        self.looked.append(time.monotonic())

    def nothing_new(self, *, proven: bool) -> None:
        """It need not."""
        self.told.append("proven" if proven else "nothing")

    def failed(self, error: NatsJobsError) -> None:
        """It could not be looked."""
        self.told.append(type(error))

    def settle(self) -> None:
        """The next one."""
        self.times.append(time.monotonic())
        self.expect()

    def expect(self) -> None:
        """As a tail does."""
        self._scene.lookout.expect(self, self.looks.latest())

    @property
    def next(self) -> float:
        """When it looks again, by itself or with others."""
        return (self.group or self).due


def play(clock: Virtual, scene: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    """Run a scene on a system of its own."""

    async def run() -> None:
        system = MemorySystem()
        link = system.link()
        await link.open()
        made = Scene(system, link)
        try:
            await scene(made)
        finally:
            made.lookout.close()
            await made.context.tasks.close()
            await link.close()

    clock.run(run())


def test_nobody_looks_late_or_early(clock: Virtual) -> None:
    """However many do it together: each within a tenth of the pause that A7 names for it."""

    async def scene(here: Scene) -> None:
        followers = [here.follower(f"s{n}") for n in range(60)]
        for follower in followers:
            follower.looked.append(time.monotonic())
            follower.expect()
            await asyncio.sleep(0.007)
        await asyncio.sleep(60)
        looks = 0
        for follower in followers:
            times = sorted(follower.looked + here.events.asked[follower.scope])
            assert len(times) > 8
            looks += len(times) - 1
            planned = Looks(2.0)
            for sooner, later in itertools.pairwise(times):
                pause = planned.latest() / 1.1
                assert 0.9 * pause <= later - sooner <= 1.1 * pause + 0.01
        assert sum(follower.told.count("look") for follower in followers) < looks / 10
        assert len(here.events.questions) < looks / 4

    play(clock, scene)


def test_who_is_due_in_the_same_moment_is_asked_about_in_one_question(clock: Virtual) -> None:
    """At most as many as fit into it; and one question to the leader for all of them."""

    async def scene(here: Scene) -> None:
        followers = [here.follower(f"s{n}") for n in range(2 * MOST_NEWEST + 10)]
        await here.look(*followers)
        await here.look(*followers)
        assert {one for follower in followers for one in follower.told} == {"nothing"}
        assert [len(names) for names in here.events.questions] == [256, 256, 10] * 2
        assert here.events.leader == 2
        here.events.questions.clear()
        for follower in followers[:1]:
            await here.look(follower)
        assert (followers[0].told[-1], here.events.questions) == ("look", [])

    play(clock, scene)


def test_what_is_new_is_looked_at_and_nothing_else(clock: Virtual) -> None:
    """Also where the newest messages do not fit into one answer."""

    async def scene(here: Scene) -> None:
        here.size = 20_000
        followers = [here.follower(f"s{n}") for n in range(100)]
        for _ in range(2):
            for follower in followers:
                follower.told.clear()
            for follower in (news := followers[10:90:2]):
                here.append(follower.name)
            await here.look(*followers)
            assert [follower for follower in followers if follower.told == ["look"]] == news
            assert sum(follower.told == ["nothing"] for follower in followers) == 60
            for follower in news:
                follower.seq = here.system.store("events").last(follower.scope).seq  # type: ignore[union-attr]

    play(clock, scene)


def test_newest_messages_that_were_asked_about_are_not_sent_again(clock: Virtual) -> None:
    """They may be large (A7); but what is to be proven is asked for once more."""

    async def scene(here: Scene) -> None:
        sent: list[int] = []

        def note(found: Newer | None) -> Newer | None:
            assert found is not None
            sent.append(len(found.messages))
            return found

        followers = [here.follower(f"s{n}") for n in range(10)]
        await here.look(*followers)
        here.events.answer = note
        await here.look(*followers)
        assert sent == [0]
        followers[3].unproven = True
        await here.look(*followers)
        assert followers[3].told[-1] == "proven"
        assert [follower.told[-1] for follower in followers].count("nothing") == 9

    play(clock, scene)


def test_what_was_seen_and_is_not_found_is_for_the_leader(clock: Virtual) -> None:
    """B11: a log that is gone, or a stream that ends before what was seen; only the leader proves a loss."""

    async def scene(here: Scene) -> None:
        followers = [here.follower(f"s{n}") for n in range(5)]
        for follower in followers:
            follower.unproven = True
        followers[2].scope = here.context.subjects.scope("none", "g")
        await here.look(*followers)
        assert [follower.told for follower in followers] == [["proven"]] * 2 + [["doubt"]] + [["proven"]] * 2
        for follower in followers:
            follower.unproven = False
        followers[2].scope = here.context.subjects.scope("s2", "g")
        followers[4].seq += 100
        await here.look(*followers)
        assert [follower.told[-1] for follower in followers] == ["nothing"] * 4 + ["doubt"]

    play(clock, scene)


def test_when_the_stream_does_not_go_on_everything_has_to_be_found_again(clock: Virtual) -> None:
    """B11: whoever has lost something learns it by the next look, whenever he would have asked for it."""

    async def scene(here: Scene) -> None:
        followers = [here.follower(f"s{n}") for n in range(4)]
        late = here.follower("late")
        for _ in range(2):
            await here.look(*followers)
        for one in followers[1::2]:
            here.lose(one)
        await here.look(*followers)  # the newest of all is still there
        assert [follower.told for follower in followers] == [["nothing"] * 3] * 4
        here.lose(late)
        here.append("noise")
        await here.look(*followers)
        assert [follower.told[-1] for follower in followers] == ["proven", "doubt", "proven", "doubt"]
        await here.look(*followers[::2])
        assert [follower.told[-1] for follower in followers[::2]] == ["nothing"] * 2

    play(clock, scene)


def test_looks_that_overlap_when_the_stream_does_not_go_on_prove_it_all(clock: Virtual) -> None:
    """Who was asked about while another look found it out has not forgotten what he knew: the next one proves it."""

    async def scene(here: Scene) -> None:
        some, others = ([here.follower(f"{name}{n}") for n in range(2)] for name in "ab")
        late = here.follower("late")
        for _ in range(2):
            await here.look(*some, *others)
        for gone in (some[1], others[1], late):
            here.lose(gone)
        here.append("noise")
        await asyncio.gather(here.lookout._look(some), here.lookout._look(others))
        await here.look(*some, *others)
        for kept, gone in (some, others):
            assert "proven" in kept.told
            assert "doubt" in gone.told

    play(clock, scene)


def test_a_stream_that_was_purged_has_lost_everything(clock: Virtual) -> None:
    """It still says what its newest message was."""

    async def scene(here: Scene) -> None:
        followers = [here.follower(f"s{n}") for n in range(3)]
        await here.look(*followers)
        for follower in followers:
            here.lose(follower)
        await here.look(*followers)
        assert [follower.told for follower in followers] == [["nothing", "doubt"]] * 3

    play(clock, scene)


def test_a_stream_that_begins_anew_is_not_taken_for_the_old_one(clock: Virtual) -> None:
    """What was found to hold nothing new may hold something there, below where nothing was."""

    async def scene(here: Scene) -> None:
        followers = [here.follower(f"s{n}") for n in range(3)]
        for _ in range(20):
            here.append("noise")
        await here.look(*followers)
        assert {follower.told[-1] for follower in followers} == {"nothing"}
        await asyncio.sleep(1.0)
        here.system.remove_streams()
        here.system.create_streams()
        for name in ("s0", "s1", "s2", "s1"):
            here.append(name)
        for _ in range(30):
            here.append("noise")
        for told in ("proven", "nothing"):
            await here.look(*followers[::2])
            assert {follower.told[-1] for follower in followers[::2]} == {told}
        await here.look(*followers)  # also when others have noticed it first
        assert [follower.told[-1] for follower in followers] == ["nothing", "look", "nothing"]

    play(clock, scene)


def test_a_replica_that_is_behind_the_leader_is_not_believed(clock: Virtual) -> None:
    """It is asked again for a moment; then each looks at the leader, as also when no replica answers or may."""

    async def scene(here: Scene) -> None:
        followers = [here.follower(f"s{n}") for n in range(3)]
        newest = here.append("s1")
        lags = [Newer([], newest - 1, whole=True)] * 2

        def behind(found: Newer | None) -> Newer | None:
            return lags.pop() if lags else found

        here.events.answer = behind
        await here.look(*followers)
        assert [follower.told for follower in followers] == [["nothing"], ["look"], ["nothing"]]
        assert len(here.events.questions) == 3
        lags += [Newer([], newest - 1, whole=True)] * 9
        await here.look(*followers)
        here.events.answer = lambda _: None
        await here.look(*followers)

        def refuse(found: Newer | None) -> Newer | None:
            raise PermissionDeniedError("asking", subject="x")

        here.events.answer = refuse
        await here.look(*followers)
        assert {tuple(follower.told[-3:]) for follower in followers} == {("look", "look", "look")}

    play(clock, scene)


@pytest.mark.parametrize(
    "error", [UnavailableError("nobody answers"), EventTooLargeError(44_000, 32_768), StreamMissingError("none")]
)
def test_what_no_replica_can_be_asked_each_asks_the_leader(clock: Virtual, error: NatsJobsError) -> None:
    """He has just answered, so whatever it is that keeps replicas from it, nobody stays without news for that."""

    async def scene(here: Scene) -> None:
        followers = [here.follower(f"s{n}") for n in range(3)]

        def fail(found: Newer | None) -> Newer | None:
            raise error

        here.events.answer = fail
        await here.look(*followers)
        await here.look(*followers)
        assert [follower.told for follower in followers] == [["look", "look"]] * 3

    play(clock, scene)


def test_who_cannot_be_looked_after_is_told_and_expects_the_next_look(clock: Virtual) -> None:
    """Whether there is no leader to ask, or no connection any more; nobody is forgotten."""

    async def scene(here: Scene) -> None:
        followers = [here.follower(f"s{n}") for n in range(3)]

        def fail(found: Newer | None) -> Newer | None:
            raise ConnectionLostError("closed")

        here.events.answer = fail
        await here.look(*followers)
        here.system.remove_streams()
        await here.look(*followers)
        for follower in followers:
            assert follower.told == [ConnectionLostError, StreamMissingError]
            assert (len(follower.times), follower.due > time.monotonic()) == (2, True)

    play(clock, scene)


def test_who_may_not_ask_how_far_the_stream_is_reads_himself(clock: Virtual) -> None:
    """That is another permission than to read."""

    async def scene(here: Scene) -> None:
        followers = [here.follower(f"s{n}") for n in range(3)]

        async def refuse() -> None:
            raise PermissionDeniedError("asking", subject="x")

        here.events.state = refuse  # type: ignore[method-assign]
        await here.look(*followers)
        assert [follower.told for follower in followers] == [["look"]] * 3

    play(clock, scene)


def test_a_look_costs_no_message_as_long_as_nothing_is_stored(clock: Virtual) -> None:
    """And one when something was: the one that was the newest, to see that it is still there."""

    async def scene(here: Scene) -> None:
        followers = [here.follower(f"s{n}") for n in range(5)]
        read: list[int] = []
        for size in (1_000_000, 0, 0, 2_000, 10, 0):
            if size:
                here.size = size
                here.append("a neighbour")
            before = here.events.read
            await here.look(*followers)
            read.append(here.events.read - before)
        assert read == [0, 0, 0, 1_000_000, 2_000, 0]
        assert {one for follower in followers for one in follower.told} == {"nothing"}

    play(clock, scene)


def test_what_a_replica_lacks_is_found_at_the_leader(clock: Virtual) -> None:
    """It is as far as he is, and all the same it does not know one message: whose turn it is asks him."""

    async def scene(here: Scene) -> None:
        followers = [here.follower(f"s{n}") for n in range(4)]
        here.append("s1")
        here.append("noise")

        def lacks(found: Newer | None) -> Newer | None:
            assert found is not None
            return Newer([m for m in found.messages if ".s1." not in m.subject], found.upto, found.whole)

        here.events.answer = lacks
        await here.look(*followers)
        assert followers[1].told == ["nothing"]
        here.events.questions.clear()
        followers[1].alone = followers[1].unproven = True
        await here.look(*followers)
        assert [follower.told[-1] for follower in followers] == ["nothing", "look", "nothing", "nothing"]
        assert followers[1].scope not in here.events.questions[0]

    play(clock, scene)


def test_a_newcomer_makes_nobody_elses_newest_message_come_again(clock: Virtual) -> None:
    """He is asked about apart from those who were looked for before."""

    async def scene(here: Scene) -> None:
        early = here.follower("early")
        followers = [here.follower(f"s{n}") for n in range(10)]
        await here.look(*followers)
        sent: list[int] = []

        def note(found: Newer | None) -> Newer | None:
            assert found is not None
            sent.append(len(found.messages))
            return found

        here.events.answer = note
        await here.look(early, *followers)
        assert sent == [0, 0]
        assert len(here.events.questions) == 3

    play(clock, scene)


def test_a_look_that_is_due_at_once_is_not_put_off(clock: Virtual) -> None:
    """After a reconnect what was seen is to be proven, also in a log in which something comes all the time."""

    async def scene(here: Scene) -> None:
        followers = [here.follower(f"s{n}") for n in range(3)]
        for follower in followers:
            here.lookout.at_once(follower)
            follower.expect()
        await asyncio.sleep(0.2)
        assert [follower.told for follower in followers] == [["nothing"]] * 3
        assert all(NEVER > follower.next > time.monotonic() for follower in followers)

    play(clock, scene)


def test_who_has_something_else_to_do_meanwhile_is_left_alone(clock: Virtual) -> None:
    """One that looks itself hears of it, one that is forgotten of nothing; a later look is not put off."""

    async def scene(here: Scene) -> None:
        busy, gone, *others = [here.follower(f"s{n}") for n in range(6)]
        busy.waits = False
        here.lookout.at_once(gone)
        here.lookout.forget(gone)
        assert gone.due == NEVER

        def meanwhile(found: Newer | None) -> Newer | None:
            here.lookout.expect(others[0], 5.0)
            return found

        here.events.answer = meanwhile
        await here.look(busy, *others)
        assert (busy.told, gone.told) == (["look"], [])
        assert {tuple(follower.told) for follower in others} == {("nothing",)}
        assert [follower.next < NEVER for follower in (busy, gone, *others)] == [False, False, True, True, True, True]
        assert not any(follower.times for follower in (busy, gone, others[0]))
        assert others[0].next > time.monotonic() + 4.0 > max(other.next for other in others[1:])

    play(clock, scene)


async def _grouped(here: Scene, count: int = 6) -> list[Follower]:
    """Followers of whom nothing new was found in the same look, a moment before two seconds of pause."""
    followers = [here.follower(f"s{n}") for n in range(count)]
    for follower in followers:
        follower.looks.news()
        follower.looks.latest()
    await here.look(*followers)
    assert {tuple(follower.told) for follower in followers} == {("nothing",)}
    assert len({follower.group for follower in followers}) == 1
    for follower in followers:
        follower.told.clear()
    here.events.questions.clear()
    return followers


def test_nothing_is_done_for_each_of_whom_the_same_question_finds_nothing(clock: Virtual) -> None:
    """They are asked about together and told nothing, until their turn to prove what they know."""

    async def scene(here: Scene) -> None:
        followers = await _grouped(here)
        await asyncio.sleep(4.4 + 8.8)
        assert [sorted(names) for names in here.events.questions] == [[one.scope for one in followers]] * 2
        assert not any(follower.told or follower.times for follower in followers)
        for follower in followers:
            follower.unproven = True
        await asyncio.sleep(11 + 11 + 11)
        assert {tuple(follower.told) for follower in followers} == {("proven",)}
        assert {follower.next for follower in followers} == {followers[0].next} != {NEVER}

    play(clock, scene)


def test_one_of_a_group_that_has_news_is_told_and_the_others_are_not(clock: Virtual) -> None:
    """He looks himself, and goes on where the others are; what he knew already is no news."""

    async def scene(here: Scene) -> None:
        followers = await _grouped(here)
        here.append("s1")
        followers[2].seq = here.append("s2")
        await asyncio.sleep(4.4)
        assert [follower.told for follower in followers] == [[], ["look"], [], [], [], []]
        assert followers[1].looks.silent == followers[0].group.looks.silent  # type: ignore[union-attr]
        assert len({follower.group for follower in followers}) == 2

    play(clock, scene)


def test_who_has_something_else_to_do_leaves_the_group(clock: Virtual) -> None:
    """Something came, a reconnect, the end: what is asked for the others is not asked for him."""

    async def scene(here: Scene) -> None:
        hot, doubtful, over, *others = await _grouped(here)
        hot.looks.news()
        hot.expect()
        doubtful.calm, doubtful.unproven = False, True
        here.lookout.at_once(doubtful)
        here.lookout.forget(over)
        await asyncio.sleep(4.4)
        told = [["look"], ["look"], [], [], [], []]
        assert [follower.told[:1] for follower in (hot, doubtful, over, *others)] == told
        assert [sorted(names) for names in here.events.questions] == [[one.scope for one in others]]
        assert over.next == NEVER

    play(clock, scene)


def test_a_group_that_all_have_left_is_asked_about_no_more(clock: Virtual) -> None:
    """Also when they leave while its question is about to be asked."""

    async def scene(here: Scene) -> None:
        followers, state = await _grouped(here), here.events.state

        async def meanwhile() -> Any:
            for follower in followers:
                here.lookout.forget(follower)
            return await state()

        here.events.state = meanwhile  # type: ignore[method-assign]
        await asyncio.sleep(30)
        assert (here.events.questions, here.events.leader) == ([], 2)
        assert here.lookout._ticks == []

    play(clock, scene)


@pytest.mark.parametrize("how", ["gone", "restored", "behind"])
def test_a_group_has_to_find_everything_again_when_the_stream_does_not_go_on(clock: Virtual, how: str) -> None:
    """Each for himself (B11), also when the stream ends before what one of them knows."""

    async def scene(here: Scene) -> None:
        followers = await _grouped(here)
        if how == "behind":
            followers[3].seq += 100
        elif how == "gone":
            for follower in followers[3:]:
                here.lose(follower)
            here.append("noise")
        else:
            here.system.remove_streams()
            here.system.create_streams()
            for name in ("s0", "s1", "s2"):
                here.append(name)
        await asyncio.sleep(4.4)
        calm = "nothing" if how == "behind" else "proven"
        lost = [["doubt"], [calm], [calm]] if how == "behind" else [["doubt"]] * 3
        assert [follower.told for follower in followers] == [[calm]] * 3 + lost

    play(clock, scene)


@pytest.mark.parametrize("how", ["leader", "replica", "silence", "denied"])
def test_a_group_that_cannot_be_asked_about_is_one_no_more(clock: Virtual, how: str) -> None:
    """Each is told, or looks himself, and all expect the next look."""

    async def scene(here: Scene) -> None:
        followers = await _grouped(here)

        def fail(found: Newer | None) -> Newer | None:
            if how == "replica":
                raise ConnectionLostError("closed")
            return None

        async def refuse() -> None:
            raise PermissionDeniedError("asking", subject="x") if how == "denied" else UnavailableError("away")

        here.events.answer = fail
        if how in {"leader", "denied"}:
            here.events.state = refuse  # type: ignore[method-assign]
        await asyncio.sleep(4.4)
        told = {"leader": UnavailableError, "replica": ConnectionLostError}.get(how, "look")
        assert [follower.told for follower in followers] == [[told]] * 6
        assert all(follower.group is None and NEVER > follower.due > time.monotonic() for follower in followers)

    play(clock, scene)


def test_who_is_to_be_told_that_nothing_is_new_is_in_no_group(clock: Virtual) -> None:
    """For whoever could not look, or doubts, that changes something."""

    async def scene(here: Scene) -> None:
        followers = await _grouped(here)
        followers[0].calm = False
        await here.look(*followers)
        assert [follower.group is None for follower in followers] == [True] + [False] * 5
        await asyncio.sleep(8.8)
        assert [len(follower.told) for follower in followers] == [2] + [1] * 5

    play(clock, scene)


def test_a_group_is_not_forgotten_when_a_look_fails_as_nobody_expects(clock: Virtual) -> None:
    """It looks again."""

    async def scene(here: Scene) -> None:
        followers, state = await _grouped(here), here.events.state

        async def fail() -> None:
            here.events.state = state  # type: ignore[method-assign]
            raise ValueError("a bug")

        here.events.state = fail  # type: ignore[method-assign]
        await asyncio.sleep(4.4)
        assert here.events.questions == []
        await asyncio.sleep(8.8)
        assert [sorted(names) for names in here.events.questions] == [[one.scope for one in followers]]

    play(clock, scene)


def test_small_groups_become_one_question_when_they_look_at_the_same_time(clock: Virtual) -> None:
    """As soon as so many have left that it holds them."""

    async def scene(here: Scene) -> None:
        followers = [here.follower(f"s{n}") for n in range(MOST_NEWEST + 44)]
        for follower in followers:
            follower.looks.news()
            follower.looks.latest()
        sizes: list[list[int]] = []
        for leave in (0, 43, 1):
            here.events.questions.clear()
            for follower in [one for one in followers if one.group is followers[0].group][:leave]:
                here.lookout.forget(follower)
                followers.remove(follower)
            await (asyncio.sleep(8.8) if sizes else here.look(*followers))
            sizes.append([len(names) for names in here.events.questions])
        assert sizes[0] == [MOST_NEWEST, 44]
        assert sorted(sizes[1]) == [44, MOST_NEWEST - 43]
        assert sizes[2] == [MOST_NEWEST]

    play(clock, scene)


def test_groups_that_know_unlike_things_stay_apart(clock: Virtual) -> None:
    """What one of them has seen to be nothing new may be news for the other."""

    async def scene(here: Scene) -> None:
        some = await _grouped(here, 3)
        here.append("s1")
        others = [here.follower(f"other{n}") for n in range(4)]
        for follower in others:
            follower.looks.go_on(some[0].looks)
        await here.look(*others)
        assert some[0].group is not None
        assert others[0].group is not None
        here.lookout._put(some[0].group, others[0].group.due)
        others[0].told.clear()
        await asyncio.sleep(5)
        assert [follower.told for follower in (*some, others[0])] == [[], ["look"], [], []]

    play(clock, scene)


def test_who_is_as_silent_as_others_but_not_for_as_long_is_in_another_group(clock: Virtual) -> None:
    """What is special about every fifth look comes for each in his turn."""

    async def scene(here: Scene) -> None:
        followers = [here.follower(f"s{n}") for n in range(4)]
        for follower in followers:
            follower.looks.news()
            for _ in range(4 if follower in followers[:2] else 13):
                follower.looks.latest()
        await here.look(*followers)
        one, other = followers[0].group, followers[2].group
        assert one is not None
        assert other is not None
        here.lookout._put(other, one.due)
        await asyncio.sleep(11)
        assert (followers[1].group, followers[3].group) == (one, other)
        assert one is not other

    play(clock, scene)
