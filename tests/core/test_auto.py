"""`max_clusters="auto"`: splits pay, merges save, noise stays together, planted counts come out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from celrec import (
    ClusteredEmbedding,
    ClusteredEmbeddingBag,
    ClusterOptimizer,
    ClusterSchedule,
    ReassignRule,
)
from celrec.core.description_length import naming_cost
from celrec.core.merge import MergeCandidates, plan_merges
from celrec.core.row_cost import split_row_costs
from celrec.core.statistics import ClusterFisher
from celrec.errors import ArgumentError
from tests.core.test_cluster_optimizer import DotProduct, planted


class Fixed:
    """Entities whose samples are normal around a mean of their own group; nothing else trains."""

    def __init__(self, group_of: Tensor, centres: Tensor, per_entity: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.arange(len(group_of)).repeat(per_entity)
        mean = centres[group_of[self.ids]]
        self.wanted = mean + torch.randn(mean.shape, generator=generator)
        self.batches = list(zip(self.ids.split(128), self.wanted.split(128), strict=True))

    def losses(self, table: nn.Module) -> Any:
        return lambda batch: 0.5 * (table(batch[0]) - batch[1]).square().sum(-1)

    def fisher(self, table: ClusteredEmbedding) -> ClusterFisher:
        gradient = (table(self.ids) - self.wanted).detach().double()
        clusters = table.cluster_ids()[self.ids]
        fisher = torch.zeros(table.max_clusters, *2 * [table.embedding_dim], dtype=torch.float64)
        fisher.index_add_(0, clusters, gradient.unsqueeze(2) * gradient.unsqueeze(1))
        return ClusterFisher(fisher, clusters.bincount(minlength=table.max_clusters).double())

    def description_length(self, table: ClusteredEmbedding, fisher: ClusterFisher) -> float:
        """The slow, obvious way: every entity in every cluster.

        fisher : of the rows when they were measured; their samples may be others now
        """
        live = table.live_clusters()
        rows = table.weight.detach()[live].double()
        loss = 0.5 * (rows.unsqueeze(1) - self.wanted.double()).square().sum(2)  # (K, n)
        of_entity = torch.zeros(len(live), table.num_embeddings, dtype=torch.float64)
        of_entity.index_add_(1, self.ids, loss)
        seen = self.ids.bincount(minlength=table.num_embeddings)
        clusters = table.cluster_ids()
        members = clusters[seen > 0].bincount(minlength=table.max_clusters)[live].double()
        samples = clusters[self.ids].bincount(minlength=table.max_clusters)[live].double()
        share = (members / members.sum()).log().unsqueeze(1)
        names_and_data = -torch.logsumexp(share - of_entity, 0)[seen > 0].sum()
        scale = (samples / fisher.count[live]).reshape(-1, 1, 1)
        return float(names_and_data) + slow_row_cost(fisher.fisher[live] * scale, rows)


def slow_row_cost(curvature: Tensor, rows: Tensor) -> float:
    """min over s of sum_k 1/2 log det(1 + s H_k) + |w_k - mean|^2 / (2 s), of K rows."""
    spread = (rows - rows.mean(0)).square().sum()
    if not spread > 1e-9 * rows.square().sum():
        return 0.0
    identity = torch.eye(rows.shape[1], dtype=torch.float64)
    costs = [
        0.5 * torch.logdet(identity + s * curvature).sum() + spread / (2 * s)
        for s in spread * torch.logspace(-5, 2, 400, dtype=torch.float64)
    ]
    return float(min(costs))


def fixed_rounds(table: ClusteredEmbedding, data: Fixed, num_rounds: int) -> list[Any]:
    """Rounds with rows trained to rest between them; returns the events of each."""
    optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
    clusters = ClusterOptimizer(table, optimizer, data.losses(table))
    found = []
    for _ in range(num_rounds):
        train_to_rest(table, data)
        found.append(clusters.round(data.batches))
    return found


def train_to_rest(table: ClusteredEmbedding, data: Fixed) -> None:
    """Put every row at the mean of its samples, the least loss."""
    clusters = table.cluster_ids()[data.ids]
    sums = torch.zeros_like(table.weight).index_add_(0, clusters, data.wanted)
    counts = clusters.bincount(minlength=table.max_clusters).unsqueeze(1)
    with torch.no_grad():
        table.weight.copy_((sums / counts).where(counts > 0, table.weight))


def is_whole(table: Any) -> bool:
    """Whether every entity is in exactly one live cluster, and every live cluster has members."""
    is_live = table.born_at >= 0
    sizes = table.cluster_sizes()
    return (
        bool(is_live[table.cluster_ids()].all())
        and int(sizes.sum()) == table.num_clustered_entities
        and bool((sizes > 0).eq(is_live).all())
    )


# --- the table -----------------------------------------------------------------------------------


def test_a_table_knows_that_it_is_auto() -> None:
    table = ClusteredEmbedding(1000, 4, max_clusters="auto")
    assert (table.is_auto, table.max_clusters) == (True, 256)
    assert copy.deepcopy(table).is_auto
    assert "max_clusters='auto', num_clusters=1" in repr(table)
    assert ClusteredEmbeddingBag(9, 4, max_clusters="auto").max_clusters == 9
    assert not ClusteredEmbedding(9, 4, max_clusters=9).is_auto
    dense = ClusteredEmbedding.from_dense(torch.randn(9, 2), max_clusters="auto")
    assert (dense.is_auto, dense.num_clusters) == (True, 9)


def test_another_word_is_refused() -> None:
    with pytest.raises(ArgumentError, match="max_clusters is 'many'; wanted an integer or 'auto'"):
        ClusteredEmbedding(9, 4, max_clusters="many")  # type: ignore[arg-type]


# --- splits --------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    num_entities=st.integers(2, 60),
    num_groups=st.integers(1, 4),
    spread=st.floats(0.0, 3.0),
    per_entity=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_no_split_is_committed_whose_gain_is_below_its_cost(
    num_entities: int, num_groups: int, spread: float, per_entity: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(num_groups, (num_entities,), generator=generator)
    centres = spread * torch.randn(num_groups, 2, generator=generator)
    data = Fixed(groups, centres, per_entity, seed)
    table = ClusteredEmbedding(num_entities, 2, max_clusters="auto")
    clusters = ClusterOptimizer(table, None, data.losses(table))
    for _ in range(4):
        train_to_rest(table, data)
        num_before = table.num_clusters
        events = clusters.round(data.batches)
        for event in events:
            if event.kind == "split":
                sides = torch.tensor(event.entities.numel()), torch.tensor(event.num_staying)
                assert event.gain > event.cost > float(naming_cost(*sides))
            if event.kind == "merge":
                assert event.change < 0
        assert is_whole(table)
        assert table.num_clusters <= 2 * num_before


@settings(max_examples=25)
@given(
    num_rows=st.integers(1, 6),
    width=st.integers(1, 4),
    log_scale=st.floats(-4.0, 4.0),
    seed=st.integers(0, 2**31),
)
def test_a_split_costs_what_it_adds_to_the_rows(
    num_rows: int, width: int, log_scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(num_rows, 20, width, dtype=torch.float64, generator=generator)
    curvature = gradients.mT @ gradients
    rows = 10**log_scale * torch.randn(
        num_rows + 2, width, dtype=torch.float64, generator=generator
    )
    count = torch.full((num_rows,), 20.0, dtype=torch.float64)
    going = torch.randint(1, 20, (num_rows,), generator=generator)
    every_row = torch.arange(num_rows)
    costs = split_row_costs(
        ClusterFisher(curvature, count),
        rows[:-2],
        every_row,
        every_row,
        rows[-2].expand(num_rows, -1),
        rows[-1].expand(num_rows, -1),
        going,
    )
    before = slow_row_cost(curvature, rows[:-2])
    for k in range(num_rows):
        others = every_row != k
        share = going[k] / 20
        divided = torch.stack([curvature[k] * (1 - share), curvature[k] * share])
        after = slow_row_cost(
            torch.cat([curvature[others], divided]), torch.cat([rows[:-2][others], rows[-2:]])
        )
        # The variances tried end where one coordinate is determined: rows of less cost about 0.
        assert float(costs[k]) == pytest.approx(after - before, rel=0.01, abs=1.0)


def test_a_direction_that_no_sample_sees_costs_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(2, 20, 3, dtype=torch.float64, generator=generator)
    rows = torch.randn(4, 3, generator=generator)
    two, count = torch.arange(2), torch.full((2,), 20.0, dtype=torch.float64)

    def costs(gradients: Tensor, rows: Tensor) -> Tensor:
        fisher = ClusterFisher(gradients.mT @ gradients, count)
        return split_row_costs(fisher, rows[:2], two, two, rows[[2, 2]], rows[[3, 3]], count / 4)

    wider = F.pad(gradients, (0, 5)), F.pad(rows, (0, 5))
    torch.testing.assert_close(costs(*wider), costs(gradients, rows), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("task", ["squared error", "cross-entropy"])
def test_noise_stays_in_one_cluster(task: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    users = torch.randint(150, (4000,), generator=generator)
    items = torch.randint(60, (4000,), generator=generator)
    label = torch.randn(4000, generator=generator)
    if task == "cross-entropy":
        label = (label > 0.5).float()
    model = DotProduct(
        ClusteredEmbedding(150, 4, max_clusters="auto"),
        ClusteredEmbedding(60, 4, max_clusters="auto"),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    def per_sample_loss(batch: tuple[Tensor, ...]) -> Tensor:
        prediction = model(batch[0], batch[1])
        if task == "cross-entropy":
            return F.binary_cross_entropy_with_logits(prediction, batch[2], reduction="none")
        return (prediction - batch[2]).square() / (2 * variance)

    batches = list(zip(users.split(500), items.split(500), label.split(500), strict=True))
    clusters = ClusterOptimizer(model, optimizer, per_sample_loss)
    for _ in range(8):
        with torch.no_grad():
            variance = float((model(users, items) - label).square().mean())
        clusters.round(batches)
        assert model.users.num_clusters == model.items.num_clusters == 1
        for batch in batches:
            optimizer.zero_grad()
            per_sample_loss(batch).mean().backward()
            optimizer.step()


def test_planted_clusters_give_the_planted_count() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    users, items, ratings, user_cluster, item_cluster = planted(120, 80, 4, noise=0.3, seed=1)
    torch.manual_seed(0)
    model = DotProduct(
        ClusteredEmbedding(120, 4, max_clusters="auto"),
        ClusteredEmbedding(80, 4, max_clusters="auto"),
    )
    for table in (model.users, model.items):
        nn.init.uniform_(table.weight, 0, 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    variance = 1.0

    def per_sample_loss(batch: tuple[Tensor, ...]) -> Tensor:
        return (model(batch[0], batch[1]) - batch[2]).square() / (2 * variance)

    clusters = ClusterOptimizer(model, optimizer, per_sample_loss)
    batches = list(zip(users.split(256), items.split(256), ratings.split(256), strict=True))
    for _ in range(16):
        for batch in batches:
            optimizer.zero_grad()
            per_sample_loss(batch).mean().backward()
            optimizer.step()
        with torch.no_grad():
            variance = float((model(users, items) - ratings).square().mean())
        clusters.round(batches)
    assert (model.users.num_clusters, model.items.num_clusters) == (4, 4)
    assert metrics.adjusted_rand_score(user_cluster, model.users.cluster_ids()) == 1
    assert metrics.adjusted_rand_score(item_cluster, model.items.cluster_ids()) == 1


def test_a_fixed_point_is_reached_at_the_planted_count() -> None:
    groups = torch.arange(90) % 5
    centres = 3 * torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    data = Fixed(groups, centres, per_entity=20, seed=0)
    table = ClusteredEmbedding(90, 3, max_clusters="auto")
    rounds = fixed_rounds(table, data, 12)
    for events in rounds[-3:]:
        assert {event.kind for event in events} == {"move"}
        assert sum(event.entities.numel() for event in events) == 0
    assert table.num_clusters == 5


def test_bags_split_where_their_sums_pay() -> None:
    torch.manual_seed(0)
    table = ClusteredEmbeddingBag(40, 2, max_clusters="auto", mode="sum")
    bags = torch.randint(40, (1500, 3))
    target = torch.where(bags % 2 == 0, 1.0, -1.0).sum(1) + 0.3 * torch.randn(1500)

    def per_sample_loss(batch: Any) -> Tensor:
        return (table(batch[0]).sum(1) - batch[1]).square() / (2 * variance)

    variance = 1.0
    optimizer = torch.optim.Adam(table.parameters(), lr=0.05)
    clusters = ClusterOptimizer(table, optimizer, per_sample_loss)
    batches = list(zip(bags.split(300), target.split(300), strict=True))
    for _ in range(12):
        for batch in 4 * batches:
            optimizer.zero_grad()
            per_sample_loss(batch).mean().backward()
            optimizer.step()
        with torch.no_grad():
            variance = float((table(bags).sum(1) - target).square().mean())
        clusters.round(batches)
        assert is_whole(table)
    assert table.num_clusters == 2
    sides = table.cluster_ids()[::2].unique(), table.cluster_ids()[1::2].unique()
    assert [len(side) for side in sides] == [1, 1]


# --- merges --------------------------------------------------------------------------------------


def test_duplicates_of_a_planted_cluster_are_merged() -> None:
    groups = torch.arange(60) % 2
    data = Fixed(groups, torch.tensor([[2.0, 0.0], [-2.0, 0.0]]), per_entity=20, seed=3)
    four = (torch.arange(60) % 4).clone()  # clusters 0 and 2 are one group, 1 and 3 the other
    table = ClusteredEmbedding.from_pretrained(
        torch.zeros(4, 2), four, freeze=False, max_clusters="auto"
    )
    events = [event for part in fixed_rounds(table, data, 4) for event in part]
    assert table.num_clusters == 2
    assert len({int(k) for k in table.cluster_ids()[groups == 0]}) == 1
    merged = [event.cluster for event in events if event.kind == "merge"]
    assert merged
    assert set(merged) <= {event.cluster for event in events if event.kind == "reclaim"}


@settings(max_examples=15)
@given(
    num_entities=st.integers(4, 50),
    num_clusters=st.integers(2, 6),
    spread=st.floats(0.0, 2.0),
    seed=st.integers(0, 2**31),
    unseen=st.booleans(),
)
def test_a_merge_never_raises_the_description_length(
    num_entities: int, num_clusters: int, spread: float, seed: int, unseen: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(3, (num_entities,), generator=generator)
    data = Fixed(groups, spread * torch.randn(3, 2, generator=generator), 6, seed)
    total = num_entities + 3 * unseen
    clusters = torch.randint(num_clusters, (total,), generator=generator)
    clusters[num_entities:] = clusters[0]
    clusters = clusters.unique(return_inverse=True)[1]
    table = ClusteredEmbedding.from_pretrained(
        torch.randn(int(clusters.max()) + 1, 2, generator=generator),
        clusters,
        freeze=False,
        max_clusters="auto",
    )
    rule = ReassignRule(num_proposals=None)
    train_to_rest(table, data)
    optimizer = ClusterOptimizer(table, None, data.losses(table), reassign_rule=rule)
    optimizer.num_splits = lambda table: 0  # type: ignore[method-assign]
    start, fisher = copy.deepcopy(table), data.fisher(table)
    before = data.description_length(table, fisher)
    cluster_before = table.cluster_ids()
    events = optimizer.round(data.batches)
    merges = [event for event in events if event.kind == "merge"]
    for event in merges:
        cluster_before[cluster_before == event.cluster] = event.to_cluster.mode().values
        cluster_before[event.entities] = event.to_cluster
    start.codes = cluster_before.unsqueeze(1).to(table.codes.dtype)
    start.reclaim_empty()
    promised = before + sum(event.change for event in merges)
    assert data.description_length(start, fisher) == pytest.approx(promised, rel=1e-4, abs=0.5)
    assert sum(event.change for event in merges) <= 0
    assert is_whole(table)


def candidates(cluster: list[int], target: list[int], rise: float) -> MergeCandidates:
    """Entities of 10 samples each, whose loss rises if they go to the one other cluster."""
    zeros = torch.zeros(len(cluster), dtype=torch.float64)
    return MergeCandidates(
        torch.arange(len(cluster)),
        torch.full((len(cluster),), 10),
        torch.stack([torch.tensor(cluster), torch.tensor(target)], 1),
        torch.stack([zeros, zeros + rise], 1),
        zeros,
    )


def test_merges_planned_together_do_not_touch() -> None:
    fisher = ClusterFisher(10 * torch.eye(2, dtype=torch.float64).repeat(4, 1, 1), torch.ones(4))
    rows = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    plan = plan_merges(candidates([0, 0, 1, 1, 2, 3], [1, 1, 0, 0, 0, 2], 0.1), fisher, rows)
    gone = {merge.cluster for merge in plan.merges}
    assert gone
    assert not gone & {int(k) for merge in plan.merges for k in merge.to_cluster}
    far = plan_merges(candidates([0, 0, 1, 1, 2, 3], [1, 1, 0, 0, 0, 2], 99.0), fisher, rows)
    assert far.merges == ()


def test_optimizer_state_follows_a_reused_row() -> None:
    groups = torch.arange(40) % 2
    data = Fixed(groups, torch.tensor([[3.0, 0.0], [-3.0, 0.0]]), per_entity=20, seed=1)
    table = ClusteredEmbedding.from_pretrained(  # 0 and 1 are duplicates that hold both groups
        torch.zeros(2, 2), torch.arange(40) // 20, freeze=False, max_clusters="auto"
    )
    optimizer = torch.optim.Adam(table.parameters(), lr=0.01)
    clusters = ClusterOptimizer(table, optimizer, data.losses(table), ClusterSchedule())
    data.losses(table)(data.batches[0]).mean().backward()
    optimizer.step()
    train_to_rest(table, data)
    events = clusters.round(data.batches)
    (merge,) = [event for event in events if event.kind == "merge"]
    (split,) = [event for event in events if event.kind == "split"]
    assert merge.cluster == split.new_cluster
    state = optimizer.state[table.weight]
    assert torch.equal(state["exp_avg"][split.cluster], state["exp_avg"][split.new_cluster])


# --- levels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ClusteredEmbedding, ClusteredEmbeddingBag])
def test_a_level_is_the_clustering_of_that_moment(make: Any) -> None:
    data = Fixed(torch.arange(64) % 8, 4 * torch.randn(8, 3), per_entity=10, seed=0)
    table = make(65, 3, max_clusters=8, padding_idx=64)
    per_sample_loss = data.losses(
        table if make is ClusteredEmbedding else lambda ids: table(ids.unsqueeze(1))
    )
    clusters = ClusterOptimizer(table, None, per_sample_loss, ClusterSchedule(growth_rounds=3))
    moments = [table.cluster_ids()]
    for _ in range(3):
        for event in clusters.round(data.batches):
            if event.kind == "split":
                moments.append(moments[-1].clone())
                moments[-1][event.entities] = event.new_cluster
    for num_clusters in range(1, table.num_clusters + 1):
        level = table.at_level(num_clusters)
        assert type(level) is make
        assert level.num_clusters == num_clusters
        assert int(level.cluster_sizes().sum()) == 64
        assert bool((level.cluster_sizes()[level.live_clusters()] > 0).all())
        for cluster in level.live_clusters().tolist():
            members = level.cluster_ids() == cluster
            mean = table.to_dense()[members].mean(0)
            torch.testing.assert_close(level.weight.detach()[cluster], mean)
        fine = table.cluster_ids()[:64]
        coarse = level.cluster_ids()[:64]
        for cluster in table.live_clusters():
            assert len(coarse[fine == cluster].unique()) <= 1  # levels are nested
        make(65, 3, max_clusters=8, padding_idx=64).load_state_dict(level.state_dict())
    torch.testing.assert_close(table.at_level(table.num_clusters).to_dense(), table.to_dense())


def test_a_level_out_of_range_is_named() -> None:
    table = ClusteredEmbedding.from_pretrained(torch.eye(2), torch.tensor([0, 1, 1]))
    with pytest.raises(ArgumentError, match="num_clusters is 3; wanted an integer"):
        table.at_level(3)
