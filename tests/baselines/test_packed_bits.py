"""Packed bits say which places are ones, and how many come before."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from celrec.baselines.packed_bits import (
    bits_length,
    is_one,
    ones_before,
    pack_bits,
    pack_set,
    places_in_set,
    set_length,
)


@given(st.integers(1, 2000), st.sampled_from([0.0, 0.01, 0.5, 0.99, 1.0]), st.integers(0, 99))
def test_bits_are_read_back_and_counted(num_places, share, seed):
    bits = torch.rand(num_places, generator=torch.Generator().manual_seed(seed)) < share
    packed = pack_bits(bits)
    places = torch.arange(num_places)
    assert packed.dtype == torch.int32
    assert packed.shape == (bits_length(num_places),)
    assert torch.equal(is_one(packed, places), bits)
    assert torch.equal(ones_before(packed, places), bits.cumsum(0) - bits.long())


@pytest.mark.parametrize("num_members", [0, 1, 5, 60, 600, 1000])
def test_a_set_gives_its_members_their_places_however_many_they_are(num_members):
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(num_members))
    members = order[:num_members].sort().values
    packed = pack_set(members, num_places=1000)
    assert packed.shape == (set_length(num_members, 1000),)
    expected = torch.full((1000,), -1)
    expected[members] = torch.arange(num_members)
    assert torch.equal(places_in_set(packed, torch.arange(1000), num_places=1000), expected)


def test_a_bit_for_each_of_many_takes_an_eighth_more_than_a_bit():
    assert 4 * bits_length(10**6) < 1.126 * 10**6 / 8
    assert set_length(10**6, 10**6) == bits_length(10**6)
    assert set_length(10, 10**6) == 10
