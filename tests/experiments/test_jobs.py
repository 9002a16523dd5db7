"""Jobs: what is killed leaves nothing at work."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from celrec.experiments.jobs import Job, Jobs


def say_and_wait(name: str) -> None:
    print(f"{name} works", flush=True)
    time.sleep(120)


def run_two(folder: str) -> None:
    Jobs(Path(folder), 2).run({name: Job(say_and_wait, (name,)) for name in ("one", "two")})


def test_workers_end_with_the_process_that_was_killed(tmp_path: Path) -> None:
    command = f"from {__name__} import run_two; run_two({str(tmp_path)!r})"
    with subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert {process.stdout.readline() for _ in range(2)} == {"one works\n", "two works\n"}
        process.kill()
        process.communicate(timeout=60)  # to its end: when no worker has it open any more
