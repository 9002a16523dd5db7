"""Shrink a model that is trained already: cluster its table, then train on for a little while.

`from_dense` groups the vectors of a trained `nn.Embedding`. That loses a little, for it sees the
vectors and not the data. A few epochs with rounds make up for it, and here for more: the full table
had learned its rarely seen users from too little.

    python examples/shrink_a_trained_model.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from celrec import ClusteredEmbedding, ClusterOptimizer, memory_report
from celrec.data.synthetic import planted_clusters

Batch = tuple[Tensor, Tensor, Tensor]  # user ids, item ids, labels: each (B,)


class DotProduct(nn.Module):
    def __init__(self, users: nn.Module, items: nn.Module) -> None:
        super().__init__()
        self.users = users
        self.items = items

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.users(user) * self.items(item)).sum(-1)

    def per_sample_loss(self, batch: Batch) -> Tensor:
        user, item, label = batch
        return F.binary_cross_entropy_with_logits(self(user, item), label, reduction="none")

    def mean_loss(self, batch: Batch) -> float:
        with torch.no_grad():
            return float(self.per_sample_loss(batch).mean())


def train(model: DotProduct, batches: list[Batch], epochs: int, *, with_rounds: bool) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.3)
    clusters = ClusterOptimizer(model, optimizer, model.per_sample_loss) if with_rounds else None
    for epoch in range(epochs):
        for batch in batches:
            optimizer.zero_grad()
            model.per_sample_loss(batch).mean().backward()
            optimizer.step()
        if clusters is not None and epoch < epochs - 1:
            clusters.round(batches)


def main() -> None:
    torch.manual_seed(0)
    data = planted_clusters(
        1000,
        500,
        4,
        4,
        num_interactions=30_000,
        task="binary",
        signal=4.0,
        popularity_skew=0.5,
        seed=0,
    ).interactions
    user, item, label = (torch.tensor(column) for column in (data.user, data.item, data.label))
    batches = list(zip(user.split(500), item.split(500), label.split(500), strict=True))
    batches, test = batches[:48], (user[24_000:], item[24_000:], label[24_000:])

    model = DotProduct(nn.Embedding(1000, 8), nn.Embedding(500, 8))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    train(model, batches, epochs=12, with_rounds=False)
    loss_full, bytes_full = model.mean_loss(test), memory_report(model).total_bytes
    print(f"trained full tables:    test loss {loss_full:.3f}, {bytes_full:,} bytes")

    model.users = ClusteredEmbedding.from_dense(model.users.weight.detach(), max_clusters=8)
    model.items = ClusteredEmbedding.from_dense(model.items.weight.detach(), max_clusters=8)
    loss_shrunk, bytes_shrunk = model.mean_loss(test), memory_report(model).total_bytes
    print(f"shrunk by vectors:      test loss {loss_shrunk:.3f}, {bytes_shrunk:,} bytes")

    train(model, batches, epochs=6, with_rounds=True)  # a new optimizer: the parameters are new
    loss_tuned, bytes_tuned = model.mean_loss(test), memory_report(model).total_bytes
    print(f"and trained on, rounds: test loss {loss_tuned:.3f}, {bytes_tuned:,} bytes")

    print(f"less than a tenth of the bytes: {bytes_tuned < bytes_full / 10}")
    print(f"no more loss than the full tables: {loss_tuned <= loss_full}")


if __name__ == "__main__":
    main()
