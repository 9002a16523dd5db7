"""Offsets of personal vectors, packed: numbers of eight bits and one scale of sixteen each."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_LEVEL = 127

_LARGEST_SCALE_BITS = 0x7BFF  # of 65,504; the next bits are infinity's


def quantize_offsets(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Eight-bit numbers and one scale for each offset.

    offsets : float (P, D)
    returns : int8 (P, D), and the bits of float16 scales, int16 (P,): a model's `.to(dtype)` must
        not widen them. Their product is within half a scale of the offset; beyond 127 times the
        largest scale, 8.3 million, numbers are cut to that

    >>> levels, scale = quantize_offsets(torch.tensor([[1.27, -0.5]]))
    >>> levels.tolist()
    [[127, -50]]
    >>> offsets_of(levels, scale)
    tensor([[ 1.2703, -0.5001]])
    """
    assert bool(offsets.isfinite().all()), "a NaN has no level"
    largest = offsets.abs().amax(1).float()
    scale = (largest / LARGEST_LEVEL).to(torch.float16)
    # Rounded up, so that the largest number fits: the next float16 has the next bits.
    bits = scale.view(torch.int16) + (scale.float() * LARGEST_LEVEL < largest).to(torch.int16)
    bits.clamp_max_(_LARGEST_SCALE_BITS)
    divisor = bits.view(torch.float16).float().clamp_min(2**-24).unsqueeze(1)
    levels = (offsets / divisor).round().clamp(-LARGEST_LEVEL, LARGEST_LEVEL)
    return levels.to(torch.int8), bits


def offsets_of(levels: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The offsets, (L, D), that `quantize_offsets` packed into int8 (L, D) and int16 (L,)."""
    return levels.to(dtype) * scale.view(torch.float16).to(dtype).unsqueeze(1)


def offset_bytes(width: int) -> int:
    """What one offset of `width` numbers takes.

    >>> offset_bytes(32)
    34
    """
    return width + 2
