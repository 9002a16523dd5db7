"""Uniform quantization after training: every number becomes an integer of a few bits.

The honest question to any method that shares rows: why not just quantize? A full table is trained,
and then each vector is rounded to a few evenly spaced levels, with a step of its own. Nothing is
shared and no vector is lost, but an entity can never take less than one or two bits a number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from celrec.baselines.contract import too_small
from celrec.baselines.full_in_training import FullInTraining
from celrec.errors import check_count

_FEWEST_BITS, _MOST_BITS = 2, 8
_CLIPS = torch.linspace(1.0, 0.5, 11)
"""Shares of a vector's largest number that are tried as the outermost level."""
_SCALE_BYTES = 2


class QuantizedEmbedding(FullInTraining):
    """`torch.nn.Embedding`, full in training, of integers of `bits` bits once it is finished.

    bits : in [2, 8], of every number
    other arguments : as in `CompressedEmbedding`

    An entity's vector is centre + scale * (levels - (2^bits - 1) / 2), where levels are its
    integers. The outermost level is the best of a few clips of the vector's largest number; the
    scale is then the one of least squared error.

    levels : the integers, uint8 (N, ceil(D * bits / 8)), packed by entity
    scale : float16 (N,)      centre : the mean vector, float32 (D,)

    Source: Guan et al., "Post-training 4-bit quantization on embedding tables", arXiv 2019: by row,
    uniform, the clip found by search, the scale a float16. Theirs has a zero point for every row;
    ours is one for the whole table, the centre. At 32 numbers a vector a second float16 costs as
    much as half a bit for all of them, which brings more.

    >>> table = QuantizedEmbedding(1000, 8, bits=4)
    >>> table.finish()
    >>> table(torch.tensor([5])).shape, table.memory().total_bytes
    (torch.Size([1, 8]), 6032)
    """

    kind = "quantized"
    source = "Guan et al., arXiv 2019"
    codes = ("levels",)
    personal = ("scale",)

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        bits: int,
        padding_idx: int | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        self.bits = check_count("bits", bits, at_least=_FEWEST_BITS, at_most=_MOST_BITS)
        self.levels: Tensor
        self.scale: Tensor
        self.centre: Tensor
        num_bytes = _bytes_of(self.embedding_dim, self.bits)
        self.register_buffer(
            "levels", torch.zeros(self.num_embeddings, num_bytes, dtype=torch.uint8)
        )
        self.register_buffer("scale", torch.zeros(self.num_embeddings, dtype=torch.float16))
        self.register_buffer("centre", torch.zeros(self.embedding_dim))
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        sizes = {
            bits: 4 * embedding_dim
            + num_embeddings * (_SCALE_BYTES + _bytes_of(embedding_dim, bits))
            for bits in range(_FEWEST_BITS, _MOST_BITS + 1)
        }
        fitting = [bits for bits, size in sizes.items() if size <= num_bytes]
        if not fitting:
            raise too_small(cls.kind, num_bytes, sizes[_FEWEST_BITS])
        return {"bits": max(fitting)}

    def compress(self) -> None:
        vectors = self.weight.detach()
        self.centre.copy_(vectors.mean(0))
        levels, scale = _quantized(vectors - self.centre, self.bits)
        self.levels.copy_(_packed(levels, self.bits))
        self.scale.copy_(scale)

    def served(self, ids: Tensor) -> Tensor:
        levels = _unpacked(self.levels.index_select(0, ids), self.bits, self.embedding_dim)
        steps = levels.to(self.centre.dtype) - _middle(self.bits)
        scale = self.scale.index_select(0, ids).to(self.centre.dtype)
        return torch.addcmul(self.centre, scale.unsqueeze(1), steps)

    def options(self) -> dict[str, Any]:
        return super().options() | {"bits": self.bits}


def _bytes_of(width: int, bits: int) -> int:
    return -(-width * bits // 8)


def _middle(bits: int) -> float:
    """Half way between the lowest level, 0, and the highest: what stands for zero."""
    return ((1 << bits) - 1) / 2


def _quantized(vectors: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Levels, uint8 (N, D) in [0, 2^bits), and scales, float16 (N,), of least squared error."""
    middle = _middle(bits)
    largest = vectors.abs().amax(1)
    best_levels = torch.zeros_like(vectors, dtype=torch.uint8)
    best_scale = torch.zeros_like(largest, dtype=torch.float16)
    best_error = torch.full_like(largest, torch.inf)
    for clip in _CLIPS.tolist():
        step = (largest * clip / middle).clamp_min(torch.finfo(vectors.dtype).tiny)
        levels = (vectors / step.unsqueeze(1) + middle).round().clamp(0, 2 * middle)
        centred = levels - middle
        scale = ((vectors * centred).sum(1) / centred.square().sum(1)).half()
        error = (vectors - scale.to(vectors.dtype).unsqueeze(1) * centred).square().sum(1)
        is_better = error < best_error
        best_levels[is_better] = levels[is_better].to(torch.uint8)
        best_scale[is_better] = scale[is_better]
        best_error[is_better] = error[is_better]
    return best_levels, best_scale


def _packed(levels: Tensor, bits: int) -> Tensor:
    """Levels (N, D) as uint8 (N, ceil(D * bits / 8)): numbers one behind the other, low bits first.

    Every entity starts on a byte of its own, so that a look-up reads whole lines.
    """
    ones = (levels.cpu().numpy()[:, :, None] >> np.arange(bits, dtype=np.uint8)) & 1
    lines = np.packbits(ones.reshape(len(levels), -1), axis=1, bitorder="little")
    return torch.from_numpy(lines).to(levels.device)


def _unpacked(lines: Tensor, bits: int, width: int) -> Tensor:
    """The levels (L, D) of packed lines, int32."""
    first_bit = bits * torch.arange(width, device=lines.device)
    first_byte = first_bit >> 3
    next_byte = (first_byte + 1).clamp_max(lines.shape[1] - 1)  # of the last byte nothing is read
    found = lines.int()
    low, high = (
        found.gather(1, byte.expand(len(lines), width)) for byte in (first_byte, next_byte)
    )
    return ((low | high << 8) >> (first_bit & 7).int()) & ((1 << bits) - 1)
