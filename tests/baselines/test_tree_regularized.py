"""TreeRegularizedEmbedding places parents between their children and their own parents."""

from __future__ import annotations

import torch

from celrec.baselines.kmeans import k_means
from celrec.baselines.tree_regularized import TreeRegularizedEmbedding


def test_a_parent_stands_where_the_tree_loss_is_least() -> None:
    """Moving any parent anywhere makes children and grandparents together farther."""
    table = TreeRegularizedEmbedding(200, 4, num_rows=9)
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(9, 4, generator=generator)
    sizes = torch.randint(0, 50, (9,), generator=generator).float()
    grandparents, of = k_means(means, 3, table.seed)

    def loss(rows: torch.Tensor) -> float:
        children = sizes * (rows - means).square().sum(1)
        upwards = table.counts.mean() * (rows - grandparents[of]).square().sum(1)
        return float((children + upwards).sum())

    rows = table.placed(means, sizes)
    least = loss(rows)
    for _ in range(20):
        assert loss(rows + 0.1 * torch.randn(9, 4, generator=generator)) > least


def test_a_parent_of_many_children_is_their_mean() -> None:
    table = TreeRegularizedEmbedding(200, 4, num_rows=4)
    means = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    rows = table.placed(means, torch.full((4,), 1e6))
    torch.testing.assert_close(rows, means, rtol=1e-4, atol=1e-4)


def test_planted_families_are_found() -> None:
    families = 5 * torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    table = TreeRegularizedEmbedding(120, 8, num_rows=6)
    with torch.no_grad():
        table.weight.mul_(0.1).add_(families[torch.arange(120) % 6])
    for epoch in range(1, 4):
        table.after_epoch(epoch, 3)
    table.finish()
    found = table.row_ids(torch.arange(120))
    assert len(set(zip((torch.arange(120) % 6).tolist(), found.tolist(), strict=True))) == 6
