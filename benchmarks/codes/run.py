"""The figures of blended codes and personal vectors, against tuned full tables.

    python benchmarks/codes/run.py [--data FOLDER] [--out FOLDER] [--processes N] [--only NAME...]

For every protocol: settings are chosen on the validation data of its first partition, as many
candidates for the full table as for our codes or more; then every partition or seed is trained on
all but its test data, and scored once. Jobs that are in `--out` already are kept, so that a run can
be stopped and goes on; delete the folder to start anew. The last step writes docs/results/codes.md
and codes.json.

`--data` is a folder with ciao_dvd.parquet and book_crossing.parquet (columns user, item, rating,
and timestamp where there is one); without it their protocols are left out. MovieLens is fetched.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from celrec.core.blend import BlendRule
from celrec.core.memory import memory_report
from celrec.core.personal import PersonalRule
from celrec.data.interactions import Interactions
from celrec.experiments.build import (
    build_model,
    completed,
    divide,
    initialise,
    load_interactions,
    tables_of,
)
from celrec.experiments.config import RunConfig, merged
from celrec.experiments.run import make_trainer
from celrec.models.layers import rows_of
from celrec.training.evaluation import predict, predict_ids

ROOT = Path(__file__).parents[2]
TEMPERATURES = (2.0, 3.0, 4.0, 6.0)
PERSONAL = [
    {"looseness": looseness, "epochs": epochs, "warm_epochs": 10}
    for looseness in (0.05, 0.15, 0.3, 0.6)
    for epochs in (16, 32)
]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Data, task and sizes of one block of the results.

    values : of a RunConfig, for all methods
    clustered : the same, for ours
    rows : (users, items) of the tables whose blends are reported; the last pair gets personal
        vectors
    blends : sizes of blends
    budgets : bytes per entity that `encode` is given
    full : candidates for the full table, each scored after every epoch
    seeds : of partitions where the partition is random, else of training
    """

    title: str
    metric: str
    values: dict[str, Any]
    clustered: dict[str, Any] = field(default_factory=dict)
    rows: tuple[tuple[int, int], ...]
    blends: tuple[int, ...] = (4,)
    budgets: tuple[float, ...] = ()
    full: list[dict[str, Any]]
    seeds: tuple[int, ...]
    file: str | None = None


def full_candidates(
    l2s: tuple[float, ...], rates: tuple[float, ...], starts: tuple[float, ...], **training: Any
) -> list[dict[str, Any]]:
    return [
        {
            "start": start,
            "training": {
                "l2": l2,
                "learning_rate": rate,
                "weight_decay": 0.0,
                "lr_drop": 1.0,
                **training,
            },
        }
        for l2 in l2s
        for rate in rates
        for start in starts
    ]


GMF = {"task": {"kind": "binary", "positive_from": 4.0, "drop_rating": 3.0}}
LIKES = {"task": {"kind": "binary"}, "partition": {"kind": "random"}}
RATINGS = {"task": {"kind": "rating"}, "partition": {"kind": "random"}}
FIVE = (0, 1, 2, 3, 4)

