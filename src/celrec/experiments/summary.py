"""Mean and spread of runs that differ in their seeds only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from celrec.experiments.run import SavedRun


def summarise(figures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Group runs by what they are, and summarise each group.

    figures : per run folder, its figures, as `evaluate_run` gives them
    returns : per group "label", "runs", "num_runs", "seeds", "mean" and "std"; the last two are
        nested as the figures are
    """
    groups: dict[str, list[SavedRun]] = {}
    for folder in figures:
        run = SavedRun.open(Path(folder))
        groups.setdefault(run.group(), []).append(run)
    summaries = []
    for runs in groups.values():
        average, spread = mean_and_std([figures[str(run.folder)] for run in runs])
        summaries.append(
            {
                "label": runs[0].label,
                "runs": [str(run.folder) for run in runs],
                "num_runs": len(runs),
                "seeds": [run.config.seed for run in runs],
                "mean": average,
                "std": spread,
            }
        )
    return summaries


def mean_and_std(
    figures: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mean and sample standard deviation of every number, nested as given.

    figures : of each run, of the same shape. What is no number everywhere is None in both; so is
        the deviation of a single run

    >>> mean_and_std([{"auc": 0.5, "cold": {"auc": 0.5}}, {"auc": 1.0, "cold": {"auc": None}}])[0]
    {'auc': 0.75, 'cold': {'auc': None}}
    """
    average: dict[str, Any] = {}
    spread: dict[str, Any] = {}
    for name, first in figures[0].items():
        values = [run.get(name) for run in figures]
        if isinstance(first, Mapping):
            average[name], spread[name] = mean_and_std(values)  # type: ignore[arg-type]
        elif isinstance(first, int | float) and all(isinstance(v, int | float) for v in values):
            average[name] = mean(values)  # type: ignore[type-var]
            spread[name] = stdev(values) if len(values) > 1 else None  # type: ignore[type-var]
        elif not isinstance(first, list | str):
            average[name] = spread[name] = None
    return average, spread
