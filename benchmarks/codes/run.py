"""The figures of blended codes and personal vectors, against tuned full tables.

    python -m benchmarks.codes.run [--data FOLDER] [--out FOLDER] [--processes N] [--only NAME...]

For every protocol: settings are chosen on the validation data of its first partition, for the full
table from as many candidates as for our codes or more; then every partition or seed is trained on
all but its test data, and scored once. Results that are in `--out` already are kept, so that a run
can be stopped and goes on. The last step writes docs/results/codes.md, codes.json and two plots.

`--data` is a folder with ciao_dvd.parquet and book_crossing.parquet (columns user, item, rating,
and timestamp where there is one); without it their protocols are left out. MovieLens is fetched.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.codes.protocols import (
    LOOSENESS,
    PROTOCOLS,
    TEMPERATURES,
    Protocol,
    Rows,
    Setting,
    budget_name,
    candidate_name,
)
from benchmarks.codes.training import blend, personalize, trained_clusters, trained_full
from benchmarks.codes.write import Block, write_results
from benchmarks.jobs import Job, Jobs
from celrec.experiments.config import merged

# --- jobs ----------------------------------------------------------------------------------------


def choose_full(setting: Setting, candidate: dict[str, Any], seed: int) -> dict[str, Any]:
    """Score one candidate for the full table on validation data."""
    _, figures = trained_full(setting, candidate, seed, is_final=False)
    best = np.argmin(figures) if setting.metric == "mse" else np.argmax(figures)
    return {"candidate": candidate, "figure": figures[best], "epochs": int(best) + 1}


def choose_ours(setting: Setting, rows: Rows, seed: int) -> dict[str, Any]:
    """Score temperatures, and settings of personal vectors, on validation data."""
    session = trained_clusters(setting, rows, seed, is_final=False)
    hard = session.state()
    found: dict[str, list[dict[str, Any]]] = {"temperature": [], "personal": []}
    for temperature in TEMPERATURES:
        blend(session, 4, temperature)
        found["temperature"].append({"candidate": temperature, "figure": session.figure()})
    temperature = best_of(setting.metric, found["temperature"])["candidate"]
    for looseness in LOOSENESS:
        candidate = {"looseness": looseness}
        session.model.load_state_dict(hard)
        personalize(session, temperature, candidate, None)
        found["personal"].append({"candidate": candidate, "figure": session.figure()})
    return found


def final_full(setting: Setting, seed: int, chosen: dict[str, Any], out: Path) -> dict[str, Any]:
    began = perf_counter()
    candidate = merged(chosen["candidate"], {"training": {"epochs": chosen["epochs"]}})
    session, _ = trained_full(setting, candidate, seed, is_final=True)
    line = session.line(perf_counter() - began)
    np.savez(out, full=session.prediction().astype(np.float32), label=session.scored.label)
    return {"full": line}


def final_ours(
    setting: Setting,
    rows: Rows,
    blends: tuple[int, ...],
    budgets: tuple[float | None, ...],
    seed: int,
    chosen: dict[str, Any],
    out: Path,
) -> dict[str, Any]:
    """Hard codes, blends, and personal vectors for each budget; None is one for all."""
    began = perf_counter()
    session = trained_clusters(setting, rows, seed, is_final=True)
    trained = perf_counter() - began
    hard = session.state()
    name = "+".join(map(str, dict.fromkeys(rows)))
    lines = {f"hard {name}": session.line(trained)}
    predictions = {}
    for m in blends:
        began = perf_counter()
        blend(session, m, chosen["temperature"])
        lines[f"blend {name}, m = {m}"] = session.line(trained + perf_counter() - began)
    for budget in budgets:
        session.model.load_state_dict(hard)
        began = perf_counter()
        personalize(session, chosen["temperature"], chosen["personal"], budget)
        lines[budget_name(name, budget)] = session.line(trained + perf_counter() - began)
        predictions["personal"] = session.prediction().astype(np.float32)
    np.savez(out, **predictions, label=session.scored.label)
    return lines


def best_of(metric: str, candidates: list[dict[str, Any]]) -> dict[str, Any]:
    sign = 1 if metric == "mse" else -1
    return min(candidates, key=lambda one: sign * one["figure"])


def choosing_jobs(name: str, protocol: Protocol) -> dict[str, Job]:
    setting, seed = protocol.setting, protocol.seeds[0]
    jobs = {f"{name}.choose-ours": Job(choose_ours, (setting, protocol.rows[0], seed))}
    for candidate in protocol.full:
        job = Job(choose_full, (setting, candidate, seed))
        jobs[f"{name}.choose-full-{candidate_name(candidate)}"] = job
    return jobs


def final_jobs(
    name: str, protocol: Protocol, full: dict[str, Any], ours: dict[str, Any], out: Path
) -> dict[str, Job]:
    setting, jobs = protocol.setting, {}
    for seed in protocol.seeds:
        for rows in protocol.rows:
            job = f"{name}.ours-{rows[0]}-{rows[1]}-{seed}"
            budgets = (*protocol.budgets, None) if rows == protocol.rows[0] else ()
            arguments = (setting, rows, protocol.blends, budgets, seed, ours)
            jobs[job] = Job(final_ours, arguments, (out / f"{job}.npz",))
        job = f"{name}.full-{seed}"
        jobs[job] = Job(final_full, (setting, seed, full), (out / f"{job}.npz",))
    return jobs


def chosen(protocol: Protocol, results: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The best candidates by the results of `choosing_jobs`: of the full table, and ours."""
    ours = next(result for name, result in results.items() if name.endswith("choose-ours"))
    full = [result for name, result in results.items() if not name.endswith("choose-ours")]
    metric = protocol.setting.metric
    return best_of(metric, full), {
        key: best_of(metric, candidates)["candidate"] for key, candidates in ours.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/codes"))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="+", choices=sorted(PROTOCOLS), default=list(PROTOCOLS))
    parser.add_argument("--report-only", action="store_true", help="write what results there are")
    options = parser.parse_args()
    jobs = Jobs(options.out, options.processes)
    get = jobs.kept if options.report_only else jobs.run
    blocks: list[Block] = []
    for name in options.only:
        protocol = PROTOCOLS[name]
        if protocol.file is not None:
            if options.data is None or not (options.data / protocol.file).exists():
                print(f"{name} is left out: no {protocol.file} in --data", flush=True)
                continue
            protocol = protocol.reading(options.data)
        choosing = choosing_jobs(name, protocol)
        choices = get(choosing)
        if len(choices) < len(choosing):
            print(f"{name} is left out: candidates are missing", flush=True)
            continue
        full, ours = chosen(protocol, choices)
        final = final_jobs(name, protocol, full, ours, options.out)
        results = get(final)
        blocks.append(Block(name, protocol, choices, full, ours, results, jobs.commits(final)))
    write_results(blocks, options.out)
    jobs.check()


if __name__ == "__main__":
    main()
