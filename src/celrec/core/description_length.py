"""How many clusters pay: the description length of a table, and the splits that shorten it.

A table with K clusters is described by its rows, by the cluster of every entity, and by the data
given both. In nats, after Rissanen ("Modeling by shortest data description", Automatica 1978):

    sum_e -log sum_k (N_k/N) exp(-L_e(k))  +  R

L_e(k) is the loss of entity e's samples in cluster k; N_k are its members with data, N = sum N_k. R
is what rows cost, as precisely as data determine them: see row_cost.py. The first sum is at most
that of loss - log share of the cluster taken, N H(N_1/N, ...) for the names of clusters. It is less
where entities are undecided between clusters: naming either serves, and the choice carries bits
that come back (Hinton and van Camp, COLT 1993). Without them a cold entity costs as much to name as
a warm one, and gains nothing.

A split must shorten the description. It pays if

    gain > (R after - R before) + N_c H(N_L/N_c)

where the gain is the fall of the loss and the bits that come back. It is measured with true losses,
at trial rows one Newton step from the parent, and children start there: what was measured is what
is committed. Of a start nearer to the parent, the reassignment that follows undoes much: rows still
explain nearly the same, and the prior decides.

The parent is given its own step: what it gains alone is no reason to split. A row that would gain
more by its step than its split has to spare is too far from rest for either to be known: it waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from celrec.core.reassign import Trial, losses_under, total_losses_under
from celrec.core.recording import SampleLoss
from celrec.core.row_cost import split_row_costs
from celrec.core.split import ClusterSplit, SplitPlan, first_principal_component
from celrec.core.statistics import ClusterFisher, EntityStatistics

if TYPE_CHECKING:
    from celrec.core.embedding import ClusteredTable

STEP_SIZES = (0.5, 1.0, 2.0)
"""Of Newton steps; squared gradients over- and understate the curvature by as much."""

_DAMPING = 1.0  # samples' worth of curvature
_RIDGE = 1e-6  # of the trace; gradients are single precision
_NUM_SETTLINGS = 10  # of members between two children whose losses are known; no pass
_CLUSTERS_AT_A_TIME = 64  # Newton steps take this many x D x D floats


def naming_cost(left: Tensor, right: Tensor) -> Tensor:
    """What it costs to name the sides of members: N_c H(N_L/N_c), in nats.

    left, right : (*)   members with data on either side

    >>> round(float(naming_cost(torch.tensor(1), torch.tensor(3))), 2)
    2.25
    """
    both = (left + right).double()
    cost = torch.special.xlogy(both, both)
    cost -= torch.special.xlogy(left.double(), left.double())
    cost -= torch.special.xlogy(right.double(), right.double())
    return cost


def newton_steps(
    statistics: EntityStatistics, group_of: Tensor, fisher: ClusterFisher, parent_of: Tensor
) -> Tensor:
    """The step of each group's row to the least loss, to second order, (G, D).

    A group's curvature is its share, by samples, of the curvature of the cluster that it is part
    of. That of its own diagonal is too little: where gradients fill few directions, steps would go
    far along others.

    statistics : of E entities, taken at their clusters' rows
    group_of : int64 (E,)   values in [0, G), or G for an entity of no group
    parent_of : int64 (G,)   the cluster that each group is part of
    """
    num_groups, width = len(parent_of), statistics.gradient.shape[1]
    gradient = fisher.fisher.new_zeros(num_groups + 1, width)
    gradient = gradient.index_add_(0, group_of, statistics.gradient.double())[:-1]
    count = fisher.count.new_zeros(num_groups + 1)
    count = count.index_add_(0, group_of, statistics.count.double())[:-1]
    share = count / fisher.count[parent_of].clamp_min(1)
    steps = torch.zeros_like(gradient)
    for k in count.nonzero().flatten().split(_CLUSTERS_AT_A_TIME):
        curvature = _damped(fisher.fisher[parent_of[k]] * share[k, None, None])
        steps[k] = -torch.linalg.solve(curvature, gradient[k])
    return steps.to(statistics.gradient.dtype)


def _damped(curvature: Tensor) -> Tensor:
    """Curvatures (*, D, D), positive definite beyond rounding."""
    identity = torch.eye(curvature.shape[-1], dtype=curvature.dtype, device=curvature.device)
    trace = curvature.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    return curvature + (_DAMPING + _RIDGE * trace) * identity


def stepped(table: ClusteredTable, steps: Tensor) -> list[Trial]:
    """Every entity in its own cluster, whose row has taken each of STEP_SIZES of its step."""
    return [
        Trial(table.cluster_of, _within_norm(table, table.weight.detach() + size * steps))
        for size in STEP_SIZES
    ]


def _best_rows(table: ClusteredTable, steps: Tensor, best: Tensor) -> Tensor:
    """Rows after the best of no step and STEP_SIZES, (K_max, D).

    best : int64 (K_max,)   0 for no step
    """
    sizes = steps.new_tensor((0.0, *STEP_SIZES))[best].unsqueeze(1)
    return _within_norm(table, table.weight.detach() + sizes * steps)


def _within_norm(table: ClusteredTable, rows: Tensor) -> Tensor:
    if table.max_norm is None:
        return rows
    return torch.renorm(rows, table.norm_type, 0, table.max_norm)


def paying_splits(
    table: ClusteredTable,
    loss: SampleLoss,
    statistics: EntityStatistics,
    fisher: ClusterFisher,
    plan: SplitPlan,
) -> SplitPlan:
    """Settle the two sides of each split, and keep the splits that pay.

    A cut across one direction mixes sides where clusters differ in several. Members go to the side
    that explains them better until they rest, first to second order, then by true losses.

    statistics : of all members with data of the clusters that `plan` divides, taken at their rows
    fisher : taken at the same rows
    returns : splits with their true gain, and children at the rows where it was measured; priority
        is by how much it exceeds the cost
    cost : one pass over the samples, each evaluated 10 times
    """
    if not plan.splits:
        return plan
    entities = statistics.entities
    cluster = table.cluster_ids()[entities]  # (E,)
    is_moved = torch.isin(entities, torch.cat([split.moved for split in plan.splits]))
    sides = _Sides(cluster, table.max_clusters)
    goes = _settled_sides(sides, statistics, fisher, is_moved)
    steps = [
        newton_steps(statistics, cluster, fisher, sides.every_row()),
        *_side_steps(sides, statistics, fisher, goes),
    ]
    trials = [trial for step in steps for trial in stepped(table, step)]
    losses = losses_under(table, loss, entities, trials)
    present = losses[:, :1]
    parent, stay, move = (
        torch.cat([present, part], 1) for part in losses[:, 1:].split(len(STEP_SIZES), 1)
    )
    everyone = torch.ones_like(goes)
    parent_losses = sides.summed(parent, everyone)  # (K_max, 1 + STEP_SIZES)
    parent_loss = parent_losses.amin(1)
    unrest = parent_losses[:, 0] - parent_loss
    stay_best = sides.summed(stay, ~goes).argmin(1)
    move_best = sides.summed(move, goes).argmin(1)
    stay_loss = stay.gather(1, stay_best[cluster].unsqueeze(1)).squeeze(1)
    move_loss = move.gather(1, move_best[cluster].unsqueeze(1)).squeeze(1)
    for _ in range(_NUM_SETTLINGS):
        goes = sides.better(stay_loss, move_loss, goes)
    left, right = sides.sizes(goes), sides.sizes(~goes)
    gain = parent_loss - sides.summed(move_loss.where(goes, stay_loss), everyone)
    gain += sides.summed(sides.returned(stay_loss, move_loss, goes), everyone)
    live = table.live_clusters()
    going = sides.summed(statistics.count.double(), goes)
    stay_rows = _best_rows(table, steps[1], stay_best)
    move_rows = _best_rows(table, steps[2], move_best)
    cost = naming_cost(left, right)
    cost[live] += split_row_costs(
        fisher, table.weight.detach(), live, live, stay_rows[live], move_rows[live], going[live]
    )
    kept = []
    for split in plan.splits:
        k = split.cluster
        if gain[k] - cost[k] > unrest[k] and left[k] > 0 and right[k] > 0:
            kept.append(
                replace(
                    split,
                    moved=entities[goes & (cluster == k)],
                    stay_row=stay_rows[k],
                    move_row=move_rows[k],
                    gain=float(gain[k]),
                    cost=float(cost[k]),
                    priority=float(gain[k] - cost[k]),
                    num_staying=int(right[k]),
                )
            )
    return SplitPlan(tuple(kept))


@dataclass(frozen=True)
class _Sides:
    """Members of clusters, each going or staying.

    cluster : int64 (E,)      num_rows : K_max
    """

    cluster: Tensor
    num_rows: int

    def every_row(self) -> Tensor:
        return torch.arange(self.num_rows, device=self.cluster.device)

    def summed(self, values: Tensor, of: Tensor) -> Tensor:
        """Sums over the members of each cluster for which `of` is true, (K_max, *)."""
        zeros = values.new_zeros(self.num_rows, *values.shape[1:])
        return zeros.index_add_(0, self.cluster[of], values[of])

    def sizes(self, of: Tensor) -> Tensor:
        return self.summed(torch.ones_like(self.cluster, dtype=torch.float64), of)

    def better(self, stay_loss: Tensor, move_loss: Tensor, goes: Tensor) -> Tensor:
        """Who goes if each takes the side of least loss - log share, at the present shares."""
        stay = stay_loss - self.sizes(~goes).log()[self.cluster]
        return move_loss - self.sizes(goes).log()[self.cluster] < stay

    def returned(self, stay_loss: Tensor, move_loss: Tensor, goes: Tensor) -> Tensor:
        """What comes back of the cost of naming sides, float64 (E,), in nats >= 0.

        -log sum_s share_s exp(-loss_s) is less than loss - log share of the side taken.
        """
        stay = stay_loss - self.sizes(~goes).log()[self.cluster]
        move = move_loss - self.sizes(goes).log()[self.cluster]
        return torch.nan_to_num(move.where(goes, stay) + torch.logaddexp(-stay, -move), nan=0.0)


def _side_steps(
    sides: _Sides, statistics: EntityStatistics, fisher: ClusterFisher, goes: Tensor
) -> tuple[Tensor, Tensor]:
    """The Newton steps of those who stay and of those who go, of every cluster, (K_max, D)."""
    rows, nobody = sides.every_row(), sides.num_rows
    return (
        newton_steps(statistics, sides.cluster.masked_fill(goes, nobody), fisher, rows),
        newton_steps(statistics, sides.cluster.masked_fill(~goes, nobody), fisher, rows),
    )


def _settled_sides(
    sides: _Sides, statistics: EntityStatistics, fisher: ClusterFisher, is_moved: Tensor
) -> Tensor:
    """Who goes, bool (E,): the better of two starts after alternating rows and members.

    One start is the plan's. The other is a cut at zero of gradients in units of their own noise,
    where a direction that all clusters share does not hide the one in which they differ.
    """
    is_candidate = sides.sizes(is_moved)[sides.cluster] > 0
    best_goes, best = is_moved, None
    for goes in (is_moved, _whitened_cut(sides, statistics, fisher) & is_candidate):
        for _ in range(_NUM_SETTLINGS):
            steps = _side_steps(sides, statistics, fisher, goes)
            stay, move = (_estimated_change(sides, statistics, fisher, step) for step in steps)
            settled = sides.better(stay, move, goes)
            if torch.equal(settled, goes):
                break
            goes = settled
        left, right = sides.sizes(goes), sides.sizes(~goes)
        change = sides.summed(move.where(goes, stay), is_candidate)
        change += naming_cost(left, right)
        change[(left == 0) | (right == 0)] = torch.inf
        if best is None:
            best, best_goes = change, goes
        else:
            best_goes = goes.where((change < best)[sides.cluster], best_goes)
    return best_goes


def _estimated_change(
    sides: _Sides, statistics: EntityStatistics, fisher: ClusterFisher, steps: Tensor
) -> Tensor:
    """What its cluster's step adds to the loss of each entity, to second order, float64 (E,)."""
    of = steps.double()
    per_sample = torch.einsum("kd,kde,ke->k", of, fisher.fisher, of) / fisher.count.clamp_min(1)
    linear = (statistics.gradient * steps[sides.cluster]).sum(1)
    return linear + 0.5 * statistics.count * per_sample[sides.cluster]


