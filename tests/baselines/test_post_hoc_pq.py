"""ProductQuantizedEmbedding cuts vectors in parts and clusters each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from celrec.baselines.packed_ids import packed_size
from celrec.baselines.post_hoc_pq import ProductQuantizedEmbedding
from celrec.errors import ArgumentError


def finished(weight: Tensor, num_bytes: int) -> ProductQuantizedEmbedding:
    table = ProductQuantizedEmbedding(*weight.shape, num_bytes=num_bytes)
    table.weight.data.copy_(weight)
    table.finish()
    return table


def normal(num_rows: int, width: int) -> Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("width", "num_bytes"), [(18, 3000), (18, 6000), (8, 2000), (5, 900)])
def test_parts_are_gathered_as_a_loop_would(width: int, num_bytes: int) -> None:
    table = finished(normal(300, width), num_bytes)
    ids = torch.tensor([0, 299, 5])
    parts = torch.arange(width).tensor_split(table.num_parts)
    for vector, codes in zip(table(ids), table.part_ids(ids), strict=True):
        expected = [
            float(table.codebooks[code, number])
            for code, part in zip(codes, parts, strict=True)
            for number in part
        ]
        assert vector.tolist() == expected


def test_it_stores_codes_of_few_bits_and_one_codebook_through_all_parts() -> None:
    table = finished(normal(1000, 16), 6000)
    memory = table.memory()
    num_centroids = 1 << table.bits
    assert memory.table_bytes == 4 * 16 * num_centroids
    assert memory.code_bytes == packed_size(1000 * table.num_parts, table.bits)
    assert memory.total_bytes <= 6000 < memory.total_bytes + packed_size(1000, table.bits)


def test_vectors_that_are_products_of_few_parts_come_back() -> None:
    """Four halves on the left and four on the right make sixteen vectors of two codes."""
    halves = normal(4, 8)
    left, right = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T
    weight = torch.cat([halves[left], -halves[right]], 1).repeat(20, 1)
    table = finished(weight, num_bytes=4 * 16 * 4 + packed_size(2 * 320, 2))
    assert (table.bits, table.num_parts) == (2, 2)
    torch.testing.assert_close(table(torch.arange(320)), weight)


def test_more_bytes_leave_less_error() -> None:
    weight = normal(500, 8)
    errors = [
        float((finished(weight, size)(torch.arange(500)) - weight).square().mean())
        for size in (200, 800, 2000, 4000)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01


def test_the_least_is_one_bit_for_every_entity() -> None:
    least = packed_size(6040, 1) + 2 * 4 * 32
    assert ProductQuantizedEmbedding.within(6040, 32, least).num_parts == 1
    with pytest.raises(ArgumentError, match=f"at least {least}"):
        ProductQuantizedEmbedding.within(6040, 32, least - 1)
