"""Offsets of personal vectors, packed: numbers of eight or four bits, and one scale of 16 each.

With four bits the largest numbers are cut where that lets the others be finer. A vector that is
learned from one entity's samples is known no better than that: docs/results/codes.md has both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from celrec.core.codes import pack_pairs, unpack_pairs

LARGEST_LEVEL = {8: 127, 4: 7}
"""By bits of a number."""

_LARGEST_SCALE_BITS = 0x7BFF  # of 65,504; the next bits are infinity's
_SHARES_KEPT = {8: (1.0,), 4: (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)}  # of the largest number, tried
_MIDDLE = 8  # stands for 0 where numbers of four bits are packed


def quantize_offsets(offsets: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Numbers of a few bits and one scale for each offset.

    offsets : float (P, D)
    bits : 8 or 4
    returns : int8 (P, D), or uint8 (P, ceil(D / 2)) with two numbers of four bits to a byte; and
        the bits of float16 scales, int16 (P,): a model's `.to(dtype)` must not widen them. With
        eight bits the product is within half a scale of the offset; beyond 127 times the largest
        scale, 8.3 million, numbers are cut to that. With four the squared error is the least of
        six scales

    >>> levels, scale = quantize_offsets(torch.tensor([[1.27, -0.5]]))
    >>> levels.tolist()
    [[127, -50]]
    >>> offsets_of(levels, scale, width=2)
    tensor([[ 1.2703, -0.5001]])
    >>> offsets_of(*quantize_offsets(torch.tensor([[0.7, -0.3, 0.1]]), bits=4), width=3)
    tensor([[ 0.7003, -0.3001,  0.1000]])
    """
    assert bool(offsets.isfinite().all()), "a NaN has no level"
    largest = offsets.abs().amax(1).float()
    found, least = None, torch.full_like(largest, torch.inf)
    for share in _SHARES_KEPT[bits]:
        levels, scale = _rounded(offsets, largest * share, LARGEST_LEVEL[bits])
        error = (_product(levels, scale, torch.float32) - offsets.float()).square().sum(1)
        if found is None:
            found, least = (levels, scale), error
            continue
        is_better = error < least
        found = (levels.where(is_better[:, None], found[0]), scale.where(is_better, found[1]))
        least = error.minimum(least)
    assert found is not None
    levels, scale = found
    return (levels if bits == 8 else pack_pairs(levels + _MIDDLE)), scale


def _rounded(offsets: Tensor, largest: Tensor, largest_level: int) -> tuple[Tensor, Tensor]:
    """Levels int8 (P, D) and bits of scales, int16 (P,), with which `largest`, (P,), fits."""
    scale = (largest / largest_level).to(torch.float16)
    # Rounded up, so that the largest number fits: the next float16 has the next bits.
    bits = scale.view(torch.int16) + (scale.float() * largest_level < largest).to(torch.int16)
    bits.clamp_max_(_LARGEST_SCALE_BITS)
    divisor = bits.view(torch.float16).float().clamp_min(2**-24).unsqueeze(1)
    levels = (offsets / divisor).round().clamp(-largest_level, largest_level)
    return levels.to(torch.int8), bits


def offsets_of(
    levels: Tensor, scale: Tensor, width: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The offsets, (L, D), that `quantize_offsets` packed.

    levels : int8 (L, D) or uint8 (L, ceil(D / 2))      scale : int16 (L,)      width : D
    """
    if levels.dtype == torch.uint8:
        levels = unpack_pairs(levels, width).to(torch.int8) - _MIDDLE
    return _product(levels, scale, dtype)


def _product(levels: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return levels.to(dtype) * scale.view(torch.float16).to(dtype).unsqueeze(1)


def are_offsets(levels: Tensor, scale: Tensor, width: int) -> bool:
    """Whether arrays have the types and shapes of packed offsets of that width."""
    numbers = {torch.int8: width, torch.uint8: -(-width // 2)}.get(levels.dtype)
    return scale.dtype == torch.int16 and levels.shape == (scale.numel(), numbers)


def offset_bytes(width: int, bits: int = 8) -> int:
    """What one offset of `width` numbers takes.

    >>> offset_bytes(32), offset_bytes(32, bits=4)
    (34, 18)
    """
    return -(-width * bits // 8) + 2
