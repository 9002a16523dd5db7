"""The page about a suite: true to the figures whichever way they fall, safe, and self-contained."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from celrec.errors import DataError
from celrec.report.style import COLOURS
from celrec.report.suite_charts import RIVAL_ROLES
from celrec.report.suite_content import SuiteContent, read_content
from celrec.report.suite_page import render_suite_page, write_suite_page
from celrec.report.suite_words import headline
from tests.report.fabricate_suite import (
    FULL_BYTES,
    cold_lines,
    comparison,
    fabricate_suite,
    standing,
)
from tests.report.reading_html import Page, texts_of
from tests.report.test_style import VISION, lab, linear

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
COLD = cold_lines(
    "users_at_most_5",
    312,
    {
        ("clustered", 0.01): 0.6,
        ("clustered", 0.05): 0.7,
        ("robe", 0.01): 0.65,
        ("robe", 0.05): 0.66,
        ("full", None): 0.72,
    },
) + cold_lines("coldest_items", 120, {("clustered", 0.01): None})


@pytest.fixture(scope="module")
def suite() -> SuiteContent:
    """Ours behind at 1 %, tied at 5 %, best at 10 %; one method that does not fit 1 %."""
    content = fabricate_suite(
        {
            "clustered": [0.78, 0.80, 0.83],
            "robe": [0.79, 0.801, 0.82],
            "pq": [None, 0.75, 0.76],
        },
        cold=COLD,
        trials=8,
        tuning_budget=0.05,
        facts=[("Hardware", "4 cores")],
    )
    failed = {"method": "dhe", "budget": None, "status": "failed", "error": "TimeoutError: 1 h"}
    return replace(content, missing=[*content.missing, failed])


@pytest.fixture(scope="module")
def text(suite: SuiteContent) -> str:
    """Its page."""
    return render_suite_page(suite)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    """Its page, read back."""
    return Page(text)


# --- the sentence at the top ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figures", "sentence"),
    [
        (
            {"clustered": [0.80, 0.82, 0.84], "robe": [0.79, 0.80, 0.81], "pq": [0.7, 0.81, 0.8]},
            "At equal bytes, clustered tables are best at all 3 budgets, by 0.010 to 0.030 AUC "
            "over the next best.",
        ),
        (
            {"clustered": [0.80, 0.82, 0.80], "robe": [0.806, 0.80, 0.801]},
            "At equal bytes, clustered tables are best at 1 of 3 budgets, by 0.020 AUC over the "
            "next best, tied for best at 1 (10 %), and behind at 1 (robe leads by 0.006 AUC at "
            "1 %).",
        ),
        (
            {"clustered": [0.7, 0.7, 0.7], "robe": [0.8, 0.75, 0.71], "pq": [0.7, 0.7, 0.72]},
            "At equal bytes, clustered tables are behind at all 3 budgets (robe leads by 0.100 AUC "
            "at 1 %, robe by 0.050 at 5 % and pq by 0.020 at 10 %).",
        ),
        (
            {"clustered": [0.7, 0.7, 0.7], "robe": [0.8, 0.75, 0.71]},
            "At equal bytes, clustered tables are behind at all 3 budgets (robe leads by 0.010 to "
            "0.100 AUC at 1 %, 5 % and 10 %).",
        ),
        (
            {"clustered": [0.7, 0.7, 0.7], "robe": [0.701, 0.7, 0.699]},
            "At equal bytes, clustered tables are tied for best at all 3 budgets.",
        ),
        (
            {"clustered": [None, 0.7, 0.7], "robe": [0.8, 0.701, 0.8]},
            "At equal bytes, clustered tables are best alone at none of 3 budgets, tied for best "
            "at 1 (5 %), behind at 1 (robe leads by 0.100 AUC at 10 %), and without a figure at 1 "
            "(1 %).",
        ),
        (
            {"clustered": [None, None, None], "robe": [0.8, None, None]},
            "Clustered tables have no figure; the best AUC is of robe (0.800 ± 0.002) at 1 %.",
        ),
        (
            {"clustered": [0.8, None, None]},
            "Clustered tables reach AUC 0.800 ± 0.002 at 1 % of the bytes of full tables; no other "
            "method has a figure at these budgets.",
        ),
        ({"clustered": [None, None, None]}, "No method has a figure yet."),
    ],
)
def test_the_sentence_says_what_the_figures_say(
    figures: dict[str, list[float | None]], sentence: str
) -> None:
    assert headline(read_content(fabricate_suite(figures))) == sentence


@pytest.mark.parametrize(
    ("ours", "sentence"),
    [
        (0.80, "are best of 3, by 0.010 AUC over the next best, robe."),
        (0.79, "are tied for best of 3, with robe."),
        (0.78, "are behind: robe leads by 0.010 AUC."),
    ],
)
def test_one_budget_is_enough(ours: float, sentence: str) -> None:
    content = fabricate_suite({"clustered": [ours], "robe": [0.79], "pq": [0.7]}, budgets=[0.05])
    page = Page(render_suite_page(content))
    assert f"At 5 % of the bytes of full tables, clustered tables {sentence}" in page.text
    assert [len(row) for row in page.rows if row[0].endswith("robe")] == [4, 2]
    assert all(chart["data"] for chart in page.charts.values())


def test_without_comparisons_means_decide() -> None:
    content = fabricate_suite({"clustered": [0.7, 0.8, 0.9], "robe": [0.8, 0.8, 0.8]})
    content = replace(content, comparisons=[])
    assert headline(read_content(content)) == (
        "At equal bytes, clustered tables are best at 1 of 3 budgets, by 0.100 AUC over the next "
        "best, tied for best at 1 (5 %), and behind at 1 (robe leads by 0.100 AUC at 1 %)."
    )
    assert "verdicts" not in Page(render_suite_page(content)).sections


def test_a_win_too_small_to_show_is_no_zero() -> None:
    content = fabricate_suite({"clustered": [0.8], "robe": [0.7997]}, budgets=[0.1], tie=0.0001)
    assert "by less than 0.001 AUC over" in headline(read_content(content))


# --- the page ------------------------------------------------------------------------------------


def test_the_page_has_every_section_in_order(page: Page) -> None:
    assert page.sections == ["bytes", "ranking", "verdicts", "cold", "missing", "run"]
    assert [tag for tag, _ in page.elements].count("h1") == 1
    boxes = [a["id"] for tag, a in page.elements if tag == "div" and a.get("class") == "chart"]
    assert boxes == ["bytes-total", "bytes-table", "cold-0"]
    assert sorted(boxes) == sorted(page.charts)


def test_the_page_loads_nothing_and_runs_only_its_own_scripts(text: str, page: Page) -> None:
    assert not {tag for tag, _ in page.elements} & {"link", "img", "iframe", "object", "base"}
    for tag, attributes in page.elements:
        assert not {"src", "href", "srcset", "action"} & set(attributes), (tag, attributes)
    assert "url(" not in page.style
    assert "@import" not in page.style
    allowed = page.policy.split("script-src ")[1].split(" ")
    assert allowed == page.hashes()
    assert len(re.findall(r"^\* plotly\.js v", text, flags=re.MULTILINE)) == 1


def test_the_ranking_shows_figures_bytes_and_holes(page: Page) -> None:
    start = next(n for n, row in enumerate(page.rows) if row[0] == "method")
    assert page.rows[start : start + 6] == [
        ["method", "mean rank", "1\xa0%100× smaller", "5\xa0%20× smaller", "10\xa0%10× smaller",
         "secondsper run"],
        ["1robe", "1.3", "0.790\xa0±\xa00.00210\xa0kB / 9\xa0kB",
         "0.801\xa0±\xa00.00250\xa0kB / 45\xa0kB", "0.820\xa0±\xa00.002100\xa0kB / 90\xa0kB", "12"],
        ["2clustered", "1.7", "0.780\xa0±\xa00.00210\xa0kB / 9\xa0kB",
         "0.800\xa0±\xa00.00250\xa0kB / 45\xa0kB", "0.830\xa0±\xa00.002100\xa0kB / 90\xa0kB", "12"],
        ["3pq", "3.0", "–", "0.750\xa0±\xa00.00250\xa0kB / 45\xa0kB",
         "0.760\xa0±\xa00.002100\xa0kB / 90\xa0kB", "12"],
        ["–dhe", "–", "–", "–", "–", "–"],
        ["full tables", "", "0.850\xa0±\xa00.002 with all bytes1\xa0MB", ""],
    ]  # fmt: skip
    cells = [a for tag, a in page.elements if tag == "td"]
    strong = [a.get("title") for a in cells if a.get("class") == "strong"]
    assert strong[:3] == [
        "10,000 total bytes, 9,000 table bytes",
        "50,000 total bytes, 45,000 table bytes",
        "100,000 total bytes, 90,000 table bytes",
    ]
    holes = [a.get("title") for a in cells if a.get("class") == "none"]
    assert holes[:2] == [
        "does not fit: 10000 bytes are too few for pq",
        "failed: TimeoutError: 1 h",
    ]
    assert "By mean rank, clustered tables are 2nd of 3" in page.text


def test_peers_stand_like_full_tables(suite: SuiteContent) -> None:
    peers = {"svd": 0.82, "als": 0.81}
    content = replace(
        suite,
        peers=["als", "svd", "nmf"],
        standings=[
            *suite.standings,
            *(
                standing(name, None, mean, total_bytes=2 * FULL_BYTES)
                for name, mean in peers.items()
            ),
        ],
        comparisons=[
            *suite.comparisons,
            *(
                comparison("svd", budget, ours, 0.82, "binary", 0.003)
                for budget, ours in zip(suite.budgets, (0.78, 0.80, 0.83), strict=True)
            ),
        ],
        missing=[
            *suite.missing,
            {"method": "nmf", "budget": None, "status": "failed", "error": "not installed"},
        ],
        cold=[*COLD, *cold_lines("users_at_most_5", 312, {("svd", None): 0.711})],
    )
    page = Page(render_suite_page(content))
    text = page.text.replace("\xa0", " ")
    assert "The best of 2 from other packages, svd, reaches AUC 0.820 ± 0.002 in 2.0 MB" in text
    assert "it, clustered tables win at 10 % and lose at 1 % and 5 % of the bytes of full" in text
    start = next(n for n, row in enumerate(page.rows) if row[0] == "full tables")
    assert page.rows[start + 1 : start + 3] == [
        [name, "", f"{mean:.3f}\xa0±\xa00.002 at a size of its own2\xa0MB / 1\xa0MB", "12"]
        for name, mean in peers.items()
    ]
    # They are no methods at equal bytes: of ranks, counts and columns they are no part.
    assert "By mean rank, clustered tables are 2nd of 3" in page.text
    assert "Method by method at equal bytes: 3 wins, 1 tie, 1 loss" in page.text
    start = next(n for n, row in enumerate(page.rows) if row[0] == "ours against")
    rows = {row[0]: row[1:] for row in page.rows[start + 1 : start + 6]}
    assert rows["svd"][2] == "win +0.010+0.007 to +0.013"
    assert ["svd", "0.711"] in page.rows
    assert ["nmf", "all", "failed", "not installed"] in page.rows
    assert "scores rank the items of a user and are no probabilities" in page.text
    (layout, *_) = page.charts["bytes-total"]["layouts"]
    texts = [one["text"] for one in layout["annotations"]]
    assert {"full tables, 0.850", "svd, 0.820"} <= set(texts)
    assert "als, 0.810" not in texts
    hovers = [
        trace["hovertemplate"]
        for trace in page.charts["bytes-total"]["data"]
        if "svd" in str(trace.get("hovertemplate"))
    ]
    assert hovers
    assert "2.0 times larger than full" in hovers[0]
    twice = replace(content, standings=[*content.standings, standing("svd", None, 0.8)])
    with pytest.raises(DataError, match="svd has two standings"):
        read_content(twice)


def test_wins_ties_and_losses_are_all_shown(page: Page) -> None:
    assert "Method by method at equal bytes: 3 wins, 1 tie, 1 loss" in page.text
    start = next(n for n, row in enumerate(page.rows) if row[0] == "ours against")
    rows = {row[0]: row[1:] for row in page.rows[start + 1 : start + 5]}
    assert rows["robe"] == [
        "loss −0.010−0.013 to −0.007", "tie −0.001−0.004 to +0.002", "win +0.010+0.007 to +0.013",
    ]  # fmt: skip
    assert rows["pq"][0] == "–"
    assert rows["full tables"][0] == "loss −0.070−0.073 to −0.067"
    assert rows["all at equal bytes"] == [
        "no wins, no ties, 1 loss", "1 win, 1 tie, no losses", "2 wins, no ties, no losses",
    ]  # fmt: skip
    assert "lose at 1 %, 5 % and 10 % of their bytes" in page.text


def test_the_charts_show_the_figures(page: Page) -> None:
    lines = {trace.get("name"): trace for trace in page.charts["bytes-total"]["data"]}
    assert lines["clustered"]["x"] == pytest.approx([0.01, 0.05, 0.1])
    assert lines["clustered"]["y"] == [0.78, 0.80, 0.83]
    assert lines["clustered"]["line"]["color"] == COLOURS["clustered"][0]
    assert lines["pq"]["y"] == [0.75, 0.76]
    bands = [trace for trace in page.charts["bytes-total"]["data"] if trace.get("fill") == "toself"]
    assert len(bands) == 3
    assert bands[-1]["y"] == pytest.approx([0.782, 0.802, 0.832, 0.828, 0.798, 0.778])
    rows_alone = {trace.get("name"): trace for trace in page.charts["bytes-table"]["data"]}
    assert rows_alone["clustered"]["x"] == pytest.approx([0.009, 0.045, 0.09])
    level = next(t for t in page.charts["bytes-total"]["data"] if t["line"].get("dash") == "dot")
    assert set(level["y"]) == {0.85}


def test_names_at_the_lines_do_not_meet() -> None:
    figures = {f"method-{n}": [0.8 + n / 1e5] * 3 for n in range(9)}
    page = Page(render_suite_page(fabricate_suite({"clustered": [0.8] * 3, **figures})))
    for layout in page.charts["bytes-total"]["layouts"]:
        notes = layout["annotations"][:-1]  # the last is of full tables
        assert len(notes) == 1 + len(RIVAL_ROLES)
        up = layout["height"] - layout["margin"]["t"] - layout["margin"]["b"]
        low, high = layout["yaxis"]["range"]
        heights = sorted((note["y"] - low) / (high - low) * up for note in notes)
        assert all(b - a > 15.9 for a, b in itertools.pairwise(heights))
        longest = max(len(re.sub("<.*?>", "", note["text"])) for note in notes)
        assert 7 * longest < layout["margin"]["r"]


def test_a_far_off_method_does_not_flatten_the_chart() -> None:
    good = {f"m{n}": [0.8, 0.81, 0.82] for n in range(6)}
    figures = {"clustered": [0.8, 0.81, 0.83], **good, "bad": [0.1, 0.1, 0.1]}
    page = Page(render_suite_page(fabricate_suite(figures)))
    low, _ = page.charts["bytes-total"]["layouts"][0]["yaxis"]["range"]
    assert low > 0.7
    assert "1 method is too far off to be drawn in full; see the table." in page.text


def test_rankings_are_shown_as_they_fall(suite: SuiteContent) -> None:
    figures = {
        ("clustered", 0.01): (0.21, 0.11),
        ("robe", 0.01): (0.25, 0.12),
        ("clustered", 0.05): (0.27, 0.14),
        ("robe", 0.05): (0.26, 0.15),
        ("full", None): (0.3, 0.18),
    }
    lines = [
        {
            "method": method,
            "budget": budget,
            "ndcg": ndcg,
            "ndcg_at_10": top,
            "num_ranked_users": 1000.0,
        }
        for (method, budget), (ndcg, top) in figures.items()
    ]
    page = render_suite_page(replace(suite, item_ranking=lines, negatives=4))
    section = page[page.index('<section id="items"') :].split("</section>")[0]
    assert "clustered tables have the best NDCG at 1 of 2 budgets" in section
    assert "1,000 test users" in section
    assert "4 negatives are drawn for each" in section
    cells = re.findall(r"<td( class=\"\w+\")?[^>]*>([^<]*)<small>([^<]*)</small>", section)
    assert cells == [
        (' class="strong"', "0.250", "0.120"),  # robe: ahead by mean rank
        ("", "0.260", "0.150"),
        ("", "0.210", "0.110"),
        (' class="strong"', "0.270", "0.140"),
        ("", "0.300 with all bytes", "0.180"),
    ]
    assert 'id="items"' not in render_suite_page(suite)


def test_cold_slices_without_figures_are_left_out(page: Page) -> None:
    assert "Users with at most 5 training events: 312 test events" in page.text
    assert "coldest items" not in page.text
    assert "clustered tables have the best figure in 1 of 2 cases" in page.text


def test_what_is_missing_has_its_reasons(page: Page) -> None:
    assert "1 method does not fit a budget, 1 method failed" in page.text
    assert ["pq", "1\xa0%", "does not fit", "10000 bytes are too few for pq"] in page.rows
    assert ["dhe", "all", "failed", "TimeoutError: 1 h"] in page.rows


def test_a_hole_that_nothing_explains_is_named() -> None:
    content = fabricate_suite({"clustered": [0.8, 0.8, 0.8], "robe": [0.7, None, None]})
    page = Page(render_suite_page(replace(content, missing=[])))
    assert ["robe", "5\xa0%, 10\xa0%", "no result", "no reason is known"] in page.rows
    done = fabricate_suite({"clustered": [0.8, 0.8, 0.8], "robe": [0.7, 0.7, 0.7]})
    assert "missing" not in Page(render_suite_page(done)).sections


def test_runs_that_are_fewer_than_seeds_are_marked() -> None:
    content = fabricate_suite({"clustered": [0.8]}, budgets=[0.1])
    lines = [standing("robe", 0.1, 0.7, runs=2, std=None, seconds=None)]
    page = Page(render_suite_page(replace(content, standings=[*content.standings, *lines])))
    assert ["2robe", "2.0", "0.700100\xa0kB / 90\xa0kB; 2 of 3 seeds", "–"] in page.rows


def test_a_method_that_is_missing_only_keeps_its_place_at_the_end() -> None:
    figures = {"pq": [None] * 3, "clustered": [0.8] * 3, "robe": [0.7] * 3}
    suite = read_content(fabricate_suite(figures))
    assert suite.methods == ("clustered", "robe", "pq")
    assert "pq" not in suite.mean_rank
    page = Page(render_suite_page(fabricate_suite(figures)))
    assert ["–pq", "–", "–", "–", "–", "–"] in page.rows


def test_nothing_at_all_still_gives_a_page() -> None:
    content = fabricate_suite({"clustered": [None] * 3}, full=None)
    page = Page(render_suite_page(content))
    assert page.sections == ["ranking", "missing", "run"]
    assert page.charts == {}
    assert "No method has a figure yet." in page.text


def test_equal_figures_share_their_ranks() -> None:
    figures = {"clustered": [0.8] * 3, "robe": [0.8] * 3, "pq": [0.7] * 3}
    suite = read_content(fabricate_suite(figures))
    assert suite.mean_rank == {"clustered": 1.5, "robe": 1.5, "pq": 3.0}
    assert [suite.rank(method) for method in suite.methods] == [1, 1, 3]
    page = Page(render_suite_page(fabricate_suite(figures)))
    assert "By mean rank, clustered tables are 1st (shared) of 3" in page.text


def test_ratings_are_better_when_lower() -> None:
    figures: dict[str, Any] = {"clustered": [0.90, 0.80, 0.70], "robe": [0.80, 0.80, 0.77]}
    content = fabricate_suite(figures, task="rating", full=0.75, tie=0.005)
    page = Page(render_suite_page(content))
    assert (
        "best at 1 of 3 budgets, by 9.1 % of the squared error over the next best, tied for best "
        "at 1 (5 %), and behind at 1 (robe leads by 12.5 % of the squared error at 1 %)."
    ) in page.text
    assert ["robe", "loss −12.5\xa0%−13.0 to −12.0", "tie 0.0\xa0%−0.5 to +0.5",
            "win +9.1\xa0%+8.6 to +9.6"] in page.rows  # fmt: skip
    assert "MSE on the test set, lower is better" in page.text
    assert "the difference is below 0.5 %" in page.text


def test_names_are_shown_and_not_obeyed() -> None:
    content = fabricate_suite(
        {"clustered": [0.8, 0.8, 0.8], HOSTILE: [0.7, 0.7, None]},
        name=HOSTILE,
        data_name=HOSTILE,
        cold=cold_lines(HOSTILE, 5, {("clustered", 0.01): 0.6, (HOSTILE, 0.01): 0.7}),
        facts=[("Hardware", HOSTILE)],
    )
    page = Page(render_suite_page(content))
    assert not {tag for tag, _ in page.elements} & {"img", "a", "b", "br"}
    assert [kind for kind, _ in page.scripts] == ["application/json", None, None]
    assert f"{HOSTILE}: methods at equal bytes" in page.text
    for chart in page.charts.values():
        tags = set(re.findall(r"<[^>]*>", texts_of(chart)))
        assert tags <= {"<br>", "<b>", "</b>", "<extra>", "</extra>"}


def test_how_it_was_measured_is_all_there(page: Page) -> None:
    for fact in (
        "f" * 64,
        "c" * 40,
        "0, 1, 2",
        "1 %, 5 %, 10 %",
        "4 cores",
        "with 8 trials for every method at 5 % of the bytes",
        "scored once, for 3 seeds",
        "a bootstrap over users",
    ):
        assert fact in page.text


def test_budgets_may_come_in_any_order(suite: SuiteContent, text: str) -> None:
    assert render_suite_page(replace(suite, budgets=suite.budgets[::-1])) == text


def test_the_file_is_written_where_asked(suite: SuiteContent, text: str, tmp_path: Path) -> None:
    out = write_suite_page(suite, tmp_path / "new" / "suite.html")
    assert out == tmp_path / "new" / "suite.html"
    assert out.read_text(encoding="utf-8") == text
    with pytest.raises(DataError, match=r"suite.html/x cannot be written"):
        write_suite_page(suite, out / "x")


@pytest.mark.parametrize("screen", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_colours_of_lines_differ_for_every_kind_of_vision(vision: str, screen: int) -> None:
    roles = ("clustered", "full", *RIVAL_ROLES)
    seen = {role: lab(VISION[vision] @ linear(COLOURS[role][screen])) for role in roles}
    for one, other in itertools.combinations(roles, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 15, (one, other)


# --- bad content ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "ranking"}, "the task is 'ranking'; wanted one of binary, rating"),
        ({"budgets": ()}, r"budgets are \[\]; wanted at least one"),
        ({"budgets": (0.1, 0.1)}, "none twice"),
        (
            {"standings": [standing("robe", 0.1, 0.8), standing("robe", 0.1, 0.7)]},
            "robe has two standings at budget 0.1; wanted one: give methods names of their own",
        ),
        ({"standings": [standing("full", None, 0.8)] * 2}, "full tables have two standings"),
        ({"standings": [standing("robe", 0.3, 0.8)]}, "robe has a line at budget 0.3; wanted one"),
        ({"standings": [standing("robe", None, 0.8)]}, "robe has a line at budget None"),
        ({"standings": [standing("robe", 0.1, float("nan"))]}, "mean of robe at budget 0.1 is nan"),
        ({"standings": [{"method": "robe"}]}, "a standing has no key 'budget'; it has method"),
        ({"comparisons": [{"method": "robe"}]}, "a comparison has no key 'budget'"),
        (
            {"comparisons": [comparison("robe", 0.1, 0.8, 0.7, "binary", 0.1) | {"verdict": "?"}]},
            "the verdict on robe is '[?]'; wanted one of win, tie, loss",
        ),
        (
            {"missing": [{"method": "robe", "budget": 0.1, "status": "done", "error": None}]},
            "the status of robe is 'done'; wanted one of does not fit, failed",
        ),
    ],
)
def test_content_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    content = fabricate_suite({"clustered": [0.8]}, budgets=[0.1])
    with pytest.raises(DataError, match=message):
        read_content(replace(content, **changes))


def test_full_bytes_are_those_of_the_content(page: Page) -> None:
    assert f"{FULL_BYTES:,} total bytes" in {a.get("title", "")[:21] for _, a in page.elements}
