"""Methods that learn from a stream, side by side: progressive evaluation on public events.

    python -m benchmarks.online.baselines --out FOLDER --data FOLDER [--processes 2]
        [--data-sets NAME ...] [--methods NAME ...] [--batch-size 32] [--hindsight] [--report-only]

Every method predicts a batch before it learns it, and all have the same batches. Settings are
chosen from the method's grid on the first tenth of the stream alone: the best AUC over it, seed 0.
Then the whole stream runs once for each of three seeds, and all events after the first tenth count.
With --hindsight the whole grid runs over the whole stream, too: not a result, but what a luckier
choice would have given.
Jobs that are in `--out` already are kept, so a run that is stopped goes on. The table is written to
summary-SIZE.md there.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.jobs import Job, Jobs
from benchmarks.online.methods import METHODS, Settings
from benchmarks.online.streams import FIRST, read_events
from celrec.errors import LossError
from celrec.training.progressive import EventBatch, ProgressiveResult, progressive

SEEDS = (0, 1, 2)
TUNED_ON = 0.1
SLICES = tuple(f"{side}_seen_under_{limit}" for side in ("users", "items") for limit in (5, 20))


def tune(
    data_set: str, method: str, candidates: Sequence[Settings], batch_size: int, data: Path
) -> dict[str, Any]:
    """The AUC of all candidates over the first tenth of a stream, and the best of them."""
    events = read_events(data_set, data)
    beginning = events.slice(0, int(TUNED_ON * len(events)))
    tried = [
        attempt(method, settings, beginning, events, batch_size, after=0.0)
        for settings in candidates
    ]
    return {"chosen": max(tried, key=auc_of)["settings"], "tried": tried}


def attempt(
    method: str,
    settings: Settings,
    events: EventBatch,
    whole: EventBatch,
    batch_size: int,
    after: float,
) -> dict[str, Any]:
    """Figures of a setting with seed 0; an AUC of 0 where it fails."""
    try:
        result = run(method, settings, 0, events, whole, batch_size, after)
    except LossError as error:
        return {"settings": settings, "auc": 0.0, "failed": str(error)}
    return {"settings": settings, **result.overall}


def auc_of(tried: Mapping[str, Any]) -> float:
    return float(tried["auc"])


def score(
    data_set: str, method: str, settings: Settings, seed: int, batch_size: int, data: Path
) -> dict[str, Any]:
    """One pass over a whole stream."""
    events = read_events(data_set, data)
    result = run(method, settings, seed, events, events, batch_size, after=TUNED_ON)
    num_users, num_items = sizes(events)
    return {"num_users": num_users, "num_items": num_items, **result.as_dict()}


def look_back(
    data_set: str, method: str, candidates: Sequence[Settings], batch_size: int, data: Path
) -> dict[str, Any]:
    """The best settings of the whole stream, seed 0: what no choice beforehand can exceed."""
    events = read_events(data_set, data)
    tried = [
        attempt(method, settings, events, events, batch_size, after=TUNED_ON)
        for settings in candidates
    ]
    return max(tried, key=auc_of)


def run(
    method: str,
    settings: Settings,
    seed: int,
    events: EventBatch,
    whole: EventBatch,
    batch_size: int,
    after: float,
) -> ProgressiveResult:
    """Over `events`, with room for the entities of the whole stream."""
    torch.set_num_threads(1)
    learner = METHODS[method].make(*sizes(whole), settings, seed)
    return progressive(learner, events, batch_size=batch_size, after=after)


def sizes(events: EventBatch) -> tuple[int, int]:
    """Users and items of a stream."""
    return int(events.users.max()) + 1, int(events.items.max()) + 1


def summary(results: dict[tuple[str, str], list[dict[str, Any]]], batch_size: int) -> str:
    """Markdown: a table for each stream.

    results : by stream and method, of every seed
    """
    lines = [
        f"Batches of {batch_size}; mean ± standard deviation of the seeds. A setting with a star "
        "is at the edge of its grid: a better one may lie outside.",
        "",
    ]
    for data_set in dict.fromkeys(name for name, _ in results):
        of_set = {method: found for (name, method), found in results.items() if name == data_set}
        any_run = next(iter(of_set.values()))[0]
        lines += [
            f"## {data_set}",
            "",
            f"{any_run['num_events']:,} events, {any_run['num_users']:,} users, "
            f"{any_run['num_items']:,} items. AUC on the slices, with their events: "
            + ", ".join(f"{name} {any_run['slices'][name]['num_events']:,}" for name in SLICES)
            + ".",
            "",
            "| method | AUC | in hindsight | log loss | user < 5 | user < 20 | item < 5 "
            "| item < 20 | table bytes | state bytes | settings | commit |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for method, found in of_set.items():
            slices = [figure([run["slices"][name]["auc"] for run in found]) for name in SLICES]
            hindsight = found[0].get("in_hindsight")
            chosen = settings_in_words(found[0]["settings"], METHODS[method].grid)
            cells = [
                METHODS[method].title,
                figure([run["overall"]["auc"] for run in found]),
                "-" if hindsight is None else f"{hindsight['auc']:.4f}",
                figure([run["overall"]["log_loss"] for run in found]),
                *slices,
                f"{found[0]['table_bytes']:,}",
                f"{found[0]['state_bytes']:,}",
                chosen,
                found[0].get("commit", "-"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def settings_in_words(settings: Settings, grid: Sequence[Settings]) -> str:
    """With a star at the largest and smallest of several values; 0 is no edge.

    >>> settings_in_words({"lr": 0.3, "l2": 0}, [{"lr": 0.1, "l2": 0}, {"lr": 0.3, "l2": 1}])
    'lr 0.3*, l2 0'
    """

    def word(name: str, value: float) -> str:
        values = {one[name] for one in grid}
        is_edge = value and len(values) > 1 and value in (min(values), max(values))
        return f"{name} {value}{'*' if is_edge else ''}"

    return ", ".join(word(name, value) for name, value in settings.items())


def figure(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "undefined"
    return f"{np.mean(known):.4f}" + (f" ± {np.std(known, ddof=1):.4f}" if len(known) > 1 else "")


def results_of(
    jobs: Jobs,
    pairs: Sequence[tuple[str, str]],
    size: int,
    data: Path,
    *,
    is_run: bool,
    with_hindsight: bool = False,
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """What every seed found, by stream and method.

    size : of batches
    is_run : whether jobs without a result run; else what is there is found
    with_hindsight : whether these look back, too
    """
    take = jobs.run if is_run else jobs.kept
    tuned = take(
        {
            f"{name}.{method}-{size}.tune": Job(
                tune, (name, method, METHODS[method].grid, size), (data,)
            )
            for name, method in pairs
        }
    )
    chosen = {
        (name, method): tuned[key]["chosen"]
        for name, method in pairs
        if (key := f"{name}.{method}-{size}.tune") in tuned
    }
    found = take(
        {
            f"{name}.{method}-{size}.{seed}": Job(
                score, (name, method, settings, seed, size), (data,)
            )
            for (name, method), settings in chosen.items()
            for seed in SEEDS
        }
    )
    hindsight = (jobs.run if is_run and with_hindsight else jobs.kept)(
        {
            f"{name}.{method}-{size}.best": Job(
                look_back, (name, method, METHODS[method].grid, size), (data,)
            )
            for name, method in chosen
        }
    )
    results = {}
    for (name, method), settings in chosen.items():
        keys = [f"{name}.{method}-{size}.{seed}" for seed in SEEDS]
        keys = [key for key in keys if key in found]
        more = {
            "settings": settings,
            "in_hindsight": hindsight.get(f"{name}.{method}-{size}.best"),
            "commit": " ".join(jobs.commits(keys)),
        }
        if keys:
            results[name, method] = [found[key] | more for key in keys]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/online"))
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--data-sets", nargs="+", choices=list(FIRST), default=list(FIRST))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--hindsight", action="store_true", help="whole grids on whole streams too")
    parser.add_argument("--report-only", action="store_true", help="sum up what is there")
    options = parser.parse_args()
    size = options.batch_size
    jobs = Jobs(options.out, options.processes)
    pairs = [(data_set, method) for data_set in options.data_sets for method in options.methods]
    results = results_of(
        jobs,
        pairs,
        size,
        options.data,
        is_run=not options.report_only,
        with_hindsight=options.hindsight,
    )
    text = summary(results, size)
    (options.out / f"summary-{size}.md").write_text(text, encoding="utf-8")
    print(text)
    jobs.check()


if __name__ == "__main__":
    main()
