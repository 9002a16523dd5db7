"""The view of a run's clusters agrees with its model."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch

from celrec.errors import CheckpointError, ConfigError
from celrec.experiments.cluster_view import view_clusters
from celrec.experiments.run import SavedRun, train_run
from tests.experiments.making import config, write_planted


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clusters")
    train_run(config(write_planted(folder / "data.parquet")), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def hard_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same clusters with hard codes."""
    folder = tmp_path_factory.mktemp("hard")
    source = write_planted(folder / "data.parquet")
    train_run(config(source, encoding={"blend": 1}), folder / "run")
    return folder / "run"


@pytest.mark.parametrize("entity", ["user", "item"])
def test_every_member_is_in_exactly_one_cluster_of_the_tree(run: Path, entity: str) -> None:
    (view,) = view_clusters(run, (entity,))
    clusters = view["clusters"]
    assert sum(cluster["size"] for cluster in clusters) == view["num_entities"]
    model = SavedRun.open(run).model()
    live = model.get_submodule(view["table"]).live_clusters().tolist()
    assert sorted(cluster["cluster"] for cluster in clusters) == live
    assert view["num_clusters"] == len(live) >= 2
    seen: set[int | None] = {None}
    for cluster in clusters:  # a parent is born before its children
        assert cluster["parent"] in seen
        seen.add(cluster["cluster"])
    assert [cluster["parent"] for cluster in clusters].count(None) == 1


def test_popular_members_have_the_most_training_data(run: Path) -> None:
    items = pl.read_parquet(run / "items.parquet")
    (view,) = view_clusters(run, ("item",), num_members=2)
    for cluster in view["clusters"]:
        members = items.filter(pl.col("cluster") == cluster["cluster"])
        assert cluster["train_count"] == members["train_count"].sum()
        named = [member["train_count"] for member in cluster["members"]]
        assert named == members["train_count"].sort(descending=True).to_list()[:2]
        assert all(member["title"].startswith("item [") for member in cluster["members"])


def test_weights_are_those_of_all_codes(run: Path) -> None:
    (view,) = view_clusters(run, ("user",))
    table = SavedRun.open(run).model().user_embedding
    assert view["blend"] == table.blend_size > 1
    assert view["personal"] == 0
    expected = dict.fromkeys(table.live_clusters().tolist(), 0.0)
    for user in range(60):
        clusters, weights = table.code_of(torch.tensor([user]))
        for cluster, weight in zip(clusters[0].tolist(), weights[0].tolist(), strict=True):
            expected[cluster] += weight
    assert {c["cluster"]: c["weight"] for c in view["clusters"]} == pytest.approx(expected)
    assert sum(expected.values()) == pytest.approx(60)


def test_hard_codes_weigh_as_much_as_they_have_members(hard_run: Path) -> None:
    for view in view_clusters(hard_run):
        assert view["blend"] == 1
        assert all(cluster["weight"] == cluster["size"] for cluster in view["clusters"])


def test_personal_vectors_are_counted(run: Path, tmp_path: Path) -> None:
    source = Path(SavedRun.open(run).config.data.source)
    rule = {"epochs": 1, "warm_epochs": 0}
    chosen = config(source, encoding={"personal": True, "personal_rule": rule})
    train_run(chosen, tmp_path / "run")
    assert [view["personal"] for view in view_clusters(tmp_path / "run")] == [60, 40]


def test_closest_members_have_vectors_near_the_row(run: Path) -> None:
    items = pl.read_parquet(run / "items.parquet").with_row_index()
    table = SavedRun.open(run).model().item_embedding
    dense, rows = table.to_dense(), table.weight.detach()
    (view,) = view_clusters(run, ("item",), typical="closest", num_members=1)
    for cluster in view["clusters"]:
        members = items.filter(pl.col("cluster") == cluster["cluster"])
        popular = members.filter(pl.col("train_count") >= pl.col("train_count").median())
        found = popular.filter(pl.col("raw_id") == cluster["members"][0]["raw_id"])["index"][0]
        distances = (dense - rows[cluster["cluster"]]).norm(dim=1)
        assert distances[found] == distances[popular["index"].to_list()].min()


def test_closest_members_with_hard_codes_are_moved_least_by_their_own_data(hard_run: Path) -> None:
    items = pl.read_parquet(hard_run / "items.parquet")
    (view,) = view_clusters(hard_run, ("item",), typical="closest", num_members=1)
    for cluster in view["clusters"]:
        members = items.filter(pl.col("cluster") == cluster["cluster"])
        popular = members.filter(pl.col("train_count") >= pl.col("train_count").median())
        assert cluster["members"][0]["raw_id"] == popular.sort("step")["raw_id"][0]


def test_what_has_no_clusters_to_show_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="typical is 'central'; wanted"):
        view_clusters(run, typical="central")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="is no run"):
        view_clusters(tmp_path)
    source = SavedRun.open(run).config.data.source
    hashed = config(Path(source), embedding={"kind": "hashed"})
    train_run(hashed, tmp_path / "hashed")
    with pytest.raises(ConfigError, match="has no clusters: its embedding is hashed"):
        view_clusters(tmp_path / "hashed")


def test_an_unfinished_run_is_sent_to_resume(tmp_path: Path) -> None:
    source = write_planted(tmp_path / "data.parquet")
    train_run(config(source, training={"epochs": 1}), tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    with pytest.raises(CheckpointError, match=r"is not finished; finish it with: .*--resume"):
        view_clusters(tmp_path / "run")
