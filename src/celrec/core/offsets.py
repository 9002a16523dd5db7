"""Offsets of personal vectors, packed: numbers of eight bits and one scale of sixteen each."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_LEVEL = 127


def quantize_offsets(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Eight-bit numbers and one scale for each offset.

    offsets : float (P, D)
    returns : int8 (P, D), and the bits of float16 scales, int16 (P,): a model's `.to(dtype)` must
        not widen them. Their product is within half a scale of the offset

    >>> levels, scale = quantize_offsets(torch.tensor([[1.27, -0.5]]))
    >>> levels.tolist()
    [[127, -50]]
    >>> offsets_of(levels, scale)
    tensor([[ 1.2712, -0.5005]])
    """
    largest = offsets.abs().amax(1)
    # Rounded up, so that the largest number fits; below float16's smallest nothing is kept.
    scale = (largest / LARGEST_LEVEL * (1 + 2**-10)).to(torch.float16)
    divisor = scale.float().clamp_min(2**-24).unsqueeze(1)
    levels = (offsets.float() / divisor).round().clamp(-LARGEST_LEVEL, LARGEST_LEVEL)
    return levels.to(torch.int8), scale.view(torch.int16)


def offsets_of(levels: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The offsets, (L, D), that `quantize_offsets` packed into int8 (L, D) and int16 (L,)."""
    return levels.to(dtype) * scale.view(torch.float16).to(dtype).unsqueeze(1)


def offset_bytes(width: int) -> int:
    """What one offset of `width` numbers takes.

    >>> offset_bytes(32)
    34
    """
    return width + 2
