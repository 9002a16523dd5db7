"""Reassignment: true losses decide, the objective never rises, nobody is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from celrec.core.cluster_optimizer import ClusterOptimizer
from celrec.core.embedding import ClusteredEmbedding
from celrec.core.events import MoveEvent
from celrec.core.reassign import ReassignRule
from celrec.core.statistics import EntityStatistics
from celrec.errors import ArgumentError
from tests.reference import log_prior, objective


def moves_of(events: list[Any]) -> list[MoveEvent]:
    return [event for event in events if event.kind == "move" and event.reason == "data"]


def one_hot_problem(
    num_entities: int, num_clusters: int, num_samples: int, seed: int
) -> tuple[ClusteredEmbedding, Tensor, Tensor]:
    """A full table whose rows are unit vectors, so that losses[j, k] is sample j's loss in k."""
    generator = torch.Generator().manual_seed(seed)
    table = ClusteredEmbedding.from_pretrained(
        torch.eye(num_clusters), torch.randint(num_clusters, (num_entities,), generator=generator)
    )
    entity_of = torch.randint(num_entities, (num_samples,), generator=generator)
    losses = 3 * torch.rand(num_samples, num_clusters, generator=generator)
    return table, entity_of, losses


@given(
    num_entities=st.integers(4, 12),
    num_clusters=st.integers(2, 4),
    num_samples=st.integers(1, 60),
    num_proposals=st.one_of(st.none(), st.integers(1, 4)),
    correlation_rank=st.integers(0, 5),
    prior_weight=st.sampled_from([0.0, 1.0, 2.0]),
    batch_size=st.integers(1, 60),
    block_bytes=st.sampled_from([1, 300, 1 << 30]),
    seed=st.integers(0, 2**31),
)
def test_the_objective_never_rises_and_is_what_the_event_says(
    num_entities: int,
    num_clusters: int,
    num_samples: int,
    num_proposals: int | None,
    correlation_rank: int,
    prior_weight: float,
    batch_size: int,
    block_bytes: int,
    seed: int,
) -> None:
    table, entity_of, losses = one_hot_problem(num_entities, num_clusters, num_samples, seed)
    rule = ReassignRule(
        num_proposals=num_proposals, correlation_rank=correlation_rank, prior_weight=prior_weight
    )
    clusters = ClusterOptimizer(
        table,
        None,
        lambda batch: (table(batch[0]) * batch[1]).sum(1),
        reassign_rule=rule,
        max_statistics_bytes=block_bytes,
    )
    before = table.cluster_ids()
    seen = sorted(set(entity_of.tolist()))
    sizes = torch.bincount(before[seen], minlength=num_clusters).tolist()
    batches = list(zip(entity_of.split(batch_size), losses.split(batch_size), strict=True))
    (moved,) = moves_of(clusters.round(batches))

    after = before.clone()
    after[moved.entities] = moved.to_cluster
    assert torch.equal(table.cluster_ids()[seen], after[seen])
    args = (losses, entity_of.tolist())
    objective_before = objective(*args, before.tolist(), sizes, prior_weight)
    objective_after = objective(*args, after.tolist(), sizes, prior_weight)
    assert moved.objective_before == pytest.approx(objective_before, rel=1e-4)
    assert moved.objective_after == pytest.approx(objective_after, rel=1e-4)
    assert objective_after <= objective_before + 1e-4
    if num_proposals is None:
        prior = torch.tensor(log_prior(sizes))
        for entity in seen:
            totals = losses[entity_of == entity].sum(0) - prior_weight * prior
            assert totals[after[entity]] <= totals.min() + 1e-4


