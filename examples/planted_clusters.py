"""Clusters that are there are found, as many as there are: planted data, nonnegative rows.

The ratings of 200 users for 200 items come from 5 kinds of users and 5 kinds of items. Each kind
has a row of 3 nonnegative factors; a rating is the product of two rows, and noise. The tables are
told neither the kinds nor how many there are.

    python examples/planted_clusters.py
"""

from __future__ import annotations

import torch
from sklearn.metrics import adjusted_rand_score

from celrec import ClusteredEmbedding
from celrec.data.synthetic import planted_nmf
from celrec.losses import SquaredError
from celrec.models.nmf import NMF
from celrec.training.trainer import Trainer, TrainingOptions


def main() -> None:
    planted = planted_nmf(200, 200, 5, 5, rank=3, observed=0.3, seed=0)
    ratings = planted.interactions
    print(ratings)

    users = ClusteredEmbedding(200, 3, max_clusters="auto")
    items = ClusteredEmbedding(200, 3, max_clusters="auto")
    model = NMF(users, items)
    model.reset_parameters(torch.Generator().manual_seed(0), mean=float(ratings.label.mean()))
    options = TrainingOptions(
        epochs=14, batch_size=256, learning_rate=0.05, lr_drop=0.05, weight_decay=0
    )
    Trainer(model, SquaredError(), options).fit(ratings)

    user_agreement = adjusted_rand_score(planted.user_cluster, users.cluster_ids())
    item_agreement = adjusted_rand_score(planted.item_cluster, items.cluster_ids())
    print("planted: 5 kinds of users, 5 kinds of items")
    print(f"found:   {users.num_clusters} kinds of users, {items.num_clusters} kinds of items")
    print(f"adjusted Rand index, 1 is the truth: {user_agreement:.3f}, {item_agreement:.3f}")

    is_counted = users.num_clusters == items.num_clusters == 5
    print(f"\nthe counts are right: {is_counted}")
    print(f"and so are the kinds: {min(user_agreement, item_agreement) > 0.95}")


if __name__ == "__main__":
    main()
