"""Requests that wait: each ends once, at its own deadline, with one timer for all of them."""

from __future__ import annotations

import asyncio
import time

from virtual_time import Virtual
from waiting import soon

from natsjobs.jetstream.faults import RequestFailedError
from natsjobs.jetstream.inbox import Inbox, Waiting, WireInterest


def take(body: bytes, _headers: bytes) -> bytes | None:
    """Every answer but an empty one."""
    return body or None


def test_every_request_ends_at_its_own_deadline() -> None:
    """In whatever order they were made, and also those that are made while others end."""

    async def scene() -> None:
        inbox, began = Inbox(), time.monotonic()
        ended: dict[float, float] = {}

        def then(waiting: Waiting) -> None:
            ended[round(waiting.deadline - began)] = time.monotonic() - began
            assert isinstance(waiting.error, RequestFailedError)
            if len(ended) == 2:
                inbox.expect("s", take, began + 250 - time.monotonic(), then=then)

        limits = [500, 100, 300, 200, 400]
        for limit in limits:
            inbox.expect("s", take, limit, then=then)
        awaited = inbox.expect("s", take, 350)
        assert awaited.future is not None
        await asyncio.wait({awaited.future})
        assert 350 <= time.monotonic() - began < 355
        inbox.done(awaited)
        await asyncio.sleep(200)
        assert sorted(ended) == [100, 200, 250, 300, 400, 500]
        assert all(0 <= at - limit < 5 for limit, at in ended.items())
        assert not len(inbox)
        assert inbox._timer is None

    with Virtual() as clock:
        clock.run(scene())


async def test_a_request_that_nobody_awaits_ends_once() -> None:
    """With its first answer that counts, or with the connection, and is forgotten then."""
    inbox, ended = Inbox(), list[Waiting]()
    inbox.prefix = "_INBOX.x."
    answered = inbox.expect("s", take, 60, then=ended.append)
    lost = inbox.expect("s", take, 60, then=ended.append)
    inbox.answered(f"{inbox.prefix}{answered.token}", "", b"", b"")
    assert not ended
    for _ in range(2):
        inbox.answered(f"{inbox.prefix}{answered.token}", "", b"1", b"")
    assert ended == [answered]
    assert answered.result == b"1"
    assert len(inbox) == 1
    awaited = inbox.expect("s", take, 60)
    inbox.answered(f"{inbox.prefix}{awaited.token}", "", b"2", b"")
    for _ in range(2):
        inbox.lost("gone")
    assert awaited.future is not None
    assert await awaited.future == b"2"
    inbox.done(awaited)
    assert ended == [answered, lost]
    assert isinstance(lost.error, RequestFailedError)
    assert lost.error.sent
    assert not len(inbox)
    assert inbox._timer is None


def test_who_is_not_answered_asks_again() -> None:
    """Every so often until something comes, even if that is not the whole answer; the deadline stays."""

    async def scene() -> None:
        inbox, began = Inbox(), time.monotonic()
        inbox.prefix = "_INBOX.x."
        asked: list[float] = []
        waiting = inbox.expect("s", take, 100, again=10)
        waiting.unheard = lambda: asked.append(time.monotonic() - began)
        inbox.expect("s", take, 200, then=lambda _: None)
        await asyncio.sleep(25)
        inbox.answered(f"{inbox.prefix}{waiting.token}", "", b"", b"")
        assert waiting.future is not None
        await asyncio.wait({waiting.future})
        assert 100 <= time.monotonic() - began < 101
        assert [round(at) for at in asked] == [10, 20]
        inbox.done(waiting)
        await asyncio.sleep(150)
        assert inbox._timer is None

    with Virtual() as clock:
        clock.run(scene())


class Place:
    """A connection on which one interest is subscribed, and leaves as soon as it may."""

    def __init__(self) -> None:
        self.subscribed: set[object] = set()
        self.leaving, self.may_leave = asyncio.Event(), asyncio.Event()

    async def subscribe(self, _subject: str, _handler: object) -> object:
        """One more."""
        on = object()
        self.subscribed.add(on)
        return on

    async def unsubscribe(self, on: object) -> None:
        """One less."""
        self.leaving.set()
        await self.may_leave.wait()
        self.subscribed.discard(on)


async def test_an_interest_that_is_made_again_stays_on_the_connection_that_came_meanwhile() -> None:
    """Else it would be on the old one, and whoever ends it would leave it on the new one for ever."""
    old, new = Place(), Place()
    interest = WireInterest("some.where", None, lambda _: None)
    await interest.attach(old)  # type: ignore[arg-type]
    again = asyncio.ensure_future(interest.again())
    await soon(old.leaving.wait())
    await interest.attach(new)  # type: ignore[arg-type]
    old.may_leave.set()
    new.may_leave.set()
    await soon(again)
    assert (len(old.subscribed), len(new.subscribed)) == (0, 1)
    await interest.unsubscribe()
    assert not new.subscribed
