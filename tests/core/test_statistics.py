"""Statistics equal sums taken one sample at a time, whatever the layout of the look-ups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from celrec.core.embedding import ClusteredEmbedding, ClusteredEmbeddingBag
from celrec.core.recording import SampleLoss
from celrec.core.statistics import collect_statistics
from celrec.errors import LossError, SampleError
from tests.reference import entity_statistics


def loss_of(table: Any, function: Any, batches: Any, sample_of: Any = None) -> SampleLoss:
    loss = SampleLoss(function, batches)
    loss.look_at("table", sample_of)
    return loss


def reference_statistics(table: Any, pooled: Any, ids: list[list[int]], targets: Tensor) -> Any:
    """One sample at a time, with a dense table of its own for each look-up's gradient."""
    gradients = []
    for sample, target in zip(ids, targets, strict=True):
        vectors = table.to_dense()[sample].requires_grad_(True)
        loss = (pooled(vectors) - target).square().sum()
        gradient = torch.autograd.grad(loss, vectors)[0]
        gradients.append(
            [(e, g) for e, g in zip(sample, gradient, strict=True) if e != table.padding_idx]
        )
    return entity_statistics(gradients, table.num_embeddings, table.embedding_dim)


@given(
    num_samples=st.integers(1, 12),
    per_sample=st.integers(1, 3),
    padding=st.one_of(st.none(), st.just(0)),
    batch_size=st.integers(1, 12),
    kind=st.sampled_from(["embedding", "bag", "offsets"]),
    seed=st.integers(0, 2**31),
)
def test_sums_equal_those_of_single_samples(
    num_samples: int, per_sample: int, padding: int | None, batch_size: int, kind: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, clusters = torch.randn(3, 2, generator=generator), torch.arange(7) % 3
    ids = torch.randint(7, (num_samples, per_sample), generator=generator)
    targets = torch.randn(num_samples, 2, generator=generator)
    make: Any = ClusteredEmbedding if kind == "embedding" else ClusteredEmbeddingBag
    options = {} if kind == "embedding" else {"mode": "sum"}
    table = make.from_pretrained(rows, clusters, padding_idx=padding, **options)

    def per_sample_loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        some_ids, wanted = batch
        if kind == "embedding":
            pooled = table(some_ids).sum(1)
        elif kind == "bag":
            pooled = table(some_ids)
        else:
            offsets = torch.arange(0, some_ids.numel(), per_sample)
            pooled = table(some_ids.flatten(), offsets)
        return (pooled - wanted).square().sum(1)

    batches = list(zip(ids.split(batch_size), targets.split(batch_size), strict=True))
    found = collect_statistics(table, loss_of(table, per_sample_loss, batches))
    g, h, n = reference_statistics(table, lambda v: v.sum(0), ids.tolist(), targets)
    assert torch.equal(found.count, n)
    entities = found.statistics.entities
    assert entities.tolist() == n.nonzero().flatten().tolist()
    torch.testing.assert_close(found.statistics.gradient, g[entities], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.statistics.curvature, h[entities], rtol=1e-4, atol=1e-4)
    kept = [[e for e in sample if e != padding] for sample in ids.tolist()]
    assert found.is_interacting == any(len(set(sample)) > 1 for sample in kept)


@given(seed=st.integers(0, 2**31), block_size=st.integers(1, 9))
def test_blocks_join_to_the_whole(seed: int, block_size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = ClusteredEmbedding(9, 2, max_clusters=3)
    ids = torch.randint(9, (20,), generator=generator)

    def per_sample_loss(batch: Tensor) -> Tensor:
        return table(batch).square().sum(1)

    whole = collect_statistics(table, loss_of(table, per_sample_loss, [ids])).statistics
    blocks = [
        collect_statistics(table, loss_of(table, per_sample_loss, [ids]), block).statistics
        for block in torch.arange(9).split(block_size)
    ]
    for name in ("entities", "count", "gradient", "curvature"):
        joined = torch.cat([getattr(block, name) for block in blocks])
        assert torch.equal(joined, getattr(whole, name))


def test_several_look_ups_of_one_sample_are_summed_before_squaring() -> None:
    table = ClusteredEmbedding(4, 1, max_clusters=2)

    def per_sample_loss(batch: Tensor) -> Tensor:
        return (table(batch) + 2 * table(batch)).sum(1)  # dl/dx = 1 + 2

    found = collect_statistics(table, loss_of(table, per_sample_loss, [torch.tensor([3])]))
    assert found.statistics.gradient.item() == 3
    assert found.statistics.curvature.item() == 9
    assert not found.is_interacting


def test_another_layout_needs_sample_of() -> None:
    table = ClusteredEmbedding(4, 1, max_clusters=2)

    def time_first(batch: Tensor) -> Tensor:
        return table(batch.T).sum(0).squeeze(1)  # the look-up has shape (steps, B)

    batch = torch.tensor([[0, 1], [2, 3], [0, 3]])
    with pytest.raises(
        SampleError, match=r"first axis of 2, but the batch has 3 samples.*sample_of="
    ):
        collect_statistics(table, loss_of(table, time_first, [batch]))
    sample_of = lambda ids: torch.arange(ids.shape[1]).expand(ids.shape)  # noqa: E731
    found = collect_statistics(table, loss_of(table, time_first, [batch], sample_of))
    assert found.count.tolist() == [2, 1, 1, 2]
    assert found.is_interacting


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_table(bad: float) -> None:
    table = ClusteredEmbedding(4, 1, max_clusters=2)

    def per_sample_loss(batch: Tensor) -> Tensor:
        return table(batch).sum(1) * torch.tensor([1.0, bad])

    with pytest.raises(
        LossError, match=r"(nan|inf) for sample 1 .* table 'table'; check the labels"
    ):
        collect_statistics(table, loss_of(table, per_sample_loss, [torch.tensor([0, 1])]))


def test_a_gradient_that_is_not_finite_names_the_table() -> None:
    table = ClusteredEmbedding.from_pretrained(torch.zeros(2, 1), torch.tensor([0, 1]))
    with pytest.raises(LossError, match="gradient is not, in the round of table 'table'"):
        collect_statistics(
            table, loss_of(table, lambda b: table(b).sum(1).sqrt(), [torch.tensor([0])])
        )


def test_a_loss_that_is_already_averaged_is_refused() -> None:
    table = ClusteredEmbedding(4, 1, max_clusters=2)
    with pytest.raises(LossError, match=r"wanted a tensor of shape \(B,\)"):
        collect_statistics(table, loss_of(table, lambda b: table(b).mean(), [torch.tensor([0])]))


def test_any_model_can_be_looked_into_unchanged() -> None:
    torch.manual_seed(0)
    table = ClusteredEmbedding(6, 4, max_clusters=3)
    model = nn.Sequential(table, nn.Flatten(), nn.Linear(12, 5), nn.GELU(), nn.Linear(5, 2))

    def per_sample_loss(batch: Any) -> Tensor:
        return F.cross_entropy(model(batch["ids"]), batch["label"], reduction="none")

    ids = torch.randint(6, (10, 3))
    batch = {"ids": ids, "label": torch.randint(2, (10,))}
    found = collect_statistics(table, loss_of(table, per_sample_loss, [batch]))
    assert int(found.count.sum()) == sum(len(set(line)) for line in ids.tolist())
    assert all(parameter.grad is None for parameter in model.parameters())
