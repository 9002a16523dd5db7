"""Peers: the path through a suite with one made up here; true to their packages where installed."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from celrec.data.interactions import Interactions
from celrec.data.synthetic import planted_clusters
from celrec.errors import ConfigError, MissingExtraError
from celrec.experiments.build import completed, divide, load_interactions
from celrec.experiments.config import RunConfig
from celrec.experiments.peers import PEERS, FittedPeer, Met, Peer, fit_peer, trainset_of
from celrec.experiments.suite import SuiteConfig, final_parts, has_budget, run_suite
from celrec.experiments.suite_report import report_on_suite
from celrec.experiments.suite_results import comparisons, read_trials
from celrec.training.evaluation import predict
from tests.experiments.making import ml_100k, write_planted

NEED = "needs the package, which is in the extra `peers`"

SUITE = """
name = "with peers"
hours = 0.01
budgets = [0.2, 0.4]
tuning_budget = 0.4
trials = 2
seeds = [0, 1]
methods = ["item-means", "clustered", "full", "absent"]

[common]
data = { source = "SOURCE" }
task = { kind = "rating" }
model = { width = 4 }
training = { epochs = 2, batch_size = 256 }
encoding = { personal_rule = { epochs = 1, warm_epochs = 0 } }

[search]
"training.learning_rate" = { low = 1e-3, high = 3e-2 }

[method.item-means]
peer = { offset = 0.0 }

