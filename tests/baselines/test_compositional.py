"""Compositional embeddings: short rows of independent tables, joined."""

import pytest
import torch

from celrec.baselines.compositional import CompositionalEmbedding


@pytest.mark.parametrize(
    ("width", "num_tables", "widths"),
    [(16, None, [4] * 4), (18, None, [5, 4, 5, 4]), (3, 2, [2, 1])],
)
def test_a_vector_is_one_short_row_of_each_table(width, num_tables, widths):
    table = CompositionalEmbedding(50, width, 7, num_tables=num_tables, seed=3)
    assert table.table_of_columns().bincount().tolist() == widths
    tables = table.weight.split(widths, 1)
    slow = [
        torch.cat([part[row] for part, row in zip(tables, rows, strict=True)])
        for rows in table.row_ids(torch.arange(50)).tolist()
    ]
    assert torch.equal(table(torch.arange(50)), torch.stack(slow))


def test_vectors_narrower_than_four_have_a_table_for_every_number():
    assert CompositionalEmbedding(50, 3, 7).num_tables == 3


def test_four_tables_of_sixteen_rows_tell_a_thousand_entities_apart():
    row_ids = CompositionalEmbedding(1000, 8, 16).row_ids(torch.arange(1000))
    assert len(row_ids.unique(dim=0)) > 980  # of 16^4 combinations
    assert all(len(column.unique()) == 16 for column in row_ids.T)


@pytest.mark.parametrize(("width", "rows"), [(32, 8), (18, 225)])
def test_tables_take_what_as_many_full_rows_take(width, rows):
    found = CompositionalEmbedding.within(6040, width, 4 * width * rows + 3).memory()
    assert (found.num_rows, found.table_bytes, found.total_bytes) == (rows, *[4 * width * rows] * 2)


def test_a_training_step_moves_only_the_pieces_looked_up():
    table = CompositionalEmbedding(50, 8, 7)
    table(torch.tensor([4])).sum().backward()
    moved = table.weight.grad.nonzero().tolist()
    rows = table.row_ids(torch.tensor([4]))[0].repeat_interleave(2).tolist()
    assert sorted(moved) == sorted([row, column] for column, row in enumerate(rows))
