"""Double hashing: an entity is the sum of rows that independent hashes choose."""

import pytest
import torch

from celrec.baselines.double_hash import DoubleHashEmbedding, independent_hashes
from celrec.baselines.hashing import random_multipliers


@pytest.mark.parametrize("num_hashes", [1, 2, 3])
def test_a_vector_is_the_sum_of_its_rows(num_hashes):
    table = DoubleHashEmbedding(50, 4, 7, num_hashes=num_hashes, seed=3)
    row_ids = table.row_ids(torch.arange(50))
    assert row_ids.shape == (50, num_hashes)
    slow = torch.stack([sum(table.weight[row] for row in rows) for rows in row_ids.tolist()])
    torch.testing.assert_close(table(torch.arange(50)), slow)


def test_few_of_a_thousand_entities_share_both_of_a_hundred_rows():
    row_ids = DoubleHashEmbedding(1000, 1, 100).row_ids(torch.arange(1000))
    assert len(row_ids[:, 0].unique()) <= 100
    assert len(row_ids.sort(1).values.unique(dim=0)) > 850  # 906 if all pairs were drawn by chance


@pytest.mark.parametrize("num_values", [16, 100])
def test_one_hash_says_nothing_about_another(num_values):
    both = independent_hashes(torch.arange(20_000), num_values, random_multipliers(2, seed=0))
    cells = (both[:, 0] * num_values + both[:, 1]).bincount(minlength=num_values**2)
    expected = 20_000 / num_values**2
    surprise = (cells - expected).square().sum() / expected / num_values**2  # 1 by chance
    assert 0.7 < surprise < 1.3


def test_the_first_entity_is_hashed_like_any_other():
    hashes = independent_hashes(torch.tensor([0]), 1000, random_multipliers(50, seed=0))
    assert len(hashes.unique()) > 40


@pytest.mark.parametrize(("num_entities", "width", "rows"), [(3706, 32, 8), (900, 18, 225)])
def test_all_bytes_are_rows(num_entities, width, rows):
    found = DoubleHashEmbedding.within(num_entities, width, 4 * width * rows + 3).memory()
    assert (found.num_rows, found.table_bytes, found.total_bytes) == (rows, *[4 * width * rows] * 2)


def test_the_sum_has_the_deviation_asked_for():
    table = DoubleHashEmbedding(5000, 8, 2000, num_hashes=4)
    table.reset_parameters(0.3, torch.Generator().manual_seed(0))
    vectors = table(torch.arange(5000)).detach()
    assert abs(float(vectors.std()) - 0.3) < 0.02
    assert abs(float(vectors.mean())) < 0.02