[method.item-means.search]
"peer.prior" = { low = 1, high = 50, int = true }
"""


class ItemMeans(FittedPeer):
    def score(self, user: Tensor, item: Tensor, knows_user: Tensor, knows_item: Tensor) -> Tensor:
        return torch.where(knows_item, self.get_parameter("means")[item], 0.0)


def fit_item_means(train: Interactions, settings: Mapping[str, Any], seed: int) -> FittedPeer:
    met, prior = Met.of(train), settings.get("prior", 5)
    assert isinstance(prior, int)
    sums = np.bincount(met.item, met.label) + prior * met.label.mean() + settings["offset"]
    return ItemMeans({"means": sums / (np.bincount(met.item) + prior)}, met)


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SuiteConfig:
    """With a peer that everybody has, and one that nobody has."""
    monkeypatch.setitem(PEERS, "item-means", Peer("pytest", "pytest", False, fit_item_means))
    monkeypatch.setitem(PEERS, "absent", Peer("no-such", "no_such", False, fit_item_means))
    file = tmp_path / "suite.toml"
    source = write_planted(tmp_path / "planted.parquet")
    file.write_text(SUITE.replace("SOURCE", str(source)))
    return SuiteConfig.read(file)


def test_a_peer_runs_like_any_method_and_without_its_package_is_named(
    suite: SuiteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = tmp_path / "results", []
    run_suite(suite, folder, processes=1, tell=told.append)
    trials = read_trials(folder)
    lines = trials.filter(pl.col("method") == "item-means")
    assert lines["kind"].to_list() == ["trial", "trial", "final", "final"]
    assert set(lines["status"]) == {"done"}
    assert lines["budget"].null_count() == 4
    chosen = [json.loads(text) for text in lines.filter(pl.col("kind") == "trial")["chosen"]]
    assert chosen[0] == {}
    assert isinstance(chosen[1]["peer.prior"], int)

    # As much is known of it as of others.
    others = trials.filter(pl.col("method") == "full")
    for column in set(trials.columns) - {"budget", "error", "epochs"}:
        assert lines[column].null_count() == others[column].null_count(), column
    assert set(lines["data_fingerprint"]) == set(others["data_fingerprint"])
    assert set(lines["full_table_bytes"]) == set(others["total_bytes"])
    assert json.loads(lines["versions"][0])["pytest"] == pytest.__version__
    final = lines.row(2, named=True)
    config = tomllib.loads(final["config"])
    assert config["peer"]["name"] == "item-means"
    assert config["peer"]["offset"] == 0.0
    assert {"users_at_most_5", "coldest_items"} <= json.loads(final["figures"]).keys()
    assert final["total_bytes"] == 8 * 40  # doubles, an item each

    # On the same test events.
    prediction = np.load(folder / "predictions" / "item-means-1-0.npz")["prediction"]
    events = final_parts(suite, 0).test
    assert final["mse"] == pytest.approx(np.square(prediction - events.label).mean(), rel=1e-5)
    compared = {(one.method, one.budget) for one in comparisons(suite, folder)}
    assert compared == {(m, b) for m in ("item-means", "full") for b in suite.budgets}
    page = report_on_suite(folder, tmp_path / "page.html").read_text()
    assert "From another package, item-means reaches" in page

    message = "no-such is not installed: pip install &#39;celrec[peers]&#39;"
    assert message in page
    (absent,) = trials.filter(pl.col("method") == "absent").to_dicts()
    assert absent["status"] == "failed"
    assert message.replace("&#39;", "'") in absent["error"]
    assert any("absent FAILED" in line for line in told)

    # Once it is installed, it runs; nothing else does.
    monkeypatch.setitem(PEERS, "absent", Peer("pytest", "pytest", False, fit_without_settings))
    told.clear()
    again = run_suite(suite, folder, processes=1, tell=told.append)
    assert told == ["tune-absent done", "absent-1-0 done", "absent-1-1 done"]
    assert set(again.filter(pl.col("method") == "absent")["status"]) == {"done"}


def fit_without_settings(train: Interactions, settings: Mapping[str, Any], seed: int) -> FittedPeer:
    return fit_item_means(train, {"offset": 0.0}, seed)


def test_a_peer_is_trained_on_the_partition_of_all_others(
    suite: SuiteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def fit(train: Interactions, settings: Mapping[str, Any], seed: int) -> FittedPeer:
        seen.append((seed, train.fingerprint()))
        return fit_without_settings(train, settings, seed)

    monkeypatch.setitem(PEERS, "item-means", Peer("pytest", "pytest", False, fit))
    run_suite(suite, tmp_path / "results", only=["item-means"], processes=1, tell=str)
    wanted = []
    for seed, is_final in ((0, False), (0, False), (0, True), (1, True)):
        values = suite.run_values("full", {}, seed, is_final=is_final)
        data = load_interactions(RunConfig.from_values(values))
        parts = divide(completed(RunConfig.from_values(values), data), data)
        wanted.append((seed, parts.train.fingerprint()))
    assert seen == wanted


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "rating"', 'kind = "binary"', "pytest is for ratings, but the task is likes and"),
        (
            '"full", "absent"]',
            '"full", "implicit-als"]',
            r"implicit is for positives only \(task.negatives\), but the task is ratings",
        ),
        ("int = true", 'int = "yes"', "wanted low and high, or choices; whole numbers with int"),
        ("[method.item-means]", "[method.full]\npeer = { n = 1 }\n[method.item-means]", "'peer'"),
        ("peer = {", "training = { epoch = 1 }\npeer = {", r"\[training\] has no key 'epoch'"),
    ],
)
def test_a_mistake_about_peers_is_named(
    suite: SuiteConfig, tmp_path: Path, old: str, new: str, message: str
) -> None:
    file = tmp_path / "suite.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        SuiteConfig.read(file)


def test_full_tables_and_peers_have_no_budget() -> None:
    assert not any(has_budget(method) for method in ("full", *PEERS))
    assert has_budget("clustered")
    assert has_budget("hashed")


def test_without_its_package_a_peer_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "absent", Peer("no-such", "no_such", False, fit_item_means))
    with pytest.raises(MissingExtraError, match=r"pip install 'celrec\[peers\]'"):
        fit_peer("absent", planted().take([0]), {}, 0)
    assert PEERS["absent"].version() == {}


# --- true to their packages ----------------------------------------------------------------------


def planted(task: str = "rating") -> Interactions:
    return planted_clusters(
        60, 40, 3, 3, num_interactions=1500, seed=0, signal=2.0, task=task
    ).interactions


def some_unknown(data: Interactions) -> Interactions:
    """Training data in which some users and some items are not met."""
    return data.take((data.user % 7 != 3) & (data.item % 5 != 2))


SURPRISE = [
    ("surprise-svd", "SVD", {}),
    ("surprise-svd", "SVD", {"n_factors": 7, "biased": False}),
    ("surprise-svdpp", "SVDpp", {"n_factors": 5}),
    ("surprise-nmf", "NMF", {}),
    ("surprise-nmf", "NMF", {"n_factors": 3, "biased": True}),
    ("surprise-co-clustering", "CoClustering", {"n_cltr_u": 4}),
    ("surprise-baseline", "BaselineOnly", {"reg_u": 3}),
    ("surprise-baseline", "BaselineOnly", {"method": "sgd", "n_epochs": 5}),
]


@pytest.mark.parametrize(("name", "kind", "settings"), SURPRISE)
def test_a_peer_of_surprise_predicts_what_surprise_predicts(
    name: str, kind: str, settings: dict[str, Any]
) -> None:
    surprise = pytest.importorskip("surprise", reason=NEED)
    data = planted()
    train = some_unknown(data)
    met = Met.of(train)
    if kind == "BaselineOnly":
        algorithm = surprise.BaselineOnly(bsl_options=settings, verbose=False)
    else:
        algorithm = getattr(surprise, kind)(random_state=3, **settings)
    algorithm.fit(trainset_of(met))
    wanted = [
        algorithm.predict(met.number_of_user[user], met.number_of_item[item]).est
        for user, item in zip(data.user, data.item, strict=True)
    ]
    fitted = fit_peer(name, train, settings, 3)
    assert predict(fitted, data).numpy() == pytest.approx(np.array(wanted), abs=1e-12)

    # Its bytes are those of surprise's arrays, and no user or item that was not met takes any.
    arrays = [array for array in vars(algorithm).values() if isinstance(array, np.ndarray)]
    num_bytes = sum(array.nbytes for array in arrays)
    if kind == "NMF" and "biased" not in settings:  # biases that stay 0 and are not used
        num_bytes -= algorithm.bu.nbytes + algorithm.bi.nbytes
    if kind == "SVD" and "biased" in settings:
        num_bytes -= algorithm.bu.nbytes + algorithm.bi.nbytes
    if kind == "SVDpp":
        num_bytes += 4 * (len(train) + met.num_users)
    assert fitted.memory()["total_bytes"] == num_bytes
    assert met.num_users < data.num_users


def test_a_setting_that_the_baseline_does_not_have_is_named() -> None:
    pytest.importorskip("surprise", reason=NEED)
    with pytest.raises(TypeError, match="no setting 'reg_v'; did you mean 'reg_u'"):
        fit_peer("surprise-baseline", planted(), {"reg_v": 1}, 0)


FLOORS = {
    "surprise-svd": 0.934,
    "surprise-svdpp": 0.919,
    "surprise-nmf": 0.963,
    "surprise-co-clustering": 0.963,
    "surprise-baseline": 0.944,
}
"""RMSE of default settings on MovieLens-100k, five folds, as Surprise's own README gives it."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOORS)
def test_peers_of_surprise_are_as_good_as_published(name: str) -> None:
    pytest.importorskip("surprise", reason=NEED)
    config = RunConfig.from_values(
        {
            "data": {"source": str(ml_100k())},
            "partition": {"kind": "random", "merge_validation": True},
        }
    )
    data = load_interactions(config)
    parts = divide(completed(config, data), data)
    fitted = fit_peer(name, parts.train, {}, 0)
    error = predict(fitted, parts.test).numpy() - parts.test.label
    assert np.sqrt(np.square(error).mean()) == pytest.approx(FLOORS[name], abs=0.02)


@pytest.mark.parametrize("name", ["implicit-als", "implicit-bpr"])
def test_a_peer_of_implicit_ranks_by_what_it_learned(name: str) -> None:
    pytest.importorskip("implicit", reason=NEED)
    from sklearn.metrics import roc_auc_score

    data = planted(task="binary")
    train = some_unknown(data)
    fitted, again = (fit_peer(name, train, {"factors": 8}, 3) for _ in range(2))
    score = predict(fitted, data)
    assert torch.equal(score, predict(again, data))
    users, items = fitted.get_parameter("user_factors"), fitted.get_parameter("item_factors")
    assert fitted.memory()["total_bytes"] == 4 * (users.numel() + items.numel())
    met = Met.of(train.take(train.label > 0))
    user, item = met.number_of_user[data.user], met.number_of_item[data.item]
    known = (user >= 0) & (item >= 0)
    wanted = (users.numpy()[user] * items.numpy()[item]).sum(1)
    assert score.numpy() == pytest.approx(np.where(known, wanted, 0.0), abs=1e-5)
    assert roc_auc_score(train.label, predict(fitted, train).numpy()) > 0.6
