"""Suites: equal bytes, equal trials, resumable, and failures that stop nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import mean_squared_error, roc_auc_score

from celrec.errors import CheckpointError, ConfigError
from celrec.experiments.suite import SuiteConfig, final_parts, run_suite, train_once
from celrec.experiments.suite_report import report_on_suite
from celrec.experiments.suite_results import (
    Slice,
    _aucs,
    _squared_errors,
    cold_comparisons,
    comparisons,
    ranking_comparisons,
    ranking_standings,
    read_trials,
    standings,
)
from celrec.metrics import RANKING_METRIC_NAMES
from tests.experiments.making import write_clicks, write_planted

SUITE = """
name = "planted"
hours = 0.01
budgets = [0.1, 0.4]
tuning_budget = 0.4
trials = 2
seeds = [0, 1]
methods = ["clustered", "full", "hashed", "quantized", "pq"]

[common]
data = { source = "SOURCE" }
task = { kind = "rating" }
model = { width = 4 }
training = { epochs = 2, batch_size = 256 }

[search]
"training.learning_rate" = { low = 1e-3, high = 3e-2 }
"embedding.start" = { choices = [0.0, 0.5] }

[method.clustered]
encoding = { personal_rule = { epochs = 1, warm_epochs = 0 } }

[method.clustered.search]
"training.learning_rate" = { low = 1e-3, high = 3e-2 }

[method.pq]
training = { learning_rate = 1e30 }

