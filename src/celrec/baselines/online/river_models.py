"""Recommenders of river, as its users have them: one event at a time, plain SGD.

River keeps Python dicts. Their numbers count as bytes, in double precision; what Python adds to
each, which is more, does not.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from celrec.baselines.online.contract import Events
from celrec.errors import MissingExtraError, check_count, check_number

_SURE = 1e-6  # a probability is cut to [_SURE, 1 - _SURE] before it becomes a logit

# A rate that is too high ends in predictions that are not finite, which whoever asks is told of.
_may_diverge = np.errstate(over="ignore", invalid="ignore")


class _RiverModel(ABC):
    """One event at a time, behind the methods of a batch."""

    @_may_diverge
    def predict(self, batch: Events) -> Tensor:
        """Logits, float64 (B,)."""
        pairs = zip(batch.users.tolist(), batch.items.tolist(), strict=True)
        return torch.tensor([self._predict_one(*pair) for pair in pairs], dtype=torch.float64)

    @_may_diverge
    def learn(self, batch: Events) -> None:
        """One step for each event, in order."""
        columns = (batch.users.tolist(), batch.items.tolist(), batch.labels.tolist())
        for user, item, label in zip(*columns, strict=True):
            self._learn_one(user, item, bool(label))

    @abstractmethod
    def _predict_one(self, user: int, item: int) -> float: ...

    @abstractmethod
    def _learn_one(self, user: int, item: int, label: bool) -> None: ...


class RiverBiasedMF(_RiverModel):
    """`river.reco.BiasedMF`: mean label + biases + dot product.

    The loss is river's `Log`, so that its output is a logit; the mean label it starts from is none,
    and the biases make up for that.

    lr : > 0        width : D        l2 : >= 0, of biases and factors
    seed : of the factors at the start, N(0, 0.1^2)
    raises : MissingExtraError where river is not installed
    """

    def __init__(self, *, lr: float, width: int = 32, l2: float = 0.0, seed: int = 0) -> None:
        self.width = check_count("width", width, at_least=1)
        reco, optim = _river("reco"), _river("optim")
        self.model = reco.BiasedMF(
            n_factors=width,
            bias_optimizer=optim.SGD(check_number("lr", lr, above=0)),
            latent_optimizer=optim.SGD(lr),
            loss=optim.losses.Log(),
            l2_bias=check_number("l2", l2, at_least=0),
            l2_latent=l2,
            latent_initializer=optim.initializers.Normal(sigma=0.1, seed=seed),
        )

    def table_bytes(self) -> int:
        """The factors."""
        return 8 * self.width * (len(self.model.u_latents) + len(self.model.i_latents))

    def state_bytes(self) -> int:
        """Factors, biases, and the mean label with its count."""
        num_biases = len(self.model.u_biases) + len(self.model.i_biases)
        return self.table_bytes() + 8 * num_biases + 2 * 8

    def _predict_one(self, user: int, item: int) -> float:
        return float(self.model.predict_one(user, item))

    def _learn_one(self, user: int, item: int, label: bool) -> None:
        self.model.learn_one(user, item, float(label))


class RiverFM(_RiverModel):
    """`river.facto.FMClassifier`: a factorization machine of user and item.

    lr : > 0, of weights, factors and intercept        width : D        l2 : >= 0, of both
    seed : of the factors at the start, N(0, 0.1^2)
    raises : MissingExtraError where river is not installed
    """

    def __init__(self, *, lr: float, width: int = 32, l2: float = 0.0, seed: int = 0) -> None:
        self.width = check_count("width", width, at_least=1)
        facto, optim = _river("facto"), _river("optim")
        self.model = facto.FMClassifier(
            n_factors=width,
            weight_optimizer=optim.SGD(check_number("lr", lr, above=0)),
            latent_optimizer=optim.SGD(lr),
            intercept_lr=lr,
            l2_weight=check_number("l2", l2, at_least=0),
            l2_latent=l2,
            latent_initializer=optim.initializers.Normal(sigma=0.1, seed=seed),
        )

    def table_bytes(self) -> int:
        """The factors."""
        return 8 * self.width * len(self.model.latents)

    def state_bytes(self) -> int:
        """Factors, weights and intercept."""
        return self.table_bytes() + 8 * len(self.model.weights) + 8

    def _predict_one(self, user: int, item: int) -> float:
        yes = self.model.predict_proba_one(_features(user, item))[True]
        return float(torch.tensor(yes, dtype=torch.float64).logit(_SURE))

    def _learn_one(self, user: int, item: int, label: bool) -> None:
        self.model.learn_one(_features(user, item), label)


def _features(user: int, item: int) -> dict[str, str]:
    """River takes strings for categories."""
    return {"user": str(user), "item": str(item)}


def _river(module: str) -> Any:
    try:
        return importlib.import_module(f"river.{module}")
    except ImportError as error:
        raise MissingExtraError(
            "river's models need river, which is not installed: pip install celrec[river]"
        ) from error
