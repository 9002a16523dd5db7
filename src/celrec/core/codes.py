"""Codes: what an entity stores instead of a vector, packed into as few bytes as possible.

A hard code is the id of a cluster. A blended code is m ids with weights. Up to 256 clusters an id
takes one byte, up to 65,536 two, then four. Two-byte ids are the bits of an unsigned number kept in
`torch.int16`, because torch has no gather for `torch.uint16`; `unpack` undoes it.

A weight is an integer q_i in 0..15 over the sum of the code's q; two of them share a byte, the
first in the low four bits. So a blend takes m ids and ceil(m / 2) bytes: 1.5 m bytes for an even m
and up to 256 clusters. A code of one id needs no weight.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

LARGEST_WEIGHT = 15
MAX_BLEND = 64  # ids in a code; what lies beyond them has no weight worth four bits

_MASK_16 = 0xFFFF
_VIEWED_AS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Types that hold a whole line of a code; a gather of one number beats a gather of a few bytes."""


def code_dtype(max_clusters: int) -> torch.dtype:
    """Choose the smallest type that holds every id in [0, max_clusters).

    max_clusters : K_max in [1, 2**31]

    >>> [code_dtype(k) for k in (256, 257, 65_537)]
    [torch.uint8, torch.int16, torch.int32]
    """
    if max_clusters <= 1 << 8:
        return torch.uint8
    return torch.int16 if max_clusters <= 1 << 16 else torch.int32


