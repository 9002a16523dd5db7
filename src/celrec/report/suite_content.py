"""What a page about a suite is made from, and how its methods stand to each other.

`SuiteContent` holds plain values, so that whoever runs suites can fill it. `read_content` turns it
into a `Suite`, which answers the questions that the page asks: who is best at a budget, in which
order do methods stand, where does ours win or lose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from celrec.errors import DataError
from celrec.report.read import FIGURE

Place = Literal["best", "tied", "behind", "alone"]

_VERDICTS = ("win", "tie", "loss")
_NOT_DONE = ("does not fit", "failed")


@dataclass(frozen=True, kw_only=True)
class SuiteContent:
    """A finished suite: methods at equal bytes on one data set.

    name : of the suite
    task : "binary" (AUC, higher is better) or "rating" (MSE, lower is better)
    data_name, data_fingerprint, commit : where the figures come from
    seeds : of the final runs
    budgets : in (0, 1], shares of the bytes of full float32 tables
    standings : the final runs of a method at a budget, averaged over seeds: method, budget (None
        for full tables and peers), mean, std (or None), runs, table_bytes, total_bytes,
        full_table_bytes, seconds (or None)
    comparisons : ours against a method at a budget: method, budget, gain (of AUC, or the share of
        the other's squared error that ours saves), low, high (its 95 % interval), verdict ("win",
        "tie" or "loss": ours)
    missing : runs without a figure: method, budget (None: at all, as when tuning failed), status
        ("does not fit" or "failed"), error
    cold : figures on a slice of the test events: slice (as in metrics.json: "users_at_most_5"),
        num_events, method, budget, mean (or None: too few events)
    item_ranking : how all items are ranked, averaged over seeds: method, budget, ndcg, ndcg_at_10,
        num_ranked_users (of a run)
    negatives : how many were drawn for each positive, for data that hold positives only; else None
    ours, full : which methods these are
    peers : methods of other packages; like full tables they are of any size, and have one figure
    trials, tuning_budget : how many trials each method had, at which budget; None: not said
    tie : the largest gain of a tie, in the unit of gains; None: not said
    facts : more about the runs, as (what, value): versions, hardware
    """

    name: str
    task: str
    data_name: str
    data_fingerprint: str
    commit: str
    seeds: Sequence[int]
    budgets: Sequence[float]
    standings: Sequence[Mapping[str, Any]]
    comparisons: Sequence[Mapping[str, Any]] = ()
    missing: Sequence[Mapping[str, Any]] = ()
    cold: Sequence[Mapping[str, Any]] = ()
    item_ranking: Sequence[Mapping[str, Any]] = ()
    negatives: int | None = None
    ours: str = "clustered"
    full: str = "full"
    peers: Sequence[str] = ()
    trials: int | None = None
    tuning_budget: float | None = None
    tie: float | None = None
    facts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Standing:
    """A method at a budget; see `SuiteContent.standings`."""

    method: str
    budget: float | None
    mean: float
    std: float | None
    runs: int
    table_bytes: float
    total_bytes: float
    full_table_bytes: float
    seconds: float | None

    @property
    def total_share(self) -> float:
        return self.total_bytes / self.full_table_bytes

    @property
    def table_share(self) -> float:
        return self.table_bytes / self.full_table_bytes


@dataclass(frozen=True)
class Verdict:
    """Ours against a method at a budget; see `SuiteContent.comparisons`."""

    method: str
    budget: float
    gain: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class NotDone:
    """Why a method has no figure at a budget, or not of all seeds.

    status : "does not fit", "failed", or "no result" where nothing is known
    """

    method: str
    budget: float | None
    status: str
    error: str


@dataclass(frozen=True)
class Suite:
    """A suite as the page reads it.

    budgets : the smallest first
    methods : all that have budgets, in the order of their mean rank; those without a figure last
    standings[method, budget], verdicts[method, budget]
    full : None if full tables have no figure
    peers : those that have a figure, the best first
    missing : in the order of methods
    """

    content: SuiteContent
    budgets: tuple[float, ...]
    methods: tuple[str, ...]
    mean_rank: Mapping[str, float]
    standings: Mapping[tuple[str, float], Standing]
    verdicts: Mapping[tuple[str, float], Verdict]
    full: Standing | None
    peers: tuple[Standing, ...]
    missing: tuple[NotDone, ...]

    @property
    def ours(self) -> str:
        return self.content.ours

    @property
    def task(self) -> str:
        return self.content.task

    @property
    def others(self) -> tuple[str, ...]:
        """All but ours that have budgets, the best first."""
        return tuple(method for method in self.methods if method != self.ours)

    @property
    def any_size(self) -> tuple[Standing, ...]:
        """Full tables and peers that have a figure."""
        return (*([] if self.full is None else [self.full]), *self.peers)

    def has_budget(self, method: str) -> bool:
        return method != self.content.full and method not in self.content.peers

    def label(self, method: str) -> str:
        return "full tables" if method == self.content.full else method

    def rank(self, method: str) -> int | None:
        """Its place by mean rank, from 1; equal mean ranks share the first of their places."""
        if method not in self.mean_rank:
            return None
        return 1 + sum(rank < self.mean_rank[method] for rank in self.mean_rank.values())

    def others_at(self, budget: float) -> list[Standing]:
        """The figures of others at a budget, the best first."""
        found = [
            self.standings[other, budget]
            for other in self.others
            if (other, budget) in self.standings
        ]
        return sorted(found, key=lambda one: one.mean, reverse=self.task == "binary")

    def gain(self, other: Standing, budget: float) -> float:
        """How far ours is ahead at a budget, in the unit of gains."""
        known = self.verdicts.get((other.method, budget))
        if known is not None:
            return known.gain
        ours = self.standings[self.ours, budget].mean
        return ours - other.mean if self.task == "binary" else 1 - ours / other.mean

    def verdict(self, other: Standing, budget: float) -> str:
        """As compared; without a comparison the better mean wins."""
        known = self.verdicts.get((other.method, budget))
        if known is not None:
            return known.verdict
        gain = self.gain(other, budget)
        return "tie" if gain == 0 else "win" if gain > 0 else "loss"

    def place(self, budget: float) -> Place | None:
        """Where ours stands among methods of equal bytes; None without a figure.

        returns : "best" if it wins against all others, "behind" if it loses to any
        """
        if (self.ours, budget) not in self.standings:
            return None
        verdicts = {self.verdict(other, budget) for other in self.others_at(budget)}
        if not verdicts:
            return "alone"
        return "behind" if "loss" in verdicts else "tied" if "tie" in verdicts else "best"

    def why_missing(self, method: str, budget: float) -> NotDone:
        """Why there is no figure; a line for this budget before one for all."""
        lines = [one for one in self.missing if one.method == method]
        for wanted in (budget, None):
            for one in lines:
                if one.budget == wanted:
                    return one
        return NotDone(method, budget, "no result", "")


def read_content(content: SuiteContent) -> Suite:
    """Check the content, and put it in order.

    raises : DataError naming the line that is wrong
    """
    if content.task not in FIGURE:
        raise DataError(f"the task is {content.task!r}; wanted one of {', '.join(FIGURE)}")
    if not content.budgets or len(set(content.budgets)) < len(content.budgets):
        raise DataError(f"budgets are {list(content.budgets)}; wanted at least one, none twice")
    standings: dict[tuple[str, float], Standing] = {}
    any_size: dict[str, Standing] = {}
    unbounded = {
        content.full: "full tables have",
        **{peer: f"{peer} has" for peer in content.peers},
    }
    for line in content.standings:
        one = _standing(line)
        if one.method in unbounded:
            if one.method in any_size:
                raise DataError(f"{unbounded[one.method]} two standings; wanted one")
            any_size[one.method] = one
            continue
        _check_budget(content, one.method, one.budget)
        assert one.budget is not None
        if (one.method, one.budget) in standings:
            raise DataError(
                f"{one.method} has two standings at budget {one.budget:g}; wanted one: give "
                "methods names of their own, and average over seeds"
            )
        standings[one.method, one.budget] = one
    named = [line["method"] for line in (*content.standings, *content.missing)]
    methods = [name for name in dict.fromkeys(named) if name not in unbounded]
    mean_rank = _mean_ranks(content, methods, standings)
    # A sort keeps the order of equals.
    methods.sort(key=lambda method: mean_rank.get(method, math.inf))
    full = any_size.pop(content.full, None)
    peers = sorted(any_size.values(), key=lambda one: one.mean, reverse=content.task == "binary")
    return Suite(
        content=content,
        budgets=tuple(sorted(content.budgets)),
        methods=tuple(methods),
        mean_rank=mean_rank,
        standings=standings,
        verdicts=_verdicts(content),
        full=full,
        peers=tuple(peers),
        missing=_missing(content, methods, standings),
    )


def _standing(line: Mapping[str, Any]) -> Standing:
    try:
        one = Standing(
            method=str(line["method"]),
            budget=line["budget"],
            mean=line["mean"],
            std=number_or_none(line["std"]),
            runs=line["runs"],
            table_bytes=line["table_bytes"],
            total_bytes=line["total_bytes"],
            full_table_bytes=line["full_table_bytes"],
            seconds=number_or_none(line["seconds"]),
        )
    except KeyError as error:
        raise DataError(f"a standing has no key {error}; it has {', '.join(line)}") from error
    for name in ("mean", "total_bytes", "full_table_bytes"):
        if number_or_none(getattr(one, name)) is None:
            raise DataError(
                f"{name} of {one.method} at budget {one.budget} is {line[name]}; wanted a number: "
                "a run without a figure belongs to missing"
            )
    return one


def number_or_none(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return value if is_number else None


def _check_budget(content: SuiteContent, method: str, budget: float | None) -> None:
    if budget not in content.budgets:
        raise DataError(
            f"{method} has a line at budget {budget}; wanted one of "
            f"{', '.join(f'{one:g}' for one in content.budgets)}"
        )


def _verdicts(content: SuiteContent) -> dict[tuple[str, float], Verdict]:
    found = {}
    for line in content.comparisons:
        try:
            one = Verdict(
                *(line[key] for key in ("method", "budget", "gain", "low", "high", "verdict"))
            )
        except KeyError as error:
            raise DataError(f"a comparison has no key {error}; it has {', '.join(line)}") from error
        _check_budget(content, one.method, one.budget)
        if one.verdict not in _VERDICTS:
            raise DataError(
                f"the verdict on {one.method} is {one.verdict!r}; wanted one of "
                f"{', '.join(_VERDICTS)}"
            )
        found[one.method, one.budget] = one
    return found


def _mean_ranks(
    content: SuiteContent,
    methods: Sequence[str],
    standings: Mapping[tuple[str, float], Standing],
) -> dict[str, float]:
    """Of methods that have a figure. Equals share their ranks; those without one share the last."""
    sign = -1 if content.task == "binary" else 1
    ranked = [method for method in methods if any(name == method for name, _ in standings)]
    ranks: dict[str, list[float]] = {method: [] for method in ranked}
    for budget in content.budgets:
        height = {
            method: sign * standings[method, budget].mean
            if (method, budget) in standings
            else math.inf
            for method in ranked
        }
        if all(value == math.inf for value in height.values()):
            continue
        for method, value in height.items():
            better = sum(other < value for other in height.values())
            equal = sum(other == value for other in height.values())
            ranks[method].append(better + (equal + 1) / 2)
    return {method: math.fsum(found) / len(found) for method, found in ranks.items()}


def _missing(
    content: SuiteContent,
    methods: Sequence[str],
    standings: Mapping[tuple[str, float], Standing],
) -> tuple[NotDone, ...]:
    """Lines that are given, one of each, and one for every hole that none explains."""
    found = []
    for line in content.missing:
        if line["status"] not in _NOT_DONE:
            raise DataError(
                f"the status of {line['method']} is {line['status']!r}; wanted one of "
                f"{', '.join(_NOT_DONE)}"
            )
        error = str(line.get("error") or "")
        found.append(NotDone(line["method"], line["budget"], line["status"], error))
    explained = {(one.method, one.budget) for one in found}
    found += [
        NotDone(method, budget, "no result", "")
        for method in methods
        for budget in content.budgets
        if (method, budget) not in standings and not explained & {(method, budget), (method, None)}
    ]
    order = {method: number for number, method in enumerate(methods)}
    found.sort(key=lambda one: (order.get(one.method, -1), one.budget or 0.0))
    return tuple(dict.fromkeys(found))
