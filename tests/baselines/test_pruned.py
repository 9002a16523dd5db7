"""PrunedEmbedding keeps the largest numbers of a table, and says which."""

from itertools import pairwise

import pytest
import torch

from celrec.baselines.packed_bits import bits_length, set_length
from celrec.baselines.pruned import PrunedEmbedding


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def thresholded(table):
    """sign(v) max(|v| - g, 0) for all numbers, (N, D)."""
    numbers, threshold = table.numbers.detach(), table.threshold.detach().sigmoid()
    return numbers.sign() * (numbers.abs() - threshold).clamp_min(0)


@pytest.mark.parametrize("num_bytes", [60, 700, 3000, 12_000, 40_000])
def test_a_finished_table_has_the_largest_numbers_and_zeros(num_bytes):
    table = PrunedEmbedding(500, 18, num_bytes)
    expected = thresholded(table)
    table.finish()
    found = table(torch.arange(500))
    is_kept = found != 0
    assert is_kept.any()
    kept, gone = expected.abs()[is_kept], expected.abs()[~is_kept]
    assert kept.min() >= gone.max()
    torch.testing.assert_close(found[is_kept], expected[is_kept], rtol=2**-11, atol=2**-25)
    memory = table.memory()
    num_occupied = int(is_kept.any(1).sum())
    codes = set_length(num_occupied, 500) + bits_length(num_occupied * 18)
    assert memory.code_bytes == 4 * codes
    assert memory.table_bytes == 2 * int(is_kept.sum())
    assert memory.total_bytes <= num_bytes
    if gone.any():
        assert memory.total_bytes > num_bytes - 42  # the next number would need a block of bits


def test_evaluation_shows_what_would_serve():
    table = PrunedEmbedding(300, 8, num_bytes=1500)
    ids = torch.arange(300)
    assert bool((table(ids) != 0).all(1).any())
    table.eval()
    served = table(ids).detach()
    table.train()
    table.finish()
    torch.testing.assert_close(table(ids), served, rtol=2**-11, atol=2**-25)


def test_pruning_is_gradual_and_the_last_quarter_of_epochs_keeps_the_same_numbers():
    table = PrunedEmbedding(300, 8, num_bytes=1500)
    num_kept = []
    for epoch in range(1, 17):
        assert table.after_epoch(epoch, 16) is False
        num_kept.append(int(table.is_kept.sum()))
    assert num_kept[:3] == [2400] * 3
    shrinking = num_kept[2:12]
    assert all(after < before for before, after in pairwise(shrinking))
    assert len(set(num_kept[11:])) == 1
    before = table(torch.arange(300)).detach()
    table.finish()
    torch.testing.assert_close(table(torch.arange(300)), before, rtol=2**-11, atol=2**-25)


def test_numbers_that_are_gone_or_below_the_threshold_get_no_gradient():
    table = PrunedEmbedding(10, 4, num_bytes=1000)
    with torch.no_grad():
        table.threshold.fill_(-1.0)  # 0.27
        table.numbers.copy_(torch.tensor([0.1, -0.2, 0.5, -0.6]).expand(10, 4))
        table.is_kept[0, 3] = False
    vectors = table(torch.tensor([0]))
    torch.testing.assert_close(vectors[0].detach(), torch.tensor([0, 0, 0.5 - 0.26894, 0]))
    vectors.sum().backward()
    assert table.numbers.grad[0].tolist() == [0, 0, 1, 0]
    slope = 0.26894 * (1 - 0.26894)
    torch.testing.assert_close(table.threshold.grad[0], torch.tensor([0, 0, -slope, 0]))