[method.pq.search]
"""


@pytest.fixture(scope="module")
def suite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    source = write_planted(folder / "planted.parquet")
    file = folder / "suite.toml"
    file.write_text(SUITE.replace("SOURCE", str(source)))
    return file


@pytest.fixture(scope="module")
def finished(suite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder, told = tmp_path_factory.mktemp("results"), []
    run_suite(SuiteConfig.read(suite_file), folder, processes=1, tell=told.append)
    return folder, told


def test_a_suite_has_a_line_for_every_trial_and_every_final_run(
    suite_file: Path, finished: tuple[Path, list[str]]
) -> None:
    trials = read_trials(finished[0])
    assert trials.filter(pl.col("kind") == "trial").group_by("method").len().sort("method")[
        "len"
    ].to_list() == [2, 2, 2, 2, 2]
    final = trials.filter(pl.col("kind") == "final")
    assert dict(final.group_by("method").len().iter_rows()) == {
        "clustered": 4, "full": 2, "hashed": 4, "quantized": 4, "pq": 4,
    }  # fmt: skip
    done = trials.filter(pl.col("status") == "done")
    for column in ("config", "data_fingerprint", "versions", "seconds", "mse", "figures"):
        assert done[column].null_count() == 0, column
    assert json.loads(done["versions"][0])["torch"]
    budgeted = done.filter(pl.col("budget").is_not_null())
    assert (budgeted["total_bytes"] <= budgeted["budget"] * budgeted["full_table_bytes"]).all()


def test_what_fails_is_said_and_stops_nothing(finished: tuple[Path, list[str]]) -> None:
    folder, told = finished
    failed = read_trials(folder).filter(pl.col("method") == "pq")
    assert set(failed["status"]) == {"failed"}
    assert failed["error"].str.contains("loss is").any()
    assert any("pq" in line and "FAILED" in line for line in told)
    table = standings(read_trials(folder), "mse")
    assert "pq" not in table["method"].to_list()


def test_a_method_that_cannot_be_as_small_has_no_figure(finished: tuple[Path, list[str]]) -> None:
    trials = read_trials(finished[0])
    small = trials.filter((pl.col("method") == "quantized") & (pl.col("budget") == 0.1))
    assert set(small["status"]) == {"does not fit"}
    assert small["error"].str.contains("bytes are too few").all()


def test_a_finished_suite_runs_nothing_again_and_a_lost_result_alone(
    suite_file: Path, finished: tuple[Path, list[str]]
) -> None:
    folder, _ = finished
    suite = SuiteConfig.read(suite_file)
    before = read_trials(folder).filter(pl.col("status") != "failed")
    told: list[str] = []
    (folder / "jobs" / "hashed-0.4-1.json").unlink()
    methods = ["clustered", "hashed"]
    again = run_suite(suite, folder, only=methods, processes=1, tell=told.append)
    assert told == ["hashed-0.4-1 done"]
    same = ["method", "kind", "budget", "seed", "mse", "total_bytes", "chosen"]
    keys = ["method", "kind", "budget", "seed", "number"]
    again = again.filter(pl.col("status") != "failed")
    assert again.sort(keys)[same].equals(before.sort(keys)[same])


def test_comparisons_are_paired_and_within_their_interval(
    suite_file: Path, finished: tuple[Path, list[str]]
) -> None:
    folder, _ = finished
    suite = SuiteConfig.read(suite_file)
    found = {(one.method, one.budget): one for one in comparisons(suite, folder)}
    assert set(found) == {
        ("full", 0.1), ("hashed", 0.1), ("full", 0.4), ("hashed", 0.4), ("quantized", 0.4),
    }  # fmt: skip
    table = {
        (line["method"], line["budget"]): line["mean"]
        for line in standings(read_trials(folder), "mse").to_dicts()
    }
    for (method, budget), one in found.items():
        assert one.low <= one.gain <= one.high
        other = table[method, None if method == "full" else budget]
        assert one.gain == pytest.approx(1 - table["clustered", budget] / other, abs=0.02)


def test_other_settings_of_one_method_leave_the_results_of_others(
    suite_file: Path, finished: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "results")
    other = tmp_path / "suite.toml"
    text = suite_file.read_text().replace("hours = 0.01", "hours = 0.02")
    other.write_text(text + "\n[method.hashed]\ntraining = { epochs = 1 }\n")
    suite, told = SuiteConfig.read(other), []
    again = run_suite(suite, folder, only=["clustered"], processes=1, tell=told.append)
    assert told == []  # nothing of `clustered` has changed
    # Of `hashed` nothing holds any more; its predictions lie there, but are compared with nothing.
    assert (folder / "predictions" / "hashed-0.4-0.npz").exists()
    assert set(again.filter(status="done")["method"]) == {"clustered", "full", "quantized"}
    compared = {(one.method, one.budget) for one in comparisons(suite, folder)}
    assert compared == {("full", 0.1), ("full", 0.4), ("quantized", 0.4)}
    (folder / "predictions" / "full-1-1.npz").unlink()
    assert [one.method for one in comparisons(suite, folder)] == ["quantized"]


def test_a_run_of_a_suite_is_the_same_each_time(suite_file: Path) -> None:
    suite = SuiteConfig.read(suite_file)
    values = suite.run_values("hashed", {"training.learning_rate": 0.01}, 1, is_final=True)
    first, second = (train_once(values, 0.4) for _ in range(2))
    assert np.array_equal(first.prediction, second.prediction)
    assert first.figures == second.figures


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> tuple[SuiteConfig, Path]:
    """A finished suite over positives only."""
    folder = tmp_path_factory.mktemp("ranked")
    source = write_clicks(folder / "clicks.parquet")
    text = SUITE.replace("SOURCE", str(source))
    text = text.replace('{ kind = "rating" }', '{ kind = "binary", negatives = 2 }')
    file = folder / "suite.toml"
    file.write_text(text.replace('"quantized", "pq"', '"pq"').replace("[0.1, 0.4]", "[0.4]"))
    suite = SuiteConfig.read(file)
    run_suite(suite, folder / "results", processes=1, tell=lambda _: None)
    return suite, folder / "results"


def test_final_runs_on_positives_rank_the_same_users_and_trials_do_not(
    ranked: tuple[SuiteConfig, Path],
) -> None:
    trials = read_trials(ranked[1])
    done = trials.filter(pl.col("status") == "done")
    final = done.filter(pl.col("kind") == "final")
    for name in (*RANKING_METRIC_NAMES, "num_ranked_users"):
        assert final[name].null_count() == 0
        assert done.filter(pl.col("kind") == "trial")[name].null_count() > 0
        assert name in json.loads(final["figures"][0])
    users = {}
    for line in final.iter_rows(named=True):
        method, budget, seed = line["method"], line["budget"] or 1, line["seed"]
        kept = np.load(ranked[1] / "predictions" / f"{method}-{budget:g}-{seed}.npz")
        assert kept["ndcg"].mean() == pytest.approx(line["ndcg"])
        assert len(kept["ranked_users"]) == line["num_ranked_users"]
        users.setdefault(seed, set()).add(tuple(kept["ranked_users"].tolist()))
    assert {seed: len(some) for seed, some in users.items()} == {0: 1, 1: 1}


def test_rankings_are_compared_user_by_user(ranked: tuple[SuiteConfig, Path]) -> None:
    suite, folder = ranked
    means = {line["method"]: line for line in ranking_standings(read_trials(folder))}
    assert set(means) == {"clustered", "full", "hashed"}
    found = {one.method: one for one in ranking_comparisons(suite, folder)}
    assert set(found) == {"full", "hashed"}
    for method, one in found.items():
        ours, other = (means[name]["ndcg_at_10"] for name in ("clustered", method))
        assert one.gain == pytest.approx(ours - other, abs=0.01)  # seeds differ in their users
        assert one.low < one.gain < one.high
        is_sure = one.low > 0 or one.high < 0
        assert (one.verdict == "tie") != is_sure


def test_ratings_have_no_rankings(suite_file: Path, finished: tuple[Path, list[str]]) -> None:
    assert ranking_standings(read_trials(finished[0])) == []
    assert ranking_comparisons(SuiteConfig.read(suite_file), finished[0]) == []


def test_the_page_of_positives_shows_rankings(
    ranked: tuple[SuiteConfig, Path], tmp_path: Path
) -> None:
    page = report_on_suite(ranked[1], tmp_path / "page.html").read_text()
    best = max(line["ndcg"] for line in ranking_standings(read_trials(ranked[1])) if line["budget"])
    section = page[page.index('<section id="items"') :].split("</section>")[0]
    assert f'class="strong">{best:.3f}' in section
    assert "2 negatives are drawn for each" in section


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tuning_budget = 0.4", "tuning_budget = 0.3", "tuning_budget is 0.3; wanted one of"),
        ("budgets = [0.1, 0.4]", "budgets = [0.1, 4]", "budgets is 4; wanted"),
        ("seeds = [0, 1]", "seeds = []", "seeds is empty"),
        ("trials = 2", "trails = 2", "no key 'trails'; did you mean 'trials'"),
        ("hours = 0.01", "", "lacks hours"),
        ('"hashed"', '"hash"', "kind is 'hash'; did you mean 'hashed'"),
        ("[method.clustered]", "[method.clusterd]", "methods has no 'clusterd'; did you mean"),
        ("{ choices = [0.0, 0.5] }", "{ low = 1 }", "wanted low and high, or choices"),
        ("name =", "name ", "cannot be read as TOML"),
        ("epochs = 2,", "epoch = 2,", r"\[training\] has no key 'epoch'"),
    ],
)
def test_a_mistake_in_a_suite_is_named(
    suite_file: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = suite_file.read_text()
    assert old in text
    file = tmp_path / "suite.toml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        SuiteConfig.read(file)


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no finished suite"):
        read_trials(tmp_path)


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "benchmarks" / "quality").glob("*.toml"))
)
def test_the_suites_of_this_repository_can_be_read(file: Path, tmp_path: Path) -> None:
    suite = SuiteConfig.read(file)
    copy = tmp_path / "copy.toml"
    copy.write_text(suite.to_toml())
    assert SuiteConfig.read(copy) == suite
    assert suite.trials >= 8
    assert len(suite.seeds) >= 3


COLD_SUITE = """
name = "planted, cold"
hours = 0.01
budgets = [0.2]
tuning_budget = 0.2
trials = 1
seeds = [0, 1]
methods = ["clustered", "full", "hashed"]

