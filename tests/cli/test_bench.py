"""`celrec bench`, and the page about its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.making import CommandLine
from tests.experiments.making import write_planted

SUITE = """
name = "planted in small"
hours = 0.01
budgets = [0.4]
tuning_budget = 0.4
trials = 1
seeds = [0, 1]
methods = ["clustered", "hashed"]

[common]
data = { source = "SOURCE" }
task = { kind = "rating" }
model = { width = 4 }
training = { epochs = 2, batch_size = 256 }
encoding = { personal_rule = { epochs = 1, warm_epochs = 0 } }
"""


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    source = write_planted(tmp_path / "planted.parquet")
    file = tmp_path / "small.toml"
    file.write_text(SUITE.replace("SOURCE", str(source)))
    return file


def test_a_suite_runs_and_its_folder_is_enough_for_the_page(
    celrec: CommandLine, suite_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    done = celrec("bench", suite_file, "--out", folder, "--processes", "1", "--json").json
    assert {line["method"] for line in done["standings"]} == {"clustered", "hashed"}
    assert [one["method"] for one in done["compared"]] == ["hashed"]
    suite_file.unlink()
    page = tmp_path / "page.html"
    assert celrec("report", folder, "--out", page, "--json").json == {"report": str(page)}
    assert page.read_text() == (folder / "report.html").read_text()
    failed = celrec("report", folder, folder).stderr
    assert "is the folder of a suite" in failed


def test_a_method_that_the_suite_lacks_is_named(celrec: CommandLine, suite_file: Path) -> None:
    failed = celrec("bench", suite_file, "--only", "hashes").stderr
    assert "did you mean 'hashed'" in failed


def test_the_data_of_a_suite_are_found_in_the_folder_given(
    celrec: CommandLine, suite_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    source = write_planted(tmp_path / "elsewhere" / "clicks.parquet")
    suite_file.write_text(SUITE.replace("SOURCE", source.name))
    options = ("--out", tmp_path / "results", "--processes", "1", "--only", "hashed")
    failed = celrec("bench", suite_file, *options).stderr
    assert "clicks.parquet, are not in" in failed
    assert "--data" in failed
    assert not (tmp_path / "results").exists()
    done = celrec("bench", suite_file, "--data", source.parent, *options, "--json").json
    assert {line["method"] for line in done["standings"]} == {"hashed"}
