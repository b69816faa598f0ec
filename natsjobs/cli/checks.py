"""What ``natsjobs doctor`` looks at, and what it makes of it. Each check is one question with findings for an answer.

Owns the judgement: what is fine, what is a warning (it works, and will hurt), what is a problem (something does not
work, or is about to stop), and what to do about it. The facts are ``natsjobs.jetstream.inspection``'s. Changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any, Literal

import msgspec

from natsjobs.config import Config
from natsjobs.engine.headroom import FILL, WARN
from natsjobs.engine.ports import NoReplyError, NoRespondersError
from natsjobs.engine.records import Records, Slot
from natsjobs.engine.subjects import Subjects
from natsjobs.engine.wire import decode_object
from natsjobs.errors import NatsJobsError, PermissionDeniedError
from natsjobs.jetstream import NatsLink
from natsjobs.jetstream.inspection import PROBE, Echo, Inspection, ServerFacts, StreamFacts
from natsjobs.jetstream.link import OLDEST
from natsjobs.jetstream.setup import differences, settings_of

Level = Literal["ok", "warning", "problem", "skipped"]
Role = Literal["worker", "gateway"]

_SKEW = 5.0
_MOST_NAMED = 5


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One answer. ``fix``: what to do about it, for all but ``ok``."""

    check: str
    level: Level
    found: str
    fix: str = ""


