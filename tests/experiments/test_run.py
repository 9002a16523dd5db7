"""Run folders: written whole, resumed, evaluated from disk alone."""

from __future__ import annotations

import errno
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from celrec.checkpoint import load_state
from celrec.errors import CheckpointError, ConfigError
from celrec.experiments.config import RunConfig
from celrec.experiments.run import (
    RUN_FILES,
    SavedRun,
    evaluate_run,
    new_run_dir,
    resume_run,
    train_run,
    write_text,
)
from tests.experiments.making import config, write_clicks, write_planted

CHECKPOINTS = ("last.safetensors", "best.safetensors", "encoded.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on data beside it. Tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("finished")
    train_run(config(write_planted(folder / "data.parquet")), folder / "run", command=["celrec"])
    return folder / "run"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_run_folder_holds_exactly_the_files_it_should(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == sorted(RUN_FILES)


def test_the_configuration_in_the_folder_repeats_the_run(finished: Path, tmp_path: Path) -> None:
    train_run(RunConfig.read(finished / "config.toml"), tmp_path / "again")
    for name in ("config.toml", "history.jsonl", "users.parquet", "items.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes()
    assert without_seconds(tmp_path / "again") == without_seconds(finished)


def without_seconds(run: Path) -> dict[str, Any]:
    metrics = read_json(run / "metrics.json")
    assert metrics.pop("seconds") > 0
    return dict(metrics)


def test_run_json_says_what_the_run_was(finished: Path) -> None:
    facts = read_json(finished / "run.json")
    assert facts["command"] == ["celrec"]
    assert facts["data"]["num_interactions"] == 3000
    assert len(facts["data"]["fingerprint"]) == 64
    parts = facts["partition"]
    assert parts["train"] + parts["validation"] + parts["test"] == 3000
    assert facts["versions"]["torch"]
    assert facts["hardware"]["threads"] >= 1


def test_evaluating_gives_the_figures_of_training(finished: Path) -> None:
    assert evaluate_run(finished) == without_seconds(finished)


def test_positives_alone_are_ranked_beside_their_negatives(finished: Path, tmp_path: Path) -> None:
    chosen = config(
        write_clicks(tmp_path / "clicks.parquet"),
        data={"time": False, "title": False},
        task={"kind": "binary", "negatives": 2},
        embedding={"kind": "full", "user_rows": False, "item_rows": False},
        training={"epochs": 20, "batch_size": 64, "learning_rate": 0.02},
    )
    metrics = train_run(chosen, tmp_path / "run")
    assert 50 <= metrics["num_ranked_users"] <= 60
    assert metrics["ndcg"] > 0.7  # about 0.4 without any taste
    assert 0 < metrics["ndcg_at_10"] <= metrics["ndcg"]
    assert evaluate_run(tmp_path / "run") == without_seconds(tmp_path / "run")
    assert "ndcg" not in read_json(finished / "metrics.json")


def test_the_model_needs_no_data(copied: Path, finished: Path) -> None:
    moved = copied / "config.toml"
    source = str(finished.parent / "data.parquet")
    moved.write_text(moved.read_text().replace(source, "/nowhere/data.parquet"))
    assert SavedRun.open(copied).model().user_embedding.num_embeddings == 60


def test_changed_data_are_refused(copied: Path, tmp_path: Path) -> None:
    other = write_planted(tmp_path / "other.parquet", num_interactions=2999)
    with pytest.raises(CheckpointError, match=r"have changed since it was trained: .*wanted"):
        evaluate_run(copied, source=str(other))


def test_data_may_move(copied: Path, finished: Path, tmp_path: Path) -> None:
    moved = shutil.copy(finished.parent / "data.parquet", tmp_path / "moved.parquet")
    assert evaluate_run(copied, source=str(moved)) == without_seconds(finished)


def test_a_finished_run_is_resumed_at_once(copied: Path) -> None:
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    assert resume_run(copied) == json.loads(before["metrics.json"])
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


@pytest.mark.parametrize(
    "missing",
    [
        ["metrics.json"],
        ["metrics.json", "items.parquet", "users.parquet"],
        ["metrics.json", "encoded.safetensors"],
        ["metrics.json", *CHECKPOINTS, "history.jsonl"],
    ],
)
def test_a_run_without_its_last_files_is_finished_by_resuming(
    copied: Path, finished: Path, missing: list[str]
) -> None:
    for name in missing:
        (copied / name).unlink()
    resume_run(copied)
    assert without_seconds(copied) == without_seconds(finished)
    assert (copied / "history.jsonl").read_bytes() == (finished / "history.jsonl").read_bytes()
    codes, expected = (
        load_state(run / "encoded.safetensors", kind="encoded") for run in (copied, finished)
    )
    assert codes["epoch"] == expected["epoch"]
    assert codes["encoding"]["events"] == expected["encoding"]["events"]
    assert all(torch.equal(codes["model"][name], v) for name, v in expected["model"].items())


def test_hard_codes_need_no_step_of_their_own(finished: Path, tmp_path: Path) -> None:
    hard = config(finished.parent / "data.parquet", encoding={"blend": 1})
    codes = train_run(hard, tmp_path / "run")["codes"]
    assert not (tmp_path / "run" / "encoded.safetensors").exists()
    assert [code["blend"] for code in codes.values()] == [1, 1]
    blended = read_json(finished / "metrics.json")["codes"]
    assert [code["blend"] > 1 for code in blended.values()] == [True, True]


def read_json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_is_never_overwritten_unasked(copied: Path, finished: Path) -> None:
    chosen = config(finished.parent / "data.parquet", seed=1)
    with pytest.raises(ConfigError, match=r"already holds a run; go on with it \(--resume"):
        train_run(chosen, copied)
    assert without_seconds(copied) == without_seconds(finished)
    train_run(chosen, copied, overwrite=True)
    assert tomllib.loads((copied / "config.toml").read_text())["seed"] == 1
    assert len(read_json_lines(copied / "history.jsonl")) == 4


def test_a_folder_with_other_things_is_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    chosen = config(finished.parent / "data.parquet")
    with pytest.raises(ConfigError, match=r"holds other things \(thesis.tex\)"):
        train_run(chosen, tmp_path, overwrite=True)
    with pytest.raises(ConfigError, match="cannot be a run folder"):
        train_run(chosen, tmp_path / "thesis.tex")


@pytest.mark.parametrize("missing", ["config.toml", "run.json", "best.safetensors"])
def test_a_damaged_folder_is_named(copied: Path, missing: str) -> None:
    (copied / missing).unlink()
    if missing == "best.safetensors":
        for name in ("encoded.safetensors", "last.safetensors"):
            (copied / name).unlink()
    wanted = {
        "config.toml": "is no run: it has no config.toml",
        "run.json": "run.json is missing or damaged",
        "best.safetensors": "last.safetensors does not exist",
    }
    with pytest.raises(CheckpointError, match=wanted[missing]):
        evaluate_run(copied)


def test_new_run_folders_do_not_exist_yet(tmp_path: Path) -> None:
    chosen = config(Path("some/views.csv"), seed=3)
    first = new_run_dir(chosen, tmp_path)
    assert first.name == "views-biased-mf-clustered-seed3"
    first.mkdir()
    assert new_run_dir(chosen, tmp_path).name == "views-biased-mf-clustered-seed3-2"


def test_a_failed_write_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(path: Path, *args: Any, **kwargs: Any) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    write_text(tmp_path / "a.json", "old")
    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(CheckpointError, match=r"a.json could not be written: .*free some space"):
        write_text(tmp_path / "a.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


# --- entities ------------------------------------------------------------------------------------


def test_entities_are_listed_in_the_order_of_their_ids(finished: Path) -> None:
    run = SavedRun.open(finished)
    interactions, parts = run.data()
    items = pl.read_parquet(finished / "items.parquet")
    assert items["raw_id"].to_list() == list(interactions.items)
    assert items["title"].to_list() == list(interactions.item_titles or ())
    assert items["train_count"].to_list() == parts.train.item_counts().tolist()
    assert items["cluster"].to_list() == run.model().item_embedding.cluster_ids().tolist()
    users = pl.read_parquet(finished / "users.parquet")
    assert users["title"].null_count() == users.height == interactions.num_users


def test_entities_stand_on_two_uncorrelated_main_axes(finished: Path) -> None:
    items = pl.read_parquet(finished / "items.parquet")
    x, y = items["x"].to_numpy(), items["y"].to_numpy()
    assert x.std() >= y.std() > 0
    assert abs(np.corrcoef(x, y)[0, 1]) < 1e-4
    for axis in (x, y):
        assert axis[np.abs(axis).argmax()] > 0
    assert (items["step"] > 0).all()


@pytest.mark.parametrize("kind", ["full", "hashed"])
def test_tables_without_clusters_say_so(tmp_path: Path, kind: str) -> None:
    source = write_planted(tmp_path / "data.parquet")
    rows = {"user_rows": False, "item_rows": False} if kind == "full" else {}
    train_run(config(source, embedding={"kind": kind, **rows}), tmp_path / "run")
    users = pl.read_parquet(tmp_path / "run" / "users.parquet")
    assert users["cluster"].null_count() == users["step"].null_count() == users.height
    assert users["x"].std() > 0


def test_vectors_of_width_one_have_one_axis(tmp_path: Path) -> None:
    source = write_planted(tmp_path / "data.parquet")
    train_run(config(source, model={"kind": "gmf", "width": 1}), tmp_path / "run")
    items = pl.read_parquet(tmp_path / "run" / "items.parquet")
    assert (items["y"] == 0).all()
    assert items["x"].std() > 0
