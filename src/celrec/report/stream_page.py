"""The page about a stream: how AUC, clusters, entities and bytes went, in one HTML file.

It is drawn from the history alone, a line for each window of events, while the stream goes on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import plotly.graph_objects as go

from celrec.errors import CheckpointError
from celrec.history import read_history
from celrec.report.page import render_template, write_page
from celrec.report.read import flat_config
from celrec.report.sections import Chart, Section, make_chart
from celrec.report.style import empty_figure, method_colour, padded, safe, spread_apart
from celrec.report.words import readable_bytes

MOST_POINTS = 400
"""Of a line: longer histories are drawn by means over neighbouring windows."""

_PART_WIDTHS = (330,)
_HEIGHT = 250
_COLOURS = {
    "model": method_colour("clustered"),
    "running means": method_colour("full"),
    "users": method_colour("clustered"),
    "items": method_colour("hashed"),
    "budget": method_colour("full"),
}

History = Sequence[Mapping[str, Any]]
Points = list[tuple[float, float]]


def write_stream_report(folder: Path, out: Path, *, title: str | None = None) -> Path:
    """Write one self-contained HTML page about a stream's folder.

    out : the file; its folder is made if missing
    title : by default, the name of the folder
    returns : out
    raises : CheckpointError for a folder that is damaged, or has no finished window; DataError if
        the page cannot be written
    """
    return write_page(render_stream_page(folder, title=title), out)


def render_stream_page(folder: Path, *, title: str | None = None) -> str:
    """The page as text; see `write_stream_report`."""
    about, history = _read(folder)
    settings = about["config"]["settings"]
    sections = _sections(history, settings)
    return render_template(
        "page.html",
        [chart for section in sections for chart in section.charts],
        title=title or folder.resolve().name,
        headline=_headline(history, settings),
        rival=_against_means(history),
        rows=[],
        sections=sections,
        facts=_facts(about, history),
        shared_settings=_settings(about["config"]),
        own_settings=[],
    )


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most so many points: the means of groups of neighbours, each where its last one stands.

    >>> thinned([(1, 4.0), (2, 6.0), (3, 1.0)], most=2)
    [(2, 5.0), (3, 1.0)]
    """
    size = max(1, math.ceil(len(points) / most))
    groups = (points[begin : begin + size] for begin in range(0, len(points), size))
    return [(group[-1][0], fmean(value for _, value in group)) for group in groups]


def _read(folder: Path) -> tuple[dict[str, Any], History]:
    path = folder / "stream.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        window = about["config"]["settings"]["window"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error!r}") from error
    history = read_history(folder / "history.jsonl", unit="window")
    if not history:
        raise CheckpointError(
            f"{folder} has no finished window of {window:,} events to draw; let the stream go on, "
            "or begin anew with a smaller --window"
        )
    return about, history


# --- words ---------------------------------------------------------------------------------------


def _headline(history: History, settings: Mapping[str, Any]) -> str:
    last = history[-1]
    auc = "undefined, for all labels are the same" if last["auc"] is None else f"{last['auc']:.3f}"
    return (
        f"After {last['num_events']:,} events, "
        f"the AUC of the last {settings['window']:,} is {auc}, "
        f"in {readable_bytes(last['used_bytes'])}."
    )


def _against_means(history: History) -> str:
    pairs = [(line["auc"], line["means_auc"]) for line in history if line["auc"] is not None]
    if not pairs:
        return ""
    ours, means = (fmean(values) for values in zip(*pairs, strict=True))
    num_ahead = sum(auc > other for auc, other in pairs)
    windows = "1 window" if len(pairs) == 1 else f"{len(pairs):,} windows"
    return (
        f"Over {windows} the mean is {ours:.3f}; running means of users and items reach "
        f"{means:.3f}, and are behind in {num_ahead:,}."
    )


def _facts(about: Mapping[str, Any], history: History) -> list[tuple[str, str]]:
    last = history[-1]
    times = [line["time"] for line in (history[0], last) if line["time"] is not None]
    versions = ", ".join(f"{name} {value}" for name, value in about.get("versions", {}).items())
    facts = [
        ("Source", _without_password(about["config"]["address"])),
        ("Events", f"{last['num_events']:,} in {len(history):,} windows"),
        ("Times of the windows' last events", " to ".join(map(_date, times))),
        ("Dead letters", f"{last['dead_letters']:,}"),
        ("Events left out", f"{last['dropped']:,}" if last["dropped"] else ""),
        ("Command", _without_password(" ".join(about.get("command", [])))),
        ("Versions", versions),
    ]
    return [(name, value) for name, value in facts if value]


def _date(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds").partition("+")[0]
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g}"


def _without_password(text: str) -> str:
    """Addresses of servers, without what nobody else should read.

    >>> _without_password("celrec stream redis://ann:secret@host:6379/clicks")
    'celrec stream redis://ann:***@host:6379/clicks'
    """
    return re.sub(r"(\w://[^:/@\s]*):[^/\s]*@", r"\1:***@", text)


