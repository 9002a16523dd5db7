"""New users and items: from the prior, from side features, and better with each interaction.

    python -m benchmarks.cold.run [--out FOLDER] [--processes N] [--only NAME...]

A tenth of the users (or items) is held out of training entirely, see holdout.py. Ours are added to
a trained table of blends; no row changes. The full table is trained from nothing on the training
data and what is revealed. Jobs that are in `--out` already are kept, so that a run can be stopped
and goes on. The last step writes docs/results/cold-start.md and .json, and the plots.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.codes.protocols import full_candidates
from benchmarks.codes.training import start_full
from benchmarks.cold.holdout import REVEALED, Events, HeldOut, hold_out, side_features
from benchmarks.jobs import ROOT, Job, Jobs
from benchmarks.plotting import COLOURS, new_figure, save, ticks_at
from celrec.core.blend import BlendRule, NearestBlend
from celrec.core.first_codes import FirstCodes
from celrec.core.memory import memory_report
from celrec.data.catalog import load
from celrec.experiments.build import build_model, completed, initialise, tables_of
from celrec.experiments.config import RunConfig, merged
from celrec.experiments.run import make_trainer
from celrec.models.layers import rows_of
from celrec.training.progress import EpochReport, Silence
from celrec.training.trainer import Trainer

HEAD = """# Cold start

*Written by `python -m benchmarks.cold.run`. Rating 3 is dropped, a like is a rating of 4 or more.*

A tenth of the users (or items), drawn at random, is held out of training entirely; another tenth is
held out in the same way, and every choice is made on it. Of a new entity the first 0, 1, 3 or 10
interactions in time are revealed. Everything after its tenth is predicted, the same events whatever
is revealed; entities with fewer than 20 interactions are left out. AUC over all predicted events,
mean and standard deviation of three seeds, which draw the entities and start the training.

**Ours.** Dot products of width 32, 32 rows a table, blends of four. New entities are added to the
trained model (`add_entities`), and `update_codes` computes their codes; no row changes. Without
interactions all share the prior's code. *Nearest to the mean* mixes the four rows that come nearest
to the mean of the posterior over all clusters (`NearestBlend`, the default), *the heaviest four*
cuts the posterior instead, as entities that trained are coded. *From side features*: `FirstCodes`
predicts a prior over clusters from age, gender and occupation, or from year and genres. *Hard
code*: the codes of that one table are hard, and a new one is the row nearest to the mean.

**Full table, trained anew.** Trained from nothing on the training data and what is revealed; L2,
the start and the epoch are chosen on validation, the epoch for every number revealed. Without
interactions a new entity has the mean vector of all that trained: a random vector would be no
rival. So that one training serves all numbers, it holds a copy of every new entity for each.

**Full table, new vectors fitted alone.** The strongest rival that we know: that table stays as it
is, and each new vector is fitted alone, by Newton's steps, under a normal prior with the mean and
the covariance of all that trained; the prior's width is chosen on validation, too. A new entity
takes 128 bytes there, six in a table of blends.

**Popularity alone** ranks by the mean label of the item (for new items, of the user).

**What it shows.** On MovieLens-1M, from the first interaction on, new entities are better served by
a table of blends than by a full table that is trained anew with them. A full table whose new
vectors are fitted alone, under a prior learned from the others, is about as good as the blends:
what helps is the prior, and clusters are one that fits into six bytes. Mixing for the mean beats
cutting to the heaviest four at every number revealed.

