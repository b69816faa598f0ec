"""What is deployed, tested as it is deployed. The kits of the integration tests are used here, too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))  # jetstream_kit
