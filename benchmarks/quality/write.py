"""Writes benchmarks/RESULTS.md, and a page with a plot in benchmarks/results for each suite.

    celrec bench benchmarks/quality/ml_100k.toml        # for every suite, as long as it takes
    python -m benchmarks.quality.write [--runs FOLDER]

Pages are written of the suites that have results under --runs, together with the records of them
(record.py) in benchmarks/results/records: a suite may be run in parts. RESULTS.md sums up all pages
that are there, older ones too, and says which suites have none.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.jobs import ROOT
from benchmarks.plotting import COLOURS, QUIET, label, new_figure, save, ticks_at
from benchmarks.quality import planted
from benchmarks.quality.headlines import (
    Headlines,
    best_others,
    gain_in_words,
    in_short,
    is_certain,
    table,
    unfinished,
)
from benchmarks.quality.record import COMPARISONS_FILE, Record
from benchmarks.readme import replace_block
from celrec.experiments.config import RunConfig
from celrec.experiments.peers import PEERS
from celrec.experiments.suite import FULL, TRIALS_FILE, SuiteConfig, has_budget
from celrec.experiments.suite_results import (
    OURS,
    RANKED,
    TIE,
    Comparison,
    Slice,
    standings,
)
from celrec.report.style import spread_apart

SUITES = ROOT / "benchmarks" / "quality"
PAGES = ROOT / "benchmarks" / "results"
RECORDS = PAGES / "records"
SUMMARY = ROOT / "benchmarks" / "RESULTS.md"
PLOT_HEIGHT = 230  # of the axes, in points
NUM_NAMED = 4  # lines of other methods that get a colour and a name

TEXT = """\
# Methods at equal bytes

*Written by `python -m benchmarks.quality.write` from suites that `celrec bench` ran.
{missing}*

