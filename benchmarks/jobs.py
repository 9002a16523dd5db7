"""The jobs of the benchmarks: kept with the commit that is checked out."""

from __future__ import annotations

import json
from pathlib import Path

from celrec.experiments import jobs
from celrec.experiments.jobs import Job, begin_worker, current_commit

__all__ = ["ROOT", "Job", "Jobs", "begin_worker", "current_commit"]

ROOT = Path(__file__).parents[1]


class Jobs(jobs.Jobs):
    """Results in a folder, each with the commit it was computed at."""

    def __init__(self, out: Path, processes: int) -> None:
        super().__init__(out, processes, commit=current_commit())

    def check(self) -> None:
        """End the command, with what went wrong, if any job failed."""
        if self.failures:
            raise SystemExit("failed: " + json.dumps(self.failures, indent=1))
