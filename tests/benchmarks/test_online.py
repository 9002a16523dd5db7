"""The benchmark of online methods: its streams, its choice of settings, its table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from benchmarks.online import baselines, write
from benchmarks.online.baselines import look_back, score, settings_in_words, summary, tune
from benchmarks.online.methods import METHODS, Method
from benchmarks.online.streams import read_events
from celrec.errors import DataError, LossError
from celrec.training.progressive import EventBatch, OnlineMethod


def write_ratings(folder: Path) -> None:
    rows = [  # user, item, rating, timestamp
        (9, 4, 5, 30),
        (7, 5, 3, 10),
        (7, 4, 2, 20),
        (2, 6, 4, 20),
        (2, 4, 1, 20),
    ]
    frame = pl.DataFrame(rows, schema=["user", "item", "rating", "timestamp"], orient="row")
    frame.write_parquet(folder / "ml_100k.parquet")


def test_a_stream_of_ratings_is_ordered_numbered_and_labelled(tmp_path: Path) -> None:
    write_ratings(tmp_path)
    events = read_events("ml_100k", tmp_path)
    # (20, 2, 4), (20, 2, 6), (20, 7, 4), (30, 9, 4): the 3 is dropped
    assert events.timestamps.tolist() == [20, 20, 20, 30]
    assert events.users.tolist() == [0, 0, 1, 2]
    assert events.items.tolist() == [0, 1, 0, 0]
    assert events.labels.tolist() == [0, 1, 0, 1]
    events.check()
    first = read_events("ml_100k", tmp_path, first=2)
    assert torch.equal(first.users, events.users[:2])
    with pytest.raises(DataError, match="did you mean 'ml_100k'"):
        read_events("ml_100", tmp_path)


def test_a_stream_of_clicks_has_its_own_labels(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": [5, 5], "item": [8, 3], "label": [0, 1], "timestamp": [1, 1]})
    frame.write_parquet(tmp_path / "globo_ctr.parquet")
    for name in ("globo_ctr", "globo_ctr_600k"):
        assert read_events(name, tmp_path).labels.tolist() == [1, 0]


class Oracle:
    """Knows label 1 for even users: with sign 1 it is right, with -1 wrong, with 0 broken."""

    def __init__(self, sign: float) -> None:
        self.sign = sign
        self.num_learned = 0

    def predict(self, batch: EventBatch) -> torch.Tensor:
        if not self.sign:
            raise LossError("broken")
        return self.sign * (1.0 - 2 * (batch.users % 2))

    def learn(self, batch: EventBatch) -> None:
        self.num_learned += len(batch)

    def table_bytes(self) -> int:
        return self.num_learned

    def state_bytes(self) -> int:
        return 8


def make_oracle(num_users: int, num_items: int, settings: object, seed: int) -> OnlineMethod:
    assert (num_users, num_items) == (10, 1)  # of the whole stream, in tuning, too
    return Oracle(settings["sign"])  # type: ignore[index]


def test_settings_are_chosen_on_the_first_tenth_and_the_rest_is_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first tenth says the opposite of the rest: its choice stands, and is wrong."""
    users = torch.arange(200) % 10
    events = EventBatch(
        users, users * 0, (users % 2 == 0).float(), torch.arange(200, dtype=torch.float64)
    )
    events.labels[:20] = 1 - events.labels[:20]
    monkeypatch.setattr(baselines, "read_events", lambda name, data: events)
    settings = ({"sign": 0.0}, {"sign": 1.0}, {"sign": -1.0})
    monkeypatch.setitem(METHODS, "oracle", Method("an oracle", settings, make_oracle))
    found = tune("ml_100k", "oracle", settings, 8, Path())
    assert found["chosen"] == {"sign": -1.0}
    assert [one["auc"] for one in found["tried"]] == [0.0, 0.0, 1.0]
    assert found["tried"][0]["failed"] == "broken"
    run = score("ml_100k", "oracle", found["chosen"], 0, 8, Path())
    assert run["overall"] == {
        "num_events": 180,
        "auc": 0.0,
        "log_loss": pytest.approx(np.log1p(np.e)),
    }
    assert run["table_bytes"] == 200
    text = summary({("ml_100k", "oracle"): [run | {"settings": found["chosen"]}] * 3}, 8)
    assert "| an oracle | 0.0000 ± 0.0000 | - | 1.3133 ± 0.0000 |" in text
    best = look_back("ml_100k", "oracle", settings, 8, Path())
    assert (best["settings"], best["auc"]) == ({"sign": 1.0}, 1.0)
    assert "| undefined | undefined | 200 | 8 |" in text  # the one item is no longer rare


def test_settings_at_the_edge_of_their_grid_have_a_star() -> None:
    grid = [{"lr": lr, "l2": l2, "m": 4} for lr in (1, 2, 3) for l2 in (0, 1)]
    assert settings_in_words({"lr": 2, "l2": 0, "m": 4}, grid) == "lr 2, l2 0, m 4"
    assert settings_in_words({"lr": 1, "l2": 1, "m": 4}, grid) == "lr 1*, l2 1*, m 4"


def test_every_method_of_the_comparison_has_about_eight_settings() -> None:
    assert all(8 <= len(method.grid) <= 9 for method in METHODS.values())


def test_what_a_folder_has_replaces_its_part_of_the_page_and_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run_of(auc: float, commit: str) -> dict[str, object]:
        part = {"num_events": 50, "auc": auc, "log_loss": 0.5}
        slices = dict.fromkeys(baselines.SLICES, part)
        windows = [{"first_event": first, **part} for first in (0, 50)]
        sizes = {"num_users": 3, "num_items": 2, "num_events": 100, "events_per_second": 7.0}
        more = {"settings": {}, "in_hindsight": None, "table_bytes": 8, "state_bytes": 16}
        measured = {"overall": part, "slices": slices, "windows": windows, "commit": commit}
        return {**sizes, **more, **measured}

    for name in ("FIGURES", "SOAK_PLOT", "PROGRESS_PLOT"):
        monkeypatch.setattr(write, name, tmp_path / getattr(write, name).name)
    kills = {"commit": "old", "kills": 50, "within_a_save": 2, "events": 900, "different": []}
    before = {
        "streams": {
            "32": {
                "ml_100k": {
                    "ours_10": [run_of(0.8, "old")],
                    "means": [run_of(0.7, "old")],
                    "full_adagrad": [run_of(0.75, "old")],
                }
            }
        },
        "kills": {"file": kills},
    }
    write.FIGURES.write_text(json.dumps(before), encoding="utf-8")
    runs = tmp_path / "runs"
    runs.mkdir()
    again = {**kills, "commit": "new", "different": ["codes"]}
    (runs / "kills-redis.json").write_text(json.dumps(again), encoding="utf-8")
    fresh = {("ml_100k", "ours_10"): [run_of(0.9, "new")]}
    monkeypatch.setattr(
        write,
        "results_of",
        lambda jobs, pairs, size, data, is_run: fresh if size == 32 else {},
    )
    text = write.page(write.gathered(runs, tmp_path))
    assert "| ml_100k | +0.1500 (full table + biases, Adagrad) | - |" in text
    assert "| CEL-Lite, 1/10 | 0.9000 |" in text
    assert "|  | new |" in text
    assert "| running means | 0.7000 |" in text
    assert "| file | 900 | 50 | 2 | not a bit | old |" in text
    assert "| redis | 900 | 50 | 2 | codes | new |" in text
    assert "## How it lasts" not in text
    assert write.PROGRESS_PLOT.exists()
