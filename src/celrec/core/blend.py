"""Blended codes: an entity's vector as a weighted mix of a few rows.

Which cluster is an entity in? Its own samples answer with a posterior over all clusters, and hard
codes keep only the best. A blend keeps the best m and their probabilities: rows that are fitted to
crowds are mixed into a vector that fits one entity, at 1.5 m bytes.

    p_k  proportional to  exp(-(L_e(k) - log prior_k) / T)

L_e(k) is the true loss of the entity's samples were it in cluster k, in nats; the prior is cluster
popularity, as in reassign.py. An entity's own data count twice, for the rows were fitted to them:
the temperature T > 1 corrects for that. An entity without data gets the prior itself.

Not in the paper, which has one cluster for each entity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from celrec.core.codes import MAX_BLEND, cluster_sizes, quantize, unpack
from celrec.core.reassign import ReassignRule, proposal_losses
from celrec.core.recording import SampleLoss
from celrec.core.statistics import StatisticsPass, bytes_per_entity, collect_statistics
from celrec.errors import check_count, check_number

_MIX_STEPS = 200  # the distance falls like 1 / steps; four bits see no more

if TYPE_CHECKING:
    from celrec.core.embedding import ClusteredTable


@dataclass(frozen=True)
class CodePlan:
    """New codes of entities.

    entities : int64 (E,)
    clusters : int64 (E, m)   live clusters, the heaviest first
    levels : uint8 (E, m)     weights as integers in 0..15, see codes.py; the first is 15
    """

    entities: Tensor
    clusters: Tensor
    levels: Tensor

    @staticmethod
    def shared(entities: Tensor, clusters: Tensor, weights: Tensor) -> CodePlan:
        """One code, of clusters (m,) and weights (m,), for all of some entities."""
        num_entities = entities.numel()
        return CodePlan(
            entities,
            clusters.expand(num_entities, -1),
            quantize(weights).expand(num_entities, -1),
        )

    @staticmethod
    def joined(plans: list[CodePlan]) -> CodePlan:
        """One plan of several for different entities."""
        return CodePlan(
            torch.cat([plan.entities for plan in plans]),
            torch.cat([plan.clusters for plan in plans]),
            torch.cat([plan.levels for plan in plans]),
        )


@dataclass(frozen=True, kw_only=True)
class BlendRule:
    """How a code follows from an entity's losses.

    temperature : T > 0
    num_candidates : >= 1, clusters whose true loss is evaluated, the best by the second-order
        estimate where there are more; None for all
    """

    temperature: float = 4.0
    num_candidates: int | None = 64

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, above=0)
        if self.num_candidates is not None:
            check_count("num_candidates", self.num_candidates, at_least=1)

    def plan(
        self, entities: Tensor, clusters: Tensor, objectives: Tensor, blend_size: int
    ) -> CodePlan:
        """Take the heaviest clusters of the posterior.

        entities : int64 (E,)
        clusters : int64 (E, C)   candidates
        objectives : float (E, C)   loss - log prior of each, in nats; inf for none
        blend_size : m in [1, C]

        >>> rule = BlendRule(temperature=1.0)
        >>> nats = -torch.tensor([[0.25, 0.75, 0.0]]).log()
        >>> plan = rule.plan(torch.tensor([7]), torch.tensor([[3, 1, 2]]), nats, blend_size=2)
        >>> plan.clusters.tolist(), plan.levels.tolist()
        ([[1, 3]], [[15, 5]])
        """
        posterior = torch.softmax(-objectives.double() / self.temperature, 1)
        heaviest = posterior.topk(blend_size, 1)
        levels = quantize(heaviest.values)
        chosen = clusters.gather(1, heaviest.indices)
        # Without weight any cluster will do; the first is live and looked up anyway.
        return CodePlan(entities, chosen.where(levels > 0, chosen[:, :1]), levels)


def plan_codes(
    table: ClusteredTable,
    loss: SampleLoss,
    found: StatisticsPass,
    entities: Tensor,
    blend_size: int,
    *,
    rule: BlendRule,
    reassign_rule: ReassignRule,
    max_bytes: int,
) -> CodePlan:
    """Compute the codes of entities anew, from the table's prior and exactly the samples given.

    loss : the samples, which may look up other entities as well
    found : a pass over the same samples; of its statistics none is needed
    entities : int64 (E,) ascending
    blend_size : m >= 1; no more clusters than are live are mixed
    reassign_rule : the weight of the prior, and how candidates are found where there are many
    max_bytes : larger sets of entities are processed in blocks
    cost : a pass over the samples per block, each sample evaluated once per candidate. Where
        samples look up several entities of the table, losses are estimates to second order.
    """
    live = table.live_clusters()
    penalties = reassign_rule.penalties(table.prior_sizes[live])  # (K,)
    penalty_of = penalties.new_zeros(table.max_clusters).index_copy_(0, live, penalties)
    blend_size = min(check_count("m", blend_size, at_least=1, at_most=MAX_BLEND), live.numel())
    loss.rows_have_changed()  # below every entity is in one cluster alone
    count = found.count[entities]
    unseen = entities[count == 0]
    rows = table.weight.detach()[live].to(penalties.dtype)
    nearest, weights = nearest_blend(rows, torch.softmax(-penalties, 0) @ rows, blend_size)
    plans = [CodePlan.shared(unseen, live[nearest], weights)]
    num_columns = live.numel()
    if rule.num_candidates is not None:
        num_columns = min(num_columns, max(rule.num_candidates, blend_size))
    block_bytes = bytes_per_entity(table.embedding_dim) + 4 * 8 * num_columns
    for block in entities[count > 0].split(max(1, max_bytes // block_bytes)):
        if found.is_interacting:
            clusters, losses = _estimated(table, loss, block, live, reassign_rule)
        elif num_columns == live.numel():
            clusters = live.expand(block.numel(), -1)
            losses = proposal_losses(table, loss, block, live)[:, 1:]
        else:
            clusters, estimates = _estimated(table, loss, block, live, reassign_rule)
            best = (estimates + penalties).topk(num_columns, 1, largest=False).indices
            clusters = clusters.gather(1, best)
            losses = proposal_losses(table, loss, block, clusters)[:, 1:]
        priors = penalty_of[clusters]
        plans.append(rule.plan(block, clusters, losses + priors, blend_size))
    return CodePlan.joined(plans)


def nearest_blend(rows: Tensor, target: Tensor, blend_size: int) -> tuple[Tensor, Tensor]:
    """A mix of a few rows that is near a vector, found greedily.

    rows : float (K, D)      target : (D,)
    blend_size : m in [1, K]
    returns : int64 (m,) positions, the heaviest first, and their weights, (m,), which sum to 1

    Source: Frank and Wolfe's algorithm over the simplex of weights, with exact line search; after m
    different rows only these are taken.

    >>> rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [9.0, 9.0]])
    >>> nearest_blend(rows, torch.tensor([0.25, 0.0]), blend_size=2)
    (tensor([0, 1]), tensor([0.7500, 0.2500]))
    """
    first = int((rows - target).square().sum(1).argmin())
    weights = rows.new_zeros(len(rows))
    weights[first] = 1
    mix = rows[first].clone()
    for _ in range(_MIX_STEPS):
        towards = rows - mix  # (K, D)
        length = towards.square().sum(1)
        along = towards @ (target - mix)
        share = (along / length.clamp_min(torch.finfo(rows.dtype).tiny)).clamp(0, 1)
        fall = 2 * share * along - share.square() * length  # of the squared distance
        if int((weights > 0).sum()) >= blend_size:
            fall.masked_fill_(weights == 0, 0)
        best = int(fall.argmax())
        if not fall[best] > 0:
            break
        weights *= 1 - share[best]
        weights[best] += share[best]
        mix += share[best] * towards[best]
    heaviest = weights.topk(blend_size)
    return heaviest.indices.where(heaviest.values > 0, heaviest.indices[0]), heaviest.values


def _estimated(
    table: ClusteredTable,
    loss: SampleLoss,
    entities: Tensor,
    live: Tensor,
    rule: ReassignRule,
) -> tuple[Tensor, Tensor]:
    """Every live cluster, (E, K), and the loss of the entity in it up to a constant, (E, K)."""
    found = collect_statistics(table, loss, entities)
    vectors = table.look_up(entities).detach()
    estimates = rule.estimates(found.statistics, vectors, table.weight.detach()[live])
    return live.expand(entities.numel(), -1), torch.cat(list(estimates)).double()


def members_with_data(table: ClusteredTable, count: Tensor) -> Tensor:
    """How many entities with data each row has, int64 (K_max,).

    count : int64 (N,)   samples of every entity
    """
    return cluster_sizes(unpack(table.cluster_of)[count > 0], table.max_clusters)
