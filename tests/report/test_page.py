"""The page as a whole: self-contained, safe, complete, and true to the files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from celrec.errors import ArgumentError, CelrecError, CheckpointError, DataError
from celrec.report import style
from celrec.report.charts import MAP_LIMIT
from celrec.report.page import render_page, write_report
from tests.report.fabricate import demo_row, fabricate_run
from tests.report.reading_html import Page, texts_of

ALL_SECTIONS = ["bytes", "growth", "tree", "sizes", "map", "cold", "run"]
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    '<a href="http://evil.example/">free</a>',
    "<b>Bold</b> & <br> %{x} {{ 7 * 7 }}",
    "<!-- <script>",
]


@pytest.fixture(scope="module")
def three_methods(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds each of clustered (4 and 8 rows), hashed and full tables."""
    folder = tmp_path_factory.mktemp("runs")
    figures = {
        ("clustered", 4): 0.80,
        ("clustered", 8): 0.82,
        ("hashed", 5): 0.6,
        ("full", 0): 0.84,
    }
    return [
        fabricate_run(
            folder / f"{embedding}-{rows}-{seed}",
            embedding=embedding,
            rows=rows or None,
            seed=seed,
            figure=figure + 0.01 * seed,
        )
        for (embedding, rows), figure in figures.items()
        for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def text(three_methods: list[Path]) -> str:
    """Their page."""
    return render_page(three_methods)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    """Their page, read back."""
    return Page(text)


def test_the_page_has_every_section_in_order(page: Page) -> None:
    assert page.sections == ALL_SECTIONS
    assert [tag for tag, _ in page.elements].count("h1") == 1
    boxes = [a["id"] for tag, a in page.elements if tag == "div" and a.get("class") == "chart"]
    assert sorted(boxes) == sorted(page.charts)


def test_the_page_loads_nothing(text: str, page: Page) -> None:
    assert not {tag for tag, _ in page.elements} & {"link", "img", "iframe", "object", "base"}
    for tag, attributes in page.elements:
        assert not {"src", "href", "srcset", "action"} & set(attributes), (tag, attributes)
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert page.policy.startswith("default-src 'none';")
    assert len(re.findall(r"^\* plotly\.js v", text, flags=re.MULTILINE)) == 1


def test_only_its_own_scripts_may_run(page: Page) -> None:
    allowed = page.policy.split("script-src ")[1].split(" ")
    assert allowed == page.hashes()
    assert len(allowed) == 2


def test_texts_from_data_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    run = fabricate_run(tmp_path / "run", titles=HOSTILE, data_name=HOSTILE[0], rows=3)
    page = Page(render_page([run], title=HOSTILE[1]))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"img", "a", "b", "br"}
    assert [kind for kind, _ in page.scripts] == ["application/json", None, None]
    assert HOSTILE[0] in page.text
    assert HOSTILE[1] in page.text
    # plotly obeys a few tags itself: they must reach it as entities.
    hover = page.charts["map"]["data"][0]["text"]
    assert any(text.startswith('&lt;a href="http://evil.example/"&gt;free') for text in hover)
    for name in ("map", "tree", "item-sizes"):
        shown = texts_of(page.charts[name])
        assert set(re.findall(r"<[^>]*>", shown)) <= {"<br>", "<extra>", "</extra>"}


def test_the_table_shows_the_figures_of_the_files(three_methods: list[Path], page: Page) -> None:
    assert page.rows[0] == [
        "embedding",
        "rows per table",
        "AUC",
        "AUC, coldest users",
        "AUC, coldest items",
        "table bytes",
        "total bytes",
        "times smaller",
        "seconds",
    ]
    # 2 tables of 4 rows of 32 numbers of 4 bytes, and a byte for each of 70 entities
    assert page.rows[1] == [
        "clustered", "4", "0.805 ± 0.007", "0.700", "0.700", "1.0 kB", "1.1 kB", "8.2", "4.5",
    ]  # fmt: skip
    assert page.rows[4] == [
        "full tables", "one each", "0.845 ± 0.007", "0.700", "0.700", "9.0 kB", "9.0 kB", "1.0",
        "4.5",
    ]  # fmt: skip
    assert len(page.rows) == 5
    assert "standard deviation over 2 seeds" in page.text
    metrics = json.loads((three_methods[0] / "metrics.json").read_text())
    titles = [a["title"] for tag, a in page.elements if tag == "td" and "title" in a]
    assert titles[:2] == [str(metrics["memory"][f"{name}_bytes"]) for name in ("table", "total")]


