"""Writes the data of the planted suites: planted_small.parquet, _medium and _large.

    python -m benchmarks.quality.planted --out FOLDER

Likes of users and items that lie around the vectors of planted clusters, as far from them as these
from one another; a few users and items are met far more often than others.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from sklearn.metrics import roc_auc_score

from celrec.data.synthetic import PlantedData, planted_clusters


class Size(NamedTuple):
    num_users: int
    num_items: int
    num_clusters: int  # of users, and of items
    num_interactions: int


SIZES = {
    "small": Size(1_000, 500, 16, 50_000),
    "medium": Size(10_000, 3_000, 32, 300_000),
    "large": Size(100_000, 10_000, 64, 2_000_000),
}


def file_of(name: str) -> str:
    return f"planted_{name}.parquet"


def make(name: str) -> PlantedData:
    size = SIZES[name]
    return planted_clusters(
        size.num_users,
        size.num_items,
        size.num_clusters,
        size.num_clusters,
        num_interactions=size.num_interactions,
        width=8,
        noise=0.0,
        spread=1.0,
        popularity_skew=0.7,
        cluster_skew=0.5,
        task="binary",
        seed=0,
    )


def best_auc(data: PlantedData) -> float:
    """AUC of the true logits, on all rows: no model can be expected to be better."""
    return float(roc_auc_score(data.interactions.label, data.score))


def write(file: Path, data: PlantedData) -> None:
    rows = data.interactions
    pl.DataFrame(
        {
            "user": rows.user.astype(np.int32),
            "item": rows.item.astype(np.int32),
            "rating": rows.label.astype(np.int8),
        }
    ).write_parquet(file, compression="zstd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the data files")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for name in SIZES:
        data = make(name)
        write(folder / file_of(name), data)
        print(f"{file_of(name)}: AUC of a perfect model {best_auc(data):.4f}")


if __name__ == "__main__":
    main()
