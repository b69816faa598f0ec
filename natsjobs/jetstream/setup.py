"""Settings of the stream and the bucket: the one place that spells them, creates them and checks them.

Owns what the protocol needs of both (``settings_of``), what may differ from it, and how a difference is explained. It
creates what is missing and never changes what is there: an operator's stream stays an operator's stream. The server's
echo is compared as well, because older servers accept settings they do not know, and ignore them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from natsjobs.config import Config
from natsjobs.engine.patience import FINAL
from natsjobs.engine.ports import StreamMissingError
from natsjobs.engine.subjects import Subjects
from natsjobs.errors import PermissionDeniedError, StreamFullError, UnavailableError, UnsupportedServerError
from natsjobs.jetstream.faults import NO_JETSTREAM, NO_STREAM, OTHER_CONFIG, RequestFailedError, ServerError, of_server
from natsjobs.jetstream.headers import status_of
from natsjobs.jetstream.wire import AWAY_WAIT, Wire

_log = logging.getLogger(__name__)

Settings = dict[str, Any]

_SECOND = 1_000_000_000
MARKER_TTL = 60
"""Seconds that the marker of a lapsed TTL stays in the bucket: long enough to be seen, short enough not to pile up."""
NEVER = 2**53
"""A sequence no stream reaches: an append that expects it is refused, by a stream that works."""
_FIRST_PAUSE = 0.05
_SMALLEST_BUCKET = 1_048_576


class _Answer(msgspec.Struct, frozen=True):
    config: Settings = {}
    created: str = ""
    domain: str = ""
    error: ServerError | None = None


_answer = msgspec.json.Decoder(_Answer)


def events_settings(config: Config) -> Settings:
    """The stream ``{ns}_events``."""
    names = Subjects(config.namespace)
    return {
        **_common(config),
        "name": names.events_stream,
        "description": f"natsjobs: event logs of namespace {config.namespace}, one subject per generation",
        "subjects": [names.all_events],
        "max_bytes": config.max_bytes or -1,
        "max_age": int(config.retention.log * _SECOND),
        "max_msgs_per_subject": -1,
        "republish": {"src": names.all_events, "dest": f"{names.live_prefix}>"},
    }


def records_settings(config: Config) -> Settings:
    """The stream below the bucket ``{ns}_jobs``."""
    names = Subjects(config.namespace)
    return {
        **_common(config),
        "name": names.records_stream,
        "description": f"natsjobs: job records and leases of namespace {config.namespace}",
        "subjects": [f"{names.record_prefix}>"],
        "max_bytes": max(config.max_bytes // 10, _SMALLEST_BUCKET) if config.max_bytes else -1,
        "max_age": 0,
        "max_msgs_per_subject": 1,
        "deny_delete": True,
        "subject_delete_marker_ttl": MARKER_TTL * _SECOND,
        "republish": {"src": f"{names.record_prefix}>", "dest": f"{names.changes_prefix}>"},
    }


def settings_of(config: Config) -> tuple[Settings, Settings]:
    """Stream and bucket, as ``STREAM.CREATE`` takes them."""
    return events_settings(config), records_settings(config)


def _common(config: Config) -> Settings:
    return {
        "metadata": {"natsjobs-wire": "1"},
        "retention": "limits",
        "storage": config.storage,
        "num_replicas": config.replicas,
        "discard": "new",  # discarding old would lose acknowledged events without a word (B8)
        "max_consumers": -1,
        "max_msgs": -1,
        "max_msg_size": -1,
        "duplicate_window": _SECOND // 10,  # no message ids are used, and the window costs memory per message
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,
    }


# -- what may differ --------------------------------------------------------------------------------------------------

_EXACT = ("subjects", "retention", "discard", "max_msgs_per_subject", "max_age")
_FLAGS = ("allow_direct", "allow_rollup_hdrs", "allow_msg_ttl")
_UNLIMITED = ("max_msgs", "max_msg_size")
_UNWANTED = ("sealed", "no_ack", "mirror", "sources", "subject_transform", "discard_new_per_subject")
_REPLICAS = "num_replicas"
_MARKERS = "subject_delete_marker_ttl"
_FIXED = frozenset({"storage", "retention", "sealed", "mirror"})
"""What no server changes later."""
_OPTIONS = {
    "subjects": "--subjects",
    "max_age": "--max-age",
    "max_msgs_per_subject": "--max-msgs-per-subject",
    "max_msgs": "--max-msgs",
    "max_msg_size": "--max-msg-size",
    "discard": "--discard",
    "num_replicas": "--replicas",
    "allow_direct": "--allow-direct",
    "allow_rollup_hdrs": "--allow-rollup",
    "subject_delete_marker_ttl": "--subject-del-markers-ttl",
}


def differences(wanted: Settings, actual: Mapping[str, Any]) -> list[str]:
    """What of the actual settings does not do, one sentence each with its fix; ``[]``: it will do.

    More replicas than wanted, file instead of memory, any ``max_bytes``, placement, compression, description and
    metadata will do: they are the operator's. So is how long markers stay, as long as there are some.
    """
    have = {
        name: actual.get(name) for name in (*_EXACT, *_FLAGS, *_UNLIMITED, *_UNWANTED, "storage", _REPLICAS, _MARKERS)
    }
    needed: list[tuple[str, object, bool]] = [
        *((name, wanted[name], (have[name] or 0) == wanted[name]) for name in _EXACT),
        *((name, True, bool(have[name])) for name in _FLAGS),
        *((name, -1, have[name] in {None, -1, 0}) for name in _UNLIMITED),
        *((name, None, not have[name]) for name in _UNWANTED),
        (_REPLICAS, wanted[_REPLICAS], (have[_REPLICAS] or 1) >= wanted[_REPLICAS]),
        ("storage", wanted["storage"], have["storage"] in {"file", wanted["storage"]}),
        (_MARKERS, wanted.get(_MARKERS, 0), bool(have[_MARKERS]) == bool(wanted.get(_MARKERS))),
    ]
    republish: dict[str, Any] = dict(actual.get("republish") or {})
    have["republish"] = republish or None
    same = {name: republish.get(name) for name in ("src", "dest")} == wanted["republish"]
    needed.append(("republish", wanted["republish"], same and not republish.get("headers_only")))
    return [
        f"{name} is {_shown(name, have[name])}, needed is {_shown(name, want)}: {_fix(wanted, name, want)}"
        for name, want, fine in needed
        if not fine
    ]


def _shown(field: str, value: object) -> str:
    if field in {"max_age", "subject_delete_marker_ttl"} and isinstance(value, int):
        return f"{value / _SECOND:g}s" if value else "off"
    return "not set" if value is None else msgspec.json.encode(value).decode()


def _fix(wanted: Settings, field: str, want: object) -> str:
    name, edit = wanted["name"], f"`nats stream edit {wanted['name']}"
    if field in _FIXED:
        return f"it cannot be changed; delete the stream {name} when nobody needs it any more, or use another namespace"
    if field == "republish":
        ends: Mapping[str, str] = wanted["republish"]
        return f"{edit} --republish-source='{ends['src']}' --republish-destination='{ends['dest']}'`"
    if (option := _OPTIONS.get(field)) is None:
        return f"{edit} --config FILE` with this in the file"
    if want is True:
        return f"{edit} {option}`"
    hint = {"max_age": "set retention.log to what it is, or ", _REPLICAS: "set replicas to what it is, or "}.get(
        field, ""
    )
    value = wanted["subjects"][0] if field == "subjects" else _shown(field, want).strip('"').replace("off", "0s")
    return f"{hint}{edit} {option}='{value}'`"


# -- creating and checking --------------------------------------------------------------------------------------------


class Setup:
    """Creates or checks streams over one wire."""

    def __init__(self, wire: Wire, config: Config) -> None:
        """Nothing is sent before ``ensure``."""
        self._wire = wire
        self._limit = config.timing.request
        self._may_create = config.create
        self._prefix = api_prefix(config)

    async def ensure(self, wanted: Settings) -> str:
        """Create the stream if it is missing, check it if it is there; its JetStream domain (``""``: none).

        Raises:
            UnsupportedServerError: Its settings will not do, it cannot be created here, or may not be by this user.
            UnavailableError: No answer in time.
        """
        deadline = time.monotonic() + self._limit
        try:
            answer = await self._until(deadline, lambda: self._ask("INFO", wanted["name"], b""))
        except StreamMissingError:
            answer = await self._create(wanted, deadline)
        if found := differences(wanted, answer.config):
            raise UnsupportedServerError(
                f"stream {wanted['name']} has settings that natsjobs cannot work with, and it does not change a stream "
                "that is there: " + "; ".join(found)
            )
        return answer.domain

    async def _create(self, wanted: Settings, deadline: float) -> _Answer:
        name = wanted["name"]
        if not self._may_create:
            raise UnsupportedServerError(
                f"the stream {name} is missing, and with create off it is not made here; let whoever owns the streams "
                "make it (`natsjobs setup --print nack` or `--print json` says how), or run `natsjobs setup`"
            )
        body = msgspec.json.encode(wanted)
        try:
            answer = await self._until(deadline, lambda: self._ask("CREATE", name, body))
        except StreamFullError as error:
            raise UnsupportedServerError(f"creating the stream {name}: {error}") from error
        except PermissionDeniedError as error:
            raise UnsupportedServerError(
                f"the stream {name} is missing and this NATS user may not create it (publish to {error.subject}); "
                "run `natsjobs setup` once as a user that may"
            ) from None
        if answer.error is None:  # else somebody has created it meanwhile, with other settings
            await self._settle(wanted["subjects"][0])
            _log.info("created the stream %s", name)
        return await self._until(deadline, lambda: self._ask("INFO", name, b""))  # only this names the domain

    async def _ask(self, operation: str, name: str, body: bytes) -> _Answer:
        subject = f"{self._prefix}.STREAM.{operation}.{name}"
        doing = f"{'creating' if operation == 'CREATE' else 'looking at'} the stream {name}"

        def take(body: bytes, headers: bytes) -> tuple[_Answer, int]:
            status = status_of(headers)
            return _Answer() if status else _answer.decode(body), status

        try:
            answer: _Answer
            answer, status = await self._wire.request(subject, body, take, limit=self._limit, wait=AWAY_WAIT)
        except RequestFailedError as error:
            if error.denied:
                raise PermissionDeniedError(doing, subject=subject) from None
            raise UnavailableError(f"{doing}: {error}") from None
        if status:
            raise UnavailableError(
                f"{doing}: JetStream does not answer; is it enabled on the server and for this account?"
            )
        if answer.error is not None and answer.error.err_code != OTHER_CONFIG:
            found = of_server(answer.error, doing)
            if answer.error.err_code in NO_JETSTREAM:
                raise UnsupportedServerError(str(found))
            raise StreamMissingError(name) if answer.error.err_code == NO_STREAM else found
        return answer

    async def _until(self, deadline: float, ask: Callable[[], Any]) -> _Answer:
        """A server that has just started, or has no leader yet, answers a little later."""
        pause = _FIRST_PAUSE
        while True:
            try:
                answer: _Answer = await ask()
            except (*FINAL, StreamMissingError):
                raise
            except UnavailableError:
                if time.monotonic() + pause > deadline:
                    raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, 1.0)
            else:
                return answer

    async def _settle(self, subjects: str) -> None:
        """A stream that was created on several replicas refuses its first messages; wait until it takes them.

        The append that tells is one that the stream must refuse, so nothing is stored.
        """
        probe = f"{subjects.removesuffix('>')}natsjobs.setup.probe"
        headers = {"Nats-Expected-Last-Subject-Sequence": str(NEVER)}

        def take(body: bytes, headers: bytes) -> bool:
            error = _answer.decode(body).error if not status_of(headers) else None
            return error is not None and error.code == 400  # refused, so it works

        deadline = time.monotonic() + self._limit
        while time.monotonic() < deadline:
            try:
                if await self._wire.request(probe, b"", take, limit=1.0, headers=headers):
                    return
            except RequestFailedError as error:
                if error.denied:
                    return  # whoever sets up need not be allowed to append
            await asyncio.sleep(_FIRST_PAUSE)


def api_prefix(config: Config) -> str:
    """The prefix of the JetStream API in the domain of the config."""
    return f"$JS.{config.domain}.API" if config.domain else "$JS.API"
