"""What is sent in one turn of the loop leaves together.

Owns who is about to send. A writer that may send at once does not send the first event that it is given: it leaves at
the end of the turn, with all that it was given meanwhile in one message and with all other writers in one write to the
socket. Guarantees that nobody waits for another turn than this one, and that a turn in which many writers begin does
not hold back the first of them until the last has come: they leave in parties.
"""

from __future__ import annotations

from typing import Protocol

from natsjobs.engine.ports import Link

_PARTY = 16
"""So many writers leave together; reader and server are at work on them while the turn goes on."""


class Traveller(Protocol):
    """Who is about to send."""

    def depart(self) -> None:
        """Send now, what was collected since it joined; must neither block nor raise."""
        ...


class Departures:
    """The writers of a replica that leave at the end of this turn."""

    def __init__(self, link: Link) -> None:
        """``link``: knows when a turn ends."""
        self._link = link
        self._party: list[Traveller] = []
        self._told = False

    def join(self, traveller: Traveller) -> None:
        """Call ``depart`` once, at the end of this turn at the latest."""
        if len(self._party) >= _PARTY:  # all but this one, which has only begun
            self._leave()
        self._party.append(traveller)
        if not self._told:
            self._told = True
            self._link.at_turn_end(self._turn_ends)

    def _turn_ends(self) -> None:
        self._told = False
        self._leave()

    def _leave(self) -> None:
        party, self._party = self._party, []
        for traveller in party:
            traveller.depart()