def _settings(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    sections: dict[str, list[tuple[str, str]]] = {}
    for path, value in flat_config(config).items():
        if path != ("address",):
            shown = "none" if value is None else str(value)
            sections.setdefault(".".join(path[:-1]), []).append((path[-1], shown))
    return list(sections.items())


# --- charts --------------------------------------------------------------------------------------


def _sections(history: History, settings: Mapping[str, Any]) -> list[Section]:
    window = f"{settings['window']:,}"
    figures = {
        name: {
            "model": _points(history, lambda line, name=name: line[name]),  # type: ignore[misc]
            "running means": _points(history, lambda line, name=name: line[f"means_{name}"]),  # type: ignore[misc]
        }
        for name in ("auc", "log_loss")
    }
    sizes = {
        name: {
            f"{side}s": _points(history, lambda line, name=name, side=side: line[name][side])  # type: ignore[misc]
            for side in ("user", "item")
        }
        for name in ("clusters", "entities")
    }
    used = _points(history, lambda line: line["used_bytes"])
    budget = [(x, float(settings["max_bytes"])) for x in (0, used[-1][0])]
    letters = _points(history, lambda line: line["dead_letters"])
    lead = f"Every event is predicted before it is learned; each point is {window} events."
    if len(history) > MOST_POINTS:
        lead = f"Every event is predicted before it is learned, in windows of {window}; means over "
        lead += "neighbouring windows are drawn."
    return [
        Section("auc", "AUC", lead, [_chart("auc-line", "", figures["auc"], (350, 680, 1040))]),
        Section(
            "size",
            "What it takes",
            "Bytes are those of tables, codes and optimizer state that are in use; ids have a slot "
            "of their own.",
            [
                _chart("clusters", "Clusters", sizes["clusters"], is_count=True),
                _chart("entities", "Users and items with a slot", sizes["entities"], is_count=True),
                _chart("used-bytes", "Bytes", {"used": used, "budget": budget}, is_count=True),
            ],
        ),
        Section(
            "more",
            "Log loss, and what was no event",
            "Log loss in nats, lower is better.",
            [
                _chart("log-loss", "Log loss", figures["log_loss"]),
                _chart("dead-letters", "Dead letters, in all", {"": letters}, is_count=True),
            ],
        ),
    ]


def _points(history: History, value: Callable[[Mapping[str, Any]], float | None]) -> Points:
    found = [(line["num_events"], value(line)) for line in history]
    return thinned([(x, float(y)) for x, y in found if y is not None])


def _chart(
    name: str,
    heading: str,
    lines: Mapping[str, Points],
    widths: Sequence[int] = _PART_WIDTHS,
    *,
    is_count: bool = False,
) -> Chart:
    return make_chart(
        name, heading, lambda width: over_events_chart(lines, width, is_count=is_count), widths
    )


def over_events_chart(lines: Mapping[str, Points], width: int, *, is_count: bool) -> go.Figure:
    """One figure over the events of a stream, a line per name.

    lines[name] : (events, value); a line without points is left out
    is_count : whether the axis begins at zero
    """
    lines = {name: line for name, line in lines.items() if line}
    right = 12 + 7 * max((len(name) for name in lines), default=0)
    figure = empty_figure(width, _HEIGHT, left=54, right=right, bottom=44, top=12)
    if not lines:
        return figure
    values = [value for line in lines.values() for _, value in line]
    y_range = padded(min(values), max(values), 0.08)
    if is_count:
        y_range = [0, max(5, max(values) * 1.08)]  # from 5 on ticks are whole numbers
    ends = spread_apart([line[-1][1] for line in lines.values()], y_range, _HEIGHT - 56, gap=15)
    last = max(line[-1][0] for line in lines.values())
    for end, (name, line) in zip(ends, lines.items(), strict=True):
        colour = _COLOURS.get(name, _COLOURS["model"])
        shape = ".3s" if is_count else ".4f"
        figure.add_trace(
            go.Scatter(
                x=[events for events, _ in line],
                y=[value for _, value in line],
                mode="lines+markers",
                cliponaxis=False,
                line={"color": colour, "width": 2, "dash": "dash" if name == "budget" else "solid"},
                marker={"size": 8 if len(line) == 1 else 0, "opacity": 1},
                hovertemplate=f"%{{x:,}} events: %{{y:{shape}}}<extra>{safe(name)}</extra>",
            )
        )
        figure.add_annotation(
            x=last,
            y=end,
            text=safe(name),
            showarrow=False,
            xanchor="left",
            xshift=5,
            font={"color": colour, "size": 12},
        )
    figure.update_xaxes(title_text="events", range=[0, last], nticks=5, tickformat="~s")
    figure.update_yaxes(range=y_range, nticks=6, tickformat="~s" if is_count else None)
    return figure