@given(num_samples=st.integers(1, 30), padding=st.booleans(), seed=st.integers(0, 2**31))
def test_where_moves_interact_the_true_objective_still_never_rises(
    num_samples: int, padding: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = ClusteredEmbedding.from_pretrained(
        torch.randn(3, 2, generator=generator),
        torch.randint(3, (8,), generator=generator),
        padding_idx=0 if padding else None,
    )
    ids = torch.randint(8, (num_samples, 3), generator=generator)
    target = torch.randn(num_samples, 2, generator=generator)

    def per_sample_loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return (table(batch[0]).sum(1) - batch[1]).square().sum(1)

    seen = sorted(set(ids.flatten().tolist()) - ({0} if padding else set()))
    sizes = torch.bincount(table.cluster_ids()[seen], minlength=3)
    penalty = ReassignRule().penalties(sizes[sizes >= 0])

    def true_objective() -> float:
        return float(
            per_sample_loss((ids, target)).sum() + penalty[table.cluster_ids()[seen]].sum()
        )

    before = true_objective()
    events = ClusterOptimizer(table, None, per_sample_loss).round([(ids, target)])
    if all((table.cluster_sizes()[table.live_clusters()] > 0).tolist()):
        assert true_objective() <= before + 1e-4
    for moved in moves_of(events):
        assert moved.objective_after <= moved.objective_before


def test_the_prior_holds_rarely_seen_entities_back() -> None:
    """One sample that slightly prefers the rare cluster moves its entity only without a prior."""
    ids = torch.arange(12)
    losses = torch.zeros(12, 2)
    losses[0] = torch.tensor([0.1, 0.0])
    losses[11] = torch.tensor([9.0, 0.0])
    for weight, cluster_of_first in ((0.0, 1), (1.0, 0)):
        table = ClusteredEmbedding.from_pretrained(torch.eye(2), torch.tensor([0] * 11 + [1]))
        rule = ReassignRule(prior_weight=weight)

        def per_sample_loss(batch: Any, table: ClusteredEmbedding = table) -> Tensor:
            return (table(batch[0]) * batch[1]).sum(1)

        ClusterOptimizer(table, None, per_sample_loss, reassign_rule=rule).round([(ids, losses)])
        assert int(table.cluster_ids()[0]) == cluster_of_first
        assert int(table.cluster_ids()[11]) == 1


def test_entities_without_data_end_in_the_largest_cluster_and_are_reported() -> None:
    table = ClusteredEmbedding.from_pretrained(torch.eye(3), torch.tensor([2, 2, 2, 1, 0, 0]))
    cost = torch.tensor([[9.0, 9.0, 0.0]] * 3 + [[9.0, 0.0, 9.0]])
    batch = (torch.tensor([0, 1, 2, 3]), cost)
    events = ClusterOptimizer(table, None, lambda b: (table(b[0]) * b[1]).sum(1)).round([batch])
    assert table.cluster_ids().tolist() == [2, 2, 2, 1, 2, 2]
    (settled,) = [e for e in events if e.kind == "move" and e.reason == "no data"]
    assert settled.entities.tolist() == [4, 5]
    assert [e.cluster for e in events if e.kind == "reclaim"] == [0]
    assert table.live_clusters().tolist() == [1, 2]


def test_a_rule_out_of_range_is_named() -> None:
    with pytest.raises(ArgumentError, match="num_proposals is 0; wanted an integer of at least 1"):
        ReassignRule(num_proposals=0)
    with pytest.raises(ArgumentError, match="prior_weight is -1"):
        ReassignRule(prior_weight=-1)


@given(rank=st.integers(0, 6), seed=st.integers(0, 2**31))
def test_proposals_are_the_best_by_the_full_curvature_of_the_shared_correlations(
    rank: int, seed: int
) -> None:
    """Against the estimate written out with a D x D curvature for each entity."""
    generator = torch.Generator().manual_seed(seed)
    num_entities, num_clusters, width = 7, 5, 4
    g = torch.randn(num_entities, width, generator=generator)
    h = torch.rand(num_entities, width, generator=generator)
    count = torch.ones(num_entities, dtype=torch.long)
    rows = torch.randn(num_clusters, width, generator=generator)
    x = torch.randn(num_entities, width, generator=generator)
    samples = torch.randn(50, width, generator=generator)
    fisher = samples.T @ samples
    present = torch.randint(num_clusters, (num_entities,), generator=generator)
    penalties = torch.rand(num_clusters, generator=generator)
    rule = ReassignRule(num_proposals=3, correlation_rank=rank, damping=0.5)
    statistics = EntityStatistics(torch.arange(num_entities), count, g, h, fisher)
    found = rule.propose(statistics, x, present, rows, penalties)

    spread = fisher.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(fisher / spread / spread.unsqueeze(1))
    kept = min(rank, width)
    low_rank = (vectors[:, width - kept :] * values[width - kept :]) @ vectors[:, width - kept :].T
    correlation = low_rank + torch.diag(1 - low_rank.diagonal())
    for entity in range(num_entities):
        scale = h[entity].sqrt()
        curvature = scale.unsqueeze(1) * correlation * scale + 0.5 * torch.eye(width)
        steps = rows - x[entity]
        estimates = steps @ g[entity] + 0.5 * ((steps @ curvature) * steps).sum(1) + penalties
        estimates[present[entity]] = torch.inf
        assert found[entity].tolist() == estimates.argsort()[:3].tolist()
