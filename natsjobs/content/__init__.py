"""Folding a log of events into the content parts and run steps of an answer. Pure: no network, no clock.

Owns the rules by which LibreChat's events become content. Does not own the log, duplicates (replaying an entry twice
doubles its text: remove duplicates before the fold) or what is done with the result. Guarantees: garbage is ignored and
never raises, input is never changed, and what is given out belongs to the caller.

``baseline`` holds the rules of agents 3.1, ``slots`` those of 3.6 and the default, ``payload`` what both share.
"""

from __future__ import annotations

from natsjobs.content.folding import Compat, ContentFold, fold

__all__ = ["Compat", "ContentFold", "fold"]
