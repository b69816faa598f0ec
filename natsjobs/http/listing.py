"""``GET /streams``: all jobs of a moment, searched and cut into pages, with how busy those of a page are.

Owns what keeps that cheap however many jobs there are and however many people look: one listing at a time for
everybody, of which a digest is kept for a while, at least ten times as long as it took; and of the jobs of one page,
those that run are looked at a few at a time. So an answer may be some seconds old; it says how old. Decides nothing,
remembers nothing that matters.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from natsjobs.errors import NatsJobsError
from natsjobs.http import requests
from natsjobs.http.access import Action, Only
from natsjobs.http.desk import Desk
from natsjobs.http.problems import json_answer
from natsjobs.manager import JobManager
from natsjobs.models import Job, JobStatus
from natsjobs.tasks import Tasks, in_steps

_FRESH = 1.0
_SHARE = 10.0  # a listing that took long is kept longer: at most a tenth of the time goes into listing
_LONGEST_TEXT = 300
_MOST_ROWS = 200
_ROWS = 50
_AT_ONCE = 8
_ACTIVITY_FRESH = 1.5
_ACTIVITY_KEPT = 2_000


class Row(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What a list shows of a job. Texts are cut: a hundred error messages must not make a list of megabytes."""

    stream_id: str
    user_id: str
    status: str
    created_at: int
    generation: str
    completed_at: int | None = None
    last_active_at: int | None = None
    conversation_id: str | None = None
    tenant_id: str | None = None
    model: str | None = None
    endpoint: str | None = None
    owner: str | None = None
    end_reason: str | None = None
    error: str | None = None

    @classmethod
    def of(cls, job: Job) -> Row:
        """The digest of a job."""
        return cls(
            stream_id=job.stream_id,
            user_id=job.user_id,
            status=job.status.value,
            created_at=job.created_at,
            generation=job.generation,
            completed_at=job.completed_at,
            last_active_at=job.last_active_at,
            conversation_id=job.conversation_id,
            tenant_id=job.tenant_id,
            model=_cut(job.model),
            endpoint=_cut(job.endpoint),
            owner=job.owner,
            end_reason=job.end_reason.value if job.end_reason else None,
            error=_cut(job.error),
        )

    def has(self, words: list[str]) -> bool:
        """Whether every word is somewhere in what identifies the job."""
        texts = (
            self.stream_id,
            self.user_id,
            self.conversation_id,
            self.model,
            self.owner,
            self.end_reason,
            self.error,
        )
        text = "\n".join(text for text in texts if text).casefold()
        return all(word in text for word in words)


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…"


class Busy(msgspec.Struct, frozen=True):
    """How busy a running job is, when that was found out, and until when it is good enough (monotonic)."""

    at: float
    until: float
    events: int
    viewers: int


class Wanted(msgspec.Struct, frozen=True):
    """What a request asks for."""

    stream_id: str | None
    user: str | None
    tenant: str | None
    status: str | None
    words: list[str]
    limit: int
    offset: int
    activity: bool

    @classmethod
    def of(cls, request: Request) -> Wanted:
        """From the query; raises HTTPException 400."""
        query = request.query_params
        status = query.get("status")
        if status is not None and not JobStatus(status).is_known:
            raise HTTPException(400, f"status: give one of {', '.join(JobStatus)}")
        limit, offset = requests.index(request, "limit"), requests.index(request, "offset")
        if (limit is not None and not 1 <= limit <= _MOST_ROWS) or (offset or 0) < 0:
            raise HTTPException(400, f"limit: give 1 to {_MOST_ROWS}; offset: 0 or more")
        return cls(
            stream_id=query.get("id") or None,
            user=query.get("user") or None,
            tenant=query.get("tenant") or None,
            status=status,
            words=query.get("q", "").casefold().split()[:8],
            limit=limit or _ROWS,
            offset=offset or 0,
            activity=requests.switch(request, "activity"),
        )


