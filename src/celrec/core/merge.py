"""Merges: which clusters no longer pay. Pure functions from losses to a plan.

A cluster is dissolved if sending each of its members to the best other cluster shortens the
description of the table (description_length.py). The loss of its members counts after the row's own
best trial step, so that a cluster whose row still trains is not judged by where it stands today.

A split is priced by the same description, rows included (row_cost.py): with rows that have settled
each of both shortens it, and they end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from celrec.core.description_length import STEP_SIZES, newton_steps, stepped
from celrec.core.reassign import ReassignRule, Trial, losses_under, total_losses_under
from celrec.core.recording import SampleLoss
from celrec.core.row_cost import RowCost, spread_of
from celrec.core.statistics import ClusterFisher, EntityStatistics

if TYPE_CHECKING:
    from celrec.core.embedding import ClusteredTable

_MAX_TOGETHER = 8  # clusters tried in one pass where samples mix entities


@dataclass(frozen=True)
class Merge:
    """One cluster to dissolve.

    cluster : whose row goes to sleep
    entities : int64 (M,)     all its members
    to_cluster : int64 (M,)   where each goes
    change : of the description length, in nats; below 0
    loss_change : what it adds to the total loss, in nats
    """

    cluster: int
    entities: Tensor
    to_cluster: Tensor
    change: float
    loss_change: float


@dataclass(frozen=True)
class MergePlan:
    """Merges that do not touch each other, to be committed together."""

    merges: tuple[Merge, ...]


@dataclass(frozen=True)
class MergeCandidates:
    """How well clusters explain E entities, all members with data of the clusters at hand.

    entities, samples : int64 (E,)
    clusters : int64 (E, 1 + C)   the present one, and the best others
    losses : float64 (E, 1 + C)   of the entity in each, in nats; the present one's row after its
        best step
    present_loss : float64 (E,)   in the present cluster as it is
    """

    entities: Tensor
    samples: Tensor
    clusters: Tensor
    losses: Tensor
    present_loss: Tensor

    @staticmethod
    def joined(parts: list[MergeCandidates]) -> MergeCandidates:
        """One for several parts with different clusters."""
        return MergeCandidates(
            torch.cat([part.entities for part in parts]),
            torch.cat([part.samples for part in parts]),
            torch.cat([part.clusters for part in parts]),
            torch.cat([part.losses for part in parts]),
            torch.cat([part.present_loss for part in parts]),
        )


def merge_candidates(
    table: ClusteredTable,
    loss: SampleLoss,
    statistics: EntityStatistics,
    fisher: ClusterFisher,
    rule: ReassignRule,
    penalties: Tensor,
) -> MergeCandidates:
    """Evaluate the true losses of entities in their own and in the best other clusters.

    statistics : of all members with data of some clusters, taken at their rows
    rule : proposes the other clusters
    penalties : float64 (K_max,)   -log prior of every row
    cost : one pass over the samples, each evaluated 6 times
    """
    entities = statistics.entities
    cluster = table.cluster_ids()[entities]
    proposals = _proposals(table, statistics, cluster, rule, penalties)
    trials = []
    for proposal in proposals.T:
        trials.append(Trial(table.cluster_of.clone()))
        trials[-1].cluster_of[entities] = proposal.to(table.cluster_of.dtype)
    every_row = torch.arange(table.max_clusters, device=cluster.device)
    steps = newton_steps(statistics, cluster, fisher, every_row)
    losses = losses_under(table, loss, entities, trials + stepped(table, steps))
    present, others, own = losses.split([1, len(trials), len(STEP_SIZES)], 1)
    own = torch.cat([present, own], 1)
    totals = own.new_zeros(table.max_clusters, own.shape[1]).index_add_(0, cluster, own)
    best_step = totals.argmin(1)[cluster].unsqueeze(1)
    return MergeCandidates(
        entities,
        statistics.count,
        torch.cat([cluster.unsqueeze(1), proposals], 1),
        torch.cat([own.gather(1, best_step), others], 1),
        present.squeeze(1),
    )


def estimated_candidates(
    table: ClusteredTable,
    statistics: EntityStatistics,
    fisher: ClusterFisher,
    rule: ReassignRule,
    penalties: Tensor,
) -> MergeCandidates:
    """The same to second order, losses up to a constant for each entity; no pass.

    For tables of which a sample looks up several entities, whose single losses do not exist.
    """
    cluster = table.cluster_ids()[statistics.entities]
    proposals = _proposals(table, statistics, cluster, rule, penalties)
    clusters = torch.cat([cluster.unsqueeze(1), proposals], 1)
    rows = table.weight.detach()
    estimates = torch.cat(list(rule.estimates(statistics, rows[cluster], rows))).double()
    losses = estimates.gather(1, clusters)
    present = losses[:, 0].clone()
    every_row = torch.arange(table.max_clusters, device=cluster.device)
    steps = newton_steps(statistics, cluster, fisher, every_row)
    losses[:, 0] += 0.5 * (statistics.gradient * steps[cluster]).sum(1)  # < 0 over a cluster
    return MergeCandidates(statistics.entities, statistics.count, clusters, losses, present)


def _proposals(
    table: ClusteredTable,
    statistics: EntityStatistics,
    cluster: Tensor,
    rule: ReassignRule,
    penalties: Tensor,
) -> Tensor:
    """The best other clusters of each entity by estimate, (E, C) ids."""
    live = table.live_clusters()
    position_of = torch.zeros(table.max_clusters, dtype=torch.long, device=live.device)
    position_of[live] = torch.arange(live.numel(), device=live.device)
    rows = table.weight.detach()
    return live[
        rule.propose(statistics, rows[cluster], position_of[cluster], rows[live], penalties[live])
    ]


def plan_merges(found: MergeCandidates, fisher: ClusterFisher, rows: Tensor) -> MergePlan:
    """Dissolve every cluster that shortens the description, the best first.

    found : of all entities with data
    fisher : taken at `rows`, (K_max, D)
    returns : merges of which none dissolves a cluster that another sends members to; the change of
        each is that after those before it
    """
    state = _Sizes.of(found, fisher, rows)
    changes = {k: state.change(k) for k in state.members.nonzero().flatten().tolist()}
    merges: list[Merge] = []
    touched: set[int] = set()
    for cluster in sorted(changes, key=changes.__getitem__):
        if changes[cluster] >= 0:
            break
        of, target, column = state.moves(cluster)
        targets = set(target.tolist())
        if cluster in touched or targets & state.dissolved:
            continue
        change = state.change(cluster)
        if change >= 0:
            continue
        moved_loss = found.losses[of].gather(1, column.unsqueeze(1)).squeeze(1)
        loss_change = float((moved_loss - found.present_loss[of]).sum())
        merges.append(Merge(cluster, found.entities[of], target, change, loss_change))
        touched |= targets
        state = state.without(cluster)
    return MergePlan(tuple(merges))


@dataclass(frozen=True)
class _Sizes:
    """Clusters while merges are planned.

    rows : float64 (K_max, D)
    present : int64 (E,)   the cluster of each entity by then
    members, samples : float64 (K_max,)   N_k, n_k
    precision : float64 (K_max, S)   of rows; see RowCost
    dissolved : clusters that are gone
    """

    found: MergeCandidates
    prices: RowCost
    rows: Tensor
    present: Tensor
    members: Tensor
    samples: Tensor
    precision: Tensor
    dissolved: frozenset[int]

    @staticmethod
    def of(found: MergeCandidates, fisher: ClusterFisher, rows: Tensor) -> _Sizes:
        present = found.clusters[:, 0]
        num_rows = len(rows)
        members = torch.bincount(present, minlength=num_rows).double()
        samples = members.new_zeros(num_rows).index_add_(0, present, found.samples.double())
        rows = rows.double()
        live = members.nonzero().flatten()
        spread = spread_of(rows[live])
        prices = RowCost.of(fisher, spread.unsqueeze(0), len(live))
        precision = prices.precision(torch.arange(num_rows, device=rows.device), samples)
        return _Sizes(found, prices, rows, present, members, samples, precision, frozenset())

    def objectives(self, of: Tensor, gone: int | None = None) -> Tensor:
        """loss - log share of entities in each of their clusters, (M, 1 + C); inf if gone."""
        clusters = self.found.clusters[of]
        shares = self.members.clamp_min(0.5) / self.members.sum()
        objectives = self.found.losses[of] - shares.log()[clusters]
        for cluster in self.dissolved if gone is None else {*self.dissolved, gone}:
            objectives = objectives.masked_fill(clusters == cluster, torch.inf)
        return objectives

    def moves(self, cluster: int) -> tuple[Tensor, Tensor, Tensor]:
        """Positions of the members of a cluster, the best other of each, and its column."""
        of = (self.found.clusters[:, 0] == cluster).nonzero().flatten()
        column = self.objectives(of, cluster)[:, 1:].argmin(1) + 1
        return of, self.found.clusters[of, column], column

    def without(self, cluster: int) -> _Sizes:
        of, target, _ = self.moves(cluster)
        members, samples, present = self.members.clone(), self.samples.clone(), self.present.clone()
        present[of] = target
        members[cluster] = samples[cluster] = 0
        members.index_add_(0, target, torch.ones_like(members[target]))
        samples.index_add_(0, target, self.found.samples[of].double())
        precision, changed = self.precision.clone(), target.unique()
        precision[cluster] = 0
        precision[changed] = self.prices.precision(changed, samples[changed])
        return replace(
            self,
            present=present,
            members=members,
            samples=samples,
            precision=precision,
            dissolved=self.dissolved | {cluster},
        )

    def row_cost(self) -> Tensor:
        rows = self.rows[self.members.nonzero().flatten()]
        return self.prices.total(self.precision.sum(0), spread_of(rows))

    def change(self, cluster: int) -> float:
        """What dissolving a cluster adds to the description length, in nats."""
        after = self.without(cluster)
        is_concerned = (self.found.clusters == cluster).any(1)
        of = is_concerned.nonzero().flatten()
        rise = torch.logsumexp(-self.objectives(of), 1) - torch.logsumexp(-after.objectives(of), 1)
        others = self.present[~is_concerned].bincount(minlength=len(self.members))
        kept = others.nonzero().flatten()
        names = (others[kept] * (after.members[kept] / self.members[kept]).log()).sum()
        return float(rise.sum() - names + after.row_cost() - self.row_cost())


def best_by_total_loss(table: ClusteredTable, loss: SampleLoss, plan: MergePlan) -> MergePlan:
    """Of merges planned by estimated losses, the one that true losses favour most, if any.

    cost : one pass over the samples, each evaluated up to 9 times
    """
    merges = plan.merges[:_MAX_TOGETHER]
    trials = []
    for merge in merges:
        trials.append(Trial(table.cluster_of.clone()))
        trials[-1].cluster_of[merge.entities] = merge.to_cluster.to(table.cluster_of.dtype)
    if not trials:
        return plan
    before, *after = total_losses_under(table, loss, trials)
    measured = [
        Merge(
            merge.cluster,
            merge.entities,
            merge.to_cluster,
            merge.change + (total - before) - merge.loss_change,
            total - before,
        )
        for merge, total in zip(merges, after, strict=True)
    ]
    best = min(measured, key=lambda merge: merge.change)
    return MergePlan((best,) if best.change < 0 else ())