def test_the_charts_show_the_figures_of_the_files(page: Page) -> None:
    charts = page.charts
    lines = {tuple(trace["x"]): trace["y"] for trace in charts["bytes"]["data"]}
    assert lines[(1094, 2118)] == pytest.approx([0.805, 0.825])
    assert lines[(8960,)] == pytest.approx([0.845])
    growth = [trace["y"] for trace in charts["item-clusters"]["data"]]
    assert growth == [[1, 2, 3, 4, 4, 4, 4], [1, *range(2, 9), 8, 8, 8]]
    assert sum(charts["item-sizes"]["data"][0]["y"]) == 40
    assert len(charts["map"]["data"][0]["x"]) == 40
    dots = [trace["x"][0] for trace in charts["cold-users"]["data"]]
    assert dots[:2] == [0.7, 0.7]  # the coldest tenth, before the other slices
    assert dots[-1] == pytest.approx(0.845)


def test_rows_of_the_demo_are_shown_as_they_are(three_methods: list[Path]) -> None:
    rows = [
        demo_row(embedding="full", rows_per_table=None, auc_mean=0.9, times_smaller=1.0),
        demo_row(),
    ]
    page = Page(render_page(three_methods, demo_rows=rows))
    assert [row[0] for row in page.rows[1:]] == ["full tables", "clustered", "clustered", "hashed"]
    assert page.rows[2] == [
        "clustered", "4", "0.812 ± 0.005", "0.701", "too few", "1.0 kB", "1.1 kB", "8.2", "3.2",
    ]  # fmt: skip
    assert page.rows[3][2] == "0.825 ± 0.007"  # 8 rows, which the demo rows do not have


def test_kinds_of_codes_are_told_apart(tmp_path: Path) -> None:
    figures = {"full": 0.85, "personal": 0.86, "blended": 0.84, "clustered": 0.82}
    runs = [
        fabricate_run(tmp_path / kind, embedding=kind, rows=5, figure=figure)
        for kind, figure in figures.items()
    ]
    page = Page(render_page(runs))
    assert page.sections == ALL_SECTIONS
    assert [row[0] for row in page.rows[1:]] == ["clustered", "blended", "personal", "full tables"]
    assert "Personal vectors with 5 rows per table reach AUC 0.860" in page.text
    assert "At the other end, clustered embeddings with 5 rows per table reach 0.820" in page.text
    for sentence in (
        "Clustered: every user and item has the row of its cluster.",
        "Blended: the vector of a user or item is a weighted mix of the rows of 4 clusters.",
        "Personal: all 30 users and 39 of 40 items have a vector of their own beside the shared",
    ):
        assert sentence in page.text
    colours = {trace["line"]["color"] for trace in page.charts["bytes"]["data"]}
    assert colours == {style.method_colour(kind) for kind in figures}
    assert len(page.charts["item-clusters"]["data"]) == 1  # they grew alike
    dots = [trace["x"][0] for trace in page.charts["cold-users"]["data"]]
    assert sorted(dots[-4:]) == pytest.approx([0.82, 0.84, 0.85, 0.86])
    assert "personal, 5 rows embedding clustered, user_rows 5, item_rows 5" in page.text


