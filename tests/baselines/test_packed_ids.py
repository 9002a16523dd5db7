"""Ids of any few bits survive packing, and take the bytes that were promised."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from celrec.baselines.packed_ids import pack_ids, packed_size, rows_within
from celrec.core.codes import bits_for, take_bits
from celrec.errors import ArgumentError


@given(st.integers(1, 16), st.integers(1, 200), st.integers(0, 9))
def test_packed_ids_come_back_in_any_order(bits: int, num_ids: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 1 << bits, (num_ids,), generator=generator)
    ids[-1] = (1 << bits) - 1
    packed = pack_ids(ids, bits)
    order = torch.randperm(num_ids, generator=generator)
    assert torch.equal(take_bits(packed, order, bits), ids[order])
    assert packed.dtype == torch.uint8
    assert len(packed) == packed_size(num_ids, bits)


@given(st.integers(1, 16), st.integers(1, 10**6))
def test_ids_take_their_bits_and_at_most_one_byte_more(bits: int, num_ids: int) -> None:
    assert 0 <= packed_size(num_ids, bits) - -(-num_ids * bits // 8) <= 1


def test_no_ids_are_no_ids() -> None:
    none = torch.zeros(0, dtype=torch.long)
    assert take_bits(pack_ids(none, 3), none, 3).tolist() == []


@given(st.integers(1, 5000), st.integers(4, 128), st.integers(0, 10**6))
def test_rows_and_their_ids_fill_the_budget(num_ids: int, row_bytes: int, num_bytes: int) -> None:
    def needed(rows: int) -> int:
        return packed_size(num_ids, bits_for(rows)) + rows * row_bytes

    if num_bytes < needed(2):
        with pytest.raises(ArgumentError, match=f"k-means, which takes at least {needed(2)}"):
            rows_within("k-means", num_ids, row_bytes, num_bytes, most=num_ids)
        return
    rows = rows_within("k-means", num_ids, row_bytes, num_bytes, most=num_ids)
    assert needed(rows) <= num_bytes
    assert rows >= num_ids or needed(rows + 1) > num_bytes
