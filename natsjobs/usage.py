"""Token usage: reading what providers write, and spending it. Pure: no network, no store.

Owns the check of a usage entry (``usage_from``) and the call of a billing function for each entry
(``spend_collected_usage``). Does not own where entries are kept, nor who may spend them: that is ``claim_usage`` of
the store. Guarantees: an entry is handed to the billing function at most once per list, whoever shares the list and
whoever is cancelled, and one that was not spent is never dropped.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import msgspec

from natsjobs.errors import InvalidArgumentError, SpendError
from natsjobs.models import InputTokenDetails, UsageMetadata

UNKNOWN_MODEL = "unknown"
"""The key of ``spend_collected_usage``'s totals for entries that name no model."""

Spend: TypeAlias = Callable[[UsageMetadata], Awaitable[object] | object]
"""Bills one entry; plain or async. What it returns does not matter, what it raises is a failure."""

_COUNTS = ("input_tokens", "output_tokens", "total_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
_TEXTS = ("id", "model", "provider")
_DETAILS = "input_token_details"
_LARGEST_COUNT = 2**53  # larger ones lose digits in readers that keep numbers as doubles


class UsageTotals(msgspec.Struct, frozen=True, kw_only=True):
    """What was spent on one model."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation: int = 0
    cache_read: int = 0


def usage_from(value: UsageMetadata | Mapping[str, Any], field: str = "usage") -> UsageMetadata:
    """A checked usage entry from what a provider or a framework reported.

    Takes a mapping with the names of ``UsageMetadata``, the cache tokens in either form; every field it does not know
    goes to ``extra`` in its JSON form. Every value may be missing or ``None``. The result shares nothing with
    ``value``.

    Args:
        value: The entry.
        field: What errors call it.

    Raises:
        InvalidArgumentError: Not a mapping, or a field that cannot be right; ``field`` names it
            (``usage.input_tokens``).
    """
    if isinstance(value, UsageMetadata):
        if not isinstance(cast("Any", value.extra), Mapping):
            raise InvalidArgumentError(f"{field}.extra", f"must be a mapping, not {type(value.extra).__name__}")
        named = {name: getattr(value, name) for name in value.__struct_fields__ if name != "extra"}
        value = {**value.extra, **{name: item for name, item in named.items() if item is not None}}
    if not isinstance(cast("Any", value), Mapping):
        raise InvalidArgumentError(
            field,
            f"must be UsageMetadata or a mapping, not {type(value).__name__}; "
            "of a model object pass its fields, for example model_dump()",
        )
    known: dict[str, Any] = {name: _count(value.get(name), f"{field}.{name}") for name in _COUNTS}
    known.update({name: _text(value.get(name), f"{field}.{name}") for name in _TEXTS})
    known[_DETAILS] = _details(value.get(_DETAILS), f"{field}.{_DETAILS}")
    extra = {name: item for name, item in value.items() if name not in known}
    return UsageMetadata(**known, extra=_json_object(extra, field))


async def spend_collected_usage(usage: list[Any], spend: Spend) -> dict[str, UsageTotals]:
    """Call ``spend`` for every entry of the list at the same time and wait for all; totals per model.

    ``usage`` holds ``UsageMetadata`` or mappings (read by ``usage_from``); ``None`` entries are skipped. The list is
    emptied in place, before the first entry is spent: whoever shares it, also while this call waits, cannot spend the
    same entries again, and entries that are appended meanwhile stay in it for the next call. One failure does not stop
    the others. Entries without a model are counted under ``"unknown"``.

    Cancelled, it still waits for the calls under way, so that each entry is known to be spent or not; those that were
    not are put back into the list, and the cancellation goes on. Give ``spend`` a time-out of its own if it can hang.

    Raises:
        InvalidArgumentError: ``usage`` is not a list.
        SpendError: Some entries were not spent: ``spend`` raised, or an entry cannot be read. It is the only place
            where they still are; ``totals`` has the rest.
    """
    if not isinstance(cast("Any", usage), list):
        raise InvalidArgumentError("usage", f"must be a list, which is emptied in place, not {type(usage).__name__}")
    entries = [entry for entry in usage if entry is not None]
    usage.clear()
    outcomes, cancelled = await _all_outcomes([_spend_one(entry, spend) for entry in entries])
    failures: list[tuple[Any, BaseException]] = []
    totals: dict[str, UsageTotals] = {}
    for entry, outcome in zip(entries, outcomes, strict=True):
        if isinstance(outcome, BaseException):
            failures.append((entry, outcome))
        else:
            model = outcome.model or UNKNOWN_MODEL
            totals[model] = _plus(totals.get(model, UsageTotals()), outcome)
    if cancelled is not None:
        usage[:0] = [entry for entry, _ in failures]
        raise cancelled
    if failures:
        raise SpendError(failures, totals)
    return totals


async def _spend_one(entry: Any, spend: Spend) -> UsageMetadata:
    checked = usage_from(entry)
    usage = entry if isinstance(entry, UsageMetadata) else checked
    result = spend(usage)
    if inspect.isawaitable(result):
        await result
    return usage


async def _all_outcomes(
    calls: Sequence[Awaitable[UsageMetadata]],
) -> tuple[list[UsageMetadata | BaseException], asyncio.CancelledError | None]:
    """What each call returned or raised, in order, and the cancellation that came meanwhile, if any."""
    everything = asyncio.gather(*calls, return_exceptions=True)
    cancelled: asyncio.CancelledError | None = None
    while True:
        try:
            return await asyncio.shield(everything), cancelled
        except asyncio.CancelledError as exc:
            cancelled = exc


def _plus(total: UsageTotals, entry: UsageMetadata) -> UsageTotals:
    return UsageTotals(
        calls=total.calls + 1,
        input_tokens=total.input_tokens + (entry.input_tokens or 0),
        output_tokens=total.output_tokens + (entry.output_tokens or 0),
        cache_creation=total.cache_creation + entry.cache_creation,
        cache_read=total.cache_read + entry.cache_read,
    )


def _count(value: Any, field: str) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST_COUNT:
        raise InvalidArgumentError(field, f"{_shown(value)} is not a number of tokens: a whole number, 0 or more")
    return int(value)


def _text(value: Any, field: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InvalidArgumentError(field, f"must be a string or None, not {type(value).__name__}")
    return value


def _details(value: Any, field: str) -> InputTokenDetails | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(field, f"must be a mapping or None, not {type(value).__name__}")
    details = _json_object(cast("Mapping[str, Any]", value), field)
    counts = {name: _count(details.pop(name, None), f"{field}.{name}") for name in ("cache_creation", "cache_read")}
    details.update({name: count for name, count in counts.items() if count is not None})
    return cast("InputTokenDetails", details)


def _json_object(value: Mapping[Any, Any], field: str) -> dict[str, Any]:
    """The JSON form: what a reader on another replica will get, and nothing that the caller still holds."""
    for name, item in value.items():
        if not isinstance(name, str):
            raise InvalidArgumentError(field, f"the name {_shown(name)} is not a string")
        try:
            msgspec.json.encode((name, item))
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as exc:
            raise InvalidArgumentError(f"{field}.{name}", f"has no JSON form: {exc}") from None
    return msgspec.json.decode(msgspec.json.encode(dict(value)), type=dict[str, Any])


def _shown(value: object) -> str:
    return repr(value)[:80]