def test_a_cluster_without_members_stays_in_the_tree(tmp_path: Path) -> None:
    """Codes may use a row although no code weighs it heaviest."""
    run = fabricate_run(tmp_path / "run", embedding="blended", rows=4)
    items = pl.read_parquet(run / "items.parquet")
    joined = pl.when(pl.col("cluster") == 3).then(2).otherwise(pl.col("cluster"))
    items.with_columns(joined.cast(pl.Int32).alias("cluster")).write_parquet(run / "items.parquet")
    page = Page(render_page([run]))
    assert "How 40 items became 4 clusters" in page.text
    assert page.charts["item-sizes"]["data"][0]["y"] == [20, 10, 10, 0]
    assert "Of the clusters that a code mixes, the heaviest counts." in page.text


def test_rows_that_the_data_chose(tmp_path: Path) -> None:
    auto = {"embedding": {"kind": "clustered", "user_rows": "auto", "item_rows": "auto"}}
    page = Page(render_page([fabricate_run(tmp_path / "run", config=auto)]))
    assert page.rows[1][:2] == ["clustered", "auto"]
    assert "Clustered embeddings with as many rows as the data pay for reach AUC" in page.text


def test_one_run_is_enough(tmp_path: Path) -> None:
    page = Page(render_page([fabricate_run(tmp_path / "run")]))
    assert page.sections == ALL_SECTIONS[1:]  # one size against nothing is no comparison
    assert page.rows[1][2] == "0.820"
    assert "standard deviation" not in page.text
    assert "From one cluster to 4 user and 4 item clusters in 6 epochs" in page.text


def test_ratings_have_mse_and_rmse(tmp_path: Path) -> None:
    runs = [
        fabricate_run(tmp_path / "a", task="rating", figure=0.81, has_validation=False),
        fabricate_run(tmp_path / "b", task="rating", figure=0.85, embedding="full"),
    ]
    page = Page(render_page(runs))
    assert page.rows[0][2:5] == ["MSE", "RMSE", "MSE, coldest users"]
    assert page.rows[1][2:4] == ["0.810", "0.900"]
    assert "0.040 better than their 0.850" in page.text
    assert "training-loss" in page.charts


@pytest.mark.parametrize(
    ("without", "sections"),
    [
        (["history.jsonl"], ["bytes", "sizes", "map", "cold", "run"]),
        (["items.parquet", "users.parquet"], ["bytes", "growth", "cold", "run"]),
        (["items.parquet"], ["bytes", "growth", "tree", "sizes", "cold", "run"]),
        (["metrics.json"], ["growth", "tree", "sizes", "map", "run"]),
        (["run.json"], ALL_SECTIONS),
        (
            ["run.json", "history.jsonl", "items.parquet", "users.parquet", "metrics.json"],
            ["run"],
        ),
    ],
)
def test_what_is_missing_is_left_out(
    tmp_path: Path, without: list[str], sections: list[str]
) -> None:
    runs = [
        fabricate_run(tmp_path / "clustered", without=without),
        fabricate_run(tmp_path / "hashed", embedding="hashed", without=without),
    ]
    page = Page(render_page(runs))
    assert page.sections == sections
    assert all(chart["data"] for chart in page.charts.values())


def test_full_tables_alone_have_a_map_and_no_clusters(tmp_path: Path) -> None:
    page = Page(render_page([fabricate_run(tmp_path / "full", embedding="full")]))
    assert page.sections == ["map", "cold", "run"]
    assert "Full tables reach AUC 0.820 in 9.0 kB." in page.text


def test_an_unfinished_run_says_how_far_it_is(tmp_path: Path) -> None:
    run = fabricate_run(tmp_path / "run", without=["metrics.json"])
    page = Page(render_page([run]))
    assert "Not finished yet: clustered, 4 rows, after 6 of 30 epochs." in page.text
    assert page.rows == []


def test_too_few_events_are_said(tmp_path: Path) -> None:
    page = Page(render_page([fabricate_run(tmp_path / "run", coldest=None)]))
    assert page.rows[1][3:5] == ["too few", "too few"]
    notes = [note["text"] for note in page.charts["cold-items"]["layouts"][0]["annotations"]]
    assert notes.count("too few events to tell") == 2  # the coldest tenth, and at most 5
    assert "<b>at most 5 training interactions</b>  no events" in notes


