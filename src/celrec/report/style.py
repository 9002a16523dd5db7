"""How charts look: colours, the empty figure, and helpers that place and cut."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from celrec.report.read import KINDS

# role: (on white paper, on a dark screen)
COLOURS = {
    "ink": ("#1d2733", "#e6eaef"),
    "quiet": ("#5c6773", "#a3adb8"),
    "rule": ("#e2e6ea", "#333c46"),
    "paper": ("#ffffff", "#14191f"),
    "veil": ("rgba(255,255,255,0.78)", "rgba(20,25,31,0.72)"),
    "clustered": ("#1a66c2", "#6cb0ff"),
    "hashed": ("#b2500a", "#f0a35e"),
    "full": ("#56606b", "#b4bdc7"),
    "blended": ("#0b5a2a", "#9cf2b4"),
    "personal": ("#8a0f7d", "#fa427f"),
    "other": ("#6b5500", "#d8c46a"),
    "violet": ("#7a2be0", "#9a7bff"),
    "earth": ("#3b2a00", "#ffe34d"),
}
INK, QUIET, RULE, PAPER, VEIL = (
    COLOURS[role][0] for role in ("ink", "quiet", "rule", "paper", "veil")
)

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def role_of(embedding: str) -> str:
    """The key in COLOURS of an embedding, the same on the whole page."""
    return embedding if embedding in KINDS else "other"


def method_colour(embedding: str) -> str:
    """The colour of an embedding on white paper."""
    return COLOURS[role_of(embedding)][0]


def empty_figure(
    width: int, height: int, *, left: int, right: int, bottom: int, top: int
) -> go.Figure:
    """An empty figure in the page's style."""
    figure = go.Figure()
    axis = {
        "gridcolor": RULE,
        "zeroline": False,
        "linecolor": RULE,
        "tickfont": {"color": QUIET, "size": 12},
        "title": {"font": {"color": QUIET, "size": 12.5}, "standoff": 6},
        "fixedrange": True,
    }
    figure.update_layout(
        template=go.layout.Template(),
        width=width,
        height=height,
        margin={"l": left, "r": right, "b": bottom, "t": top, "pad": 0},
        font={"family": _FONT, "size": 12, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={
            "bgcolor": PAPER,
            "bordercolor": RULE,
            "font": {"color": INK, "size": 13, "family": _FONT},
            "align": "left",
        },
        showlegend=False,
        hovermode="closest",
        dragmode=False,
        xaxis=axis,
        yaxis=axis,
    )
    return figure


@dataclass(frozen=True)
class Box:
    """A label's place, in pixels.

    x, y : its centre

    >>> Box(0, 0, 10, 4).meets(Box(9, 3, 10, 4)), Box(0, 0, 10, 4).meets(Box(11, 0, 10, 4))
    (True, False)
    """

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> float:
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        return self.x + self.width / 2

    def meets(self, other: Box) -> bool:
        """Whether the two overlap."""
        return (
            abs(self.x - other.x) < (self.width + other.width) / 2
            and abs(self.y - other.y) < (self.height + other.height) / 2
        )


def safe(text: str) -> str:
    """Text for plotly: tags are shown, not obeyed; a new line is a line break."""
    return html.escape(text, quote=False).replace("\n", "<br>")


def padded(low: float, high: float, share: float) -> list[float]:
    """A range with some room at both ends."""
    room = share * (high - low) or 0.05 * abs(high) or 1.0
    return [low - room, high + room]


def whole_ticks(last: int, most: int) -> list[int]:
    """Whole numbers from 0, a round step apart, with at most so many steps.

    >>> whole_ticks(2, 4), whole_ticks(30, 4)
    ([0, 1, 2], [0, 10, 20, 30])
    """
    steps = (factor * 10**power for power in range(9) for factor in (1, 2, 5))
    step = next(step for step in steps if last / step <= most)
    return list(range(0, last + 1, step))


def in_pixels(length: float, data_range: Sequence[float], pixels: float) -> float:
    """A length on an axis of so many pixels."""
    return length / (data_range[1] - data_range[0]) * pixels


def spread_apart(
    values: Sequence[float], data_range: Sequence[float], pixels: float, gap: float
) -> list[float]:
    """Move values apart, as little as needed, so that labels there do not meet.

    gap : in pixels
    """
    least = gap * (data_range[1] - data_range[0]) / pixels
    order = sorted(range(len(values)), key=lambda i: values[i])
    groups: list[list[int]] = []  # neighbours that touch, each spread about its middle

    def places(group: list[int]) -> list[float]:
        middle = sum(values[i] for i in group) / len(group)
        return [middle + (n - (len(group) - 1) / 2) * least for n in range(len(group))]

    for i in order:
        groups.append([i])
        while len(groups) > 1 and places(groups[-1])[0] - places(groups[-2])[-1] < least:
            touching = groups.pop()
            groups[-1] += touching
    spread = list(values)
    for group in groups:
        for i, place in zip(group, places(group), strict=True):
            spread[i] = place
    return spread


def mixed(colours: Sequence[str], weights: Sequence[float]) -> str:
    """The weighted mean of colours like #1a66c2; without weight the first."""
    if len(colours) == 1 or not any(weights):
        return colours[0]
    channels = [[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in colours]
    total = sum(weights)
    return hex_colour(
        tuple(
            sum(weight * channel[i] for weight, channel in zip(weights, channels, strict=True))
            / total
            for i in range(3)
        )
    )


def hex_colour(channels: Sequence[float]) -> str:
    """Red, green and blue in [0, 1] as #rrggbb."""
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)