def pack(cluster_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn cluster ids into codes.

    cluster_ids : integers of any shape, in the range that `dtype` was chosen for
    returns : codes of the same shape and of type `dtype`

    >>> unpack(pack(torch.tensor([0, 40_000, 65_535]), torch.int16)).tolist()
    [0, 40000, 65535]
    """
    return cluster_ids.to(dtype)  # int64 to int16 keeps the low 16 bits, which is what we want


def unpack(codes: Tensor) -> Tensor:
    """Turn codes into cluster ids, int64 of the same shape."""
    ids = codes.long()
    return ids & _MASK_16 if codes.dtype == torch.int16 else ids


def quantize(weights: Tensor) -> Tensor:
    """Turn weights into integers in 0..15, the largest of each code becoming 15.

    weights : float (*, m) >= 0, with one above 0 in every code
    returns : uint8 (*, m)

    >>> quantize(torch.tensor([0.75, 0.25, 0.0])).tolist()
    [15, 5, 0]
    """
    largest = weights.amax(-1, keepdim=True)
    return (weights / largest * LARGEST_WEIGHT).round().to(torch.uint8)


def weighed(clusters: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Clusters and integer weights of codes.

    clusters : int64 (*, m), the heaviest first      weights : float (*, m), as for `quantize`
    returns : clusters, (*, m), and weights, uint8 (*, m). Without weight any cluster will do: it is
        the first then, which is live and looked up anyway
    """
    levels = quantize(weights)
    return clusters.where(levels > 0, clusters[..., :1]), levels


def pack_weights(levels: Tensor) -> Tensor:
    """Put the weights of codes, two to a byte.

    levels : integers (N, m) in 0..15
    returns : uint8 (N, ceil(m / 2)); (N, 0) for m = 1, whose one weight is 1

    >>> pack_weights(torch.tensor([[15, 5, 1]])).tolist()
    [[95, 1]]
    """
    num_entities, blend_size = levels.shape
    if blend_size == 1:
        return levels.new_empty(num_entities, 0, dtype=torch.uint8)
    return pack_pairs(levels)


def unpack_weights(packed: Tensor, blend_size: int) -> Tensor:
    """Turn packed weights into float32 weights, which sum to 1 in every code.

    packed : uint8 (L, ceil(m / 2))
    returns : float32 (L, m)

    >>> unpack_weights(torch.tensor([[95]], dtype=torch.uint8), blend_size=2).tolist()
    [[0.75, 0.25]]
    """
    if blend_size == 1:
        return torch.ones(packed.shape[0], 1, device=packed.device)
    levels = unpack_pairs(packed, blend_size).float()
    return levels / levels.sum(1, keepdim=True)


def pack_pairs(numbers: Tensor) -> Tensor:
    """Put numbers of four bits two to a byte, the first in the low bits.

    numbers : integers (L, C) in 0..15
    returns : uint8 (L, ceil(C / 2))
    """
    numbers = numbers.to(torch.uint8)
    if numbers.shape[1] % 2:
        numbers = torch.cat([numbers, torch.zeros_like(numbers[:, :1])], 1)
    return numbers[:, 0::2] | (numbers[:, 1::2] << 4)


def unpack_pairs(packed: Tensor, count: int) -> Tensor:
    """Take numbers apart that `pack_pairs` put together, uint8 (L, C).

    packed : uint8 (L, ceil(C / 2))      count : C
    """
    return torch.stack([packed & 15, packed >> 4], -1).flatten(1)[:, :count]


def pack_bits(numbers: Tensor, bits: int) -> Tensor:
    """Put numbers of a few bits one behind the other, across the borders of bytes.

    numbers : integers (C,) in [0, 2^bits)      bits : in [1, 16]
    returns : uint8 (ceil(C * bits / 8) + 2,); two bytes more, so that every read may take three

    >>> pack_bits(torch.tensor([5, 2, 7]), bits=3).tolist()
    [213, 1, 0, 0]
    """
    single = (numbers.cpu().numpy()[:, None] >> np.arange(bits)) & 1  # (C, bits), lowest first
    packed = np.zeros(packed_bytes(len(numbers), bits), dtype=np.uint8)
    stream = np.packbits(single.astype(np.uint8), bitorder="little")
    packed[: len(stream)] = stream
    return torch.from_numpy(packed).to(numbers.device)


def take_bits(packed: Tensor, places: Tensor, bits: int) -> Tensor:
    """Read numbers that `pack_bits` wrote.

    places : int64 of any shape, in [0, C)
    returns : int64 of the same shape

    >>> take_bits(pack_bits(torch.tensor([5, 2, 7]), bits=3), torch.tensor([[2], [0]]), 3).tolist()
    [[7], [5]]
    """
    first = places * bits
    byte = first >> 3
    word = packed[byte].long()
    for number in range(1, bytes_spanned(bits)):
        word |= packed[byte + number].long() << 8 * number
    return word >> (first & 7) & (1 << bits) - 1


def bytes_spanned(bits: int) -> int:
    """The bytes in which a packed number surely lies, for it begins at a multiple of gcd(bits, 8).

    >>> [bytes_spanned(bits) for bits in (4, 5, 8, 11)]
    [1, 2, 1, 3]
    """
    return -(-(8 - math.gcd(bits, 8) + bits) // 8)


def packed_bytes(count: int, bits: int) -> int:
    """What `pack_bits` makes of so many numbers.

    >>> packed_bytes(3, bits=3)
    4
    """
    return -(-count * bits // 8) + 2


def bits_for(num_values: int) -> int:
    """Bits of a number in [0, num_values), at least one.

    >>> [bits_for(n) for n in (2, 16, 17)]
    [1, 4, 5]
    """
    return max(1, (num_values - 1).bit_length())


def take_lines(lines: Tensor, ids: Tensor) -> Tensor:
    """`lines.index_select(0, ids)` for lines of a few bytes, several times faster.

    lines : (N, C) integers      ids : int (L,)
    returns : (L, C)
    """
    wide = _VIEWED_AS.get(lines.shape[1] * lines.element_size())
    if wide is None or not lines.is_contiguous() or wide is lines.dtype:
        return lines.index_select(0, ids)
    taken = lines.view(wide).view(-1).index_select(0, ids)
    return taken.unsqueeze(1).view(lines.dtype)


def code_bytes(blend_size: int, id_bytes: int) -> int:
    """What one code takes.

    blend_size : m      id_bytes : what one id takes

    >>> [code_bytes(m, 1) for m in (1, 2, 3, 4)]
    [1, 3, 5, 6]
    """
    return blend_size * id_bytes + (0 if blend_size == 1 else -(-blend_size // 2))


def cluster_sizes(cluster_ids: Tensor, num_clusters: int) -> Tensor:
    """Count the members of every cluster.

    cluster_ids : int (N,)  cluster of each entity, values in [0, num_clusters)
    returns : int64 (num_clusters,)  sums to N; an unused cluster counts 0

    >>> cluster_sizes(torch.tensor([0, 2, 2]), num_clusters=4).tolist()
    [1, 0, 2, 0]
    """
    return torch.bincount(cluster_ids, minlength=num_clusters)
