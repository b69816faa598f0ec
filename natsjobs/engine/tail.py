"""The live tail of one generation on this replica: one subscription and one decode, shared by all local readers.

Owns what is in the window of newest events, the repair of everything the live path loses, and the knowledge that the
generation has ended. Readers pull from the window by index; one that has fallen behind it reads the log by itself,
so a slow reader costs nobody anything, and no reader costs the server a consumer.

The live path loses messages in ordinary operation (a deposed leader never republishes what it had not applied; a cut
node delivers nothing and nobody notices), so it is only a hint. What makes the window complete is the *look*: is there
a message after the last one seen? It happens on attach, after every gap, reconnect and wake-up, once more soon after
each of these, and ever more rarely while nothing comes (A7). What is read is read at the leader; that there is nothing
to read a replica may say, to many tails at once (``lookout``), but at every tenth look in a row the leader.
A terminal record that arrives live is believed only after it was read from the log (B10). Who may not look does not
know whether there is more: that is told to readers that have nothing else (``denied``), until a look succeeds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from copy import copy

from natsjobs.engine import wire
from natsjobs.engine.bell import Bells
from natsjobs.engine.context import Context
from natsjobs.engine.followers import NEVER, UNCHECKED, Group
from natsjobs.engine.lookout import Lookout
from natsjobs.engine.pages import Pages
from natsjobs.engine.patience import Looks, patiently
from natsjobs.engine.ports import Incoming, Interest, Message, StreamMissingError
from natsjobs.engine.replay import Batch, Replay, Verdict
from natsjobs.engine.terminals import find_terminal, read_terminal, still_reaches
from natsjobs.engine.window import News, Window
from natsjobs.errors import (
    ConnectionLostError,
    HistoryLostError,
    NatsJobsError,
    PermissionDeniedError,
    UnavailableError,
)
from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub

_log = logging.getLogger(__name__)

_HELD = 1024  # live messages kept while a look is under way; more is a gap, which the next look repairs


class Tail:
    """Follows one generation until it is closed."""

    def __init__(self, context: Context, lookout: Lookout, stream_id: str, generation: str) -> None:
        """Nothing happens before ``open``."""
        self.stream_id, self.generation = stream_id, generation
        self.terminal: wire.Terminal | None = None
        self.lost: NatsJobsError | None = None
        self.denied: PermissionDeniedError | None = None
        self.users = 0
        self.pages, self.bells = Pages(context, stream_id, generation), Bells()
        self._context, self._subjects = context, context.subjects
        self.scope = self._subjects.scope(stream_id, generation)
        self.due, self.checked = NEVER, UNCHECKED
        self.group: Group | None = None
        self._lookout, self._events = lookout, context.link.events
        self._window = Window(context.config.limits.reader_events)
        self.take = self._window.find
        """The batch of the window that holds an index; ``None``: not (yet, or any more) here."""
        self.news = News()
        self._replay = Replay(0, 0)
        self._held: list[Incoming] | None = []  # a list while a look is under way
        self._again = self._doubtful = self._closed = False
        self._repairing = False  # the look under way, or due, is not the schedule's
        self.looks = Looks(context.config.timing.look)
        self._interests: list[Interest] = []
        self._forget_reconnect: Callable[[], None] | None = None
        self._opening: asyncio.Future[None] | None = None

    # -- what readers see ---------------------------------------------------------------------------------------

    @property
    def start(self) -> int:
        """Index of the oldest event in the window."""
        start = self._window.start
        return self._replay.next if start is None else start

    @property
    def next(self) -> int:
        """Index after the newest event known here."""
        return self._replay.next

    @property
    def seq(self) -> int:
        """Sequence of the newest message known here."""
        return self._replay.seq

    def quiet(self, index: int) -> bool:
        """Whether who is at event ``index`` can only wait for a ring of the ``bells``.

        They ring as soon as there is something new: events, the end, or that history is lost.
        """
        return index >= self._replay.next and self.terminal is None and self.lost is None and self.denied is None

    # -- opening and closing ------------------------------------------------------------------------------------

    @property
    def opened(self) -> bool:
        """Whether ``start`` and ``next`` are known."""
        return self._forget_reconnect is not None

    async def open(self) -> None:
        """Attach; when it returns nothing later is missed. Callers at the same time share one attempt.

        Raises:
            HistoryLostError: The log does not exist.
            UnavailableError: NATS does not answer.
        """
        while self._opening is not None:
            await asyncio.wait([self._opening])
        if self._forget_reconnect is not None or self._closed:
            if self.lost:
                raise copy(self.lost)
            return
        self._opening = asyncio.get_running_loop().create_future()
        try:
            bus, live = self._context.link.bus, self._subjects.live_scope(self.stream_id, self.generation)
            # One by one: what a cancellation leaves behind has to be known. Nothing is waited for before the newest
            # message is here: it was asked for behind them.
            self._interests.append(await bus.subscribe(live, self._on_live, sure=False))
            woken = self._subjects.wake(self.stream_id)
            self._interests.append(await bus.subscribe(woken, lambda _: self.look_now(), sure=False))
            await self._find_tail()
            for interest in self._interests:
                await interest.confirm()
            self._forget_reconnect = self._context.link.on_reconnect(self._on_reconnect)
            self._release()
            self.looks.again()
            self._schedule()
        except BaseException:
            await self._drop_interests()
            raise
        finally:
            self._opening.set_result(None)
            self._opening = None

    async def _find_tail(self) -> None:
        """Start the window at the newest message of the log, read at the leader."""
        try:
            message = await patiently(lambda: self._events.last(self.scope), limit=self._context.patience)
        except StreamMissingError:
            message = None
        if message is None:
            raise self._lose("its log is no longer there")
        terminal = await find_terminal(self._context.link, self._subjects.end(self.stream_id, self.generation), message)
        if terminal is not None:
            self._replay = Replay(terminal.index, message.seq)
            self._end(terminal)
            return
        entry = wire.decode(message.body)
        if entry is None:
            self._replay = Replay(0, 0)
            await self._read_on()
            return
        if entry.type == "gone":
            raise self._lose("its log was removed")
        if entry.type == "part" or entry.type == "final":
            in_pieces = entry.type == "part" and 0 < entry.first <= message.seq  # join them from the first on
            self._replay = Replay(entry.index, (entry.first if in_pieces else message.seq) - 1)
            await self._read_on()
        elif entry.type == "events" and not message.subject.endswith(".end"):
            self._skip_to(entry, message.seq)  # it is in the hand: who comes for it need not read it again
        else:
            self._replay = Replay(entry.next_index, message.seq)

    async def close(self) -> None:
        """Release everything; readers that still wait are woken and find it closed. Once more after an ``open``."""
        self._closed = True
        self._lookout.forget(self)
        if self._forget_reconnect is not None:
            self._forget_reconnect()
        self.pages.close()
        self.bells.ring()
        await self._drop_interests()

    async def _drop_interests(self) -> None:
        while self._interests:
            await self._interests.pop().unsubscribe()

    # -- the live path ------------------------------------------------------------------------------------------

    def _on_live(self, message: Incoming) -> None:
        if self.is_over:
            return
        if self._held is None:
            if not self._follows_on(message):
                self.look_now()
        elif self.opened and not self._doubtful and self._follows_on(message):
            pass  # a look may stand in line for seconds: nobody waits for it who need not
        elif len(self._held) < _HELD:
            self._held.append(message)
        else:
            self._again = True

    def _follows_on(self, message: Incoming) -> bool:
        """Take it in; ``False``: it does not go on from what is here, or ends it: only a look tells."""
        if message.subject.endswith(".end") or message.seq == 0:
            return False
        entry = wire.decode(message.body)
        if entry is None:
            return True  # it moves nothing: if it is in the log too, the next look passes over it there
        seq = self._replay.seq
        if message.seq <= seq and entry.type == "part":
            return True  # a look was quicker, and has perhaps read on: a first piece would begin anew
        verdict = self._replay.feed(message.seq, entry, end=False)
        if isinstance(verdict, Batch):
            self._window.add(verdict)
            self.news.show(verdict, self.generation, readers=self.users)
            self.looks.news()
            if self._held is None:  # else the look under way says when the next one is
                self._schedule()
            self.bells.ring()
        elif verdict is not Verdict.NOTHING:
            self._replay.seq = seq  # the look begins behind what was taken in, not behind what could not be
            if self._held is None:
                hub.add(measures.GAPS)
            return False
        return True

    def _on_reconnect(self) -> None:
        self._doubtful = self._repairing = True  # perhaps to a server that has lost, or restored, its store
        self._lookout.at_once(self)  # as all others do now

    # -- looking at the log -------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Look when nothing has come for a while. Every message puts it off."""
        if self.is_over:
            self._lookout.forget(self)
        else:
            self._lookout.expect(self, self.looks.latest())

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to look for."""
        return self._closed or self.terminal is not None or self.lost is not None

    @property
    def waits(self) -> bool:
        """Whether it is followed, and no look is under way."""
        return self._held is None and self.terminal is None and self.lost is None and not self._closed

    @property
    def calm(self) -> bool:
        """Whether a look that finds nothing new changes nothing here."""
        return not (self._doubtful or self._repairing) and self.denied is None

    @property
    def alone(self) -> bool:
        """Whether the next look is at the leader, whatever a replica would say; after a reconnect it is one soon."""
        return self.looks.alone and not self._doubtful

    @property
    def unproven(self) -> bool:
        """Whether the next look has to find what was already seen, too."""
        return self._doubtful or self.looks.proves

    def look_now(self) -> None:
        """Something may have been missed: start a look, or one more after the one that is under way."""
        self._repairing = True
        self.look()

    def look(self, *, doubtful: bool = False) -> None:
        """Look at the leader, now or behind the look under way. ``doubtful``: what was seen seems to be gone."""
        self._doubtful = self._doubtful or doubtful
        if self._held is not None:
            self._again = True
        elif not self.is_over:
            self._held = []
            self._context.spawn(self._look(), f"natsjobs look {self.stream_id}")

    async def _look(self) -> None:
        try:
            self._again = True
            while self._again and not self._closed:
                self._again = False
                if not (self.unproven and await self._is_newest()):
                    await self._read_on()
                    if self.unproven and self.terminal is None:
                        await self._prove()
                self._doubtful, self.denied = False, None
        except NatsJobsError as error:
            self.failed(error)
        finally:
            if not self._closed:
                self._release()
                self.settle()

    def nothing_new(self, *, proven: bool) -> None:
        """The lookout has looked; ``proven``: what was seen is still there."""
        self.denied, self._doubtful = None, self._doubtful and not proven

    def failed(self, error: NatsJobsError) -> None:
        """A look could not be made."""
        if isinstance(error, ConnectionLostError):
            self.lost = error
            self.bells.ring()
        elif isinstance(error, UnavailableError):
            self.looks.news()  # the long pauses are for a log that says that there is nothing
            if isinstance(error, PermissionDeniedError):
                self.denied = error
                self.bells.ring()
        _log.info("following %s: %s%s", self.stream_id, error, "" if self.is_over else "; still trying")

    def settle(self) -> None:
        """A look is over: the next one comes soon if that was a repair."""
        if self._repairing:
            self.looks.again()
            self._repairing = False
        self._schedule()

    def _release(self) -> None:
        """Hand on what arrived live during a look."""
        held, self._held = self._held or [], None
        for message in held:
            if self.is_over:
                break
            if not self._follows_on(message):
                self.look_now()
            if self._held is not None:  # that one revealed a gap: a new look reads the rest
                break

    async def _read_on(self) -> None:
        """Read everything after the newest message known here. The leader decides that there is no more."""
        while self.terminal is None and self.lost is None and not self._closed:
            seq = self._replay.seq + 1
            hub.add(measures.LOOKS)
            message = await self._events.next(self.scope, seq)
            if message is None:
                return
            await self._take_in(message)
            while page := await self._events.page(self.scope, self._replay.seq + 1):
                hub.add(measures.PAGES)
                for stored in page:
                    await self._take_in(stored)
                if self.terminal is not None or self.lost is not None or self._closed:
                    return

    async def _take_in(self, message: Message) -> None:
        if message.seq <= self._replay.seq:
            return  # it came live while it was asked for
        entry = wire.decode(message.body)
        end = message.subject.endswith(".end")
        verdict = self._replay.feed(message.seq, entry, end=end)
        if isinstance(verdict, Batch):
            self._window.add(verdict)
            self._repairing = True
            self.bells.ring()
        elif verdict is Verdict.TERMINAL:
            assert entry is not None
            self._end(await read_terminal(self._context.link, message, entry))
        elif verdict is Verdict.GONE:
            raise self._lose("its log was removed")
        elif verdict in {Verdict.CLEARED, Verdict.GAP}:
            assert entry is not None
            self._skip_to(entry, message.seq)
            if end and entry.type in wire.TERMINAL:
                self._end(await read_terminal(self._context.link, message, entry))

    def _skip_to(self, entry: wire.Entry, seq: int) -> None:
        """Events between are not in the log any more: readers that need them find out by reading it themselves."""
        self._window.clear()
        self._replay = Replay(entry.index, seq - 1)
        verdict = self._replay.feed(seq, entry, end=False)
        if isinstance(verdict, Batch):
            self._window.add(verdict)
        self.bells.ring()

    async def _is_newest(self) -> bool:
        """Whether all that is there is known, by the leader's index: whatever others have stored, no search."""
        hub.add(measures.LOOKS)
        known = self._replay.seq
        newest = await self._events.last(self.scope, alone=True)
        return newest is not None and known <= newest.seq <= self._replay.seq

    async def _prove(self) -> None:
        """Is what was seen still there? A log that went back in time would be silent for ever (B11)."""
        if not await still_reaches(self._context.link, self.scope, self._replay.seq):
            raise self._lose("the server no longer has what was already read")

    def _end(self, terminal: wire.Terminal) -> None:
        self.terminal = terminal
        self._lookout.forget(self)
        self.bells.ring()
        self._context.on_terminal(self.stream_id, self.generation, terminal)

    def _lose(self, detail: str) -> HistoryLostError:
        self.lost = HistoryLostError(self.stream_id, detail)
        self.bells.ring()
        return self.lost
