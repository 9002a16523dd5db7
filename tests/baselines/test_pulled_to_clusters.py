"""What eTREE and joint k-means share: vectors are drawn to the centroids that will serve."""

from __future__ import annotations

import pytest
import torch

from celrec.baselines.contract import Occurrences
from celrec.baselines.joint_kmeans import JointKMeansEmbedding
from celrec.baselines.pulled_to_clusters import PulledToClusters
from celrec.baselines.tree_regularized import TreeRegularizedEmbedding

KINDS = pytest.mark.parametrize("cls", [JointKMeansEmbedding, TreeRegularizedEmbedding])


def seen(num_entities: int, label: float = 1.0) -> Occurrences:
    """Entity e occurs e times."""
    ids = torch.arange(num_entities)
    entity = ids.repeat_interleave(ids)
    return Occurrences(
        entity, torch.zeros_like(entity), torch.full((len(entity),), label), num_entities, 1
    )


@KINDS
def test_the_extra_loss_is_the_mean_squared_distance_to_the_rows(
    cls: type[PulledToClusters],
) -> None:
    table = cls(40, 6, num_rows=4)
    table.see(seen(40))
    table(torch.tensor([1, 2]))
    assert table.extra_loss() == 0.0, "there are no clusters before the first epoch ends"
    table.after_epoch(1, 10)
    ids = torch.tensor([3, 30, 3])
    vectors = table(ids)
    distances = (vectors - table.rows[table.row_ids(ids)]).square().sum(1)
    torch.testing.assert_close(table.extra_loss(), float(table.pull) * distances.mean())


@KINDS
def test_the_pull_moves_vectors_nearer(cls: type[PulledToClusters]) -> None:
    table = cls(60, 6, num_rows=3)
    table.after_epoch(1, 2)
    ids = torch.arange(60)

    def spread() -> float:
        return float((table(ids) - table.rows[table.row_ids(ids)]).square().sum().detach())

    before = spread()
    optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
    for _ in range(30):
        table(ids)
        optimizer.zero_grad()
        loss = table.extra_loss()
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        optimizer.step()
    assert spread() < before


@KINDS
def test_the_padding_entity_is_not_drawn(cls: type[PulledToClusters]) -> None:
    table = cls(20, 4, num_rows=2, padding_idx=0)
    table.after_epoch(1, 2)
    table(torch.tensor([0, 5]))
    loss = table.extra_loss()
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    assert table.weight.grad is not None
    assert not table.weight.grad[0].any()
    assert table.weight.grad[5].any()


@KINDS
def test_evaluation_sees_the_rows_that_will_serve(cls: type[PulledToClusters]) -> None:
    table = cls(50, 6, num_rows=4)
    ids = torch.arange(50)
    table.after_epoch(1, 2)
    assert len(table(ids).unique(dim=0)) == 50
    table.eval()
    assert len(table(ids).unique(dim=0)) == 4
    table.train()
    table.finish()
    assert len(table(ids).unique(dim=0)) == 4


@KINDS
def test_ratings_pull_harder_than_clicks(cls: type[PulledToClusters]) -> None:
    """Squared error has eight times the curvature of cross-entropy."""
    pulls = []
    for label in (1.0, 4.0):
        table = cls(20, 4, num_rows=2)
        table.see(seen(20, label))
        table.after_epoch(1, 2)
        pulls.append(float(table.pull))
    assert pulls[1] == pytest.approx(8 * pulls[0])


@KINDS
def test_only_rows_and_ids_are_left_in_the_end(cls: type[PulledToClusters]) -> None:
    table = cls(1000, 8, num_rows=16)
    table.see(seen(1000))
    table.after_epoch(1, 2)
    table.finish()
    memory = table.memory()
    assert (memory.table_bytes, memory.code_bytes, memory.sleeping_bytes) == (512, 500, 0)
