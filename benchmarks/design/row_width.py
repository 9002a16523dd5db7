"""How many numbers should a row have, under a byte budget? Writes docs/design/row-width.md.

    python -m benchmarks.design.row_width [--out FOLDER] [--processes N]

MovieLens-100k, likes and ratings, *validation* data, clustered tables of four byte budgets whose
rows are as wide as vectors, half as wide, and so on.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from statistics import mean, stdev

import torch

from benchmarks.jobs import ROOT, Job, Jobs
from celrec.core.encode import rows_within
from celrec.experiments.config import merged
from celrec.experiments.suite import SuiteConfig, train_once

PAGE = ROOT / "docs" / "design" / "row-width.md"
WIDTHS = {"ml_100k": (32, 16, 8, 4), "ml_100k_ratings": (18, 9, 5)}
SIZES = (943, 1682)  # users and items of MovieLens-100k
BUDGETS = (0.01, 0.02, 0.05, 0.1)
SEEDS = (0, 1, 2)

TEXT = """\
# How many numbers should a row have?

*Written by `python -m benchmarks.design.row_width`, commit {commit}. MovieLens-100k, validation
data, mean and standard deviation of three seeds (of ratings: partitions), settings not tuned.*

**Question.** A byte budget buys rows and codes. At 1/100 of a full table, eight rows of 32 numbers
leave three bits for the code of an entity. Rows of four numbers leave seven. A look-up puts zeros
before narrow rows, so the model around them stays as it is.

{tables}

**Choice.** In bold what `rows_within` takes: the widest rows, by halves, whose codes have five bits
for every four numbers, or where everyone can have a vector of their own; else those with most bits
a number. It takes the best width, or one whose figure is within {gap} of it.
"""


def measure(suite_name: str, row_dim: int, budget: float, seed: int) -> float:
    suite = SuiteConfig.read(ROOT / "benchmarks" / "quality" / f"{suite_name}.toml")
    values = suite.run_values("clustered", {}, seed, is_final=False)
    values = merged(values, {"embedding": {"row_dim": row_dim}})
    figure = train_once(values, budget).figures[suite.metric]
    assert isinstance(figure, float)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/row-width"))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    cells = [
        (suite, row_dim, budget)
        for suite, widths in WIDTHS.items()
        for row_dim in widths
        for budget in BUDGETS
    ]
    work = {
        "-".join(map(str, (*cell, seed))): Job(measure, (*cell, seed))
        for cell in cells
        for seed in SEEDS
    }
    jobs = Jobs(options.out, options.processes)
    results = jobs.run(work)
    jobs.check()
    figures = {
        cell: [results["-".join(map(str, (*cell, seed)))] for seed in SEEDS] for cell in cells
    }
    tables, gaps = [], []
    for suite, widths in WIDTHS.items():
        table, gap = table_of(suite, widths, figures)
        tables.append(table)
        gaps.append(gap)
    PAGE.write_text(
        TEXT.format(
            commit=", ".join(jobs.commits(work)), tables="\n\n".join(tables), gap=" ".join(gaps)
        ),
        encoding="utf-8",
    )


def table_of(
    suite: str, widths: tuple[int, ...], figures: dict[tuple[str, int, float], list[float]]
) -> tuple[str, str]:
    """A line for each width, and how far the width that is taken is from the best, in words."""
    is_rating = suite.endswith("ratings")
    taken = {
        budget: rows_within([(n, widths[0]) for n in SIZES], 4 * widths[0] * budget)[1]
        for budget in BUDGETS
    }
    name = "MSE of ratings" if is_rating else "AUC of likes"
    lines = [
        f"| {name}, numbers in a row | {' | '.join(f'1/{1 / budget:g}' for budget in BUDGETS)} |",
        "|---" * (1 + len(BUDGETS)) + "|",
    ]
    for row_dim in widths:
        row = []
        for budget in BUDGETS:
            found = figures[suite, row_dim, budget]
            text = f"{mean(found):.4f} ± {stdev(found):.4f}"
            row.append(f"**{text}**" if taken[budget] == row_dim else text)
        lines.append(f"| {row_dim} | {' | '.join(row)} |")
    best = min if is_rating else max
    gap = max(
        abs(
            mean(figures[suite, taken[budget], budget])
            - best(mean(figures[suite, row_dim, budget]) for row_dim in widths)
        )
        for budget in BUDGETS
    )
    return "\n".join(lines), f"{gap:.4f}" + (" (MSE)" if is_rating else " (AUC) or")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
