"""Writes docs/results/online.md: CEL-Lite on streams, what it costs, and how it lasts.

A block of the README, too.

    python -m benchmarks.online.write --runs FOLDER --data FOLDER

What the folder has is put into docs/results/online.json first, in place of what that had of the
same runs; the page and its plots show all that is there, with the commit of each. So a part can be
run again alone. `python -m benchmarks.online.run` makes the folder.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.jobs import ROOT, Jobs
from benchmarks.online.baselines import figure, results_of, summary
from benchmarks.online.methods import METHODS
from benchmarks.online.streams import FIRST
from benchmarks.plotting import COLOURS, QUIET, label, new_figure, save
from benchmarks.readme import replace_block

PAGE = ROOT / "docs/results/online.md"
FIGURES = PAGE.with_suffix(".json")
SOAK_PLOT = PAGE.with_name("online-soak.svg")
PROGRESS_PLOT = PAGE.with_name("online-progress.svg")
OURS = "ours_10"
BESIDE = "full_adagrad"
DRAWN = {
    OURS: ("CEL-Lite, 1/10", COLOURS["clustered"]),
    BESIDE: ("full table + biases, Adagrad", COLOURS["full"]),
    "river_mf": ("river BiasedMF", COLOURS["hashed"]),
    "means": ("running means", COLOURS["truth"]),
}

Runs = list[dict[str, Any]]
Results = dict[tuple[str, str], Runs]
"""What every seed found, by stream and method."""

TEXT = """# CEL-Lite on streams

*Written by `python -m benchmarks.online.write`. `python -m benchmarks.online.run` measures it all.*

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

![AUC in each twentieth of a stream, above that of the full table]({progress_plot})

{progressive}

{large_batches}

{costs}

{soak}

