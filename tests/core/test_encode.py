"""Codes under a byte budget: never above it, the more the better, and kept as they are."""

from __future__ import annotations

import copy
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from celrec import ClusteredEmbedding, ClusterOptimizer, memory_report
from celrec.checkpoint import load_arrays, load_frozen, save_frozen
from celrec.core.encode import Budget, nearest_rows
from celrec.core.personal import PersonalRule
from celrec.errors import ArgumentError, LossError
from tests.core.test_blend import blended, trained
from tests.core.test_cluster_optimizer import DotProduct, planted

SHORT = PersonalRule(epochs=1, warm_epochs=0)
NUM_USERS, NUM_UNSEEN, NUM_ITEMS = 24, 3, 16
NUM_ENTITIES = NUM_USERS + NUM_UNSEEN + NUM_ITEMS
WIDTH = 8
ROW_BYTES = 2 * 6 * WIDTH * 4
LEAST = ROW_BYTES / NUM_ENTITIES + 1
"""Bytes for each entity that rows and hard codes take."""


@pytest.fixture(scope="module")
def base() -> tuple[list[Any], DotProduct]:
    """A model with six clusters of users and of items; the last users have no samples."""
    parts = planted(NUM_USERS, NUM_ITEMS, 4, noise=0.5, seed=1)[:3]
    generator = torch.Generator().manual_seed(0)
    tables = [
        ClusteredEmbedding.from_pretrained(
            torch.randn(6, WIDTH, generator=generator), torch.arange(num_entities) % 6
        )
        for num_entities in (NUM_USERS + NUM_UNSEEN, NUM_ITEMS)
    ]
    return list(zip(*(part.split(500) for part in parts), strict=True)), DotProduct(*tables)


def clusters_of(base: Any) -> tuple[list[Any], DotProduct, ClusterOptimizer]:
    batches, model = base
    model = copy.deepcopy(model)

    def per_sample_loss(batch: tuple[Tensor, ...]) -> Tensor:
        return (model(batch[0], batch[1]) - batch[2]).square() / 0.5

    return batches, model, ClusterOptimizer(model, None, per_sample_loss)


def encoded(base: Any, bytes_per_entity: float) -> DotProduct:
    batches, model, clusters = clusters_of(base)
    clusters.encode(batches, bytes_per_entity, rule=SHORT)
    return model


def num_personal(model: DotProduct) -> int:
    return model.users.num_personal + model.items.num_personal


# --- the budget ----------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.floats(LEAST, LEAST + 12))
def test_codes_never_take_more_than_the_budget(base: Any, bytes_per_entity: float) -> None:
    model = encoded(base, bytes_per_entity)
    assert memory_report(model).total_bytes <= bytes_per_entity * NUM_ENTITIES
    assert model.users.to_dense().isfinite().all()


def test_codes_are_packed_where_nothing_else_fits(base: Any) -> None:
    model = encoded(base, LEAST - 0.4)
    for table in (model.users, model.items):
        assert table.is_packed
        assert table.memory().code_bytes == -(-3 * table.num_embeddings // 8) + 2


def test_a_large_budget_gives_everyone_with_data_a_vector_and_hard_codes(base: Any) -> None:
    model = encoded(base, 1000)
    assert (model.users.num_personal, model.items.num_personal) == (NUM_USERS, NUM_ITEMS)
    assert model.users.blend_size == model.items.blend_size == 1
    assert model.items.personal_of.numel() == 0  # no index is needed where all have one
    assert (model.users.personal_of[NUM_USERS:] == NUM_USERS).all()


def test_too_small_a_budget_names_one_that_is_enough(base: Any) -> None:
    batches, model, clusters = clusters_of(base)
    with pytest.raises(ArgumentError, match="bytes_per_entity is 2, but rows and hard") as caught:
        clusters.encode(batches, 2)
    (least,) = re.findall(r"alone take ([\d.]+) for each", str(caught.value))
    assert LEAST - 0.6 < float(least) < LEAST
    clusters.encode(batches, float(least), rule=SHORT)
    assert (model.users.blend_size, model.users.num_personal) == (1, 0)
    for wrong in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ArgumentError, match="bytes_per_entity is"):
            clusters.encode(batches, wrong)


