"""One bit for every place in a line, packed so that the ones before a place are counted at once.

Several methods keep something for a few entities only and must say for which, and where it is: the
ones before an entity's bit are the number of its line. Bits are kept in blocks of 256, each with
the number of ones before it: nine integers of 32 bits, an eighth more than the bits themselves. A
set that is small beside the line is kept as the sorted list of its members, where that is shorter.

Source: Jacobson, "Space-efficient static trees and graphs", FOCS 1989 (rank).
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORDS = 8
_WORD_BITS = 32
_BLOCK_BITS = _WORDS * _WORD_BITS
_LINE = _WORDS + 1


def bits_length(num_places: int) -> int:
    """How many integers `pack_bits` takes.

    >>> bits_length(256), bits_length(257)
    (9, 18)
    """
    return _LINE * -(-num_places // _BLOCK_BITS)


def pack_bits(bits: Tensor) -> Tensor:
    """Pack bits, and the number of ones before each block of them.

    bits : bool (n,)
    returns : int32 (bits_length(n),)

    >>> packed = pack_bits(torch.tensor([True, False, True]))
    >>> is_one(packed, torch.tensor([0, 1, 2])).tolist()
    [True, False, True]
    >>> ones_before(packed, torch.tensor([0, 1, 2, 3])).tolist()
    [0, 1, 1, 2]
    """
    num_blocks = -(-len(bits) // _BLOCK_BITS)
    padded = bits.new_zeros(num_blocks * _BLOCK_BITS)
    padded[: len(bits)] = bits
    ones = padded.view(num_blocks, _BLOCK_BITS).sum(1)
    place_values = 1 << torch.arange(_WORD_BITS, device=bits.device)
    words = (padded.view(num_blocks, _WORDS, _WORD_BITS) * place_values).sum(2)
    return torch.cat([(ones.cumsum(0) - ones).unsqueeze(1), words], 1).int().flatten()


def is_one(packed: Tensor, places: Tensor) -> Tensor:
    """The bits at places, bool in their shape.

    packed : from `pack_bits`      places : int64, any shape, in [0, n)
    """
    word = (places >> 8) * _LINE + 1 + ((places >> 5) & 7)
    return (packed[word] >> (places & 31)) & 1 == 1


def ones_before(packed: Tensor, places: Tensor) -> Tensor:
    """How many ones come before places, int64 (L,).

    packed : from `pack_bits`      places : int64 (L,) in [0, n), or n where that is not the end of
        a block
    """
    lines = packed.view(-1, _LINE).index_select(0, places >> 8).long()  # (L, 9)
    starts = _WORD_BITS * torch.arange(_WORDS, device=places.device)
    num_counted = ((places & 255).unsqueeze(1) - starts).clamp(0, _WORD_BITS)  # (L, 8)
    words = lines[:, 1:] & ((1 << num_counted) - 1)
    # Ones in groups of 2, 4, then 8 bits. A byte holds what eight words add to it, at most 64.
    words = words - ((words >> 1) & 0x55555555)
    words = (words & 0x33333333) + ((words >> 2) & 0x33333333)
    groups = ((words + (words >> 4)) & 0x0F0F0F0F).sum(1)
    return lines[:, 0] + ((groups * 0x01010101) >> 24 & 0xFF)


def set_length(num_members: int, num_places: int) -> int:
    """How many integers `pack_set` takes.

    >>> set_length(3, 10_000), set_length(3000, 10_000)
    (3, 360)
    """
    return min(num_members, bits_length(num_places))


def pack_set(members: Tensor, num_places: int) -> Tensor:
    """Pack a set of places: as a list of its members, or as bits if that is no longer.

    members : int64 (M,), sorted, each once, in [0, n)      num_places : n
    returns : int32 (set_length(M, n),)

    >>> packed = pack_set(torch.tensor([2, 7]), num_places=10)
    >>> places_in_set(packed, torch.tensor([2, 3, 7]), num_places=10).tolist()
    [0, -1, 1]
    """
    if len(members) < bits_length(num_places):
        return members.int()
    bits = torch.zeros(num_places, dtype=torch.bool, device=members.device)
    bits[members] = True
    return pack_bits(bits)


def places_in_set(packed: Tensor, ids: Tensor, num_places: int) -> Tensor:
    """The number of each id among the members of a set, from 0; -1 where it is none.

    packed : from `pack_set`      ids : int64 (L,) in [0, n)      num_places : n
    returns : int64 (L,)
    """
    if not len(packed):
        return torch.full_like(ids, -1)
    if len(packed) < bits_length(num_places):
        places = torch.searchsorted(packed, ids.int())
        found = packed[places.clamp_max(len(packed) - 1)] == ids
    else:
        places, found = ones_before(packed, ids), is_one(packed, ids)
    return torch.where(found, places, -1)
