"""Objectives: the loss that training minimises, and the same loss in nats for cluster rounds.

A round compares losses with log priors and description lengths, so its losses must be negative
log-likelihoods in nats. For 0/1 labels the training loss is one already; for ratings the squared
error is divided by twice the noise variance, which training measures before every round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch.nn.functional as F
from torch import Tensor

from celrec.errors import CheckpointError

Task = Literal["binary", "rating"]

_SMALLEST_VARIANCE = 1e-6  # a perfect fit would make every other cluster infinitely bad


class Objective(Protocol):
    """What a model is trained for.

    task : "binary" for labels 0 and 1, "rating" for any number
    needs_calibration : whether `calibrate` does anything; it costs a pass over the training data
    """

    task: Task
    needs_calibration: bool

    def training_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        """The mean loss to minimise: (B,), (B,) -> scalar."""
        ...

    def nats(self, prediction: Tensor, label: Tensor) -> Tensor:
        """The negative log-likelihood of every sample: (B,), (B,) -> (B,)."""
        ...

    def calibrate(self, prediction: Tensor, label: Tensor) -> None:
        """Fit what `nats` needs to the predictions for all training data, (n,) and (n,)."""
        ...

    def recalibrate(self, mean_nats: float) -> None:
        """The same, from the mean of `nats` over all training data."""
        ...

    def best_constant(self, label: Tensor) -> float:
        """The one prediction that fits all labels (n,) best."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class BinaryCrossEntropy:
    """Labels 0 and 1; predictions are logits.

    >>> import torch
    >>> BinaryCrossEntropy().nats(torch.zeros(2), torch.tensor([0.0, 1.0]))
    tensor([0.6931, 0.6931])
    """

    task: Task = "binary"
    needs_calibration = False

    def training_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(prediction, label)

    def nats(self, prediction: Tensor, label: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(prediction, label, reduction="none")

    def calibrate(self, prediction: Tensor, label: Tensor) -> None:
        """Nothing: the loss is in nats as it is."""

    def recalibrate(self, mean_nats: float) -> None:
        """Nothing: the loss is in nats as it is."""

    def best_constant(self, label: Tensor) -> float:
        """The log odds of label 1; one label of each kind is added, so that it is finite."""
        ones = float(label.double().sum()) + 1
        return math.log(ones / (label.numel() + 2 - ones))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take over."""


class SquaredError:
    """Labels are numbers; the noise around a prediction is taken to be normal.

    noise_variance : s^2 > 0, in squared units of the label; nats are (z - y)^2 / (2 s^2)

    >>> import torch
    >>> objective = SquaredError()
    >>> objective.calibrate(torch.tensor([3.0, 5.0]), torch.tensor([4.0, 4.0]))
    >>> objective.noise_variance
    1.0
    >>> objective.nats(torch.tensor([3.0]), torch.tensor([5.0]))
    tensor([2.])
    """

    task: Task = "rating"
    needs_calibration = True

    def __init__(self) -> None:
        self.noise_variance = 1.0

    def training_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return F.mse_loss(prediction, label)

    def nats(self, prediction: Tensor, label: Tensor) -> Tensor:
        return (prediction - label).square() / (2 * self.noise_variance)

    def calibrate(self, prediction: Tensor, label: Tensor) -> None:
        """Set the noise variance to the mean squared error of these predictions."""
        mse = float((prediction.double() - label.double()).square().mean())
        self.noise_variance = max(mse, _SMALLEST_VARIANCE)

    def recalibrate(self, mean_nats: float) -> None:
        """Set the noise variance to the mean squared error that these nats stand for."""
        self.noise_variance = max(2 * mean_nats * self.noise_variance, _SMALLEST_VARIANCE)

    def best_constant(self, label: Tensor) -> float:
        """The mean label."""
        return float(label.double().mean())

    def state_dict(self) -> dict[str, Any]:
        return {"noise_variance": self.noise_variance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        variance = state.get("noise_variance")
        if not isinstance(variance, float) or not 0 < variance < math.inf:
            raise CheckpointError(f"noise_variance is {variance!r}; wanted a number above 0")
        self.noise_variance = variance
