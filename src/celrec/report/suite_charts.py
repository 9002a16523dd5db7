"""The charts of a suite's page, as plotly figures; as in charts.py, width decides layout alone.

Ours has its colour and a thick line, the best few others have colours and names, and the rest are
thin and grey: named when pointed at, and in the tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import plotly.graph_objects as go

from celrec.report.style import (
    COLOURS,
    QUIET,
    VEIL,
    empty_figure,
    in_pixels,
    padded,
    safe,
    spread_apart,
)
from celrec.report.suite_content import Standing, Suite
from celrec.report.suite_words import share, smaller
from celrec.report.words import cut, figure_name, plus_minus, readable_bytes, times

RIVAL_ROLES = ("hashed", "personal", "blended", "violet", "earth")
"""Keys in COLOURS of the best others, in their order; further ones are grey."""

_NARROW, _WIDE = 560, 900
_GREY_ROOM = 0.6
"""How far grey lines may stretch the chart, as a share of what named ones take."""


def roles_of(suite: Suite) -> dict[str, str]:
    """The key in COLOURS of ours and of the best others; the rest have none."""
    rivals = [method for method in suite.others if method in suite.mean_rank]
    return {suite.ours: "clustered", **dict(zip(rivals, RIVAL_ROLES, strict=False))}


def suite_chart(suite: Suite, by: Literal["total", "table"], width: int) -> go.Figure:
    """The figure against bytes, a line per method, a band of one standard deviation.

    by : "total" bytes, or those of "table" rows alone; as shares of full tables, logarithmic
    """
    is_narrow = width < _NARROW
    lines = []
    for method in suite.methods:
        found = [suite.standings.get((method, budget)) for budget in suite.budgets]
        dots = [
            _Dot(
                one.total_share if by == "total" else one.table_share,
                one.mean,
                one.std,
                _hover(suite, one),
            )
            for one in found
            if one is not None
        ]
        lines.append(_Line(method, tuple(dot for dot in dots if dot.x > 0)))
    figure = empty_figure(
        width,
        500 if width >= _WIDE else 420,
        left=52,
        right=106 if is_narrow else 176,
        bottom=64,
        top=12,
    )
    levels = _levels(suite)
    kind = "all bytes" if by == "total" else "bytes of rows alone"
    _draw(figure, suite, lines, levels, has_names=True)
    for place, level in enumerate(levels):  # side by side: they may be as high as each other
        figure.add_annotation(
            x=place / len(levels),
            xref="paper",
            xshift=6,
            y=level.y,
            yshift=9,
            text=safe(level.name),
            showarrow=False,
            xanchor="left",
            font={"size": 12, "color": COLOURS["full"][0]},
            bgcolor=VEIL,
            borderpad=0,
        )
    figure.update_xaxes(title_text=f"{kind}, as a share of full tables (logarithmic)")
    better = "higher" if suite.task == "binary" else "lower"
    figure.update_yaxes(title_text=f"{figure_name(suite.task)} on the test set, {better} is better")
    return figure


def num_outside(suite: Suite) -> int:
    """Methods of which `suite_chart` leaves out a figure, for it is too far from the others."""
    lines = [
        _Line(
            method,
            tuple(
                _Dot(one.total_share, one.mean, one.std, "")
                for budget in suite.budgets
                if (one := suite.standings.get((method, budget)))
            ),
        )
        for method in suite.methods
    ]
    low, high = _y_range(suite, lines, _levels(suite))
    return sum(any(not low <= dot.y <= high for dot in line.dots) for line in lines)


def slice_chart(
    suite: Suite,
    figures: Mapping[tuple[str, float], float],
    full: float | None,
    y_range: Sequence[float],
    width: int,
) -> go.Figure:
    """The figure on a slice against budgets, a line per method.

    figures[method, budget] : without full tables, which have one figure
    y_range : shared by all slices
    """
    figure = empty_figure(width, 260, left=46, right=12, bottom=44, top=8)
    lines = [
        _Line(
            method,
            tuple(
                _Dot(
                    budget,
                    figures[method, budget],
                    None,
                    safe(f"{method} at {share(budget)}: {figures[method, budget]:.3f}"),
                )
                for budget in suite.budgets
                if (method, budget) in figures
            ),
        )
        for method in suite.methods
    ]
    levels = [] if full is None else [_Level(full, None, f"full tables: {full:.3f}")]
    _draw(figure, suite, lines, levels, has_names=False, y_range=y_range)
    figure.update_xaxes(title_text="budget")
    figure.update_yaxes(title_text=figure_name(suite.task), nticks=6)
    return figure


def slices_range(
    suite: Suite, slices: Sequence[tuple[Mapping[tuple[str, float], float], float | None]]
) -> list[float]:
    """A common axis for the charts of slices.

    slices : figures and that of full tables, as in `slice_chart`
    """
    lines = [
        _Line(method, (_Dot(budget, mean, None, ""),))
        for figures, _ in slices
        for (method, budget), mean in figures.items()
    ]
    levels = [full for _, full in slices if full is not None]
    lines += [_Line(suite.ours, (_Dot(1.0, full, None, ""),)) for full in levels]
    return _y_range(suite, lines, [])


# --- lines ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Dot:
    """x is a share of full tables' bytes."""

    x: float
    y: float
    std: float | None
    hover: str


