"""Weighted hashing: rows and what they are multiplied by are both chosen by hashes."""

import pytest
import torch

from celrec.baselines.weighted_hash import WeightedHashEmbedding
from celrec.errors import ArgumentError


@pytest.mark.parametrize("num_hashes", [1, 2, 4])
def test_a_vector_is_the_weighted_sum_of_its_rows(num_hashes):
    table = WeightedHashEmbedding(50, 4, 7, 30, num_hashes=num_hashes, seed=3)
    ids = torch.arange(50)
    rows, numbers = table.row_ids(ids).tolist(), table.importance_ids(ids).tolist()
    slow = [
        sum(table.weight[r] * table.importance[i] for r, i in zip(*pair, strict=True))
        for pair in zip(rows, numbers, strict=True)
    ]
    torch.testing.assert_close(table(ids), torch.stack(slow))


def test_a_number_belongs_to_one_entity_as_little_as_a_row():
    table = WeightedHashEmbedding(1000, 4, 7, 30)
    assert len(table.importance_ids(torch.arange(1000)).unique()) == 30
    assert table.personal == table.codes == ()


def test_entities_in_the_same_rows_hardly_ever_have_the_same_vector():
    table = WeightedHashEmbedding(1000, 4, 1, 100, num_hashes=4)
    vectors = table(torch.arange(1000)).detach()
    assert len(vectors.unique(dim=0)) > 980


@pytest.mark.parametrize("num_entities", [900, 200_000])
@pytest.mark.parametrize("num_bytes", [8 * 128, 100_001])
def test_every_number_of_the_budget_is_stored(num_entities, num_bytes):
    table = WeightedHashEmbedding.within(num_entities, 32, num_bytes)
    assert table.memory().total_bytes == table.memory().table_bytes == num_bytes // 4 * 4


def test_one_row_and_one_number_are_the_least():
    assert WeightedHashEmbedding.within(100, 8, 36).memory().total_bytes == 36
    with pytest.raises(ArgumentError, match="at least 36"):
        WeightedHashEmbedding.within(100, 8, 35)


@pytest.mark.parametrize("std", [0.3, 0.003])
def test_vectors_have_the_deviation_asked_for(std):
    table = WeightedHashEmbedding(5000, 8, 2000, 5000)
    table.reset_parameters(std, torch.Generator().manual_seed(0))
    vectors = table(torch.arange(5000)).detach() / std
    assert abs(float(vectors.std()) - 1) < 0.05
    assert abs(float(vectors.mean())) < 0.05