{kills}
"""


def in_short(results: Results) -> str:
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


def for_readme(results: Results) -> str:
    """Ours beside the better full table of each stream."""
    words = []
    for data_set in FIRST:
        own = results.get((data_set, OURS))
        full = [results.get((data_set, method)) for method in ("full_adam", "full_adagrad")]
        known = [found for found in full if found]
        if own is None or not known or data_set.endswith("_600k"):
            continue
        best = max(known, key=lambda found: auc_of(found, None))
        words.append(
            f"{data_set.replace('_', '-')} {auc_of(own, None):.4f} ({auc_of(best, None):.4f}), on "
            f"users seen fewer than five times {auc_of(own, 'users_seen_under_5'):.4f} "
            f"({auc_of(best, 'users_seen_under_5'):.4f})"
        )
    text = (
        "From streams it learns in a tenth of the bytes that a full table with biases and "
        "SparseAdam keeps, optimizer and codes included. AUC of events that are predicted, then "
        "learned, in brackets that of the better tuned full table (SparseAdam or Adagrad): "
        f"{'; '.join(words)}. [All figures](docs/results/online.md)."
    )
    return textwrap.fill(text, 100, break_on_hyphens=False)


def auc_of(found: Runs, part: str | None) -> float:
    return float(
        np.mean([(run["overall"] if part is None else run["slices"][part])["auc"] for run in found])
    )


def gap(own: Runs, others: dict[str, Runs], part: str | None) -> str:
    best = max(others, key=lambda method: auc_of(others[method], part))
    gain = auc_of(own, part) - auc_of(others[best], part)
    return f"{gain:+.4f} ({METHODS[best].title})"


def gap_in_hindsight(own: Runs, others: dict[str, Runs]) -> str:
    known = {m: f[0]["in_hindsight"]["auc"] for m, f in others.items() if f[0]["in_hindsight"]}
    if not known:
        return "-"
    best = max(known, key=lambda method: known[method])
    return f"{auc_of(own, None) - known[best]:+.4f} ({METHODS[best].title})"


def draw_progress(results: Results) -> None:
    """AUC in every twentieth of a stream, above that of a full table; mean of the seeds."""
    streams = [name for name in FIRST if (name, OURS) in results and not name.endswith("_600k")]
    figure_, axes = new_figure(len(streams), width=7.2, height=2.8)
    for axis, data_set in zip(axes, streams, strict=True):
        for method, (title, colour) in DRAWN.items():
            if (found := results.get((data_set, method))) is None:
                continue
            gains = window_aucs(found) - window_aucs(results[data_set, BESIDE])
            windows = found[0]["windows"][: len(gains)]
            ends = [(w["first_event"] + w["num_events"]) / 1e6 for w in windows]
            axis.plot(ends, gains, color=colour, label=title)
        axis.set_title(data_set)
        axis.set_xlabel("million events")
    axes[0].set_ylabel("AUC above the full table's")
    handles = axes[0].get_legend_handles_labels()
    figure_.legend(*handles, loc="outside lower center", ncols=4, frameon=False)
    save(figure_, PROGRESS_PLOT)


def window_aucs(found: Runs) -> np.ndarray:
    """Of each window, mean of the seeds; the rest after the last whole window is left out."""
    size = found[0]["windows"][0]["num_events"]
    whole = [[w["auc"] for w in run["windows"] if w["num_events"] == size] for run in found]
    return np.mean(whole, 0)


def in_large_batches(results: Results) -> str:
    if not results:
        return ""
    lines = [
        "## Batches of 256",
        "",
        "One thread, ids mapped already. Fewer steps, and predictions up to 256 events old:",
        "",
        "| stream | AUC | events/s | commit |",
        "|---|---|---|---|",
    ]
    for (data_set, _), found in results.items():
        auc = figure([run["overall"]["auc"] for run in found])
        speed = min(run["events_per_second"] for run in found)
        lines.append(
            f"| {data_set} | {auc} | {speed:,.0f} (the slowest seed) | {found[0]['commit']} |"
        )
    return "\n".join(lines)


def costs_in_words(found: Runs) -> str:
    lines = [
        "## What an event costs",
        "",
        f"*Commit {found[0]['commit']}.*",
        "",
        "Batches of 256, one thread, maps of ids included: raw ids in, predicted and learned.",
        "Ids were admitted in bulk first, timed apart. A full table with SparseAdam gets entity",
        "numbers, no ids. *Resident*: all memory of the process, torch and Python among it.",
        "Speeds within a section are of one machine on one day; those of two sections need not be.",
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
            f"*Commit {found['commit']}.*",
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


def kills_in_words(by_source: dict[str, dict[str, Any]]) -> str:
    lines = [
        "## What kills do to it",
        "",
        "`celrec stream` killed by SIGKILL at random moments, each time resumed; its model, codes,",
        "optimizer, maps of ids, figures, history and dead letters beside those of a run left in",
        "peace. `python -m benchmarks.online.kills` says how.",
        "",
        "| source | events | kills | of these within a save | different in the end | commit |",
        "|---|---|---|---|---|---|",
    ]
    for source, found in by_source.items():
        different = ", ".join(found["different"]) or "not a bit"
        lines.append(
            f"| {source} | {found['events']:,} | {found['kills']} | {found['within_a_save']} "
            f"| {different} | {found['commit']} |"
        )
    return "\n".join(lines)


def draw_soak(parts: Runs) -> None:
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


def gathered(runs: Path, data: Path) -> dict[str, Any]:
    """What online.json has, with what a folder has in its place.

    returns : "streams" by size of batches, stream and method, the runs of all seeds; "costs",
        "soak" and "kills" as their programs write them
    """
    figures: dict[str, Any] = {"streams": {}, "kills": {}}
    if FIGURES.exists():
        figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    jobs = Jobs(runs, 1)
    pairs = [(data_set, method) for data_set in FIRST for method in METHODS]
    for size in (32, 256):
        found = results_of(jobs, pairs, size, data, is_run=False)
        streams = figures["streams"].setdefault(str(size), {})
        for (data_set, method), some in found.items():
            streams.setdefault(data_set, {})[method] = some
    for name in ("costs", "soak"):
        if (file := runs / f"{name}.json").exists():
            figures[name] = json.loads(file.read_text(encoding="utf-8"))
    for file in sorted(runs.glob("kills-*.json")):
        source = file.stem.removeprefix("kills-")
        figures["kills"][source] = json.loads(file.read_text(encoding="utf-8"))
    return figures


def results_in(figures: dict[str, Any], size: int) -> Results:
    """Of one size of batches, in the order of the streams and methods."""
    streams = figures["streams"].get(str(size), {})
    return {
        (data_set, method): streams[data_set][method]
        for data_set in FIRST
        for method in METHODS
        if method in streams.get(data_set, {})
    }


def page(figures: dict[str, Any]) -> str:
    """The page; draws its plots."""
    small, large = results_in(figures, 32), results_in(figures, 256)
    draw_progress(small)
    text = TEXT.format(
        short=in_short(small),
        progress_plot=PROGRESS_PLOT.name,
        progressive=summary(small, 32),
        large_batches=in_large_batches(large),
        costs=costs_in_words(figures["costs"]) if "costs" in figures else "",
        soak=soak_in_words(figures["soak"]) if "soak" in figures else "",
        kills=kills_in_words(figures["kills"]) if figures["kills"] else "",
    )
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/online"))
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    options = parser.parse_args()
    figures = gathered(options.runs, options.data)
    FIGURES.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    PAGE.write_text(page(figures), encoding="utf-8")
    replace_block("streams", for_readme(results_in(figures, 32)))


if __name__ == "__main__":
    main()
