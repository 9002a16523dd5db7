"""Swap one line per table, add one object to the loop: a full table against a clustered one.

The data are synthetic: 1,000 users of 4 kinds like or dislike 500 items of 4 kinds, and nobody says
who is of which kind. A full table must learn every user and every item from a few events. A
clustered table finds out who belongs together and learns one vector for each group.

    python examples/first_model.py
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from celrec import ClusteredEmbedding, ClusterOptimizer, ClusterSchedule, memory_report
from celrec.data.partition import random_partition
from celrec.data.synthetic import planted_clusters

WIDTH = 8
EPOCHS = 12

Batch = tuple[Tensor, Tensor, Tensor]  # user ids, item ids, labels: each (B,)


class DotProduct(nn.Module):
    """A plain PyTorch model. It is given its tables and does not know of what kind they are."""

    def __init__(self, users: nn.Module, items: nn.Module) -> None:
        super().__init__()
        self.user_embedding = users
        self.item_embedding = items

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.user_embedding(user) * self.item_embedding(item)).sum(-1)


def train(model: nn.Module, batches: list[Batch], *, is_clustered: bool) -> None:
    """A plain PyTorch loop, and two statements more for clustered tables."""

    def per_sample_loss(batch: Batch) -> Tensor:
        user, item, label = batch
        return F.binary_cross_entropy_with_logits(model(user, item), label, reduction="none")

    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    # This weight decay is the best of 0.01, 0.3, 1 and 3 for the full table.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.3)
    if is_clustered:
        clusters = ClusterOptimizer(
            model, optimizer, per_sample_loss, ClusterSchedule(growth_rounds=6)
        )
    for epoch in range(EPOCHS):
        for batch in batches:
            optimizer.zero_grad()
            per_sample_loss(batch).mean().backward()
            optimizer.step()
        if is_clustered and clusters.schedule.is_due(epoch, EPOCHS):
            clusters.round(batches)  # clusters split, and users and items move between them


def log_loss(model: nn.Module, batch: Batch) -> float:
    user, item, label = batch
    with torch.no_grad():
        return float(F.binary_cross_entropy_with_logits(model(user, item), label))


def main() -> None:
    torch.manual_seed(0)
    data = planted_clusters(
        1000, 500, 4, 4, num_interactions=30_000, task="binary", signal=4.0, seed=0
    )
    parts = random_partition(data.interactions, seed=0)

    def tensors(rows: np.ndarray) -> Batch:
        chosen = data.interactions.take(rows)
        return torch.tensor(chosen.user), torch.tensor(chosen.item), torch.tensor(chosen.label)

    test = tensors(parts.test)
    columns = tensors(parts.train)
    batches = list(zip(*(column.split(500) for column in columns), strict=True))

    perfect = F.binary_cross_entropy_with_logits(
        torch.tensor(data.score[parts.test]), test[2].double()
    )
    print(f"log loss on test data of who knows the truth: {perfect:.3f}")

    full = DotProduct(nn.Embedding(1000, WIDTH), nn.Embedding(500, WIDTH))
    clustered = DotProduct(
        ClusteredEmbedding(1000, WIDTH, max_clusters=8),  # the one line per table
        ClusteredEmbedding(500, WIDTH, max_clusters=8),
    )
    for name, model in (("full", full), ("clustered", clustered)):
        train(model, batches, is_clustered=name == "clustered")
        print(f"\n{name} tables: log loss on test data {log_loss(model, test):.3f}")
        print(memory_report(model))

    is_better = log_loss(clustered, test) < log_loss(full, test)
    is_smaller = memory_report(clustered).total_bytes < memory_report(full).total_bytes / 10
    print(f"\nclustered tables have the smaller error: {is_better}")
    print(f"and take less than a tenth of the bytes: {is_smaller}")


if __name__ == "__main__":
    main()
