"""Do additive codes earn their bytes, and how are they found? Writes docs/design/additive-codes.md.

    python -m benchmarks.design.additive_codes [--out FOLDER] [--processes N]

An additive code names one row in each of several tables, and the vector is their sum.
MovieLens-100k, ratings, *validation* MSE of five partitions, against more rows and blends.
"""

from __future__ import annotations

import argparse
import os
import textwrap
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
from celrec.experiments.run import make_trainer

PAGE = ROOT / "docs" / "design" / "additive-codes.md"
SEEDS = (0, 1, 2, 3, 4)
TEMPERATURE = 4.0
BUDGETS = (3.8, 5.2, 7.2)  # one, two and three levels

TEXT = """\
# Do additive codes earn their bytes?

*Written by `python -m benchmarks.design.additive_codes`, commit {commit}. MovieLens-100k, ratings,
validation MSE, mean and standard deviation of five random partitions.*

**Question.** An additive code names one row in each of several tables, and the vector is the sum of
these. Two tables of 16 rows have 256 sums for one byte. Is that worth more than other ways to spend
it, and should training find the codes, or the coding of personal vectors?

| codes | MSE | total bytes per entity |
|---|---|---|
{lines}

"Together" and "in turn" are trained as such, with the ids of an entity counted as if they shared a
byte; "in turn": the second table starts at zero and grows on what the first, trained, leaves; both
train on, as many epochs again. "Coded" ones are sums that come near the posterior means of
personal vectors, level after level, 16 rows each (core/additive.py); cluster ids are packed in five
bits where the budget asks for it.

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
    """Validation MSE and total bytes per entity, by name of the codes."""
    if kind == "together":
        session = untrained_clusters(setting, (rows, rows), seed, is_final=False)
    else:
        session = trained_clusters(setting, (rows, rows), seed, is_final=False)
    if kind != "hard":
        name = f"trained sums, {rows} + {rows} rows, {kind}"
        return {name: measured(added(session, rows), sharing=True)}
    found = {f"hard, {rows} rows": measured(session)}
    hard = session.state()
    for m in (2, 4):
        blend(session, m, TEMPERATURE)
        found[f"blends of {rows} rows, m = {m}"] = measured(session)
    if rows == 32:
        for budget in BUDGETS:
            session.model.load_state_dict(hard)
            personalize(session, TEMPERATURE, {}, budget)
            levels = session.model.user_embedding.num_levels
            found[f"coded sums of {rows} rows and {levels} levels"] = measured(session)
        session.model.load_state_dict(hard)
        personalize(session, TEMPERATURE, {"bits": 4}, None)
        found["personal vectors of four bits"] = measured(session)
    return found


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
    """MSE, and total bytes per entity; `sharing`: two ids of one entity share a byte."""
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
    setting = PROTOCOLS["ml-100k-ratings"].setting
    work = {
        f"{kind}-{rows}-{seed}": Job(measure, (setting, seed, kind, rows))
        for kind, rows in (
            ("hard", 32), ("hard", 64), ("together", 16), ("in turn", 16),
        )
        for seed in SEEDS
    }  # fmt: skip
    jobs = Jobs(options.out, options.processes)
    results = jobs.run(work)
    jobs.check()
    by_codes: dict[str, list[list[float]]] = {}
    for result in results.values():
        for codes, figures in result.items():
            by_codes.setdefault(codes, []).append(figures)
    lines, scores = [], {}
    for codes, figures in sorted(by_codes.items(), key=lambda item: item[1][0][1]):
        scores[codes] = mean(mse for mse, _ in figures)
        spread = stdev(mse for mse, _ in figures)
        size = mean(size for _, size in figures)
        lines.append(f"| {codes} | {scores[codes]:.4f} ± {spread:.4f} | {size:.2f} |")
    PAGE.write_text(
        TEXT.format(
            commit=", ".join(jobs.commits(work)), lines="\n".join(lines), choice=choice(scores)
        ),
        encoding="utf-8",
    )


def choice(scores: dict[str, float]) -> str:
    """What follows, in words: trained sums against hard codes, coded ones against blends."""
    trained = min(value for codes, value in scores.items() if codes.startswith("trained"))
    coded = {codes: value for codes, value in scores.items() if codes.startswith("coded")}
    first = next(iter(coded.values()))
    blended = scores["blends of 32 rows, m = 4"]
    hard = scores["hard, 64 rows"]
    return "\n".join(
        textwrap.wrap(
            f"Trained sums change the MSE of 64 rows with hard codes by {trained - hard:+.4f}, at "
            f"fewer bytes. Coded ones change it by {first - hard:+.4f} with the first level alone, "
            f"and by {first - blended:+.4f} against blends of four, which cost more. So sums are "
            "not trained but coded, once personal vectors are fitted, and a byte budget is spent "
            "on their levels. Blends stay for what has no personal fit: new entities, and models "
            "whose rows are confined.",
            100,
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
