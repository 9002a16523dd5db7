"""Reassignment: entities move to the cluster that explains their own data best.

Two steps. `ReassignRule.propose` names, for every entity, the few clusters with the smallest
second-order estimate of its loss: one matrix product. `proposal_losses` then evaluates the *true*
loss of the entity's own samples under each proposal and under its present cluster, and
`ReassignRule.decide` takes the best of loss - log prior. The prior is cluster popularity: it keeps
rarely seen entities from chasing noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from celrec.core.recording import GradientProbe, ProposalProbe, SampleLoss, attached
from celrec.core.statistics import EntityStatistics
from celrec.errors import check_count, check_number

if TYPE_CHECKING:
    from celrec.core.embedding import ClusteredTable

_ENTITIES_AT_A_TIME = 1 << 16  # estimates take this many x K floats
_SAMPLES_AT_A_TIME = 1 << 13  # proposals take this many looked-up vectors


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
    damping : >= 0, curvature added to the second-order estimate
    margin : >= 0 or None, in nats; a cluster whose estimate is worse than the present one's by
        more than this is not evaluated. None evaluates every proposal.
    """

    num_proposals: int | None = 8
    prior_weight: float = 1.0
    damping: float = 1.0
    margin: float | None = None

    def __post_init__(self) -> None:
        if self.num_proposals is not None:
            check_count("num_proposals", self.num_proposals, at_least=1)
        check_number("prior_weight", self.prior_weight, at_least=0)
        check_number("damping", self.damping, at_least=0)
        if self.margin is not None:
            check_number("margin", self.margin, at_least=0)

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
    ) -> Tensor:
        """Name the clusters worth evaluating for each entity.

        statistics : of E entities      vectors : (E, D), where the statistics were taken
        present : int64 (E,)            position of the present cluster among the K
        rows : (K, D)                   live rows     penalties : (K,)
        returns : int64 (E, C)          positions among the K, best first; -1 for none
        """
        num_clusters = rows.shape[0]
        num_proposals = num_clusters - 1
        if self.num_proposals is not None:
            num_proposals = min(self.num_proposals, num_proposals)
        proposals = present.new_empty(present.numel(), num_proposals)
        rows = rows.to(statistics.gradient.dtype)
        penalties = penalties.to(rows.dtype)
        for start in range(0, present.numel(), _ENTITIES_AT_A_TIME):
            part = slice(start, start + _ENTITIES_AT_A_TIME)
            estimates = self._estimates(
                statistics.gradient[part], statistics.curvature[part], vectors[part], rows
            )
            estimates += penalties
            now = present[part].unsqueeze(1)
            estimate_now = estimates.gather(1, now)
            estimates.scatter_(1, now, torch.inf)
            best = estimates.topk(num_proposals, dim=1, largest=False)
            is_worth_it = best.values.isfinite()
            if self.margin is not None:
                is_worth_it &= best.values <= estimate_now + self.margin
            proposals[part] = best.indices.masked_fill(~is_worth_it, -1)
        return proposals

    def _estimates(
        self, gradient: Tensor, curvature: Tensor, vectors: Tensor, rows: Tensor
    ) -> Tensor:
        """g.(w_k - x) + 1/2 (h + damping).(w_k - x)^2 up to a constant per entity, (E, K)."""
        curvature = curvature + self.damping
        linear = gradient - curvature * vectors
        both = torch.cat([linear, curvature], 1)  # (E, 2D)
        return both @ torch.cat([rows, 0.5 * rows.square()], 1).T


def proposal_losses(
    table: ClusteredTable, loss: SampleLoss, entities: Tensor, proposals: Tensor
) -> Tensor:
    """Evaluate the true losses of entities under their present and their proposed clusters.

    entities : int64 (E,) ascending
    proposals : int64 (E, C)   cluster ids; -1 for none
    returns : float64 (E, 1 + C)   total loss of the entity's samples, in nats; the present cluster
        first, inf where there is no proposal
    cost : one pass over the samples, in which each is evaluated once, and once more for every
        proposal of its entity. Needs tables of which no sample looks up two entities.
    """
    num_proposals = proposals.shape[1]
    slot_of = torch.full((table.num_embeddings,), -1, device=entities.device)
    slot_of[entities] = torch.arange(entities.numel(), device=entities.device)
    losses = torch.zeros(
        entities.numel() * (1 + num_proposals), dtype=torch.float64, device=entities.device
    )
    recorder, proposer = GradientProbe(loss.sample_of), ProposalProbe(loss.sample_of)
    with torch.no_grad(), loss.new_pass() as samples:
        for batch in samples:
            with attached(table, recorder):
                present = samples.losses(batch)
            slots = slot_of[_entity_of_sample(table, recorder, present.numel())]  # (B,)
            used = (slots >= 0).nonzero().flatten()
            losses.index_add_(0, slots[used] * (1 + num_proposals), present[used].double())
            for positions, clusters, column in _pairs(used, proposals[slots[used]]):
                proposer.clusters = clusters
                with attached(table, proposer):
                    proposed = samples.losses_of_part(loss.select(batch, positions))
                cells = slots[positions] * (1 + num_proposals) + 1 + column
                losses.index_add_(0, cells, proposed.double())
    losses = losses.view(-1, 1 + num_proposals)
    losses[:, 1:].masked_fill_(proposals < 0, torch.inf)
    return losses


def _entity_of_sample(table: ClusteredTable, recorder: GradientProbe, num_samples: int) -> Tensor:
    """The entity of the table that each sample looks up, (B,); -1 (the last line) for none."""
    look_ups = recorder.take()
    if len(look_ups) == 1 and look_ups[0].is_one_per_sample and table.padding_idx is None:
        return look_ups[0].ids.long()
    entity_of = torch.full((num_samples,), -1, device=table.weight.device)
    for look_up in look_ups:
        ids, samples = look_up.ids, look_up.samples
        if table.padding_idx is not None:
            samples, ids = samples[ids != table.padding_idx], ids[ids != table.padding_idx]
        entity_of[samples] = ids.long()
    return entity_of


def _pairs(used: Tensor, proposals: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pairs of a sample and a proposal of its entity: (positions, clusters, columns), in parts."""
    lines, columns = (proposals >= 0).nonzero(as_tuple=True)
    for part in torch.arange(lines.numel(), device=lines.device).split(_SAMPLES_AT_A_TIME):
        yield used[lines[part]], proposals[lines[part], columns[part]], columns[part]


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
