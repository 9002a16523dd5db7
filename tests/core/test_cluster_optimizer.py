"""Rounds over whole models: planted clusters, optimizer state, degenerate input."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from celrec import (
    ClusteredEmbedding,
    ClusteredEmbeddingBag,
    ClusterOptimizer,
    ClusterSchedule,
    GainSplit,
    PaperSplit,
    ReassignRule,
)
from celrec.errors import ArgumentError, LossError, SampleError


class DotProduct(nn.Module):
    def __init__(self, users: nn.Module, items: nn.Module) -> None:
        super().__init__()
        self.users, self.items = users, items

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return (self.users(users) * self.items(items)).sum(-1)


def planted(num_users: int, num_items: int, num_clusters: int, noise: float, seed: int) -> Any:
    """Ratings whose mean depends on the cluster of the user and of the item alone."""
    generator = torch.Generator().manual_seed(seed)
    user_cluster = torch.arange(num_users) % num_clusters
    item_cluster = torch.arange(num_items) % num_clusters
    centres = torch.randn(2, num_clusters, 4, generator=generator)
    users = torch.randint(num_users, (60 * num_users,), generator=generator)
    items = torch.randint(num_items, (60 * num_users,), generator=generator)
    mean = (centres[0][user_cluster[users]] * centres[1][item_cluster[items]]).sum(1)
    ratings = mean + noise * torch.randn(mean.shape, generator=generator)
    return users, items, ratings, user_cluster, item_cluster


def train_planted(data: Any, **options: Any) -> tuple[DotProduct, float]:
    torch.manual_seed(0)
    users, items, ratings, user_cluster, item_cluster = data
    model = DotProduct(
        ClusteredEmbedding(len(user_cluster), 4, max_clusters=4),
        ClusteredEmbedding(len(item_cluster), 4, max_clusters=4),
    )
    for table in (model.users, model.items):
        nn.init.uniform_(table.weight, 0, 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    def per_sample_loss(batch: tuple[Tensor, ...]) -> Tensor:
        return (model(batch[0], batch[1]) - batch[2]).square() / 0.5

    clusters = ClusterOptimizer(
        model, optimizer, per_sample_loss, ClusterSchedule(growth_rounds=4), **options
    )
    batches = list(zip(users.split(256), items.split(256), ratings.split(256), strict=True))
    for _ in range(14):
        for batch in batches:
            optimizer.zero_grad()
            per_sample_loss(batch).mean().backward()
            optimizer.step()
        clusters.round(batches)
    with torch.no_grad():
        return model, float((model(users, items) - ratings).square().mean())


def test_planted_clusters_are_recovered() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    data = planted(120, 80, 4, noise=0.3, seed=1)
    model, error = train_planted(data)
    assert error < 0.3**2 * 1.1
    assert metrics.adjusted_rand_score(data[3], model.users.cluster_ids()) >= 0.98
    assert metrics.adjusted_rand_score(data[4], model.items.cluster_ids()) >= 0.98


def test_the_papers_rules_recover_them_as_well() -> None:
    data = planted(120, 80, 4, noise=0.3, seed=1)
    rule = ReassignRule(num_proposals=None, prior_weight=0.0)
    _, error = train_planted(data, split_rule=PaperSplit(cut="median"), reassign_rule=rule)
    assert error < 0.3**2 * 1.2


def test_children_that_start_as_copies_are_not_undone_by_the_prior() -> None:
    data = planted(120, 80, 4, noise=0.3, seed=1)
    model, error = train_planted(data, split_rule=PaperSplit(cut="median"))
    assert model.users.num_clusters == 4
    assert error < 0.3**2 * 1.2


def test_blocks_under_a_byte_limit_recover_them_as_well() -> None:
    data = planted(120, 80, 4, noise=0.3, seed=1)
    _, error = train_planted(data, max_statistics_bytes=56 * 50)  # 50 entities at a time
    assert error < 0.3**2 * 1.1


def optimizers_for_embeddings() -> list[type[torch.optim.Optimizer]]:
    """All of torch.optim but L-BFGS, whose state is no state per element, and SparseAdam."""
    others = {torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam}
    return [
        cls
        for _, cls in inspect.getmembers(torch.optim, inspect.isclass)
        if issubclass(cls, torch.optim.Optimizer) and cls not in others
    ]


def split_once(table: ClusteredEmbedding, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Train a little, split in a round, and return the rows of the parent and the child."""
    ids = torch.arange(8).repeat(4)
    target = torch.where(ids < 3, 1.0, -1.0)

    def per_sample_loss(batch: Any) -> Tensor:
        return (table(batch[0]).sum(1) - batch[1]).square()

    for _ in range(3):
        optimizer.zero_grad()
        per_sample_loss((ids, target)).mean().backward()
        optimizer.step()
    events = ClusterOptimizer(
        table, optimizer, per_sample_loss, ClusterSchedule(growth_rounds=1)
    ).round([(ids, target)])
    (split,) = [event for event in events if event.kind == "split"]
    return split.cluster, split.new_cluster


