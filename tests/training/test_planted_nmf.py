"""Nonnegative factorization finds planted clusters, how many there are, and their rows."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from celrec import ClusteredEmbedding
from celrec.data.synthetic import PlantedData, planted_nmf
from celrec.losses import SquaredError
from celrec.models.nmf import NMF
from celrec.training.trainer import Trainer, TrainingOptions

N, K, RANK = 200, 5, 3


@pytest.fixture(scope="module")
def planted() -> PlantedData:
    return planted_nmf(N, N, K, K, rank=RANK, observed=0.3, seed=1)


@pytest.fixture(scope="module")
def model(planted: PlantedData) -> NMF:
    model = NMF(
        ClusteredEmbedding(N, RANK, max_clusters="auto"),
        ClusteredEmbedding(N, RANK, max_clusters="auto"),
    )
    mean = float(planted.interactions.label.mean())
    model.reset_parameters(torch.Generator().manual_seed(3), mean=mean)
    options = TrainingOptions(
        epochs=12, batch_size=256, learning_rate=0.05, lr_drop=0.05, weight_decay=0
    )
    Trainer(model, SquaredError(), options).fit(planted.interactions)
    return model


def rows_by_planted_cluster(table: ClusteredEmbedding, planted_of: np.ndarray) -> np.ndarray:
    """The mean vector of the members of every planted cluster, (K, D)."""
    vectors = table.to_dense().detach().double().numpy()
    return np.stack([vectors[planted_of == k].mean(0) for k in range(K)])


def test_the_planted_count_is_found(model: NMF) -> None:
    assert model.user_embedding.num_clusters == K
    assert model.item_embedding.num_clusters == K


def test_the_planted_clusters_are_found(model: NMF, planted: PlantedData) -> None:
    users, items = model.user_embedding.cluster_ids(), model.item_embedding.cluster_ids()
    assert adjusted_rand_score(planted.user_cluster, users) >= 0.95
    assert adjusted_rand_score(planted.item_cluster, items) >= 0.95


def test_the_scores_of_all_pairs_of_clusters_are_found(model: NMF, planted: PlantedData) -> None:
    users = rows_by_planted_cluster(model.user_embedding, planted.user_cluster)
    items = rows_by_planted_cluster(model.item_embedding, planted.item_cluster)
    blocks = planted.user_rows @ planted.item_rows.T
    assert np.linalg.norm(users @ items.T - blocks) < 0.05 * np.linalg.norm(blocks)


def test_the_planted_factors_are_found_up_to_order_and_scale(
    model: NMF, planted: PlantedData
) -> None:
    users = rows_by_planted_cluster(model.user_embedding, planted.user_cluster)
    items = rows_by_planted_cluster(model.item_embedding, planted.item_cluster)

    def error(order: tuple[int, ...]) -> float:
        """Of users' rows at the best scale of each factor, and items' rows at its inverse."""
        mine = users[:, order]
        scale = (mine * planted.user_rows).sum(0) / np.square(mine).sum(0)
        differences = mine * scale - planted.user_rows, items[:, order] / scale - planted.item_rows
        return float(np.linalg.norm(differences) / np.linalg.norm(planted.user_rows))

    assert min(error(order) for order in permutations(range(RANK))) < 0.08