PROTOCOLS = {
    "ml-100k-ratings": Protocol(
        title="MovieLens-100k, ratings",
        metric="mse",
        values=merged(RATINGS, {"data": {"source": "ml-100k"}}),
        rows=((47, 84), (32, 32)),
        budgets=(10.0, 16.0),
        full=full_candidates((0.05, 0.1, 0.15, 0.2), (2e-3, 5e-3), (0.0,), epochs=40),
        seeds=FIVE,
    ),
    "ml-100k-likes": Protocol(
        title="MovieLens-100k, likes (GMF protocol)",
        metric="auc",
        values=merged(GMF, {"data": {"source": "ml-100k"}}),
        rows=((32, 32),),
        full=full_candidates(
            (0.01, 0.03, 0.06), (1e-3, 3e-3), (0.0, 0.5), epochs=60, batch_size=4096
        ),
        seeds=(0, 1, 2),
    ),
    "ml-1m-likes": Protocol(
        title="MovieLens-1M, likes (GMF protocol)",
        metric="auc",
        values=merged(GMF, {"data": {"source": "ml-1m"}}),
        clustered={"training": {"epochs": 40, "weight_decay": 0.05}},
        rows=((8, 8), (64, 64), (32, 32)),
        blends=(4, 8),
        budgets=(10.0, 16.0, 24.0),
        full=full_candidates((0.005, 0.01, 0.02, 0.04), (1e-3, 3e-3), (0.0,), epochs=30),
        seeds=(0, 1, 2),
    ),
    "ml-1m-ratings": Protocol(
        title="MovieLens-1M, ratings",
        metric="mse",
        values=merged(RATINGS, {"data": {"source": "ml-1m"}}),
        clustered={"training": {"epochs": 20, "batch_size": 4096}},
        rows=((32, 32),),
        budgets=(10.0, 16.0),
        full=full_candidates(
            (0.03, 0.06, 0.1, 0.15), (2e-3, 5e-3), (0.0,), epochs=25, batch_size=4096
        ),
        seeds=(0, 1, 2),
    ),
    "ciao-ratings": Protocol(
        title="CiaoDVD, ratings",
        metric="mse",
        file="ciao_dvd.parquet",
        values=merged(RATINGS, {"data": {"time": "timestamp"}}),
        clustered={"training": {"epochs": 20}},
        rows=((32, 32),),
        full=full_candidates((0.1, 0.3, 0.6, 1.0), (2e-3, 5e-3), (0.0,), epochs=30),
        seeds=FIVE,
    ),
    "ciao-likes": Protocol(
        title="CiaoDVD, likes (rating 4 or more)",
        metric="auc",
        file="ciao_dvd.parquet",
        values=merged(LIKES, {"data": {"time": "timestamp"}, "task": {"positive_from": 4.0}}),
        clustered={"training": {"epochs": 15}},
        rows=((32, 32),),
        full=full_candidates((0.01, 0.05, 0.2), (1e-3, 3e-3), (0.0, 0.5), epochs=20),
        seeds=FIVE,
    ),
    "bx-ratings": Protocol(
        title="Book-Crossing, ratings",
        metric="mse",
        file="book_crossing.parquet",
        values=RATINGS,
        clustered={"training": {"epochs": 15, "batch_size": 4096}},
        rows=((32, 32),),
        full=full_candidates(
            (0.1, 0.3, 0.6, 1.0), (3e-3, 1e-2), (0.0,), epochs=15, batch_size=8192
        ),
        seeds=FIVE,
    ),
    "bx-likes": Protocol(
        title="Book-Crossing, likes (rating 8 or more)",
        metric="auc",
        file="book_crossing.parquet",
        values=merged(LIKES, {"task": {"positive_from": 8.0}}),
        clustered={"training": {"epochs": 15, "batch_size": 4096}},
        rows=((32, 32),),
        full=full_candidates((0.01, 0.05), (1e-3, 3e-3), (0.0, 0.5), epochs=15, batch_size=8192),
        seeds=FIVE,
    ),
}


# --- one training --------------------------------------------------------------------------------