@pytest.mark.parametrize("make", optimizers_for_embeddings(), ids=lambda cls: cls.__name__)
def test_a_new_row_inherits_its_parents_optimizer_state(make: Any) -> None:
    torch.manual_seed(0)
    table = ClusteredEmbedding(8, 3, max_clusters=2)
    optimizer = make(table.parameters(), lr=0.01)
    if make is torch.optim.Adafactor:
        with pytest.warns(UserWarning, match="Adafactor keeps col_var for table '' in a shape"):
            parent, child = split_once(table, optimizer)
    else:
        parent, child = split_once(table, optimizer)
    per_row = [
        state
        for state in optimizer.state[table.weight].values()
        if isinstance(state, Tensor) and state.shape[:1] == (2,)
    ]
    assert per_row or make is torch.optim.SGD
    for state in per_row:
        assert torch.equal(state[parent], state[child])


def test_sparse_adam_follows_splits_too() -> None:
    table = ClusteredEmbedding(8, 3, max_clusters=2, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.01)
    parent, child = split_once(table, optimizer)
    assert torch.equal(*optimizer.state[table.weight]["exp_avg"][[parent, child]])


def test_the_parameter_keeps_its_identity() -> None:
    table = ClusteredEmbedding(8, 3, max_clusters=2)
    weight, storage = table.weight, table.weight.data_ptr()
    split_once(table, torch.optim.SGD(table.parameters(), lr=0.1))
    assert table.weight is weight
    assert table.weight.data_ptr() == storage


def simple(table: Any) -> Any:
    return lambda batch: table(batch).square().sum(-1)


def test_losses_that_mix_samples_are_refused() -> None:
    table = ClusteredEmbedding(8, 3, max_clusters=2)
    ids = torch.arange(8)

    def in_batch_negatives(batch: Tensor) -> Tensor:
        vectors = table(batch) + batch.unsqueeze(1)
        return F.cross_entropy(vectors @ vectors.T, torch.arange(len(batch)), reduction="none")

    with pytest.raises(LossError, match=r"mixes samples.*select="):
        ClusterOptimizer(table, None, in_batch_negatives).round([ids])


def test_batch_normalization_is_seen_in_evaluation_mode_and_training_mode_is_restored() -> None:
    model = nn.Sequential(ClusteredEmbedding(8, 3, max_clusters=2), nn.BatchNorm1d(3))
    model[1].weight.requires_grad_(False)
    model.train()
    ClusterOptimizer(model, None, lambda ids: model(ids).square().sum(1)).round([torch.arange(8)])
    assert model.training
    assert model[1].training
    assert int(model[1].num_batches_tracked) == 0


def test_steps_that_raise_the_loss_are_taken_back() -> None:
    """A squared error far from nats: its squared gradients are far below its curvature."""
    torch.manual_seed(0)
    table = ClusteredEmbedding.from_pretrained(
        torch.tensor([[1.0, 1.0]]), torch.zeros(8, dtype=torch.long), max_clusters=4, freeze=False
    )
    ids = torch.arange(8).repeat(500)
    target = 2 + 0.01 * torch.where(ids < 3, 1.0, -1.0)

    def per_sample_loss(batch: Any) -> Tensor:
        return (table(batch[0]).sum(1) - batch[1]).square()

    rule = GainSplit(eta=1.0, damping=1e-9)
    clusters = ClusterOptimizer(
        table, None, per_sample_loss, ClusterSchedule(growth_rounds=1), split_rule=rule
    )
    before = per_sample_loss((ids, target)).sum().item()
    with pytest.warns(UserWarning, match=r"raised the loss .* were taken back.*in nats\?"):
        clusters.round([(ids, target)])
    assert table.num_clusters == 2
    assert per_sample_loss((ids, target)).sum().item() <= before * (1 + 1e-6)


