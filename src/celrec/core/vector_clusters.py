"""Clusters of given vectors: how a dense table becomes a clustered one.

Top-down, by the rule of split.py on the loss 1/2 |row - vector|^2 of each entity, whose gradient
row - vector and curvature 1 are exact; then each vector goes to its nearest row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from celrec.core.split import GainSplit, num_splits_now
from celrec.core.statistics import EntityStatistics

_NUM_ROUNDS = 12  # growth and as many rounds of moves again; changes after that are below 1 %
_VECTORS_AT_A_TIME = 1 << 16  # distances take this many x K floats


def cluster_vectors(vectors: Tensor, max_clusters: int) -> tuple[Tensor, Tensor]:
    """Find at most `max_clusters` rows near N vectors.

    vectors : float (N, D)
    returns : rows (K, D), the mean of each cluster, and the cluster of each vector, int64 (N,)
    """
    rows, clusters = torch.unique(vectors, dim=0, return_inverse=True)
    if rows.shape[0] <= max_clusters:
        return rows, clusters
    vectors_32 = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    clusters = torch.zeros(vectors.shape[0], dtype=torch.long, device=vectors.device)
    means = vectors_32.mean(0, keepdim=True)
    split_rule = GainSplit(eta=0.0, damping=1e-6)  # rows become means below
    for round_number in range(2 * _NUM_ROUNDS):
        num_clusters = means.shape[0]
        if num_clusters < max_clusters:
            statistics = _statistics(vectors_32, means[clusters])
            num_splits = num_splits_now(
                num_clusters, max_clusters, max(1, _NUM_ROUNDS - round_number)
            )
            plan = split_rule.plan(statistics, clusters, means).largest(num_splits)
            for new, split in enumerate(plan.splits, start=num_clusters):
                clusters[split.moved] = new
            means, clusters = _means(vectors_32, clusters)
        clusters = _nearest(vectors_32, means)
        means, clusters = _means(vectors_32, clusters)
    return means.to(vectors.dtype), clusters


def _nearest(vectors: Tensor, means: Tensor) -> Tensor:
    """The nearest row of each vector, (N,)."""
    parts = vectors.split(_VECTORS_AT_A_TIME)
    return torch.cat([torch.cdist(part, means).argmin(1) for part in parts])


def _statistics(vectors: Tensor, rows: Tensor) -> EntityStatistics:
    ones = torch.ones(vectors.shape[0], dtype=torch.long, device=vectors.device)
    entities = torch.arange(vectors.shape[0], device=vectors.device)
    return EntityStatistics(entities, ones, rows - vectors, torch.ones_like(vectors))


def _means(vectors: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each cluster that has members, and the clusters renumbered without gaps."""
    present, clusters, sizes = clusters.unique(return_inverse=True, return_counts=True)
    sums = vectors.new_zeros(present.numel(), vectors.shape[1]).index_add_(0, clusters, vectors)
    return sums / sizes.unsqueeze(1), clusters
