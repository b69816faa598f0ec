"""The looks of all who follow logs here: when each is due, and one question for many that are due at once (A7).

Owns the calendar of looks, and whether there is anything new in a log at all; reading it is the follower's business,
and so is what only one asks. A server that is asked what comes next in one log walks over what others have stored
behind it, milliseconds among thousands of logs; the newest sequences of many it has in an index.

What counts is what the leader would say. So the leader is asked how far the stream is, and then any replica for the
newest messages of the logs; it is believed when it is as far as the leader was. Who has news, whose newest message is
not found, or of whom no replica says anything, looks at the leader himself.

Of what was found to hold nothing new only what is newer is asked for next time: newest messages may be large. That is
right as long as the stream goes on from where it was (a server may have lost its end, or been restored, B11): nothing
is read for that while the leader says of its newest message, and it has any, what it said the last time; else the
message that was the newest then, and no other, is read there once, whoever looks.

Whether what was seen is still there (B11) is asked, too: of all as soon as the stream does not go on, and of each at
every fifth look of his silence (``unproven``). What is not found again is for the leader.

Of whom nothing new was found is in a group from then on, until he has something else to do (``followers``): all of a
group are asked about in one question, and nothing is done for each as long as the answer says nothing of him.

That trusts a replica that is as far as the leader to hold what lies before, for ten looks at most: then each asks the
leader himself, whatever replicas have said (``alone``), which is some 100 s. It is never the first looks after an
attach, and not every fifth: ten thousand followers would take a seventh of a server's core for that.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from copy import copy

from natsjobs.engine.context import Context
from natsjobs.engine.followers import NEVER, Follower, Group
from natsjobs.engine.ports import MOST_NEWEST, Newer, StreamState
from natsjobs.errors import ConnectionLostError, NatsJobsError, PermissionDeniedError
from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub

_ALL = ">"
_FEW = 2
"""Fewer look at the leader themselves."""
_PLACES = 4
"""Questions under way at a time: they are not in the line of those who read pages."""
_NOW = 0.0
_TRIES, _LAG = 3, 0.02
"""A replica that is behind the leader is so for milliseconds; then others, or the same one, are asked again."""


class Lookout:
    """All followers of one transport."""

    def __init__(self, context: Context) -> None:
        """Nobody follows anything yet."""
        self._context = context
        self._events = context.link.events
        self._due: dict[float, set[Follower | Group]] = {}
        self._ticks: list[float] = []  # a heap of its keys
        self._phase = random.random()  # noqa: S311 - spreads the looks of many processes, no secret
        self._timer: asyncio.TimerHandle | None = None
        self._places = asyncio.Semaphore(_PLACES)
        self._newest: StreamState | None = None
        self._era: object = object()
        """Another one as soon as the stream does not go on from ``_newest``."""

    # -- when -----------------------------------------------------------------------------------------------------

    def expect(self, follower: Follower, pause: float) -> None:
        """It looks in ``pause`` seconds, or up to an eighth of that sooner: together with others.

        A look that is due at once is not put off by that.
        """
        if follower.due == _NOW:
            return
        if follower.group is not None:
            follower.group.drop(follower)
        tick = self._tick(pause)
        if tick != follower.due:
            self._put(follower, tick)

    def at_once(self, follower: Follower) -> None:
        """It looks now, with all others of whom that is said in this turn of the loop."""
        if follower.group is not None:
            follower.group.give_back(follower)
        self._put(follower, _NOW)

    def forget(self, follower: Follower) -> None:
        """It looks no more, until it is expected again."""
        if follower.group is not None:
            follower.group.drop(follower)
        self._take_out(follower)

    def close(self) -> None:
        """Nobody looks any more."""
        self._due.clear()
        self._ticks.clear()
        self._set_timer()

    def _tick(self, pause: float) -> float:
        grid = 2.0 ** (math.frexp(pause)[1] - 4)
        return math.floor((asyncio.get_running_loop().time() + pause - self._phase) / grid) * grid + self._phase

    def _take_out(self, one: Follower | Group) -> None:
        if one.due != NEVER:
            if (others := self._due.get(one.due)) is not None:
                others.discard(one)
            one.due = NEVER

    def _put(self, one: Follower | Group, tick: float) -> None:
        self._take_out(one)
        one.due = tick
        others = self._due.get(tick)
        if others is not None:
            others.add(one)
            return
        self._due[tick] = {one}
        heapq.heappush(self._ticks, tick)
        if self._ticks[0] == tick:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(self._ticks[0], self._on_tick) if self._ticks else None

    def _on_tick(self) -> None:
        until, followers, groups = asyncio.get_running_loop().time(), list[Follower](), list[Group]()
        while self._ticks and self._ticks[0] <= until:
            for one in self._due.pop(heapq.heappop(self._ticks)):
                one.due = NEVER
                if not isinstance(one, Group):
                    followers.append(one)
                elif one.looks.proves:  # as each look does that is made alone
                    followers += one.dissolve()
                else:
                    groups.append(one)
        self._set_timer()
        groups = _united(groups)
        while groups and len(groups[-1]) < _FEW:
            followers += groups.pop().dissolve()
        if followers or groups:
            self._context.spawn(self._look(followers, groups), "natsjobs looks")

    # -- what -----------------------------------------------------------------------------------------------------

    async def _look(self, followers: list[Follower], groups: Sequence[Group] = ()) -> None:
        try:
            waiting, busy = list[Follower](), list[Follower]()
            for follower in followers:
                (waiting if follower.waits and not follower.alone else busy).append(follower)
            if len(waiting) < _FEW and not groups:
                waiting, busy = [], followers
            for follower in busy:
                follower.look()
            if waiting or groups:
                hub.add(measures.LOOKS, len(waiting) + sum(map(len, groups)))
                await self._look_together(waiting, groups)
        finally:
            self._settle(followers)
            for group in groups:
                if group.due == NEVER:
                    self._expect_group(group)

    async def _look_together(self, followers: list[Follower], groups: Sequence[Group]) -> None:
        # Before it is asked how far the leader is.
        seqs, known = [follower.seq for follower in followers], [group.seq for group in groups]
        try:
            newest, era = await self._mark()
        except NatsJobsError as error:
            left = [follower for group in groups for follower in group.dissolve()]
            for follower in followers + left:
                if isinstance(error, PermissionDeniedError):
                    follower.look()  # who may not ask this may perhaps read
                else:
                    follower.failed(error)
            self._settle(left)
            return
        alike, left = list[Group](), list[Follower]()
        for group, seq in zip(groups, known, strict=True):
            if group.checked[0] is era and seq <= newest:
                alike.append(group)
            else:
                left += group.dissolve()
        # Who has heard of something since then has left his group; a doubt too many is only a look at the leader.
        asked = _Asked(followers + left, seqs + [follower.seq for follower in left], newest, era)
        looks = [self._look_at(asked, part) for part in asked.parts()]
        await asyncio.gather(*looks, *(self._look_at_group(group, newest) for group in alike))

    async def _mark(self) -> tuple[int, object]:
        """The newest sequence of the stream at the leader, and the era."""
        before, newest = self._newest, await self._events.state()
        goes_on = before is None or await self._goes_on(before, newest)
        if self._newest is not before:
            return newest.last_seq, None  # another look was quicker: whether it goes on from there is not known
        if not goes_on:
            self._era = object()
        self._newest = newest
        return newest.last_seq, self._era

    async def _goes_on(self, before: StreamState, now: StreamState) -> bool:
        """Whether what was the newest message is still there, and so all before it."""
        if before.created != now.created:
            return False
        if not before.last_seq:
            return True
        if (before.last_seq, before.last_time) == (now.last_seq, now.last_time):
            return now.bytes > 0  # a stream that was purged says the same, and is empty
        same = await self._events.next(_ALL, before.last_seq)
        return same is not None and (same.seq, same.time) == (before.last_seq, before.last_time)

    async def _look_at(self, asked: _Asked, part: list[int]) -> None:
        followers = [asked.followers[place] for place in part]
        try:
            async with self._places:
                scopes, start = [follower.scope for follower in followers], asked.starts[part[0]]
                found = await self._find(scopes, start, asked.newest)
            for place in part:
                asked.judge(place, found)
        except NatsJobsError as error:
            for follower in followers:
                follower.failed(error)
        finally:
            self._settle(followers, asked.checked)

    async def _look_at_group(self, group: Group, newest: int) -> None:
        """Nothing is done for each of whom there is nothing new: whoever has something else to do has left."""
        left = list[Follower]()
        try:
            async with self._places:
                scopes, start = list(group.members), group.checked[1] + 1
                found = await self._find(scopes, start, newest) if scopes else {}
            news = group.members if found is None else group.members.keys() & found.keys()
            for scope in list(news):
                follower = group.members[scope]
                if found is None or found[scope] > follower.seq:
                    left.append(follower)
                    group.give_back(follower)
                    follower.look()
            group.checked = (group.checked[0], newest)
        except NatsJobsError as error:
            left += group.dissolve()
            for follower in left:
                follower.failed(error)
        finally:
            self._settle(left)
            self._expect_group(group)

    async def _find(self, scopes: list[str], start: int, newest: int) -> dict[str, int] | None:
        """The newest sequences of those that have one at or after ``start``; ``None``: nobody knows."""
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_LAG)
            found, at = dict[str, int](), start
            while (answer := await self._newer(scopes, at)) is not None and answer.upto >= newest:
                for message in answer.messages:
                    found[f"{message.subject.rpartition('.')[0]}.*"] = message.seq
                if answer.whole:
                    return found
                at = answer.messages[-1].seq + 1
            if answer is None:
                return None
        return None

    async def _newer(self, scopes: list[str], at: int) -> Newer | None:
        try:
            return await self._events.newer(scopes, at)
        except ConnectionLostError:
            raise
        except NatsJobsError:
            return None  # the leader has just answered: it says what is new, or what is wrong

    # -- when again -----------------------------------------------------------------------------------------------

    def _settle(self, followers: Iterable[Follower], checked: tuple[object, int] | None = None) -> None:
        """``checked``: what those know now of whom nothing new was found; from now on one answer is for them."""
        groups = dict[int, Group]()
        for follower in followers:
            if follower.group is not None or follower.due != NEVER or not follower.waits:
                continue  # that was done, or something has come meanwhile
            if checked is None or follower.checked is not checked or not follower.calm:
                follower.settle()
                continue
            group = groups.get(follower.looks.phase)
            if group is None:
                group = groups[follower.looks.phase] = Group(copy(follower.looks), checked)
            group.add(follower)
        for group in groups.values():
            self._expect_group(group)

    def _expect_group(self, group: Group) -> None:
        if group.members:
            self._put(group, self._tick(group.looks.latest()))


class _Asked:
    """Followers, as they were when they were asked about, each in his place.

    No object for each: of ten thousand at a time the garbage collector would walk over everything else that lives.
    """

    __slots__ = ("_known", "_proofs", "_seqs", "checked", "followers", "newest", "starts")

    def __init__(self, followers: list[Follower], seqs: list[int], newest: int, era: object) -> None:
        """``seqs``: the newest messages that they know. ``era``: ``None`` if nobody knows it."""
        self.followers, self._seqs, self.newest = followers, seqs, newest
        self.checked = (era, newest) if era is not None else None
        """What who has no news knows then; ``None``: he goes on from what he knew, the next look sees if it holds."""
        self.starts: list[int] = []
        """What is older says nothing."""
        self._proofs: list[bool] = []
        self._known: list[bool] = []
        for follower, seq in zip(followers, seqs, strict=True):
            known_in, checked = follower.checked
            same = era is not None and known_in is era
            changed = era is not None and known_in is not None and not same
            proof = changed or follower.unproven  # has it gone back in time (B11)?
            known = same and not proof
            self.starts.append(1 + max(seq, checked) if known else seq if proof else 1 + seq)
            self._proofs.append(proof)
            self._known.append(known)

    def parts(self) -> Iterator[list[int]]:
        """Places that are asked about in one question, which has one start: the lowest, that of the first.

        A newcomer's would make the newest messages of all others come once more.
        """
        order = sorted(range(len(self.followers)), key=self.starts.__getitem__)
        for known in (True, False):
            group = [place for place in order if self._known[place] is known]
            for at in range(0, len(group), MOST_NEWEST):
                yield group[at : at + MOST_NEWEST]

    def judge(self, place: int, found: dict[str, int] | None) -> None:
        """``found``: the newest sequences at or after the start."""
        follower, known, proof = self.followers[place], self._seqs[place], self._proofs[place]
        seq = found.get(follower.scope, 0) if found is not None else 0
        gone = self.newest < known or (proof and seq < known)
        if found is None or gone or seq > follower.seq:
            follower.look(doubtful=gone)
        else:
            if self.checked is not None:
                follower.checked = self.checked
            follower.nothing_new(proven=proof)


def _united(groups: list[Group]) -> list[Group]:
    """The same followers in as few groups as questions can be for, the largest first."""
    made, open_ = list[Group](), dict[tuple[object, ...], Group]()
    for group in groups:
        alike = (group.looks.phase, *group.checked)
        into = open_.get(alike)
        if into is not None and len(into) + len(group) <= MOST_NEWEST:
            into.absorb(group)
        else:
            open_[alike] = group
            made.append(group)
    made.sort(key=len, reverse=True)
    return made
