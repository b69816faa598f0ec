"""What people use: ``JobManager`` and ``JobRun``, on top of the two interfaces only.

``jobs`` (the manager), ``run`` (one owner's part of a generation, and the table of how its block ends), ``outcome``
(which end was asked for and which stands), ``interrupt`` (stopping a task from outside without leaking a
cancellation), ``reading`` (a reader that the manager can close).
"""

from natsjobs.manager.jobs import JobManager
from natsjobs.manager.run import JobRun

__all__ = ["JobManager", "JobRun"]
