"""What every part of one replica shares: its connection, names, settings, bucket and background tasks.

Owns the tasks and the replica id, not the link, which is opened and closed by the replica. Guarantees that a request
from another replica that is being answered is answered before the tasks end (``answered``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from natsjobs.config import Config
from natsjobs.engine import wire
from natsjobs.engine.departures import Departures
from natsjobs.engine.headroom import Headroom
from natsjobs.engine.linger import Linger
from natsjobs.engine.ports import Incoming, Link
from natsjobs.engine.records import Records
from natsjobs.engine.subjects import Subjects, check_id
from natsjobs.tasks import Tasks

_log = logging.getLogger(__name__)


def _ignore(stream_id: str, generation: str, terminal: wire.Terminal | None) -> None:
    """Nobody asked yet."""
    del stream_id, generation, terminal


class Context:
    """One replica's common ground. Holds no protocol state."""

    def __init__(self, link: Link, config: Config) -> None:
        """No I/O. The replica id is random: a restarted process is another owner (A4)."""
        self.link = link
        self.config = config
        self.subjects = Subjects(config.namespace)
        self.replica_id = f"r{wire.random_token(12)}"
        # A read survives an election, also one whose first vote was split (4-9 s each); a write is tried for as long
        # as a producer may wait.
        self.patience = min(config.timing.give_up, 4 * config.timing.request)
        self.records = Records(link, patience=self.patience, give_up=config.timing.give_up)
        self.headroom = Headroom(link, every=config.timing.renew)
        short, long = config.timing.linger, config.timing.linger_unwatched
        self.linger = Linger(short)
        self.linger_unwatched = Linger(long) if long > short > 0 else None
        self.departures = Departures(link)
        self.tasks = Tasks()
        self._answers: set[asyncio.Task[Any]] = set()
        self.readers = 0
        self.on_terminal: Callable[[str, str, wire.Terminal | None], None] = _ignore

    @property
    def record_bytes(self) -> int:
        """Largest record: what the config says, or half of a message, for its end must fit into it as well."""
        return min(self.config.limits.record_bytes, self.link.max_payload // 2)

    def spawn(self, coro: Coroutine[Any, Any, Any], name: str) -> None:
        """Run something in the background; dropped when the replica is already closed."""
        try:
            self.tasks.spawn(coro, name)
        except RuntimeError:
            _log.debug("not started, already closed: %s", name)

    def answer(self, coro: Coroutine[Any, Any, Any], name: str) -> None:
        """Run the answer to somebody's request in the background; closing waits for it."""
        try:
            task = self.tasks.spawn(coro, name)
        except RuntimeError:
            _log.debug("not answered, already closed: %s", name)
            return
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def reply(self, message: Incoming, body: bytes) -> None:
        """Answer a request, if somebody waits for the answer."""
        if message.reply:
            await self.link.bus.publish(message.reply, body)

    async def answered(self) -> None:
        """Wait, not longer than an asker would, until every request that came has its answer."""
        if self._answers:
            await asyncio.wait(self._answers, timeout=self.config.timing.abort)

    def check_id(self, value: object, field: str) -> str:
        """An id that can be one. Raises InvalidIdError otherwise."""
        return check_id(value, field, self.config.limits.id_bytes)

    async def renew_tasks(self) -> None:
        """End all background tasks, and allow new ones; a callback that ignores that is left behind."""
        await self.tasks.close(patience=self.config.timing.abort)
        self.tasks = Tasks()
