"""Writes docs/results/online.md: CEL-Lite on streams, what it costs, and how it lasts.

    python -m benchmarks.online.baselines --out FOLDER --data FOLDER --hindsight
    python -m benchmarks.online.baselines --out FOLDER --data FOLDER --batch-size 256 \\
        --methods ours_10 --data-sets ml_100k ml_1m
    python -m benchmarks.online.costs --out FOLDER
    python -m benchmarks.online.soak --out FOLDER
    python -m benchmarks.online.write --runs FOLDER --data FOLDER
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.jobs import ROOT, Jobs, current_commit
from benchmarks.online.baselines import figure, results_of, summary
from benchmarks.online.methods import METHODS
from benchmarks.online.streams import FIRST
from benchmarks.plotting import COLOURS, QUIET, label, new_figure, save

PAGE = ROOT / "docs/results/online.md"
SOAK_PLOT = PAGE.with_name("online-soak.svg")
OURS = "ours_10"

TEXT = """# CEL-Lite on streams

*Written by `python -m benchmarks.online.write`, commit {commit}.*

Every method predicts a batch of events, then learns it. Counted are all events after the first
tenth; AUC is pooled over them. Settings were chosen from a grid on the first tenth alone, then
three seeds ran over all. "In hindsight" is the best setting of the grid over the whole stream,
seed 0: not a result, but how far the choice was from the best. "Seen < 5": events whose user, or
item, had fewer than five events before.

*State bytes* are everything a method keeps but the map of ids: rows, codes, optimizer. CEL-Lite
gets 1/5, 1/10 and 1/20 of what full tables with biases and SparseAdam keep. *Table bytes* are its
rows. River's bytes are those of its numbers, without what Python needs around them. Labels 0 of
globo_ctr are constructed: two articles of the hour before that were not clicked. All methods see
users, items and labels, nothing else.

How CEL-Lite learns, and the range of its grid, were developed on MovieLens-100k, MovieLens-1M and
the first 600,000 events of globo_ctr, whole streams among them; the grids of the others were set
from first tenths.

{short}

{progressive}

{large_batches}

{costs}

