"""Do additive codes earn their bytes? Writes docs/design/additive-codes.md.

    python -m benchmarks.design.additive_codes [--out FOLDER] [--processes N]

An additive code names one row in each of two tables, and the vector is their sum. MovieLens-1M, GMF
protocol, *validation* AUC of three seeds, against more rows, blends and personal vectors.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor, nn

from benchmarks.codes.protocols import PROTOCOLS, Setting
from benchmarks.codes.training import (
    Session,
    blend,
    personalize,
    trained_clusters,
    untrained_clusters,
)
from benchmarks.jobs import ROOT, Job, Jobs
from celrec import ClusteredEmbedding
from celrec.experiments.config import merged
from celrec.experiments.run import make_trainer

PAGE = ROOT / "docs" / "design" / "additive-codes.md"
SEEDS = (0, 1, 2)
NUM_EPOCHS = 20

TEXT = """\
# Do additive codes earn their bytes?

*Written by `python -m benchmarks.design.additive_codes`, commit {commit}. MovieLens-1M, GMF
protocol, validation AUC after {epochs} epochs, mean and standard deviation of three seeds.*

**Question.** An additive code names one row in each of two tables, and the vector is the sum of
both. With two tables of 16 rows there are 256 sums for one byte. Is that worth more than other ways
to spend it?

| codes | AUC | total bytes per entity |
|---|---|---|
{lines}

The bytes of additive codes are counted as if both ids shared a byte. "In turn": the second table
starts at zero and grows on what the first, trained, leaves; both train on, as many epochs again.

**Choice.** {choice}
"""


class Sum(nn.Module):
    """Looks an entity up in two tables and adds the vectors."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, ids: Tensor) -> Tensor:
        vectors: Tensor = self.first(ids) + self.second(ids)
        return vectors


def measure(setting: Setting, seed: int, kind: str, rows: int) -> dict[str, list[float]]:
    """Validation AUC and total bytes per entity, by name of the codes."""
    if kind == "together":
        session = untrained_clusters(setting, (rows, rows), seed, is_final=False)
    else:
        session = trained_clusters(setting, (rows, rows), seed, is_final=False)
    if kind == "hard":
        found = {f"hard, {rows} rows": measured(session)}
        if rows == 32:
            for m in (2, 4):
                blend(session, m, 4.0)
                found[f"blends of {rows} rows, m = {m}"] = measured(session)
            personalize(session, 4.0, {"bits": 4}, None)
            found["personal vectors of four bits"] = measured(session)
        return found
    return {f"additive, {rows} + {rows} rows, {kind}": measured(added(session, rows), sharing=True)}


def added(session: Session, rows: int) -> Session:
    """Give both tables a second one, which starts at zero, and train all."""
    for name in ("user_embedding", "item_embedding"):
        first = getattr(session.model, name)
        second = ClusteredEmbedding(first.num_embeddings, first.embedding_dim, max_clusters=rows)
        nn.init.zeros_(second.weight)
        setattr(session.model, name, Sum(first, second))
    session.trainer = make_trainer(session.config, session.model)
    session.trainer.fit(session.parts.train)
    return session


def measured(session: Session, *, sharing: bool = False) -> list[float]:
    """AUC, and total bytes per entity; `sharing`: two ids of one entity share a byte."""
    tables = [one for one in session.model.modules() if isinstance(one, ClusteredEmbedding)]
    total = sum(table.memory().total_bytes for table in tables)
    counts = [table.num_embeddings for table in tables]
    num_entities = sum(counts) // (2 if sharing else 1)
    if sharing:
        total -= num_entities
    return [session.figure(), total / num_entities]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/additive-codes"))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    setting = PROTOCOLS["ml-1m-likes"].setting
    clustered = merged(setting.clustered, {"training": {"epochs": NUM_EPOCHS}})
    setting = replace(setting, clustered=clustered)
    work = {
        f"{kind}-{rows}-{seed}": Job(measure, (setting, seed, kind, rows))
        for kind, rows in (
            ("hard", 32), ("hard", 64), ("together", 16), ("in turn", 16),
        )
        for seed in SEEDS
    }  # fmt: skip
    jobs = Jobs(options.out, options.processes)
    results = jobs.run(work)
    if jobs.failures:
        raise SystemExit(f"failed: {jobs.failures}")
    by_codes: dict[str, list[list[float]]] = {}
    for result in results.values():
        for codes, figures in result.items():
            by_codes.setdefault(codes, []).append(figures)
    lines, scores = [], {}
    for codes, figures in sorted(by_codes.items(), key=lambda item: item[1][0][1]):
        scores[codes] = mean(auc for auc, _ in figures)
        spread = stdev(auc for auc, _ in figures)
        size = mean(size for _, size in figures)
        lines.append(f"| {codes} | {scores[codes]:.4f} ± {spread:.4f} | {size:.2f} |")
    additive = max(value for codes, value in scores.items() if codes.startswith("additive"))
    gain = additive - scores["hard, 64 rows"]
    left = scores["blends of 32 rows, m = 2"] - additive
    PAGE.write_text(
        TEXT.format(
            commit=", ".join(jobs.commits(work)),
            epochs=NUM_EPOCHS,
            lines="\n".join(lines),
            choice=choice(gain, left),
        ),
        encoding="utf-8",
    )


def choice(gain: float, left: float) -> str:
    """What follows, in words: the gain over hard codes at no more bytes, and what blends add."""
    return (
        f"Over 64 rows with hard codes, additive ones gain {gain:+.4f}; blends of two of 32 rows\n"
        f"are {left:+.4f} from them. A sum with fixed weights of one is a narrow kind of blend:\n"
        "what it gains, blends gain from the rows that exist, with no second table to train, and\n"
        "go on gaining with m. Codes stay one family: hard ones, blends, offsets."
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
