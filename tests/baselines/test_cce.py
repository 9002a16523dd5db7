"""ClusteredCompositionalEmbedding: columns of a learned and a hashed row, clustered between."""

from __future__ import annotations

import pytest
import torch

from celrec.baselines.cce import ClusteredCompositionalEmbedding
from celrec.baselines.packed_ids import packed_size
from celrec.errors import ArgumentError


@pytest.mark.parametrize("num_columns", [1, 2, 3])
def test_a_column_is_the_sum_of_two_rows_as_in_the_paper(num_columns: int) -> None:
    table = ClusteredCompositionalEmbedding(50, 18, num_rows=7, num_columns=num_columns)
    ids = torch.tensor([0, 49, 3, 3])
    first = table.weight.view(num_columns, 7, -1)
    second = table.hashed_weight.view(num_columns, 7, -1)
    pointed, hashed = table.pointed_rows(ids), table.hashed_rows(ids)
    for line in range(len(ids)):
        columns = [
            first[c, pointed[line, c]] + second[c, hashed[line, c]] for c in range(num_columns)
        ]
        torch.testing.assert_close(table(ids)[line], torch.cat(columns))


def test_it_has_two_tables_of_k_rows_and_a_pointer_for_every_column() -> None:
    """2 k D parameters, whatever the number of columns."""
    table = ClusteredCompositionalEmbedding(1000, 32, num_rows=16, num_columns=4)
    assert sum(parameter.numel() for parameter in table.parameters()) == 2 * 16 * 32
    memory = table.memory()
    assert memory.code_bytes == 1000 * 4 // 2, "four bits each"
    assert memory.table_bytes == 4 * 2 * 16 * 32 + 4 * 8, "rows, and a multiplier for each hash"


def test_clustering_keeps_vectors_that_are_few() -> None:
    """As many different columns as rows: pointers and centroids can hold them all."""
    table = ClusteredCompositionalEmbedding(200, 8, num_rows=5, num_columns=2)
    with torch.no_grad():
        table.hashed_weight.zero_()  # so that a column has one of five values
    ids = torch.arange(200)
    before = table(ids).detach().clone()
    hashes = table.hashed_rows(ids)
    assert table.after_epoch(1, num_epochs=3)
    torch.testing.assert_close(table(ids), before)
    assert not table.hashed_weight.any()
    assert not torch.equal(table.hashed_rows(ids), hashes), "hashes are fresh"


def error_after_training(clusters_until: float) -> float:
    """Mean squared distance to vectors of two groups, over that of one vector for all."""
    table = ClusteredCompositionalEmbedding(
        400, 8, num_rows=20, num_columns=2, clusters_until=clusters_until
    )
    table.reset_parameters(0.1, torch.Generator().manual_seed(0))
    ids = torch.arange(400)
    target = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))[ids % 2]
    optimizer = torch.optim.Adam(table.parameters(), lr=0.1)
    for epoch in range(1, 13):
        for _ in range(10):
            optimizer.zero_grad()
            (table(ids) - target).square().mean().backward()
            optimizer.step()
        if table.after_epoch(epoch, num_epochs=12):
            optimizer.state.clear()
    alone = (target - target.mean(0)).square().mean()
    return float((table(ids).detach() - target).square().mean() / alone)


def test_clusters_tell_apart_what_hashes_confuse() -> None:
    assert error_after_training(clusters_until=1) < 0.8 * error_after_training(clusters_until=0)


def test_the_last_third_of_the_epochs_is_for_the_rows() -> None:
    table = ClusteredCompositionalEmbedding(30, 4, num_rows=4)
    due = [epoch for epoch in range(1, 10) if table.after_epoch(epoch, num_epochs=9)]
    assert due == [1, 2, 3, 4, 5, 6]
    assert not table.after_epoch(1, num_epochs=1)
    never = ClusteredCompositionalEmbedding(30, 4, num_rows=4, clusters_until=0)
    assert not never.after_epoch(1, num_epochs=9)


@pytest.mark.parametrize(
    ("width", "num_bytes", "columns"),
    [(32, 77_312, 4), (32, 19_328, 4), (32, 8192, 2), (32, 4096, 1), (18, 43_488, 3)],
)
def test_small_budgets_take_fewer_columns(width: int, num_bytes: int, columns: int) -> None:
    table = ClusteredCompositionalEmbedding.within(6040, width, num_bytes)
    assert table.num_columns == columns
    assert table.memory().total_bytes <= num_bytes


def test_the_least_is_one_bit_for_every_entity() -> None:
    least = packed_size(6040, 1) + 2 * 2 * 4 * 32 + 8
    assert ClusteredCompositionalEmbedding.within(6040, 32, least).num_rows == 2
    with pytest.raises(ArgumentError, match=f"at least {least}"):
        ClusteredCompositionalEmbedding.within(6040, 32, least - 1)


def test_columns_must_divide_the_width() -> None:
    with pytest.raises(ArgumentError, match=r"num_columns is 4; wanted a divisor of .* 18"):
        ClusteredCompositionalEmbedding(10, 18, num_rows=4, num_columns=4)
