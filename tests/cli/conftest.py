"""What the tests of the command line share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from celrec.experiments.run import train_run
from tests.cli.making import CommandLine
from tests.experiments.making import config, write_planted


@pytest.fixture
def celrec(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> CommandLine:
    """`celrec(*arguments)` runs the command line, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return CommandLine(capsys)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data.parquet and runs seed0 and seed1. Never changed."""
    folder = tmp_path_factory.mktemp("trained")
    source = write_planted(folder / "data.parquet")
    for seed in (0, 1):
        train_run(config(source, seed=seed, partition={"seed": 0}), folder / f"seed{seed}")
    return folder


@pytest.fixture
def copied_run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be damaged."""
    return Path(shutil.copytree(trained / "seed0", tmp_path / "run"))