@given(st.integers(2, 400), st.integers(1, 40), st.integers(1, 300), st.integers(0, 3000))
def test_a_budget_is_never_exceeded_and_more_bytes_never_buy_less(
    num_entities: int, width: int, num_rows: int, cents: int
) -> None:
    """Decimal fractions that make whole bytes are whole bytes."""
    num_rows = min(num_rows, num_entities)
    clusters = torch.arange(num_entities) % num_rows
    table = ClusteredEmbedding.from_pretrained(torch.randn(num_rows, width), clusters)
    hard = table.memory().total_bytes
    total = hard + num_entities * cents / 100
    budget = Budget.of({"one": table}, total / num_entities)
    assert table.memory().table_bytes + budget.bytes_of(table) <= total + 1e-6
    more = Budget.of({"one": table}, total / num_entities + 1)
    assert rank(more) >= rank(budget)


def rank(budget: Budget) -> tuple[int, ...]:
    """The better the more."""
    return (
        budget.bits or 0,
        budget.num_levels * budget.level_bits,
        not budget.is_packed,
    )


def test_more_bytes_buy_levels_and_then_vectors() -> None:
    table = ClusteredEmbedding.from_pretrained(torch.randn(8, 32), torch.arange(4000) % 8)
    hard = table.memory().total_bytes / 4000
    level = 0.5 + 16 * 32 * 4 / 4000
    found = [
        Budget.of({"one": table}, hard + extra)
        for extra in (-0.624, -0.62, 0, level - 0.2, level + 0.01, 4.1 * level, 19.99, 20, 36)
    ]
    assert [(one.bits, one.num_levels, one.is_packed) for one in found] == [
        (None, 0, True),
        (None, 0, True),
        (None, 0, False),
        (None, 1, True),
        (None, 1, False),
        (None, 4, False),
        (None, 16, False),
        (4, 0, False),
        (8, 0, False),
    ]


def test_a_table_of_one_number_each_keeps_to_the_budget_without_data() -> None:
    """Its blends take more than a vector would, and nobody there gives them back."""
    torch.manual_seed(0)
    wide = ClusteredEmbedding.from_pretrained(torch.randn(4, 8), torch.arange(20) % 4)
    narrow = ClusteredEmbedding.from_pretrained(torch.randn(4, 1), torch.arange(60) % 4)
    model = nn.ModuleDict({"wide": wide, "narrow": narrow})

    def per_sample_loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return (wide(batch[0]).sum(1) - batch[1]).square() / 2

    batches = [(torch.arange(20).repeat(3), torch.randn(60))]
    clusters = ClusterOptimizer(model, None, per_sample_loss)
    everyone = 20 * (10 + 1) + 60 * (3 + 1)
    for extra in (0, 60, everyone - 1, everyone, everyone + 60, 1000):
        total = memory_report(model).table_bytes + 80 + extra
        clusters.encode(batches, total / 80, rule=SHORT)
        assert memory_report(model).total_bytes <= total
    assert wide.num_personal == 20


# --- rows ----------------------------------------------------------------------------------------


@given(st.integers(20, 40), st.integers(1, 5), st.integers(2, 6), st.integers(1, 4))
def test_rows_that_blends_come_from_are_found_again(
    num_entities: int, width: int, num_rows: int, blend_size: int
) -> None:
    table, _ = blended(num_entities, width, num_rows, blend_size, seed=num_entities)
    entities = torch.arange(num_entities)
    assert torch.allclose(nearest_rows(table, entities, table.look_up(entities)), table.weight)
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(num_rows, width, generator=generator)
    clusters, weights = table.code_of(entities)
    mix = torch.zeros(num_entities, num_rows)
    mix.scatter_add_(1, clusters, torch.ones(clusters.shape) if weights is None else weights)
    if torch.linalg.cond(mix) < 5:
        found = nearest_rows(table, entities, mix @ wanted)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.1)


