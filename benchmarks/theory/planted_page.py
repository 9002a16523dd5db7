"""The page on planted matrices in docs/results: words, tables and plots, from results of jobs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.plotting import COLOURS, RULE, label, new_figure, save, ticks_at
from benchmarks.theory.planted_recovery import SERIES, Result, Series, Setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parents[2] / "docs" / "results"
CONDITIONS = ("noise", "observed", "clusters", "entities")
RECOVERED = 0.98
"""An adjusted Rand index from which clusters count as recovered."""


def write_page(results: dict[str, Result]) -> None:
    """Write the page, its figures as JSON, and its plots, from whatever results there are."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, draw in (
        ("conditions", draw_conditions),
        ("objective", draw_objective),
        ("factors", draw_factors),
    ):
        save(draw(results), RESULTS / f"planted-nmf-{name}.svg")
    (RESULTS / "planted-nmf.md").write_text(page_text(results), encoding="utf-8")
    kept = {
        name: {key: value for key, value in result.items() if not key.endswith("_rows")}
        for name, result in results.items()
    }
    (RESULTS / "planted-nmf.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def of(results: dict[str, Result], settings: Iterable[Setting]) -> list[Result]:
    """The results of those settings that have one."""
    return [results[one.name] for one in settings if one.name in results]


def is_exact(result: Result) -> bool:
    return all(found == result["setting"]["clusters"] for found in result["found"])


def is_recovered(result: Result) -> bool:
    """Whether both counts are right, and both tables agree with the truth."""
    return is_exact(result) and min(result["ari"]) >= RECOVERED


_PAGE = Template("""\
# Planted nonnegative factorization

*Written by `python -m benchmarks.theory.planted_nmf`, one thread a job. Fingerprints of the data
and all figures of every seed are in planted-nmf.json. $where.$missing*

Does a clustered table find clusters that are there, as many as there are, and their rows? Here the
truth is known. `planted_nmf` draws a nonnegative matrix of known rank, clusters and noise, and
shows some of its entries. `NMF` with two `max_clusters="auto"` tables is trained on them. It is
given the rank, and nothing else.

**What is planted.** Users and items are in clusters of unequal size, the largest five times the
smallest. A score is the product of two nonnegative rows. As many clusters of either table as there
are factors are *pure*: they have one factor, another in each. The other rows are absolute normal
numbers. Pure rows on both sides make the factors unique up to their order and scale. Without them
other factors fit as well, and only scores of pairs of clusters (*blocks*) can be compared. Rows are
drawn again until the scores of any two clusters of a table differ by 0.3 standard deviations: else
the nearest two may be too alike for anybody to tell from the entries seen.

**What is compared.** The adjusted Rand index (ARI) of two clusterings is 1 where they agree, and 0
by chance. *Best possible* is the ARI of one who knows rows, sizes, noise and the other table's
clusters, and names the likeliest cluster of each entity: no method can expect more. *Row error* is
the length of all found rows less the planted ones, over that of the planted ones, after the factors
are put in order and to scale. *Block error* is the same of the scores of all pairs of clusters.

## The headline setting

1,000 users and 1,000 items, rank 5, 10 clusters of each, 10 % of the entries, noise of half the
standard deviation of the scores.

$headline

```{image} planted-nmf-factors.svg
:alt: Found factors against planted ones lie on the diagonal
```

*Every factor of every row, $shown.*

## The objective against the cluster count

Counts are fixed here, the same for users and items. The objective is the
[description length](../how-it-works.md#how-many-clusters) of data and tables, in nats, at the noise
variance that fits best. It is given above that of the planted tables, which are fitted to nothing.
To show the objective and not the search, fits start from the planted tables: with the most alike
clusters joined, or the largest divided at random, until the count is reached. A half that explains
nothing of its own may lose its members: then fewer rows are live at the end. Fits *from nothing*
start as always.

$objective

```{image} planted-nmf-objective.svg
:alt: Description length and error of unseen entries against the rows of a table
```

*A dot is one seed; lines join means; the upright line is the planted count.*

## Other conditions

One thing at a time is changed in the headline setting. The rank is 5, or half of the planted
clusters where that is less.

```{image} planted-nmf-conditions.svg
:alt: Agreement, count and row error over noise, entries seen, planted clusters and size
```

*A dot is the mean of both tables in one seed; lines join medians; grey is the best possible, and
the planted count.*

$conditions

## Where it fails

$failures

Not tried here: an unknown rank, a few entities with most of the entries, noise that is not normal,
and rows that are not nonnegative.
""")


def page_text(results: dict[str, Result]) -> str:
    conditions: list[str] = []
    for name in CONDITIONS:
        conditions += [
            f"**{SERIES[name].title}.**",
            "",
            *condition_lines(SERIES[name], results),
            "",
        ]
    shown = shown_seed(results)
    wanted = {one.name for series in SERIES.values() for one in series.all_settings()}
    places = Counter(result["where"] for result in results.values())
    num_missing = len(wanted - set(results))
    return _PAGE.substitute(
        missing=f" {num_missing} of {len(wanted)} fits are not in yet." if num_missing else "",
        shown="none recovered yet" if shown is None else f"seed {shown['setting']['seed']}",
        where="; ".join(f"{count} fits at {place}" for place, count in sorted(places.items())),
        headline="\n".join(headline_lines(of(results, SERIES["headline"].all_settings()))),
        objective="\n".join(objective_lines(results)),
        conditions="\n".join(conditions).rstrip(),
        failures="\n".join(failure_lines(results)),
    )


def headline_lines(headline: list[Result]) -> list[str]:
    if not headline:
        return ["No results yet."]
    exact, recovered = sum(map(is_exact, headline)), sum(map(is_recovered, headline))
    lines = [
        f"**The counts are 10 and 10 in {exact} of {len(headline)} seeds. They are, and the ARI of",
        f"both tables is at least {RECOVERED}, in {recovered} of {len(headline)}.**",
        "",
        "| seed | clusters found | ARI users, items | best possible | factor cosine | row error "
        "| block error | training MSE / noise | CPU seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one['setting']['seed']} | {one['found'][0]}, {one['found'][1]} "
        f"| {one['ari'][0]:.4f}, {one['ari'][1]:.4f} "
        f"| {one['best_ari'][0]:.4f}, {one['best_ari'][1]:.4f} | {one['factor_cosine']:.4f} "
        f"| {one['row_error']:.3f} | {one['block_error']:.3f} | {one['train_loss']:.3f} "
        f"| {one['seconds']:.0f} |"
        for one in headline
    ]
    return lines


def objective_lines(results: dict[str, Result]) -> list[str]:
    series = SERIES["objective"]
    runs = {value: of(results, series.settings(value)) for value in series.values}
    runs = {value: some for value, some in runs.items() if some}
    if not runs:
        return ["No results yet."]
    searched = {value: of(results, SERIES["search"].settings(value)) for value in series.values}
    auto = of(results, [Setting(seed=seed) for seed in series.seeds])
    nats = {value: mean(excess_nats, some) for value, some in runs.items()}
    unseen = {value: mean(unseen_loss, some) for value, some in runs.items()}
    by_seed: dict[int, dict[int, float]] = {}
    for value, some in runs.items():
        for one in some:
            by_seed.setdefault(one["setting"]["seed"], {})[value] = excess_nats(one)
    complete = [figures for figures in by_seed.values() if len(figures) == len(runs)]
    lines = [
        f"**The objective is least at {least(nats)} rows in the mean; seed by seed, at",
        f"{', '.join(str(least(figures)) for figures in complete)}. The error of unseen entries is",
        f"least at {least(unseen)} rows.**",
        "",
        "| rows | objective above the planted | live rows at the end "
        "| error of unseen entries / noise | objective, from nothing |",
        "|---|---|---|---|---|",
    ]
    for value, some in runs.items():
        from_nothing = f"{mean(excess_nats, searched[value]):,.0f}" if searched[value] else ""
        lines.append(
            f"| {value} | {nats[value]:,.0f} | {counts(some)} | {unseen[value]:.4f} "
            f"| {from_nothing} |"
        )
    if auto:
        lines.append(
            f"| auto | | {counts(auto)} | {mean(unseen_loss, auto):.4f} "
            f"| {mean(excess_nats, auto):,.0f} |"
        )
    return lines


def mean(figure_of: Callable[[Result], float], some: list[Result]) -> float:
    return float(np.mean([figure_of(one) for one in some]))


def unseen_loss(result: Result) -> float:
    """The expected squared error of an unseen entry, noise included, over that of the noise."""
    return float(result["unseen_loss"])


def least(figures: dict[Any, float]) -> Any:
    """The key of the least figure."""
    return min(figures, key=figures.__getitem__)


def excess_nats(result: Result) -> float:
    """The description length above that of the planted tables."""
    return float(result["description"] - result["planted_description"])


def condition_lines(series: Series, results: dict[str, Result]) -> list[str]:
    lines = [
        f"| {series.axis} | counts exact | clusters found | ARI | best possible | row error "
        "| block error | above the planted, nats |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for value in series.values:
        some = of(results, series.settings(value))
        if some:
            lines.append(
                f"| {named(series, value)} | {sum(map(is_exact, some))} of {len(some)} "
                f"| {counts(some)} | {np.mean([one['ari'] for one in some]):.3f} "
                f"| {np.mean([one['best_ari'] for one in some]):.3f} "
                f"| {np.mean([one['row_error'] for one in some]):.3f} "
                f"| {np.mean([one['block_error'] for one in some]):.3f} "
                f"| {np.mean([excess_nats(one) for one in some]):,.0f} |"
            )
    return lines


def named(series: Series, value: float) -> str:
    return f"{100 * value:g} %" if series.varied == "observed" else f"{value:,g}"


def counts(some: list[Result]) -> str:
    """The least and the largest count found."""
    low, high = np.min([one["found"] for one in some]), np.max([one["found"] for one in some])
    return f"{low}" if low == high else f"{low} to {high}"


def failure_lines(results: dict[str, Result]) -> list[str]:
    """Where recovery ends, and every fit with `auto` that missed, with one of three reasons."""
    tried = [one for one in results.values() if one["setting"]["rows"] == "auto"]
    missed = [one for one in tried if not is_recovered(one)]
    lines = [
        "Clusters count as recovered where both counts are right and the ARI of both tables is at",
        f"least {RECOVERED}. Seeds recovered, with the rest as in the headline setting:",
        "",
    ]
    for name in CONDITIONS:
        series = SERIES[name]
        runs = {value: of(results, series.settings(value)) for value in series.values}
        each = [
            f"{sum(map(is_recovered, some))} of {len(some)} at {named(series, value)}"
            for value, some in runs.items()
            if some
        ]
        lines.append(f"- {series.title}: {', '.join(each)}.")
    lines += [
        "",
        f"In all, {len(missed)} of {len(tried)} fits with `auto` miss, for one of three reasons:",
        "",
        "- *Too little to tell by*: the counts are right, and the ARI is within 0.02 of the best",
        "  possible, or the description no longer than that of the planted tables. Members are",
        "  mistaken that the entries seen do not tell apart.",
        "- *Not worth its rows*: a count is wrong, but the tables found have a shorter description",
        "  than the planted ones. The objective itself prefers them.",
        "- *Stopped short*: the planted tables would have the shorter description. The search, not",
        "  the objective, is at fault; another start or more epochs may do better.",
        "",
        "| users, items | planted | seen | noise | seed | found | ARI users, items | best possible "
        "| above the planted, nats | reason |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in missed:
        setting = one["setting"]
        lines.append(
            f"| {setting['entities']:,} | {setting['clusters']} | {100 * setting['observed']:g} % "
            f"| {setting['noise']:g} | {setting['seed']} | {one['found'][0]}, {one['found'][1]} "
            f"| {one['ari'][0]:.3f}, {one['ari'][1]:.3f} "
            f"| {one['best_ari'][0]:.3f}, {one['best_ari'][1]:.3f} "
            f"| {excess_nats(one):,.0f} | {reason(one)} |"
        )
    return lines


def reason(result: Result) -> str:
    is_near_best = min(np.subtract(result["ari"], result["best_ari"])) >= -0.02
    if is_exact(result) and (is_near_best or excess_nats(result) <= 0):
        return "too little to tell by"
    return "not worth its rows" if excess_nats(result) <= 0 else "stopped short"


# --- plots ---------------------------------------------------------------------------------------


def draw_conditions(results: dict[str, Result]) -> Figure:
    """ARI, count and row error (down) over four conditions (across)."""
    names = CONDITIONS
    figure, axes = new_figure(len(names), 3, height=5.4, sharey="row")
    for column, name in enumerate(names):
        series = SERIES[name]
        ari, count, error = axes[column :: len(names)]
        runs = {value: of(results, series.settings(value)) for value in series.values}
        runs = {value: some for value, some in runs.items() if some}
        values = list(runs)
        best = [np.median([np.mean(one["best_ari"]) for one in some]) for some in runs.values()]
        ari.plot(values, best, color=COLOURS["truth"], marker="o", zorder=1)
        for panel, figure_of in (
            (ari, lambda one: np.mean(one["ari"])),
            (count, lambda one: np.mean(one["found"]) / one["setting"]["clusters"]),
            (error, lambda one: one["row_error"]),
        ):
            each = [[figure_of(one) for one in some] for some in runs.values()]
            panel.plot(values, [np.median(some) for some in each], color=COLOURS["clustered"])
            for value, some in zip(values, each, strict=True):
                panel.plot(
                    [value] * len(some), some, "o", color=COLOURS["clustered"], ms=3.5, alpha=0.6
                )
            panel.set_xscale("log")
            ticks = [named(series, value).replace(" %", "%") for value in series.values]
            ticks_at(panel, series.values, ticks)
            panel.tick_params(labelbottom=panel is error)
            panel.margins(x=0.12)
        count.axhline(1, color=COLOURS["truth"], lw=1, zorder=0)
        if runs:
            error.set_yscale("log")
        error.set_xlabel(series.axis)
        ari.set_title(series.title, fontsize=9)
    first = axes[:: len(names)]
    for panel, text in zip(first, ("ARI", "clusters found / planted", "row error"), strict=True):
        panel.set_ylabel(text)
    first[0].set_ylim(0, 1.05)
    first[1].set_ylim(0, 1.1 * first[1].get_ylim()[1])
    label(first[0], 0.25, 0.42, "best possible", COLOURS["truth"], dx=1)
    label(first[0], 0.25, 0.28, "found", COLOURS["clustered"], dx=1)
    return figure


def draw_objective(results: dict[str, Result]) -> Figure:
    """Description length and the error of unseen entries against fixed cluster counts."""
    figure, axes = new_figure(2, height=2.9)
    titles = ("Objective, nats above the planted", "Error of unseen entries / noise")
    styles = (
        ("search", COLOURS["truth"], "from nothing"),
        ("objective", COLOURS["clustered"], "from the planted"),
    )
    for panel, figure_of, title in zip(axes, (excess_nats, unseen_loss), titles, strict=True):
        for name, colour, text in styles:
            series = SERIES[name]
            runs = {value: of(results, series.settings(value)) for value in series.values}
            runs = {value: some for value, some in runs.items() if some}
            if not runs:
                continue
            each = [[figure_of(one) for one in some] for some in runs.values()]
            panel.plot(list(runs), [np.mean(some) for some in each], color=colour, lw=1.4)
            for value, some in zip(runs, each, strict=True):
                panel.plot([value] * len(some), some, "o", color=colour, ms=3.5, alpha=0.7)
            if panel is axes[1]:
                label(panel, list(runs)[-1], float(np.mean(each[-1])), text, colour)
        panel.axvline(10, color=RULE, lw=1.5, zorder=0)
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("rows of either table")
        ticks_at(panel, [value for value in SERIES["objective"].values if value % 2 == 0])
    if axes[0].has_data():
        high = axes[0].get_ylim()[1]
        axes[0].set_yscale("symlog", linthresh=100)
        axes[0].set_ylim(-100, 2 * high)
    return figure


def shown_seed(results: dict[str, Result]) -> Result | None:
    """The first seed of the headline setting that was recovered."""
    runs = of(results, SERIES["headline"].all_settings())
    return next((one for one in runs if is_recovered(one)), None)


def draw_factors(results: dict[str, Result]) -> Figure:
    """Found factors against planted ones."""
    figure, (panel,) = new_figure(width=3.6, height=3.6)
    result = shown_seed(results)
    if result is None:
        return figure
    planted, found = np.array(result["planted_rows"]), np.array(result["found_rows"])
    end = 1.05 * max(planted.max(), found.max())
    panel.plot([0, end], [0, end], color=COLOURS["truth"], lw=1, zorder=0)
    K = len(planted) // 2
    for name, part in (("item", slice(K, None)), ("user", slice(K))):
        panel.plot(
            planted[part].ravel(), found[part].ravel(), "o", color=COLOURS[name], ms=4, alpha=0.7
        )
    label(panel, 0.05 * end, 0.93 * end, "users", COLOURS["user"], dx=1)
    label(panel, 0.05 * end, 0.85 * end, "items", COLOURS["item"], dx=1)
    panel.set_xlabel("planted factor")
    panel.set_ylabel("found, in order and to scale")
    panel.set_aspect("equal")
    panel.grid(axis="x")
    return figure