class Session:
    """A model in training, and its figures on the data it is to be scored on."""

    def __init__(
        self, protocol: Protocol, values: dict[str, Any], seed: int, *, final: bool
    ) -> None:
        is_random = "partition" in protocol.values
        self.metric = protocol.metric
        config = RunConfig.from_values(
            merged(
                values,
                {
                    "seed": seed,
                    "partition": {
                        "merge_validation": final,
                        **({"seed": seed} if is_random else {}),
                    },
                },
            )
        )
        interactions = load_interactions(config)
        self.config = config = completed(config, interactions)
        self.parts = divide(config, interactions)
        scored = self.parts.test if final else self.parts.validation
        assert scored is not None
        self.scored: Interactions = scored
        self.model = build_model(config, interactions.num_users, interactions.num_items)
        initialise(self.model, config, self.parts.train)
        self.trainer = make_trainer(config, self.model)
        self.columns = tuple(
            torch.tensor(column)
            for column in (self.parts.train.user, self.parts.train.item, self.parts.train.label)
        )

    def prediction(self) -> np.ndarray:
        return predict(self.model, self.scored).double().numpy()

    def figure(self) -> float:
        label, prediction = self.scored.label, self.prediction()
        if self.metric == "mse":
            return float(np.square(label - prediction).mean())
        return float(roc_auc_score(label, prediction))

    def passes(self, batch_size: int) -> Passes:
        return Passes(self.columns, batch_size)

    def calibrate(self) -> None:
        objective = self.trainer.objective
        if objective.needs_calibration:
            prediction = predict_ids(self.model, *self.columns[:2])
            objective.calibrate(prediction, self.columns[2])

    def state(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def line(self, seconds: float) -> dict[str, Any]:
        """What is written of the model as it stands."""
        memory = memory_report(self.model)
        num_entities = sum(table.num_entities for table in memory.tables)
        return {
            "figure": self.figure(),
            "rows": [table.num_rows for table in memory.tables],
            "personal": [getattr(t, "num_personal", 0) for t in tables_of(self.model).values()],
            "blend": [getattr(t, "blend_size", 0) for t in tables_of(self.model).values()],
            "table_bytes": memory.table_bytes,
            "code_bytes": memory.code_bytes,
            "personal_bytes": memory.personal_bytes,
            "total_bytes": memory.total_bytes,
            "bytes_per_entity": memory.total_bytes / num_entities,
            "times_smaller": memory.times_smaller,
            "seconds": seconds,
        }


class Passes:
    """The training data in batches, in a new order each time."""

    def __init__(self, columns: tuple[torch.Tensor, ...], batch_size: int) -> None:
        self.columns = columns
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        order = torch.randperm(len(self.columns[0]), generator=self.generator)
        parts = [column[order].split(self.batch_size) for column in self.columns]
        return zip(*parts, strict=True)


def pass_batch_size(session: Session) -> int:
    return 16_384 if len(session.columns[0]) > 200_000 else 4096


def train_full(
    protocol: Protocol, candidate: dict[str, Any], seed: int, *, final: bool
) -> tuple[Session, list[float]]:
    """Train a full table; the figure after every epoch, where the figures choose.

    `start` is added to the first number of all vectors: a direction that both tables share from the
    beginning, as clustered tables have from their first rows.
    """
    values = merged(
        protocol.values, {"embedding": {"kind": "full"}, "training": candidate["training"]}
    )
    session = Session(protocol, values, seed, final=final)
    with torch.no_grad():
        for table in tables_of(session.model).values():
            rows_of(table)[:, 0] += candidate["start"]
    session.trainer.fit(session.parts.train, None if final else session.parts.validation)
    history = session.trainer.history
    figures = [] if final else [line["validation"][protocol.metric] for line in history]
    return session, figures


# --- jobs: each a function of the protocol, returning JSON ---------------------------------------


def choose_full(protocol: Protocol, number: int) -> dict[str, Any]:
    """Score one candidate for the full table on validation data."""
    candidate = protocol.full[number]
    _, figures = train_full(protocol, candidate, protocol.seeds[0], final=False)
    best = np.argmin(figures) if protocol.metric == "mse" else np.argmax(figures)
    return {"candidate": candidate, "figure": figures[best], "epochs": int(best) + 1}


def choose_ours(protocol: Protocol) -> dict[str, Any]:
    """Score temperatures and settings of personal vectors on validation data."""
    session = trained_clusters(protocol, protocol.rows[-1], protocol.seeds[0], final=False)
    hard = session.state()
    found: dict[str, list[dict[str, Any]]] = {"temperature": [], "personal": []}
    for temperature in TEMPERATURES:
        blend(session, 4, temperature)
        found["temperature"].append({"candidate": temperature, "figure": session.figure()})
    best = sorted(found["temperature"], key=lambda one: one["figure"])
    temperature = best[0 if protocol.metric == "mse" else -1]["candidate"]
    for candidate in PERSONAL:
        session.model.load_state_dict(hard)
        personalize(session, temperature, candidate, None)
        found["personal"].append({"candidate": candidate, "figure": session.figure()})
    return found


def final_full(protocol: Protocol, seed: int, chosen: dict[str, Any], out: Path) -> dict[str, Any]:
    began = perf_counter()
    candidate = merged(chosen["candidate"], {"training": {"epochs": chosen["epochs"]}})
    session, _ = train_full(protocol, candidate, seed, final=True)
    line = session.line(perf_counter() - began)
    np.savez(out, full=session.prediction().astype(np.float32), label=session.scored.label)
    return {"full": line}


def final_ours(
    protocol: Protocol, seed: int, number: int, chosen: dict[str, Any], out: Path
) -> dict[str, Any]:
    """Hard codes, blends, and, on the last size of tables, personal vectors."""
    rows = protocol.rows[number]
    began = perf_counter()
    session = trained_clusters(protocol, rows, seed, final=True)
    trained = perf_counter() - began
    hard = session.state()
    name = "+".join(map(str, dict.fromkeys(rows)))
    lines = {f"hard {name}": session.line(trained)}
    predictions = {}
    for m in protocol.blends:
        began = perf_counter()
        blend(session, m, chosen["temperature"])
        lines[f"blend {name}, m = {m}"] = session.line(trained + perf_counter() - began)
        predictions[f"blend {m}"] = session.prediction().astype(np.float32)
    if number == len(protocol.rows) - 1:
        for budget in (*protocol.budgets, None):
            session.model.load_state_dict(hard)
            began = perf_counter()
            personalize(session, chosen["temperature"], chosen["personal"], budget)
            label = f"personal {name}" + (f", {budget:g} bytes" if budget else "")
            lines[label] = session.line(trained + perf_counter() - began)
        predictions["personal"] = session.prediction().astype(np.float32)
    np.savez(out, **predictions, label=session.scored.label)
    return lines


def auto_count(protocol: Protocol, seed: int, chosen: dict[str, Any]) -> dict[str, Any]:
    """Hard codes and blends with as many clusters as the data ask for."""
    began = perf_counter()
    session = trained_clusters(protocol, ("auto", "auto"), seed, final=True)
    trained = perf_counter() - began
    lines = {"hard auto": session.line(trained)}
    blend(session, 4, chosen["temperature"])
    lines["blend auto, m = 4"] = session.line(trained)
    return lines


def trained_clusters(
    protocol: Protocol, rows: tuple[Any, Any], seed: int, *, final: bool
) -> Session:
    values = merged(
        merged(protocol.values, protocol.clustered),
        {
            "embedding": {"kind": "clustered", "user_rows": rows[0], "item_rows": rows[1]},
            "encoding": {"blend": 1},
        },
    )
    session = Session(protocol, values, seed, final=final)
    session.trainer.fit(session.parts.train)
    return session


def blend(session: Session, m: int, temperature: float) -> None:
    clusters = session.trainer.clusters
    assert clusters is not None
    for table in clusters.tables.values():
        table.harden()
    session.calibrate()
    clusters.blend_rule = BlendRule(temperature=temperature)
    clusters.blend(session.passes(8192), m)


def personalize(
    session: Session, temperature: float, rule: dict[str, Any], bytes_per_entity: float | None
) -> None:
    clusters, objective = session.trainer.clusters, session.trainer.objective
    assert clusters is not None
    session.calibrate()
    clusters.blend_rule = BlendRule(temperature=temperature)
    passes = session.passes(pass_batch_size(session))
    options = {"rule": PersonalRule(**rule), "after_pass": objective.recalibrate}
    if bytes_per_entity is None:
        clusters.blend(passes, 4)
        clusters.personalize(passes, **options)
    else:
        clusters.encode(passes, bytes_per_entity, **options)


# --- running jobs --------------------------------------------------------------------------------


class Jobs:
    """Runs jobs in processes, and keeps the result of each in a file."""

    def __init__(self, out: Path, processes: int) -> None:
        self.out = out
        self.pool = ProcessPoolExecutor(
            processes,
            multiprocessing.get_context("spawn"),
            initializer=torch.set_num_threads,
            initargs=(1,),
        )
        self.failures: dict[str, str] = {}

    def run(self, jobs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]) -> None:
        """Run those that have no result yet; a failure is reported, and the rest goes on."""
        waiting = {}
        for name, (function, arguments) in jobs.items():
            if not (self.out / f"{name}.json").exists():
                waiting[self.pool.submit(function, *arguments)] = name
        for done in as_completed(waiting):
            name = waiting[done]
            try:
                result = done.result()
            except Exception as error:
                self.failures[name] = f"{type(error).__name__}: {error}"
                print(f"{name} FAILED", flush=True)
                traceback.print_exception(error)
                continue
            partial = self.out / f"{name}.partial"
            partial.write_text(json.dumps(result, indent=1), encoding="utf-8")
            partial.replace(self.out / f"{name}.json")
            print(f"{name}: {_short(result)}", flush=True)

    def result(self, name: str) -> Any:
        file = self.out / f"{name}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _short(result: dict[str, Any]) -> str:
    if "figure" in result:
        return f"{result['figure']:.4f}"
    return ", ".join(
        f"{name} {value['figure']:.4f}"
        for name, value in result.items()
        if isinstance(value, dict) and "figure" in value
    )