@dataclass(frozen=True)
class _Line:
    method: str
    dots: tuple[_Dot, ...]


@dataclass(frozen=True)
class _Level:
    """A method of any size: one figure, whatever the budget."""

    y: float
    std: float | None
    hover: str
    name: str = ""


def _levels(suite: Suite) -> list[_Level]:
    """Full tables, and the best peer."""
    return [
        _Level(one.mean, one.std, _hover(suite, one), f"{suite.label(one.method)}, {one.mean:.3f}")
        for one in (suite.full, *suite.peers[:1])
        if one is not None
    ]


def _draw(
    figure: go.Figure,
    suite: Suite,
    lines: Sequence[_Line],
    levels: Sequence[_Level],
    *,
    has_names: bool,
    y_range: Sequence[float] | None = None,
) -> None:
    """Lines, the best on top; axes; and names at the right, where wanted."""
    lines = [line for line in lines if line.dots]
    roles = roles_of(suite)
    x_values = [dot.x for line in lines for dot in line.dots] or list(suite.budgets)
    # Room at the right for the lines that lead to names.
    room = 0.035 * max(0.7, math.log10(max(x_values) / min(x_values)))
    ends = (math.log10(min(x_values)) - room, math.log10(max(x_values)) + 1.6 * room)
    y_range = y_range or _y_range(suite, lines, levels)
    for level in levels:
        _add_level(figure, level, ends)
    for line in reversed([line for line in lines if line.method not in roles]):
        _add_line(figure, line, QUIET, width=1, size=4, opacity=0.32)
    coloured = [line for line in lines if line.method in roles]
    coloured.sort(key=lambda line: list(roles).index(line.method), reverse=True)
    for line in coloured:
        is_ours = line.method == suite.ours
        colour = COLOURS[roles[line.method]][0]
        _add_spread(figure, line, colour, opacity=0.2 if is_ours else 0.1)
        width, size = (3.6, 9) if is_ours else (1.7, 6)
        _add_line(figure, line, colour, width=width, size=size, opacity=1.0)
    if has_names:
        _add_names(figure, suite, coloured, ends, y_range)
    _set_ticks(figure, suite, ends)
    figure.update_xaxes(type="log", range=ends)
    figure.update_yaxes(range=y_range)


def _y_range(suite: Suite, lines: Sequence[_Line], levels: Sequence[_Level]) -> list[float]:
    """All of what has a name; grey lines stretch it a little towards the worse, no further."""
    roles = roles_of(suite)
    named = [
        dot.y + sign * (dot.std or 0.0)
        for line in lines
        if line.method in roles
        for dot in line.dots
        for sign in (1, -1)
    ]
    for level in levels:
        named += [level.y + (level.std or 0.0), level.y - (level.std or 0.0)]
    every = [dot.y for line in lines for dot in line.dots] + named
    if not every:
        return [0.0, 1.0]
    low, high = min(named or every), max(named or every)
    room = _GREY_ROOM * (high - low)
    shown = [y for y in every if low - room <= y <= high + room]
    return padded(min(shown), max(shown), 0.06)


def _add_line(
    figure: go.Figure, line: _Line, colour: str, *, width: float, size: float, opacity: float
) -> None:
    figure.add_trace(
        go.Scatter(
            name=safe(line.method),
            x=[dot.x for dot in line.dots],
            y=[dot.y for dot in line.dots],
            mode="lines+markers",
            opacity=opacity,
            line={"color": colour, "width": width},
            marker={"color": colour, "size": size},
            customdata=[[dot.hover] for dot in line.dots],
            hovertemplate="%{customdata[0]}<extra></extra>",
        )
    )