class Directory:
    """Digests of all jobs, listed when somebody asks, at most as often as the cost allows."""

    def __init__(self, jobs: JobManager) -> None:
        self._jobs = jobs
        self._tasks = Tasks()
        self._rows: list[Row] = []
        self._listing: asyncio.Task[NatsJobsError | None] | None = None
        self._at = self._until = float("-inf")

    async def rows(self) -> tuple[list[Row], float]:
        """All jobs, newest first, and how many seconds ago that was so."""
        if time.monotonic() >= self._until:
            if self._listing is None or self._listing.done():
                self._listing = self._tasks.spawn(self._list(), "list of all jobs")
            if (problem := await asyncio.shield(self._listing)) is not None:  # who goes away leaves it to the others
                raise problem
        return self._rows, time.monotonic() - self._at

    async def _list(self) -> NatsJobsError | None:
        started = time.monotonic()
        try:
            rows = list[Row]()
            for step in in_steps(await self._jobs.list_jobs()):
                rows += map(Row.of, step)
                await asyncio.sleep(0)
        except NatsJobsError as error:
            return error  # for each request that waits, and for no log of background tasks
        took = time.monotonic() - started
        self._rows, self._at = rows, started
        self._until = started + took + max(_FRESH, took * _SHARE)
        return None


class Activity:
    """How busy jobs are: events so far and viewers on all replicas; a few are looked at at once."""

    def __init__(self, jobs: JobManager) -> None:
        self._jobs = jobs
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._tasks = Tasks()
        self._looking: dict[tuple[str, str], asyncio.Task[Busy | None]] = {}
        self._known: OrderedDict[tuple[str, str], Busy] = OrderedDict()

    async def of(self, rows: Iterable[Row]) -> dict[tuple[str, str], Busy]:
        """Of those that run, by stream id and generation; one that cannot be counted is left out."""
        names = [(row.stream_id, row.generation) for row in rows if not JobStatus(row.status).is_terminal]
        found = await asyncio.gather(*(self._look(*name) for name in names))
        return {name: busy for name, busy in zip(names, found, strict=True) if busy is not None}

    async def _look(self, stream_id: str, generation: str) -> Busy | None:
        key = (stream_id, generation)
        known = self._known.get(key)
        if known is not None and time.monotonic() < known.until:
            return known
        if (looking := self._looking.get(key)) is None:
            looking = self._looking[key] = self._tasks.spawn(self._count(key), f"look at {stream_id}")
            looking.add_done_callback(lambda _: self._looking.pop(key, None))
        return await asyncio.shield(looking)  # one look serves all who wait for it

    async def _count(self, key: tuple[str, str]) -> Busy | None:
        stream_id, generation = key
        async with self._room:
            started = time.monotonic()
            try:
                events, viewers = await asyncio.gather(
                    self._jobs.count_events(stream_id, generation=generation), self._jobs.count_subscribers(stream_id)
                )
            except NatsJobsError:
                return None
            now = time.monotonic()
            until = now + max(_ACTIVITY_FRESH, (now - started) * _SHARE)
            self._known[key] = busy = Busy(now, until, events, viewers)
            self._known.move_to_end(key)
            if len(self._known) > _ACTIVITY_KEPT:
                self._known.popitem(last=False)
            return busy


class Listing:
    """``/streams``."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._directory = Directory(desk.jobs)
        self._activity = Activity(desk.jobs)

    def routes(self) -> list[BaseRoute]:
        """Where it is."""
        return [Route("/streams", self.streams, methods=["GET"])]

    async def streams(self, request: Request) -> Response:
        """One page of the jobs: of one user, or of everybody whom the hook lets see."""
        wanted = Wanted.of(request)
        identity = await self._desk.ask(request, None, Action.LIST if wanted.user else Action.BROWSE)
        only = identity if isinstance(identity, Only) else Only()
        rows, age = await self._directory.rows()
        user, tenant = only.user_id or wanted.user, only.tenant_id or wanted.tenant
        rows = [
            row
            for row in rows
            if (wanted.stream_id is None or row.stream_id == wanted.stream_id)
            and (user is None or row.user_id == user)
            and (tenant is None or row.tenant_id == tenant)
            and (not wanted.words or row.has(wanted.words))
        ]
        counts = Counter(row.status for row in rows)
        if wanted.status:
            rows = [row for row in rows if row.status == wanted.status]
        page = rows[wanted.offset : wanted.offset + wanted.limit]
        busy = await self._activity.of(page) if wanted.activity else {}
        jobs = [_with(row, busy.get((row.stream_id, row.generation))) for row in page]
        answer = {"jobs": jobs, "total": len(rows), "counts": counts, "age": round(age, 3), "now": _now()}
        return json_answer({**answer, **({"user": user} if user else {})})


def _with(row: Row, busy: Busy | None) -> dict[str, object]:
    out: dict[str, object] = msgspec.to_builtins(row)
    if busy is not None:
        out |= {"events": busy.events, "viewers": busy.viewers, "age": round(time.monotonic() - busy.at, 3)}
    return out


def _now() -> int:
    """The gateway's clock: pages show ages by it, whatever their own says."""
    return int(time.time() * 1000)
