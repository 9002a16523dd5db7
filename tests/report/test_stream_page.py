"""The page about a stream says what its history says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from celrec.errors import CheckpointError
from celrec.history import append_history
from celrec.report.stream_page import MOST_POINTS, over_events_chart, render_stream_page, thinned
from tests.report.reading_html import Page

WINDOW = 100


def window_line(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "window": number,
        "num_events": number * WINDOW,
        "auc": 0.6 + 0.01 * number,
        "log_loss": 0.6 - 0.01 * number,
        "means_auc": 0.62,
        "means_log_loss": 0.59,
        "clusters": {"user": number, "item": 2 * number},
        "entities": {"user": 10 * number, "item": 5 * number},
        "used_bytes": 5000 + number,
        "time": 86_400.0 * number,
        "dead_letters": 3 * number,
        "dropped": 0,
    } | changes


def write_stream(folder: Path, lines: list[dict[str, Any]], **about: Any) -> Path:
    folder.mkdir()
    config = {
        "address": "redis://ann:secret@host:6379/clicks",
        "format": {"label": "<b>label</b>"},
        "settings": {"window": WINDOW, "max_bytes": 9000, "rule": {"memory": 0.99}},
    }
    content = {"config": config, "command": ["celrec", "stream", config["address"]]} | about
    (folder / "stream.json").write_text(json.dumps(content))
    for line in lines:
        append_history(folder / "history.jsonl", line)
    return folder


@pytest.fixture
def page(tmp_path: Path) -> Page:
    lines = [window_line(number) for number in range(1, 6)]
    return Page(render_stream_page(write_stream(tmp_path / "clicks", lines)))


def test_the_headline_and_the_means_beside_it(page: Page) -> None:
    assert "After 500 events, the AUC of the last 100 is 0.650, in 5.0 kB." in page.text
    assert "Over 5 windows the mean is 0.630; running means of users and items" in page.text
    assert "reach 0.620, and are behind in 3." in page.text
    assert "clicks" in page.text


def test_the_charts_show_the_history(page: Page) -> None:
    def lines(name: str) -> dict[str, Any]:
        traces = page.charts[name]["data"]
        return [(trace["x"], trace["y"]) for trace in traces]

    events = [100, 200, 300, 400, 500]
    assert lines("auc-line")[0] == (events, pytest.approx([0.61, 0.62, 0.63, 0.64, 0.65]))
    assert lines("auc-line")[1] == (events, [0.62] * 5)
    assert lines("log-loss")[1] == (events, [0.59] * 5)
    assert lines("clusters") == [(events, [1, 2, 3, 4, 5]), (events, [2, 4, 6, 8, 10])]
    assert lines("entities")[0] == (events, [10, 20, 30, 40, 50])
    assert lines("used-bytes") == [(events, [5001 + n for n in range(5)]), ([0, 500], [9000] * 2)]
    assert lines("dead-letters") == [(events, [3, 6, 9, 12, 15])]


def test_facts_are_there_and_passwords_are_not(page: Page) -> None:
    assert "redis://ann:***@host:6379/clicks" in page.text
    assert "secret" not in str(page.elements) + page.text + str(page.scripts)
    assert "1970-01-02 00:00:00 to 1970-01-06 00:00:00" in page.text
    assert "<b>label</b>" in page.text  # shown, not obeyed
    assert "memory" in page.text


def test_windows_of_one_class_have_no_auc_and_are_left_out(tmp_path: Path) -> None:
    lines = [window_line(n, auc=None, means_auc=None, time=None) for n in (1, 2)]
    page = Page(render_stream_page(write_stream(tmp_path / "a", lines)))
    assert "AUC of the last 100 is undefined, for all labels are the same" in page.text
    assert "auc-line" in page.charts
    assert page.charts["auc-line"]["data"] == []
    assert len(page.charts["log-loss"]["data"]) == 2


def test_counts_have_whole_ticks() -> None:
    for count, top in ((0, 5), (3, 5), (100, 108)):
        figure = over_events_chart({"": [(1, float(count))]}, 400, is_count=True)
        assert figure.layout.yaxis.range == (0, pytest.approx(top))


def test_long_histories_are_drawn_by_their_means() -> None:
    points = [(float(n), float(n % 2)) for n in range(1, 10 * MOST_POINTS + 1)]
    drawn = thinned(points)
    assert len(drawn) == MOST_POINTS
    assert drawn[-1] == (10.0 * MOST_POINTS, 0.5)
    assert thinned(points[:7]) == points[:7]


def test_a_stream_without_a_window_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no finished window of 100 events to draw"):
        render_stream_page(write_stream(tmp_path / "a", []))


@pytest.mark.parametrize("content", ["", "[]", '{"config": 3}'])
def test_a_damaged_description_is_named(tmp_path: Path, content: str) -> None:
    folder = write_stream(tmp_path / "a", [window_line(1)])
    (folder / "stream.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"stream\.json is missing or damaged"):
        render_stream_page(folder)


def test_a_damaged_history_is_named(tmp_path: Path) -> None:
    folder = write_stream(tmp_path / "a", [window_line(1)])
    (folder / "history.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(CheckpointError, match='wanted a JSON object with an integer "window"'):
        render_stream_page(folder)
