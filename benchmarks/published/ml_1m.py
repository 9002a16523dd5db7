"""Do our baselines reach what was published of them? Writes docs/results/published-ml-1m.md.

    python -m benchmarks.published.ml_1m [--out FOLDER] [--processes N] [--device cpu]
        [--report-only]

The figures of others are from the result files of the CCE project (github.com/thomasahle/cce):
MovieLens-1M likes by the GMF protocol, test AUC, mean of three seeds, by rows of 32 numbers per
table. Theirs leave index tables out of the count, and so do these.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from benchmarks.jobs import ROOT, Job, Jobs
from celrec.experiments.config import merged
from celrec.experiments.suite import train_once

PAGE = ROOT / "docs" / "results" / "published-ml-1m.md"
ROWS = (8, 64, 1024)
TUNED_AT = 64
RATES = (3e-3, 1e-2, 3e-2)
SEEDS = (0, 1, 2)
CLOSE = 0.02


class Published(NamedTuple):
    """A line of the table: what we call the method, what they call it, and its AUC by rows."""

    kind: str
    name: str
    auc: dict[int, float]


PUBLISHED = (
    Published("hashed", "hashing", {8: 0.525, 64: 0.564, 1024: 0.724}),
    Published("compositional", "compositional", {8: 0.545, 64: 0.622, 1024: 0.812}),
    Published("double-hash", "Bloom", {8: 0.534, 64: 0.567, 1024: 0.733}),
    Published("weighted-hash", "hash embeddings", {8: 0.596, 64: 0.729, 1024: 0.819}),
    Published("weighted-hash", "weighted hash", {8: 0.626, 64: 0.787, 1024: 0.832}),
    Published("robe", "ROBE", {8: 0.615, 64: 0.730, 1024: 0.822}),
    Published("hashed-net", "HashedNet", {8: 0.626, 64: 0.776, 1024: 0.829}),
    Published("tensor-train", "tensor train", {8: 0.568, 64: 0.762, 1024: 0.836}),
    Published("dhe", "DHE", {8: 0.548, 64: 0.735, 1024: 0.846}),
    Published("low-dimensional", "low-dimensional", {1024: 0.851}),
)
KINDS = {line.kind: tuple(line.auc) for line in PUBLISHED}
"""By our name, the numbers of rows that were published."""

COMMON: dict[str, Any] = {
    "data": {"source": "ml-1m"},
    "task": {"kind": "binary", "positive_from": 4.0, "drop_rating": 3.0},
    "training": {
        "epochs": 40,
        "batch_size": 4096,
        "patience": 4,
        "lr_drop": 1.0,
        "weight_decay": 0.0,
    },
}

TEXT = """\
# The published table of MovieLens-1M

*Written by `python -m benchmarks.published.ml_1m`, commit {commit}. Test AUC, mean and standard
deviation of {num_seeds} seeds. The learning rate ({num_rates}) was chosen on validation
data at {tuned_at} rows; nothing else was tuned.*

Comparisons mean little if the other methods are made badly. These are ours, at the sizes of a
published table: so many rows of 32 numbers for users, and as many for items, index tables left out.

| method | in the table | {heads} |
|---|---|{rule}
{lines}

Each cell: ours, and how far that is from the published figure. Bold: further below than {close:g}.
{num_close} of {num_cells} are within {close:g} or above.
"""


def values_of(kind: str, rows: int, rate: float, seed: int) -> dict[str, Any]:
    chosen = {
        "embedding": {"kind": kind, "user_rows": rows, "item_rows": rows},
        "training": {"learning_rate": rate},
        "seed": seed,
    }
    return merged(COMMON, chosen)


def validate(kind: str, rows: int, rate: float, device: str) -> dict[str, float]:
    outcome = train_once(values_of(kind, rows, rate, SEEDS[0]), None, device)
    return {"auc": outcome.figures["auc"], "epochs": outcome.epochs}


def test(
    kind: str, rows: int, rate: float, epochs: int, seed: int, device: str
) -> dict[str, float]:
    """Train on all but the test data, and score once."""
    final = {
        "partition": {"merge_validation": True},
        "training": {"epochs": epochs, "patience": False},
    }
    outcome = train_once(merged(values_of(kind, rows, rate, seed), final), None, device)
    return {"auc": outcome.figures["auc"], "bytes": outcome.memory["total_bytes"]}


def tuned_rows(kind: str) -> int:
    return TUNED_AT if TUNED_AT in KINDS[kind] else min(KINDS[kind])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/published-ml-1m"))
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--report-only", action="store_true", help="write the page of what is there"
    )
    options = parser.parse_args()
    jobs = Jobs(options.out, options.processes)
    run = jobs.kept if options.report_only else jobs.run
    aside = (options.device,)

    def validation(kind: str, rows: int, rate: float) -> tuple[str, Job]:
        return f"{kind}-{rows}-choose-{rate:g}", Job(validate, (kind, rows, rate), aside)

    tried = run(dict(validation(kind, tuned_rows(kind), r) for r in RATES for kind in KINDS))
    rates = {kind: best_rate(kind, tried) for kind in KINDS}
    sizes = [
        (kind, rows, rate)
        for kind, rate in rates.items()
        if rate is not None
        for rows in KINDS[kind]
    ]
    tried |= run(dict(validation(*size) for size in sizes))
    final = {
        f"{kind}-{rows}-{seed}": Job(test, (kind, rows, rate, tried[name]["epochs"], seed), aside)
        for kind, rows, rate in sizes
        for seed in SEEDS
        if (name := validation(kind, rows, rate)[0]) in tried
    }
    results = run(final)
    PAGE.write_text(page(results, ", ".join(jobs.commits(final))), encoding="utf-8")
    jobs.check()


def best_rate(kind: str, tried: dict[str, Any]) -> float | None:
    """By the validation figure at the size that is tuned; None if nothing was tried."""
    found = {
        rate: tried[name]["auc"]
        for rate in RATES
        if (name := f"{kind}-{tuned_rows(kind)}-choose-{rate:g}") in tried
    }
    return max(found, key=lambda rate: found[rate]) if found else None


def page(results: dict[str, Any], commit: str) -> str:
    lines, differences = [], []
    for kind, name, published in PUBLISHED:
        cells = []
        for rows in ROWS:
            found = [results[job] for s in SEEDS if (job := f"{kind}-{rows}-{s}") in results]
            if len(found) < len(SEEDS):
                cells.append("-")
                continue
            aucs = [one["auc"] for one in found]
            difference = mean(aucs) - published[rows]
            differences.append(difference)
            text = f"{mean(aucs):.3f} ± {stdev(aucs):.3f}, {difference:+.3f}"
            cells.append(text if difference >= -CLOSE else f"**{text}**")
        lines.append(f"| {kind} | {name} | {' | '.join(cells)} |")
    return TEXT.format(
        commit=commit,
        num_seeds=len(SEEDS),
        tuned_at=TUNED_AT,
        num_rates=", ".join(f"{rate:g}" for rate in RATES),
        heads=" | ".join(f"{rows} rows" for rows in ROWS),
        rule="---|" * len(ROWS),
        lines="\n".join(lines),
        close=CLOSE,
        num_close=sum(one >= -CLOSE for one in differences),
        num_cells=len(differences),
    )


if __name__ == "__main__":
    main()
