"""Blended codes: an entity's vector as a weighted mix of a few rows.

Which cluster is an entity in? Its own samples answer with a posterior over all clusters, and hard
codes keep only the best. A blend keeps the best m and their probabilities: rows that are fitted to
crowds are mixed into a vector that fits one entity, at 1.5 m bytes.

    p_k  proportional to  exp(-(L_e(k) - log prior_k) / T)

L_e(k) is the true loss of the entity's samples were it in cluster k, in nats; the prior is cluster
popularity, as in reassign.py. An entity's own data count twice, for the rows were fitted to them:
the temperature T > 1 corrects for that. An entity without data gets the prior itself.

New entities have few samples, and their posterior is spread over many clusters: its best m say
little of its mean. So their code is the mix of m rows that is nearest to that mean (NearestBlend);
docs/results/cold-start.md has the figures. Of entities that rows were fitted to, the best m did as
well on likes, and better on ratings.

Not in the paper, which has one cluster for each entity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from celrec.core.codes import MAX_BLEND, cluster_sizes, unpack, weighed
from celrec.core.mixing import nearest_blend, nearest_blends
from celrec.core.reassign import ReassignRule, proposal_losses
from celrec.core.recording import SampleLoss
from celrec.core.statistics import StatisticsPass, bytes_per_entity, collect_statistics
from celrec.errors import ArgumentError, check_count, check_number

if TYPE_CHECKING:
    from celrec.core.embedding import ClusteredTable

_MIXED_AT_A_TIME = 1 << 11  # entities with candidates of their own: 64 x 64 numbers for each


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
        parts = weighed(clusters, weights)
        return CodePlan(entities, *(part.expand(entities.numel(), -1) for part in parts))

    @staticmethod
    def of(entities: Tensor, clusters: Tensor, positions: Tensor, weights: Tensor) -> CodePlan:
        """Codes of m among C clusters.

        clusters : int64 (E, C)      positions : int64 (E, m), in [0, C), the heaviest first
        weights : float (E, m)
        """
        return CodePlan(entities, *weighed(clusters.gather(1, positions), weights))

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
        self,
        entities: Tensor,
        clusters: Tensor,
        objectives: Tensor,
        rows: Tensor,
        blend_size: int,
    ) -> CodePlan:
        """Turn objectives into codes.

        entities : int64 (E,)
        clusters : int64 (E, C)   candidates
        objectives : float (E, C)   loss - log prior of each, in nats; inf for none
        rows : float (K_max, D)   of the table
        blend_size : m in [1, C]

        >>> rule = BlendRule(temperature=1.0)
        >>> nats = -torch.tensor([[0.25, 0.75, 0.0]]).log()
        >>> some = torch.tensor([7]), torch.tensor([[3, 1, 2]])
        >>> plan = rule.plan(*some, nats, rows=torch.eye(4), blend_size=2)
        >>> plan.clusters.tolist(), plan.levels.tolist()
        ([[1, 3]], [[15, 5]])
        """
        posterior = torch.softmax(-objectives.double() / self.temperature, 1)
        return self.code(entities, clusters, posterior, rows, blend_size)

    def code(
        self, entities: Tensor, clusters: Tensor, posterior: Tensor, rows: Tensor, blend_size: int
    ) -> CodePlan:
        """The heaviest clusters of posteriors, double (E, C); arguments as for `plan`."""
        heaviest = posterior.topk(blend_size, 1)
        return CodePlan.of(entities, clusters, heaviest.indices, heaviest.values)


@dataclass(frozen=True, kw_only=True)
class NearestBlend(BlendRule):
    """The mix of m rows that is nearest to the posterior mean: for entities with little data.

    temperature : near 1, for rows were not fitted to these entities
    """

    temperature: float = 2.0

    def code(
        self, entities: Tensor, clusters: Tensor, posterior: Tensor, rows: Tensor, blend_size: int
    ) -> CodePlan:
        """Mix the heaviest clusters, 64 at most, so that the mean is met.

        >>> rows = torch.tensor([[0.0], [4.0], [9.0]])
        >>> spread = torch.tensor([[0.4, 0.2, 0.4]]).double()  # of mean 4.4
        >>> some = torch.tensor([7]), torch.tensor([[0, 1, 2]])
        >>> NearestBlend().code(*some, spread, rows, blend_size=1).clusters.tolist()
        [[1]]
        """
        rows = rows.to(posterior.dtype)
        is_shared = len(clusters) > 0 and clusters.stride(0) == 0  # the same for all
        if is_shared and clusters.shape[1] <= MAX_BLEND:
            candidates = rows[clusters[0]]
            found = nearest_blends(candidates.unsqueeze(0), posterior @ candidates, blend_size)
            return CodePlan.of(entities, clusters, *found)
        plans = []
        for some in torch.arange(len(entities), device=rows.device).split(_MIXED_AT_A_TIME):
            theirs, weights = clusters[some], posterior[some]
            target = torch.einsum("ec,ecd->ed", weights, rows[theirs])
            if theirs.shape[1] > MAX_BLEND:
                theirs = theirs.gather(1, weights.topk(MAX_BLEND, 1).indices)
            found = nearest_blends(rows[theirs], target, blend_size)
            plans.append(CodePlan.of(entities[some], theirs, *found))
        return CodePlan.joined(plans)


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
    prior: Tensor | None = None,
) -> CodePlan:
    """Compute the codes of entities anew, from a prior and exactly the samples given.

    loss : the samples, which may look up other entities as well
    found : a pass over the same samples; of its statistics none is needed
    entities : int64 (E,) ascending
    blend_size : m >= 1; no more clusters than are live are mixed
    reassign_rule : the weight of the prior, and how candidates are found where there are many
    max_bytes : larger sets of entities are processed in blocks
    prior : float (E, K_max), of each entity; None: the table's, which is cluster popularity
    cost : a pass over the samples per block, each sample evaluated once per candidate. Where
        samples look up several entities of the table, losses are estimates to second order.
    """
    live = table.live_clusters()
    penalties = reassign_rule.penalties(table.prior_sizes[live])  # (K,)
    blend_size = min(check_count("m", blend_size, at_least=1, at_most=MAX_BLEND), live.numel())
    loss.rows_have_changed()  # below every entity is in one cluster alone
    count = found.count[entities]
    all_rows = table.weight.detach()
    plans = []
    num_columns = live.numel()
    if rule.num_candidates is not None:
        num_columns = min(num_columns, max(rule.num_candidates, blend_size))
    block_bytes = bytes_per_entity(table.row_dim) + 4 * 8 * num_columns
    block_size = max(1, max_bytes // block_bytes)

    unseen = (count == 0).nonzero().flatten()
    if prior is None:
        rows = all_rows[live].to(penalties.dtype)
        nearest, weights = nearest_blend(rows, torch.softmax(-penalties, 0) @ rows, blend_size)
        plans.append(CodePlan.shared(entities[unseen], live[nearest], weights))
    else:
        mean_rule = NearestBlend()
        for some in unseen.split(block_size):
            clusters = live.expand(some.numel(), -1)
            theirs = prior[some][:, live].double()
            plans.append(mean_rule.code(entities[some], clusters, theirs, all_rows, blend_size))

    seen = count.nonzero().flatten()
    for some in seen.split(block_size) if seen.numel() else ():
        block = entities[some]
        if prior is not None:
            penalties = -prior[some][:, live].double().log()
        theirs = penalties.expand(some.numel(), -1)  # (E, K)
        if found.is_interacting:
            clusters, losses = _estimated(table, loss, block, live, reassign_rule)
        elif num_columns == live.numel():
            clusters = live.expand(block.numel(), -1)
            losses = proposal_losses(table, loss, block, live)[:, 1:]
        else:
            clusters, estimates = _estimated(table, loss, block, live, reassign_rule)
            best = (estimates + theirs).topk(num_columns, 1, largest=False).indices
            clusters, theirs = clusters.gather(1, best), theirs.gather(1, best)
            losses = proposal_losses(table, loss, block, clusters)[:, 1:]
        plans.append(rule.plan(block, clusters, losses + theirs, all_rows, blend_size))
    return CodePlan.joined(plans)


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


def checked_prior(table: ClusteredTable, prior: Tensor, num_entities: int) -> Tensor:
    """A prior of entities over clusters, scaled so that each line sums to 1 over live ones.

    prior : float (E, K_max) >= 0
    raises : ArgumentError
    """
    wanted = (num_entities, table.max_clusters)
    if prior.shape != wanted or not prior.is_floating_point():
        raise ArgumentError(
            f"prior has shape {tuple(prior.shape)} and type {prior.dtype}; wanted floats of shape "
            f"{wanted}: a line per entity, a column per row of the table"
        )
    prior = prior.double() * (table.born_at >= 0)
    total = prior.sum(1, keepdim=True)
    is_bad = ~((prior >= 0).all(1) & (total > 0).squeeze(1) & total.isfinite().squeeze(1))
    if bool(is_bad.any()):
        line = int(is_bad.nonzero()[0])
        raise ArgumentError(
            f"line {line} of prior gives live clusters {prior[line].tolist()}; wanted finite "
            "numbers of at least 0, with one above"
        )
    return prior / total


def members_with_data(table: ClusteredTable, count: Tensor) -> Tensor:
    """How many entities with data each row has, int64 (K_max,).

    count : int64 (N,)   samples of every entity
    """
    return cluster_sizes(unpack(table.cluster_of)[count > 0], table.max_clusters)
