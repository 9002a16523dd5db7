"""Small data files and configurations for the tests of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from celrec.data.synthetic import planted_clusters
from celrec.experiments.config import RunConfig, merged

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def ml_100k() -> Path:
    """The real data; skips the test where they are not at hand."""
    path = SHARED_DATA / "ml_100k.parquet"
    if not path.is_file():
        pytest.skip(f"{path} is not at hand")
    return path


def write_planted(path: Path, *, num_interactions: int = 3000, task: str = "rating") -> Path:
    """60 users and 40 items in 3 clusters each, with times and titles."""
    data = planted_clusters(
        60, 40, 3, 3, num_interactions=num_interactions, seed=0, signal=2.0, task=task
    ).interactions
    pl.DataFrame(
        {
            "user": data.user,
            "item": data.item,
            "rating": data.label,
            "timestamp": data.timestamp,
            "title": [f"item [{item}]" for item in data.item],
        }
    ).write_parquet(path)
    return path


def write_clicks(path: Path) -> Path:
    """60 users who each met 12 of the 40 items, mostly those of their taste; positives only."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(60), 12)
    is_liked = np.arange(40) % 3 == np.arange(60)[:, None] % 3  # (60, 40)
    item = np.argsort(is_liked + 0.9 * rng.random((60, 40)) ** 2, axis=1)[:, -12:].ravel()
    pl.DataFrame({"user": user, "item": item, "rating": 1}).write_parquet(path)
    return path


def config_values(source: Path, **overrides: Any) -> dict[str, Any]:
    """A run of a second."""
    values = {
        "data": {"source": str(source), "time": "timestamp", "title": "title"},
        "task": {"kind": "rating"},
        "model": {"width": 4},
        "embedding": {"kind": "clustered", "user_rows": 4, "item_rows": 4},
        "training": {"epochs": 4, "batch_size": 256},
    }
    return merged(values, overrides)


def config(source: Path, **overrides: Any) -> RunConfig:
    return RunConfig.from_values(config_values(source, **overrides))
