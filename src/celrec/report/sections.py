"""The sections of the page, in the order of reading; one whose data are missing is left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import plotly.io
import polars as pl

from celrec.report.charts import (
    MAP_LIMIT,
    MIN_EVENTS,
    bytes_chart,
    cold_chart,
    cold_range,
    growth_chart,
    map_chart,
    sizes_chart,
    tree_chart,
)
from celrec.report.clusters import Clusters, clusters_of
from celrec.report.read import FIGURE, KINDS, OURS, Method, ResultRow, Run
from celrec.report.split_tree import SplitTree, replay_splits
from celrec.report.words import (
    axis_of,
    bytes_title,
    cold_title,
    cut,
    figure_name,
    full_row,
    growth_title,
    largest_cluster,
    leading_row,
    rival_row,
)

_FULL_WIDTHS = (350, 680, 1040)  # a phone, paper, a screen
_PART_WIDTHS = (330,)
_MANY_METHODS = 4


@dataclass(frozen=True)
class Chart:
    """One chart and the words above it.

    data : traces, ready for JSON          layouts : one per width, the narrowest first
    """

    name: str
    heading: str
    data: list[dict[str, Any]]
    layouts: list[dict[str, Any]]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    title : says what is seen              lead : sentences under it
    hint : what a reader with a mouse can do
    """

    name: str
    title: str
    lead: str
    charts: Sequence[Chart]
    hint: str = ""


def find_sections(methods: Sequence[Method], rows: Sequence[ResultRow], task: str) -> list[Section]:
    """All sections that there are data for."""
    shown = _representative(methods)
    clusters = {
        entity: clusters_of(shown.run, entity, _tree(shown, entity)) if shown else None
        for entity in ("user", "item")
    }
    found = [
        _bytes_section(rows, task),
        _growth_section(methods),
        _tree_section(clusters["item"], shown) or _tree_section(clusters["user"], shown),
        _sizes_section(clusters, shown),
        _map_section(methods, clusters["item"], shown),
        _cold_section(methods, rows, task),
    ]
    return [section for section in found if section is not None]


@dataclass(frozen=True)
class _Shown:
    """The run whose clusters are shown."""

    method: Method
    run: Run

    def __str__(self) -> str:
        return f"{self.method.label}, seed {self.run.seed}"


def _representative(methods: Sequence[Method]) -> _Shown | None:
    """The first seed of the clustered method with most rows."""
    candidates = [
        _Shown(method, run)
        for method in methods
        for run in method.runs
        if clusters_of(run, "item", None) or clusters_of(run, "user", None)
    ]
    return max(candidates, key=lambda shown: shown.method.num_rows, default=None)


def _tree(shown: _Shown | None, entity: str) -> SplitTree | None:
    table = shown.run.table_of(entity) if shown else None
    if shown is None or table is None:
        return None
    return replay_splits(shown.run.history, table, shown.run.kept_epoch)


# --- sections ------------------------------------------------------------------------------------


def _bytes_section(rows: Sequence[ResultRow], task: str) -> Section | None:
    if len(rows) < 2:
        return None
    lead = ["Small numbers are rows per table."]
    if any(row.table_bytes < 0.98 * row.total_bytes for row in rows):
        lead.append(
            "A full dot is the size that serving needs; the hollow one to its left is the rows "
            "alone, without what each user and item keeps."
        )
    if any(row.std is not None for row in rows):
        lead.append("Upright lines: standard deviation over seeds.")
    chart = make_chart("bytes", "", lambda width: bytes_chart(rows, task, width))
    return Section("bytes", bytes_title(rows, task), " ".join(lead), [chart])


