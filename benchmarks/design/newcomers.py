"""What does a stream's learner hold of an entity it hardly knows? Writes docs/design/newcomers.md.

    python -m benchmarks.design.newcomers --data FOLDER [--out FOLDER] [--processes N]

CEL-Lite with 1/10 of the bytes, batches of 32, on MovieLens-100k and the first 220,000 events of
MovieLens-1M, with several smoothings of users' and items' factors.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from statistics import mean, stdev

import torch

from benchmarks.jobs import ROOT, Job, Jobs
from benchmarks.online.baselines import TUNED_ON, sizes
from benchmarks.online.methods import OUR_GRID, WIDTH
from benchmarks.online.ours import OursOnline
from benchmarks.online.streams import read_events
from celrec.training.progressive import progressive

PAGE = ROOT / "docs" / "design" / "newcomers.md"
FIRST = {"ml_100k": None, "ml_1m": 220_000}
SMOOTHINGS = ((0, 0), (2, 0), (8, 0), (0, 2), (2, 2))
SEEDS = (0, 1, 2)
PARTS = ("all", "users_seen_under_5", "users_seen_under_20", "items_seen_under_5")
SETTINGS = OUR_GRID[1]

TEXT = """\
# What is held of an entity that is hardly known?

*Written by `python -m benchmarks.design.newcomers`, commit {commit}. AUC after the first tenth,
mean and standard deviation of three seeds, whole streams looked at; settings {settings}.*

**Question.** Before its first event an entity has the mean row of all clusters, and after a few a
blend that few events chose. How far should one trust them?

**What was tried.** With smoothing c the factors of a blend count n / (n + c) times after n events:
the first ones are predicted by biases. Biases and offsets stay as they are.

{tables}

**Choice.** 2 for users, 0 for items. Where the factors of both sides are 0, neither learns of the
other, so at most one side can have it; users arrive with many events at once.
"""


def measure(
    stream: str, user_smoothing: float, item_smoothing: float, seed: int, data: Path
) -> dict[str, float]:
    torch.set_num_threads(1)
    events = read_events(stream, data, FIRST[stream])
    learner = OursOnline(
        *sizes(events),
        width=WIDTH,
        part=10,
        settings=SETTINGS,
        smoothing=(user_smoothing, item_smoothing),
        seed=seed,
    )
    found = progressive(learner, events, batch_size=32, after=TUNED_ON)
    figures = {"all": found.overall, **found.slices}
    return {part: figures[part]["auc"] for part in PARTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--out", type=Path, default=Path("runs/newcomers"))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    work = {
        f"{stream}-{users}-{items}-{seed}": Job(
            measure, (stream, users, items, seed), (options.data,)
        )
        for stream in FIRST
        for users, items in SMOOTHINGS
        for seed in SEEDS
    }
    jobs = Jobs(options.out, options.processes)
    results = jobs.run(work)
    jobs.check()
    tables = []
    for stream, first in FIRST.items():
        title = stream if first is None else f"{stream}, first {first:,}"
        parts = " | ".join(part.replace("_", " ") for part in PARTS)
        lines = [f"| {title}: smoothing of users, items | {parts} |", "|---" * 5 + "|"]
        for users, items in SMOOTHINGS:
            runs = [results[f"{stream}-{users}-{items}-{seed}"] for seed in SEEDS]
            cells = [[run[part] for run in runs] for part in PARTS]
            row = " | ".join(f"{mean(cell):.4f} ± {stdev(cell):.4f}" for cell in cells)
            lines.append(f"| {users}, {items} | {row} |")
        tables.append("\n".join(lines))
    words = ", ".join(f"{name} {value}" for name, value in SETTINGS.items())
    commits = ", ".join(jobs.commits(work))
    PAGE.write_text(
        TEXT.format(commit=commits, settings=words, tables="\n\n".join(tables)), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
