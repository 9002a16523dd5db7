"""The figures of the README: clustered against full tables on MovieLens-1M and -100k.

    python -m benchmarks.first_run [--out runs/first-run] [--processes 2] [--tune]

1. `--tune`: picks settings on validation data (each user's third-last event), as many candidates
   for the full table as for the clustered ones, two seeds each, and writes them to first_run.toml.
2. Trains every row of the tables with seeds 0, 1 and 2 on all but the test data.
3. Writes docs/results/first-run.md, docs/results/first-run.json and two blocks of the README.

Runs that are in `--out` already are kept: delete the folder to start anew.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import textwrap
import tomllib
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import tomli_w
import torch

from benchmarks.jobs import begin_worker
from benchmarks.readme import replace_block
from celrec.experiments.config import RunConfig, merged
from celrec.experiments.run import SavedRun, resume_run, train_run
from celrec.history import read_history

ROOT = Path(__file__).parents[1]
SETTINGS = Path(__file__).with_suffix(".toml")
SEEDS = (0, 1, 2)
TUNING_SEEDS = (0, 1)
HARD = {"encoding": {"blend": 1}}  # one cluster each; blends have a benchmark of their own
GMF = {"data": {"source": "ml-1m"}, "task": {"kind": "binary"}}
RATINGS = {"data": {"source": "ml-100k"}, "task": {"kind": "rating"}}

# AUC of the best other method with as many rows, and of a full table: result files of the CCE
# project (Tsang & Ahle, "Clustering the sketch", NeurIPS 2023), mean of three seeds. Its budget
# leaves index tables out.
BEST_PEER = {8: 0.626, 32: 0.728, 64: 0.787}
PUBLISHED_FULL = 0.874

# Candidates of --tune, eight for each kind. Keys are those of a run's config.toml. Larger batches
# are not among the clustered ones: rounds would then take more than two fifths of the time.
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "clustered": [
        {"training": training}
        for training in (
            {},
            {"learning_rate": 2e-3},
            {"learning_rate": 4e-3},
            {"weight_decay": 0.05},
            {"l2": 0.001},
            {"batch_size": 512, "learning_rate": 2e-3},
            {"epochs": 40},
            {"epochs": 40, "weight_decay": 0.05},
        )
    ],
    "full": [
        {"training": {"epochs": epochs, "l2": l2, "learning_rate": rate, "weight_decay": 0.0}}
        for epochs in (15, 30)
        for l2, rate in ((0.003, 3e-3), (0.01, 1e-3), (0.01, 3e-3), (0.03, 3e-3))
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/first-run"))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--tune-only", action="store_true")
    options = parser.parse_args()
    with ProcessPoolExecutor(
        options.processes,
        multiprocessing.get_context("spawn"),
        initializer=begin_worker,
    ) as pool:
        if options.tune or options.tune_only:
            tune(pool)
        if options.tune_only:
            return
        settings = tomllib.loads(SETTINGS.read_text(encoding="utf-8"))
        gmf_runs = {
            name: [gmf_values(settings, rows, seed) for seed in SEEDS]
            for name, rows in (("8 rows", 8), ("32 rows", 32), ("64 rows", 64), ("full", None))
        }
        ratings = [
            merged(
                merged(RATINGS, HARD),
                {
                    "embedding": {"kind": "clustered", "user_rows": 32, "item_rows": 32},
                    "partition": {"merge_validation": True, "seed": partition},
                    "seed": partition,
                },
            )
            for partition in SEEDS
        ]
        everything = {**gmf_runs, "ratings": ratings}
        jobs = {
            name: [
                pool.submit(figures, values, options.out / f"{name.replace(' ', '-')}-{i}")
                for i, values in enumerate(runs)
            ]
            for name, runs in everything.items()
        }
        found = {name: [job.result() for job in submitted] for name, submitted in jobs.items()}
    write(found, settings)


def gmf_values(settings: dict[str, Any], rows: int | None, seed: int) -> dict[str, Any]:
    """A run of the GMF protocol on all but the test data."""
    kind = "full" if rows is None else "clustered"
    chosen = merged(GMF, settings[kind])
    if rows is not None:
        chosen = merged(merged(chosen, HARD), {"embedding": {"user_rows": rows, "item_rows": rows}})
    return merged(
        chosen,
        {"embedding": {"kind": kind}, "partition": {"merge_validation": True}, "seed": seed},
    )


def figures(values: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """Train, or read, one run; the share of rounds is of the run's wall time."""
    if (run_dir / "config.toml").exists():
        metrics = resume_run(run_dir)
    else:
        metrics = train_run(RunConfig.from_values(values), run_dir, overwrite=True)
    timing = read_history(run_dir / "timing.jsonl")
    rounds = sum(line["round_seconds"] for line in timing)
    run = SavedRun.open(run_dir)
    return metrics | {
        "round_share": rounds / metrics["seconds"],
        "fingerprint": run.facts["data"]["fingerprint"],
    }


# --- choosing ------------------------------------------------------------------------------------