def _growth_section(methods: Sequence[Method]) -> Section | None:
    growing = [m for m in methods if m.runs[0].table_of("user") or m.runs[0].table_of("item")]
    if not growing:
        return None
    # Codes are made after the last epoch: runs with other codes often grew alike.
    alike = {repr(method.runs[0].history): method for method in reversed(growing)}
    growing = sorted(alike.values(), key=lambda method: method.num_rows)
    labels = _short_labels(growing)
    runs = {label: method.runs[0] for label, method in zip(labels, growing, strict=True)}
    drawn = []
    for entity in ("user", "item"):
        lines = {
            label: [(0, 1.0)] + [(line["epoch"], line["clusters"][table]) for line in run.history]
            for label, run in runs.items()
            if (table := run.table_of(entity))
        }
        if lines:
            drawn.append(_growth_chart(f"{entity}-clusters", f"{entity.title()} clusters", lines))
    drawn.append(_learning_chart(runs))
    seeds = {run.seed for run in runs.values()}
    lead = f"Seed {seeds.pop()}." if len(seeds) == 1 else "The first seed of each."
    if drawn[-1].name == "validation":
        lead += " The dot is the epoch whose model was kept."
    return Section("growth", growth_title(list(runs.values())), lead, drawn)


def _learning_chart(runs: Mapping[str, Run]) -> Chart:
    """Validation where every run has it, else the training loss."""
    if all(line.get("validation") for run in runs.values() for line in run.history):
        task = next(iter(runs.values())).task
        lines = {
            label: [(line["epoch"], line["validation"][FIGURE[task]]) for line in run.history]
            for label, run in runs.items()
        }
        kept = {label: run.kept_epoch for label, run in runs.items()}
        heading = f"{figure_name(task)} on validation data"
        return _growth_chart("validation", heading, lines, is_count=False, marked=kept)
    lines = {
        label: [(line["epoch"], line["train_loss"]) for line in run.history]
        for label, run in runs.items()
    }
    return _growth_chart("training-loss", "Training loss", lines, is_count=False)


def _tree_section(clusters: Clusters | None, shown: _Shown | None) -> Section | None:
    if clusters is None or clusters.tree is None or len(clusters.order) < 2:
        return None
    entities = f"{clusters.entity}s"
    title = f"How {len(clusters.frame):,} {entities} became {len(clusters.order)} clusters"
    lead = (
        f"Every band is a cluster, as thick as the {entities} that ended in it, and forks where it "
        f"was split. Beside it: its {entities} with most interactions. Similar colours: a common "
        f"past. {_membership(shown)}({shown})"
    )
    chart = make_chart("tree", "", lambda width: tree_chart(clusters, width))
    return Section("tree", title, lead, [chart], "Point at a band for its members.")


def _sizes_section(clusters: Mapping[str, Clusters | None], shown: _Shown | None) -> Section | None:
    drawn = [
        make_chart(
            f"{entity}-sizes",
            largest_cluster(found.sizes, found.shares, entity),
            lambda width, found=found: sizes_chart(found, width),  # type: ignore[misc]
            _PART_WIDTHS,
        )
        for entity, found in clusters.items()
        if found is not None and len(found.order) > 1
    ]
    if not drawn:
        return None
    return Section(
        "sizes",
        "How large the clusters are",
        f"Each bar is a cluster. {_membership(shown)}({shown})",
        drawn,
    )


def _map_section(
    methods: Sequence[Method], clusters: Clusters | None, shown: _Shown | None
) -> Section | None:
    """Of the representative run; without clusters, of the first run that has a map."""
    if shown is None:
        with_items = [_Shown(m, run) for m in methods for run in m.runs if run.items is not None]
        shown = next(iter(with_items), None)
    if shown is None or shown.run.items is None:
        return None
    items = shown.run.items.filter(pl.col("x").is_finite() & pl.col("y").is_finite())
    if len(items) < 2:
        return None
    items = items.sort(["train_count", "raw_id"], descending=[True, False])
    lead = "Every dot is an item, the larger the more interactions it has. "
    if clusters is None:
        lead += "Dots lie near each other where vectors are alike (their two main axes). "
    else:
        lead += "Its colour is its cluster. " + _membership(shown)
        lead += "Dots lie near each other where vectors are alike (their two main axes"
        if shown.method.embedding == "personal":
            lead += "). "
        else:
            place = "cluster's row" if shown.method.embedding == "clustered" else "blend"
            lead += f", each item moved from its {place} one step towards its own data). "
    if len(items) > MAP_LIMIT:
        lead += f"The {MAP_LIMIT:,} items with most interactions of {len(items):,} are shown. "
        items = items.head(MAP_LIMIT)
    lead += f"({shown})"
    hint = "Point at a dot for its title; drag to look closer, double-click to return."
    colours = clusters.colours() if clusters else {}
    embedding = shown.method.embedding
    chart = make_chart("map", "", lambda width: map_chart(items, colours, embedding, width))
    return Section("map", "The items on a map", lead, [chart], hint)


