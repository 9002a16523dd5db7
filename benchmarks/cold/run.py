"""New users and items: from the prior, from side features, and better with each interaction.

    python benchmarks/cold/run.py [--out FOLDER] [--processes N] [--only NAME...]

A tenth of the users (or items) is held out of training entirely, see holdout.py. Ours are added to
a trained table of blends; no row changes. The full table is trained from nothing on the training
data and what is revealed. Jobs that are in `--out` already are kept, so that a run can be stopped
and goes on. The last step writes docs/results/cold-start.md, .json and .svg.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from codes.run import Jobs
from holdout import REVEALED, Events, HeldOut, hold_out

from celrec.experiments.build import build_model, completed, initialise, tables_of
from celrec.experiments.config import RunConfig, merged
from celrec.experiments.run import make_trainer
from celrec.models.layers import rows_of
from celrec.training.progress import EpochReport, Silence
from celrec.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
SCENARIOS = {
    f"{source}-{entity}": (source, entity)
    for source in ("ml-1m", "ml-100k")
    for entity in ("user", "item")
}
SEEDS = (0, 1, 2)
SPREADS = (0.3, 1.0, 3.0)
EPOCHS_BETWEEN_FITS = 10
FULL: dict[str, list[dict[str, Any]]] = {
    source: [
        {
            "start": start,
            "training": {
                "l2": l2,
                "learning_rate": 3e-3,
                "weight_decay": 0.0,
                "lr_drop": 1.0,
                "batch_size": 4096,
                "epochs": epochs,
            },
        }
        for l2 in l2s
        for start in (0.0, 0.5)
    ]
    for source, l2s, epochs in (
        ("ml-1m", (0.01, 0.02, 0.04), 30),
        ("ml-100k", (0.01, 0.03, 0.06), 60),
    )
}


def make(held_out: HeldOut, values: dict[str, Any], seed: int, train: Any) -> Trainer:
    """A model at its start, and its trainer."""
    task = {"kind": "binary", "positive_from": 1.0}  # labels are made already
    config = RunConfig.from_values(
        merged({"data": {"source": held_out.source}, "task": task, "seed": seed}, values)
    )
    config = completed(config, train)
    model = build_model(config, train.num_users, train.num_items)
    initialise(model, config, train)
    return make_trainer(config, model)


def split_tables(model: Any, entity: str) -> tuple[Any, Any]:
    """The table of the held-out kind of entity, and the other one."""
    tables = tables_of(model)
    own, other = "user_embedding", "item_embedding"
    return (
        (tables[own], tables[other]) if entity == "user" else (tables[other], tables[own])
    )


def auc(events: Events, score: np.ndarray) -> float:
    return float(roc_auc_score(events.label, score))


def scores(vectors: Tensor, others: Tensor, events: Events) -> np.ndarray:
    """Predictions for events, float32 (n,), of entities with vectors (E, D)."""
    slots, ids = torch.from_numpy(events.slot), torch.from_numpy(events.other)
    return (vectors[slots].float() * others[ids].float()).sum(1).numpy()


# --- the full table ------------------------------------------------------------------------------


class Copies:
    """New ids of a full table: one copy of every held-out entity for each number revealed.

    So one training serves all: the copies meet only in the other table's vectors, which see up to
    14 interactions of a held-out entity where they would see 10.
    """

    def __init__(self, held_out: HeldOut) -> None:
        self.parts = {"validation": held_out.validation, "test": held_out.test}
        self.first_id: dict[tuple[str, int], int] = {}
        self.num_entities = {part: len(held_out.raw_ids[1 + i]) for i, part in enumerate(self.parts)}
        ids, events, total = [], [], held_out.num_warm
        for part, of_part in self.parts.items():
            for count in REVEALED:
                self.first_id[part, count] = total
                revealed = of_part.first(count)
                ids.append(total + revealed.slot)
                events.append(revealed)
                total += self.num_entities[part]
        self.train = held_out.with_events(
            np.concatenate(ids),
            Events(*(np.concatenate([getattr(e, f) for e in events]) for f in Events.__annotations__)),
            total - held_out.num_warm,
        )

    def vectors(self, table: Tensor, part: str, count: int) -> Tensor:
        start = self.first_id[part, count]
        return table[start : start + self.num_entities[part]]


class BestEpochs(Silence):
    """Keeps, for every number revealed, the test predictions of the best epoch on validation."""

    def __init__(self, held_out: HeldOut, copies: Copies) -> None:
        self.held_out, self.copies = held_out, copies
        self.parts = {part: events.scored() for part, events in copies.parts.items()}
        self.best: dict[str, dict[str, Any]] = {}
        self.predictions: dict[str, np.ndarray] = {}
        self.model: Any = None

    @torch.no_grad()
    def on_epoch(self, report: EpochReport) -> None:
        own, other = (rows_of(t).detach() for t in split_tables(self.model, self.held_out.entity))
        for count in (0, *REVEALED):
            found = {
                part: scores(self._vectors(own, part, count), other, events)
                for part, events in self.parts.items()
            }
            self._consider(f"full {count}", found, {"epoch": report.epoch})
        if report.epoch % EPOCHS_BETWEEN_FITS == 0:
            for count in REVEALED:
                for spread in SPREADS:
                    found = {
                        part: scores(
                            fitted(own[: self.held_out.num_warm], other, part_events, count, spread),
                            other,
                            events,
                        )
                        for (part, events), part_events in zip(
                            self.parts.items(), self.copies.parts.values(), strict=True
                        )
                    }
                    chosen = {"epoch": report.epoch, "spread": spread}
                    self._consider(f"alone {count}", found, chosen)

    def _vectors(self, own: Tensor, part: str, count: int) -> Tensor:
        if count:
            return self.copies.vectors(own, part, count)
        mean = own[: self.held_out.num_warm].mean(0)  # what a new id can have at best
        return mean.expand(self.copies.num_entities[part], -1)

    def _consider(self, name: str, found: dict[str, np.ndarray], chosen: dict[str, Any]) -> None:
        figure = auc(self.parts["validation"], found["validation"])
        if name not in self.best or figure > self.best[name]["validation"]:
            self.best[name] = {"validation": figure, **chosen}
            self.predictions[name] = found["test"].astype(np.float32)


def fitted(warm: Tensor, others: Tensor, events: Events, count: int, spread: float) -> Tensor:
    """Vectors of new entities, each fitted alone, (E, D), in a table that stays as it is.

    The prior is normal: mean and covariance, times `spread`, of the warm vectors. Newton's steps.
    """
    mean = warm.double().mean(0)
    apart = warm.double() - mean
    width = len(mean)
    covariance = apart.T @ apart / len(apart) + 1e-6 * torch.eye(width).double()
    precision = torch.linalg.inv(spread * covariance)
    revealed = events.first(count)
    slot, label = torch.from_numpy(revealed.slot), torch.from_numpy(revealed.label).double()
    other = others[torch.from_numpy(revealed.other)].double()
    num_entities = int(events.slot.max()) + 1
    vectors = mean.repeat(num_entities, 1)
    for _ in range(8):
        chance = torch.sigmoid((vectors[slot] * other).sum(1))
        slope = (vectors - mean) @ precision
        slope.index_add_(0, slot, (chance - label).unsqueeze(1) * other)
        outer = (chance * (1 - chance))[:, None, None] * other.unsqueeze(2) * other.unsqueeze(1)
        curve = precision.repeat(num_entities, 1, 1).index_add_(0, slot, outer)
        vectors = vectors - torch.linalg.solve(curve, slope)
    return vectors


def train_full(name: str, number: int, seed: int, out: Path) -> dict[str, Any]:
    """One candidate for the full table, scored after every epoch."""
    began = perf_counter()
    source, entity = SCENARIOS[name]
    held_out = hold_out(source, entity, seed)
    copies = Copies(held_out)
    candidate = FULL[source][number]
    values = {"embedding": {"kind": "full"}, "training": candidate["training"]}
    trainer = make(held_out, values, seed, copies.train)
    with torch.no_grad():
        for table in tables_of(trainer.model).values():
            rows_of(table)[:, 0] += candidate["start"]
    watch = BestEpochs(held_out, copies)
    watch.model = trainer.model
    trainer.progress = watch
    trainer.fit(copies.train)
    np.savez(out, **watch.predictions)
    test = {n: auc(watch.parts["test"], p) for n, p in watch.predictions.items()}
    return {
        "candidate": candidate,
        "best": watch.best,
        "test": test,
        "seconds": perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/cold"))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=sorted(SCENARIOS), default=list(SCENARIOS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = Jobs(options.out, options.processes)
    jobs.run({job: arguments for name in options.only for job, arguments in full_jobs(options.out, name, {0})})
    jobs.run(
        {
            job: arguments
            for name in options.only
            for job, arguments in full_jobs(options.out, name, set(SEEDS[1:]), chosen_full(jobs, name))
        }
    )
    if jobs.failures:
        raise SystemExit(f"failed: {jobs.failures}")


def full_jobs(out, name, seeds, numbers=None):
    for seed in seeds:
        for number in range(len(FULL[SCENARIOS[name][0]])) if numbers is None else numbers:
            job = f"{name}.full-{number}-{seed}"
            yield job, (train_full, (name, number, seed, out / f"{job}.npz"))


def chosen_full(jobs: Jobs, name: str) -> set[int]:
    """The candidates that any method and number revealed takes."""
    return set(choice_full(jobs, name).values())


def choice_full(jobs: Jobs, name: str) -> dict[str, int]:
    results = [jobs.result(f"{name}.full-{i}-0") for i in range(len(FULL[SCENARIOS[name][0]]))]
    return {
        method: max(range(len(results)), key=lambda i: results[i]["best"][method]["validation"])
        for method in results[0]["best"]
    }


if __name__ == "__main__":
    main()
