"""Small runs for the tests of training."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from celrec.core.cluster_optimizer import ClusterSchedule
from celrec.core.embedding import ClusteredEmbedding
from celrec.data.interactions import Interactions
from celrec.data.synthetic import planted_clusters
from celrec.losses import BinaryCrossEntropy, Objective, SquaredError, Task
from celrec.models.biased_mf import BiasedMF
from celrec.models.gmf import GMF
from celrec.training.trainer import Trainer, TrainingOptions

NUM_USERS, NUM_ITEMS = 60, 40
EPOCHS = 5


def planted(task: Task = "binary", num_interactions: int = 4000) -> list[Interactions]:
    """Training, validation and test interactions with 4 x 3 planted clusters."""
    data = planted_clusters(
        NUM_USERS, NUM_ITEMS, 4, 3, num_interactions=num_interactions, seed=0, signal=4, task=task
    ).interactions
    ends = [0, num_interactions * 6 // 10, num_interactions * 8 // 10, num_interactions]
    return [data.take(list(range(a, b))) for a, b in pairwise(ends)]


class NoisyGMF(GMF):
    """Draws from torch's global generator while it trains."""

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return torch.dropout(super().forward(user, item), 0.1, self.training)


def make_trainer(
    task: Task = "binary",
    *,
    run_dir: Path | None = None,
    seed: int = 0,
    max_clusters: int | None = 6,
    model_class: Any = None,
    progress: Any = None,
    **options: Any,
) -> Trainer:
    """A trainer of a clustered GMF (binary) or biased MF (rating); full tables without clusters."""
    model_class = model_class or (GMF if task == "binary" else BiasedMF)
    torch.manual_seed(seed)
    layers: dict[str, nn.Module] = {}
    for name, width in model_class.layer_widths(4).items():
        num_entities = NUM_USERS if "user" in name else NUM_ITEMS
        if max_clusters is None:
            layers[name] = nn.Embedding(num_entities, width)
        else:
            layers[name] = ClusteredEmbedding(num_entities, width, max_clusters=max_clusters)
    model = model_class(**layers)
    model.reset_parameters()
    objective: Objective = BinaryCrossEntropy() if task == "binary" else SquaredError()
    defaults = {"epochs": EPOCHS, "batch_size": 256, "learning_rate": 0.02, "round_batch_size": 900}
    return Trainer(
        model,
        objective,
        TrainingOptions(**(defaults | options)),
        clusters=None if max_clusters is None else ClusterSchedule(growth_rounds=3),
        seed=seed,
        run_dir=run_dir,
        progress=progress,
    )


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of the model's parameters and buffers."""
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same_state(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal bit for bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
