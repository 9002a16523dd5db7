"""Low-dimensional vectors: narrow ones of the entities' own, times one projection."""

import pytest
import torch

from celrec.baselines.low_dimensional import LowDimensionalEmbedding
from celrec.errors import ArgumentError


def test_the_table_is_a_product_of_low_rank():
    table = LowDimensionalEmbedding(50, 8, private_dim=3)
    full = table(torch.arange(50)).detach()
    torch.testing.assert_close(full, (table.vectors @ table.projection).detach())
    assert int(torch.linalg.matrix_rank(full)) == 3


def test_own_vectors_are_personal_and_the_projection_is_shared():
    found = LowDimensionalEmbedding(1000, 8, private_dim=3).memory()
    assert found.personal_bytes == 4 * 1000 * 3
    assert found.table_bytes == 4 * 3 * 8
    assert found.total_bytes == 4 * 3 * (1000 + 8)


@pytest.mark.parametrize("private_dim", [1, 4, 8])
def test_first_vectors_have_the_deviation_asked_for(private_dim):
    table = LowDimensionalEmbedding(5000, 8, private_dim)
    table.reset_parameters(0.3, torch.Generator().manual_seed(0))
    vectors = table(torch.arange(5000)).detach()
    assert abs(float(vectors.square().mean().sqrt()) - 0.3) < 0.02
    assert abs(float(vectors.mean())) < 0.02


def test_the_widest_that_fits_is_taken():
    one = 4 * (3706 + 32)
    for num_bytes, wanted in [(one, 1), (2 * one - 1, 1), (2 * one, 2), (10**9, 32)]:
        assert LowDimensionalEmbedding.within(3706, 32, num_bytes).private_dim == wanted
    with pytest.raises(ArgumentError, match=f"at least {one}"):
        LowDimensionalEmbedding.within(3706, 32, one - 1)


def test_it_cannot_be_wider_than_its_vectors():
    with pytest.raises(ArgumentError, match="private_dim is 9; wanted an integer from 1 to 8"):
        LowDimensionalEmbedding(10, 8, private_dim=9)
