"""Run folders made up by hand, with the files that a real run writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from celrec.experiments.config import RunConfig

NUM_USERS, NUM_ITEMS, WIDTH = 30, 40, 32

ENCODINGS: dict[str, dict[str, Any]] = {
    "clustered": {"blend": 1},
    "blended": {"blend": 4},
    "personal": {"personal": True},
}
_CODE_BYTES = {"clustered": 1, "blended": 6, "personal": 1}


def fabricate_run(
    folder: Path,
    *,
    embedding: str = "clustered",
    rows: int | None = 4,
    seed: int = 0,
    task: str = "binary",
    figure: float = 0.82,
    coldest: float | None = 0.7,
    titles: Sequence[str] | None = None,
    num_items: int = NUM_ITEMS,
    has_validation: bool = True,
    config: Mapping[str, Any] | None = None,
    data_name: str = "made-up",
    fingerprint: str = "f" * 64,
    without: Sequence[str] = (),
) -> Path:
    """Write a run folder.

    embedding : as the page names it: "clustered" (hard codes), "blended" (m = 4), "personal" (all
        users, and all items but one), "hashed" or "full"
    figure : the AUC or MSE on the test set
    coldest : the same on the coldest tenth; None: too few events
    config : settings beside the defaults
    without : files that are missing
    """
    folder.mkdir(parents=True)
    is_clustered = embedding in ENCODINGS
    table: dict[str, Any] = {"kind": "clustered" if is_clustered else embedding}
    if embedding != "full":
        table |= {"user_rows": rows, "item_rows": rows}
    values = {"data": {"source": "made-up.csv"}, "task": {"kind": task}, "embedding": table}
    if is_clustered:
        values["encoding"] = ENCODINGS[embedding]
    written = {
        "config.toml": RunConfig.from_values({**values, **(config or {}), "seed": seed}).to_toml(),
        "run.json": json.dumps(_facts(seed, data_name, fingerprint, num_items)),
        "history.jsonl": "".join(
            json.dumps(line) + "\n"
            for line in _history(task, rows or 1, is_clustered, has_validation)
        ),
        "metrics.json": json.dumps(_metrics(task, figure, coldest, embedding, rows, num_items)),
    }
    for name, text in written.items():
        if name not in without:
            (folder / name).write_text(text, encoding="utf-8")
    for name, count in (("users", NUM_USERS), ("items", num_items)):
        if f"{name}.parquet" not in without:
            of_items = titles if name == "items" else None
            frame = _entities(count, rows if is_clustered else None, of_items, seed)
            frame.write_parquet(folder / f"{name}.parquet")
    return folder


def demo_row(**changes: Any) -> dict[str, Any]:
    """A row as `celrec demo --json` writes it."""
    return {
        "embedding": "clustered",
        "rows_per_table": 4,
        "auc_mean": 0.8123,
        "auc_std": 0.0046,
        "auc_coldest_users": 0.7012,
        "auc_coldest_items": "too few",
        "table_bytes": 1024,
        "total_bytes": 1094,
        "times_smaller": 8.19,
        "seconds": 3.21,
        **changes,
    }


def _facts(seed: int, name: str, fingerprint: str, num_items: int) -> dict[str, Any]:
    return {
        "command": ["celrec", "train", "made-up.csv", "--task", "binary"],
        "seed": seed,
        "data": {
            "name": name,
            "fingerprint": fingerprint,
            "num_interactions": 1234,
            "num_users": NUM_USERS,
            "num_items": num_items,
        },
        "partition": {"name": "leave_last_out", "train": 1000, "validation": 34, "test": 200},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "hardware": {"cores": 2, "threads": 1},
    }


def _history(
    task: str, rows: int, is_clustered: bool, has_validation: bool
) -> list[dict[str, Any]]:
    """A split of the newest cluster per table and epoch, until there are as many as rows."""
    lines = []
    for epoch in range(1, rows + 3):
        events = [
            {
                "kind": "split",
                "table": table,
                "round": epoch - 1,
                "cluster": epoch - 1,
                "new_cluster": epoch,
                "gain": 1.0,
                "num_moved": 3,
                "num_staying": 3,
            }
            for table in ("user_embedding", "item_embedding")
            if is_clustered and epoch < rows
        ]
        count = min(rows, epoch + 1)
        figure = {"auc": 0.6 + 0.01 * epoch} if task == "binary" else {"mse": 1 - 0.01 * epoch}
        lines.append(
            {
                "epoch": epoch,
                "learning_rate": 0.003,
                "train_loss": 0.7 - 0.01 * epoch,
                "validation": {"num_events": 34, **figure} if has_validation else None,
                "clusters": {"user_embedding": count, "item_embedding": count}
                if is_clustered
                else {},
                "table_bytes": 2 * 4 * WIDTH * count,
                "total_bytes": 2 * 4 * WIDTH * count + NUM_USERS + NUM_ITEMS,
                "events": events,
            }
        )
    return lines


def _metrics(
    task: str,
    figure: float,
    coldest: float | None,
    embedding: str,
    rows: int | None,
    num_items: int,
) -> dict[str, Any]:
    def figures(value: float | None, num_events: int) -> dict[str, Any]:
        names = {"binary": ("auc", "log_loss"), "rating": ("mse", "rmse", "mae")}[task]
        found = {"num_events": num_events, **dict.fromkeys(names, value)}
        if task == "rating" and value is not None:
            found["rmse"] = value**0.5
        return found if value is not None else found | {"reason": "too few events"}

    full = 4 * WIDTH * (NUM_USERS + num_items)
    table = full if embedding == "full" else 2 * 4 * WIDTH * (rows or 1)
    total = table + _CODE_BYTES.get(embedding, 0) * (NUM_USERS + num_items)
    codes = {}
    if embedding in ENCODINGS:
        blend = ENCODINGS[embedding].get("blend", 1)
        is_personal = embedding == "personal"
        owners = {"user_embedding": NUM_USERS, "item_embedding": num_items - 1}
        codes = {
            name: {"blend": blend, "personal": count if is_personal else 0}
            for name, count in owners.items()
        }
        total += sum(owners.values()) * (WIDTH + 2) if is_personal else 0
    slices = {}
    for entity in ("users", "items"):
        slices |= {
            f"{entity}_at_most_5": figures(None, 0),
            f"{entity}_at_most_20": figures(figure - 0.01, 150),
            f"coldest_{entity}": figures(coldest, 120 if coldest is not None else 20),
        }
    memory = {
        "table_bytes": table,
        "code_bytes": total - table,
        "total_bytes": total,
        "full_table_bytes": full,
        "times_smaller": full / total,
        "tables": [],
    }
    found = {**figures(figure, 1200), **slices}
    return {**found, "memory": memory, "codes": codes, "seconds": 4.5}


def _entities(
    count: int, rows: int | None, titles: Sequence[str] | None, seed: int
) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    names = [titles[i % len(titles)] for i in range(count)] if titles else [None] * count
    clusters = [i % rows for i in range(count)] if rows else [None] * count
    return pl.DataFrame(
        {
            "raw_id": range(100, 100 + count),
            "title": pl.Series(names, dtype=pl.String),
            "cluster": pl.Series(clusters, dtype=pl.Int32),
            "train_count": list(range(count, 0, -1)),
            "x": pl.Series(generator.normal(size=count), dtype=pl.Float32),
            "y": pl.Series(generator.normal(size=count), dtype=pl.Float32),
            "step": pl.Series([0.5 if rows else None] * count, dtype=pl.Float32),
        }
    )