[common]
data = { source = "SOURCE" }
task = { kind = "rating" }
partition = { kind = "truncated" }
model = { width = 4 }
training = { epochs = 3, batch_size = 256 }

[method.clustered]
training = { epochs = 10 }
encoding = { personal_rule = { epochs = 1, warm_epochs = 0 } }
"""


def test_cold_slices_are_compared_with_the_full_table_on_the_same_events(tmp_path: Path) -> None:
    source = write_planted(tmp_path / "planted.parquet", num_interactions=12_000)
    (tmp_path / "cold.toml").write_text(COLD_SUITE.replace("SOURCE", str(source)))
    suite = SuiteConfig.read(tmp_path / "cold.toml")
    run_suite(suite, tmp_path, processes=1, tell=lambda line: None)
    found = cold_comparisons(suite, tmp_path)
    by_slice = {some: (num_events, one) for some, num_events, one in found}
    assert {Slice("user", 0, 5), Slice("item", 0, 5)} <= by_slice.keys()
    assert all(num_events >= 500 for num_events, _ in by_slice.values())

    some = Slice("user", 0, 5)
    num_events, compared = by_slice[some]
    gains, counts = [], []
    for seed in suite.seeds:
        parts = final_parts(suite, seed)
        cold = parts.train.user_counts()[parts.test.user] <= 5
        counts.append(cold.sum())
        errors = [
            np.square(np.load(tmp_path / "predictions" / f"{name}-{seed}.npz")["prediction"]
                      - parts.test.label)[cold].mean()
            for name in ("clustered-0.2", "full-1")
        ]  # fmt: skip
        gains.append(1 - errors[0] / errors[1])
    assert num_events == round(np.mean(counts))
    assert compared.method == "full"
    assert compared.gain == pytest.approx(np.mean(gains), rel=1e-5)
    assert compared.low < compared.gain < compared.high
    # Planted clusters are known from 5 events where a vector of one's own is not.
    assert compared.low > 0


def test_figures_of_drawn_users_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    user, label = rng.integers(40, size=500), rng.integers(2, size=500)
    prediction = rng.integers(30, size=500) / 30 + 0.2 * label  # many are equal
    times_drawn = np.array([np.ones(40, int), rng.integers(3, size=40)])
    weights = times_drawn[:, user]
    assert _aucs(prediction, label, user, times_drawn) == pytest.approx(
        [roc_auc_score(label, prediction, sample_weight=weight) for weight in weights]
    )
    assert _squared_errors(prediction, label, user, times_drawn) == pytest.approx(
        [mean_squared_error(label, prediction, sample_weight=weight) for weight in weights]
    )


def test_draws_that_leave_nothing_have_no_figure() -> None:
    user, label, prediction = np.array([0, 1]), np.array([0, 1]), np.array([0.1, 0.9])
    times_drawn = np.array([[1, 1, 0], [1, 0, 2], [0, 0, 3]])
    assert np.isnan(_aucs(prediction, label, user, times_drawn)).tolist() == [False, True, True]
    errors = _squared_errors(prediction, label, user, times_drawn)
    assert np.isnan(errors).tolist() == [False, False, True]
