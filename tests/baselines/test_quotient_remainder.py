"""Quotient and remainder: products of rows, of which no two entities have the same."""

import pytest
import torch

from celrec.baselines.quotient_remainder import QuotientRemainderEmbedding, sizes_within
from celrec.errors import ArgumentError


def test_a_vector_is_the_remainders_row_times_the_quotients():
    table = QuotientRemainderEmbedding(1000, 8, sizes=[4, 250])
    remainders, quotients = table.weight[:4], table.weight[4:]
    slow = torch.stack([remainders[i % 4] * quotients[i // 4] for i in range(1000)])
    torch.testing.assert_close(table(torch.arange(1000)), slow)


@pytest.mark.parametrize(("num_entities", "num_rows"), [(943, 235), (3706, 64), (6040, 32), (7, 7)])
def test_no_two_entities_have_the_same_rows(num_entities, num_rows):
    table = QuotientRemainderEmbedding.within(num_entities, 2, 8 * num_rows)
    row_ids = table.row_ids(torch.arange(num_entities))
    assert len(row_ids.unique(dim=0)) == num_entities
    before = 0
    for column, size in zip(row_ids.T, table.sizes, strict=True):
        assert before <= int(column.min()) <= int(column.max()) < before + size
        before += size
    assert before <= num_rows


def test_two_tables_take_c_and_a_c_th_of_the_entities():
    assert sizes_within(1000, 300) == [4, 250]
    found = QuotientRemainderEmbedding.within(1000, 8, 300 * 32).memory()
    assert (found.num_rows, found.total_bytes) == (254, 254 * 32)


def test_a_third_table_comes_where_two_would_take_twice_the_root_of_the_entities():
    assert len(sizes_within(10_000, 200)) == 2
    assert sizes_within(10_000, 200) == [100, 100]
    assert len(sizes_within(10_000, 199)) == 3
    assert sizes_within(10_000, 10_000) == [10_000]


@pytest.mark.parametrize("num_entities", [1, 2, 1000, 200_000])
def test_it_can_be_as_small_as_it_says(num_entities):
    with pytest.raises(ArgumentError, match="at least") as error:
        QuotientRemainderEmbedding.within(num_entities, 8, 31)
    least = int(str(error.value).split("at least ")[1].split(";")[0])
    assert QuotientRemainderEmbedding.within(num_entities, 8, least).memory().total_bytes == least
    with pytest.raises(ArgumentError, match="bytes are too few"):
        QuotientRemainderEmbedding.within(num_entities, 8, least - 1)


def test_sizes_that_cannot_tell_all_entities_apart_are_refused():
    with pytest.raises(ArgumentError, match="999 combinations, too few for 1000 entities"):
        QuotientRemainderEmbedding(1000, 8, sizes=[3, 333])


@pytest.mark.parametrize("sizes", [[5000], [5, 1000], [6, 7, 120]])
def test_the_product_has_the_deviation_asked_for(sizes):
    table = QuotientRemainderEmbedding(5000, 32, sizes)
    table.reset_parameters(0.3, torch.Generator().manual_seed(0))
    vectors = table(torch.arange(5000)).detach()
    assert abs(float(vectors.std()) - 0.3) < 0.03
    assert abs(float(vectors.mean())) < 0.02
