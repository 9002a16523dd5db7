"""The jobs of the benchmarks: kept with the commit that is checked out."""

from __future__ import annotations

import subprocess
from pathlib import Path

from celrec.experiments import jobs
from celrec.experiments.jobs import Job

__all__ = ["ROOT", "Job", "Jobs", "current_commit"]

ROOT = Path(__file__).parents[1]


class Jobs(jobs.Jobs):
    """Results in a folder, each with the commit it was computed at."""

    def __init__(self, out: Path, processes: int) -> None:
        super().__init__(out, processes, commit=current_commit())


def current_commit() -> str:
    """The commit that is checked out, short; with a plus where files of the package differ."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "-s", "src") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
