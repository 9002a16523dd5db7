"""Does nonnegative factorization with clustered tables find what was planted?

    python benchmarks/theory/planted_nmf.py [--out FOLDER] [--processes N] [--only SERIES...]
        [--report-only]

Planted matrices (celrec.data.synthetic.planted_nmf) of known rank, clusters and noise are factored
with `max_clusters="auto"`, over sizes, noise levels, shares of entries seen, cluster counts and
seeds; and once more with fixed cluster counts. Each job compares the tables with the truth. Jobs
that are in `--out` already are kept, so that a run can be stopped and goes on; delete the folder to
start anew. The last step writes docs/results/planted-nmf.md, .json and its plots.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from planted_page import write_page
from planted_recovery import SERIES, Result, Setting, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/planted-nmf"))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="+", choices=list(SERIES), default=list(SERIES))
    parser.add_argument("--report-only", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.report_only:
        settings = [one for name in options.only for one in SERIES[name].all_settings()]
        # A first look at every series soon; what takes longest or matters least comes last.
        search = set(SERIES["search"].all_settings())
        settings.sort(key=lambda one: (one.entities > 1000, one in search, one.seed))
        run(settings, options.out, options.processes)
    write_page(results_in(options.out))


def run(settings: Iterable[Setting], out: Path, processes: int) -> None:
    """Measure the settings that have no result in `out` yet, one process and thread each."""
    waiting = {setting.name: setting for setting in settings}
    waiting = {name: one for name, one in waiting.items() if not (out / f"{name}.json").exists()}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        jobs = {pool.submit(measure, setting): name for name, setting in waiting.items()}
        for done in as_completed(jobs):
            result, name = done.result(), jobs[done]
            partial = out / f"{name}.partial"
            partial.write_text(json.dumps(result, indent=1), encoding="utf-8")
            partial.replace(out / f"{name}.json")
            print(
                f"{name}: found {result['found']}, ARI {np.round(result['ari'], 4)}, "
                f"{result['seconds']:.0f} s",
                flush=True,
            )


def results_in(out: Path) -> dict[str, Result]:
    """All results, by the name of their setting."""
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(out.glob("*.json"))
    }


if __name__ == "__main__":
    main()
