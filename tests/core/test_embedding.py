"""The contract of `nn.Embedding`: a clustered table equals one whose rows are tied by cluster."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from celrec.core.codes import code_dtype, pack, unpack
from celrec.core.embedding import ClusteredEmbedding, ClusteredEmbeddingBag
from celrec.errors import ArgumentError, DtypeError, EntityIdError
from tests.reference import tied_dense


def random_table(
    num_entities: int, width: int, num_clusters: int, seed: int, **options: Any
) -> ClusteredEmbedding:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_clusters, width, generator=generator)
    clusters = torch.randint(num_clusters, (num_entities,), generator=generator)
    return ClusteredEmbedding.from_pretrained(rows, clusters, freeze=False, **options)


def tied_twin(table: ClusteredEmbedding, **options: Any) -> nn.Embedding:
    dense = tied_dense(table.weight.detach(), table.cluster_ids().tolist())
    return nn.Embedding.from_pretrained(dense, freeze=False, **options)


def rows_gradient(table: ClusteredEmbedding, dense_gradient: torch.Tensor) -> torch.Tensor:
    """What the gradient of the tied table says of each row."""
    expected = torch.zeros_like(table.weight)
    for entity, cluster in enumerate(table.cluster_ids().tolist()):
        if cluster >= 0:
            expected[cluster] += dense_gradient[entity]
    return expected


@given(
    shape=st.lists(st.integers(0, 4), min_size=0, max_size=3),
    num_entities=st.integers(3, 30),
    num_clusters=st.integers(1, 6),
    padding=st.one_of(st.none(), st.integers(-3, 2)),
    scale=st.booleans(),
    int32=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_forward_and_backward_equal_a_tied_table(
    shape: list[int],
    num_entities: int,
    num_clusters: int,
    padding: int | None,
    scale: bool,
    int32: bool,
    seed: int,
) -> None:
    num_clusters = min(num_clusters, num_entities - 1)
    options = {"padding_idx": padding, "scale_grad_by_freq": scale}
    table = random_table(num_entities, 3, num_clusters, seed, **options)
    twin = tied_twin(table, **options)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(num_entities, shape, generator=generator)
    ids = ids.int() if int32 else ids
    ours, theirs = table(ids), twin(ids)
    assert torch.equal(ours, theirs)
    upstream = torch.randn(ours.shape, generator=generator)
    ours.backward(upstream)
    theirs.backward(upstream)
    assert twin.weight.grad is not None
    gradient = torch.zeros_like(table.weight) if table.weight.grad is None else table.weight.grad
    torch.testing.assert_close(gradient, rows_gradient(table, twin.weight.grad))


@given(norm_type=st.sampled_from([1.0, 2.0, 3.0]), seed=st.integers(0, 2**31))
def test_max_norm_shortens_looked_up_rows_as_a_tied_table_does(norm_type: float, seed: int) -> None:
    table = random_table(9, 4, 4, seed, max_norm=0.7, norm_type=norm_type)
    twin = tied_twin(table, max_norm=0.7, norm_type=norm_type)
    ids = torch.tensor([0, 3, 3, 8])
    torch.testing.assert_close(table(ids), twin(ids))
    torch.testing.assert_close(table.to_dense()[ids], twin.weight.detach()[ids])


def test_sparse_gradients_equal_dense_ones() -> None:
    sparse, dense = random_table(9, 4, 3, 0, sparse=True), random_table(9, 4, 3, 0)
    ids = torch.tensor([0, 3, 3, 8])
    for table in (sparse, dense):
        (table(ids) ** 2).sum().backward()
    assert sparse.weight.grad is not None
    assert sparse.weight.grad.is_sparse
    torch.testing.assert_close(sparse.weight.grad.to_dense(), dense.weight.grad)


@given(
    mode=st.sampled_from(["sum", "mean", "max"]),
    layout=st.sampled_from(["2d", "offsets", "last_offset"]),
    padding=st.one_of(st.none(), st.integers(0, 8)),
    weighted=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_bags_equal_tied_bags(
    mode: str, layout: str, padding: int | None, weighted: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(4, 3, generator=generator)
    clusters = torch.randint(4, (9,), generator=generator)
    last = layout == "last_offset"
    table = ClusteredEmbeddingBag.from_pretrained(
        rows, clusters, freeze=False, mode=mode, padding_idx=padding, include_last_offset=last
    )
    dense = tied_dense(rows, table.cluster_ids().tolist())
    twin = nn.EmbeddingBag.from_pretrained(
        dense, freeze=False, mode=mode, padding_idx=padding, include_last_offset=last
    )
    ids = torch.randint(9, (3, 4), generator=generator)
    offsets = None
    if layout != "2d":
        ids = ids.flatten()
        offsets = torch.tensor([0, 5, 5, 12] if last else [0, 5, 5])
    weights = torch.rand(ids.shape, generator=generator) if weighted and mode == "sum" else None
    ours, theirs = table(ids, offsets, weights), twin(ids, offsets, weights)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn(ours.shape, generator=generator)
    ours.backward(upstream)
    theirs.backward(upstream)
    expected = torch.zeros_like(rows)
    for entity, cluster in enumerate(table.cluster_ids().tolist()):
        if cluster >= 0:
            expected[cluster] += twin.weight.grad[entity]
    torch.testing.assert_close(table.weight.grad, expected)


@pytest.mark.parametrize("num_clusters", [2, 256, 257, 65_536, 65_537])
def test_codes_take_the_fewest_bytes_and_lose_nothing(num_clusters: int) -> None:
    ids = torch.tensor([0, 1, num_clusters // 2, num_clusters - 1])
    codes = pack(ids, code_dtype(num_clusters))
    assert torch.equal(unpack(codes), ids)
    assert codes.element_size() == (
        1 if num_clusters <= 256 else 2 if num_clusters <= 65_536 else 4
    )


@pytest.mark.parametrize("bad", [-1, 10, 1 << 40])
@pytest.mark.parametrize("make", [ClusteredEmbedding, ClusteredEmbeddingBag])
def test_an_id_out_of_range_is_named(make: Any, bad: int) -> None:
    table = make(10, 4, max_clusters=3)
    with pytest.raises(EntityIdError, match=rf"id {bad} at position 3 .*\[0, 10\)"):
        table(torch.tensor([[0, 1], [2, bad]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bool])
def test_ids_of_another_type_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(DtypeError, match=r"ids has type torch\.\w+; wanted torch.int64"):
        ClusteredEmbedding(10, 4, max_clusters=3)(torch.zeros(2, dtype=dtype))


@pytest.mark.parametrize(
    ("max_clusters", "message"),
    [
        (0, "max_clusters is 0"),
        (1, "max_clusters is 1.*wanted 2 or more"),
        (11, "max_clusters is 11, more than the 10 entities"),
        (2.5, "max_clusters is 2.5; wanted an integer"),
    ],
)
def test_impossible_cluster_counts_are_refused(max_clusters: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ClusteredEmbedding(10, 4, max_clusters=max_clusters)


def test_the_padding_entity_leaves_room_for_one_cluster_less() -> None:
    ClusteredEmbedding(10, 4, max_clusters=9, padding_idx=0)
    with pytest.raises(ArgumentError, match="more than the 9 entities"):
        ClusteredEmbedding(10, 4, max_clusters=10, padding_idx=0)


def test_the_padding_entity_has_no_cluster_and_no_size() -> None:
    table = random_table(6, 2, 3, 1, padding_idx=-1)
    assert table.padding_idx == 5
    assert int(table.cluster_ids()[5]) == -1
    assert int(table.cluster_sizes().sum()) == 5
    assert not table.to_dense()[5].any()


@given(num_entities=st.integers(3, 40), num_clusters=st.integers(1, 8), seed=st.integers(0, 999))
def test_state_dict_round_trips(num_entities: int, num_clusters: int, seed: int) -> None:
    num_clusters = min(num_clusters, num_entities)
    table = random_table(num_entities, 3, num_clusters, seed, max_clusters=max(2, num_clusters))
    other = ClusteredEmbedding(num_entities, 3, max_clusters=table.max_clusters)
    other.load_state_dict(table.state_dict())
    assert torch.equal(other.to_dense(), table.to_dense())
    assert other.num_clusters == num_clusters


def test_a_state_dict_whose_codes_and_clusters_disagree_is_refused() -> None:
    table = random_table(6, 2, 3, 0)
    state = table.state_dict()
    state["born_at"] = torch.tensor([0, -1, -1])
    with pytest.raises(RuntimeError, match="points at a cluster that born_at says is asleep"):
        ClusteredEmbedding(6, 2, max_clusters=3).load_state_dict(state)


def test_deepcopy_and_dtype_and_autocast_behave_as_in_torch() -> None:
    table = random_table(6, 2, 3, 0)
    ids = torch.arange(6)
    clone = copy.deepcopy(table)
    with torch.no_grad():
        clone.weight.add_(1)
    assert not torch.equal(clone(ids), table(ids))
    assert table.to(torch.bfloat16)(ids).dtype == torch.bfloat16
    assert table.cluster_of.dtype == torch.uint8
    half = ClusteredEmbedding(6, 2, max_clusters=3, dtype=torch.float16)
    assert half(ids).dtype == torch.float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert clone(ids).dtype == nn.Embedding(6, 2)(ids).dtype
    assert ClusteredEmbedding(6, 2, max_clusters=3, device="meta").weight.is_meta


def test_compiles_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    table = random_table(20, 4, 3, 0)
    compiled = torch.compile(table, fullgraph=True, backend="eager")
    ids = torch.tensor([[1, 2], [3, 4]])
    assert torch.equal(compiled(ids), table(ids))


@given(
    num_distinct=st.integers(1, 5),
    num_entities=st.integers(6, 30),
    padding=st.one_of(st.none(), st.integers(0, 5)),
    seed=st.integers(0, 999),
)
def test_from_dense_keeps_few_distinct_vectors_exactly(
    num_distinct: int, num_entities: int, padding: int | None, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(num_distinct, 3, generator=generator)
    dense = vectors[torch.randint(num_distinct, (num_entities,), generator=generator)]
    table = ClusteredEmbedding.from_dense(dense, max_clusters=5, padding_idx=padding)
    if padding is not None:
        dense[padding] = 0
    assert torch.equal(table.to_dense(), dense)


def test_from_dense_is_about_as_near_as_k_means() -> None:
    k_means = pytest.importorskip("sklearn.cluster").KMeans
    dense = torch.from_numpy(np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32))
    ours = ClusteredEmbedding.from_dense(dense, max_clusters=32)
    error = float((ours.to_dense() - dense).square().sum())
    theirs = k_means(32, n_init=1, random_state=0).fit(dense.numpy()).inertia_
    assert error <= 1.03 * theirs


def test_from_pretrained_names_an_entity_without_a_row() -> None:
    with pytest.raises(ArgumentError, match="entity 2 is in cluster 7, but there are only 2 rows"):
        ClusteredEmbedding.from_pretrained(torch.eye(2), torch.tensor([0, 1, 7]))


def test_repr_says_what_differs_from_the_defaults() -> None:
    table = random_table(6, 2, 3, 0, padding_idx=0, max_norm=1.0, sparse=True)
    assert repr(table) == (
        "ClusteredEmbedding(6, 2, max_clusters=3, num_clusters=3, padding_idx=0, max_norm=1.0, "
        "sparse=True)"
    )
    assert "mode='max'" in repr(ClusteredEmbeddingBag(6, 2, max_clusters=3, mode="max"))


def test_bags_refuse_what_they_cannot_match() -> None:
    with pytest.raises(ArgumentError, match="cannot scale them per entity"):
        ClusteredEmbeddingBag(6, 2, max_clusters=3, scale_grad_by_freq=True)
    with pytest.raises(ArgumentError, match="mode is 'median'"):
        ClusteredEmbeddingBag(6, 2, max_clusters=3, mode="median")
