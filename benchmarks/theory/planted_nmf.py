"""Does nonnegative factorization with clustered tables find what was planted?

    python -m benchmarks.theory.planted_nmf [--out FOLDER] [--processes N] [--only SERIES...]
        [--report-only]

Planted matrices (celrec.data.synthetic.planted_nmf) of known rank, clusters and noise are factored
with `max_clusters="auto"`, over sizes, noise levels, shares of entries seen, cluster counts and
seeds; and once more with fixed cluster counts. Each job compares the tables with the truth. Results
that are in `--out` already are kept, so that a run can be stopped and goes on; delete the folder to
start anew. The last step writes docs/results/planted-nmf.md, .json and its plots.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.jobs import Job, Jobs
from benchmarks.theory.planted_page import write_page
from benchmarks.theory.planted_recovery import SERIES, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/planted-nmf"))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="+", choices=list(SERIES), default=list(SERIES))
    parser.add_argument("--report-only", action="store_true", help="write what results there are")
    options = parser.parse_args()
    settings = {one for name in options.only for one in SERIES[name].all_settings()}
    # A first look at every series soon; what takes longest or matters least comes last.
    search = set(SERIES["search"].all_settings())
    order = sorted(settings, key=lambda one: (one.entities > 1000, one in search, one.seed))
    work = {setting.name: Job(measure, (setting,)) for setting in order}
    jobs = Jobs(options.out, options.processes)
    write_page(jobs.kept(work) if options.report_only else jobs.run(work))
    jobs.check()


if __name__ == "__main__":
    main()
