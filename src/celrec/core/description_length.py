"""How many clusters pay: the description length of a table, and the splits that shorten it.

A table with K clusters is described by its rows, by the cluster of every entity, and by the data
given both. In nats, after Rissanen ("Modeling by shortest data description", Automatica 1978):

    sum of losses  +  sum_k 1/2 D log n_k  +  N H(N_1/N, ..., N_K/N)

n_k samples and N_k members with data of cluster k, N = sum N_k, H the entropy. A split must shorten
it with room to spare: it pays if its gain exceeds 1/2 D log n_c + N_c H(N_L/N_c).

The gain is measured with true losses. Children start near their parent, where little is gained yet;
so trial rows stand for where training will take them, one Newton step further with the gradients'
correlations. The parent is given its own step: what it gains alone is no reason to split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from celrec.core.reassign import Trial, losses_under, total_losses_under
from celrec.core.recording import SampleLoss
from celrec.core.split import SplitPlan
from celrec.core.statistics import EntityStatistics, correlation_of

if TYPE_CHECKING:
    from celrec.core.embedding import ClusteredTable

STEP_SIZES = (0.5, 1.0, 1.5)
"""Of Newton steps; squared gradients over- and understate the curvature by as much."""

_DAMPING = 1.0  # samples' worth of curvature
_NUM_SETTLINGS = 10  # of members between two children whose losses are known; no pass
_CLUSTERS_AT_A_TIME = 64  # Newton steps take this many x D x D floats


def description_cost(samples: Tensor, members: Tensor, width: int) -> float:
    """What rows and codes take, in nats, beside the loss.

    samples : (K,)   n_k      members : (K,)   N_k, those with data; clusters without count nothing
    width : D

    >>> round(description_cost(torch.tensor([8, 8]), torch.tensor([2, 2]), width=3), 3)
    9.011
    """
    n, N = samples.double(), members.double()
    codes = torch.special.xlogy(N.sum(), N.sum()) - torch.special.xlogy(N, N).sum()
    return float(0.5 * width * n.clamp_min(1).log().sum() + codes)


def split_cost(samples: Tensor, left: Tensor, right: Tensor, width: int) -> Tensor:
    """What the gain of a split must exceed: 1/2 D log n_c + N_c H(N_L/N_c), in nats.

    samples : (*)   n_c      left, right : (*)   members with data on either side

    >>> cost = split_cost(*(torch.tensor(x) for x in (100.0, 1, 3)), width=2)
    >>> round(float(cost), 3)
    6.854
    """
    both = (left + right).double()
    codes = torch.special.xlogy(both, both)
    codes -= torch.special.xlogy(left.double(), left.double())
    codes -= torch.special.xlogy(right.double(), right.double())
    return 0.5 * width * samples.double().log() + codes


def newton_steps(statistics: EntityStatistics, group_of: Tensor, num_groups: int) -> Tensor:
    """The step of each group's row to the least loss, to second order, (G, D).

    statistics : of E entities, each taken at its group's row
    group_of : int64 (E,)   values in [0, G), or G for an entity of no group
    """
    width = statistics.gradient.shape[1]
    gradient = statistics.gradient.new_zeros(num_groups + 1, width)
    curvature = gradient.clone().index_add_(0, group_of, statistics.curvature)[:-1]
    gradient = gradient.index_add_(0, group_of, statistics.gradient)[:-1]
    identity = torch.eye(width, dtype=gradient.dtype, device=gradient.device)
    correlation = identity if statistics.fisher is None else correlation_of(statistics.fisher)
    steps = []
    for g, h in zip(
        gradient.split(_CLUSTERS_AT_A_TIME), curvature.split(_CLUSTERS_AT_A_TIME), strict=True
    ):
        scale = h.sqrt()
        hessian = scale.unsqueeze(2) * correlation * scale.unsqueeze(1) + _DAMPING * identity
        steps.append(-torch.linalg.solve(hessian, g))
    return torch.cat(steps)


def stepped(table: ClusteredTable, steps: Tensor) -> list[Trial]:
    """Every entity in its own cluster, whose row has taken each of STEP_SIZES of its step."""
    return [
        Trial(table.cluster_of, _within_norm(table, table.weight.detach() + size * steps))
        for size in STEP_SIZES
    ]


def _within_norm(table: ClusteredTable, rows: Tensor) -> Tensor:
    if table.max_norm is None:
        return rows
    return torch.renorm(rows, table.norm_type, 0, table.max_norm)


def paying_splits(
    table: ClusteredTable, loss: SampleLoss, statistics: EntityStatistics, plan: SplitPlan
) -> SplitPlan:
    """Keep the splits that pay; the members of each are settled by true losses.

    statistics : of all members with data of the clusters that `plan` divides, taken at their rows
    returns : splits with their true gain; priority is by how much it exceeds the cost
    cost : one pass over the samples, each evaluated 10 times
    """
    if not plan.splits:
        return plan
    entities, num_rows = statistics.entities, table.max_clusters
    cluster = table.cluster_ids()[entities]  # (E,)
    goes = torch.isin(entities, torch.cat([split.moved for split in plan.splits]))
    trials = []
    for group in (cluster, cluster.where(~goes, num_rows), cluster.where(goes, num_rows)):
        trials += stepped(table, newton_steps(statistics, group, num_rows))
    losses = losses_under(table, loss, entities, trials)
    present = losses[:, :1]
    parent, stay, move = (
        torch.cat([present, part], 1) for part in losses[:, 1:].split(len(STEP_SIZES), 1)
    )

    def summed(values: Tensor, of: Tensor) -> Tensor:
        """Sums over the members of each cluster for which `of` is true, (K_max, *)."""
        zeros = values.new_zeros(num_rows, *values.shape[1:])
        return zeros.index_add_(0, cluster[of], values[of])

    parent_loss = summed(parent, torch.ones_like(goes)).amin(1)  # (K_max,)
    stay_loss = stay.gather(1, summed(stay, ~goes).argmin(1)[cluster].unsqueeze(1)).squeeze(1)
    move_loss = move.gather(1, summed(move, goes).argmin(1)[cluster].unsqueeze(1)).squeeze(1)
    ones = torch.ones_like(stay_loss)
    for _ in range(_NUM_SETTLINGS):
        settled = move_loss - summed(ones, goes).log()[cluster] < (
            stay_loss - summed(ones, ~goes).log()[cluster]
        )
        if torch.equal(settled, goes):
            break
        goes = settled
    gain = parent_loss - summed(move_loss.where(goes, stay_loss), torch.ones_like(goes))
    left, right = summed(ones, goes), summed(ones, ~goes)
    samples = summed(statistics.count, torch.ones_like(goes))
    surplus = gain - split_cost(samples, left, right, table.embedding_dim)
    kept = []
    for split in plan.splits:
        k = split.cluster
        if surplus[k] > 0 and left[k] > 0 and right[k] > 0:
            kept.append(
                replace(
                    split,
                    moved=entities[goes & (cluster == k)],
                    gain=float(gain[k]),
                    priority=float(surplus[k]),
                    num_staying=int(right[k]),
                )
            )
    return SplitPlan(tuple(kept))


def paying_splits_together(
    table: ClusteredTable, loss: SampleLoss, statistics: EntityStatistics, plan: SplitPlan
) -> SplitPlan:
    """Keep the first 1, 2, 4, ... splits that pay together, where samples mix entities.

    A sample that looks up several entities has no loss of one of them alone: whole trial tables are
    compared. The gain of each split kept is its share of their common gain, by estimated gain.

    statistics, returns : as for `paying_splits`
    cost : one pass over the samples, each evaluated about 3 log2 K times
    """
    room = table.max_clusters - table.num_clusters
    ranked = plan.largest(room).splits
    if not ranked:
        return plan
    entities, num_rows = statistics.entities, table.max_clusters
    cluster = table.cluster_ids()[entities]
    sleeping = (table.born_at < 0).nonzero().flatten()
    counts = [min(1 << i, len(ranked)) for i in range(len(ranked).bit_length() + 1)]
    counts = sorted(set(counts))
    trials: list[Trial] = []
    for count in counts:
        child = cluster.clone()
        cluster_of, rows = table.cluster_of.clone(), table.weight.detach().clone()
        for split, new in zip(ranked[:count], sleeping.tolist(), strict=False):
            child[torch.isin(entities, split.moved)] = new
            cluster_of[split.moved] = sleeping.new_tensor(new).to(cluster_of.dtype)
            rows[new] = rows[split.cluster]
        steps = newton_steps(statistics, child, num_rows)
        trials += [
            Trial(cluster_of, _within_norm(table, rows + size * steps)) for size in STEP_SIZES
        ]
    alone = stepped(table, newton_steps(statistics, cluster, num_rows))
    losses = total_losses_under(table, loss, alone + trials)
    before = min(losses[: 1 + len(alone)])
    after = [min(part) for part in _groups(losses[1 + len(alone) :], len(STEP_SIZES))]
    samples = torch.zeros(num_rows, dtype=torch.long, device=cluster.device)
    samples.index_add_(0, cluster, statistics.count)
    costs = [
        float(
            split_cost(
                samples[split.cluster],
                samples.new_tensor(split.moved.numel()),
                samples.new_tensor(split.num_staying),
                table.embedding_dim,
            )
        )
        for split in ranked
    ]
    surplus = [before - now - sum(costs[:count]) for now, count in zip(after, counts, strict=True)]
    best = max(range(len(counts)), key=surplus.__getitem__)
    if surplus[best] <= 0:
        return SplitPlan(())
    chosen = ranked[: counts[best]]
    each = surplus[best] / len(chosen)
    return SplitPlan(
        tuple(
            replace(split, gain=cost + each, priority=each)
            for split, cost in zip(chosen, costs, strict=False)
        )
    )


def _groups(values: Sequence[float], size: int) -> list[Sequence[float]]:
    return [values[i : i + size] for i in range(0, len(values), size)]
