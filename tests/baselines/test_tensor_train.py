"""TensorTrainEmbedding is a table written as the product of three cores."""

import math

import pytest
import torch

from celrec.baselines.tensor_train import (
    TensorTrainEmbedding,
    column_factors,
    num_parameters,
    row_factors,
)
from celrec.errors import ArgumentError


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def dense(table):
    """The table by the formula: every digit of an entity and of a column, and a sum over ranks."""
    (n1, n2, n3), (d1, d2, d3) = table.row_factors, table.column_factors
    product = torch.einsum("iar,jrbs,ksc->ijkabc", table.first, table.second, table.third)
    whole = product.reshape(n1 * n2 * n3, d1 * d2 * d3)
    return whole[: table.num_embeddings, : table.embedding_dim]


@pytest.mark.parametrize("width", [18, 32, 7])
@pytest.mark.parametrize("batch_size", [1, 7, 40, 400])
def test_vectors_and_gradients_are_those_of_the_formula(width, batch_size):
    """However many ids are looked up at a time, each of which takes another way to compute."""
    table = TensorTrainEmbedding(400, width, ranks=(3, 4)).double()
    ids = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    scale = torch.randn(400, width, generator=torch.Generator().manual_seed(1)).double()
    expected = dense(table)[ids]
    found = torch.cat([table(some) for some in ids.split(batch_size)])
    torch.testing.assert_close(found, expected)
    parameters = list(table.parameters())
    torch.testing.assert_close(
        torch.autograd.grad((found * scale).sum(), parameters),
        torch.autograd.grad((expected * scale).sum(), parameters),
    )


def test_a_million_entities_take_as_many_numbers_as_the_paper_says():
    """Yin et al., section 2: n_k R_(k-1) d_k R_k for each core."""
    table = TensorTrainEmbedding(10**6, 16, ranks=(8, 8))
    assert table.row_factors == (100, 100, 100)
    assert sorted(table.column_factors) == [2, 2, 4]
    d1, d2, d3 = table.column_factors
    expected = 100 * (d1 * 8 + 8 * d2 * 8 + 8 * d3)
    assert sum(p.numel() for p in table.parameters()) == expected
    assert table.memory().total_bytes == 4 * expected


def test_no_two_entities_have_the_same_vector():
    vectors = TensorTrainEmbedding(2000, 8, ranks=(1, 1))(torch.arange(2000))
    assert len(vectors.unique(dim=0)) == 2000


@pytest.mark.parametrize("num_entities", [1, 2, 3, 5, 900, 3706, 6040, 200_000])
@pytest.mark.parametrize("width", [1, 2, 3, 18, 31, 32])
def test_factors_cover_the_table_and_hardly_more(num_entities, width):
    rows, columns = row_factors(num_entities), column_factors(width)
    assert num_entities <= math.prod(rows) < 1.1 * num_entities + 4
    assert width <= math.prod(columns) <= max(1.15 * width, width + 1)


@pytest.mark.parametrize("std", [0.1, 1.0])
@pytest.mark.parametrize("num_rows", [8, 64, 1024])
def test_first_vectors_have_the_deviation_asked_for_and_few_numbers_near_zero(num_rows, std):
    table = TensorTrainEmbedding.within(6040, 32, num_rows * 128)
    table.reset_parameters(std, torch.Generator().manual_seed(0))
    vectors = table(torch.arange(6040)).detach()
    assert float(vectors.std()) == pytest.approx(std, rel=0.25)
    assert abs(float(vectors.mean())) < 0.1 * std
    if num_rows == 8:  # the product of three normal numbers is that small half of the time
        assert float((vectors.abs() < 0.2 * std).float().mean()) < 0.2


def test_a_budget_is_spent_and_one_too_small_is_named():
    for num_rows in (16, 64, 1024):
        assert (
            0.85
            < TensorTrainEmbedding.within(6040, 32, num_rows * 128).memory().total_bytes
            / (num_rows * 128)
            <= 1
        )
    least = 4 * num_parameters(row_factors(6040), column_factors(32), (1, 1))
    assert TensorTrainEmbedding.within(6040, 32, least).ranks == (1, 1)
    with pytest.raises(ArgumentError, match=f"at least {least}"):
        TensorTrainEmbedding.within(6040, 32, least - 1)
