"""Public events in time order, as streams of users, items and yes or no."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch

from celrec.errors import DataError, nearest_name
from celrec.training.progressive import EventBatch

FIRST: dict[str, int | None] = {
    "ml_100k": None,
    "ml_1m": None,
    "globo_ctr": None,
    "globo_ctr_600k": 600_000,
}
"""Streams by name, and how many of their first events are taken."""


def read_events(name: str, data_dir: Path, first: int | None = None) -> EventBatch:
    """Read a stream.

    name : a key of FIRST; "globo_ctr_600k" is the beginning of "globo_ctr"
    data_dir : the folder with NAME.parquet
    first : only the first events of the stream; None for all
    returns : rating 3 dropped, label 1 for ratings of at least 4, or the label as given; ordered by
        timestamp, user and item. Users and items are numbered as they first come

    The labels 0 of globo_ctr are constructed: two articles of the hour before that were not
    clicked.
    """
    if name not in FIRST:
        raise DataError(f"there is no stream {name!r}; {nearest_name(name, FIRST)}")
    limit = FIRST[name] if first is None else first
    frame = pl.scan_parquet(data_dir / f"{name.removesuffix('_600k')}.parquet")
    if "rating" in frame.collect_schema():
        frame = frame.filter(pl.col("rating") != 3).with_columns(label=pl.col("rating") >= 4)
    order = ("timestamp", "user", "item")
    frame = frame.select(*order, "label").sort(order)
    rows = (frame if limit is None else frame.head(limit)).collect()
    return EventBatch(
        users=as_they_come(rows["user"].to_numpy()),
        items=as_they_come(rows["item"].to_numpy()),
        labels=torch.from_numpy(rows["label"].cast(pl.Float32).to_numpy().copy()),
        timestamps=torch.from_numpy(rows["timestamp"].cast(pl.Float64).to_numpy().copy()),
    )


def as_they_come(ids: np.ndarray) -> torch.Tensor:
    """Number ids from 0, in the order in which they first come; int64."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int64)
    number[first.argsort()] = np.arange(len(first))
    return torch.from_numpy(number[inverse])
