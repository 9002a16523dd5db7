"""The HTML page of a suite: what is in its folder, in the words of report/suite_content.py."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl

from celrec.experiments.config import RunConfig
from celrec.experiments.peers import PEERS
from celrec.experiments.suite import SUITE_FILE, SuiteConfig
from celrec.experiments.suite_results import (
    MIN_COLD_EVENTS,
    OURS,
    TIE,
    Comparison,
    comparisons,
    ranking_standings,
    read_trials,
    standings,
)
from celrec.report.suite_content import SuiteContent
from celrec.report.suite_page import write_suite_page

PAGE_FILE = "report.html"
_COLD = ("users_at_most_5", "items_at_most_5")


def report_on_suite(folder: Path, out: Path) -> Path:
    """Write the page about a suite's folder, from what `celrec bench` left there.

    returns : `out`
    raises : CheckpointError where there are no results; ConfigError
    """
    trials = read_trials(folder)
    suite = SuiteConfig.read(folder / SUITE_FILE)
    return report_suite(suite, trials, comparisons(suite, folder), out)


def report_suite(
    suite: SuiteConfig, trials: pl.DataFrame, compared: Sequence[Comparison], out: Path
) -> Path:
    """Write the page about a suite.

    trials, compared : from `run_suite` and `comparisons`
    returns : `out`
    """
    missing = trials.filter(pl.col("status") != "done").select(
        "method", "budget", "status", "error"
    )
    content = SuiteContent(
        name=suite.name,
        task=suite.task,
        data_name=str(suite.common["data"]["source"]),
        data_fingerprint=str(trials["data_fingerprint"].drop_nulls().first()),
        commit=", ".join(sorted(trials["commit"].unique().to_list())),
        seeds=suite.seeds,
        budgets=suite.budgets,
        standings=standings(trials, suite.metric).to_dicts(),
        comparisons=[dataclasses.asdict(one) for one in compared],
        missing=missing.unique().to_dicts(),
        cold=cold_lines(trials, suite.metric),
        item_ranking=ranking_standings(trials),
        negatives=RunConfig.from_values(suite.common).task.negatives,
        ours=OURS,
        peers=[method for method in suite.methods if method in PEERS],
        trials=suite.trials,
        tuning_budget=suite.tuning_budget,
        tie=TIE[suite.task],
    )
    return write_suite_page(content, out)


def cold_lines(trials: pl.DataFrame, metric: str) -> list[dict[str, Any]]:
    """Figures on test events of users, and of items, with at most 5 training events.

    Slices of fewer than 500 events are left out.
    """
    found: dict[tuple[str, str, float | None], list[tuple[int, float]]] = defaultdict(list)
    final = trials.filter((pl.col("kind") == "final") & (pl.col("status") == "done"))
    for line in final.iter_rows(named=True):
        for name in _COLD:
            cold = json.loads(line["figures"])[name]
            if cold["num_events"] >= MIN_COLD_EVENTS and cold[metric] is not None:
                place = name, line["method"], line["budget"]
                found[place].append((cold["num_events"], cold[metric]))
    return [
        {
            "slice": name,
            "num_events": round(fmean(count for count, _ in some)),
            "method": method,
            "budget": budget,
            "mean": fmean(value for _, value in some),
        }
        for (name, method, budget), some in found.items()
    ]
