"""Every program in examples/ runs as a user would run it, and its own check holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_its_check_holds(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    checks = [line for line in done.stdout.splitlines() if line.endswith((": True", ": False"))]
    assert checks, "an example ends with a check of what it shows"
    assert all(line.endswith(": True") for line in checks), done.stdout
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"