def test_a_large_map_is_cut_and_says_so(tmp_path: Path) -> None:
    run = fabricate_run(tmp_path / "run", num_items=MAP_LIMIT + 200)
    page = Page(render_page([run]))
    trace = page.charts["map"]["data"][0]
    assert len(trace["x"]) == MAP_LIMIT
    assert trace["text"][-1].startswith("item 100<br>")  # the most popular, drawn on top
    assert "The 3,000 items with most interactions of 3,200 are shown." in page.text


def test_methods_of_equal_rows_are_told_apart(tmp_path: Path) -> None:
    runs = [
        fabricate_run(tmp_path / str(rate), config={"training": {"learning_rate": rate}})
        for rate in (0.01, 0.02)
    ]
    page = Page(render_page(runs))
    assert [row[:2] for row in page.rows[1:]] == [
        ["clustered, learning_rate 0.01", "4"],
        ["clustered, learning_rate 0.02", "4"],
    ]


def test_what_the_run_was_is_all_there(page: Page) -> None:
    for fact in (
        "made-up: 1,234 interactions, 30 users, 40 items",
        "f" * 64,
        "leave_last_out: 1,000 train, 34 validation, 200 test",
        "celrec train made-up.csv --task binary",
        "torch 2.13.0",
        "threads 1",
        "clustered, 8 rows embedding clustered, user_rows 8, item_rows 8",
    ):
        assert fact in page.text


def test_a_run_named_twice_counts_once(tmp_path: Path) -> None:
    run = fabricate_run(tmp_path / "run")
    page = Page(render_page([run, tmp_path / "." / "run"]))
    assert page.rows[1][2] == "0.820"


def test_the_file_is_written_where_asked(tmp_path: Path) -> None:
    run = fabricate_run(tmp_path / "run", titles=["Á köldum klaka"])
    out = write_report([run], tmp_path / "new" / "report.html", title="My run")
    assert out == tmp_path / "new" / "report.html"
    text = out.read_text(encoding="utf-8")
    assert text == render_page([run], title="My run")
    assert "My run" in Page(text).text


# --- bad input -----------------------------------------------------------------------------------


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path} is no run: it has no config.toml"):
        render_page([tmp_path])
    with pytest.raises(ArgumentError, match="no run folders are given"):
        render_page([])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.toml", "seed = ", "config.toml is damaged"),
        ("config.toml", "seed = 1", r"config.toml has no key task\.kind"),
        ("run.json", "{", "run.json is damaged"),
        ("run.json", "[]", "run.json is damaged: wanted a JSON object"),
        ("metrics.json", '{"auc": null}', "metrics.json has no number auc"),
        ("metrics.json", '{"auc": 0.5}', r"metrics.json has no number memory\.table_bytes"),
        ("history.jsonl", "nonsense\n", "line 1 of .*history.jsonl is no line of a history"),
        ("items.parquet", "PAR1", "items.parquet is damaged"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    run = fabricate_run(tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        render_page([run])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"task": "rating"}, "the task of one is binary, of the other rating"),
        ({"fingerprint": "0" * 64}, "the data of one have fingerprint ffff.*, of the other 0000"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    runs = [fabricate_run(tmp_path / "a"), fabricate_run(tmp_path / "b", **other)]
    with pytest.raises(DataError, match=message):
        render_page(runs)


def test_a_demo_row_that_lacks_a_key_is_refused(tmp_path: Path) -> None:
    row = demo_row()
    del row["total_bytes"]
    with pytest.raises(DataError, match="a demo row has no key 'total_bytes'"):
        render_page([fabricate_run(tmp_path / "run")], demo_rows=[row])


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CelrecError, match=r"report.html cannot be written"):
        write_report([fabricate_run(tmp_path / "run")], tmp_path / "file" / "report.html")
