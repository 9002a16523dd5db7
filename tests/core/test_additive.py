"""Additive codes: sums of rows, counted and kept bit for bit."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from celrec import ClusteredEmbedding, ClusteredEmbeddingBag
from celrec.checkpoint import load_arrays, load_frozen, save_frozen
from celrec.core.additive import AdditivePlan, plan_additive
from celrec.core.codes import pack_bits, packed_bytes, take_bits

NUM_ENTITIES, WIDTH, NUM_CLUSTERS = 200, 6, 5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planned(
    vectors: Tensor, num_levels: int, *, bits: int = 4, metric: Tensor | None = None
) -> AdditivePlan:
    width = vectors.shape[1]
    return plan_additive(
        vectors,
        torch.ones(len(vectors)),
        torch.eye(width) if metric is None else metric,
        torch.arange(len(vectors)) % NUM_CLUSTERS,
        torch.zeros(NUM_CLUSTERS + 2, width),
        num_levels=num_levels,
        bits=bits,
        generator=torch.Generator().manual_seed(0),
    )


def sums(plan: AdditivePlan) -> Tensor:
    """The vectors that a plan gives, the slow and obvious way."""
    total = plan.rows[plan.clusters].clone()
    for level in range(plan.choices.shape[1]):
        for entity, choice in enumerate(plan.choices[:, level].tolist()):
            total[entity] += plan.level_rows[level, choice]
    return total


def coded(num_levels: int, *, is_packed: bool, bits: int = 4) -> tuple[ClusteredEmbedding, Tensor]:
    """A table with additive codes, and its vectors by the obvious way."""
    plan = planned(drawn(NUM_ENTITIES, WIDTH), num_levels, bits=bits)
    table = ClusteredEmbedding.from_pretrained(
        torch.zeros(NUM_CLUSTERS, WIDTH),
        torch.arange(NUM_ENTITIES) % NUM_CLUSTERS,
        max_clusters=NUM_CLUSTERS + 2,
    )
    table.commit_additive(plan, is_packed=is_packed)
    return table, sums(plan)


def error(vectors: Tensor, plan: AdditivePlan, metric: Tensor) -> float:
    apart = vectors - sums(plan)
    return float(((apart @ metric) * apart).sum())


# --- the plan ------------------------------------------------------------------------------------


def test_every_level_leaves_less() -> None:
    vectors = drawn(NUM_ENTITIES, WIDTH)
    errors = [error(vectors, planned(vectors, levels), torch.eye(WIDTH)) for levels in range(5)]
    assert all(later < 0.8 * earlier for earlier, later in itertools.pairwise(errors))


def test_sums_of_few_rows_are_found_again() -> None:
    """Vectors that are sums of one of 5 and one of 16 far smaller rows lose almost nothing."""
    clusters, level = 100 * drawn(NUM_CLUSTERS, WIDTH), drawn(16, WIDTH, seed=1)
    entity = torch.arange(NUM_ENTITIES)
    vectors = clusters[entity % NUM_CLUSTERS] + level[entity // NUM_CLUSTERS % 16]
    plan = planned(vectors, 2)
    assert error(vectors, plan, torch.eye(WIDTH)) < 0.1 * float(
        level.square().sum(1)[entity // NUM_CLUSTERS % 16].sum()
    )


def test_errors_are_made_where_they_cost_least() -> None:
    vectors = drawn(NUM_ENTITIES, WIDTH)
    steep = torch.diag(torch.tensor([100.0, 1, 1, 1, 1, 1]))
    assert error(vectors, planned(vectors, 2, metric=steep), steep) < 0.6 * error(
        vectors, planned(vectors, 2), steep
    )


def test_a_metric_without_some_directions_still_codes_them() -> None:
    vectors = drawn(NUM_ENTITIES, WIDTH)
    plan = planned(vectors, 3, metric=torch.diag(torch.tensor([1.0, 0, 0, 0, 0, 0])))
    assert sums(plan).isfinite().all()


def test_few_or_equal_vectors_are_no_obstacle() -> None:
    for vectors in (torch.ones(7, 2), drawn(7, 2), torch.zeros(30, 2)):
        plan = planned(vectors, 2)
        torch.testing.assert_close(sums(plan), vectors, atol=1e-3, rtol=1e-3)


# --- bits ----------------------------------------------------------------------------------------


@given(st.data())
def test_bits_come_back_from_any_place(data: st.DataObject) -> None:
    bits = data.draw(st.integers(1, 16))
    numbers = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40))
    packed = pack_bits(torch.tensor(numbers, dtype=torch.long), bits)
    assert packed.numel() == packed_bytes(len(numbers), bits) == -(-len(numbers) * bits // 8) + 2
    places = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(0))
    found = take_bits(packed, places, bits)
    assert found.tolist() == [numbers[place] for place in places.tolist()]


# --- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize(("num_levels", "bits"), [(0, 4), (1, 4), (3, 4), (1, 3)])
def test_look_ups_are_sums_and_bytes_are_those_saved(
    tmp_path: Path, num_levels: int, bits: int, is_packed: bool
) -> None:
    table, expected = coded(num_levels, is_packed=is_packed, bits=bits)
    assert table.num_levels == num_levels
    torch.testing.assert_close(table.to_dense(), expected)
    ids = torch.tensor([[3, 199], [3, 0]])
    torch.testing.assert_close(table(ids), expected[ids])

    model = nn.ModuleDict({"table": table})
    save_frozen(model, tmp_path / "frozen.safetensors")
    arrays, _ = load_arrays(tmp_path / "frozen.safetensors")
    saved = sum(array.numel() * array.element_size() for array in arrays.values())
    assert saved == table.memory().total_bytes
    code_bits = 3 if is_packed else 8
    codes = NUM_ENTITIES * code_bits // 8 + 2 * is_packed
    if num_levels:
        codes += NUM_ENTITIES * num_levels * bits // 8 + 2
    assert table.memory().code_bytes == codes
    assert table.memory().num_rows == table.num_clusters + num_levels * 2**bits
    into = nn.ModuleDict({"table": ClusteredEmbedding(9, WIDTH, max_clusters=2)})
    frozen = load_frozen(tmp_path / "frozen.safetensors").install(into)
    assert torch.equal(frozen["table"](ids), table(ids))


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_state_loads_into_a_table_of_any_codes(is_packed: bool) -> None:
    table, _ = coded(2, is_packed=is_packed)
    for other in (coded(0, is_packed=True)[0], coded(4, is_packed=False)[0]):
        other.load_state_dict(copy.deepcopy(table.state_dict()))
        assert torch.equal(other.to_dense(), table.to_dense())
        assert other.memory() == table.memory()
        table_again, _ = coded(2, is_packed=is_packed)
        table_again.load_state_dict(coded(0, is_packed=False)[0].state_dict())
        assert (table_again.num_levels, table_again.is_packed) == (0, False)


def test_hard_codes_again_leave_the_rows_of_clusters() -> None:
    table, _ = coded(3, is_packed=True)
    clusters = table.cluster_ids()
    table.harden()
    assert (table.num_levels, table.is_packed, table.blend_size) == (0, False, 1)
    assert torch.equal(table.cluster_ids(), clusters)
    assert torch.equal(table.to_dense(), table.weight[clusters])
    assert table.level_codes.untyped_storage().nbytes() == 0


@pytest.mark.parametrize("is_packed", [False, True])
def test_new_entities_come_near_the_mean_and_change_nobody(is_packed: bool) -> None:
    table, expected = coded(3, is_packed=is_packed)
    before = table.to_dense()
    new = table.add_entities(2)
    assert table.is_packed == is_packed
    assert torch.equal(table.to_dense()[:NUM_ENTITIES], before)
    vectors = table(torch.tensor(list(new)))
    assert torch.equal(vectors[0], vectors[1])
    mean = expected.mean(0)
    assert (vectors[0] - mean).norm() < 0.5 * (expected - mean).norm(dim=1).mean()


def test_bags_pool_sums() -> None:
    table, expected = coded(2, is_packed=True)
    bag = ClusteredEmbeddingBag(NUM_ENTITIES, WIDTH, max_clusters=NUM_CLUSTERS + 2, mode="mean")
    bag.load_state_dict(table.state_dict())
    ids = torch.tensor([[0, 5, 7], [199, 1, 1]])
    torch.testing.assert_close(bag(ids), expected[ids].mean(1))
