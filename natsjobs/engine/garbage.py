"""What somebody else wrote into our subjects, keys and replies: skipped, counted, and told in the log now and then.

Owns one count per kind and process, and how often a warning about a kind may come: the first at once, then at most
one every ``EVERY`` seconds with the count so far, so that whoever floods us with garbage does not flood the log.
Decides nothing about what garbage is; every reader of foreign bytes does.
"""

from __future__ import annotations

import logging
import time
from collections import Counter

from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub

_log = logging.getLogger(__name__)

EVERY = 10.0

counts: Counter[str] = Counter()
"""How many pieces of each kind were skipped in this process. One piece counts as often as it is read."""

_silent_until: dict[str, float] = {}


def skipped(kind: str, where: str, what: object) -> None:
    """Count something that is not ours. ``kind``: one of a few fixed names; ``where``: its subject, or why."""
    counts[kind] += 1
    hub.add(measures.GARBAGE, 1, kind)
    now = time.monotonic()
    if now >= _silent_until.get(kind, 0.0):
        _silent_until[kind] = now + EVERY
        _log.warning("skipped %s that is not ours (%.120s; %d so far): %.80r", kind, where, counts[kind], what)
