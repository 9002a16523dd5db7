"""Data, tasks, sizes and candidates of the codes benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from celrec.experiments.config import merged

Rows = tuple[int | str, int | str]
"""Of the user and the item table."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained on which data, and how it is scored.

    metric : "auc" or "mse"
    values : of a RunConfig, for all methods
    clustered : the same, for ours
    """

    metric: str
    values: dict[str, Any]
    clustered: dict[str, Any] = field(default_factory=dict)

    @property
    def is_random(self) -> bool:
        """Whether a seed is one of the partition, too."""
        return bool(self.values.get("partition", {}).get("kind") == "random")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One block of the results.

    rows : of tables that get blends; the first pair gets personal vectors as well
    blends : sizes of blends
    budgets : bytes per entity that `encode` is given
    full : candidates for the full table, each scored after every epoch
    seeds : of partitions where the partition is random, else of training
    file : in the folder --data; None for MovieLens, which is fetched
    """

    title: str
    setting: Setting
    rows: tuple[Rows, ...]
    blends: tuple[int, ...] = (4,)
    budgets: tuple[float, ...] = ()
    full: tuple[dict[str, Any], ...]
    seeds: tuple[int, ...]
    file: str | None = None

    def reading(self, folder: Path) -> Protocol:
        """The same, with its file looked for in a folder."""
        assert self.file is not None
        source = {"data": {"source": str((folder / self.file).resolve())}}
        values = merged(self.setting.values, source)
        return replace(self, setting=replace(self.setting, values=values))


def full_candidates(
    l2s: tuple[float, ...],
    rates: tuple[float, ...],
    starts: tuple[float, ...],
    scale: float | None = None,
    **training: Any,
) -> tuple[dict[str, Any], ...]:
    """All combinations for a full table.

    start : added to the first number of all vectors: a direction that both tables share from the
        beginning, as clustered tables have from their first rows
    scale : of the random vectors before that; None as they are
    """
    return tuple(
        {
            "start": start,
            **({} if scale is None else {"scale": scale}),
            "training": {
                "l2": l2,
                "learning_rate": rate,
                "weight_decay": 0.0,
                "lr_drop": 1.0,
                **training,
            },
        }
        for l2 in l2s
        for rate in rates
        for start in starts
    )


def candidate_name(candidate: dict[str, Any]) -> str:
    training = candidate["training"]
    name = f"l2-{training['l2']}-rate-{training['learning_rate']}-start-{candidate['start']}"
    return name + (f"-scale-{candidate['scale']}" if "scale" in candidate else "")


def budget_name(rows: str, budget: float | None) -> str:
    """What codes under a byte budget are called; None is a vector for everyone.

    rows : "32" or "47+84"
    """
    return f"personal {rows}" if budget is None else f"encoded {rows}, {budget:g} bytes"


TEMPERATURES = (2.0, 3.0, 4.0, 6.0)
LOOSENESS = (0.03, 0.1, 0.3, 0.6)

GMF = {"task": {"kind": "binary", "positive_from": 4.0, "drop_rating": 3.0}}
LIKES = {"task": {"kind": "binary"}, "partition": {"kind": "random"}}
RATINGS = {"task": {"kind": "rating"}, "partition": {"kind": "random"}}
FIVE = (0, 1, 2, 3, 4)

