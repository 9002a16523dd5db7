"""Ids of few bits, packed without gaps, and the sizes that a budget of bytes allows.

Methods that give an entity the id of a shared row must store that id. Thirteen rows need four bits,
not the eight of the smallest integer type; for small tables that is the difference between fitting
a budget and not. Here ids of 1 to 16 bits stand one behind the other in a stream of bytes.
"""

from __future__ import annotations

from torch import Tensor

from celrec.baselines.contract import too_small
from celrec.core.codes import bytes_spanned, pack_bits

MOST_BITS = 16


def packed_size(num_ids: int, bits: int) -> int:
    """The bytes that so many ids take: their bits, rounded up, and at most one more.

    >>> packed_size(1000, bits=4), packed_size(1000, bits=3)
    (500, 376)
    """
    spare = bytes_spanned(bits) - -(-bits // 8)  # so that the last id can be read like all others
    return -(-num_ids * bits // 8) + spare


def pack_ids(ids: Tensor, bits: int) -> Tensor:
    """Pack ids, int (n,) in [0, 2**bits), into uint8 (packed_size(n, bits),).

    bits : in [1, 16]
    `take_bits` of core/codes.py reads them.

    >>> import torch
    >>> pack_ids(torch.tensor([1, 2, 3, 0]), bits=2).tolist()
    [57]
    """
    return pack_bits(ids, bits)[: packed_size(len(ids), bits)].clone()


def rows_within(
    kind: str, num_ids: int, row_bytes: int, num_bytes: int, *, most: int, other_bytes: int = 0
) -> int:
    """The largest number of rows that fit a budget beside the ids that point at them.

    num_ids, row_bytes : ids to store, of `bits_for` as many rows (core/codes.py), and the bytes of
        a row
    most : rows beyond these are of no use; at least two are made
    other_bytes : of the budget, for something else
    raises : ArgumentError if not even two rows fit; `kind` names the method

    >>> rows_within("k-means", num_ids=1000, row_bytes=128, num_bytes=4096, most=1000)
    27
    """
    left = num_bytes - other_bytes
    least = packed_size(num_ids, 1) + 2 * row_bytes
    if left < least:
        raise too_small(kind, num_bytes, least + other_bytes)
    fitting = [
        min(1 << bits, (left - packed_size(num_ids, bits)) // row_bytes)
        for bits in range(1, MOST_BITS + 1)
    ]
    return min(max(fitting), max(2, most))
