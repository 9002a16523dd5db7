"""What holds for any chart: the same data at any width, labels that keep apart."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celrec.report import charts
from celrec.report.clusters import clusters_of
from celrec.report.read import group_runs, read_runs, result_rows
from celrec.report.split_tree import replay_splits
from celrec.report.style import spread_apart
from tests.report.fabricate import fabricate_run

WIDTHS = (330, 680, 1040)


@pytest.fixture
def draw(tmp_path: Path) -> dict[str, Callable[[int], go.Figure]]:
    folders = [
        fabricate_run(tmp_path / "clustered", rows=5),
        fabricate_run(tmp_path / "full", embedding="full"),
    ]
    runs = read_runs(folders)
    methods = group_runs(runs)
    tree = replay_splits(runs[0].history, "item_embedding", runs[0].kept_epoch)
    clusters = clusters_of(runs[0], "item", tree)
    assert clusters is not None
    lines = {"4 rows": [(1, 0.5), (2, 0.6)], "8 rows": [(1, 0.5), (2, 0.61)]}
    return {
        "bytes": lambda width: charts.bytes_chart(result_rows(methods), "binary", width),
        "growth": lambda width: charts.growth_chart(lines, "AUC", width, is_count=False),
        "tree": lambda width: charts.tree_chart(clusters, width),
        "sizes": lambda width: charts.sizes_chart(clusters, width),
        "map": lambda width: charts.map_chart(
            clusters.frame, clusters.colours(), "clustered", width
        ),
        "cold": lambda width: charts.cold_chart(methods, "users", [0.4, 0.9], width),
    }


@pytest.mark.parametrize("name", ["bytes", "growth", "tree", "sizes", "map", "cold"])
def test_the_width_changes_the_layout_alone(
    draw: dict[str, Callable[[int], go.Figure]], name: str
) -> None:
    figures = [draw[name](width) for width in WIDTHS]
    assert [figure.layout.width for figure in figures] == list(WIDTHS)
    assert figures[0].to_dict()["data"] == figures[1].to_dict()["data"]
    assert figures[1].to_dict()["data"] == figures[2].to_dict()["data"]


def test_numbers_without_room_are_left_out(tmp_path: Path) -> None:
    runs = read_runs(
        fabricate_run(tmp_path / f"{kind}{rows}", embedding=kind, rows=rows)
        for kind in ("clustered", "blended")
        for rows in (8, 10, 12, 13, 14)
    )
    rows = result_rows(group_runs(runs))
    texts = [
        [note.text for note in charts.bytes_chart(rows, "binary", width).layout.annotations]
        for width in (330, 1040)
    ]
    assert len(texts[0]) < len(texts[1]) == 10
    for shown in texts:
        names = {text for text in shown if text.startswith("<b>")}
        assert names == {"<b>clustered<br>8 rows</b>", "<b>blended<br>8 rows</b>"}


@pytest.mark.parametrize("name", ["bytes", "growth", "sizes", "cold"])
def test_axes_say_what_they_are(draw: dict[str, Callable[[int], go.Figure]], name: str) -> None:
    layout = draw[name](680).layout
    assert layout.xaxis.title.text
    assert layout.yaxis.title.text or layout.yaxis.visible is False


def test_the_tree_is_as_thick_as_the_items(
    draw: dict[str, Callable[[int], go.Figure]],
) -> None:
    (bars,) = draw["tree"](1040).data
    ends = [base + length for base, length in zip(bars.base, bars.x, strict=True)]
    leaves = [w for w, end in zip(bars.width, ends, strict=True) if end == max(ends)]
    assert sorted(leaves) == [8] * 5
    assert [w for w, base in zip(bars.width, bars.base, strict=True) if base == 0] == [40]


def test_clusters_have_different_colours(tmp_path: Path) -> None:
    (run,) = read_runs([fabricate_run(tmp_path / "run", rows=36)])
    clusters = clusters_of(run, "item", None)
    assert clusters is not None
    assert len(set(clusters.colours().values())) == 36


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=8),
    st.floats(1, 30),
)
def test_labels_are_moved_apart_and_keep_their_order(values: Sequence[float], gap: float) -> None:
    places = spread_apart(values, [0, 1], 200, gap)
    ranked = sorted(range(len(values)), key=lambda i: values[i])
    steps = [places[b] - places[a] for a, b in itertools.pairwise(ranked)]
    assert all(step >= gap / 200 - 1e-9 for step in steps)
    assert sum(places) == pytest.approx(sum(values), abs=1e-9)