class Dropping:
    """A loader that gives other samples each time, as many."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Any:
        yield torch.randint(8, (6,), generator=self.generator)


@pytest.mark.parametrize("max_clusters", [4, 8])  # full, and about to split
def test_a_loader_that_gives_other_samples_is_named(max_clusters: int) -> None:
    torch.manual_seed(0)
    table = ClusteredEmbedding.from_pretrained(
        torch.randn(4, 3), torch.arange(8) % 4, max_clusters=max_clusters
    )
    with pytest.raises(SampleError, match="'Dropping' saw different samples"):
        ClusterOptimizer(table, None, simple(table)).round(Dropping())


def test_batches_that_can_be_read_once_are_refused() -> None:
    table = ClusteredEmbedding(8, 3, max_clusters=2)
    with pytest.raises(SampleError, match="generator, which can be read only once"):
        ClusterOptimizer(table, None, simple(table)).round(x for x in [torch.arange(8)])


def test_a_table_that_is_never_looked_up_is_skipped_with_a_message() -> None:
    used, idle = (ClusteredEmbedding(8, 3, max_clusters=2) for _ in range(2))
    model = nn.ModuleDict({"used": used, "idle": idle})
    clusters = ClusterOptimizer(model, None, simple(used), ClusterSchedule(growth_rounds=1))
    with pytest.warns(UserWarning, match="'idle' is never looked up"):
        events = clusters.round([torch.arange(8)])
    assert [e.table for e in events if e.kind == "skip"] == ["idle"]
    assert "split" in {e.kind for e in events if e.table == "used"} or used.num_clusters == 1
    clusters.round([torch.arange(8)])  # and does not warn again


def test_an_empty_loader_is_a_skip_too() -> None:
    table = ClusteredEmbedding(8, 3, max_clusters=2)
    with pytest.warns(UserWarning, match="never looked up"):
        assert ClusterOptimizer(table, None, simple(table)).round([])[0].kind == "skip"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_overflowed_are_an_error_that_names_the_table(bad: float) -> None:
    model = nn.ModuleDict({"users": ClusteredEmbedding(8, 3, max_clusters=2)})
    with torch.no_grad():
        model["users"].weight.fill_(bad)
    with pytest.raises(LossError, match=r"(nan|inf) for sample 0 .* table 'users'"):
        ClusterOptimizer(model, None, simple(model["users"])).round([torch.arange(8)])


def test_a_model_without_clustered_tables_is_refused() -> None:
    with pytest.raises(ArgumentError, match="Embedding has no ClusteredEmbedding"):
        ClusterOptimizer(nn.Embedding(3, 2), None, simple(None))


def test_zero_gradients_and_full_tables_change_nothing() -> None:
    table = ClusteredEmbedding(8, 3, max_clusters=4)
    clusters = ClusterOptimizer(table, None, lambda ids: table(ids).sum(1) * 0)
    assert clusters.round([torch.arange(8)]) == []
    full = ClusteredEmbedding.from_pretrained(torch.zeros(2, 3), torch.arange(8) % 2)
    clusters = ClusterOptimizer(full, None, simple(full))
    assert {event.kind for event in clusters.round([torch.arange(8)])} == {"move"}
    assert full.num_clusters == 2


def test_a_bag_with_offsets_trains_with_select() -> None:
    torch.manual_seed(0)
    table = ClusteredEmbeddingBag(30, 4, max_clusters=4, mode="sum")
    bags = [torch.randint(30, (3,)) for _ in range(64)]
    target = torch.stack([(bag % 3 == 0).sum() * 1.0 for bag in bags])

    def batch_of(positions: list[int]) -> Any:
        chosen = [bags[i] for i in positions]
        starts = torch.tensor([0] + [len(bag) for bag in chosen[:-1]]).cumsum(0)
        return torch.cat(chosen), starts, target[positions], positions

    def select(batch: Any, positions: Tensor) -> Any:
        return batch_of([batch[3][i] for i in positions.tolist()])

    def per_sample_loss(batch: Any) -> Tensor:
        return (table(batch[0], batch[1]).sum(1) - batch[2]).square()

    clusters = ClusterOptimizer(
        table, None, per_sample_loss, ClusterSchedule(growth_rounds=2), select=select
    )
    batches = [batch_of(list(range(32))), batch_of(list(range(32, 64)))]
    with torch.no_grad():
        before = sum(float(per_sample_loss(batch).sum()) for batch in batches)
    for _ in range(8):
        events = clusters.round(batches)
    with torch.no_grad():
        after = sum(float(per_sample_loss(batch).sum()) for batch in batches)
    assert after < before
    assert {event.round for event in events} <= {7}


def test_state_resumes_the_schedule_and_the_generator() -> None:
    table = ClusteredEmbedding(8, 3, max_clusters=2)
    one = ClusterOptimizer(table, None, simple(table))
    one.round([torch.arange(8)])
    two = ClusterOptimizer(table, None, simple(table), seed=5)
    two.load_state_dict(one.state_dict())
    assert two.num_rounds == 1
    assert torch.equal(two.generator.get_state(), one.generator.get_state())