def _add_spread(figure: go.Figure, line: _Line, colour: str, *, opacity: float) -> None:
    """A band of one standard deviation; upright lines where there is but one dot."""
    dots = [dot for dot in line.dots if dot.std is not None]
    upper = [(dot.x, dot.y + (dot.std or 0.0)) for dot in dots]
    lower = [(dot.x, dot.y - (dot.std or 0.0)) for dot in dots]
    around = upper + lower[::-1]
    if len(dots) == 1:
        around = [upper[0], lower[0]]
    if not around:
        return
    is_band = len(dots) > 1
    figure.add_trace(
        go.Scatter(
            x=[x for x, _ in around],
            y=[y for _, y in around],
            mode="lines",
            line={"color": colour, "width": 0 if is_band else 2},
            fill="toself" if is_band else "none",
            fillcolor=colour,
            opacity=opacity if is_band else 0.6,
            hoverinfo="skip",
        )
    )


def _add_level(figure: go.Figure, level: _Level, ends: Sequence[float]) -> None:
    colour = COLOURS["full"][0]
    # Many points: the line is found wherever it is pointed at.
    x = [10 ** (ends[0] + step / 24 * (ends[1] - ends[0])) for step in range(25)]
    figure.add_trace(
        go.Scatter(
            x=x,
            y=[level.y] * len(x),
            mode="lines",
            line={"color": colour, "width": 1.6, "dash": "dot"},
            hovertemplate=f"{level.hover}<extra></extra>",
        )
    )


def _add_names(
    figure: go.Figure,
    suite: Suite,
    lines: Sequence[_Line],
    ends: Sequence[float],
    y_range: Sequence[float],
) -> None:
    """Names right of the plot, at the height of the last dot or near it, tied to it."""
    layout = figure.layout
    up = layout.height - layout.margin.t - layout.margin.b
    length = int((layout.margin.r - 10) / 7)
    named = [
        (line.method, COLOURS[roles_of(suite)[line.method]][0], line.dots[-1].x, line.dots[-1].y)
        for line in lines
    ]
    heights = spread_apart([y for *_, y in named], y_range, up, gap=16)
    for (name, colour, x, y), height in zip(named, heights, strict=True):
        is_ours = name == suite.ours
        label = safe(cut(name, length - is_ours))
        figure.add_annotation(
            x=1,
            xref="paper",
            xshift=5,
            y=height,
            text=f"<b>{label}</b>" if is_ours else label,
            showarrow=False,
            xanchor="left",
            font={"size": 13 if is_ours else 12, "color": colour},
        )
        figure.add_shape(
            type="line",
            x0=x,
            x1=10 ** ends[1],
            y0=y,
            y1=height,
            line={"color": colour, "width": 1},
            opacity=0.45,
            layer="below",
        )


def _set_ticks(figure: go.Figure, suite: Suite, ends: Sequence[float]) -> None:
    """Budgets, and round shares where there is room between them; how much smaller under each."""
    layout = figure.layout
    across = layout.width - layout.margin.l - layout.margin.r
    is_small = across < 380
    gap = 32 if is_small else 64
    rounds = [10.0**power for power in range(-9, 1)]
    rounds += [factor * power for power in rounds for factor in (2, 5)]
    inside = [tick for tick in (*suite.budgets, *rounds) if ends[0] <= math.log10(tick) <= ends[1]]
    ticks: list[float] = []
    for tick in inside:
        place = math.log10(tick)
        if all(abs(in_pixels(place - math.log10(t), ends, across)) >= gap for t in ticks):
            ticks.append(tick)
    texts = [share(tick) if is_small else f"{share(tick)}<br>{smaller(tick)}" for tick in ticks]
    figure.update_xaxes(tickvals=ticks, ticktext=texts)


def _against_full(share: float) -> str:
    """
    >>> _against_full(0.01), _against_full(1.0), _against_full(13.0)
    ('100 times smaller than full', '1.0 times smaller than full', '13 times larger than full')
    """
    if share > 1:
        return f"{times(share)} times larger than full"
    return f"{times(1 / share)} times smaller than full"


def _hover(suite: Suite, one: Standing) -> str:
    seeds = f", {one.runs} seed{'' if one.runs == 1 else 's'}"
    lines = [
        suite.label(one.method) + ("" if one.budget is None else f" at {share(one.budget)}"),
        f"{figure_name(suite.task)} {plus_minus(one.mean, one.std)}{seeds}",
        f"{readable_bytes(one.total_bytes)}, {_against_full(one.total_share)}",
        f"{readable_bytes(one.table_bytes)} of these in rows",
    ]
    if one.seconds is not None:
        lines.append(f"{one.seconds:,.0f} s to train")
    return safe("\n".join(lines[:3] if one.budget is None else lines))
