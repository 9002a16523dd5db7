"""The page about a suite: who is best at which number of bytes, in one self-contained HTML file.

All that it says is computed from a `SuiteContent`; it shows wins, ties and losses alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from celrec.report.page import render_template, write_page
from celrec.report.sections import Chart, make_chart
from celrec.report.suite_charts import (
    num_outside,
    roles_of,
    slice_chart,
    slices_range,
    suite_chart,
)
from celrec.report.suite_content import (
    NotDone,
    Standing,
    Suite,
    SuiteContent,
    number_or_none,
    read_content,
)
from celrec.report.suite_words import (
    cold_title,
    full_sentence,
    gain_text,
    headline,
    interval,
    items_note,
    items_title,
    measured,
    missing_title,
    peer_sentence,
    ranking_note,
    ranking_title,
    share,
    slice_name,
    smaller,
    verdict_counts,
    verdicts_note,
    verdicts_title,
)
from celrec.report.words import cut, figure_name, plus_minus, readable_bytes

_PART_WIDTHS = (330,)
_LONGEST_REASON = 300
_VERDICTS = ("win", "tie", "loss")


def write_suite_page(content: SuiteContent, out: Path) -> Path:
    """Write one self-contained HTML page about a suite.

    out : the file; its folder is made if missing
    returns : out
    raises : DataError for content that contradicts itself, or if the page cannot be written
    """
    return write_page(render_suite_page(content), out)


def render_suite_page(content: SuiteContent) -> str:
    """The page as text; see `write_suite_page`."""
    suite = read_content(content)
    charts = [
        make_chart("bytes-total", "", lambda width: suite_chart(suite, "total", width)),
        make_chart("bytes-table", "", lambda width: suite_chart(suite, "table", width)),
    ]
    if not suite.standings:
        charts = []
    cold = _cold(suite)
    verdicts = _verdicts(suite)
    return render_template(
        "suite_page.html",
        [*charts, *(one.chart for one in cold.slices)],
        styles=("page.css", "suite_page.css"),
        title=f"{content.name}: methods at equal bytes",
        headline=headline(suite),
        any_size_sentence=" ".join(filter(None, (full_sentence(suite), peer_sentence(suite)))),
        figure=figure_name(suite.task),
        bytes_charts=charts,
        has_grey=len(suite.mean_rank) > len(roles_of(suite)),
        num_outside=num_outside(suite),
        has_spread=any(one.std is not None for one in suite.standings.values()),
        ranking_title=ranking_title(suite),
        ranking_note=ranking_note(suite),
        columns=_columns(suite),
        ranking=_ranking(suite),
        references=_references(suite),
        verdicts=verdicts,
        verdicts_note=verdicts_note(suite),
        items=_items(suite),
        cold=cold,
        key=[(method, role) for method, role in roles_of(suite).items()],
        missing_title=missing_title(suite.missing),
        missing=_missing(suite),
        measured=measured(suite),
        facts=_facts(suite),
    )


# --- ranking -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cell:
    """A figure and the bytes it takes; or a dash, with the reason as title."""

    text: str
    under: str = ""
    title: str = ""
    kind: str = ""


@dataclass(frozen=True)
class _Row:
    """A method in a table. role is its colour in the charts, "" if grey there."""

    method: str
    role: str
    is_ours: bool
    rank: str
    mean_rank: str
    cells: list[_Cell]
    seconds: str


def _columns(suite: Suite) -> list[tuple[str, str]]:
    """(budget, how much smaller that is)."""
    return [(share(budget), smaller(budget)) for budget in suite.budgets]


def _ranking(suite: Suite) -> list[_Row]:
    best = {
        budget: f"{ends[0]:.3f}" for budget in suite.budgets if (ends := _best_first(suite, budget))
    }
    roles = roles_of(suite)
    rows = []
    for method in suite.methods:
        found = {b: suite.standings.get((method, b)) for b in suite.budgets}
        seconds = [one.seconds for one in found.values() if one and one.seconds is not None]
        mean_rank = suite.mean_rank.get(method)
        rows.append(
            _Row(
                method=method,
                role=roles.get(method, ""),
                is_ours=method == suite.ours,
                rank=str(suite.rank(method) or "–"),
                mean_rank="–" if mean_rank is None else f"{mean_rank:.1f}",
                cells=[
                    _no_figure(suite, method, budget)
                    if one is None
                    else _figure(suite, one, is_best=f"{one.mean:.3f}" == best[budget])
                    for budget, one in found.items()
                ],
                seconds=f"{fmean(seconds):,.0f}" if seconds else "–",
            )
        )
    return rows


def _best_first(suite: Suite, budget: float) -> list[float]:
    means = [one.mean for (_, at), one in suite.standings.items() if at == budget]
    return sorted(means, reverse=suite.task == "binary")


def _figure(suite: Suite, one: Standing, *, is_best: bool) -> _Cell:
    under = _short_bytes(one.total_bytes)
    if one.table_bytes < 0.98 * one.total_bytes:
        under += f" / {_short_bytes(one.table_bytes)}"
    text = plus_minus(one.mean, one.std)
    title = f"{one.total_bytes:,.0f} total bytes, {one.table_bytes:,.0f} table bytes"
    wanted = len(suite.content.seeds)
    if one.runs < wanted:
        title += f"; {one.runs} of {wanted} seeds"
        under += f"; {one.runs} of {wanted} seeds"
    return _Cell(text, under, title, "strong" if is_best else "")


def _short_bytes(count: float) -> str:
    return readable_bytes(count).replace(".0 ", " ")


def _no_figure(suite: Suite, method: str, budget: float) -> _Cell:
    why = suite.why_missing(method, budget)
    title = ": ".join(part for part in (why.status, cut(why.error, _LONGEST_REASON)) if part)
    return _Cell("–", title=title, kind="none")


@dataclass(frozen=True)
class _Reference:
    """A method of any size; one cell goes over all budgets."""

    method: str
    role: str
    cell: _Cell
    size: str
    seconds: str


def _references(suite: Suite) -> list[_Reference]:
    """Full tables and peers, as the last lines of the ranking."""
    return [
        _Reference(
            suite.label(one.method),
            "full" if one is suite.full else "",
            _figure(suite, one, is_best=False),
            "with all bytes" if one is suite.full else "at a size of its own",
            f"{one.seconds:,.0f}" if one.seconds is not None and one is not suite.full else "",
        )
        for one in suite.any_size
    ]


# --- wins, ties and losses -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Verdicts:
    """
    counts : wins, ties and losses at each budget, against methods of equal bytes
    total : the same over all budgets
    """

    title: str
    counts: list[list[int]]
    counts_in_words: list[str]
    total: list[int]
    rows: list[_Row]


def _verdicts(suite: Suite) -> _Verdicts | None:
    """None without comparisons."""
    if not suite.verdicts:
        return None
    full = suite.content.full
    compared = {method for method, _ in suite.verdicts}
    any_size = [full, *(one.method for one in suite.peers)]
    any_size += sorted(m for m in compared if not suite.has_budget(m) and m not in any_size)
    equal = [one for one in suite.verdicts.values() if suite.has_budget(one.method)]
    counts = [
        [sum((one.budget, one.verdict) == (b, verdict) for one in equal) for verdict in _VERDICTS]
        for b in suite.budgets
    ]
    roles = {**roles_of(suite), full: "full"}
    # A method may be compared and have no standing.
    order = [*suite.others, *sorted(compared - {*any_size, *suite.others}), *any_size]
    total = [sum(column) for column in zip(*counts, strict=True)]
    return _Verdicts(
        title=verdicts_title(total)
        if equal
        else "Against full tables"
        if compared == {full}
        else "Against methods of any size",
        counts=counts,
        counts_in_words=[verdict_counts(count) for count in counts],
        total=total,
        rows=[
            _Row(
                method=suite.label(method),
                role=roles.get(method, ""),
                is_ours=False,
                rank="",
                mean_rank="",
                cells=[_verdict(suite, method, budget) for budget in suite.budgets],
                seconds="",
            )
            for method in order
            if method in compared
        ],
    )


def _verdict(suite: Suite, method: str, budget: float) -> _Cell:
    one = suite.verdicts.get((method, budget))
    if one is None:
        if not suite.has_budget(method):
            return _Cell("–", title="not compared", kind="none")
        lacking = method if (method, budget) not in suite.standings else suite.ours
        if (lacking, budget) in suite.standings:
            return _Cell("–", title="not compared", kind="none")
        why = suite.why_missing(lacking, budget)
        return _Cell("–", title=f"{lacking}: {why.status}", kind="none")
    return _Cell(
        f"{one.verdict} {gain_text(suite.task, one.gain)}",
        interval(suite.task, one.low, one.high),
        kind=one.verdict,
    )


# --- rankings of all items ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Items:
    """
    rows : a line per method, in the order of the first table
    full : of full tables, None without
    """

    title: str
    note: str
    rows: list[_Row]
    full: _Cell | None


def _items(suite: Suite) -> _Items | None:
    """None where nothing was ranked."""
    lines = {(one["method"], one["budget"]): one for one in suite.content.item_ranking}
    if not lines:
        return None

    def cell(method: str, budget: float | None, best: str = "") -> _Cell:
        one = lines.get((method, budget))
        if one is None:
            return _Cell("–", title="no figure", kind="none")
        text = f"{one['ndcg']:.3f}"
        return _Cell(text, f"{one['ndcg_at_10']:.3f}", kind="strong" if text == best else "")

    at_budget = {
        b: {m: one["ndcg"] for (m, at), one in lines.items() if at == b} for b in suite.budgets
    }
    best = {b: f"{max(means.values()):.3f}" if means else "" for b, means in at_budget.items()}
    roles = roles_of(suite)
    rows = [
        _Row(
            method=method,
            role=roles.get(method, ""),
            is_ours=method == suite.ours,
            rank="",
            mean_rank="",
            cells=[cell(method, budget, best[budget]) for budget in suite.budgets],
            seconds="",
        )
        for method in suite.methods
        if any(method in means for means in at_budget.values())
    ]
    full = suite.content.full
    return _Items(
        title=items_title(suite, at_budget),
        note=items_note(suite),
        rows=rows,
        full=cell(full, None) if (full, None) in lines else None,
    )


# --- cold slices ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Slice:
    """
    rows : a line per method
    any_size : full tables and peers, with their one figure
    """

    name: str
    num_events: str
    chart: Chart
    rows: list[_Row]
    any_size: list[tuple[str, str]]


@dataclass(frozen=True)
class _Cold:
    title: str
    slices: list[_Slice]
    has_full: bool


def _cold(suite: Suite) -> _Cold:
    """Slices in the order they are given in; those without any figure are left out."""
    found: dict[str, dict[tuple[str, float], float]] = {}
    any_size: dict[str, dict[str, float]] = {}
    events: dict[str, set[int]] = {}
    for line in suite.content.cold:
        mean = number_or_none(line["mean"])
        if mean is None:
            continue
        name = line["slice"]
        events.setdefault(name, set()).add(line["num_events"])
        figures = found.setdefault(name, {})
        if not suite.has_budget(line["method"]):
            any_size.setdefault(name, {})[line["method"]] = mean
        else:
            figures[line["method"], line["budget"]] = mean
    full = {
        name: figures[suite.content.full]
        for name, figures in any_size.items()
        if suite.content.full in figures
    }
    y_range = slices_range(suite, [(figures, full.get(name)) for name, figures in found.items()])
    num_best = num_cases = 0
    for figures in found.values():
        for budget in suite.budgets:
            at = {method: mean for (method, b), mean in figures.items() if b == budget}
            if suite.ours in at and len(at) > 1:
                num_cases += 1
                ends = max(at.values()) if suite.task == "binary" else min(at.values())
                num_best += at[suite.ours] == ends
    slices = []
    for number, (name, figures) in enumerate(found.items()):
        counts = sorted(events[name])
        text = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
        chart = make_chart(
            f"cold-{number}",
            f"{slice_name(name)}: {text} test event{'' if counts[-1] == 1 else 's'}",
            lambda width, figures=figures, name=name: slice_chart(  # type: ignore[misc]
                suite, figures, full.get(name), y_range, width
            ),
            _PART_WIDTHS,
        )
        others = [
            (suite.label(one.method), f"{any_size[name][one.method]:.3f}")
            for one in suite.any_size
            if one.method in any_size.get(name, {})
        ]
        rows = _slice_rows(suite, figures)
        slices.append(_Slice(slice_name(name), text, chart, rows, others))
    return _Cold(cold_title(num_best, num_cases, suite), slices, bool(full))


def _slice_rows(suite: Suite, figures: Mapping[tuple[str, float], float]) -> list[_Row]:
    present = {method for method, _ in figures}
    roles = roles_of(suite)
    columns = {b: [mean for (_, at), mean in figures.items() if at == b] for b in suite.budgets}
    pick = max if suite.task == "binary" else min
    best = {b: f"{pick(means):.3f}" for b, means in columns.items() if means}
    return [
        _Row(
            method=method,
            role=roles.get(method, ""),
            is_ours=method == suite.ours,
            rank="",
            mean_rank="",
            cells=[
                _Cell(text, kind="strong" if text == best[b] else "")
                if (mean := figures.get((method, b))) is not None and (text := f"{mean:.3f}")
                else _Cell("–", title="no figure", kind="none")
                for b in suite.budgets
            ],
            seconds="",
        )
        for method in suite.methods
        if method in present
    ]


# --- what is missing, and how it was measured ----------------------------------------------------


@dataclass(frozen=True)
class _Missing:
    method: str
    budgets: str
    status: str
    reason: str


def _missing(suite: Suite) -> list[_Missing]:
    """Lines that differ in budgets and numbers alone are joined; the reason is the first one's."""
    joined: dict[tuple[str, str, str], list[NotDone]] = {}
    for one in suite.missing:
        kind = re.sub(r"\d[\d.,]*", "#", one.error)
        joined.setdefault((one.method, one.status, kind), []).append(one)
    rows = []
    for lines in joined.values():
        first = lines[0]
        budgets = dict.fromkeys("all" if one.budget is None else share(one.budget) for one in lines)
        reason = cut(first.error, _LONGEST_REASON)
        if len({one.error for one in lines}) > 1 and first.budget is not None:
            reason += f" (at {share(first.budget)})"
        rows.append(_Missing(suite.label(first.method), ", ".join(budgets), first.status, reason))
    return rows


def _facts(suite: Suite) -> list[tuple[str, str]]:
    content = suite.content
    facts = [
        ("Data", content.data_name),
        ("Data fingerprint", content.data_fingerprint),
        ("Commit", content.commit),
        ("Seeds", ", ".join(map(str, content.seeds))),
        ("Budgets", ", ".join(share(budget) for budget in suite.budgets)),
        *content.facts,
    ]
    return [(name, value) for name, value in facts if value]
