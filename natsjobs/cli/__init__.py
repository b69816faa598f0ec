"""The ``natsjobs`` command. Owns ``main``: what happens before, and instead of, a command.

Everything else is in the modules beside it, which need typer and rich; this one needs neither, so that it can say
clearly when they are missing. Exit status of every command: 0, 1 (not found, failed), 2 (usage), 3 (NATS not
reachable).
"""

from __future__ import annotations

import sys

_LIBRARIES = {"typer", "click", "rich"}


def main() -> int:
    """Run the command line; commands leave by ``SystemExit`` with their status."""
    try:
        from natsjobs.cli.app import app
    except ModuleNotFoundError as exc:
        library = (exc.name or "").partition(".")[0]
        if library not in _LIBRARIES:
            raise
        print(f"natsjobs: the command line needs {library}; run: pip install 'natsjobs[cli]'", file=sys.stderr)
        return 2
    app(prog_name="natsjobs")
    return 0
