"""The scenarios of the behaviour to match that no test of the contract suite covers, each with the reason.

A test that covers a scenario says so with ``@pytest.mark.scenario(number, …)``; ``test_scenarios.py`` checks that
every number from 1 to 100 is in one of the two places.
"""

from __future__ import annotations

TOTAL = 100

_PAUSE = "jobs cannot be paused yet (status requires_action is reserved)"
_CLAIM = "idempotency claims of requests are not part of the interface (idempotency_key is reserved)"
_EXPECT = "a create cannot name the predecessor it expects (expected_generation of start is reserved)"
_EARLY = "created events and early aborts are the application's: the library gives the content, None or empty"

LEFT_OUT: dict[int, str] = {
    13: _PAUSE,
    14: _PAUSE,
    15: _PAUSE,
    16: _PAUSE,
    18: _PAUSE,
    19: _PAUSE,
    34: _EXPECT,
    35: _EXPECT,
    **dict.fromkeys(range(36, 42), _CLAIM),
    70: "sync frames belong to the HTTP gateway; readers give done last (see scenario 62)",
    75: "replay events of OAuth prompts are not part of the interface: the whole log is replayed",
    77: "there is no second, buffered list of run steps to merge: both come from one log",
    90: _EARLY,
}

PARTLY: dict[int, str] = {
    12: f"the half about a paused job: {_PAUSE}",
    26: "the half about a flag for host reconciliation: there is no such flag",
    72: "syncSent is the application's: nothing resets it when subscribers leave",
    76: "covered for the fold; there is no second list of run steps whose positions would have to be moved",
    81: "a terminal status without payload is a terminal record with None, not a reconcile event",
    98: "covered for the fold; sending a steer into a run is not part of the interface (JobManager.send is reserved)",
}
