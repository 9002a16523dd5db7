"""What a suite found: figures by method and budget, and paired comparisons with ours.

Two methods at one budget predict the same test events. Their difference is averaged over seeds; its
interval comes from a bootstrap over test users, the same users drawn for both. Ours and another are
*tied* where the 95 % interval contains 0 and the difference is below 0.003 AUC or 0.5 % of the
squared error; else the better one wins.

Where data hold positives only, the same users' NDCG of all items is compared, too, in the same way;
there, tied is whatever has 0 in its interval.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from celrec.errors import CheckpointError
from celrec.experiments.suite import (
    FULL,
    TRIALS_FILE,
    SuiteConfig,
    final_parts,
    has_budget,
    prediction_file,
)
from celrec.losses import Task
from celrec.metrics import RANKING_METRIC_NAMES
from celrec.training.evaluation import counts_in

OURS = "clustered"
RANKED = "ndcg_at_10"
"""The ranking metric by which methods are compared."""

NUM_DRAWS = 200
TIE: Mapping[Task, float] = {"binary": 0.003, "rating": 0.005}
"""The largest difference of a tie: of AUC, or as a share of the squared error."""

MIN_COLD_EVENTS = 500
"""Slices with fewer test events say too little."""

Verdict = Literal["win", "tie", "loss"]


@dataclass(frozen=True)
class Slice:
    """Test events whose user, or item, has so many training events.

    side : "user" or "item"        least, most : inclusive
    """

    side: Literal["user", "item"]
    least: int
    most: int


EVERY_EVENT = Slice("user", 0, sys.maxsize)


@dataclass(frozen=True)
class Comparison:
    """Ours at one budget against another method at the same (full tables and peers: of any size).

    gain : how far ours is ahead: AUC, or the share of the other's squared error that it saves; of
        rankings, NDCG of the first ten places
    low, high : its 95 % interval
    """

    method: str
    budget: float
    gain: float
    low: float
    high: float
    verdict: Verdict


def read_trials(folder: Path) -> pl.DataFrame:
    """trials.parquet of a suite's folder.

    raises : CheckpointError if it is not there
    """
    file = folder / TRIALS_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{folder} holds no finished suite: it has no {TRIALS_FILE}; run celrec bench first"
        )
    return pl.read_parquet(file)


def standings(trials: pl.DataFrame, metric: str) -> pl.DataFrame:
    """Mean and spread of the final runs, by method and budget, the best first at each budget.

    metric : "auc", "mse" or one of RANKING_METRIC_NAMES
    returns : method, budget (null for full tables and peers), mean, std, runs, table_bytes,
        total_bytes, full_table_bytes, seconds
    """
    done = trials.filter((pl.col("kind") == "final") & (pl.col("status") == "done"))
    sizes = ("table_bytes", "total_bytes", "full_table_bytes", "seconds")
    return (
        done.group_by("method", "budget")
        .agg(
            pl.col(metric).mean().alias("mean"),
            pl.col(metric).std().alias("std"),
            pl.len().alias("runs"),
            *(pl.col(name).mean() for name in sizes),
        )
        .sort("budget", "mean", descending=[False, metric != "mse"], nulls_last=True)
    )


def comparisons(suite: SuiteConfig, folder: Path) -> list[Comparison]:
    """Ours against every method that has all its final runs, at every budget."""
    predictions = _Predictions(suite, folder, suite.task)
    compared = (
        predictions.compared(method, budget)
        for budget in suite.budgets
        for method in suite.methods
        if method != OURS
    )
    return [one for one in compared if one is not None]


def cold_slices(suite: SuiteConfig) -> list[Slice]:
    """Of users and items with at most 5 training events; of each count where a suite cuts them."""
    kind = suite.common.get("partition", {}).get("kind")
    ranges = [(0, 5), *([(1, 1), (3, 3), (5, 5)] if kind == "truncated" else [])]
    return [Slice(side, *some) for side in ("user", "item") for some in ranges]


def cold_comparisons(suite: SuiteConfig, folder: Path) -> list[tuple[Slice, int, Comparison]]:
    """Ours against the full table on cold slices, with the slice and its number of test events.

    The number is a mean over seeds; slices with fewer than 500 are left out.
    """
    predictions = _Predictions(suite, folder, suite.task)
    found = []
    for some in cold_slices(suite):
        num_events = predictions.num_events(some)
        if num_events >= MIN_COLD_EVENTS:
            compared = (predictions.compared(FULL, budget, some) for budget in suite.budgets)
            found += [(some, num_events, one) for one in compared if one is not None]
    return found


def ranking_standings(trials: pl.DataFrame) -> list[dict[str, Any]]:
    """Mean ranking metrics of the final runs; [] where none has ranked anything.

    returns : by method and budget, those of RANKING_METRIC_NAMES and "num_ranked_users", of a run
    """
    if RANKED not in trials.columns:
        return []
    names = (*RANKING_METRIC_NAMES, "num_ranked_users")
    done = trials.filter(pl.col(RANKED).is_not_null())
    return done.group_by("method", "budget", maintain_order=True).agg(pl.mean(*names)).to_dicts()


def ranking_comparisons(suite: SuiteConfig, folder: Path) -> list[Comparison]:
    """Ours against every method by the NDCG@10 of the same users; [] where nothing was ranked.

    A user's differences of all seeds are drawn together.
    """
    found = []
    files = _prediction_files(suite, folder)
    for budget in suite.budgets:
        ours = _ranked(files.get((OURS, budget), []))
        for method in suite.methods:
            other = _ranked(files.get((method, budget if has_budget(method) else None), []))
            if method == OURS or ours is None or other is None:
                continue
            user, place = np.unique(ours["user"], return_inverse=True)
            total = np.bincount(place, weights=ours[RANKED] - other[RANKED])
            count = np.bincount(place)
            draws = np.random.default_rng(0).integers(len(user), size=(NUM_DRAWS, len(user)))
            gains = total[draws].sum(1) / count[draws].sum(1)
            gain = float(total.sum() / count.sum())
            low, high = (float(end) for end in np.percentile(gains, (2.5, 97.5)))
            verdict = _verdict(gain, low, high, math.inf)
            found.append(Comparison(method, budget, gain, low, high, verdict))
    return found


def _ranked(files: Sequence[Path]) -> dict[str, np.ndarray] | None:
    """Ranked users of all seeds, one after the other, and their figures; None where one lacks."""
    runs = [np.load(file) for file in files]
    if not runs or not all(RANKED in run and len(run[RANKED]) for run in runs):
        return None
    return {
        "user": np.concatenate([run["ranked_users"] for run in runs]),
        RANKED: np.concatenate([run[RANKED] for run in runs]),
    }


def _prediction_files(
    suite: SuiteConfig, folder: Path
) -> dict[tuple[str, float | None], list[Path]]:
    """What final runs predicted, a file for each seed; by method and budget, where all are done.

    Done is what has a line in trials.parquet and its file. Other files may lie there: of runs with
    settings that the suite has no more.
    """
    done = read_trials(folder).filter(kind="final", status="done")
    found = {}
    for method, budget, seeds in done.group_by("method", "budget").agg("seed").iter_rows():
        files = [prediction_file(folder, method, budget, seed) for seed in suite.seeds]
        if set(suite.seeds) <= set(seeds) and all(file.exists() for file in files):
            found[method, budget] = files
    return found


def _verdict(gain: float, low: float, high: float, tie: float) -> Verdict:
    """
    >>> _verdict(0.001, -0.001, 0.003, 0.003), _verdict(-0.004, -0.009, 0.001, 0.003)
    ('tie', 'loss')
    """
    if low <= 0 <= high and abs(gain) < tie:
        return "tie"
    return "win" if gain > 0 else "loss"


class _Predictions:
    """The figures of final runs on resampled users, computed once for each method and budget."""

    def __init__(self, suite: SuiteConfig, folder: Path, task: Task) -> None:
        self.files = _prediction_files(suite, folder)
        self.task = task
        self.seeds = suite.seeds
        parts = {seed: final_parts(suite, seed) for seed in suite.seeds}
        self.events = {seed: one.test for seed, one in parts.items()}
        self.counts = {seed: counts_in(one.train, one.test) for seed, one in parts.items()}
        rng = np.random.default_rng(0)
        num_users = max(events.num_users for events in self.events.values())
        drawn = [rng.integers(num_users, size=num_users) for _ in range(NUM_DRAWS)]
        counts = [np.bincount(one, minlength=num_users) for one in drawn]
        self.times_drawn = np.array([np.ones(num_users, np.int64), *counts])  # (1 + draws, users)

    def compared(
        self, method: str, budget: float, events: Slice = EVERY_EVENT
    ) -> Comparison | None:
        """Ours against a method on a slice; None where one of them lacks a run."""
        ours = self.draws(OURS, budget, events)
        other = self.draws(method, budget if has_budget(method) else None, events)
        if ours is None or other is None:
            return None
        gains = ours - other if self.task == "binary" else 1 - ours / other
        mean = gains.mean(0)  # over seeds: (1 + draws,), the first of all events
        low, high = (float(one) for one in np.nanpercentile(mean[1:], (2.5, 97.5)))
        gain = float(mean[0])
        return Comparison(
            method, budget, gain, low, high, _verdict(gain, low, high, TIE[self.task])
        )

    def num_events(self, events: Slice) -> int:
        """Mean over seeds."""
        return round(np.mean([self._where(seed, events).sum() for seed in self.seeds]))

    def _where(self, seed: int, events: Slice) -> np.ndarray:
        """Which of the test events are in a slice, bool (n,)."""
        counts = self.counts[seed][events.side == "item"]
        return (events.least <= counts) & (counts <= events.most)

    @functools.cache  # noqa: B019 - it lives no longer than a comparison
    def draws(self, method: str, budget: float | None, some: Slice) -> np.ndarray | None:
        """The figure for each seed, (S, 1 + draws): of the events, then of each draw of users."""
        if (method, budget) not in self.files:
            return None
        lines = []
        for seed, file in zip(self.seeds, self.files[method, budget], strict=True):
            events, where = self.events[seed], self._where(seed, some)
            figure_of = _aucs if self.task == "binary" else _squared_errors
            lines.append(
                figure_of(
                    np.load(file)["prediction"][where],
                    events.label[where],
                    events.user[where],
                    self.times_drawn,
                )
            )
        return np.array(lines)


# AUC and MSE with users counted several times: (draws,), NaN where a draw leaves nothing of a small
# slice, or one class only. They equal those of scikit-learn with sample weights, which sort the
# events of every draw again and took twenty minutes where these take seconds.


def _aucs(
    prediction: np.ndarray, label: np.ndarray, user: np.ndarray, times_drawn: np.ndarray
) -> np.ndarray:
    _, place = np.unique(prediction, return_inverse=True)  # equal predictions share a place
    is_positive = label == 1
    above = np.empty(len(times_drawn))  # pairs in order; of equal predictions, half
    pairs = np.empty(len(times_drawn))
    for number, times in enumerate(times_drawn):
        weight = times[user]
        positive = np.bincount(place, weights=weight * is_positive)
        negative = np.bincount(place, weights=weight * ~is_positive)
        above[number] = positive @ (negative.cumsum() - negative / 2)
        pairs[number] = positive.sum() * negative.sum()
    return _divided(above, pairs)


def _squared_errors(
    prediction: np.ndarray, label: np.ndarray, user: np.ndarray, times_drawn: np.ndarray
) -> np.ndarray:
    num_users = times_drawn.shape[1]
    error = np.square(label.astype(np.float64) - prediction)
    total = times_drawn @ np.bincount(user, weights=error, minlength=num_users)
    return _divided(total, times_drawn @ np.bincount(user, minlength=num_users))


def _divided(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