class Doctor:
    """One look at one namespace."""

    def __init__(self, link: NatsLink, inspection: Inspection, config: Config, role: Role | None) -> None:
        """Nothing is sent here. ``role``: what this user is for."""
        self._link, self._look, self._config, self._role = link, inspection, config, role
        self._names = Subjects(config.namespace)
        self._streams = dict(
            zip((self._names.events_stream, self._names.records_stream), settings_of(config), strict=True)
        )
        self._found: dict[str, StreamFacts] = {}
        self._server: ServerFacts | None = None

    async def findings(self) -> AsyncGenerator[Finding]:
        """All of them, one after the other; one check that cannot be made holds up no other."""
        checks: list[tuple[str, Callable[[], Awaitable[Iterable[Finding]]]]] = [
            ("server", self._check_server),
            ("jetstream", self._check_account),
            ("settings", self._check_settings),
            ("space", self._check_space),
            ("replicas", self._check_replicas),
            ("clock", self._check_clock),
            ("consumers", self._check_consumers),
            ("subjects", self._check_captures),
            ("listeners", self._check_listeners),
            ("permissions", self._check_permissions),
            ("owners", self._check_owners),
        ]
        for name, check in checks:
            try:
                for finding in await check():
                    yield finding
            except PermissionDeniedError as error:
                yield Finding(name, "skipped", str(error), "grant that, or run this as the operator")
            except NatsJobsError as error:
                yield Finding(name, "skipped", f"could not look: {error}", "mend what is above, then run this again")

    # -- the server ---------------------------------------------------------------------------------------------------

    async def _check_server(self) -> Iterable[Finding]:
        facts = self._server = await self._look.server()
        words = f"nats-server {facts.version} ({facts.name}), {facts.round_trip * 1000:.1f} ms away"
        numbers = [int(part) for part in facts.version.split("-")[0].split(".")[:2] if part.isdigit()]
        if tuple(numbers) < OLDEST:
            return [Finding("server", "problem", words, f"upgrade it to {OLDEST[0]}.{OLDEST[1]} or newer")]
        return [Finding("server", "ok", words)]

    async def _check_account(self) -> Iterable[Finding]:
        try:
            account = await self._look.account()
        except PermissionDeniedError:
            raise
        except NatsJobsError as error:
            fix = "enable JetStream on the server (jetstream: {store_dir: ...}) and for this account"
            return [Finding("jetstream", "problem", str(error), fix)]
        limits: dict[str, Any] = account.get("limits") or {}
        findings: list[Finding] = []
        for kind in ("storage", "memory"):
            limit, used = int(limits.get(f"max_{kind}", -1)), int(account.get(kind, 0))
            if limit > 0 and (level := _level_of(used / limit)) != "ok":
                words = f"{_percent(used, limit)} of the account's {kind} is used"
                findings.append(Finding("jetstream", level, words, f"raise the account's max_{kind} or remove streams"))
        return findings or [Finding("jetstream", "ok", f"on, {account.get('streams', 0)} streams in this account")]

    # -- stream and bucket --------------------------------------------------------------------------------------------

    async def _check_settings(self) -> Iterable[Finding]:
        findings: list[Finding] = []
        for name, wanted in self._streams.items():
            facts = await self._look.stream(name)
            if facts is None:
                findings.append(Finding("settings", "problem", f"the stream {name} is missing", "natsjobs setup"))
                continue
            self._found[name] = facts
            wrong = differences(wanted, facts.config)
            for words in wrong:
                what, _, fix = words.partition(": ")
                findings.append(Finding("settings", "problem", f"{name}: {what}", fix))
            if not wrong:
                findings.append(Finding("settings", "ok", f"{name} is as natsjobs needs it"))
        return findings

    async def _check_space(self) -> Iterable[Finding]:
        findings: list[Finding] = []
        for name, facts in self._found.items():
            used, limit = int(facts.state.get("bytes", 0)), int(facts.config.get("max_bytes", -1))
            if limit <= 0:
                findings.append(Finding("space", "ok", f"{name} holds {used} bytes and has no limit of its own"))
                continue
            fix = f"`nats stream edit {name} --max-bytes=...`, or a shorter retention; full, it takes no events"
            level = _level_of(used / limit)
            words = f"{name} is {_percent(used, limit)} full ({used} of {limit} bytes)"
            findings.append(Finding("space", level, words, "" if level == "ok" else fix))
        return findings

    async def _check_replicas(self) -> Iterable[Finding]:
        findings: list[Finding] = []
        clustered = self._server is not None and bool(self._server.cluster)
        for name, facts in self._found.items():
            count = int(facts.config.get("num_replicas") or 1)
            away = [peer for peer in facts.cluster.get("replicas") or () if peer.get("offline")]
            behind = [peer for peer in facts.cluster.get("replicas") or () if not peer.get("current")]
            if away or behind:
                names = ", ".join(str(peer.get("name")) for peer in away or behind)
                state = "away" if away else "behind"
                fix = "look after that node; one more loss stops every append" if away else "wait; it is catching up"
                level: Level = "problem" if away else "warning"
                findings.append(Finding("replicas", level, f"{name}: {names} is {state}", fix))
            elif clustered and count == 1:
                fix = f"NATSJOBS_REPLICAS=3 in every process, and `nats stream edit {name} --replicas=3`"
                words = f"{name} has one replica in a cluster: jobs stop while its node is away"
                findings.append(Finding("replicas", "warning", words, fix))
            else:
                findings.append(Finding("replicas", "ok", f"{name} has {count}"))
        return findings

    async def _check_clock(self) -> Iterable[Finding]:
        skews = [facts.our_time - facts.server_time for facts in self._found.values()]
        return [judge_clock(min(skews, key=abs))] if skews else []  # the other took longer to come

    async def _check_consumers(self) -> Iterable[Finding]:
        findings: list[Finding] = []
        for name, facts in self._found.items():
            if count := int(facts.state.get("consumer_count", 0)):
                names = await self._look.consumers(name)
                words = f"{name} has {count} consumers: {_some(names)}"
                fix = "natsjobs needs none: find who made them (`nats kv watch`, `nats stream view`, another program)"
                findings.append(Finding("consumers", "warning", words, fix))
        return findings or ([Finding("consumers", "ok", "none")] if self._found else [])

    # -- others on our subjects ---------------------------------------------------------------------------------------

    async def _check_captures(self) -> Iterable[Finding]:
        found = await self._look.streams_on(f"{self._names.namespace}.>")
        others = [name for name in found if name not in self._streams]
        fix = "take these subjects out of it: a stream answers requests that only owners and readers may answer"
        findings = [
            Finding("subjects", "problem", f"the stream {name} captures subjects of this namespace", fix)
            for name in others
        ]
        return findings or [Finding("subjects", "ok", "no other stream captures them")]

    async def _check_listeners(self) -> Iterable[Finding]:
        ns = self._names.namespace
        subjects = [f"{ns}.{kind}.probe" for kind in ("owner", "abort", "presence")]
        echoes = await asyncio.gather(*(self._look.probe(subject) for subject in subjects))
        findings: list[Finding] = []
        for subject, echo in zip(subjects, echoes, strict=True):
            rest = "dead owners are then noticed by time-outs, later" if ".owner." in subject else "answers take longer"
            if echo is Echo.ANSWERED:
                fix = "find the stream or program that answers there, and take the subject away from it"
                findings.append(Finding("listeners", "problem", f"a request to {subject} is answered", fix))
            elif echo is Echo.SILENT:
                fix = f"somebody subscribes to it (`nats sub '{ns}.>'`?): stop that; {rest}"
                findings.append(Finding("listeners", "warning", f"a request to {subject} is not refused at once", fix))
            elif echo is Echo.DENIED:
                findings.append(Finding("listeners", "skipped", f"this user may not publish to {subject}", "grant it"))
        return findings or [Finding("listeners", "ok", "nobody listens where nobody should")]

    async def _check_permissions(self) -> Iterable[Finding]:
        findings: list[Finding] = []
        prefixes = (self._names.live_prefix, self._names.changes_prefix)
        worker, gateway, *echoes = await asyncio.gather(
            self._look.missing(ends_only=False),
            self._look.missing(ends_only=True),
            *(self._look.probe(f"{prefix}{PROBE}.probe") for prefix in prefixes),
        )
        wanted = worker if self._role == "worker" else gateway if self._role else worker and gateway
        if wanted:
            what = f"to be a {self._role}" if self._role else "to run or follow jobs"
            level: Level = "problem" if self._role else "warning"
            words = f"this user lacks, {what}: {', '.join(wanted)}"
            findings.append(Finding("permissions", level, words, "see the users in deploy/nats"))
        else:
            may = "run jobs" if not worker else "follow and abort jobs"
            findings.append(Finding("permissions", "ok", f"this user may {may}"))
        forged = [f"{prefix}>" for prefix, echo in zip(prefixes, echoes, strict=True) if echo is not Echo.DENIED]
        if forged:
            words = f"this user may publish {' and '.join(forged)}, which only the server should"
            fix = "deny it: whoever may can show viewers events that are in no log"
            findings.append(Finding("permissions", "warning", words, fix))
        return findings

    # -- owners -------------------------------------------------------------------------------------------------------

    async def _check_owners(self) -> Iterable[Finding]:
        if self._names.records_stream not in self._found:
            return []
        limit = self._config.timing.request
        records = Records(self._link, patience=limit, give_up=limit)
        running = _running(await records.list(self._names.records("job")))
        held = await records.list(self._names.records("owner"))
        alive = {parts[1] for slot in held if (parts := self._names.split_record(slot.key)) is not None}
        findings: list[Finding] = []
        fix = "any replica ends them within a lease; if this stays, none runs with these settings: start one"
        if unowned := running.pop("", []):
            findings.append(Finding("owners", "problem", f"running without an owner: {_some(unowned)}", fix))
        answers = await asyncio.gather(*(self._answers(owner) for owner in running))
        for (owner, jobs), answered in zip(running.items(), answers, strict=True):
            if not answered and owner not in alive:
                words = f"the owner {owner} is gone and its jobs are still called running: {_some(jobs)}"
                findings.append(Finding("owners", "problem", words, fix))
            elif not answered:
                words = f"the owner {owner} has a lease and does not answer: {_some(jobs)}"
                hint = "it died a moment ago, or this user may not ask it; look again after a lease"
                findings.append(Finding("owners", "warning", words, hint))
            elif owner not in alive:
                words = f"the owner {owner} answers and has no lease: {_some(jobs)}"
                findings.append(Finding("owners", "warning", words, "can it write to the bucket? see its log"))
        count = sum(len(jobs) for jobs in running.values())
        words = f"{len(alive)} replicas, {count} running jobs, each with its owner"
        return findings or [Finding("owners", "ok", words)]

    async def _answers(self, owner: str) -> bool:
        subject, question = self._names.owner(owner), b'{"op":"ping","runs":[]}'
        try:
            reply = await self._link.bus.request(subject, question, timeout=min(1.0, self._config.timing.request))
        except (NoRespondersError, NoReplyError):
            return False
        return (decode_object(reply) or {}).get("replica") == owner


def judge_clock(skew: float) -> Finding:
    """``skew``: seconds by which this machine's clock is ahead of the server's."""
    words = f"this clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the server's"
    if abs(skew) < _SKEW:
        return Finding("clock", "ok", words)
    fix = "set the time (NTP): no decision depends on it, but the ages and order of jobs that are shown do"
    return Finding("clock", "warning", words, fix)


def _running(slots: list[Slot]) -> dict[str, list[str]]:
    """Stream ids of running jobs by owner; ``""``: none."""
    found: dict[str, list[str]] = {}
    for slot in slots:
        value = slot.value or {}
        if value.get("status") == "running":
            found.setdefault(str(value.get("owner") or ""), []).append(str(value.get("streamId")))
    return found


def _level_of(fraction: float) -> Level:
    return "problem" if fraction >= FILL else "warning" if fraction >= WARN else "ok"


def _percent(used: int, limit: int) -> str:
    return f"{100 * used / limit:.0f} %"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
