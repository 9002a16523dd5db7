"""Small data files and configurations for the tests of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