def choice(jobs: Jobs, name: str, protocol: Protocol) -> tuple[Any, Any]:
    """The chosen settings of the full table and of ours; None where a job is missing."""

    def best(candidates: list[dict[str, Any]]) -> dict[str, Any]:
        sign = 1 if protocol.metric == "mse" else -1
        return min(candidates, key=lambda one: sign * one["figure"])

    full = [jobs.result(f"{name}.choose-full-{i}") for i in range(len(protocol.full))]
    ours = jobs.result(f"{name}.choose-ours")
    chosen_full = best(full) if all(full) else None
    chosen_ours = None
    if ours:
        chosen_ours = {key: best(found)["candidate"] for key, found in ours.items()}
    return chosen_full, chosen_ours


# --- writing -------------------------------------------------------------------------------------


def write_report(jobs: Jobs, protocols: dict[str, Protocol]) -> None:
    """Mean and spread of every method, with bytes, and personal vectors against the full table."""
    lines = [
        "# Blended codes and personal vectors",
        "",
        "*Written by `python benchmarks/codes/run.py`. Settings chosen on validation data, for the",
        "full table with at least as many candidates (the chosen one is given); test figures, mean",
        "and standard deviation. The gain is that of personal vectors over the full table on the",
        "same test events, with a 95 % bootstrap interval over these. Book-Crossing likes: the",
        "full table's search was too narrow; a larger start gave about 0.72 elsewhere, so read",
        "that gain as about 0.01.*",
        "",
    ]
    found: dict[str, Any] = {}
    for name, protocol in protocols.items():
        results = [
            jobs.result(file.stem)
            for file in sorted(jobs.out.glob(f"{name}.*.json"))
            if ".choose-" not in file.name
        ]
        by_method: dict[str, list[dict[str, Any]]] = {}
        for result in results:
            for method, line in result.items():
                by_method.setdefault(method, []).append(line)
        full, ours = choice(jobs, name, protocol)
        found[name] = {"chosen full": full, "chosen ours": ours, "figures": by_method}
        lines += [
            f"## {protocol.title}",
            "",
            f"| method | {protocol.metric.upper()} | runs | table bytes | total bytes "
            "| bytes per entity | times smaller (total) |",
            "|---|---|---|---|---|---|---|",
        ]
        for method, some in by_method.items():
            figures = np.array([one["figure"] for one in some])
            sizes = {key: np.mean([one[key] for one in some]) for key in _SIZES}
            spread = f"{figures.mean():.4f} ± {figures.std(ddof=1):.4f}" if len(some) > 1 else ""
            lines.append(
                f"| {method} | {spread or f'{figures.mean():.4f}'} | {len(some)} "
                f"| {sizes['table_bytes']:,.0f} | {sizes['total_bytes']:,.0f} "
                f"| {sizes['bytes_per_entity']:.2f} | {sizes['times_smaller']:.1f} |"
            )
        gain = paired_gain(jobs.out, name, protocol)
        lines += ["", gain, "", f"Chosen: full {full}; ours {ours}.", ""]
    results_folder = ROOT / "docs" / "results"
    (results_folder / "codes.md").write_text("\n".join(lines), encoding="utf-8")
    (results_folder / "codes.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


_SIZES = ("table_bytes", "total_bytes", "bytes_per_entity", "times_smaller")


def paired_gain(out: Path, name: str, protocol: Protocol, num_draws: int = 200) -> str:
    """The gain of personal vectors over the full table, in words."""
    rng = np.random.default_rng(0)
    draws, gains = np.zeros(num_draws), []
    last = len(protocol.rows) - 1
    for seed in protocol.seeds:
        files = [out / f"{name}.full-{seed}.npz", out / f"{name}.ours-{last}-{seed}.npz"]
        if not all(file.exists() for file in files):
            return "No paired gain: runs are missing."
        (full, ours) = (np.load(file) for file in files)
        label, a, b = full["label"], ours["personal"], full["full"]
        gains.append(_gain(protocol.metric, label, a, b))
        for i in range(num_draws):
            some = rng.integers(len(label), size=len(label))
            draws[i] += _gain(protocol.metric, label[some], a[some], b[some]) / len(protocol.seeds)
    low, high = np.percentile(draws, (2.5, 97.5))
    unit = "AUC" if protocol.metric == "auc" else "of the full table's MSE"
    return (
        f"Gain of personal vectors over the full table: {np.mean(gains):.4f} {unit} "
        f"(95 % interval {low:.4f} to {high:.4f})."
    )


def _gain(metric: str, label: np.ndarray, ours: np.ndarray, full: np.ndarray) -> float:
    if metric == "auc":
        return float(roc_auc_score(label, ours) - roc_auc_score(label, full))
    return 1 - float(np.square(label - ours).mean() / np.square(label - full).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/codes"))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="+", choices=sorted(PROTOCOLS), default=list(PROTOCOLS))
    parser.add_argument("--report-only", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    protocols = {}
    for name in options.only:
        protocol = PROTOCOLS[name]
        if protocol.file is not None:
            if options.data is None or not (options.data / protocol.file).exists():
                print(f"{name} is left out: no {protocol.file} in --data", flush=True)
                continue
            source = {"data": {"source": str((options.data / protocol.file).resolve())}}
            protocol = replace(protocol, values=merged(protocol.values, source))
        protocols[name] = protocol
    jobs = Jobs(options.out, options.processes)
    if not options.report_only:
        jobs.run(
            {
                **{
                    f"{name}.choose-ours": (choose_ours, (protocol,))
                    for name, protocol in protocols.items()
                },
                **{
                    f"{name}.choose-full-{i}": (choose_full, (protocol, i))
                    for name, protocol in protocols.items()
                    for i in range(len(protocol.full))
                },
            }
        )
        final: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        for name, protocol in protocols.items():
            full, ours = choice(jobs, name, protocol)
            for seed in protocol.seeds:
                if ours:
                    for number in range(len(protocol.rows)):
                        job = f"{name}.ours-{number}-{seed}"
                        arguments = (protocol, seed, number, ours, options.out / f"{job}.npz")
                        final[job] = (final_ours, arguments)
                if full:
                    job = f"{name}.full-{seed}"
                    final[job] = (final_full, (protocol, seed, full, options.out / f"{job}.npz"))
                if ours and name == "ml-1m-likes":
                    final[f"{name}.auto-{seed}"] = (auto_count, (protocol, seed, ours))
        jobs.run(final)
    write_report(jobs, protocols)
    if jobs.failures:
        raise SystemExit(f"failed: {json.dumps(jobs.failures, indent=1)}")


if __name__ == "__main__":
    main()
