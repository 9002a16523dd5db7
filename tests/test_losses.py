"""Objectives are negative log-likelihoods in nats, up to a constant."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Normal

from celrec.errors import CheckpointError
from celrec.losses import BinaryCrossEntropy, SquaredError

numbers = st.floats(-20, 20)


@given(st.lists(st.tuples(numbers, st.sampled_from([0.0, 1.0])), min_size=1, max_size=20))
def test_binary_nats_are_bernoulli_log_likelihoods(pairs):
    prediction, label = (
        torch.tensor(part, dtype=torch.float64) for part in zip(*pairs, strict=True)
    )
    objective = BinaryCrossEntropy()
    expected = -Bernoulli(logits=prediction).log_prob(label)
    torch.testing.assert_close(objective.nats(prediction, label), expected)
    torch.testing.assert_close(objective.training_loss(prediction, label), expected.mean())


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20), st.floats(0.1, 10))
def test_rating_nats_are_normal_log_likelihoods_up_to_a_constant(pairs, variance):
    prediction, label = (
        torch.tensor(part, dtype=torch.float64) for part in zip(*pairs, strict=True)
    )
    objective = SquaredError()
    objective.noise_variance = variance
    constant = 0.5 * math.log(2 * math.pi * variance)
    expected = -Normal(prediction, variance**0.5).log_prob(label) - constant
    torch.testing.assert_close(objective.nats(prediction, label), expected)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20))
def test_calibrated_nats_average_to_one_half(pairs):
    """With s^2 the mean squared error, (z - y)^2 / (2 s^2) has mean 1/2."""
    prediction, label = (
        torch.tensor(part, dtype=torch.float64) for part in zip(*pairs, strict=True)
    )
    objective = SquaredError()
    objective.calibrate(prediction, label)
    mse = float((prediction - label).square().mean())
    assert objective.noise_variance == pytest.approx(max(mse, 1e-6))
    if mse > 1e-5:
        assert float(objective.nats(prediction, label).mean()) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("objective", "label"),
    [(BinaryCrossEntropy(), [0.0, 1, 1, 1] * 50), (SquaredError(), [1.0, 2, 5, 5])],
)
def test_best_constant_is_where_the_loss_is_flat(objective, label):
    label = torch.tensor(label, dtype=torch.float64)
    best = objective.best_constant(label)
    constant = torch.tensor(best, dtype=torch.float64, requires_grad=True)
    objective.training_loss(constant.expand(len(label)), label).backward()
    assert abs(float(constant.grad)) < 0.005  # one label of each kind is added to binary ones


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_best_constant_of_one_class_is_finite(label):
    assert math.isfinite(BinaryCrossEntropy().best_constant(torch.full((9,), label)))


def test_state_round_trips():
    first, second = SquaredError(), SquaredError()
    first.calibrate(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 5.0]))
    second.load_state_dict(first.state_dict())
    assert second.noise_variance == first.noise_variance == 5.0
    BinaryCrossEntropy().load_state_dict(BinaryCrossEntropy().state_dict())


@pytest.mark.parametrize("state", [{}, {"noise_variance": 0.0}, {"noise_variance": "1"}])
def test_damaged_state_is_refused(state):
    with pytest.raises(CheckpointError, match="noise_variance is"):
        SquaredError().load_state_dict(state)