How far ours is ahead of the best other method of the same total bytes (AUC, or the share of the
other's squared error that it saves). Bold: behind. `=`: tied. `?`: the 95 % interval contains 0.
{best_others_in_short}
{unfinished}

{best_others}

How far ours is ahead of full float32 tables, tuned with as many trials.
{full_in_short}

{full}

The same, on users with at most five training events.
{cold_users_in_short}

{cold_users}

And on items with at most five.
{cold_items_in_short}

{cold_items}

Pages of the cold suites have users and items of exactly one, three and five events. On
MovieLens-100k, ours is behind full tables on items with a single one, at every budget.

## How it was measured

Every method was tuned with the same number of trials on validation data, at one budget; figures are
those of test data, mean and standard deviation over seeds. A budget is a share of the bytes of full
float32 tables and covers all that serving needs: rows, codes, index tables, private numbers. "Ours"
is `clustered` under that byte budget. Gains are paired on the same test events, with 95 % intervals
from a bootstrap over test users, seeds pooled. Tied: the interval contains 0, and the difference is
below {auc:g} AUC or {mse:.1%} of the squared error.

Full tables and peers (`surprise-...` and `implicit-...`: other packages, on the same partitions)
are of any size. Their bytes stand beside their figures, those of peers as their packages hold them.
Predictions of `surprise-...` are cut off at the ends of the ratings, as that package does; those of
others are not. Scores of `implicit-...` rank the items of a user and are no probabilities, but AUC
pools users.

Inner constants of other methods (pulls, pruning times, numbers of hashes, shares of a budget) were
set beforehand in trials on parts of MovieLens-100k and -1M that were scored on held-out data, test
events among them. On these two data sets that favours them, if anything, over ours. [A published
table of MovieLens-1M](../docs/results/published-ml-1m.md), repeated with them, says how well they
are made.

Where it was run but for ml-100k ratings and the small planted suite, `hashed-net` had hash signs,
as in its paper. They turned out to harm it: at the sizes of the published table it is better
without by 0.08 to 0.26 validation AUC, and has none by default since. Its figures there are lower
than they need be; they have not been run again.

All suites but Amazon's were run before the company of entities was guessed as it is now, with
their own samples left out (see [company](../docs/design/company.md)), and before steps of personal
vectors stayed large for two thirds of a fit. In Amazon's `trials.parquet`, the cold slices of
other methods count drawn negatives as events; the comparisons do not.

`paper-cel` has one byte for a cluster, so at most 256 of them, and does not grow where a budget
would allow more.

The paper's third rating set (Amazon video games) cannot be had without its publisher's site;
CiaoDVD and Book-Crossing stand in. `amazon_ratings.toml` has its entry, for those
who have the file.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    for file in sorted(SUITES.glob("*.toml")):
        folder, kept = options.runs / file.stem, RECORDS / file.stem
        has_runs, has_record = ((some / TRIALS_FILE).exists() for some in (folder, kept))
        if has_runs:
            part = Record.of_runs(folder)
            record = Record.read(kept).with_part(part) if has_record else part
            record.write(kept)
        if has_runs or has_record:
            text, headlines = page(file.stem, Record.read(kept))
            (PAGES / f"{file.stem}.md").write_text(text, encoding="utf-8")
            headlines.write(PAGES / f"{file.stem}.json")
    SUMMARY.write_text(summary(), encoding="utf-8")
    found = [Headlines.read(file) for file in sorted(PAGES.glob("*.json"))]
    replace_block("suites", in_readme(found))


def in_readme(found: list[Headlines]) -> str:
    text = (
        f"Against all other methods at equal total bytes, in {len(found)} suites at five budgets "
        "from a hundredth to a quarter of full tables, every method tuned with as many trials: "
        f"{_inside(in_short(found, 'best other'))}. Against full tables: "
        f"{_inside(in_short(found, 'full'))}. {unfinished(found)} "
        "[Where, by how much, and how it was measured](benchmarks/RESULTS.md)."
    )
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _inside(sentence: str) -> str:
    """A sentence as a part of another."""
    return sentence[0].lower() + sentence[1:].rstrip(".")


def summary() -> str:
    """RESULTS.md, of all pages that are there."""
    names = [file.stem for file in sorted(SUITES.glob("*.toml"))]
    missing = [f"`{name}.toml`" for name in names if not (PAGES / f"{name}.json").exists()]
    found = [Headlines.read(PAGES / f"{n}.json") for n in names if f"`{n}.toml`" not in missing]
    return TEXT.format(
        missing=textwrap.fill(
            f"Not run yet: {', '.join(missing)}." if missing else "All suites were run.", 100
        ),
        best_others="\n".join(table(found, "best other")),
        best_others_in_short=in_short(found, "best other"),
        unfinished=unfinished(found),
        full_in_short=in_short(found, "full"),
        cold_users_in_short=in_short(found, "cold users"),
        cold_items_in_short=in_short(found, "cold items"),
        full="\n".join(table(found, "full")),
        cold_users="\n".join(table(found, "cold users")),
        cold_items="\n".join(table(found, "cold items")),
        auc=TIE["binary"],
        mse=TIE["rating"],
    )


def page(name: str, record: Record) -> tuple[str, Headlines]:
    """A suite's page and what RESULTS.md says of it; draws its plot, too."""
    suite, trials, compared = record.suite, record.trials, record.compared
    table = standings(trials, suite.metric)
    plot(name, suite, table)
    tried = record.methods
    not_run = [method for method in suite.methods if method not in tried]
    present = [m for m in suite.methods if m in table["method"].to_list()]
    commits = ", ".join(sorted(trials["commit"].unique().to_list()))
    text = "\n".join(
        [
            f"# {suite.name}",
            "",
            "*Written by `python -m benchmarks.quality.write`; "
            "[RESULTS.md](../RESULTS.md) says how to read it.*",
            "",
            *constructed(suite),
            verdict(suite, compared, table),
            "",
            f"![{suite.metric.upper()} against total bytes]({name}.svg)",
            "",
            *figures(suite, suite.metric, table, present),
            "",
            *bytes_of_ours(table),
            "",
            *wins(suite, compared),
            "",
            *cold(suite, record.cold),
            *rankings(suite, record, present),
            f"{suite.trials} tuning trials for each method at 1/{1 / suite.tuning_budget:g}, seeds "
            f"{', '.join(map(str, suite.seeds))}; commit {commits}; "
            f"data {trials['data_fingerprint'].drop_nulls()[0][:12]}. A dash: the method cannot be "
            f"as small, or has not been run. [All trials](records/{name}/{TRIALS_FILE}), with "
            f"settings, and [all comparisons](records/{name}/{COMPARISONS_FILE}).",
            *in_parts(suite, record),
            *absent(not_run, [m for m in suite.methods if m in tried and m not in present]),
            *failures(trials),
            "",
        ]
    )
    return text, Headlines.of(name, suite, not_run, compared, record.cold)


def verdict(suite: SuiteConfig, compared: list[Comparison], table: pl.DataFrame) -> str:
    """Where ours is best or tied, by budget, and where full tables stand."""
    parts = []
    for best in best_others(suite, compared):
        word = {"win": "ahead of", "tie": "tied with", "loss": "behind"}[best.verdict]
        if best.verdict != "tie" and not is_certain(best):
            word = f"{word}, but not for certain,"
        gain = gain_in_words(suite.task, best)
        parts.append(f"1/{1 / best.budget:g} {word} {best.method} ({gain})")
    against_full = [
        f"1/{1 / one.budget:g} {gain_in_words(suite.task, one)}"
        for one in compared
        if one.method == FULL
    ]
    text = f"Ours against the best other method at each budget: {'; '.join(parts)}."
    if against_full:
        text += f" Against the tuned full table: {'; '.join(against_full)}."
    peers = table.filter(pl.col("method").is_in(list(PEERS)))  # the best first
    if not peers.is_empty():
        best = peers.row(0, named=True)
        against = [
            f"1/{1 / one.budget:g} {gain_in_words(suite.task, one)}"
            for one in compared
            if one.method == best["method"]
        ]
        text += f" Against the best peer, {best['method']} ({best['total_bytes']:,.0f} bytes): "
        text += f"{'; '.join(against) or 'not compared'}."
    return text


def _difference(one: Comparison) -> str:
    return f"{one.gain:+.4f}, {one.low:+.4f} to {one.high:+.4f}"


def figures(suite: SuiteConfig, metric: str, table: pl.DataFrame, methods: list[str]) -> list[str]:
    """A line for each method, the best mean first.

    table : the standings by that metric
    """
    cells: dict[tuple[str, float | None], dict[str, Any]] = {
        (line["method"], line["budget"]): line for line in table.to_dicts()
    }
    heads = [f"1/{1 / budget:g}" for budget in suite.budgets]
    lines = [
        f"| {metric.upper().replace('_AT_', '@')} | {' | '.join(heads)} | any size |",
        "|---" * (len(heads) + 2) + "|",
    ]
    best = {
        budget: table.filter(pl.col("budget") == budget)["mean"].first()
        for budget in suite.budgets
        if not table.filter(pl.col("budget") == budget).is_empty()
    }

    def strength(method: str) -> tuple[int, float]:
        found = [cells[method, b]["mean"] for b in suite.budgets if (method, b) in cells]
        mean = sum(found) / len(found) if found else 0.0
        return -len(found), mean if metric == "mse" else -mean

    for method in sorted(methods, key=strength):
        row = []
        for budget in (*suite.budgets, None):
            line = cells.get((method, budget))
            if line is None:
                row.append("-")
                continue
            text = f"{line['mean']:.4f}" + (f" ± {line['std']:.4f}" if line["std"] else "")
            if budget is None:
                text += f" ({line['total_bytes']:,.0f} bytes)"
            row.append(f"**{text}**" if best.get(budget) == line["mean"] else text)
        lines.append(f"| {method} | {' | '.join(row)} |")
    return lines


def bytes_of_ours(table: pl.DataFrame) -> list[str]:
    ours = table.filter(pl.col("method") == OURS)
    return [
        "Bytes of ours, total (of rows alone): "
        + "; ".join(
            f"1/{1 / line['budget']:g} {line['total_bytes']:,.0f} ({line['table_bytes']:,.0f})"
            for line in ours.to_dicts()
        )
        + ". Full tables: "
        + f"{table['full_table_bytes'].max():,.0f}.",
    ]


def constructed(suite: SuiteConfig) -> list[str]:
    """What labels are, where the data hold none, or no more than those of positives."""
    source = Path(suite.common["data"]["source"]).name
    for name, size in planted.SIZES.items():
        if source == planted.file_of(name):
            return [
                "The data are made: users and items lie around the vectors of planted clusters "
                f"({size.num_clusters} of users, {size.num_clusters} of items), as far from them "
                "as these from one another. Labels are drawn from the products of their vectors, "
                f"whose own AUC is {planted.best_auc(planted.make(name)):.4f}: no method can be "
                "expected to do better.",
                "",
            ]
    negatives = RunConfig.from_values(suite.common).task.negatives
    if negatives is None:
        return []
    return [
        f"The data hold positives only. The negatives are constructed: {negatives} items that the "
        "user did not meet are drawn for each positive, in training, validation and test data "
        "alike. AUC is on these.",
        "",
    ]


def rankings(suite: SuiteConfig, record: Record, present: list[str]) -> list[str]:
    """NDCG@10 of all items, and ours against the best other of its size and full tables."""
    compared, trials = record.ranked, record.trials
    if not compared:
        return []
    ranked = trials.filter(pl.col(RANKED).is_not_null())
    lines = [
        "Ranking: the mean NDCG of the first ten places, for "
        f"{ranked['num_ranked_users'].max():,} test users of each seed, the same for every method. "
        "Ranked are all items but those that the user met in training; "
        "items of equal scores share their places.",
        "",
        *figures(suite, RANKED, standings(ranked, RANKED), present),
        "",
        "| ours, NDCG@10 gained | on the best other | on full tables |",
        "|---|---|---|",
    ]
    for budget in suite.budgets:
        of_budget = [one for one in compared if one.budget == budget]
        others = [one for one in of_budget if has_budget(one.method)]
        full = [one for one in of_budget if one.method == FULL]
        best = [min(others, key=lambda one: one.gain)] if others else []
        cells = [f"{one.method}: {_difference(one)}" for one in best] or ["-"]
        cells += [_difference(one) for one in full] or ["-"]
        lines.append(f"| 1/{1 / budget:g} | {' | '.join(cells)} |")
    return [*lines, ""]


def wins(suite: SuiteConfig, compared: list[Comparison]) -> list[str]:
    lines = ["| ours against all others | wins | ties | losses |", "|---|---|---|---|"]
    for budget in suite.budgets:
        of_budget = [one for one in compared if one.budget == budget]
        by_verdict = {
            verdict: [one.method for one in of_budget if one.verdict == verdict]
            for verdict in ("win", "tie", "loss")
        }
        named = [
            f"{len(by_verdict[verdict])}"
            + (
                f": {', '.join(by_verdict[verdict])}"
                if by_verdict[verdict] and verdict != "win"
                else ""
            )
            for verdict in ("win", "tie", "loss")
        ]
        lines.append(f"| 1/{1 / budget:g} | {' | '.join(named)} |")
    return lines


def cold(suite: SuiteConfig, found: list[tuple[Slice, int, Comparison]]) -> list[str]:
    """Ours against the full table on cold users and items; nothing where there are too few."""
    if not found:
        return []
    heads = " | ".join(f"1/{1 / budget:g}" for budget in suite.budgets)
    lines = [
        f"| ours against the tuned full table | test events | {heads} |",
        "|---" * (len(suite.budgets) + 2) + "|",
    ]
    for some in dict.fromkeys(some for some, _, _ in found):
        gains = {one.budget: one for at, _, one in found if at == some}
        num_events = next(num for at, num, _ in found if at == some)
        cells = (gain_in_words(suite.task, gains[b]) if b in gains else "-" for b in suite.budgets)
        lines.append(f"| {_slice_name(some)} | {num_events:,} | {' | '.join(cells)} |")
    return [*lines, ""]


def _slice_name(some: Slice) -> str:
    if some.least < some.most:
        return f"{some.side}s with at most {some.most} training events"
    return f"{some.side}s with {some.most}"


def in_parts(suite: SuiteConfig, record: Record) -> list[str]:
    """What a reader must know of a suite that was not run in one go."""
    if not record.drift:
        return []
    drift = f"{record.drift:.4f}" if suite.metric == "auc" else f"{record.drift:.2%}"
    return [
        "",
        "The methods were run in parts, and ours in each; a method is compared with ours of its "
        f"own part. Means of ours differ by at most {drift} between parts.",
    ]


def absent(not_run: list[str], without_figures: list[str]) -> list[str]:
    lines = ["", f"Not run yet: {', '.join(not_run)}."] if not_run else []
    if without_figures:
        lines += ["", f"Too large at every budget, or failed: {', '.join(without_figures)}."]
    return lines


def failures(trials: pl.DataFrame) -> list[str]:
    failed = trials.filter(pl.col("status") == "failed").select("method", "error").unique()
    if failed.is_empty():
        return []
    return ["", "Failed:", ""] + [f"- {line[0]}: {line[1]}" for line in failed.iter_rows()]


def plot(name: str, suite: SuiteConfig, table: pl.DataFrame) -> None:
    """The figure against the share of the full tables' bytes that a table takes."""
    canvas, (axes,) = new_figure(height=4.2)
    others = [m for m in suite.methods if m != OURS and has_budget(m)]
    largest = max(suite.budgets)
    at_largest = {
        line["method"]: line["mean"]
        for line in table.filter(pl.col("budget") == largest).to_dicts()
    }
    sign = 1 if suite.metric == "auc" else -1
    named = sorted((m for m in others if m in at_largest), key=lambda m: -sign * at_largest[m])[
        :NUM_NAMED
    ]
    colours = dict(zip(named, ("#b2500a", "#8a0f7d", "#0b5a2a", "#6b5500"), strict=False))
    names: list[tuple[float, str, str]] = []
    for method in [*others, OURS]:
        lines = table.filter(
            (pl.col("method") == method) & pl.col("budget").is_not_null()
        ).to_dicts()
        if not lines:
            continue
        x = [line["total_bytes"] / line["full_table_bytes"] for line in lines]
        y = [line["mean"] for line in lines]
        colour = COLOURS["clustered"] if method == OURS else colours.get(method, "#c3cad1")
        axes.plot(x, y, "o-", color=colour, linewidth=2.6 if method == OURS else 1.2, markersize=4)
        if method == OURS:
            band = [line["std"] or 0.0 for line in lines]
            low, high = ([a + s * b for a, b in zip(y, band, strict=True)] for s in (-1, 1))
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        if method == OURS or method in colours:
            names.append((y[-1], "ours" if method == OURS else method, colour))
    any_size = [table.filter(pl.col("method") == FULL)]
    any_size.append(table.filter(pl.col("method").is_in(list(PEERS))).head(1))  # the best
    shares = (min(suite.budgets), suite.budgets[len(suite.budgets) // 2])
    for line, share in zip(any_size, shares, strict=True):
        if line.is_empty():
            continue
        name_of_level = "full table" if line["method"][0] == FULL else line["method"][0]
        mean = line["mean"][0]
        axes.axhline(mean, color=COLOURS["full"], linewidth=0.9, linestyle=":")
        label(axes, share, mean, f"{name_of_level}, tuned", COLOURS["full"], dx=0, dy=4)
    axes.set_xscale("log")
    ticks_at(axes, suite.budgets, [f"1/{1 / budget:g}" for budget in suite.budgets])
    axes.set_xlabel("total bytes, as a share of full tables", color=QUIET)
    axes.set_title(f"{suite.name}: test {suite.metric.upper()}")
    heights = spread_apart([y for y, _, _ in names], sorted(axes.get_ylim()), PLOT_HEIGHT, 12)
    for height, (_, name_of_method, colour) in zip(heights, names, strict=True):
        label(axes, max(suite.budgets), height, name_of_method, colour, dx=16)
    if suite.metric != "auc":
        axes.invert_yaxis()
    save(canvas, PAGES / f"{name}.svg")


if __name__ == "__main__":
    main()