def _whitened_cut(sides: _Sides, statistics: EntityStatistics, fisher: ClusterFisher) -> Tensor:
    """Who lies above zero along the main direction of whitened, centred gradients, bool (E,)."""
    above = torch.zeros_like(sides.cluster, dtype=torch.bool)
    order = sides.cluster.argsort(stable=True)
    present, sizes = sides.cluster.unique(return_counts=True)
    for cluster, index in zip(present.tolist(), order.split(sizes.tolist()), strict=True):
        gradient, count = statistics.gradient[index], statistics.count[index].unsqueeze(1)
        share = count.double() / count.sum()
        centred = (gradient - share * gradient.double().sum(0)) / share.sqrt()
        factor = torch.linalg.cholesky(_damped(fisher.fisher[cluster]))
        white = torch.linalg.solve_triangular(factor, centred.T, upper=False).T  # (M, D)
        above[index] = white @ first_principal_component(white) > 0
    return above


def paying_splits_together(
    table: ClusteredTable,
    loss: SampleLoss,
    statistics: EntityStatistics,
    fisher: ClusterFisher,
    plan: SplitPlan,
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
        child, parent_of = cluster.clone(), torch.arange(num_rows, device=cluster.device)
        cluster_of, rows = table.cluster_of.clone(), table.weight.detach().clone()
        for split, new in zip(ranked[:count], sleeping.tolist(), strict=False):
            child[torch.isin(entities, split.moved)] = new
            cluster_of[split.moved] = sleeping.new_tensor(new).to(cluster_of.dtype)
            rows[new] = rows[split.cluster]
            parent_of[new] = split.cluster
        steps = newton_steps(statistics, child, fisher, parent_of)
        trials += [
            Trial(cluster_of, _within_norm(table, rows + size * steps)) for size in STEP_SIZES
        ]
    every_row = torch.arange(num_rows, device=cluster.device)
    alone = stepped(table, newton_steps(statistics, cluster, fisher, every_row))
    losses = total_losses_under(table, loss, alone + trials)
    before = min(losses[: 1 + len(alone)])
    after_each = _groups(losses[1 + len(alone) :], len(STEP_SIZES))
    after = [min(part) for part in after_each]
    costs = _costs_by_estimate(table, statistics, fisher, ranked)
    surplus = [before - now - sum(costs[:count]) for now, count in zip(after, counts, strict=True)]
    best = max(range(len(counts)), key=surplus.__getitem__)
    if surplus[best] <= losses[0] - before:
        return SplitPlan(())
    chosen = ranked[: counts[best]]
    each = surplus[best] / len(chosen)
    taken = best * len(STEP_SIZES) + after_each[best].index(after[best])
    children = trials[taken].rows
    assert children is not None
    return SplitPlan(
        tuple(
            replace(
                split,
                stay_row=children[split.cluster],
                move_row=children[new],
                gain=cost + each,
                cost=cost,
                priority=each,
            )
            for split, new, cost in zip(chosen, sleeping.tolist(), costs, strict=False)
        )
    )


def _costs_by_estimate(
    table: ClusteredTable,
    statistics: EntityStatistics,
    fisher: ClusterFisher,
    splits: Sequence[ClusterSplit],
) -> list[float]:
    """What the gain of each split must exceed, with rows one whole Newton step further."""
    cluster = table.cluster_ids()[statistics.entities]
    sides = _Sides(cluster, table.max_clusters)
    goes = torch.isin(statistics.entities, torch.cat([split.moved for split in splits]))
    clusters = cluster.new_tensor([split.cluster for split in splits])
    rows = table.weight.detach()
    stay_rows, move_rows = (
        _within_norm(table, rows + steps)[clusters]
        for steps in _side_steps(sides, statistics, fisher, goes)
    )
    going = sides.summed(statistics.count.double(), goes)[clusters]
    cost = naming_cost(sides.sizes(goes)[clusters], sides.sizes(~goes)[clusters])
    cost += split_row_costs(
        fisher, rows, table.live_clusters(), clusters, stay_rows, move_rows, going
    )
    return cost.tolist()


def _groups(values: Sequence[float], size: int) -> list[Sequence[float]]:
    return [values[i : i + size] for i in range(0, len(values), size)]
