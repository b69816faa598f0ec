"""Who follows logs here, as the lookout sees them: one by one, or as a group that one answer is for.

Owns what a group is: followers that nothing new was found for by the same question, and for whom nothing has come
since. They look at the same time and know the same, so as long as that holds nothing is done for each of them.
Whoever has something else to do leaves: something came, it is asked to look at once, it is closed.
"""

from __future__ import annotations

import math
from typing import Final, Protocol

from natsjobs.engine.patience import Looks
from natsjobs.errors import NatsJobsError

NEVER: Final = math.inf
UNCHECKED: Final[tuple[object, int]] = (None, 0)


class Follower(Protocol):
    """Who looks: a tail."""

    scope: str
    """Of its log."""
    looks: Looks
    """When it looks; in a group those of the group count."""
    due: float
    """For the lookout: when it looks."""
    checked: tuple[object, int]
    """For the lookout: up to where nothing new was found, and as long as what holds."""
    group: Group | None
    """For the lookout: with whom it looks."""

    @property
    def seq(self) -> int:
        """The newest message known."""
        ...

    @property
    def waits(self) -> bool:
        """Whether it waits for its next look, and nothing else is under way or has ended it."""
        ...

    @property
    def calm(self) -> bool:
        """Whether it need not be told that there is nothing new: that would change nothing for it."""
        ...

    @property
    def alone(self) -> bool:
        """Whether this look is one that it makes at the leader itself, whatever a replica would say."""
        ...

    @property
    def unproven(self) -> bool:
        """Whether it has to know that its newest message is still there."""
        ...

    def look(self, *, doubtful: bool = False) -> None:
        """Look at the leader, now or behind the look under way. ``doubtful``: what was seen seems to be gone."""
        ...

    def nothing_new(self, *, proven: bool) -> None:
        """It was looked for; ``proven``: what was unproven then is there. Who is calm in a group is not told."""
        ...

    def failed(self, error: NatsJobsError) -> None:
        """It could not be looked."""
        ...

    def settle(self) -> None:
        """Its look is over: it expects the next one."""
        ...


class Group:
    """Followers that are asked about in one question, from where nothing was found the last time."""

    __slots__ = ("checked", "due", "looks", "members")

    def __init__(self, looks: Looks, checked: tuple[object, int]) -> None:
        """Nobody; ``looks``: as those of all who will join."""
        self.looks, self.checked = looks, checked
        self.due = NEVER
        self.members: dict[str, Follower] = {}
        """By scope."""

    def __len__(self) -> int:
        return len(self.members)

    @property
    def seq(self) -> int:
        """The newest message that any of them knows."""
        return max((follower.seq for follower in self.members.values()), default=0)

    def add(self, follower: Follower) -> None:
        """It knows what the others know, and looks when they do."""
        self.members[follower.scope] = follower
        follower.group = self

    def absorb(self, other: Group) -> None:
        """Those of another group, which looks at the same time and knows the same, come over."""
        for follower in other.members.values():
            follower.group = self
        self.members |= other.members
        other.members = {}

    def drop(self, follower: Follower) -> None:
        """It leaves, and goes on from what was found here. Its own ``looks`` count again, as they are."""
        if self.members.get(follower.scope) is follower:
            del self.members[follower.scope]
        follower.group, follower.checked = None, self.checked

    def give_back(self, follower: Follower) -> None:
        """It leaves, and goes on where the group is."""
        self.drop(follower)
        follower.looks.go_on(self.looks)

    def dissolve(self) -> list[Follower]:
        """All leave, and go on where the group is."""
        followers = list(self.members.values())
        for follower in followers:
            self.give_back(follower)
        return followers
