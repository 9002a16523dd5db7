"""What does company say of a vector? Writes docs/design/company.md.

    python -m benchmarks.design.company --data FOLDER [--out FOLDER] [--processes N]

The prior of personal vectors with one mean for all, with means that follow sums of company, and as
it is: clustered tables under byte budgets, *validation* data, settings not tuned. FOLDER holds the
data of benchmarks/quality/ciao_dvd.toml.
"""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, stdev
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.design.what_codes_gain import no_company
from benchmarks.jobs import ROOT, Job, Jobs
from celrec.core.company import Company
from celrec.core.personal import Posterior
from celrec.experiments.suite import SuiteConfig, train_once

PAGE = ROOT / "docs" / "design" / "company.md"
SUITES = ("ml_100k", "ml_100k_cold", "ciao_dvd")
BUDGETS = (0.01, 0.05, 0.25)
SEEDS = (0, 1, 2)
WAYS = {
    "none": "one mean for all vectors of a table",
    "sums": "over the root of the count, as in SVD++",
    "guesses": "of a random effect",
    "guesses, own sample left out": "as it is",
}

TEXT = """\
# What does company say of a vector?

*Written by `python -m benchmarks.design.company`, commit {commit}. Validation data, mean and
standard deviation of three seeds, settings not tuned.*

**Question.** The mean of a personal vector's prior follows the company that the entity keeps: the
vectors that its samples look up in the other tables. How much should a few samples say? SVD++
divides their sum by the root of their number, and the chance in it is then as large for one sample
as for a hundred. And the vectors themselves learned from these samples: where entities have few, an
entity's company repeats its own labels.

{tables}

**Choice.** Guesses, from vectors as they would be without the sample itself. An entity's company is
a random effect, and an analysis of variance says what few samples are worth, in each direction.
Leaving the own sample out is what helps where data are sparse (CiaoDVD). Guesses and sums are equal
here, within the spread; guesses were taken because with tuned settings, on the test data of the
cold suite, sums were behind.

**Not taken.** In the regression of vectors on company, weights by how far its own samples made a
vector: better on MovieLens-100k, worse on CiaoDVD. The logarithm of the count beside company: who
has few events by accident is then taken for one who has few for a reason.
"""


def measure(suite_name: str, way: str, budget: float, seed: int, data: Path) -> float:
    suite = SuiteConfig.read(ROOT / "benchmarks" / "quality" / f"{suite_name}.toml")
    suite = suite.with_data_in(data)
    values = suite.run_values("clustered", {}, seed, is_final=False)
    with patches(way):
        figure = train_once(values, budget).figures[suite.metric]
    assert isinstance(figure, float)
    return figure


def patches(way: str) -> ExitStack:
    stack = ExitStack()
    if way == "none":
        stack.enter_context(no_company())
    if way == "sums":
        stack.enter_context(patch.object(Company, "features", sums))
    if "own sample left out" not in way:
        own_in = patch.object(
            Posterior, "means_without", lambda self, entities, _: self.means_of(entities)
        )
        stack.enter_context(own_in)
    return stack


def sums(company: Company) -> Tensor:
    """1 / sqrt(n_e) sum_j (v_j - v_bar), (P, Q)."""
    count = company.count.unsqueeze(1)
    mean_vector = company.sums.sum(0) / count.sum().clamp_min(1)
    return (company.sums - count * mean_vector) / count.clamp_min(1).sqrt()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/company"))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    cells = [(suite, way, budget) for suite in SUITES for way in WAYS for budget in BUDGETS]
    work = {
        "-".join(map(str, (*cell, seed))): Job(measure, (*cell, seed), (options.data,))
        for cell in cells
        for seed in SEEDS
    }
    jobs = Jobs(options.out, options.processes)
    results = jobs.run(work)
    jobs.check()
    figures = {
        cell: [results["-".join(map(str, (*cell, seed)))] for seed in SEEDS] for cell in cells
    }
    tables = "\n\n".join(table_of(suite, figures) for suite in SUITES)
    PAGE.write_text(TEXT.format(commit=", ".join(jobs.commits(work)), tables=tables), "utf-8")


def table_of(name: str, figures: dict[tuple[str, str, float], list[float]]) -> str:
    suite = SuiteConfig.read(ROOT / "benchmarks" / "quality" / f"{name}.toml")
    lines = [
        f"| {suite.name}, {suite.metric.upper()} | "
        f"{' | '.join(f'1/{1 / budget:g}' for budget in BUDGETS)} | |",
        "|---" * (2 + len(BUDGETS)) + "|",
    ]
    for way, remark in WAYS.items():
        cells = [figures[name, way, budget] for budget in BUDGETS]
        texts = [f"{mean(found):.4f} ± {stdev(found):.4f}" for found in cells]
        lines.append(f"| {way} | {' | '.join(texts)} | {remark} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
