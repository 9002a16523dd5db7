"""The charts of the page, as plotly figures.

Every function draws one chart for a given width in pixels. The width decides about the layout alone
(size, margins, labels), never about the data, so that the page can carry the data once and a layout
per width. A chart has no title: the page puts that above as text. Lines and labels are drawn in the
colours of style.COLOURS, by role, and the page swaps these alone when the reader's screen is dark.

Texts from data (titles, raw ids) pass through `safe`, because plotly reads a few HTML tags.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import polars as pl

from celrec.report.clusters import Clusters, name_of
from celrec.report.read import FIGURE, Method, ResultRow, mean_and_std
from celrec.report.style import (
    INK,
    PAPER,
    QUIET,
    RULE,
    VEIL,
    Box,
    empty_figure,
    in_pixels,
    method_colour,
    mixed,
    padded,
    safe,
    spread_apart,
    whole_ticks,
)
from celrec.report.words import cut, figure_name, percent, plus_minus, readable_bytes, times

MAP_LIMIT = 3000
"""Points on the item map: more are a blot, and a slow page."""

MIN_EVENTS = 100
"""Fewer events on a slice say nothing about a method (as in metrics.py)."""

_NARROW, _WIDE = 560, 900
_HOVER_MEMBERS = 5


# --- accuracy against bytes ----------------------------------------------------------------------


def bytes_chart(rows: Sequence[ResultRow], task: str, width: int) -> go.Figure:
    """A test figure against bytes, a line per embedding."""
    is_narrow = width < _NARROW
    height = 440 if width >= _WIDE else 350 if is_narrow else 285
    figure = empty_figure(width, height, left=52, right=16, bottom=50, top=16)
    low, high = min(row.table_bytes for row in rows), max(row.total_bytes for row in rows)
    first, last = math.log10(low) - 0.12, math.log10(high) + 0.12
    lines: dict[str, list[ResultRow]] = {}
    for row in sorted(rows, key=lambda row: row.total_bytes):
        lines.setdefault(row.name, []).append(row)
    ends = [row.mean + sign * (row.std or 0.0) for row in rows for sign in (1, -1)]
    y_range = padded(min(ends), max(ends), 0.16)
    by_height = sorted(lines, key=lambda name: max(row.mean for row in lines[name]))
    full = [row for row in rows if row.embedding == "full"]
    if full and len(lines) > 1:
        colour = method_colour("full")
        figure.add_hline(full[0].mean, line={"color": colour, "width": 1, "dash": "dash"})
        figure.update_shapes(opacity=0.5, layer="below")
    for line in (lines[name] for name in by_height):
        colour = method_colour(line[0].embedding)
        _add_rows_alone(figure, line, colour)
        figure.add_trace(
            go.Scatter(
                x=[row.total_bytes for row in line],
                y=[row.mean for row in line],
                error_y={
                    "array": [row.std or 0.0 for row in line],
                    "thickness": 1.2,
                    "width": 3,
                    "color": colour,
                },
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={"color": colour, "size": 9},
                customdata=[[_row_hover(row, task)] for row in line],
                hovertemplate="%{customdata[0]}<extra></extra>",
            )
        )
    _label_rows(figure, [lines[name] for name in by_height], (first, last), y_range)
    for factors in ((1, 3), (1, 2, 3, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [10**power * factor for power in range(16) for factor in factors]
        ticks = [tick for tick in ticks if first <= math.log10(tick) <= last]
        if len(ticks) >= 3:
            break
    figure.update_xaxes(
        type="log",
        range=[first, last],
        tickvals=ticks,
        ticktext=[readable_bytes(tick).replace(".0", "") for tick in ticks],
        title_text="size of the tables (logarithmic)",
    )
    figure.update_yaxes(range=y_range, title_text=f"{figure_name(task)} on the test set")
    return figure


def _add_rows_alone(figure: go.Figure, line: Sequence[ResultRow], colour: str) -> None:
    """Hollow marks where a table would be if codes cost nothing, tied to the true size."""
    lighter = [row for row in line if row.table_bytes < 0.98 * row.total_bytes]
    for row in lighter:
        figure.add_trace(
            go.Scatter(
                x=[row.table_bytes, row.total_bytes],
                y=[row.mean, row.mean],
                mode="lines+markers",
                line={"color": colour, "width": 1, "dash": "dot"},
                marker={
                    "color": PAPER,
                    "size": [8, 0],
                    "line": {"color": colour, "width": 1.2},
                },
                opacity=0.55,
                hoverinfo="skip",
            )
        )


def _label_rows(
    figure: go.Figure,
    lines: Sequence[Sequence[ResultRow]],
    x_range: Sequence[float],
    y_range: Sequence[float],
) -> None:
    """Write the name of every line at its first dot, and rows at the others, where there is room.

    lines : the lowest first; x_range is in powers of ten
    """
    layout = figure.layout
    across = layout.width - layout.margin.l - layout.margin.r
    up = layout.height - layout.margin.t - layout.margin.b
    dots = {
        row: Box(
            in_pixels(math.log10(row.total_bytes) - x_range[0], x_range, across),
            in_pixels(row.mean - y_range[0], y_range, up),
            10,
            10 + 2 * in_pixels(row.std or 0.0, y_range, up),
        )
        for line in lines
        for row in line
    }
    taken = list(dots.values())
    # Names come first: they need more room than numbers.
    wanted = [(line, line[0]) for line in reversed(lines)]
    wanted += [(line, row) for line in reversed(lines) for row in line[1:]]
    for line, row in wanted:
        is_name = row is line[0]
        texts = [cut(row.name, 32)] if is_name else []
        texts += [f"{row.rows} rows" if is_name else row.rows] if row.rows else []
        dot, width, height = dots[row], 8 * max(map(len, texts)), 15 * len(texts)
        sides = (1, -1) if line is lines[-1] or row.embedding == "full" else (-1, 1)
        places = [
            # A hair away, or rounding makes a label meet its own dot.
            Box(dot.x + shift, dot.y + side * ((dot.height + height) / 2 + 0.01), width, height)
            for side in sides
            for shift in (0, 8 - width / 2, width / 2 - 8)
        ]
        inside = [place for place in places if place.left > 0 and place.right < across + 14]
        free = [place for place in inside if not any(map(place.meets, taken))]
        if not (free or is_name):
            continue
        place = (free or inside or places)[0]
        taken.append(place)
        label = "<br>".join(safe(text) for text in texts)
        figure.add_annotation(
            x=math.log10(row.total_bytes),
            y=row.mean,
            xshift=place.x - dot.x,
            yshift=place.y - dot.y,
            text=f"<b>{label}</b>" if is_name else label,
            showarrow=False,
            font={"color": method_colour(row.embedding), "size": 12},
        )


def _row_hover(row: ResultRow, task: str) -> str:
    return safe(
        f"{row.label}\n{figure_name(task)} {plus_minus(row.mean, row.std)}\n"
        f"{row.total_bytes:,} bytes, {times(row.times_smaller)} times smaller than full\n"
        f"{row.table_bytes:,} bytes of these in rows"
    )


# --- growth --------------------------------------------------------------------------------------


def growth_chart(
    lines: Mapping[str, Sequence[tuple[int, float]]],
    axis: str,
    width: int,
    *,
    is_count: bool,
    marked: Mapping[str, int] | None = None,
) -> go.Figure:
    """One figure over the epochs, a line per method.

    lines[label] : (epoch, value), the faintest first
    axis : what is counted, or measured
    marked[label] : an epoch to put a dot on
    """
    right = 56 if len(lines) > 1 else 12
    figure = empty_figure(width, 250, left=46, right=right, bottom=44, top=12)
    values = [value for line in lines.values() for _, value in line]
    last_epoch = max(epoch for line in lines.values() for epoch, _ in line)
    y_range = [0, max(values) * 1.08] if is_count else padded(min(values), max(values), 0.08)
    colour = method_colour("clustered")
    ends = spread_apart([line[-1][1] for line in lines.values()], y_range, 194, gap=15)
    for number, (label, line) in enumerate(lines.items()):
        strength = 1 - 0.55 * (len(lines) - 1 - number) / len(lines)
        dot = (marked or {}).get(label, last_epoch if len(line) == 1 else None)
        figure.add_trace(
            go.Scatter(
                x=[epoch for epoch, _ in line],
                y=[value for _, value in line],
                mode="lines+markers",
                cliponaxis=False,
                opacity=strength,
                line={"color": colour, "width": 2, "shape": "hv" if is_count else "linear"},
                marker={"size": [8 if epoch == dot else 0 for epoch, _ in line], "opacity": 1},
                hovertemplate=f"epoch %{{x}}: %{{y:{'d' if is_count else '.4f'}}}"
                f"<extra>{safe(label)}</extra>",
            )
        )
        if len(lines) > 1:
            figure.add_annotation(
                x=last_epoch,
                y=ends[number],
                text=safe(label),
                showarrow=False,
                xanchor="left",
                xshift=5,
                font={"color": colour, "size": 12},
                opacity=strength,
            )
    figure.update_xaxes(
        title_text="epoch", range=[0, last_epoch], tickvals=whole_ticks(last_epoch, 4)
    )
    figure.update_yaxes(title_text=axis, range=y_range, nticks=6)
    return figure


# --- split tree ----------------------------------------------------------------------------------


def tree_chart(clusters: Clusters, width: int) -> go.Figure:
    """The split tree on a time line: every band is a cluster, as thick as it has members."""
    assert clusters.tree is not None
    is_narrow = width < _NARROW
    sizes, colours, shares = clusters.sizes, clusters.colours(), clusters.shares
    last_split = max(clusters.tree.born_after.values())
    end = last_split + max(1.0, 0.09 * last_split)
    height = min(
        780 if width >= _WIDE else 600 if is_narrow else 470,
        max(340, 150 + 15 * len(clusters.order)),
    )
    label_width = 132 if is_narrow else min(330, width // 3)
    figure = empty_figure(width, height, left=8, right=label_width, bottom=44, top=6)

    position, top = 0, {}
    for cluster in clusters.order:
        top[cluster] = position
        position += sizes[cluster]
    pixels_per_entity = (height - 50) / position
    fine_line, line = 0.3, 1.0  # between bands of a few pixels, a whole one would hide them
    bands = clusters.tree.bands(end)
    thickness = [sum(sizes[leaf] for leaf in band.leaves) for band in bands]
    figure.add_trace(
        go.Bar(
            orientation="h",
            base=[band.start for band in bands],
            x=[band.end - band.start for band in bands],
            y=[top[b.leaves[0]] + size / 2 for b, size in zip(bands, thickness, strict=True)],
            width=thickness,
            marker={
                "color": [
                    mixed([colours[leaf] for leaf in b.leaves], [sizes[x] for x in b.leaves])
                    for b in bands
                ],
                "opacity": [0.92 if len(b.leaves) == 1 else 0.45 for b in bands],
                "line": {
                    "color": PAPER,
                    "width": [line if n > position / 120 else fine_line for n in thickness],
                },
            },
            customdata=[[_cluster_hover(clusters, b.leaves, sizes, shares)] for b in bands],
            hovertemplate="%{customdata[0]}<extra></extra>",
        )
    )
    for cluster in clusters.order:
        if sizes[cluster] * pixels_per_entity >= 12.5:
            names = _as_many_as_fit(clusters.members([cluster], 3), int(label_width / 6.3))
            figure.add_annotation(
                x=end,
                y=top[cluster] + sizes[cluster] / 2,
                text=safe(names),
                showarrow=False,
                xanchor="left",
                xshift=4,
                font={"size": 11.5, "color": INK},
            )
    figure.update_xaxes(
        title_text="epoch", range=[0, end], tickvals=whole_ticks(last_split, 8), showgrid=False
    )
    figure.update_yaxes(visible=False, range=[position, 0])
    figure.update_layout(bargap=0)
    return figure


def _as_many_as_fit(names: Sequence[str], length: int) -> str:
    """As many names as fit into so many characters; the first is cut if need be."""
    while len(names) > 1 and len(" · ".join(names)) > length:
        names = names[:-1]
    return cut(" · ".join(names), length)


# --- cluster sizes -------------------------------------------------------------------------------


def sizes_chart(clusters: Clusters, width: int) -> go.Figure:
    """Members per cluster, the largest first."""
    figure = empty_figure(width, 250, left=50, right=10, bottom=34, top=12)
    sizes, shares = clusters.sizes, clusters.shares
    order = sorted(sizes, key=lambda cluster: (-sizes[cluster], cluster))
    figure.add_trace(
        go.Bar(
            x=list(range(1, len(order) + 1)),
            y=[sizes[cluster] for cluster in order],
            marker={"color": method_colour("clustered"), "line": {"width": 0}},
            customdata=[[_cluster_hover(clusters, [c], sizes, shares)] for c in order],
            hovertemplate="%{customdata[0]}<extra></extra>",
        )
    )
    figure.update_layout(bargap=0.12)
    figure.update_xaxes(
        title_text=f"the {len(order)} {clusters.entity} clusters, largest first",
        showticklabels=False,
        showgrid=False,
    )
    figure.update_yaxes(title_text=f"{clusters.entity}s", nticks=6)
    return figure


def _cluster_hover(
    clusters: Clusters,
    leaves: Sequence[int],
    sizes: Mapping[int, int],
    shares: Mapping[int, float],
) -> str:
    count = sum(sizes[leaf] for leaf in leaves)
    share = sum(shares[leaf] for leaf in leaves)
    entity = clusters.entity if count == 1 else f"{clusters.entity}s"
    head = f"{count:,} {entity}, {percent(share)} of training interactions"
    if len(leaves) > 1:
        head += f"\nbecame {len(leaves)} clusters"
    names = [cut(name, 60) for name in clusters.members(leaves, _HOVER_MEMBERS)]
    if count > len(names):
        names[-1] += ", …"
    return safe("\n".join([head, *names]))


# --- item map ------------------------------------------------------------------------------------


def map_chart(
    items: pl.DataFrame, colours: Mapping[int, str], embedding: str, width: int
) -> go.Figure:
    """Items in two dimensions.

    items : with x and y, most popular first
    colours : by cluster; without clusters empty, and all dots have the colour of the embedding
    """
    is_narrow = width < _NARROW
    height = 620 if width >= _WIDE else 400 if is_narrow else 420
    figure = empty_figure(width, height, left=6, right=6, bottom=6, top=6)
    x, y = items["x"].to_list(), items["y"].to_list()
    most = max(1, *items["train_count"].to_list())
    hover = [
        safe(
            f"{cut(name_of('item', line), 70)}\n"
            + (f"cluster {line['cluster']}, " if line["cluster"] is not None else "")
            + f"{line['train_count']:,} training interactions"
        )
        for line in items.iter_rows(named=True)
    ]
    # The most popular are drawn last, on top.
    backwards = slice(None, None, -1)
    figure.add_trace(
        go.Scatter(
            x=[round(v, 4) for v in x[backwards]],
            y=[round(v, 4) for v in y[backwards]],
            mode="markers",
            marker={
                "color": [
                    colours.get(cluster, method_colour(embedding))
                    for cluster in items["cluster"].to_list()[backwards]
                ],
                "size": [
                    round(3.5 + 8.5 * math.sqrt(count / most), 1)
                    for count in items["train_count"].to_list()[backwards]
                ],
                "opacity": 0.78,
                "line": {"width": 0},
            },
            text=hover[backwards],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    x_range, y_range = padded(min(x), max(x), 0.05), padded(min(y), max(y), 0.05)
    _label_points(figure, items, (x_range, y_range), (width - 12, height - 12), is_narrow)
    figure.update_xaxes(range=x_range, visible=False, fixedrange=False)
    figure.update_yaxes(range=y_range, visible=False, fixedrange=False)
    figure.update_layout(dragmode=False if is_narrow else "zoom")
    return figure


def _label_points(
    figure: go.Figure,
    items: pl.DataFrame,
    ranges: tuple[Sequence[float], Sequence[float]],
    size: tuple[int, int],
    is_narrow: bool,
) -> None:
    """Name popular items where their names do not meet."""
    taken: list[Box] = []
    wanted = 8 if is_narrow else size[0] // 40
    for line in items.head(150).iter_rows(named=True):
        text = cut(name_of("item", line), 20 if is_narrow else 30)
        place = Box(
            in_pixels(line["x"] - ranges[0][0], ranges[0], size[0]),
            in_pixels(line["y"] - ranges[1][0], ranges[1], size[1]) + 11,
            6.4 * len(text) + 8,
            17,
        )
        is_inside = place.left > 0 and place.right < size[0] and place.y < size[1] - 12
        if not is_inside or any(map(place.meets, taken)):
            continue
        taken.append(place)
        figure.add_annotation(
            x=line["x"],
            y=line["y"],
            text=safe(text),
            showarrow=False,
            yshift=11,
            font={"size": 11, "color": INK},
            bgcolor=VEIL,
            borderpad=0,
        )
        if len(taken) == wanted:
            return


# --- cold against warm ---------------------------------------------------------------------------


SLICES = {
    "coldest_{}": "the coldest tenth",
    "{}_at_most_5": "at most 5 training interactions",
    "{}_at_most_20": "at most 20 training interactions",
    "": "all",
}
"""Slices of metrics.json, "{}" being users or items, and what they hold."""


def cold_chart(
    methods: Sequence[Method], entities: str, x_range: Sequence[float], width: int
) -> go.Figure:
    """A test figure on cold and on all events, a dot per method.

    entities : "users" or "items"
    x_range : shared by both charts
    """
    task = methods[0].runs[0].task
    line_height, head = 20, 25
    figure = empty_figure(width, 100, left=126, right=48, bottom=44, top=0)
    y = 0.0
    for slice_name, description in SLICES.items():
        y += head
        text = f"<b>{description}</b>  {_num_events(methods, slice_name.format(entities))}"
        _add_text(figure, text, y - 11, -126, INK)
        if not any(_is_known(methods, slice_name, e) for e in ("users", "items")):
            y += line_height
            _add_text(figure, "too few events to tell", y - line_height / 2, -126, QUIET)
            continue
        for number, method in enumerate(methods):
            y += line_height
            if _is_known(methods, slice_name, entities):
                name = slice_name.format(entities)
                _add_cold_dot(figure, method, name, x_range, y - line_height / 2)
            elif number == 0:
                _add_text(figure, "too few events to tell", y - line_height / 2, -126, QUIET)
    figure.update_yaxes(visible=False, range=[y, 0])
    figure.update_xaxes(range=x_range, title_text=f"{figure_name(task)} on the test set", nticks=5)
    figure.update_layout(height=y + 44)
    return figure


def cold_range(methods: Sequence[Method]) -> list[float]:
    """A common axis for all dots of `cold_chart`."""
    found = [
        value
        for method in methods
        for entities in ("users", "items")
        for name in SLICES
        for value in slice_values(method, name.format(entities))
    ]
    return padded(min(found), max(found), 0.12)


def slice_values(method: Method, name: str) -> list[float]:
    """The figure on a slice, per finished run; [] if it has too few events to mean anything.

    name : of metrics.json; "" for all events
    """
    values = []
    for run in method.finished:
        assert run.metrics is not None
        part = run.metrics.get(name, {}) if name else run.metrics
        value = part.get(FIGURE[run.task])
        if value is None or part.get("num_events", 0) < (MIN_EVENTS if name else 0):
            return []
        values.append(value)
    return values


def _num_events(methods: Sequence[Method], name: str) -> str:
    counts = {
        (run.metrics.get(name, {}) if name else run.metrics).get("num_events", 0)
        for method in methods
        for run in method.finished
        if run.metrics is not None
    }
    if counts == {0}:
        return "no events"
    if len(counts) == 1:
        return f"{counts.pop():,} events"
    return f"{min(counts):,} to {max(counts):,} events"


def _is_known(methods: Sequence[Method], slice_name: str, entities: str) -> bool:
    return any(slice_values(method, slice_name.format(entities)) for method in methods)


def _add_cold_dot(
    figure: go.Figure, method: Method, name: str, x_range: Sequence[float], y: float
) -> None:
    """One line: the method's name, its dot, its figure."""
    colour = method_colour(method.embedding)
    label = method.variant or method.label
    if len(label) > 20:
        label = label.replace(" rows", "")
    _add_text(figure, safe(cut(label, 20)), y, -126, colour)
    values = slice_values(method, name)
    if not values:
        _add_text(figure, "too few events to tell", y, 4, QUIET)
        return
    mean, std = mean_and_std(values)
    figure.add_shape(
        type="line",
        x0=x_range[0],
        x1=x_range[1],
        y0=y,
        y1=y,
        line={"color": RULE, "width": 1},
        layer="below",
    )
    figure.add_trace(
        go.Scatter(
            x=[mean],
            y=[y],
            error_x={"array": [std or 0.0], "thickness": 1.2, "width": 3, "color": colour},
            mode="markers",
            marker={"color": colour, "size": 9},
            hovertemplate=f"{safe(method.label)}: {plus_minus(mean, std)}<extra></extra>",
        )
    )
    figure.add_annotation(
        x=1,
        xref="paper",
        xshift=6,
        y=y,
        text=f"{mean:.3f}",
        showarrow=False,
        xanchor="left",
        font={"size": 12, "color": colour},
    )


def _add_text(figure: go.Figure, text: str, y: float, x: int, colour: str) -> None:
    """Text that starts x pixels right of the plot's left edge."""
    figure.add_annotation(
        x=0,
        xref="paper",
        xshift=x,
        y=y,
        text=text,
        showarrow=False,
        xanchor="left",
        font={"size": 12, "color": colour},
    )
