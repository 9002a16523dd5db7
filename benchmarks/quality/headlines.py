"""What a reader wants first: where ours wins, by how much, and where it does not.

A suite's headlines are kept in benchmarks/results/NAME.json, so that RESULTS.md can be written anew
when one suite of many has been run again.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from celrec.experiments.suite import FULL, SuiteConfig, has_budget
from celrec.experiments.suite_results import Comparison, Slice
from celrec.losses import Task

Against = Literal["best other", "full", "cold users", "cold items"]
"""The best other method of a budget; full tables, on all events, cold users or cold items."""


@dataclass(frozen=True)
class Headline:
    """One comparison of ours that RESULTS.md sums up."""

    against: Against
    comparison: Comparison


@dataclass(frozen=True)
class Headlines:
    """Those of one suite.

    name : as its page is called        title : as people call it
    num_methods : of the suite, and not_run : those of them that have not been tried yet
    """

    name: str
    title: str
    task: Task
    num_methods: int
    not_run: tuple[str, ...]
    lines: tuple[Headline, ...]

    @classmethod
    def of(
        cls,
        name: str,
        suite: SuiteConfig,
        not_run: Sequence[str],
        compared: Sequence[Comparison],
        cold: Sequence[tuple[Slice, int, Comparison]],
    ) -> Self:
        lines = [Headline("best other", one) for one in best_others(suite, compared)]
        lines += [Headline("full", one) for one in compared if one.method == FULL]
        for some, _, one in cold:
            if some.least == 0:
                against: Against = "cold users" if some.side == "user" else "cold items"
                lines.append(Headline(against, one))
        num_methods = len(suite.methods)
        return cls(name, suite.name, suite.task, num_methods, tuple(not_run), tuple(lines))

    @classmethod
    def read(cls, file: Path) -> Self:
        values = json.loads(file.read_text(encoding="utf-8"))
        lines = [Headline(v["against"], Comparison(**v["comparison"])) for v in values.pop("lines")]
        not_run = tuple(values.pop("not_run"))
        return cls(name=file.stem, not_run=not_run, lines=tuple(lines), **values)

    def write(self, file: Path) -> None:
        values: dict[str, Any] = asdict(self)
        del values["name"]
        file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def unfinished(all_of_them: Sequence[Headlines]) -> str:
    """Of which suites not all methods were run; "" where there are none."""
    parts = []
    for some in all_of_them:
        if some.not_run:
            num_run = some.num_methods - len(some.not_run)
            parts.append(f"{some.title} ({num_run} of {some.num_methods} methods)")
    return f"Not yet complete: {', '.join(parts)}." if parts else ""


def best_others(suite: SuiteConfig, compared: Sequence[Comparison]) -> list[Comparison]:
    """Of each budget, the comparison with the best other method that has one."""
    found = []
    for budget in suite.budgets:
        of_budget = [one for one in compared if one.budget == budget and has_budget(one.method)]
        if of_budget:
            found.append(min(of_budget, key=lambda one: one.gain))
    return found


def gain_in_words(task: Task, one: Comparison) -> str:
    if task == "binary":
        return f"{one.gain:+.4f} AUC, {one.low:+.4f} to {one.high:+.4f}"
    return f"{100 * one.gain:+.1f} % MSE, {100 * one.low:+.1f} to {100 * one.high:+.1f}"


def is_certain(one: Comparison) -> bool:
    return not one.low <= 0 <= one.high


def table(all_of_them: Sequence[Headlines], against: Against) -> list[str]:
    """A line for each suite, a column for each budget; [] where nothing was compared."""
    rows = {
        some: {
            one.comparison.budget: one.comparison for one in some.lines if one.against == against
        }
        for some in all_of_them
    }
    budgets = sorted({budget for row in rows.values() for budget in row})
    if not budgets:
        return []
    lines = [
        f"| | {' | '.join(f'1/{1 / budget:g}' for budget in budgets)} |",
        "|---" * (1 + len(budgets)) + "|",
    ]
    for some, row in rows.items():
        if row:
            names_other = against == "best other"
            cells = [_cell(some.task, row.get(budget), names_other) for budget in budgets]
            lines.append(f"| [{some.title}](results/{some.name}.md) | {' | '.join(cells)} |")
    return lines


def in_short(all_of_them: Sequence[Headlines], against: Against) -> str:
    """How often ours is ahead, tied and behind, and where it is behind."""
    found = [
        (some.title, line.comparison)
        for some in all_of_them
        for line in some.lines
        if line.against == against
    ]
    if not found:
        return "Nothing was compared."
    of = {
        verdict: [(title, one) for title, one in found if one.verdict == verdict]
        for verdict in ("win", "tie", "loss")
    }
    text = (
        f"Ahead {len(of['win'])} times of {len(found)}, tied {len(of['tie'])}, "
        f"behind {len(of['loss'])}"
    )
    behind: dict[str, list[str]] = {}
    for title, one in of["loss"]:
        behind.setdefault(title, []).append(f"1/{1 / one.budget:g}")
    where = "; ".join(f"{title} at {' and '.join(sizes)}" for title, sizes in behind.items())
    return textwrap.fill(f"{text}: {where}." if where else f"{text}.", 100)


def _cell(task: Task, one: Comparison | None, names_other: bool) -> str:
    if one is None:
        return "-"
    gain = f"{one.gain:+.4f}" if task == "binary" else f"{100 * one.gain:+.1f} %"
    mark = "=" if one.verdict == "tie" else "" if is_certain(one) else "?"
    if one.verdict == "loss":
        gain = f"**{gain}**"
    return f"{gain}{mark}" + (f" ({one.method})" if names_other else "")
