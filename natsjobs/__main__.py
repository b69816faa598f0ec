"""``python -m natsjobs``: the command line, for where the ``natsjobs`` script is not on the path."""

from __future__ import annotations

import sys

from natsjobs.cli import main

if __name__ == "__main__":
    sys.exit(main())
