"""Merges: which clusters no longer pay. Pure functions from losses to a plan.

A cluster is dissolved if sending each of its members to the best other cluster shortens the
description of the table (description_length.py): what the loss rises is less than what one row and
fewer cluster names save. The loss of a cluster as it is counts after its own best trial step, so
that a cluster whose row still trains is not judged by where it stands today.

A split must gain more than the description of its rows takes, a merge must save it: with rows that
have settled every one of both shortens the description, so that they end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from celrec.core.description_length import STEP_SIZES, description_cost, newton_steps, stepped
from celrec.core.reassign import ReassignRule, Trial, losses_under, total_losses_under
from celrec.core.recording import SampleLoss
from celrec.core.statistics import EntityStatistics

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
    """What dissolving clusters would cost: of E entities, all members with data of theirs.

    entities, cluster, samples : int64 (E,)
    target : int64 (E,)     the best other cluster
    present_loss, target_loss : float64 (E,)   in the present and in the best other cluster
    own_loss : float64 (K_max,)   of the members of a cluster after its row's best step
    """

    entities: Tensor
    cluster: Tensor
    samples: Tensor
    target: Tensor
    present_loss: Tensor
    target_loss: Tensor
    own_loss: Tensor

    @staticmethod
    def joined(parts: list[MergeCandidates]) -> MergeCandidates:
        """One for several parts with different clusters."""
        return MergeCandidates(
            torch.cat([part.entities for part in parts]),
            torch.cat([part.cluster for part in parts]),
            torch.cat([part.samples for part in parts]),
            torch.cat([part.target for part in parts]),
            torch.cat([part.present_loss for part in parts]),
            torch.cat([part.target_loss for part in parts]),
            torch.stack([part.own_loss for part in parts]).sum(0),
        )


def merge_candidates(
    table: ClusteredTable,
    loss: SampleLoss,
    statistics: EntityStatistics,
    rule: ReassignRule,
    penalties: Tensor,
) -> MergeCandidates:
    """Evaluate the true losses of entities in their own and in the best other cluster.

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
    steps = newton_steps(statistics, cluster, table.max_clusters)
    losses = losses_under(table, loss, entities, trials + stepped(table, steps))
    present, others, own = losses.split([1, len(trials), len(STEP_SIZES)], 1)
    best = (others + penalties[proposals]).argmin(1, keepdim=True)
    own = torch.cat([present, own], 1)
    own_loss = own.new_zeros(table.max_clusters, own.shape[1]).index_add_(0, cluster, own).amin(1)
    return MergeCandidates(
        entities,
        cluster,
        statistics.count,
        proposals.gather(1, best).squeeze(1),
        present.squeeze(1),
        others.gather(1, best).squeeze(1),
        own_loss,
    )


def estimated_candidates(
    table: ClusteredTable, statistics: EntityStatistics, rule: ReassignRule, penalties: Tensor
) -> MergeCandidates:
    """The same to second order, losses up to a constant for each entity; no pass.

    For tables of which a sample looks up several entities, whose single losses do not exist.
    """
    cluster = table.cluster_ids()[statistics.entities]
    target = _proposals(table, statistics, cluster, rule, penalties)[:, 0]
    rows = table.weight.detach()
    estimates = torch.cat(list(rule.estimates(statistics, rows[cluster], rows))).double()
    present = estimates.gather(1, cluster.unsqueeze(1)).squeeze(1)
    own_loss = present.new_zeros(table.max_clusters).index_add_(0, cluster, present)
    steps = newton_steps(statistics, cluster, table.max_clusters)
    gradient = torch.zeros_like(steps).index_add_(0, cluster, statistics.gradient)
    own_loss += 0.5 * (gradient * steps).sum(1)  # what a Newton step gains, negative
    moved = estimates.gather(1, target.unsqueeze(1)).squeeze(1)
    return MergeCandidates(
        statistics.entities, cluster, statistics.count, target, present, moved, own_loss
    )


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


def plan_merges(found: MergeCandidates, width: int) -> MergePlan:
    """Dissolve every cluster that shortens the description, the best first.

    found : of all entities with data
    width : D
    returns : merges of which none dissolves a cluster that another sends members to; the change of
        each is that after those before it
    """
    num_rows = found.own_loss.numel()
    members = torch.bincount(found.cluster, minlength=num_rows).double()
    samples = members.new_zeros(num_rows).index_add_(0, found.cluster, found.samples.double())
    moved = found.target_loss.new_zeros(num_rows).index_add_(0, found.cluster, found.target_loss)
    rise = moved - found.own_loss
    now = description_cost(samples, members, width)

    def after(cluster: int) -> tuple[Tensor, Tensor, Tensor]:
        """The members of a cluster, and (n_k, N_k) once it is dissolved."""
        of = (found.cluster == cluster).nonzero().flatten()
        sizes, weights = members.clone(), samples.clone()
        sizes[cluster] = weights[cluster] = 0
        sizes.index_add_(0, found.target[of], torch.ones_like(sizes[found.target[of]]))
        weights.index_add_(0, found.target[of], found.samples[of].double())
        return of, weights, sizes

    changes = {
        k: float(rise[k]) + description_cost(*after(k)[1:], width) - now
        for k in members.nonzero().flatten().tolist()
    }
    merges: list[Merge] = []
    touched: set[int] = set()
    dissolved: set[int] = set()
    for cluster in sorted(changes, key=changes.__getitem__):
        if changes[cluster] >= 0:
            break
        of, weights, sizes = after(cluster)
        targets = set(found.target[of].tolist())
        if cluster in touched or targets & dissolved:
            continue
        cost = description_cost(weights, sizes, width)
        change = float(rise[cluster]) + cost - now
        if change >= 0:
            continue
        now, members, samples = cost, sizes, weights
        touched |= targets
        dissolved.add(cluster)
        merges.append(
            Merge(
                cluster,
                found.entities[of],
                found.target[of],
                change,
                float((found.target_loss[of] - found.present_loss[of]).sum()),
            )
        )
    return MergePlan(tuple(merges))


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