{soak}
"""


def in_short(results: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """How far ours is ahead of the best other method."""
    lines = [
        "How far CEL-Lite with 1/10 of the bytes is ahead of the best other method:",
        "",
        "| stream | AUC | best other in hindsight | user seen < 5 | item seen < 5 |",
        "|---|---|---|---|---|",
    ]
    for data_set in dict.fromkeys(name for name, _ in results):
        if (data_set, OURS) not in results:
            continue
        others = {
            m: found for (d, m), found in results.items() if d == data_set and "ours" not in m
        }
        own = results[data_set, OURS]
        cells = [data_set, gap(own, others, None), gap_in_hindsight(own, others)]
        cells += [gap(own, others, f"{side}_seen_under_5") for side in ("users", "items")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def auc_of(found: list[dict[str, Any]], part: str | None) -> float:
    return float(
        np.mean([(run["overall"] if part is None else run["slices"][part])["auc"] for run in found])
    )


def gap(
    own: list[dict[str, Any]], others: dict[str, list[dict[str, Any]]], part: str | None
) -> str:
    best = max(others, key=lambda method: auc_of(others[method], part))
    gain = auc_of(own, part) - auc_of(others[best], part)
    return f"{gain:+.4f} ({METHODS[best].title})"


def gap_in_hindsight(own: list[dict[str, Any]], others: dict[str, list[dict[str, Any]]]) -> str:
    known = {m: f[0]["in_hindsight"]["auc"] for m, f in others.items() if f[0]["in_hindsight"]}
    if not known:
        return "-"
    best = max(known, key=lambda method: known[method])
    return f"{auc_of(own, None) - known[best]:+.4f} ({METHODS[best].title})"


def in_large_batches(results: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    if not results:
        return ""
    lines = [
        "## Batches of 256",
        "",
        "One thread, ids mapped already. Fewer steps, and predictions up to 256 events old:",
        "",
        "| stream | AUC | events/s |",
        "|---|---|---|",
    ]
    for (data_set, _), found in results.items():
        auc = figure([run["overall"]["auc"] for run in found])
        speed = min(run["events_per_second"] for run in found)
        lines.append(f"| {data_set} | {auc} | {speed:,.0f} (the slowest seed) |")
    return "\n".join(lines)


def costs_in_words(found: list[dict[str, Any]]) -> str:
    lines = [
        "## What an event costs",
        "",
        "Batches of 256, one thread, maps of ids included: raw ids in, predicted and learned.",
        "Ids were admitted in bulk first, timed apart. A full table with SparseAdam gets entity",
        "numbers, no ids. *Resident*: all memory of the process, torch and Python among it.",
        "",
        "| method | entities | rows | events/s | to admit all ids | tables and codes | map of ids "
        "| resident |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in found:
        is_ours = run["method"] == "ours"
        cells = [
            "CEL-Lite" if is_ours else "full table",
            f"{run['entities']:,}",
            f"{run['rows']}" if is_ours else "-",
            f"{run['events_per_second']:,.0f}",
            f"{run['seconds_to_admit']:,.0f} s" if is_ours else "-",
            in_gb(run["bytes"]),
            in_gb(run["map_bytes"]) if is_ours else "-",
            in_gb(run["resident_bytes"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def in_gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3f} GB"


def soak_in_words(found: dict[str, Any]) -> str:
    parts = found["parts"]
    draw_soak(parts)
    tenth = max(1, len(parts) // 10)
    rows = []
    for name, some in (("second tenth", parts[tenth : 2 * tenth]), ("last tenth", parts[-tenth:])):
        mean = {k: np.mean([p[k] for p in some]) for k in ("auc", "possible_auc")}
        rows.append(
            f"| {name} | {mean['auc']:.4f} | {mean['possible_auc']:.4f} "
            f"| {np.mean([p['events_per_second'] for p in some]):,.0f} "
            f"| {max(p['resident_bytes'] for p in some) / 1e6:,.1f} MB |"
        )
    last = parts[-1]
    return "\n".join(
        [
            "## How it lasts",
            "",
            f"{last['events']:,} synthetic events that drift, {last['users_so_far']:,} users that "
            f"come and go, {found['max_bytes'] / 1e6:.0f} MB for tables and codes: room for "
            f"{last['entities']['user']:,} users. Batches of 256, one thread, everything of "
            "`celrec stream` but reading. `python -m benchmarks.online.soak` says how events are "
            "made.",
            "",
            "| events | AUC | AUC of the hidden odds | events/s | resident |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"![AUC, throughput and memory over the stream]({SOAK_PLOT.name})",
        ]
    )


def draw_soak(parts: list[dict[str, Any]]) -> None:
    millions = [part["events"] / 1e6 for part in parts]
    figure_, axes = new_figure(3, width=7.2, height=2.4)
    lines = (
        ("AUC", [p["auc"] for p in parts]),
        ("events a second", [p["events_per_second"] for p in parts]),
        ("resident MB", [p["resident_bytes"] / 1e6 for p in parts]),
    )
    for axis, (title, values) in zip(axes, lines, strict=True):
        axis.plot(millions, values, color=COLOURS["clustered"])
        axis.set_title(title)
        axis.set_xlabel("million events")
        if title != "AUC":
            axis.set_ylim(bottom=0)
    axes[0].plot(millions, [p["possible_auc"] for p in parts], color=QUIET, linestyle=":")
    label(axes[0], millions[-1], parts[-1]["possible_auc"], "hidden odds", QUIET)
    save(figure_, SOAK_PLOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/online"))
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    options = parser.parse_args()
    jobs = Jobs(options.runs, 1)
    pairs = [(data_set, method) for data_set in FIRST for method in METHODS]
    small = results_of(pairs, 32, options.data, jobs.kept)
    large = results_of([(d, OURS) for d in FIRST], 256, options.data, jobs.kept)
    parts = {}
    for name, words in (("costs", costs_in_words), ("soak", soak_in_words)):
        file = options.runs / f"{name}.json"
        parts[name] = words(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else ""
    text = TEXT.format(
        commit=current_commit(),
        short=in_short(small),
        progressive=summary(small, 32),
        large_batches=in_large_batches(large),
        **parts,
    )
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    PAGE.write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
