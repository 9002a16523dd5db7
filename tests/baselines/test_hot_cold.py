"""HotColdEmbedding gives rows to the entities that matter most."""

import pytest
import torch

from celrec.baselines.contract import Occurrences
from celrec.baselines.hot_cold import HotColdEmbedding
from celrec.errors import ArgumentError


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def seen(entities, num_entities):
    entity = torch.tensor(entities)
    return Occurrences(entity, entity, torch.ones(len(entity)), num_entities, num_entities)


def test_the_most_frequent_entities_have_rows_of_their_own_and_all_others_share():
    table = HotColdEmbedding(100, 4, num_hot=2, num_rows=3)
    table.see(seen([7, 7, 7, 50, 50, 9, 0], 100))
    assert table.hot_ids().tolist() == [7, 50]
    vectors = table(torch.arange(100)).detach()
    assert len(vectors.unique(dim=0)) == 2 + 3
    cold = [entity for entity in range(100) if entity not in (7, 50)]
    shared = table.weight.detach()[table.row_ids(torch.tensor(cold))]
    assert torch.equal(vectors[cold], shared)


def test_importance_is_the_sum_of_gradient_lengths():
    table = HotColdEmbedding(20, 2, num_hot=2, num_rows=3)
    gradients = torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]])
    (table(torch.tensor([5, 6, 5])) * gradients).sum().backward()
    expected = torch.zeros(20)
    expected[5], expected[6] = 15.0, 1.0
    torch.testing.assert_close(table.importance, expected)
    with torch.no_grad():
        table(torch.tensor([5]))
    torch.testing.assert_close(table.importance, expected)


def test_an_entity_that_becomes_hot_starts_from_the_row_that_it_shared():
    table = HotColdEmbedding(20, 2, num_hot=2, num_rows=3)
    table.see(seen([0, 0, 1], 20))
    before = table(torch.arange(20)).detach()
    table.importance[:] = torch.tensor([5.0, 1.0, 0.0, 1.9, 2.1] + [0.0] * 15)
    assert table.after_epoch(1, 10) is True
    assert table.hot_ids().tolist() == [0, 4]
    after = table(torch.arange(20)).detach()
    kept = [entity for entity in range(20) if entity != 1]
    assert torch.equal(after[kept], before[kept])
    assert torch.equal(after[1], table.weight.detach()[table.row_ids(torch.tensor(1))])


def test_no_row_changes_hands_for_less_than_twice_the_importance():
    table = HotColdEmbedding(20, 2, num_hot=1, num_rows=3)
    table.see(seen([0], 20))
    table.importance[0], table.importance[1] = 1.0, 1.9
    assert table.after_epoch(1, 10) is False
    assert table.hot_ids().tolist() == [0]


def test_finishing_changes_no_vector_and_stores_both_tables_and_the_set():
    table = HotColdEmbedding(1000, 4, num_hot=30, num_rows=5)
    table.see(seen(list(range(999, 900, -1)), 1000))
    table.importance[500] = 10.0
    table.after_epoch(1, 10)
    ids = torch.arange(1000)
    before, hot = table(ids).detach(), table.hot_ids()
    table.finish()
    assert torch.equal(table(ids), before)
    assert torch.equal(table.hot_ids(), hot)
    memory = table.memory()
    assert (memory.personal_bytes, memory.table_bytes, memory.code_bytes) == (480, 80, 120)
    assert memory.sleeping_bytes == 0


@pytest.mark.parametrize("num_entities", [900, 200_000])
@pytest.mark.parametrize("share", [0.01, 0.25])
def test_most_of_a_budget_is_hot(num_entities, share):
    num_bytes = int(share * num_entities * 32 * 4)
    table = HotColdEmbedding.within(num_entities, 32, num_bytes)
    memory = table.memory()
    assert num_bytes - 128 < memory.total_bytes <= num_bytes
    assert memory.personal_bytes / num_bytes == pytest.approx(0.7, abs=0.1)
    with pytest.raises(ArgumentError, match="at least 128"):
        HotColdEmbedding.within(num_entities, 32, 127)
