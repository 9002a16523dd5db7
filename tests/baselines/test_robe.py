"""ROBE: runs of numbers of one circular array."""

import pytest
import torch

from celrec.baselines.robe import RobeEmbedding
from celrec.errors import ArgumentError


@pytest.mark.parametrize("block_size", [1, 2, 5, 8])
def test_a_vector_is_runs_of_the_array_that_may_pass_its_end(block_size):
    table = RobeEmbedding(200, 8, num_numbers=13, block_size=block_size, seed=3)
    places = table.number_ids(torch.arange(200))
    array = table.array.tolist()
    slow = []
    for begins in places[:, ::block_size].tolist():
        numbers = [array[(begin + i) % 13] for begin in begins for i in range(block_size)]
        slow.append(numbers[:8])
    torch.testing.assert_close(table(torch.arange(200)), torch.tensor(slow))
    if block_size > 1:
        assert bool((places.diff(dim=1) < 0).any()), "no run passed the end; the test is too weak"


def test_runs_begin_anywhere_and_each_on_its_own():
    table = RobeEmbedding(2000, 8, num_numbers=100, block_size=4)
    begins = table.number_ids(torch.arange(2000))[:, ::4]
    for column in begins.T:
        assert len(column.unique()) == 100
    assert (begins[:, 0] == begins[:, 1]).float().mean() < 0.03


def test_every_number_is_used_about_equally_often():
    places = RobeEmbedding(2000, 8, num_numbers=100).number_ids(torch.arange(2000))
    used = places.flatten().bincount(minlength=100)
    assert int(used.sum()) == 2000 * 8
    assert 100 < int(used.min()) <= int(used.max()) < 220  # 160 each


@pytest.mark.parametrize("num_bytes", [8, 1024, 99_999])
def test_the_array_takes_the_whole_budget(num_bytes):
    found = RobeEmbedding.within(3706, 32, num_bytes).memory()
    assert found.total_bytes == found.table_bytes == num_bytes // 4 * 4
    assert found.num_rows == 0


def test_a_run_does_not_overlap_itself():
    with pytest.raises(ArgumentError, match="num_numbers is 7; wanted an integer of at least 8"):
        RobeEmbedding(10, 16, num_numbers=7, block_size=8)
    with pytest.raises(ArgumentError, match="block_size is 17"):
        RobeEmbedding(10, 16, num_numbers=100, block_size=17)
