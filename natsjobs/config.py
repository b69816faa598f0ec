"""One frozen ``Config`` of small parts. Owns every number that a user may change, its unit and its default.

Environment variables are read in one place, ``Config.from_env``; nothing else in the package looks at them, except
``NATS_URL`` (``connect`` and the command line) and ``NATS_SERVER_BIN`` (``embedded``). Seconds are floats, sizes are
bytes.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec

from natsjobs.errors import ConfigError
from natsjobs.models import ContentPart

_log = logging.getLogger(__name__)

RECONNECT_WAIT = 2.0
"""Longest pause between two reconnect attempts, seconds; a judge of other replicas must be older than this (A1)."""

SMALLEST_STREAM = 1_048_576
"""With less, the reserve for ends (a tenth) does not hold even one with its final event."""


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How long things stay."""

    running: float = 1200.0
    """A running job without any activity for this long ends with ``EXPIRED``. 0: never."""
    finished: float = 300.0
    """Record and log of a finished job stay this long, so that late clients still get the whole replay."""
    usage: float = 604_800.0
    """Unclaimed token usage stays this long, whatever happens to its job."""
    log: float = 86_400.0
    """Backstop: no event outlives this (the stream's ``max_age``). Longer than the longest run you want to replay."""
    orphan: float = 60.0
    """A log without a record is removed when its newest message is this old: a create writes its log first (A6)."""
    tombstone: float = 3600.0
    """What a removal leaves behind, so that late writers stay fenced and ``created_at`` goes on, goes after this."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How large things may get."""

    event_bytes: int = 8_388_608
    """Largest event, encoded; above the server's ``max_payload`` it is split and joined again."""
    id_bytes: int = 256
    """Longest id, in bytes of its UTF-8 form before escaping (at most 256: a NATS control line has 4,096)."""
    record_bytes: int = 262_144
    """Largest job record, and at most half of the server's ``max_payload``; ``metadata`` and ``user_message`` above it
    are refused (B7)."""
    queue_events: int = 1024
    """Events that wait in one run before ``emit`` waits for room."""
    queue_bytes: int = 4_194_304
    """Bytes that wait in one run before ``emit`` waits for room (one larger event is always let in)."""
    reader_events: int = 1024
    """Newest events kept per followed job; a reader that falls further behind re-reads from the log."""


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """How long things take, in seconds."""

    lease: float = 10.0
    """A dead owner's jobs get their terminal record within this time. At least 1.5; below 3 a busy machine may let
    leases lapse for a moment, and the ping that follows is all that keeps a living owner's jobs."""
    renew: float = 3.0
    """How often an owner renews its lease; at most half of ``lease``, and more often where NATS, which counts in whole
    seconds, would let it lapse in between."""
    linger: float = 0.05
    """The first event goes at once; while more keep coming they are collected this long. 0: never wait.

    Longer: fuller messages, which cost less, replay faster and take less room; viewers see events that much later. The
    default was measured (``natsjobs bench paced-50``): at 50 events a second and job it takes 0.4 of the CPU that 0
    takes."""
    linger_unwatched: float = 0.5
    """The same for a run that nobody watches and whose events come faster than ``linger``: the log has fewer, fuller
    messages, and whoever subscribes gets at once what was held back. 0, or not longer than ``linger``: always that; no
    effect while ``linger`` is 0.

    A run counts as watched until it has lingered for two seconds, and whenever it is not certain that nobody watches.
    When the news of a subscriber is lost, it sees events this much later until the owner asks again (three leases).
    What reads the log without subscribing (resume states, content, counts of events) may be this much behind what was
    emitted, and so much more is lost with an owner that dies; ``flush`` stores everything."""
    request: float = 5.0
    """One request to NATS. Reads are tried for four times as long, which outlasts an election."""
    abort: float = 2.0
    """How long an abort waits for the owner before it ends the job itself."""
    give_up: float = 60.0
    """NATS away for this long: ``UnavailableError``."""
    look: float = 2.0
    """A follower that hears nothing looks at the log after this time, doubling to five times it (A7)."""
    sweep: float = 60.0
    """How often every replica runs ``cleanup()`` by itself."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """All settings. Values that contradict each other are a ``ConfigError`` when the object is made.

    Raises:
        ConfigError: ``field`` names the setting.
    """

    namespace: str = "natsjobs"
    """Prefix of every subject, stream and bucket: one subject token, letters, digits, ``_`` and ``-``."""
    replicas: int = 1
    """Replicas of the stream and the bucket: 1, 3 or 5."""
    storage: Literal["file", "memory"] = "file"
    """``"memory"`` with one replica loses everything at a server restart and needs ``allow_loss``."""
    retention: Retention = Retention()
    limits: Limits = Limits()
    timing: Timing = Timing()
    fold: Callable[[Iterable[Any]], list[ContentPart]] | None = None
    """From all event values of a log to content parts, a list of dicts; ``None``: ``natsjobs.content.fold``.

    It must pass over events that it does not know. Where it raises, whoever asks for content or a resume state gets a
    ``ConfigError`` with ``field="fold"`` and the exception as its cause; an abort holds all the same, with no content
    and the traceback in the log.
    """
    enc_hook: Callable[[Any], Any] | None = None
    """As in msgspec: an encodable form of objects that have none; for events, live content and what ``fold`` gives."""
    domain: str | None = None
    """JetStream domain; one namespace per set of connected domains (C7)."""
    max_bytes: int | None = None
    """``max_bytes`` of the events stream when it is created here; the bucket gets a tenth. Accounts may demand it.

    Events are refused from 90 % on (``StreamFullError``), so that what runs can end. A stream that is there is left
    as it is.
    """
    allow_loss: bool = False
    """Accept ``storage="memory"`` with one replica."""
    create: bool = True
    """Create stream and bucket when they are missing. ``False`` where something else owns them (NACK, Terraform)."""

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Config:
        """Settings from ``NATSJOBS_*``: ``NATSJOBS_NAMESPACE``, ``NATSJOBS_TIMING_LEASE`` and so on.

        Variables that are no setting are left alone (Kubernetes makes ``NATSJOBS_PORT`` of a service's name); one
        that is nearly a setting is logged.

        Raises:
            ConfigError: A value is not of its setting's type, or settings contradict each other.
        """
        env = os.environ if environ is None else environ
        plain: dict[str, Any] = {}
        parts: dict[str, dict[str, Any]] = {"retention": {}, "limits": {}, "timing": {}}
        for name, target, field, kind in _env_names():
            if (text := env.get(name)) is None:
                continue
            value = _parse(text, kind, target=f"{target}.{field}" if target else field, name=name)
            (parts[target] if target else plain)[field] = value
        known = [name for name, *_ in _env_names()]
        for name in env:
            if name.startswith("NATSJOBS_") and name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
                if near:
                    _log.warning("environment variable %s is no setting; did you mean %s?", name, near[0])
        return cls(
            retention=Retention(**parts["retention"]),
            limits=Limits(**parts["limits"]),
            timing=Timing(**parts["timing"]),
            **plain,
        )


_PLAIN_ENV: dict[str, type] = {
    "namespace": str,
    "replicas": int,
    "storage": str,
    "domain": str,
    "max_bytes": int,
    "allow_loss": bool,
    "create": bool,
}


def _env_names() -> Iterable[tuple[str, str, str, type]]:
    for field, kind in _PLAIN_ENV.items():
        yield f"NATSJOBS_{field.upper()}", "", field, kind
    for target, struct, kind in (("retention", Retention, float), ("limits", Limits, int), ("timing", Timing, float)):
        for field in struct.__struct_fields__:
            yield f"NATSJOBS_{target.upper()}_{field.upper()}", target, field, kind


def _parse(text: str, kind: type, *, target: str, name: str) -> Any:
    if kind is bool:
        if text.lower() in {"1", "true", "yes", "on"}:
            return True
        if text.lower() in {"0", "false", "no", "off", ""}:
            return False
        raise ConfigError(target, f"{name}={text!r} is neither true nor false")
    try:
        return kind(text)
    except ValueError:
        wanted = "whole number" if kind is int else "number"
        raise ConfigError(target, f"{name}={text!r} is not a {wanted}") from None


_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ZERO_MEANS_NEVER = {("retention", "running"), ("timing", "linger"), ("timing", "linger_unwatched")}


def _check(config: Config) -> None:
    _check_plain(config)
    _check_part(config, "retention", Retention)
    _check_part(config, "limits", Limits)
    _check_part(config, "timing", Timing)
    _check_together(config)


def _check_plain(config: Config) -> None:
    for field, optional in (("namespace", False), ("domain", True)):
        value: Any = getattr(config, field)
        if not (optional and value is None) and not (isinstance(value, str) and _TOKEN.fullmatch(value)):
            raise ConfigError(field, f"{value!r} must be one subject token: 1 to 64 letters, digits, _ and -")
    if type(config.replicas) is not int or config.replicas not in {1, 3, 5}:
        raise ConfigError("replicas", f"{config.replicas!r} is not 1, 3 or 5")
    if config.storage not in ("file", "memory"):
        raise ConfigError("storage", f'{config.storage!r} is neither "file" nor "memory"')
    limit: Any = config.max_bytes
    if limit is not None and (type(limit) is not int or limit < SMALLEST_STREAM):
        raise ConfigError("max_bytes", f"{limit!r} is not a whole number of at least {SMALLEST_STREAM}")
    for field in ("fold", "enc_hook"):
        if (hook := getattr(config, field)) is not None and not callable(hook):
            raise ConfigError(field, f"{hook!r} cannot be called")
    for field in ("allow_loss", "create"):
        if not isinstance(value := getattr(config, field), bool):
            raise ConfigError(field, f"{value!r} is neither True nor False")


def _check_part(config: Config, part: str, kind: type[msgspec.Struct]) -> None:
    numbers = getattr(config, part)
    if not isinstance(numbers, kind):
        raise ConfigError(part, f"{numbers!r} is not a {kind.__name__}")
    whole = kind is Limits
    for field in kind.__struct_fields__:
        value: Any = getattr(numbers, field)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise ConfigError(f"{part}.{field}", f"{value!r} is not a {'whole number' if whole else 'number'}")
        if not math.isfinite(value):
            raise ConfigError(f"{part}.{field}", f"{value!r} is not a finite number")
        if value < 0 or (value == 0 and (part, field) not in _ZERO_MEANS_NEVER):
            raise ConfigError(f"{part}.{field}", f"{value!r} must be larger than 0")


def _check_together(config: Config) -> None:
    timing, retention = config.timing, config.retention
    if config.storage == "memory" and config.replicas == 1 and not config.allow_loss:
        raise ConfigError("storage", "memory with one replica loses everything at a restart; set allow_loss=True")
    if config.limits.id_bytes > 256:
        raise ConfigError("limits.id_bytes", "at most 256: escaped ids must fit a NATS control line of 4,096 bytes")
    if timing.lease < 2 * timing.renew:
        raise ConfigError(
            "timing.lease",
            f"{timing.lease} is shorter than two renewals ({timing.renew} each): one lost would end jobs",
        )
    if timing.lease < 1.5:
        raise ConfigError("timing.lease", "at least 1.5: NATS counts TTLs in whole seconds")
    if retention.log < retention.running + retention.finished:
        raise ConfigError("retention.log", "must cover at least retention.running + retention.finished")