def _membership(shown: _Shown | None) -> str:
    """Which cluster counts as an entity's, where its code mixes several."""
    codes = [shown.run.code(entity) for entity in ("user", "item")] if shown else []
    if any(code and code[0] > 1 for code in codes):
        return "Of the clusters that a code mixes, the heaviest counts. "
    return ""


def _cold_section(
    methods: Sequence[Method], rows: Sequence[ResultRow], task: str
) -> Section | None:
    by_rank = _compared(methods, rows, task)
    compared = sorted(by_rank, key=lambda method: KINDS.index(method.embedding))
    entities = [
        entities
        for entities in ("users", "items")
        if any(f"coldest_{entities}" in (run.metrics or {}) for m in compared for run in m.finished)
    ]
    if not entities:
        return None
    x_range = cold_range(compared)
    drawn = [
        make_chart(
            f"cold-{name}",
            name.title(),
            lambda width, name=name: cold_chart(compared, name, x_range, width),  # type: ignore[misc]
            _PART_WIDTHS,
        )
        for name in entities
    ]
    lead = (
        "Test events by how much training saw of their user or item. The coldest tenth are the "
        f"events with the fewest. {'Higher' if task == 'binary' else 'Lower'} is better; under "
        f"{MIN_EVENTS} events no figure is given."
    )
    return Section("cold", cold_title(by_rank), lead, drawn)


def _compared(methods: Sequence[Method], rows: Sequence[ResultRow], task: str) -> list[Method]:
    """The best of ours against rivals, or, without rivals, as many methods as stay legible.

    returns : the one that the headline is about first
    """
    if not rows:
        return []
    leading = leading_row(rows, task)
    of_kinds = [[row for row in rows if row.embedding == kind] for kind in OURS]
    best = [leading_row(of_kind, task) for of_kind in of_kinds if of_kind]
    rival = rival_row(rows, leading, task)
    chosen = [leading, *best, rival, full_row(rows, task)]
    labels = dict.fromkeys(row.label for row in chosen if row is not None)
    finished = {method.label: method for method in methods if method.finished}
    if len(labels) == 1:
        labels |= dict.fromkeys(list(finished)[: _MANY_METHODS - 1])
    return [finished[label] for label in labels if label in finished]


# --- charts --------------------------------------------------------------------------------------


def make_chart(
    name: str,
    heading: str,
    draw: Callable[[int], go.Figure],
    widths: Sequence[int] = _FULL_WIDTHS,
) -> Chart:
    """Draw one chart for all widths of the page."""
    drawn = [json.loads(plotly.io.to_json(draw(width))) for width in widths]
    return Chart(name, heading, drawn[0]["data"], [figure["layout"] for figure in drawn])


def _growth_chart(
    name: str,
    heading: str,
    lines: Mapping[str, Sequence[tuple[int, float]]],
    *,
    is_count: bool = True,
    marked: Mapping[str, int] | None = None,
) -> Chart:
    axis = "clusters" if is_count else axis_of(heading)
    return make_chart(
        name,
        heading,
        lambda width: growth_chart(lines, axis, width, is_count=is_count, marked=marked),
        _PART_WIDTHS,
    )


def _short_labels(methods: Sequence[Method]) -> list[str]:
    """Up to ten characters for each, all different: the rows, or what else tells methods apart."""
    labels: list[str] = []
    for method in methods:
        label = f"{method.rows} rows" if len(method.rows) < 5 else method.rows
        label = cut(method.variant or label, 9)
        while label in labels:
            label += "*"
        labels.append(label)
    return labels
