"""How users' callbacks are called: plain or async, and one that fails is logged and harms nobody else."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

_log = logging.getLogger(__name__)


def call(what: str, callback: Callable[..., Any], *arguments: Any) -> Coroutine[Any, Any, None] | None:
    """Call now; an awaitable is left over when the callback is async. ``what`` names it in the log."""
    try:
        result = callback(*arguments)
    except Exception:  # noqa: BLE001 - it is the user's code: anything may come
        _log.exception("%s failed", what)
        return None
    return _finish(what, result) if inspect.isawaitable(result) else None


async def call_and_wait(what: str, callback: Callable[..., Any], *arguments: Any) -> None:
    """Call, and wait until it has finished."""
    left = call(what, callback, *arguments)
    if left is not None:
        await left


async def _finish(what: str, result: Awaitable[Any]) -> None:
    try:
        await result
    except Exception:  # noqa: BLE001 - as above
        _log.exception("%s failed", what)
