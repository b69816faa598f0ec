"""The fault suite: real processes, real servers, real signals."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))  # jetstream_kit and timeline_kit
