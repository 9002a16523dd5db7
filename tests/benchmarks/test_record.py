"""Records of suites: what pages are written from, and suites that are run in parts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from benchmarks.quality import write
from benchmarks.quality.record import Record
from celrec.errors import CheckpointError
from celrec.experiments.suite import SuiteConfig, run_suite
from celrec.experiments.suite_results import OURS
from tests.experiments.making import write_planted

SUITE = """
name = "planted in parts"
hours = 0.01
budgets = [0.1, 0.4]
tuning_budget = 0.4
trials = 1
seeds = [0, 1]
methods = ["clustered", "full", "hashed", "weighted-hash"]

[common]
data = { source = "planted.parquet" }
task = { kind = "rating" }
model = { width = 4 }
training = { epochs = 1, batch_size = 256 }

[method.clustered]
encoding = { personal_rule = { epochs = 1, warm_epochs = 0 } }
"""


class Parts:
    """A suite on made data, and records of some of its methods."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_planted(folder / "planted.parquet")
        (folder / "suite.toml").write_text(SUITE)
        self.suite = SuiteConfig.read(folder / "suite.toml")

    def run(self, name: str, only: Collection[str] | None) -> Record:
        suite = self.suite.with_data_in(self.folder)
        run_suite(suite, self.folder / name, only=only, processes=1, tell=lambda line: None)
        return Record.of_runs(self.folder / name)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def first(parts: Parts) -> Record:
    return parts.run("first", [OURS, "full", "hashed"])


@pytest.fixture(scope="module")
def second(parts: Parts) -> Record:
    return parts.run("second", [OURS, "weighted-hash"])


def figures(record: Record) -> list[tuple[object, ...]]:
    return record.trials.select("method", "budget", "kind", "seed", "mse").sort(pl.all()).rows()


def test_a_suite_run_in_parts_says_what_it_says_when_run_whole(
    parts: Parts, first: Record, second: Record, tmp_path: Path
) -> None:
    first.write(tmp_path / "record")
    both = Record.read(tmp_path / "record").with_part(second)
    whole = parts.run("whole", None)
    assert figures(both) == figures(whole)
    for name in ("compared", "cold", "ranked"):
        found, wanted = getattr(both, name), getattr(whole, name)
        assert sorted(found, key=repr) == sorted(wanted, key=repr), name
    assert both.compared
    assert both.drift == 0


def test_a_record_names_no_folder_of_the_machine_that_made_it(
    parts: Parts, first: Record, tmp_path: Path
) -> None:
    first.write(tmp_path)
    assert first.trials["config"].str.contains(str(parts.folder), literal=True).any()
    kept = Record.read(tmp_path)
    texts = [*kept.trials.select(pl.col(pl.String)).unpivot()["value"].drop_nulls()]
    texts += [file.read_text() for file in tmp_path.iterdir() if file.suffix != ".parquet"]
    assert not any(str(parts.folder) in text for text in texts)


def test_a_later_part_takes_the_place_of_what_was_there(first: Record, second: Record) -> None:
    assert first.with_part(first) is first
    again = replace(second, trials=second.trials.with_columns(pl.lit("later").alias("commit")))
    both = first.with_part(second).with_part(again)
    later = both.trials.filter(commit="later")["method"]
    assert set(later) == {OURS, "weighted-hash"}
    assert set(both.trials.filter(pl.col("commit") != "later")["method"]) == {"full", "hashed"}
    assert len([one for one in both.compared if one.method == "hashed"]) == 2


def moved(record: Record, factor: float) -> Record:
    mse = pl.when(pl.col("method") == OURS).then(pl.col("mse") * factor).otherwise(pl.col("mse"))
    return replace(record, trials=record.trials.with_columns(mse.alias("mse")))


def test_a_page_says_how_far_ours_moved_between_parts(
    first: Record, second: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "PAGES", tmp_path)
    alone, _ = write.page("planted", first)
    assert "\nNot run yet: weighted-hash." in alone
    assert "in parts" not in alone.split("\n", 1)[1]
    text, headlines = write.page("planted", first.with_part(moved(second, 1.001)))
    assert "Means of ours differ by at most 0.10% between parts." in text
    assert "Not run yet" not in text
    assert headlines.not_run == ()
    assert (tmp_path / "planted.svg").exists()


def test_what_is_not_the_same_suite_is_not_put_together(
    parts: Parts, first: Record, second: Record
) -> None:
    with pytest.raises(CheckpointError, match=r"ours differs by 0\.0100.*more than a tie"):
        first.with_part(moved(second, 1.01))
    other = replace(second, suite=replace(second.suite, seeds=(0, 2)))
    with pytest.raises(CheckpointError, match=r"seeds is \(0, 2\) in the new runs and \(0, 1\)"):
        first.with_part(other)
    lonely = replace(second, trials=second.trials.filter(pl.col("method") != OURS))
    with pytest.raises(CheckpointError, match="lack clustered, with which all others"):
        first.with_part(lonely)
    data = pl.lit("0" * 64).alias("data_fingerprint")
    with pytest.raises(CheckpointError, match="are of other data"):
        first.with_part(replace(second, trials=second.trials.with_columns(data)))
