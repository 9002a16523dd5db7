"""Suites made up by hand, as a page takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celrec.report.suite_content import SuiteContent

FULL_BYTES = 1_000_000
OURS = "clustered"


def fabricate_suite(
    figures: Mapping[str, Sequence[float | None]],
    *,
    budgets: Sequence[float] = (0.01, 0.05, 0.1),
    task: str = "binary",
    full: float | None = 0.85,
    tie: float = 0.003,
    **changes: Any,
) -> SuiteContent:
    """A suite whose comparisons follow from its figures.

    figures[method] : one for each budget, None where the method does not fit
    full : of full tables; None without any
    tie : smaller gains are ties
    changes : other fields of SuiteContent
    """
    standings = [
        standing(method, budget, mean)
        for method, means in figures.items()
        for budget, mean in zip(budgets, means, strict=True)
        if mean is not None
    ]
    missing = [
        {
            "method": method,
            "budget": budget,
            "status": "does not fit",
            "error": f"{budget * FULL_BYTES:.0f} bytes are too few for {method}",
        }
        for method, means in figures.items()
        for budget, mean in zip(budgets, means, strict=True)
        if mean is None
    ]
    comparisons = []
    for number, budget in enumerate(budgets):
        ours = figures.get(OURS, [None] * len(budgets))[number]
        others = {method: means[number] for method, means in figures.items() if method != OURS}
        for method, mean in {**others, "full": full}.items():
            if ours is not None and mean is not None:
                comparisons.append(comparison(method, budget, ours, mean, task, tie))
    if full is not None:
        standings.append(standing("full", None, full))
    return SuiteContent(
        **{
            "name": "made-up suite",
            "task": task,
            "data_name": "made-up",
            "data_fingerprint": "f" * 64,
            "commit": "c" * 40,
            "seeds": (0, 1, 2),
            "budgets": tuple(budgets),
            "standings": standings,
            "comparisons": comparisons,
            "missing": missing,
            "tie": tie,
            **changes,
        }
    )


def standing(method: str, budget: float | None, mean: float, **changes: Any) -> dict[str, Any]:
    """A line of a method whose codes take a tenth of its bytes."""
    total = round((budget or 1.0) * FULL_BYTES)
    return {
        "method": method,
        "budget": budget,
        "mean": mean,
        "std": 0.002,
        "runs": 3,
        "table_bytes": total if budget is None else round(0.9 * total),
        "total_bytes": total,
        "full_table_bytes": FULL_BYTES,
        "seconds": 12.0,
        **changes,
    }


def comparison(
    method: str, budget: float, ours: float, other: float, task: str, tie: float
) -> dict[str, Any]:
    """Of two figures, with an interval as wide as a tie."""
    gain = ours - other if task == "binary" else 1 - ours / other
    verdict = "tie" if abs(gain) < tie else "win" if gain > 0 else "loss"
    return {
        "method": method,
        "budget": budget,
        "gain": gain,
        "low": gain - tie,
        "high": gain + tie,
        "verdict": verdict,
    }


def cold_lines(
    name: str, num_events: int, figures: Mapping[tuple[str, float | None], float | None]
) -> list[dict[str, Any]]:
    """Figures on a slice by method and budget."""
    return [
        {
            "slice": name,
            "num_events": num_events,
            "method": method,
            "budget": budget,
            "mean": mean,
        }
        for (method, budget), mean in figures.items()
    ]
