"""A model with side features, in a PyTorch loop of your own.

Each sample is a dictionary: a user, an item, the item's genres (a padded bag), and whether the user
liked it. The model multiplies one pair of vectors and feeds another pair, with the genres, to a
network, in the manner of NeuMF. All five tables are clustered. Nothing in the model knows.

    python examples/your_own_loop.py
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from celrec import (
    ClusteredEmbedding,
    ClusteredEmbeddingBag,
    ClusterOptimizer,
    ClusterSchedule,
    memory_report,
)
from celrec.data.synthetic import planted_clusters

NUM_USERS, NUM_ITEMS, NUM_GENRES = 600, 300, 12
NO_GENRE = 0  # pads the bags of items with fewer genres
EPOCHS = 8

Batch = dict[str, Tensor]


class Likes(Dataset[Batch]):
    """Who liked what. Whole batches are taken at once, which is much faster than samples."""

    def __init__(self, columns: Batch) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["liked"])

    def __getitems__(self, rows: list[int]) -> Batch:
        return {name: column[rows] for name, column in self.columns.items()}


def make_data() -> tuple[Likes, Likes, Tensor]:
    """Training and test data with planted clusters, and the true logits of the test data.

    An item's genres go with its cluster.
    """
    planted = planted_clusters(
        NUM_USERS, NUM_ITEMS, 3, 3, num_interactions=20_000, task="binary", signal=4.0, seed=0
    )
    rng = np.random.default_rng(0)
    genres = 1 + 3 * planted.item_cluster[:, None] + rng.integers(0, 4, size=(NUM_ITEMS, 3))
    genres[rng.random(genres.shape) < 0.2] = NO_GENRE
    data = planted.interactions
    columns = {
        "user": torch.tensor(data.user),
        "item": torch.tensor(data.item),
        "genres": torch.tensor(genres[data.item]),  # (n, 3)
        "liked": torch.tensor(data.label),
    }
    first = {name: column[:16_000] for name, column in columns.items()}
    rest = {name: column[16_000:] for name, column in columns.items()}
    return Likes(first), Likes(rest), torch.tensor(planted.score[16_000:])


class Network(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.user_factors = ClusteredEmbedding(NUM_USERS, width, max_clusters=8)
        self.item_factors = ClusteredEmbedding(NUM_ITEMS, width, max_clusters=8)
        self.user_features = ClusteredEmbedding(NUM_USERS, width, max_clusters=8)
        self.item_features = ClusteredEmbedding(NUM_ITEMS, width, max_clusters=8)
        self.genres = ClusteredEmbeddingBag(
            NUM_GENRES + 1, width, max_clusters=4, mode="mean", padding_idx=NO_GENRE
        )
        self.hidden = nn.Sequential(nn.Linear(3 * width, 16), nn.ReLU(), nn.Dropout(0.1))
        self.output = nn.Linear(width + 16, 1)
        for table in (self.user_factors, self.item_factors, self.user_features, self.item_features):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, batch: Batch) -> Tensor:
        user, item = batch["user"], batch["item"]
        product = self.user_factors(user) * self.item_factors(item)
        features = [
            self.user_features(user),
            self.item_features(item),
            self.genres(batch["genres"]),
        ]
        both = torch.cat([product, self.hidden(torch.cat(features, 1))], 1)
        return self.output(both).squeeze(1)


def main() -> None:
    torch.manual_seed(0)
    train, test, true_logits = make_data()
    # The steps shuffle; the rounds read the same data in order, in larger batches.
    steps = DataLoader(train, batch_size=256, shuffle=True, collate_fn=lambda batch: batch)
    in_order = DataLoader(train, batch_size=4096, collate_fn=lambda batch: batch)

    model = Network()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(steps))

    def per_sample_loss(batch: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(batch), batch["liked"], reduction="none")

    schedule = ClusterSchedule(growth_rounds=4, settle_epochs=2)
    clusters = ClusterOptimizer(model, optimizer, per_sample_loss, schedule)

    for epoch in range(EPOCHS):
        model.train()
        for batch in steps:
            optimizer.zero_grad()
            per_sample_loss(batch).mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            decay.step()
        events = clusters.round(in_order) if clusters.schedule.is_due(epoch, EPOCHS) else []
        model.eval()
        with torch.no_grad():
            loss = float(per_sample_loss(test.columns).mean())
        done = Counter(event.kind for event in events)
        live = {name: table.num_clusters for name, table in clusters.tables.items()}
        print(f"epoch {epoch + 1}: test loss {loss:.3f}; {dict(done)}; clusters {live}")

    print(memory_report(model, optimizer))
    liked = test.columns["liked"]
    guess = train.columns["liked"].mean().logit().expand_as(liked)
    guessing = float(F.binary_cross_entropy_with_logits(guess, liked))
    perfect = float(F.binary_cross_entropy_with_logits(true_logits, liked.double()))
    print(f"guessing {guessing:.3f}, perfect {perfect:.3f}, this model {loss:.3f}")
    print(f"two thirds of the way or more: {loss < guessing - (guessing - perfect) * 2 / 3}")


if __name__ == "__main__":
    main()