Where nothing is revealed the full table is ahead, most of all for new items. There only the users
differ, and how generous a user is, is told less finely by a blend than by a vector of its own: of
new items of MovieLens-1M, not even the best common vector, fitted to all training data, came near.
Side features more than make up for it for items; for users they say next to nothing.
"""
SCENARIOS = {
    f"{source}-{entity}": (source, entity)
    for source in ("ml-1m", "ml-100k")
    for entity in ("user", "item")
}
TITLES = {"ml-1m": "MovieLens-1M", "ml-100k": "MovieLens-100k"}
SEEDS = (0, 1, 2)
NUM_DRAWS = 200
TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
OURS: dict[str, dict[str, Any]] = {
    # settings and temperature of the training entities as chosen in docs/results/codes.md
    "ml-1m": {"temperature": 6.0, "training": {"epochs": 40, "weight_decay": 0.05}},
    "ml-100k": {"temperature": 2.0, "training": {}},
}
NUM_ROWS = 32
SPREADS = (0.3, 1.0, 3.0)
EPOCHS_BETWEEN_FITS = 10
FULL = {
    source: full_candidates(l2s, (3e-3,), (0.0, 0.5), batch_size=4096, epochs=epochs)
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
    return (tables[own], tables[other]) if entity == "user" else (tables[other], tables[own])


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
        self.num_entities = {
            part: len(held_out.raw_ids[1 + i]) for i, part in enumerate(self.parts)
        }
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
            Events(
                *(np.concatenate([getattr(e, f) for e in events]) for f in Events.__annotations__)
            ),
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
                            fitted(
                                own[: self.held_out.num_warm], other, part_events, count, spread
                            ),
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
    start_full(trainer.model, candidate)
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


# --- ours ----------------------------------------------------------------------------------------


class NewEntities:
    """Held-out entities, added to a trained model, and what predictions for them are worth."""

    def __init__(self, held_out: HeldOut, trainer: Trainer) -> None:
        self.held_out = held_out
        assert trainer.clusters is not None
        self.clusters = trainer.clusters
        self.table, self.other = split_tables(trainer.model, held_out.entity)
        (self.name,) = (n for n, t in self.clusters.tables.items() if t is self.table)
        self.num_validation, num_test = map(len, held_out.raw_ids[1:])
        self.ids = torch.tensor(self.table.add_entities(self.num_validation + num_test))
        self.others = self.other.to_dense()

    def update(self, count: int, rule: BlendRule, prior: Tensor | None) -> None:
        """Codes from the first `count` interactions of each."""
        self.clusters.update_rule = rule
        start = self.held_out.num_warm
        samples = []
        for first, events in (
            (start, self.held_out.validation),
            (start + self.num_validation, self.held_out.test),
        ):
            revealed = events.first(count)
            own = torch.from_numpy(first + revealed.slot)
            other = torch.from_numpy(revealed.other)
            pair = (own, other) if self.held_out.entity == "user" else (other, own)
            samples.append((*pair, torch.from_numpy(revealed.label)))
        batches = [batch for batch in samples if len(batch[2])]
        self.clusters.update_codes(self.name, self.ids, batches, prior=prior)

    def predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """For the scored events of validation and of test."""
        vectors = self.table.to_dense()[self.held_out.num_warm :]
        parts = vectors[: self.num_validation], vectors[self.num_validation :]
        validation, test = self.held_out.validation.scored(), self.held_out.test.scored()
        return scores(parts[0], self.others, validation), scores(parts[1], self.others, test)


def train_ours(name: str, seed: int, out: Path) -> dict[str, Any]:
    """A table of blends, and new entities by every rule, temperature and number revealed."""
    began = perf_counter()
    source, entity = SCENARIOS[name]
    held_out = hold_out(source, entity, seed)
    values = {
        "embedding": {"kind": "clustered", "user_rows": NUM_ROWS, "item_rows": NUM_ROWS},
        "encoding": {"blend": 1},
        "training": OURS[source]["training"],
    }
    trainer = make(held_out, values, seed, held_out.warm)
    trainer.fit(held_out.warm)
    assert trainer.clusters is not None
    columns = (torch.tensor(getattr(held_out.warm, c)) for c in ("user", "item", "label"))
    batches = list(zip(*(column.split(16_384) for column in columns), strict=True))
    trainer.clusters.blend_rule = BlendRule(temperature=OURS[source]["temperature"])
    trainer.clusters.blend(batches, 4)

    new = NewEntities(held_out, trainer)
    features = torch.from_numpy(side_features(source, entity, np.concatenate(held_out.raw_ids)))
    warm = torch.arange(held_out.num_warm)
    first = FirstCodes.fit(new.table, warm, features[: held_out.num_warm])
    predicted = first(features[held_out.num_warm :])
    found: dict[str, Any] = {"validation": {}, "test": {}, "bytes": {"blend": bytes_of(trainer)}}
    predictions = {}

    def score(method: str) -> None:
        on_validation, on_test = new.predictions()
        found["validation"][method] = auc(held_out.validation.scored(), on_validation)
        found["test"][method] = auc(held_out.test.scored(), on_test)
        predictions[method] = on_test.astype(np.float32)

    def score_all(methods: list[tuple[str, type[BlendRule], Tensor | None]]) -> None:
        for method, kind, prior in methods:
            for count in (0, *REVEALED):
                # without samples, or where the heaviest cluster is all, the temperature is nothing
                is_one = count == 0 or (kind is BlendRule and new.table.blend_size == 1)
                for temperature in (None,) if is_one else TEMPERATURES:
                    new.update(count, kind(temperature=temperature or 1.0), prior)
                    score(" ".join(map(str, [method, count] + [temperature] * (not is_one))))

    score_all(
        [
            ("blend", NearestBlend, None),
            ("features", NearestBlend, predicted),
            ("heaviest", BlendRule, None),
        ]
    )
    new.table.harden()
    found["bytes"]["hard"] = bytes_of(trainer)
    score_all([("hard", NearestBlend, None), ("hard heaviest", BlendRule, None)])
    mean = popularity(held_out)
    for part in ("validation", "test"):
        events = getattr(held_out, part).scored()
        found[part]["popularity"] = auc(events, mean[events.other])
    predictions["popularity"] = mean[held_out.test.scored().other].astype(np.float32)
    test = held_out.test.scored()
    np.savez(out, label=test.label, slot=test.slot, **predictions)
    found["counts"] = {
        "warm": held_out.num_warm,
        "test": len(held_out.raw_ids[2]),
        "events": len(test.label),
        "features": features.shape[1],
    }
    found["seconds"] = perf_counter() - began
    return found


def bytes_of(trainer: Trainer) -> dict[str, int]:
    memory = memory_report(trainer.model)
    return {
        "table": memory.table_bytes,
        "total": memory.total_bytes,
        "full": memory.full_table_bytes,
    }


def popularity(held_out: HeldOut) -> np.ndarray:
    """The mean label of every other entity, pulled to the mean of all as by 5 more events."""
    other = held_out.warm.item if held_out.entity == "user" else held_out.warm.user
    label = held_out.warm.label
    num_others = held_out.warm.num_items if held_out.entity == "user" else held_out.warm.num_users
    likes = np.bincount(other, label, minlength=num_others)
    return (likes + 5 * label.mean()) / (np.bincount(other, minlength=num_others) + 5)


# --- writing -------------------------------------------------------------------------------------

COUNTS = (0, *REVEALED)
METHODS = {
    "popularity": "popularity alone",
    "hard": "hard code",
    "heaviest": "blend of the heaviest four",
    "blend": "blend nearest to the mean",
    "features": "the same, from side features",
    "full": "full table, trained anew",
    "alone": "full table, new vectors fitted alone",
}
RIVALS = ("full", "alone")


@dataclass(frozen=True)
class Found:
    """Test predictions of every method and number revealed in one scenario.

    predictions : by method and number, one array per seed
    label, slot : by seed
    """

    name: str
    results: list[dict[str, Any]]
    label: list[np.ndarray]
    slot: list[np.ndarray]
    predictions: dict[tuple[str, int], list[np.ndarray]]
    chosen: dict[str, Any]

    def figures(self, method: str, count: int) -> np.ndarray:
        """AUC of every seed."""
        return np.array(
            [
                roc_auc_score(label, prediction)
                for label, prediction in zip(
                    self.label, self.predictions[method, count], strict=True
                )
            ]
        )

    def difference(self, ours: str, rival: str, count: int) -> tuple[float, float, float]:
        """Mean over seeds, with a 95 % bootstrap interval over new entities."""
        rng = np.random.default_rng(0)
        draws = np.zeros(NUM_DRAWS)
        for seed, (label, slot) in enumerate(zip(self.label, self.slot, strict=True)):
            both = [self.predictions[method, count][seed] for method in (ours, rival)]
            orders = [np.argsort(prediction, kind="stable") for prediction in both]
            entities = np.unique(slot, return_inverse=True)[1]
            num_entities = entities.max() + 1
            for i in range(NUM_DRAWS):
                drawn = rng.integers(num_entities, size=num_entities)
                times = np.bincount(drawn, minlength=num_entities)[entities]
                a, b = (weighted_auc(label[order], times[order]) for order in orders)
                draws[i] += (a - b) / len(self.label)
        mean = float((self.figures(ours, count) - self.figures(rival, count)).mean())
        low, high = np.percentile(draws, (2.5, 97.5))
        return mean, float(low), float(high)


def weighted_auc(label: np.ndarray, times: np.ndarray) -> float:
    """AUC of events in the order of their scores, each counted `times`; a tie counts by order."""
    ones, zeros = times * label, times * (1 - label)
    below = np.cumsum(zeros) - zeros
    return float((ones * below).sum() / (ones.sum() * zeros.sum()))


def gather(jobs: Jobs, name: str) -> Found | None:
    """What jobs found in a scenario, by the settings that validation chose; None if unfinished."""
    ours = [jobs.result(f"{name}.ours-{seed}") for seed in SEEDS]
    everything = [jobs.result(f"{name}.full-{i}-0") for i in range(len(FULL[SCENARIOS[name][0]]))]
    if not all(ours) or not all(everything):
        return None
    candidate = choice_full(jobs, name)
    full = {
        use: [jobs.result(f"{name}.full-{number}-{seed}") for seed in SEEDS]
        for use, number in candidate.items()
    }
    if not all(all(results) for results in full.values()):
        return None
    arrays = [np.load(jobs.out / f"{name}.ours-{seed}.npz") for seed in SEEDS]
    chosen: dict[str, Any] = {}
    predictions: dict[tuple[str, int], list[np.ndarray]] = {}
    for method in ("blend", "features", "heaviest", "hard"):
        validation = {
            temperature: np.mean(
                [
                    result["validation"][f"{method} {count} {temperature}"]
                    for result in ours
                    for count in REVEALED
                ]
            )
            for temperature in TEMPERATURES
        }
        best = max(validation, key=lambda temperature: validation[temperature])
        chosen[method] = {"temperature": best}
        for count in COUNTS:
            key = f"{method} {count} {best}" if count else f"{method} 0"
            predictions[method, count] = [some[key] for some in arrays]
    for count in COUNTS:
        predictions["popularity", count] = [some["popularity"] for some in arrays]
        default = f"blend {count} {NearestBlend().temperature}" if count else "blend 0"
        predictions["default", count] = [some[default] for some in arrays]
    for use, number in candidate.items():
        chosen[use] = {
            "candidate": FULL[SCENARIOS[name][0]][number],
            "best": [result["best"] for result in full[use]],
        }
        saved = [np.load(jobs.out / f"{name}.full-{number}-{seed}.npz") for seed in SEEDS]
        for count in COUNTS:
            key = f"{use} {count}" if count else "full 0"
            predictions[use, count] = [some[key] for some in saved]
    labels, slots = [some["label"] for some in arrays], [some["slot"] for some in arrays]
    return Found(name, ours, labels, slots, predictions, chosen)


def write_report(jobs: Jobs) -> None:
    """docs/results/cold-start.md and .json, and the plots, of the scenarios that are done."""
    scenarios = [found for name in SCENARIOS if (found := gather(jobs, name)) is not None]
    if not scenarios:
        return
    folder = ROOT / "docs" / "results"
    numbers: dict[str, Any] = {}
    machine = f"torch {torch.__version__}, {platform.machine()}, one thread"
    lines = [HEAD, f"Seeds {', '.join(map(str, SEEDS))}; {machine}.", ""]
    for found in scenarios:
        source, entity = SCENARIOS[found.name]
        counts = [result["counts"] for result in found.results]
        tested = int(np.mean([one["test"] for one in counts]))
        events = int(np.mean([one["events"] for one in counts]))
        lines += [
            *(picture(source) if entity == "user" else ()),
            f"## {TITLES[source]}, new {entity}s",
            "",
            f"Data fingerprint {load(source, progress=False).fingerprint()[:12]}. "
            f"{tested} new {entity}s and {events:,} events are scored for each of three seeds, "
            f"beside {counts[0]['warm']:,} {entity}s that trained.",
            "",
            "| method | " + " | ".join(f"{count} revealed" for count in COUNTS) + " | table bytes "
            "| total bytes |",
            "|---|---|---|---|---|---|---|",
        ]
        numbers[found.name] = {"chosen": found.chosen, "counts": counts, "auc": {}}
        for method, title in METHODS.items():
            by_count = {count: found.figures(method, count) for count in COUNTS}
            numbers[found.name]["auc"][method] = {k: v.tolist() for k, v in by_count.items()}
            cells = [f"{some.mean():.4f} ± {some.std(ddof=1):.4f}" for some in by_count.values()]
            lines.append(f"| {title} | {' | '.join(cells)} | {bytes_cells(found, method)} |")
        lines += [
            "",
            f"Difference between the blend nearest to the mean and the full table, with "
            f"95 % bootstrap intervals over new {entity}s:",
            "",
            "| rival | " + " | ".join(f"{count} revealed" for count in COUNTS) + " |",
            "|---|---|---|---|---|",
        ]
        numbers[found.name]["difference"] = {}
        for rival in RIVALS:
            gains = {count: found.difference("blend", rival, count) for count in COUNTS}
            numbers[found.name]["difference"][rival] = gains
            cells = [
                f"{mean:+.4f} ({low:+.4f} to {high:+.4f})" for mean, low, high in gains.values()
            ]
            lines.append(f"| {METHODS[rival]} | {' | '.join(cells)} |")
        lines += ["", settings(found), ""]
    (folder / "cold-start.md").write_text("\n".join(lines), encoding="utf-8")
    text = json.dumps(numbers, indent=1)
    (folder / "cold-start.json").write_text(text + "\n", encoding="utf-8")
    for source in TITLES:
        some = [found for found in scenarios if SCENARIOS[found.name][0] == source]
        if some:
            draw(some, folder / f"cold-start-{source}.svg")


def picture(source: str) -> tuple[str, str]:
    return f"![AUC against interactions revealed, {source}](cold-start-{source}.svg)", ""


def bytes_cells(found: Found, method: str) -> str:
    """Table and total bytes of a model that holds the new entities, too."""
    if method == "popularity":
        return "| "
    if method in RIVALS:
        full = found.results[0]["bytes"]["blend"]["full"]
        return f"{full:,} | {full:,}"
    kind = "hard" if method == "hard" else "blend"
    table, total = (
        np.mean([result["bytes"][kind][part] for result in found.results])
        for part in ("table", "total")
    )
    return f"{table:,.0f} | {total:,.0f}"


def settings(found: Found) -> str:
    """What validation chose."""
    ours = ", ".join(
        f"{found.chosen[method]['temperature']:g} ({METHODS[method]})"
        for method in ("blend", "features", "heaviest", "hard")
    )
    default = np.mean([found.figures("blend", k) - found.figures("default", k) for k in REVEALED])
    text = (
        f"Chosen on validation: temperatures {ours}; the default, {NearestBlend().temperature:g}, "
        f"costs the blend {default:.4f} on average."
    )
    for use in RIVALS:
        candidate = found.chosen[use]["candidate"]
        epochs = [
            "/".join(
                str(best.get(f"{use} {k}", {}).get("epoch")) for best in found.chosen[use]["best"]
            )
            for k in REVEALED
        ]
        text += (
            f" {METHODS[use].capitalize()}: L2 {candidate['training']['l2']:g}, start "
            f"{candidate['start']:g}, epochs {', '.join(epochs)} of the seeds for 1, 3 and 10."
        )
    return text


def draw(scenarios: list[Found], path: Path) -> None:
    """AUC against what is revealed; a band is one standard deviation of the seeds."""
    styles = {
        "popularity": (COLOURS["truth"], ":", "popularity"),
        "full": (COLOURS["full"], "-", "full, trained anew"),
        "alone": (COLOURS["full"], "--", "full, fitted alone"),
        "hard": (COLOURS["clustered"], "-", "hard code"),
        "blend": (COLOURS["blended"], "-", "blend"),
        "features": (COLOURS["personal"], "--", "blend, features"),
    }
    figure, axes = new_figure(len(scenarios), width=3.6 * len(scenarios), height=3.8)
    for place, found in zip(axes, scenarios, strict=True):
        source, entity = SCENARIOS[found.name]
        for method, (colour, dashes, name) in styles.items():
            some = np.array([found.figures(method, count) for count in COUNTS])
            middle, spread = some.mean(1), some.std(1, ddof=1)
            place.plot(COUNTS, middle, color=colour, linestyle=dashes, label=name)
            place.fill_between(COUNTS, middle - spread, middle + spread, color=colour, alpha=0.12)
        place.set_xscale("symlog", linthresh=1, linscale=0.6)
        ticks_at(place, COUNTS)
        place.set_title(f"{TITLES[source]}, new {entity}s")
        place.set_xlabel("interactions revealed")
    axes[0].set_ylabel("AUC")
    lines, names = axes[0].get_legend_handles_labels()
    figure.legend(lines, names, frameon=False, loc="outside upper left", ncols=3)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/cold"))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=sorted(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--report-only", action="store_true")
    options = parser.parse_args()
    jobs = Jobs(options.out, options.processes)
    if options.report_only:
        write_report(jobs)
        return
    jobs.run(
        {
            f"{name}.ours-{seed}": Job(
                train_ours, (name, seed), (options.out / f"{name}.ours-{seed}.npz",)
            )
            for seed in SEEDS
            for name in options.only
        }
    )
    everything = {name: range(len(FULL[SCENARIOS[name][0]])) for name in options.only}
    jobs.run(full_jobs(options.out, everything, SEEDS[:1]))
    chosen = {name: set(choice_full(jobs, name).values()) for name in options.only}
    jobs.run(full_jobs(options.out, chosen, SEEDS[1:]))
    write_report(jobs)
    jobs.check()


def full_jobs(
    out: Path, numbers: dict[str, Iterable[int]], seeds: tuple[int, ...]
) -> dict[str, Job]:
    """Candidates of the full table, by scenario."""
    return {
        f"{name}.full-{number}-{seed}": Job(
            train_full, (name, number, seed), (out / f"{name}.full-{number}-{seed}.npz",)
        )
        for seed in seeds
        for name, some in numbers.items()
        for number in some
    }


def choice_full(jobs: Jobs, name: str) -> dict[str, int]:
    """The candidate of each use of the full table: the best on average over what is revealed."""
    results = [jobs.result(f"{name}.full-{i}-0") for i in range(len(FULL[SCENARIOS[name][0]]))]

    def figure(use: str, number: int) -> float:
        best = results[number]["best"]
        return float(np.mean([best[f"{use} {count}"]["validation"] for count in REVEALED]))

    return {
        use: max(range(len(results)), key=lambda number: figure(use, number))
        for use in ("full", "alone")
    }


if __name__ == "__main__":
    main()