def tune(pool: ProcessPoolExecutor) -> None:
    """Pick the candidate with the best mean validation AUC after its last epoch."""
    settings = {}
    for kind, candidates in CANDIDATES.items():
        rows = {} if kind == "full" else {"user_rows": 32, "item_rows": 32}
        base = GMF if kind == "full" else merged(GMF, HARD)
        jobs = [
            [
                pool.submit(
                    validation_auc,
                    merged(merged(base, {"embedding": {"kind": kind, **rows}, "seed": seed}), one),
                )
                for seed in TUNING_SEEDS
            ]
            for one in candidates
        ]
        means = [mean(job.result() for job in seeds) for seeds in jobs]
        for one, auc in zip(candidates, means, strict=True):
            print(f"{kind}: validation AUC {auc:.4f} with {one}", flush=True)
        settings[kind] = candidates[max(range(len(means)), key=means.__getitem__)]
    heading = "# Chosen on validation data by `python -m benchmarks.first_run --tune`.\n"
    SETTINGS.write_text(heading + tomli_w.dumps(settings), encoding="utf-8")


def validation_auc(values: dict[str, Any]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        train_run(RunConfig.from_values(values), Path(folder) / "run")
        history = read_history(Path(folder) / "run" / "history.jsonl")
    return float(history[-1]["validation"]["auc"])


# --- writing -------------------------------------------------------------------------------------


def write(found: dict[str, list[dict[str, Any]]], settings: dict[str, Any]) -> None:
    gmf = {name: runs for name, runs in found.items() if name != "ratings"}
    table = [
        "| tables | AUC | best published with as many rows | table bytes | total bytes "
        "| times smaller (total) |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in gmf.items():
        memory = runs[0]["memory"]
        rows = None if name == "full" else int(name.split()[0])
        peer = f"{PUBLISHED_FULL} (full)" if rows is None else f"{BEST_PEER[rows]}"
        shown = f"clustered, {name} each" if rows else "full, 6,040 + 3,706 rows"
        table.append(
            f"| {shown} | **{spread(r['auc'] for r in runs)}** | {peer} "
            f"| {memory['table_bytes']:,} | {memory['total_bytes']:,} "
            f"| {memory['times_smaller']:.0f} |"
        )
    mse = spread(run["mse"] for run in found["ratings"])
    memory = found["ratings"][0]["memory"]
    share = mean(run["round_share"] for run in gmf["64 rows"])
    facts = (
        f"Seeds {', '.join(map(str, SEEDS))}; data fingerprint "
        f"{gmf['full'][0]['fingerprint'][:12]}; torch {torch.__version__}, {platform.machine()}, "
        "one thread."
    )
    lines = [
        *table,
        "",
        textwrap.fill(
            "MovieLens-1M, dot product of width 32, each user's last two events predicted; mean "
            "and standard deviation of three seeds; settings chosen on validation data, as many "
            "candidates for the full table as for the clustered ones. The published figures leave "
            "index tables out of their bytes.",
            100,
        ),
    ]
    replace_block("figures", "\n".join(lines))
    rating = (
        f"MovieLens-100k ratings, biased matrix factorization, 32 + 32 rows, random 80/20 "
        f"partitions 0, 1, 2: test MSE **{mse}** with {memory['table_bytes']:,} table bytes and "
        f"{memory['total_bytes']:,} total bytes."
    )
    commands = "\n".join(
        ["```", "celrec data fetch ml-1m"]
        + [
            f"for seed in 0 1 2; do celrec train ml-1m --task binary {words(settings[kind])}"
            f"{extra} --merge-validation --seed $seed --out runs/{name}-$seed; done\n"
            f"celrec evaluate runs/{name}-* --json"
            for kind, extra, name in [
                *(("clustered", f"--rows {rows} --blend 1", f"rows{rows}") for rows in BEST_PEER),
                ("full", "--embedding full", "full"),
            ]
        ]
        + [
            "for seed in 0 1 2; do celrec train ml-100k --task rating --rows 32 --blend 1 "
            "--merge-validation --seed $seed --out runs/ratings-$seed; done",
            "celrec evaluate runs/ratings-* --json",
            "```",
        ]
    )
    rounds = f"Cluster rounds took {share:.0%} of the wall time at 64 rows."
    how = (
        "These commands give the figures, one line each; `python -m benchmarks.first_run` runs "
        "them all and writes this section."
    )
    paragraphs = [textwrap.fill(text, 100) for text in (f"{rating} {rounds}", f"{facts} {how}")]
    replace_block("benchmark", "\n\n".join([*paragraphs, commands]))
    page = "\n".join(
        [
            "# First run",
            "",
            "*Written by `python -m benchmarks.first_run`.*",
            "",
            *lines,
            "",
            textwrap.fill(rating, 100),
            "",
            rounds,
            "",
            textwrap.fill(facts, 100),
            "",
        ]
    )
    results = ROOT / "docs" / "results"
    (results / "first-run.md").write_text(page, encoding="utf-8")
    (results / "first-run.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def words(settings: dict[str, Any]) -> str:
    """Settings as options of `celrec train`."""
    return "".join(
        f"--{key.replace('_', '-')} {value} " for key, value in settings.get("training", {}).items()
    )


def spread(values: Iterable[float]) -> str:
    values = list(values)
    return f"{mean(values):.4f} ± {stdev(values):.4f}"


if __name__ == "__main__":
    main()
