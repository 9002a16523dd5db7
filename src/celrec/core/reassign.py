"""Reassignment: entities move to the cluster that explains their own data best.

Two steps. `ReassignRule.propose` names, for every entity, the few clusters with the smallest
second-order estimate of its loss: matrix products only. `proposal_losses` then evaluates the *true*
loss of the entity's own samples under each proposal and under its present cluster, and `decide`
takes the best of loss - log prior. The prior is cluster popularity: it keeps rarely seen entities
from chasing noise.

The estimate's curvature is each entity's own diagonal and the table's correlations: gradients of
one table share a direction (a popular item is liked in every cluster), and a diagonal alone takes a
step along it for steps along many independent coordinates. docs/design/proposals.md has figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from celrec.core.codes import pack
from celrec.core.recording import LookUp, ProposalProbe, SampleLoss, attached
from celrec.core.statistics import EntityStatistics, correlation_of
from celrec.errors import check_count, check_number

if TYPE_CHECKING:
    from celrec.core.embedding import ClusteredTable

_ENTITIES_AT_A_TIME = 1 << 16  # estimates take this many x K floats


@dataclass(frozen=True)
class ReassignPlan:
    """Moves of entities between existing clusters.

    entities : int64 (M,)     from_cluster, to_cluster : int64 (M,)
    objective_before, objective_after : sum of loss - log prior of all entities with data, in nats
    loss_change : what the moves add to the total loss, in nats
    """

    entities: Tensor
    from_cluster: Tensor
    to_cluster: Tensor
    objective_before: float = 0.0
    objective_after: float = 0.0
    loss_change: float = 0.0

    def reversed(self) -> ReassignPlan:
        """The moves that undo these."""
        return ReassignPlan(self.entities, self.to_cluster, self.from_cluster)

    @staticmethod
    def joined(plans: list[ReassignPlan]) -> ReassignPlan:
        """One plan of the moves of several plans for different entities."""
        return ReassignPlan(
            torch.cat([plan.entities for plan in plans]),
            torch.cat([plan.from_cluster for plan in plans]),
            torch.cat([plan.to_cluster for plan in plans]),
            sum(plan.objective_before for plan in plans),
            sum(plan.objective_after for plan in plans),
            sum(plan.loss_change for plan in plans),
        )


@dataclass(frozen=True, kw_only=True)
class ReassignRule:
    """How entities choose their cluster.

    num_proposals : clusters whose true loss is evaluated per entity, at most; None for all
    prior_weight : >= 0, weight of -log prior against the loss
    correlation_rank : >= 0, principal directions of the table's gradients whose correlations the
        estimate knows; 0 for a diagonal curvature
    damping : >= 0, curvature added to the second-order estimate
    """

    num_proposals: int | None = 2
    prior_weight: float = 1.0
    correlation_rank: int = 8
    damping: float = 1.0

    def __post_init__(self) -> None:
        if self.num_proposals is not None:
            check_count("num_proposals", self.num_proposals, at_least=1)
        check_number("prior_weight", self.prior_weight, at_least=0)
        check_count("correlation_rank", self.correlation_rank)
        check_number("damping", self.damping, at_least=0)

    def penalties(self, sizes: Tensor) -> Tensor:
        """-prior_weight * log prior of every cluster, in nats; prior = (n_k + 1) / (N + K).

        sizes : (K,)   members with data of each live cluster
        """
        prior = (sizes.double() + 1) / (sizes.sum() + sizes.numel())
        return -self.prior_weight * prior.log()

    def propose(
        self,
        statistics: EntityStatistics,
        vectors: Tensor,
        present: Tensor,
        rows: Tensor,
        penalties: Tensor,
        *,
        only_better: bool = False,
    ) -> Tensor:
        """Name the clusters worth evaluating for each entity.

        statistics : of E entities      vectors : (E, D), where the statistics were taken
        present : int64 (E,)            position of the present cluster among the K
        rows : (K, D)                   live rows     penalties : (K,)
        only_better : leave out clusters whose estimate is no better than the present one's
        returns : int64 (E, C)          positions among the K, best first; -1 for none
        """
        num_clusters = rows.shape[0]
        num_proposals = num_clusters - 1
        if self.num_proposals is not None:
            num_proposals = min(self.num_proposals, num_proposals)
        proposals = present.new_empty(present.numel(), num_proposals)
        penalties = penalties.to(statistics.gradient.dtype)
        parts = present.split(_ENTITIES_AT_A_TIME)
        starts = range(0, present.numel(), _ENTITIES_AT_A_TIME)
        every_estimate = self.estimates(statistics, vectors, rows)
        for start, now, estimates in zip(starts, parts, every_estimate, strict=True):
            part = slice(start, start + _ENTITIES_AT_A_TIME)
            estimates += penalties
            now = now.unsqueeze(1)
            estimate_now = estimates.gather(1, now)
            estimates.scatter_(1, now, torch.inf)
            best = estimates.topk(num_proposals, dim=1, largest=False)
            proposals[part] = best.indices
            if only_better:
                proposals[part].masked_fill_(best.values >= estimate_now, -1)
        return proposals

    def estimates(
        self, statistics: EntityStatistics, vectors: Tensor, rows: Tensor
    ) -> Iterator[Tensor]:
        """The loss of each entity in each cluster to second order, up to a constant per entity.

        statistics : of E entities      vectors : (E, D), where the statistics were taken
        rows : (K, D)                   live rows
        returns : blocks of lines of (E, K), in nats
        """
        rows = rows.to(statistics.gradient.dtype)
        directions = rows[:0]
        if statistics.fisher is not None:
            directions = principal_correlations(statistics.fisher, self.correlation_rank)
        parts = (statistics.gradient, statistics.curvature, vectors)
        for gradient, curvature, some_vectors in zip(
            *(part.split(_ENTITIES_AT_A_TIME) for part in parts), strict=True
        ):
            yield self._estimates(gradient, curvature, some_vectors, rows, directions)

    def _estimates(
        self,
        gradient: Tensor,
        curvature: Tensor,
        vectors: Tensor,
        rows: Tensor,
        directions: Tensor,
    ) -> Tensor:
        """g.d + 1/2 d.(S C S + damping).d up to a constant per entity, (E, K), for d = w_k - x.

        S = diag(sqrt h), and C = sum_r c_r c_r^T + a diagonal that makes the diagonal of C one.
        directions : (R, D), the c_r
        """
        scale = curvature.sqrt()
        diagonal = curvature * (1 - directions.square().sum(0)).clamp_min(0) + self.damping
        linear = gradient - diagonal * vectors
        both = torch.cat([linear, diagonal], 1)  # (E, 2D)
        estimates = both @ torch.cat([rows, 0.5 * rows.square()], 1).T
        for direction in directions:
            scaled = scale * direction  # (E, D)
            along = scaled @ rows.T - (scaled * vectors).sum(1, keepdim=True)
            estimates.addcmul_(along, along, value=0.5)
        return estimates


def principal_correlations(fisher: Tensor, rank: int) -> Tensor:
    """The main directions in which gradients vary together.

    fisher : (D, D)        sum of outer products of gradients
    rank : R' >= 0
    returns : (R, D), R = min(R', D); c_r with sum_r c_r c_r^T nearest to the correlation matrix
    """
    values, vectors = torch.linalg.eigh(correlation_of(fisher))
    rank = min(rank, len(values))
    return (vectors * values.clamp_min(0).sqrt()).T.flip(0)[:rank]


def proposal_losses(
    table: ClusteredTable, loss: SampleLoss, entities: Tensor, proposals: Tensor
) -> Tensor:
    """Evaluate the true losses of entities under their present and their proposed clusters.

    entities : int64 (E,) ascending
    proposals : int64 (E, C)   cluster ids, -1 for none; or (C,), the same for all entities
    returns : float64 (E, 1 + C)   total loss of the entity's samples, in nats; the present cluster
        first, inf where there is no proposal
    cost : one pass over the samples, each evaluated 1 + C times. Needs a table of which no sample
        looks up two entities: then the loss of a sample is its entity's alone.
    """
    present = table.cluster_of
    columns = []
    if proposals.dim() == 1:  # these take no memory
        columns += [pack(k, present.dtype).expand(present.numel()) for k in proposals]
    else:
        for proposal in (
            pack(proposals, present.dtype).where(proposals >= 0, present[entities].unsqueeze(1)).T
        ):
            columns.append(present.clone())
            columns[-1][entities] = proposal
    losses = losses_under(table, loss, entities, [Trial(column) for column in columns])
    if proposals.dim() == 2:
        losses[:, 1:].masked_fill_(proposals < 0, torch.inf)
    return losses


@dataclass(frozen=True)
class Trial:
    """What a table might be.

    cluster_of : packed (N,)
    rows : (K_max, D); None for the table's own
    """

    cluster_of: Tensor
    rows: Tensor | None = None


def losses_under(
    table: ClusteredTable, loss: SampleLoss, entities: Tensor, trials: list[Trial]
) -> Tensor:
    """Evaluate the true losses of entities in a table as it is, and as it might be.

    entities : int64 (E,) ascending
    trials : T of them
    returns : float64 (E, 1 + T)   total loss of the entity's samples, in nats; as it is first
    cost : one pass over the samples, each evaluated 1 + T times. Needs a table of which no sample
        looks up two entities: then the loss of a sample is its entity's alone.
    """
    present = table.cluster_of
    slot_of = entities.new_full((present.numel() + 1,), -1)  # the last line is for no entity
    slot_of[entities] = torch.arange(entities.numel(), device=entities.device)
    losses = torch.zeros(
        1 + len(trials), entities.numel(), dtype=torch.float64, device=present.device
    )
    probe = ProposalProbe(loss.sample_of)
    with torch.no_grad(), attached(table, probe), loss.new_pass() as samples:
        for batch in samples:
            probe.cluster_of, probe.rows = present, None
            now = samples.losses(batch)
            entity_of = _entity_of_sample(table, probe.take(), now.numel())  # (B,)
            samples.count_entities(entity_of.clamp_min(0))
            slots = slot_of[entity_of]
            used = slice(None) if bool((slots >= 0).all()) else slots >= 0
            slots = slots[used]
            losses[0].index_add_(0, slots, now[used].double())
            for total, trial in zip(losses[1:], trials, strict=True):
                probe.cluster_of, probe.rows = trial.cluster_of, trial.rows
                total.index_add_(0, slots, samples.proposed_losses(batch)[used].double())
            probe.take()
    return losses.T


def total_losses_under(table: ClusteredTable, loss: SampleLoss, trials: list[Trial]) -> list[float]:
    """The total loss of all samples as the table is, and as it might be: 1 + T numbers, in nats.

    cost : one pass over the samples, each evaluated 1 + T times
    """
    totals = [0.0] * (1 + len(trials))
    probe = ProposalProbe(loss.sample_of)
    with torch.no_grad(), attached(table, probe), loss.new_pass() as samples:
        for batch in samples:
            probe.cluster_of, probe.rows = table.cluster_of, None
            totals[0] += float(samples.losses(batch).sum(dtype=torch.float64))
            for i, trial in enumerate(trials, start=1):
                probe.cluster_of, probe.rows = trial.cluster_of, trial.rows
                totals[i] += float(samples.proposed_losses(batch).sum(dtype=torch.float64))
            probe.take()
    return totals


def _entity_of_sample(table: ClusteredTable, look_ups: list[LookUp], num_samples: int) -> Tensor:
    """The entity of the table that each sample looks up, (B,); -1 for none."""
    if len(look_ups) == 1 and look_ups[0].is_one_per_sample and table.padding_idx is None:
        return look_ups[0].ids.long()
    entity_of = torch.full((num_samples,), -1, device=table.weight.device)
    for look_up in look_ups:
        ids, samples = look_up.ids, look_up.samples
        if table.padding_idx is not None:
            samples, ids = samples[ids != table.padding_idx], ids[ids != table.padding_idx]
        entity_of[samples] = ids.long()
    return entity_of


def decide(
    entities: Tensor, present: Tensor, proposals: Tensor, losses: Tensor, priors: Tensor
) -> ReassignPlan:
    """Take the best cluster of each entity; a tie stays.

    present : int64 (E,) cluster ids      proposals : int64 (E, C) cluster ids, -1 for none
    losses : float64 (E, 1 + C) as `proposal_losses` returns them; the present cluster first
    priors : float64 (E, 1 + C), -log prior of the same clusters
    """
    objectives = losses + priors
    best = objectives.min(1)
    moves = (best.values < objectives[:, 0]).nonzero().flatten()
    column = best.indices[moves]
    return ReassignPlan(
        entities=entities[moves],
        from_cluster=present[moves],
        to_cluster=proposals[moves, column - 1],
        objective_before=float(objectives[:, 0].sum()),
        objective_after=float(best.values.sum()),
        loss_change=float((losses[moves, column] - losses[moves, 0]).sum()),
    )
