"""All figures of docs/results/online.md, one after the other.

    python -m benchmarks.online.run --data FOLDER [--out FOLDER] [--processes 2]

Methods on streams, kept in `--out` job by job, so that a run that is stopped goes on; then costs,
soak and kills, each in a process that nothing runs beside; then the page. About three hours on two
cores. Costs need 6 GB of memory, kills a redis-server.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

EVERYWHERE = ("ours_10", "means", "full_adam", "full_adagrad", "river_mf")

COMPARED = {
    "ml_100k": (
        *EVERYWHERE,
        "ours_5",
        "ours_20",
        "hashed_10",
        "hashed_30",
        "hashed_100",
        "river_fm",
    ),
    "ml_1m": (*EVERYWHERE, "ours_5", "ours_20", "hashed_10", "hashed_30"),
    "globo_ctr": (*EVERYWHERE, "hashed_100"),
    "globo_ctr_600k": (*EVERYWHERE, "hashed_100"),
}
"""Methods of each stream: hashed tables of too few rows say nothing, and river's FM is slow."""

IN_HINDSIGHT = ("ml_100k", "ml_1m")


def run(program: str, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", f"benchmarks.online.{program}", *map(str, arguments)]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--out", type=Path, default=Path("runs/online"))
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    where = ("--out", options.out)
    streams = (*where, "--data", options.data, "--processes", str(options.processes))
    for data_set, methods in COMPARED.items():
        run("baselines", *streams, "--data-sets", data_set, "--methods", *methods)
    run(
        "baselines", *streams, "--data-sets", *IN_HINDSIGHT, "--methods", *EVERYWHERE, "--hindsight"
    )
    large = ("--batch-size", "256", "--data-sets", "ml_100k", "ml_1m", "--methods", "ours_10")
    run("baselines", *streams, *large)
    run("costs", *where)
    run("soak", *where)
    for source in ("file", "redis"):
        run("kills", *where, "--source", source)
    run("write", "--runs", options.out, "--data", options.data)


if __name__ == "__main__":
    main()
