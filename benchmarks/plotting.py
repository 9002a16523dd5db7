"""How the plots in docs/results look: one style, direct labels, the same file from the same data.

matplotlib comes with the `dev` extra, and is imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, RULE = "#1d2733", "#5c6773", "#e2e6ea"

# The methods of celrec.report.style, and users and items where a plot shows one method's tables.
COLOURS = {
    "clustered": "#1a66c2",
    "blended": "#0b5a2a",
    "personal": "#8a0f7d",
    "hashed": "#b2500a",
    "full": "#56606b",
    "other": "#6b5500",
    "user": "#1a66c2",
    "item": "#b2500a",
    "truth": "#98a2ad",
}

_STYLE: dict[Any, Any] = {
    # Text is drawn as outlines, so that every reader sees the same; white paper suits both themes.
    "svg.fonttype": "path",
    "svg.hashsalt": "celrec",  # ids in the file do not change from run to run
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.08,
    "font.size": 9,
    "text.color": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 9,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": RULE,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "lines.solid_capstyle": "round",
}


def new_figure(
    num_columns: int = 1,
    num_rows: int = 1,
    *,
    width: float = 7.2,
    height: float = 3.2,
    **options: Any,
) -> tuple[Figure, list[Axes]]:
    """An empty figure and its axes, from left to right, then down.

    width, height : in inches; a page of the documentation is 7.2 wide
    options : of `Figure.subplots`, such as sharey
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update(_STYLE)
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(num_rows, num_columns, squeeze=False, **options)
    return figure, list(axes.flat)


def label(
    axes: Axes, x: float, y: float, text: str, colour: str, *, dx: float = 6, dy: float = 0
) -> None:
    """Write a name beside a point of its line, in its line's colour.

    x, y : the point, in units of the data
    dx, dy : from there to the text, in points; text stands right of the point if dx >= 0, left of
        it otherwise, and straight above or below it if dx is 0
    """
    axes.annotate(
        text,
        (x, y),
        xytext=(dx, dy),
        textcoords="offset points",
        color=colour,
        ha="center" if dx == 0 else "left" if dx > 0 else "right",
        va="center" if dx else "bottom" if dy > 0 else "top",
        annotation_clip=False,
    )


def ticks_at(axes: Axes, values: Sequence[float], names: Sequence[str] | None = None) -> None:
    """Mark these values of x, and no others."""
    axes.set_xticks(values, [f"{value:g}" for value in values] if names is None else names)
    axes.minorticks_off()


def save(figure: Figure, path: Path | str) -> None:
    """Write an SVG file whose bytes depend on the figure alone (or a PNG, to look at)."""
    path = Path(path)
    if path.suffix == ".svg":
        figure.savefig(path, metadata={"Date": None, "Creator": None})
    else:
        figure.savefig(path, dpi=200)