PROTOCOLS = {
    "ml-1m-likes": Protocol(
        title="MovieLens-1M, likes (GMF protocol)",
        setting=Setting(
            metric="auc",
            values=merged(GMF, {"data": {"source": "ml-1m"}}),
            clustered={"training": {"epochs": 40, "weight_decay": 0.05}},
        ),
        rows=((32, 32), (8, 8), (64, 64), (128, 128), ("auto", "auto")),
        blends=(2, 4, 8),
        budgets=(2.56, 6.4, 24.0),
        full=full_candidates((0.005, 0.01, 0.02, 0.04), (1e-3, 3e-3), (0.0,), epochs=30)
        + full_candidates((0.01, 0.02), (3e-3,), (0.5,), 0.1, epochs=30),
        seeds=(0, 1, 2),
    ),
    "ml-1m-ratings": Protocol(
        title="MovieLens-1M, ratings",
        setting=Setting(
            metric="mse",
            values=merged(RATINGS, {"data": {"source": "ml-1m"}}),
            clustered={"training": {"epochs": 20, "batch_size": 4096}},
        ),
        rows=((32, 32), (8, 8)),
        blends=(2, 4, 8),
        budgets=(3.6, 7.2),
        full=full_candidates(
            (0.03, 0.06, 0.1, 0.15), (2e-3, 5e-3), (0.0,), epochs=25, batch_size=4096
        )
        + full_candidates((0.06,), (2e-3,), (0.0,), 0.1, epochs=25, batch_size=4096),
        seeds=(0, 1, 2),
    ),
    "ml-100k-likes": Protocol(
        title="MovieLens-100k, likes (GMF protocol)",
        setting=Setting(metric="auc", values=merged(GMF, {"data": {"source": "ml-100k"}})),
        rows=((32, 32),),
        full=full_candidates(
            (0.02, 0.03, 0.04), (3e-3, 5e-3), (0.0, 0.5, 1.0), epochs=80, batch_size=4096
        )
        + full_candidates((0.02, 0.03), (3e-3, 5e-3), (1.0,), 0.1, epochs=80, batch_size=4096),
        seeds=(0, 1, 2),
    ),
    "ml-100k-ratings": Protocol(
        title="MovieLens-100k, ratings",
        setting=Setting(metric="mse", values=merged(RATINGS, {"data": {"source": "ml-100k"}})),
        rows=((32, 32), (47, 84)),
        budgets=(3.6, 7.2),
        full=full_candidates((0.05, 0.1, 0.15, 0.2), (2e-3, 5e-3), (0.0,), epochs=40)
        + full_candidates((0.1, 0.15), (5e-3,), (0.0,), 0.1, epochs=40),
        seeds=FIVE,
    ),
    "ciao-likes": Protocol(
        title="CiaoDVD, likes (rating 4 or more)",
        setting=Setting(
            metric="auc",
            values=merged(LIKES, {"data": {"time": "timestamp"}, "task": {"positive_from": 4.0}}),
            clustered={"training": {"epochs": 15}},
        ),
        file="ciao_dvd.parquet",
        rows=((32, 32),),
        full=full_candidates((0.1, 0.2, 0.4, 0.8), (3e-3, 1e-2), (0.5, 1.0, 1.5), epochs=25)
        + full_candidates((0.003, 0.01, 0.03, 0.1, 0.2), (3e-3, 1e-2), (1.0,), 0.1, epochs=25)
        + full_candidates((0.03, 0.1), (3e-3, 1e-2), (0.5,), 0.1, epochs=25),
        seeds=FIVE,
    ),
    "ciao-ratings": Protocol(
        title="CiaoDVD, ratings",
        setting=Setting(
            metric="mse",
            values=merged(RATINGS, {"data": {"time": "timestamp"}}),
            clustered={"training": {"epochs": 20}},
        ),
        file="ciao_dvd.parquet",
        rows=((32, 32),),
        full=full_candidates((0.1, 0.3, 0.6, 1.0), (2e-3, 5e-3), (0.0,), epochs=30)
        + full_candidates((0.1, 0.3, 0.6), (2e-3, 5e-3), (0.0,), 0.1, epochs=30),
        seeds=FIVE,
    ),
    "bx-likes": Protocol(
        title="Book-Crossing, likes (rating 8 or more)",
        setting=Setting(
            metric="auc",
            values=merged(LIKES, {"task": {"positive_from": 8.0}}),
            clustered={"training": {"epochs": 15, "batch_size": 4096}},
        ),
        file="book_crossing.parquet",
        rows=((32, 32),),
        full=full_candidates((0.05, 0.1), (1e-3, 3e-3), (0.5, 1.0, 1.5), epochs=15, batch_size=8192)
        + full_candidates(
            (0.001, 0.003, 0.01, 0.02, 0.05),
            (3e-3,),
            (0.3, 0.5, 1.0),
            0.1,
            epochs=15,
            batch_size=8192,
        ),
        seeds=FIVE,
    ),
    "bx-ratings": Protocol(
        title="Book-Crossing, ratings",
        setting=Setting(
            metric="mse",
            values=RATINGS,
            clustered={"training": {"epochs": 15, "batch_size": 4096}},
        ),
        file="book_crossing.parquet",
        rows=((32, 32),),
        full=full_candidates((0.3, 0.6, 1.0), (3e-3, 1e-2), (0.0,), epochs=15, batch_size=8192)
        + full_candidates((0.3, 0.6), (1e-2,), (0.0,), 0.1, epochs=15, batch_size=8192),
        seeds=FIVE,
    ),
}