def test_a_row_that_nobody_mixes_stays_where_it_is() -> None:
    table = ClusteredEmbedding.from_pretrained(torch.randn(4, 2), torch.arange(12) % 3)
    rows = nearest_rows(table, torch.arange(12), torch.randn(12, 2))
    assert torch.equal(rows[3], table.weight[3])
    assert torch.equal(nearest_rows(table, torch.arange(0), torch.empty(0, 2)), table.weight)


# --- keeping and counting ------------------------------------------------------------------------

BUDGETS = [LEAST - 0.4, LEAST, LEAST + 2, LEAST + 6.8, 1000.0]


@pytest.mark.parametrize("bytes_per_entity", BUDGETS)
def test_bytes_reported_are_bytes_saved_and_predict_the_same(
    base: Any, tmp_path: Path, bytes_per_entity: float
) -> None:
    model = encoded(base, bytes_per_entity)
    path = tmp_path / "frozen.safetensors"
    save_frozen(model, path)
    arrays, _ = load_arrays(path)
    saved = sum(array.numel() * array.element_size() for array in arrays.values())
    assert saved == memory_report(model).total_bytes
    thawed = load_frozen(path).install(
        DotProduct(ClusteredEmbedding(9, WIDTH, max_clusters=3), ClusteredEmbedding(9, WIDTH, 3))
    )
    users = torch.arange(NUM_USERS + NUM_UNSEEN).repeat_interleave(NUM_ITEMS)
    items = torch.arange(NUM_ITEMS).repeat(NUM_USERS + NUM_UNSEEN)
    assert torch.equal(thawed(users, items), model(users, items))


def test_state_loads_into_a_model_of_any_other_budget(base: Any) -> None:
    models = [encoded(base, budget) for budget in BUDGETS]
    for source in models:
        for target in models:
            into = copy.deepcopy(target)
            into.load_state_dict(source.state_dict())
            for name, value in into.state_dict().items():
                assert torch.equal(value, source.state_dict()[name]), name
            assert memory_report(into).total_bytes == memory_report(source).total_bytes


def test_encoding_again_depends_on_rows_and_clusters_alone(base: Any) -> None:
    """What was personal before is dropped, and the budget is kept."""
    batches, model, clusters = clusters_of(base)
    for budget in (1000.0, LEAST - 0.4, 1000.0, LEAST - 0.4):
        clusters.encode(batches, budget, rule=SHORT)
        assert memory_report(model).total_bytes <= budget * NUM_ENTITIES
        assert bool(num_personal(model)) == (budget == 1000)


def test_a_round_after_encoding_hardens(base: Any) -> None:
    batches, model, clusters = clusters_of(base)
    clusters.encode(batches, 1000.0, rule=SHORT)
    assert num_personal(model)
    clusters.round(batches)
    assert num_personal(model) == 0
    assert model.users.blend_size == model.items.blend_size == 1
    assert torch.equal(model.users.to_dense(), model.users.weight[model.users.cluster_ids()])


def test_a_loss_that_fails_leaves_codes_and_vectors_as_they_were() -> None:
    batches, model, clusters, _ = trained()
    clusters.personalize(batches, rule=SHORT)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss, calls = clusters.per_sample_loss, itertools.count()

    def failing(batch: Any) -> Any:
        return loss(batch) * (float("nan") if next(calls) > 40 else 1.0)

    for attempt in (
        lambda: clusters.personalize(batches),
        lambda: clusters.encode(batches, 1000.0),
    ):
        calls = itertools.count()
        clusters.per_sample_loss = failing
        with pytest.raises(LossError):
            attempt()
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_dropped_vectors_give_their_memory_back() -> None:
    batches, model, clusters, _ = trained()
    clusters.personalize(batches, rule=SHORT)
    model.users.drop_personal()
    assert model.users.personal_levels.untyped_storage().nbytes() == 0
