"""Slow, obvious versions of what the package does fast. Loops on purpose."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def tied_dense(weight: Tensor, cluster_ids: list[int]) -> Tensor:
    """The dense table (N, D) whose rows are tied by cluster; differentiable in weight."""
    zero = torch.zeros_like(weight[0])
    return torch.stack([zero if k < 0 else weight[k] for k in cluster_ids])


def entity_statistics(
    gradients: list[list[tuple[int, Tensor]]], num_entities: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(g, h, n) from, for each sample, its look-ups (entity, gradient of the sample's loss)."""
    g = torch.zeros(num_entities, width)
    h = torch.zeros(num_entities, width)
    n = torch.zeros(num_entities, dtype=torch.long)
    for sample in gradients:
        of_entity: dict[int, Tensor] = {}
        for entity, gradient in sample:
            of_entity[entity] = of_entity.get(entity, torch.zeros(width)) + gradient
        for entity, gradient in of_entity.items():
            g[entity] += gradient
            h[entity] += gradient**2
            n[entity] += 1
    return g, h, n


def best_cut_gain(g: Tensor, h: Tensor, order: list[int], damping: float) -> tuple[float, int]:
    """The largest second-order gain over the cuts of an order, and how many go left."""

    def score(members: list[int]) -> float:
        total_g = g[members].sum(0)
        total_h = h[members].sum(0)
        return float((total_g**2 / (total_h + damping)).sum())

    whole = score(order)
    gains = [
        0.5 * (score(order[:cut]) + score(order[cut:]) - whole) for cut in range(1, len(order))
    ]
    best = max(range(len(gains)), key=lambda i: gains[i])
    return gains[best], best + 1


def log_prior(sizes: list[int]) -> list[float]:
    """log (n_k + 1) / (N + K)."""
    return [math.log((n + 1) / (sum(sizes) + len(sizes))) for n in sizes]


def objective(
    losses: Tensor, entity_of: list[int], cluster_of: list[int], sizes: list[int], weight: float
) -> float:
    """The sum of losses minus weight x log prior of every entity with data.

    losses : (n, K)   loss of each sample were its entity in cluster k
    """
    prior = log_prior(sizes)
    total = sum(float(losses[j, cluster_of[e]]) for j, e in enumerate(entity_of))
    return total - weight * sum(prior[cluster_of[e]] for e in set(entity_of))
