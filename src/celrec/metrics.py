"""Metrics of predictions, over all events and over cold ones; metrics of a user's ranked items.

An event is cold when its user or its item was seen rarely in training. Slices by a fixed limit (at
most 5, at most 20 training events) compare data sets; the coldest tenth compares methods on one.

A metric that is undefined on a slice is None there, with the reason; on all events it is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from celrec.errors import ArgumentError, MetricError, MissingExtraError
from celrec.losses import Task

try:
    from sklearn.metrics import (
        label_ranking_average_precision_score,
        mean_absolute_error,
        mean_squared_error,
        ndcg_score,
        roc_auc_score,
    )
except ImportError as error:
    raise MissingExtraError(
        "metrics need scikit-learn, which is not installed: pip install celrec[train]"
    ) from error

METRIC_NAMES: dict[Task, tuple[str, ...]] = {
    "binary": ("log_loss", "auc"),
    "rating": ("mse", "rmse", "mae"),
}
RANKING_METRIC_NAMES = ("ndcg", "ndcg_at_10", "average_precision")
COLD_LIMITS = (5, 20)
MIN_COLDEST_EVENTS = 100

Metrics = dict[str, Any]


def evaluate(
    prediction: np.ndarray,
    label: np.ndarray,
    *,
    task: Task,
    user_counts: np.ndarray | None = None,
    item_counts: np.ndarray | None = None,
    slices: Mapping[str, np.ndarray] | None = None,
) -> Metrics:
    """Hold predictions against labels.

    prediction : float (n,)   logits for "binary", ratings for "rating"
    label : float (n,)        0 or 1 for "binary"
    user_counts, item_counts : int (n,)   training events of each event's user and item
    slices : further slices by name, int (any number,): the positions of their events
    returns : {"num_events": n, ...} with "mse", "rmse", "mae" for ratings and "log_loss" (nats),
        "auc" for binary; with counts also the same for "users_at_most_5", "users_at_most_20",
        "coldest_users" and for items. The coldest are the tenth of all events (n // 10) whose user
        has the fewest training events; of events with equal counts the earlier ones are taken.
        Where one of a slice's metrics is None, its "reason" says why.
    raises : MetricError if all events together have no defined value: no events, NaN or infinite
        predictions, labels of one class only

    >>> found = evaluate(np.array([2.0, -1.0, 0.5]), np.array([1, 0, 0]), task="binary")
    >>> found["num_events"], found["auc"], round(found["log_loss"], 4)
    (3, 1.0, 0.4714)
    """
    prediction, label = _checked(prediction, label, task)
    found = {"num_events": len(label), **_metrics(prediction, label, task)}
    if "reason" in found:
        raise MetricError(_one_class_message(found["reason"]))
    for entity, counts in (("users", user_counts), ("items", item_counts)):
        if counts is None:
            continue
        counts = np.asarray(counts)
        if counts.shape != label.shape:
            raise ArgumentError(
                f"{entity[:-1]}_counts has shape {counts.shape}; wanted {label.shape}, how often "
                f"training saw the {entity[:-1]} of each event"
            )
        limits = {f"{entity}_at_most_{n}": np.flatnonzero(counts <= n) for n in COLD_LIMITS}
        for name, events in limits.items():
            found[name] = _slice_metrics(prediction, label, events, task)
        found[f"coldest_{entity}"] = _slice_metrics(
            prediction, label, coldest_tenth(counts), task, at_least=MIN_COLDEST_EVENTS
        )
    for name, events in (slices or {}).items():
        found[name] = _slice_metrics(prediction, label, events, task)
    return found


def rank_metrics(score: np.ndarray, is_wanted: np.ndarray) -> dict[str, float]:
    """How near the top of one user's ranking the wanted items stand, each metric in [0, 1].

    score : finite (I,)   of every item that may be shown, at least two; the highest is the top
    is_wanted : bool (I,)  at least one
    returns : by the names of RANKING_METRIC_NAMES. NDCG is over the whole ranking and over its
        first ten places. Items of equal scores have no order: NDCG is the mean over all their
        orders (McSherry and Najork 2008), and in average precision they all stand at the last of
        their places, so a model that tells no items apart gains nothing by chance

    >>> rank_metrics(np.array([3.0, 2.0, 2.0]), np.array([True, False, False]))["ndcg"]
    1.0
    >>> rank_metrics(np.array([1.0, 2.0]), np.array([True, False]))["average_precision"]
    0.5
    """
    wanted, score = is_wanted[None], score[None]  # (1, I): for one user, as for a sample of many
    values = (
        ndcg_score(wanted, score, ignore_ties=False),
        ndcg_score(wanted, score, k=10, ignore_ties=False),
        label_ranking_average_precision_score(wanted, score),
    )
    return {name: float(v) for name, v in zip(RANKING_METRIC_NAMES, values, strict=True)}


def check_labels(label: np.ndarray, *, task: Task) -> None:
    """Raise at once what `evaluate` would raise about these labels after a training run.

    raises : MetricError for no labels, NaN, labels other than 0 and 1 or of one class (binary)
    """
    _, label = _checked(np.zeros(len(label)), label, task)
    if task == "binary" and label.min() == label.max():
        raise MetricError(_one_class_message(_one_class_reason(label)))


def coldest_tenth(counts: np.ndarray) -> np.ndarray:
    """The events, n // 10 of them, with the fewest training events.

    counts : int (n,)   training events of each event's user (or item)
    returns : int (n // 10,)   by count, then by position: ties go to the earlier event

    >>> coldest_tenth(np.array([9, 1, 0, 1] + [9] * 16)).tolist()
    [2, 1]
    """
    return np.argsort(counts, kind="stable")[: len(counts) // 10]


def _metrics(prediction: np.ndarray, label: np.ndarray, task: Task) -> Metrics:
    if task == "rating":
        mse = float(mean_squared_error(label, prediction))
        mae = float(mean_absolute_error(label, prediction))
        return {"mse": mse, "rmse": mse**0.5, "mae": mae}
    # From logits: a probability that rounds to 0 or 1 would lose its log.
    log_loss = float(
        F.binary_cross_entropy_with_logits(torch.from_numpy(prediction), torch.from_numpy(label))
    )
    if label.min() == label.max():
        return {"log_loss": log_loss, "auc": None, "reason": _one_class_reason(label)}
    return {"log_loss": log_loss, "auc": float(roc_auc_score(label, prediction))}


def _slice_metrics(
    prediction: np.ndarray,
    label: np.ndarray,
    events: np.ndarray,
    task: Task,
    *,
    at_least: int = 1,
) -> Metrics:
    """The metrics on some events; None where they are too few."""
    num_events = len(events)
    if num_events < at_least:
        reason = f"too few events: {num_events}, wanted at least {at_least}"
        return {"num_events": num_events, **dict.fromkeys(METRIC_NAMES[task]), "reason": reason}
    return {"num_events": num_events, **_metrics(prediction[events], label[events], task)}


def _one_class_reason(label: np.ndarray) -> str:
    return f"every label is {label[0]:g}, and AUC needs both classes"


def _one_class_message(reason: str) -> str:
    return f"AUC is undefined: {reason}. Take more events, or check how the labels were made"


def _checked(
    prediction: np.ndarray, label: np.ndarray, task: Task
) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 (n,), n >= 1, finite; labels 0 and 1 for binary."""
    if task not in ("binary", "rating"):
        raise ArgumentError(f"task is {task!r}; wanted 'binary' or 'rating'")
    prediction = np.asarray(prediction, dtype=np.float64)
    label = np.asarray(label, dtype=np.float64)
    if prediction.ndim != 1 or prediction.shape != label.shape:
        raise MetricError(
            f"predictions have shape {prediction.shape} and labels {label.shape}; wanted (n,) for "
            "both"
        )
    if not len(label):
        raise MetricError("there are no events to evaluate; is the partition empty?")
    for name, values, remedy in (
        ("prediction", prediction, "lower the learning rate, or check the rows for NaN"),
        ("label", label, "check the data file"),
    ):
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise MetricError(
                f"{name} {bad[0]} is {values[bad[0]]} ({bad.size} of {len(values)} are not "
                f"finite); {remedy}"
            )
    if task == "binary":
        bad = np.flatnonzero((label != 0) & (label != 1))
        if bad.size:
            raise MetricError(
                f"label {bad[0]} is {label[bad[0]]:g}; the binary task wants 0 and 1. Turn ratings "
                "into labels first, or use the rating task"
            )
    return prediction, label
