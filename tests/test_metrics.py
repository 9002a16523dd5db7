"""Metrics agree with slow definitions, and say when they are undefined."""

import importlib
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from celrec.errors import ArgumentError, MetricError, MissingExtraError
from celrec.metrics import check_labels, coldest_tenth, evaluate


def slow_auc(prediction, label):
    """The share of (positive, negative) pairs in the right order; ties count half."""
    positive, negative = prediction[label == 1], prediction[label == 0]
    wins = (positive[:, None] > negative).sum() + 0.5 * (positive[:, None] == negative).sum()
    return wins / (len(positive) * len(negative))


@st.composite
def binary_events(draw):
    size = draw(st.integers(2, 60))
    # Multiples of 1/2: many ties.
    prediction = draw(st.lists(st.integers(-8, 8), min_size=size, max_size=size))
    label = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    assume(0 < sum(label) < size)
    return np.array(prediction) / 2, np.array(label, dtype=np.float32)


@given(binary_events())
def test_binary_metrics_agree_with_their_definitions(events):
    prediction, label = events
    found = evaluate(prediction, label, task="binary")
    probability = 1 / (1 + np.exp(-prediction))
    log_loss = -np.mean(label * np.log(probability) + (1 - label) * np.log(1 - probability))
    assert found == {
        "num_events": len(label),
        "auc": pytest.approx(slow_auc(prediction, label)),
        "log_loss": pytest.approx(log_loss),
    }


@given(binary_events(), st.integers(0, 5))
def test_order_of_events_changes_nothing(events, seed):
    prediction, label = events
    order = np.random.default_rng(seed).permutation(len(label))
    first = evaluate(prediction, label, task="binary")
    assert evaluate(prediction[order], label[order], task="binary") == pytest.approx(first)


def test_rating_metrics_agree_with_their_definitions():
    prediction, label = np.array([1.0, 3, 4.5]), np.array([2.0, 3, 2.5])
    found = evaluate(prediction, label, task="rating")
    assert found == pytest.approx(
        {"num_events": 3, "mse": 5 / 3, "rmse": (5 / 3) ** 0.5, "mae": 1.0}
    )


def test_extreme_logits_keep_their_log_loss():
    found = evaluate(np.array([800.0, -800.0]), np.array([0.0, 1.0]), task="binary")
    assert found["log_loss"] == 800.0
    assert found["auc"] == 0.0


@pytest.mark.parametrize("task", ["binary", "rating"])
def test_slices_are_evaluations_of_their_events(task):
    generator = np.random.default_rng(0)
    n = 3000
    prediction, label = generator.normal(size=n), generator.integers(0, 2, n).astype(float)
    counts = {"user": generator.integers(0, 40, n), "item": generator.integers(0, 400, n)}
    found = evaluate(
        prediction, label, task=task, user_counts=counts["user"], item_counts=counts["item"]
    )
    for entity in ("user", "item"):
        slices = {
            f"{entity}s_at_most_{limit}": np.flatnonzero(counts[entity] <= limit)
            for limit in (5, 20)
        }
        slices[f"coldest_{entity}s"] = np.array(
            sorted(range(n), key=lambda event, c=counts[entity]: (c[event], event))[: n // 10]
        )
        for name, events in slices.items():
            expected = evaluate(prediction[events], label[events], task=task)
            assert found[name] == pytest.approx(expected), name


@given(st.lists(st.integers(0, 3), max_size=80))
def test_coldest_tenth_is_exact_and_ties_go_to_the_earlier_event(counts):
    found = coldest_tenth(np.array(counts, dtype=int)).tolist()
    expected = sorted(range(len(counts)), key=lambda event: (counts[event], event))
    assert found == expected[: len(counts) // 10]


def test_slices_say_why_they_have_no_figure():
    prediction, label = np.linspace(-1, 1, 50), np.arange(50) % 2
    counts = np.where(np.arange(50) == 10, 3, 30)
    found = evaluate(prediction, label, task="binary", user_counts=counts, item_counts=counts * 9)
    one_class = found["users_at_most_5"]
    assert (one_class["num_events"], one_class["auc"]) == (1, None)
    assert one_class["log_loss"] > 0
    assert "every label is 0" in one_class["reason"]
    assert found["items_at_most_5"] == {
        "num_events": 0,
        "log_loss": None,
        "auc": None,
        "reason": "too few events: 0, wanted at least 1",
    }
    assert "too few events: 5, wanted at least 100" in found["coldest_users"]["reason"]


@pytest.mark.parametrize("only", [0, 1])
def test_one_class_is_an_error_and_not_one_half(only):
    label = np.full(4, only)
    with pytest.raises(MetricError, match=f"AUC is undefined: every label is {only}"):
        evaluate(np.arange(4.0), label, task="binary")
    with pytest.raises(MetricError, match=f"AUC is undefined: every label is {only}"):
        check_labels(label, task="binary")
    assert evaluate(np.arange(4.0), label, task="rating")["num_events"] == 4
    check_labels(label, task="rating")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_prediction_that_is_not_finite_is_named(value):
    with pytest.raises(MetricError, match=rf"prediction 2 is {value} \(1 of 4 are not finite\)"):
        evaluate(np.array([0, 1, value, 2]), np.array([0, 1, 0, 1]), task="binary")


@pytest.mark.parametrize(
    ("prediction", "label", "task", "message"),
    [
        ([], [], "binary", "no events"),
        ([1.0, 2.0], [1.0], "rating", r"shape \(2,\) and labels \(1,\)"),
        ([1.0, 2.0], [1.0, np.nan], "rating", "label 1 is nan"),
        ([1.0, 2.0, 0.0], [1.0, 0.0, 4.0], "binary", "label 2 is 4; the binary task wants 0 and 1"),
    ],
)
def test_bad_events_are_named(prediction, label, task, message):
    with pytest.raises(MetricError, match=message):
        evaluate(np.array(prediction), np.array(label), task=task)


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "celrec.metrics")
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(MissingExtraError, match=r"pip install celrec\[train\]"):
        importlib.import_module("celrec.metrics")


def test_unknown_task_and_misplaced_counts_are_named():
    label = np.array([0, 1])
    with pytest.raises(ArgumentError, match="task is 'ranking'"):
        evaluate(np.zeros(2), label, task="ranking")
    with pytest.raises(ArgumentError, match=r"item_counts has shape \(3,\); wanted \(2,\)"):
        evaluate(np.zeros(2), label, task="binary", item_counts=np.zeros(3))
