"""Hash embeddings: an entity weighs its hashed rows by numbers of its own."""

import pytest
import torch

from celrec.baselines.double_hash import DoubleHashEmbedding
from celrec.baselines.hash_embeddings import HashEmbeddings
from celrec.errors import ArgumentError


@pytest.mark.parametrize("num_hashes", [1, 2, 3])
def test_a_vector_is_the_weighted_sum_of_its_rows(num_hashes):
    table = HashEmbeddings(50, 4, 7, num_hashes=num_hashes, seed=3)
    slow = [
        sum(table.weight[row] * table.importance[entity, i] for i, row in enumerate(rows))
        for entity, rows in enumerate(table.row_ids(torch.arange(50)).tolist())
    ]
    torch.testing.assert_close(table(torch.arange(50)), torch.stack(slow))


def test_with_equal_importance_it_is_double_hashing():
    table, plain = HashEmbeddings(50, 4, 7, seed=2), DoubleHashEmbedding(50, 4, 7, seed=2)
    plain.weight.data.copy_(table.weight)
    torch.nn.init.ones_(table.importance)
    torch.testing.assert_close(table(torch.arange(50)), plain(torch.arange(50)))


def test_entities_in_the_same_rows_still_differ():
    vectors = HashEmbeddings(50, 4, num_rows=1)(torch.arange(50)).detach()
    assert len(vectors.unique(dim=0)) == 50


def test_rows_are_shared_and_importance_is_personal():
    found = HashEmbeddings(1000, 8, 16, num_hashes=2).memory()
    assert found.table_bytes == 4 * 16 * 8
    assert found.personal_bytes == 4 * 1000 * 2
    assert found.code_bytes == 0


def test_two_numbers_for_every_entity_are_the_least():
    least = 4 * (2 * 3706 + 32)
    assert HashEmbeddings.within(3706, 32, least).memory().total_bytes == least
    with pytest.raises(ArgumentError, match=f"at least {least}"):
        HashEmbeddings.within(3706, 32, least - 1)


@pytest.mark.parametrize("std", [0.3, 0.003])
def test_vectors_have_the_deviation_asked_for(std):
    table = HashEmbeddings(5000, 8, 2000)
    table.reset_parameters(std, torch.Generator().manual_seed(0))
    vectors = table(torch.arange(5000)).detach() / std
    assert abs(float(vectors.std()) - 1) < 0.05
    assert abs(float(vectors.mean())) < 0.05
