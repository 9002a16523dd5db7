"""Which estimate should propose clusters, and how many? Writes docs/design/proposals.md.

    python -m benchmarks.design.proposals [ml-1m]

Trains clustered GMF tables with each way of proposing and compares what the rounds reach and cost.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from celrec.core.reassign import ReassignRule
from celrec.experiments.build import (
    build_model,
    build_objective,
    completed,
    divide,
    initialise,
    load_interactions,
)
from celrec.experiments.config import RunConfig
from celrec.training.trainer import Trainer

OUT = Path(__file__).parents[2] / "docs" / "design" / "proposals.md"
SEEDS = (0, 1, 2)
RULES = {
    "diagonal, 2": ReassignRule(num_proposals=2, correlation_rank=0),
    "diagonal, 8": ReassignRule(num_proposals=8, correlation_rank=0),
    "correlated, 1": ReassignRule(num_proposals=1),
    "correlated, 2": ReassignRule(num_proposals=2),
    "correlated, 4": ReassignRule(num_proposals=4),
    "correlated, 8": ReassignRule(num_proposals=8),
}

TEXT = """\
# Which estimate proposes clusters, and how many?

*Written by `python -m benchmarks.design.proposals {source}`; torch {torch}, one thread, seeds
{seeds}, 64 rows per table, otherwise the default settings.*

**Question.** A round evaluates the true loss of every entity under a few proposed clusters, and
these evaluations are most of its cost. Which second-order estimate should choose them, and how many
are needed?

**Measured.** Objective: the sum of loss - log prior over all users, and over all items, after the
last round, in nats (lower is better). AUC: on validation, mean of the seeds. Seconds: the machine
had other work at the time, so compare them loosely.

| curvature, proposals | users' objective | items' objective | validation AUC | seconds in rounds |
|---|---|---|---|---|
{lines}

**Choice.** `correlated, {default}`. The curvature is each entity's own diagonal with the
correlations of the whole table's gradients in their {rank} main directions: one D x D matrix per
table, summed in the pass that is made anyway. All gradients of a table share a direction (a popular
item is liked in every cluster); a diagonal alone takes it for many independent ones.
"""


def main() -> None:
    source = sys.argv[1] if len(sys.argv) > 1 else "ml-1m"
    torch.set_num_threads(1)
    config = RunConfig.from_values({"data": {"source": source}, "task": {"kind": "binary"}})
    interactions = load_interactions(config)
    lines = []
    for name, rule in RULES.items():
        figures = []
        for seed in SEEDS:
            seeded = completed(replace(config, seed=seed), interactions)
            parts = divide(seeded, interactions)
            model = build_model(seeded, parts.train.num_users, parts.train.num_items)
            initialise(model, seeded, parts.train)
            with tempfile.TemporaryDirectory() as run_dir:
                result = Trainer(
                    model,
                    build_objective(seeded),
                    seeded.training,
                    clusters=seeded.clusters.schedule,
                    reassign_rule=rule,
                    seed=seed,
                    run_dir=run_dir,
                ).fit(parts.train, parts.validation)
                timing = Path(run_dir, "timing.jsonl").read_text(encoding="utf-8").splitlines()
            last = {
                event["table"]: event["objective_after"]
                for line in result.history
                for event in line["events"]
                if event["kind"] == "move" and event["reason"] == "data"
            }
            figures.append(
                (
                    last["user_embedding"],
                    last["item_embedding"],
                    result.history[-1]["validation"]["auc"],
                    sum(json.loads(line)["round_seconds"] for line in timing),
                )
            )
        users, items, auc, seconds = (
            statistics.mean(column) for column in zip(*figures, strict=True)
        )
        lines.append(f"| {name} | {users:,.0f} | {items:,.0f} | {auc:.4f} | {seconds:.1f} |")
        print(lines[-1], flush=True)
    text = TEXT.format(
        source=source,
        torch=torch.__version__,
        seeds=", ".join(map(str, SEEDS)),
        lines="\n".join(lines),
        default=ReassignRule().num_proposals,
        rank=ReassignRule().correlation_rank,
    )
    OUT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
