"""Predictions of a model for interactions, and how good they are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from celrec.core.recording import evaluation_mode
from celrec.data.interactions import Interactions
from celrec.losses import Task
from celrec.metrics import Metrics, evaluate

_BATCH_SIZE = 65_536


def predict(
    model: nn.Module, interactions: Interactions, *, batch_size: int = _BATCH_SIZE
) -> Tensor:
    """Predict every interaction, in evaluation mode, without gradients.

    model : (user ids (B,), item ids (B,)) -> (B,)
    returns : float (n,) on the CPU
    """
    device = next(model.parameters()).device
    user = torch.tensor(interactions.user, device=device)
    item = torch.tensor(interactions.item, device=device)
    return predict_ids(model, user, item, batch_size=batch_size).cpu()


@torch.no_grad()
def predict_ids(
    model: nn.Module, user: Tensor, item: Tensor, *, batch_size: int = _BATCH_SIZE
) -> Tensor:
    """Predict for pairs of ids, (n,) and (n,), on the model's device; returns (n,) there."""
    pairs = zip(user.split(batch_size), item.split(batch_size), strict=True)
    with evaluation_mode(model):
        return torch.cat([model(some_users, some_items) for some_users, some_items in pairs])


def evaluate_model(
    model: nn.Module,
    interactions: Interactions,
    *,
    task: Task,
    train: Interactions | None = None,
    batch_size: int = _BATCH_SIZE,
) -> Metrics:
    """Hold a model's predictions against the labels of interactions.

    train : what the model was trained on, over the same vocabularies; if given, the metrics are
        also taken on cold users and items
    returns : as from `metrics.evaluate`
    raises : MetricError
    """
    prediction = predict(model, interactions, batch_size=batch_size)
    user_counts, item_counts = (None, None) if train is None else counts_in(train, interactions)
    return evaluate(
        prediction.double().numpy(),
        interactions.label,
        task=task,
        user_counts=user_counts,
        item_counts=item_counts,
    )


def counts_in(train: Interactions, interactions: Interactions) -> tuple[np.ndarray, np.ndarray]:
    """How often training saw the user, and the item, of each interaction: int64 (n,) twice."""
    return (
        train.user_counts()[interactions.user],
        train.item_counts()[interactions.item],
    )
