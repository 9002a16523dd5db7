"""Additive codes: an entity's vector as the sum of one row from each of a few small tables.

The first row is that of its cluster. Every further table, a *level*, has 16 rows (or 8) and codes
what the sum so far leaves of the entity's vector: residual vector quantization. Four bits an entity
buy one level, and each halves what is left, so three or four bytes come close to a vector of one's
own (docs/design/additive-codes.md).

What is coded are the posterior means of personal vectors (personal.py), for they alone say what an
entity with much data would have and one with little should. Distance is measured by the mean Fisher
information of the entities' samples: 1/2 d^T F d is what an error d costs in nats, to second order.

Source of the scheme: Juang and Gray, "Multiple stage vector quantization for speech coding", ICASSP
1982; of coding by what an error costs: Choi et al., "Towards the limit of network quantization",
ICLR 2017, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LEVELS = 16

_NUM_STEPS = 20  # of k-means; later ones move less than 0.1 % of the entities
_VECTORS_AT_A_TIME = 1 << 16  # distances take this many x K floats
_RIDGE = 1e-4  # of the mean of the metric's diagonal: no direction is free


@dataclass(frozen=True)
class AdditivePlan:
    """Clusters with new rows, and the levels on top of them.

    clusters : int64 (N,), the cluster of every entity
    rows : float (K_max, D), of the clusters
    choices : int64 (N, L) in [0, 2^bits), of every entity the row of each level
    level_rows : float (L, 2^bits, D)
    """

    clusters: Tensor
    rows: Tensor
    choices: Tensor
    level_rows: Tensor


def plan_additive(
    vectors: Tensor,
    importance: Tensor,
    metric: Tensor,
    clusters: Tensor,
    rows: Tensor,
    *,
    num_levels: int,
    bits: int,
    generator: torch.Generator,
) -> AdditivePlan:
    """Code vectors, level after level, from the clusters that the entities are in.

    vectors : float (N, D)      importance : float (N,) > 0, of each entity
    metric : float (D, D), positive semidefinite: an error d counts d^T metric d
    clusters : int64 (N,)       rows : float (K_max, D); those without members stay as they are

    >>> vectors = torch.tensor([[0.0], [1.0], [8.0], [9.0]])
    >>> plan = plan_additive(
    ...     vectors, torch.ones(4), torch.eye(1), torch.tensor([0, 0, 0, 1]), torch.zeros(2, 1),
    ...     num_levels=1, bits=3, generator=torch.Generator(),
    ... )
    >>> plan.clusters.tolist()
    [0, 0, 1, 1]
    >>> sums = plan.rows[plan.clusters] + plan.level_rows[0, plan.choices[:, 0]]
    >>> torch.allclose(sums, vectors, atol=1e-3)
    True
    """
    root, inverse = _root(metric)
    rest = vectors @ root
    weight = importance.to(rest)
    present = torch.bincount(clusters, minlength=len(rows)) > 0
    live = present.nonzero().flatten()
    position_of = live.new_zeros(len(rows))
    position_of[live] = torch.arange(live.numel(), device=live.device)
    start = _means(rest, weight, position_of[clusters], rest.new_zeros(live.numel(), rest.shape[1]))
    centres, choice = k_means(rest, weight, start)
    new_rows = rows.clone().to(vectors)
    new_rows[live] = centres @ inverse
    rest = rest - centres[choice]
    choices, level_rows = [], []
    for _ in range(num_levels):
        level, chosen = k_means(rest, weight, _spread_start(rest, weight, 1 << bits, generator))
        rest = rest - level[chosen]
        choices.append(chosen)
        level_rows.append(level @ inverse)
    width = vectors.shape[1]
    return AdditivePlan(
        clusters=live[choice],
        rows=new_rows,
        choices=torch.stack(choices, 1) if choices else live.new_zeros(len(vectors), 0),
        level_rows=torch.stack(level_rows)
        if level_rows
        else vectors.new_zeros(0, 1 << bits, width),
    )


def nearest_choices(target: Tensor, level_rows: Tensor) -> Tensor:
    """The row of each level, (L,), with which sums come near a vector, (D,), level after level.

    level_rows : (L, R, D)

    >>> levels = torch.tensor([[[0.0], [2.0]], [[1.0], [5.0]]])
    >>> nearest_choices(torch.tensor([3.0]), levels).tolist()
    [1, 0]
    """
    chosen = []
    for rows in level_rows:
        choice = (rows - target).square().sum(1).argmin()
        target = target - rows[choice]
        chosen.append(choice)
    return torch.stack(chosen) if chosen else torch.zeros(0, dtype=torch.long)


def k_means(points: Tensor, weight: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Lloyd's steps from given centres.

    points : (N, D)     weight : (N,)     start : (K, D)
    returns : centres (K, D), one without members as it was; the nearest of each point, int64 (N,)
    """
    centres, nearest = start, None
    for _ in range(_NUM_STEPS):
        found = _nearest(points, centres)
        if nearest is not None and torch.equal(found, nearest):
            break
        nearest = found
        centres = _means(points, weight, nearest, centres)
    return centres, _nearest(points, centres)


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    lengths = centres.square().sum(1)
    parts = points.split(_VECTORS_AT_A_TIME)
    return torch.cat([torch.addmm(lengths, part, centres.T, alpha=-2).argmin(1) for part in parts])


def _means(points: Tensor, weight: Tensor, members: Tensor, otherwise: Tensor) -> Tensor:
    """The weighted mean of each group, (K, D); `otherwise` for one without members."""
    total = torch.zeros_like(otherwise).index_add_(0, members, points * weight[:, None])
    share = weight.new_zeros(len(otherwise)).index_add_(0, members, weight)[:, None]
    return torch.where(share > 0, total / share.clamp_min(1e-12), otherwise)


def _spread_start(
    points: Tensor, weight: Tensor, num_centres: int, generator: torch.Generator
) -> Tensor:
    """Points far apart, (K, D), by k-means++ (Arthur and Vassilvitskii, SODA 2007)."""
    draws = torch.rand(num_centres, generator=generator, dtype=torch.float64).tolist()
    distance = torch.ones_like(weight)
    centres: list[Tensor] = []
    for draw in draws:
        chances = (distance * weight).double().cumsum(0)
        index = torch.searchsorted(chances, draw * chances[-1]).clamp_max(len(points) - 1)
        centres.append(points[index])
        apart = (points - centres[-1]).square().sum(1)
        distance = apart if len(centres) == 1 else distance.minimum(apart)
    return torch.stack(centres)


def _root(metric: Tensor) -> tuple[Tensor, Tensor]:
    """A with d^T metric d = |d A|^2, and its inverse, both (D, D)."""
    exact = metric.double()
    ridge = _RIDGE * exact.diagonal().mean() + 1e-12
    values, directions = torch.linalg.eigh(exact)
    values = values.clamp_min(0) + ridge
    root = directions * values.sqrt()
    inverse = (directions / values.sqrt()).T
    return root.to(metric), inverse.to(metric)
