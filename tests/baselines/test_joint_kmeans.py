"""JointKMeansEmbedding: vectors are trained to be where they will be put."""

from __future__ import annotations

import torch
from torch import Tensor

from celrec.baselines.contract import Occurrences
from celrec.baselines.joint_kmeans import JointKMeansEmbedding
from celrec.baselines.post_hoc_kmeans import KMeansEmbedding


def target() -> Tensor:
    """Two groups of vectors that differ in four numbers, and noise in four others."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(200, 8, generator=generator)
    vectors[:, :4] = torch.tensor([1.0, -1.0])[torch.arange(200) % 2].unsqueeze(1)
    return vectors


def moved_by_finishing(table: KMeansEmbedding) -> float:
    """The mean squared distance that vectors go from the end of training to serving."""
    ids, vectors = torch.arange(200), target()
    optimizer = torch.optim.Adam(table.parameters(), lr=0.02)
    for epoch in range(1, 13):
        for _ in range(20):
            optimizer.zero_grad()
            loss = (table(ids) - vectors).square().mean() + table.extra_loss()
            loss.backward()
            optimizer.step()
        table.after_epoch(epoch, 12)
    before = table.weight.detach().clone()
    table.finish()
    return float((table(ids) - before).square().mean())


def test_less_is_left_to_move_than_after_training_without() -> None:
    joint, after = (
        moved_by_finishing(cls(200, 8, num_rows=4))
        for cls in (JointKMeansEmbedding, KMeansEmbedding)
    )
    assert joint < 0.7 * after


def test_rows_are_means_by_occurrence() -> None:
    table = JointKMeansEmbedding(30, 4, num_rows=3)
    ids = torch.arange(30)
    entity = ids.repeat_interleave(ids)  # entity e occurs e times
    others = torch.zeros_like(entity)
    table.see(Occurrences(entity, others, torch.ones(len(entity)), 30, 1))
    weight = table.weight.detach().clone()
    for epoch in range(1, 10):
        table.after_epoch(epoch, 9)
    table.finish()
    counts = ids.clamp_min(1).float().unsqueeze(1)
    for row in range(3):
        own = table.row_ids(ids) == row
        mean = (counts * weight)[own].sum(0) / counts[own].sum()
        torch.testing.assert_close(table.rows[row], mean, rtol=1e-4, atol=1e-4)


def test_the_joint_pull_grows_evenly_in_its_logarithm() -> None:
    table = JointKMeansEmbedding(4, 2, num_rows=2)
    pulls = torch.tensor([table.pull_after(epoch, 8) for epoch in range(1, 9)])
    ratios = pulls[1:] / pulls[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(7))
    assert ratios[0] > 1
