"""The page of runs that were really trained: the writers and the reader agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from celrec.checkpoint import load_state
from celrec.experiments.config import RunConfig
from celrec.experiments.run import train_run
from celrec.report.page import render_page
from celrec.report.read import read_run
from celrec.report.split_tree import replay_splits
from tests.report.reading_html import Page


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Clustered and full tables on ratings with two tastes, both trained for four epochs."""
    folder = tmp_path_factory.mktemp("runs")
    generator = np.random.default_rng(0)
    user, item = generator.integers(60, size=3000), generator.integers(40, size=3000)
    likes = np.where(user % 2 == item % 2, 5, 1)
    lines = [f"{u},{i},{r},{t}" for t, (u, i, r) in enumerate(zip(user, item, likes, strict=True))]
    (folder / "ratings.csv").write_text("user,item,rating,time\n" + "\n".join(lines) + "\n")
    for embedding in ("clustered", "full"):
        rows = {"user_rows": 6, "item_rows": 5} if embedding == "clustered" else {}
        config = RunConfig.from_values(
            {
                "data": {"source": str(folder / "ratings.csv"), "time": "time"},
                "task": {"kind": "binary"},
                "embedding": {"kind": embedding, **rows},
                "training": {"epochs": 4, "batch_size": 256},
                "clusters": {"schedule": {"growth_rounds": 2, "settle_epochs": 0}},
            }
        )
        train_run(config, folder / embedding, command=["celrec", "train"])
    return [folder / "clustered", folder / "full"]


def test_the_page_of_trained_runs_has_every_section(runs: list[Path]) -> None:
    page = Page(render_page(runs))
    assert page.sections == ["bytes", "growth", "tree", "sizes", "map", "cold", "run"]
    assert page.rows[1][:2] == ["blended", "6 + 5"]
    assert "is a weighted mix of the rows of" in page.text
    assert "ratings.csv: 3,000 interactions, 60 users, 40 items" in page.text


def test_the_tree_is_the_one_of_the_model_that_was_kept(runs: list[Path]) -> None:
    run = read_run(runs[0])
    kept = load_state(runs[0] / "best.safetensors", kind="best")
    assert run.kept_epoch == kept["epoch"]
    for entity, frame in (("user", run.users), ("item", run.items)):
        assert frame is not None
        tree = replay_splits(run.history, f"{entity}_embedding", run.kept_epoch)
        parents = kept["model"][f"{entity}_embedding.parent_of"]
        assert sorted(tree.born_after) == sorted(set(frame["cluster"]))
        assert tree.parent_of == {
            cluster: int(parents[cluster]) for cluster in tree.born_after if parents[cluster] >= 0
        }
