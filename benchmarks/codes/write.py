"""Writes what the codes benchmark found: docs/results/codes.*, plots, and a block of the README."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.codes.protocols import Protocol, Rows, budget_name
from benchmarks.codes.training import figure
from benchmarks.jobs import ROOT
from benchmarks.plotting import COLOURS, label, new_figure, save, ticks_at
from benchmarks.readme import replace_block
from celrec.report.read import mean_and_std

RESULTS = ROOT / "docs" / "results"
NUM_DRAWS = 400  # of the bootstrap

TEXT = """\
# Blended codes and personal vectors

*Written by `python -m benchmarks.codes.run`. Settings are chosen on validation data, for the full
table from at least as many candidates as for ours. Figures are those of test data: mean and
standard deviation over seeds, or over partitions where these are random. Temperature and looseness
are chosen once for a protocol, with the first size of its tables. The gain is that of personal
vectors over the full table on the same test events, with a 95 % bootstrap interval over these.*

Total bytes against accuracy on MovieLens-1M; bands are standard deviations:

![AUC against total bytes per entity](codes-ml-1m-likes.svg)

![Squared error against total bytes per entity](codes-ml-1m-ratings.svg)
"""


class Block(NamedTuple):
    """What was found for one protocol.

    choices : results of choosing jobs      full, ours : what was chosen
    results : of final jobs, by name        commits : at which they ran
    """

    name: str
    protocol: Protocol
    choices: dict[str, Any]
    full: dict[str, Any]
    ours: dict[str, Any]
    results: dict[str, Any]
    commits: list[str]


Lines = dict[str, list[dict[str, Any]]]
"""By method, one line for each seed."""


class Gain(NamedTuple):
    """Of personal vectors over the full table: AUC, or a share of its squared error.

    low, high : the 95 % interval
    """

    mean: float
    low: float
    high: float

    def in_words(self, metric: str) -> str:
        if metric == "auc":
            return f"{self.mean:+.4f} AUC ({self.low:+.4f} to {self.high:+.4f})"
        mean, low, high = (100 * one for one in self)
        return f"{mean:.1f} % less squared error ({low:.1f} to {high:.1f} %)"


def write_results(found: list[Block], out: Path) -> None:
    """Write the page, the figures behind it, the plots, and the block of the README.

    out : where final jobs left their predictions
    """
    text: list[str] = [TEXT]
    figures: dict[str, Any] = {}
    gains: dict[str, Gain | None] = {}
    first: Lines = {}
    for block in found:
        lines = by_method(block)
        gains[block.name] = gain = paired_gain(block, out)
        text += [section(block, lines, gain)]
        figures[block.name] = {
            "gain of personal vectors": gain,
            "chosen full": block.full,
            "chosen ours": block.ours,
            "candidates": block.choices,
            "commits": block.commits,
            "figures": lines,
        }
        if block.name.startswith("ml-1m"):
            plot(block, lines)
        if block.name == "ml-1m-likes":
            first = lines
    (RESULTS / "codes.md").write_text("\n".join(text), encoding="utf-8")
    (RESULTS / "codes.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if first:
        replace_block("codes", readme_block(found, first, gains))


def by_method(block: Block) -> Lines:
    lines: Lines = {}
    for name in sorted(block.results, key=lambda name: ".full-" in name):
        for method, line in block.results[name].items():
            lines.setdefault(method, []).append(line)
    return lines


def section(block: Block, lines: Lines, gain: Gain | None) -> str:
    metric = block.protocol.setting.metric
    text = [
        f"## {block.protocol.title}",
        "",
        f"| method | {metric.upper()} | runs | table bytes | total bytes | bytes per entity "
        "| times smaller (total) |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, some in lines.items():
        mean, spread = mean_and_spread(some)
        size = {key: np.mean([one[key] for one in some]) for key in _SIZES}
        rows = ", ".join(
            f"{np.mean(one):.0f}" for one in zip(*(x["rows"] for x in some), strict=True)
        )
        shown = f"{method} ({rows} rows)" if "auto" in method else method
        text.append(
            f"| {shown} | {mean:.4f} ± {spread:.4f} | {len(some)} "
            f"| {size['table_bytes']:,.0f} | {size['total_bytes']:,.0f} "
            f"| {size['bytes_per_entity']:.2f} | {size['times_smaller']:.1f} |"
        )
    candidate = block.full["candidate"]
    training = candidate["training"]
    personal = block.ours["personal"]
    text += [
        "",
        "No paired gain: runs are missing."
        if gain is None
        else f"Personal vectors over the full table, with a 95 % interval: {gain.in_words(metric)}",
        "",
        f"Chosen for the full table, of {len(block.protocol.full)} candidates: penalty "
        f"{training['l2']:g}, learning rate {training['learning_rate']:g}, start "
        f"{candidate['start']:g} on random vectors times {candidate.get('scale', 1.0):g}, "
        f"{block.full['epochs']} epochs. For ours, of "
        f"{sum(map(len, block.choices[f'{block.name}.choose-ours'].values()))}: temperature "
        f"{block.ours['temperature']:g}, looseness {personal['looseness']:g}. "
        f"Commit {', '.join(block.commits)}.",
        "",
    ]
    return "\n".join(text)


_SIZES = ("table_bytes", "total_bytes", "bytes_per_entity", "times_smaller")


def mean_and_spread(lines: list[dict[str, Any]]) -> tuple[float, float]:
    mean, spread = mean_and_std([line["figure"] for line in lines])
    return mean, spread or 0.0


def paired_gain(block: Block, out: Path) -> Gain | None:
    """The gain of personal vectors over the full table on the same events; None without both."""
    protocol, metric = block.protocol, block.protocol.setting.metric
    rng = np.random.default_rng(0)
    draws, gains = np.zeros(NUM_DRAWS), []
    first = protocol.rows[0]
    for seed in protocol.seeds:
        names = (f"{block.name}.full-{seed}", f"{block.name}.ours-{first[0]}-{first[1]}-{seed}")
        if not all(name in block.results for name in names):
            return None
        full, ours = (np.load(out / f"{name}.npz") for name in names)
        labels = full["label"]
        pair = ours["personal"], full["full"]
        gains.append(_gain(metric, labels, *pair))
        for i in range(NUM_DRAWS):
            some = rng.integers(len(labels), size=len(labels))
            drawn = _gain(metric, labels[some], *(one[some] for one in pair))
            draws[i] += drawn / len(protocol.seeds)
    low, high = np.percentile(draws, (2.5, 97.5))
    return Gain(float(np.mean(gains)), float(low), float(high))


def _gain(metric: str, labels: np.ndarray, ours: np.ndarray, full: np.ndarray) -> float:
    of_ours, of_full = figure(metric, labels, ours), figure(metric, labels, full)
    return of_ours - of_full if metric == "auc" else 1 - of_ours / of_full


README_LINES = {
    "hard 8": "one cluster each, 8 rows a table",
    "blend 32, m = 4": "blends of 4, 32 rows a table",
    "encoded 32, 2.56 bytes": "additive codes: 2.56 bytes an entity, rows included",
    "encoded 32, 6.4 bytes": "additive codes: 6.4 bytes",
    "encoded 32, 24 bytes": "personal vectors of four bits: 24 bytes",
    "personal 32": "personal vectors of eight bits",
    "full": "full table, 6,040 + 3,706 rows",
}


def readme_block(found: list[Block], lines: Lines, gains: dict[str, Gain | None]) -> str:
    """A table of MovieLens-1M, and gains on all data."""
    text = [
        "| MovieLens-1M | AUC | table bytes | total bytes | times smaller (total) |",
        "|---|---|---|---|---|",
    ]
    for method, title in README_LINES.items():
        mean, spread = mean_and_spread(lines[method])
        size = {key: np.mean([line[key] for line in lines[method]]) for key in _SIZES}
        text.append(
            f"| {title} | **{mean:.4f} ± {spread:.4f}** | {size['table_bytes']:,.0f} "
            f"| {size['total_bytes']:,.0f} | {size['times_smaller']:.1f} |"
        )
    shown = []
    for block in found:
        gain = gains[block.name]
        if gain is not None:
            title = block.protocol.title.replace(" (GMF protocol)", "")
            shown.append(f"{title} {gain.in_words(block.protocol.setting.metric)}")
    text += [
        "",
        *textwrap.wrap(
            "Each user's last two events predicted; mean and standard deviation of three seeds. "
            "Settings are chosen on validation data, for the full table from at least as many "
            "candidates. Personal vectors over that tuned full table, on the same test events, "
            f"with 95 % intervals: {'; '.join(shown)}. "
            "[All figures](docs/results/codes.md), by `python -m benchmarks.codes.run`.",
            100,
        ),
    ]
    return "\n".join(text)


def plot(block: Block, lines: Lines) -> None:
    """Accuracy against total bytes per entity."""
    protocol = block.protocol
    canvas, (axes,) = new_figure(height=3.8)
    fixed = sorted(rows for rows in protocol.rows if isinstance(rows[0], int))
    main = _name(protocol.rows[0])
    series = {
        "clustered": ("hard codes", [f"hard {_name(rows)}" for rows in fixed]),
        "blended": (
            f"blends of {main} rows",
            [f"blend {main}, m = {m}" for m in protocol.blends],
        ),
        "personal": (
            "additive codes, then personal vectors",
            [budget_name(main, budget) for budget in (*protocol.budgets, None)],
        ),
        "full": ("full table, tuned", ["full"]),
    }
    for kind, (title, methods) in series.items():
        points = []
        for method in methods:
            mean, spread = mean_and_spread(lines[method])
            size = float(np.mean([line["bytes_per_entity"] for line in lines[method]]))
            points.append((size, mean, spread))
        x, y, band = (np.array(column) for column in zip(*points, strict=True))
        axes.plot(x, y, "o-", color=COLOURS[kind])
        axes.fill_between(x, y - band, y + band, color=COLOURS[kind], alpha=0.15, linewidth=0)
        last = len(x) - 1
        is_left = kind == "full"
        dx, dy = (-4, 8) if is_left else (8, 0)
        label(axes, x[last], y[last], title, COLOURS[kind], dx=dx, dy=dy)
        if kind == "full":
            axes.axhline(y[0], color=COLOURS[kind], linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    ticks_at(axes, (1, 2, 4, 8, 16, 32, 64, 128))
    axes.set_xlabel("total bytes per entity")
    is_auc = protocol.setting.metric == "auc"
    axes.set_title(f"{protocol.title}: {'AUC' if is_auc else 'squared error'}")
    if not is_auc:
        axes.invert_yaxis()  # up is better in either plot
    save(canvas, RESULTS / f"codes-{block.name}.svg")


def _name(rows: Rows) -> str:
    return "+".join(map(str, dict.fromkeys(rows)))
