"""QuantizedEmbedding rounds every number to evenly spaced levels of its vector."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from celrec.baselines.quantized import QuantizedEmbedding
from celrec.errors import ArgumentError


def quantized(weight: Tensor, bits: int) -> Tensor:
    """The vectors after quantization."""
    table = QuantizedEmbedding(*weight.shape, bits=bits)
    table.weight.data.copy_(weight)
    table.finish()
    return table(torch.arange(len(weight)))


def normal(num_rows: int, width: int) -> Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("width", [1, 5, 18, 32])
def test_an_entity_takes_its_bits_rounded_up_and_a_scale(bits: int, width: int) -> None:
    table = QuantizedEmbedding(100, width, bits=bits)
    table.finish()
    memory = table.memory()
    assert memory.code_bytes == 100 * -(-width * bits // 8)
    assert memory.personal_bytes == 100 * 2
    assert memory.table_bytes == 4 * width, "the centre"


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("width", [1, 7, 18])
def test_numbers_are_levels_of_their_vector(bits: int, width: int) -> None:
    """Bit by bit, as a slow loop over entities and numbers reads them."""
    table = QuantizedEmbedding(20, width, bits=bits)
    table.finish()
    found = table(torch.arange(20))
    for entity, line in enumerate(table.levels.tolist()):
        stream = "".join(f"{byte:08b}"[::-1] for byte in line)  # low bits first
        for number in range(width):
            level = int(stream[number * bits : (number + 1) * bits][::-1], base=2)
            steps = level - (2**bits - 1) / 2
            expected = table.centre[number] + steps * table.scale[entity].float()
            torch.testing.assert_close(found[entity, number], expected)


def test_one_more_bit_brings_a_quarter_of_the_error() -> None:
    weight = normal(300, 32)
    errors = [float((quantized(weight, bits) - weight).square().mean()) for bits in range(2, 9)]
    ratios = [after / before for before, after in pairwise(errors)]
    assert max(ratios) < 0.32
    assert errors[2] < 0.01, "four bits of normal numbers"


def test_clips_are_better_than_the_whole_range() -> None:
    """A vector of many small numbers and a large one gives up some of the large one."""
    weight = torch.cat([0.1 * normal(50, 31), torch.full((50, 1), 1.0)], 1)
    weight[::2] *= -1  # so that the centre is zero
    found = quantized(weight, 2)
    spacing = 2 / 3
    plain = ((weight / spacing - 0.5).round() + 0.5) * spacing
    assert (found - weight).square().mean() < (plain - weight).square().mean()


def test_a_number_that_all_vectors_share_costs_nothing() -> None:
    """A bias of 100 in one place must not widen the steps of all other numbers."""
    weight = normal(200, 16)
    moved = weight.clone()
    moved[:, 3] += 100
    error, other = (
        (quantized(vectors, 4) - vectors).square().mean() for vectors in (weight, moved)
    )
    assert other < 1.05 * error


def test_a_vector_of_zeros_stays_one() -> None:
    assert not quantized(torch.zeros(3, 4), 4).any()


def test_the_budget_decides_about_the_bits() -> None:
    def bits(share: float) -> int:
        return QuantizedEmbedding.within(6040, 32, int(share * 6040 * 32 * 4)).bits

    assert [bits(share) for share in (1 / 12, 1 / 8, 1 / 6, 1 / 4, 1 / 2)] == [2, 3, 4, 7, 8]
    with pytest.raises(ArgumentError, match=f"at least {6040 * 10 + 128}"):
        bits(1 / 20)
