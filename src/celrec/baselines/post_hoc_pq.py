"""Product quantization after training: a vector is cut in parts, and each part is clustered.

With M parts and K centroids for each, K * D numbers stand for K^M different vectors, so that an
entity keeps much of its own at a few bits. As with k-means, a full table is trained first, and the
loss knows nothing of what becomes of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from celrec.baselines.full_in_training import FullInTraining
from celrec.baselines.kmeans import k_means
from celrec.baselines.packed_ids import pack_ids, packed_size, rows_within
from celrec.core.codes import bits_for, take_bits
from celrec.errors import check_count

_MOST_BITS = 8
_TRIAL_ENTITIES = 1 << 14
_TRIAL_PASSES = 4


class ProductQuantizedEmbedding(FullInTraining):
    """`torch.nn.Embedding`, full in training, whose vectors are cut and clustered when finished.

    num_bytes : what codebooks and codes may take, at least two centroids of one part
    seed : of k-means
    other arguments : as in `CompressedEmbedding`

    codebooks : the centroids (K, D) of all parts side by side
    packed : the M ids of every entity, one behind the other, each of log2 K bits

    Every K from 2 to 256 is tried with as many parts as then fit, on a sample of the vectors, and
    the one with the least squared error is taken. Widths of parts differ by one at most.

    Source: Jégou, Douze and Schmid, "Product quantization for nearest neighbor search", IEEE PAMI
    2011, section II, where K is 16 or 256. A learned rotation (Ge et al., "Optimized product
    quantization", CVPR 2013) is left out: on vectors of matrix factorization it brought the error
    down by less than its D * D numbers cost.

    >>> table = ProductQuantizedEmbedding(1000, 8, num_bytes=4000)
    >>> table.finish()
    >>> table(torch.arange(1000)).shape, table.memory().total_bytes <= 4000
    (torch.Size([1000, 8]), True)
    """

    kind = "pq"
    source = "Jégou et al., IEEE PAMI 2011"
    codes = ("packed",)
    flexible = ("codebooks", "packed")

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_bytes: int,
        padding_idx: int | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        self.num_bytes = check_count("num_bytes", num_bytes)
        # Until the vectors are known, any sizes will do: those of the fewest centroids.
        rows_within(self.kind, self.num_embeddings, 4 * self.embedding_dim, self.num_bytes, most=2)
        self.codebooks: Tensor
        self.packed: Tensor
        self.register_buffer("codebooks", torch.zeros(2, self.embedding_dim))
        packed = torch.zeros(packed_size(self.num_embeddings * self._parts_of(1), 1))
        self.register_buffer("packed", packed.to(torch.uint8))
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        return {"num_bytes": num_bytes}

    @property
    def bits(self) -> int:
        """Of the id of a centroid: log2 K."""
        return bits_for(self.codebooks.shape[0])

    @property
    def num_parts(self) -> int:
        """M, in [1, D]: as many as fit."""
        return self._parts_of(self.bits)

    def compress(self) -> None:
        vectors = self.weight.detach()
        generator = torch.Generator().manual_seed(self.seed)
        some = torch.randperm(len(vectors), generator=generator)[:_TRIAL_ENTITIES]
        sample = vectors[some.to(vectors.device)]
        errors = {}
        for bits in self._candidates():
            codebooks, codes = self._quantized(sample, bits, num_passes=_TRIAL_PASSES)
            errors[bits] = float((self._put_together(codebooks, codes) - sample).square().sum())
        best = min(errors, key=lambda bits: errors[bits])
        codebooks, codes = self._quantized(vectors, best)
        self._resize("codebooks", 1 << best)
        self._resize("packed", packed_size(codes.numel(), best))
        self.codebooks.copy_(codebooks)
        self.packed.copy_(pack_ids(codes.flatten(), best))

    def part_ids(self, ids: Tensor) -> Tensor:
        """The centroid of each part of entities, int64 (L, M) in [0, K), for int64 (L,)."""
        numbers = torch.arange(self.num_parts, device=ids.device)
        positions = ids.unsqueeze(1) * self.num_parts + numbers
        return take_bits(self.packed, positions, self.bits)

    def served(self, ids: Tensor) -> Tensor:
        return self._put_together(self.codebooks, self.part_ids(ids))

    def options(self) -> dict[str, Any]:
        return super().options() | {"num_bytes": self.num_bytes}

    def _num_rows(self) -> int:
        return self.codebooks.shape[0]

    def _parts_of(self, bits: int) -> int:
        """The most parts that fit with centroids of so many bits; 0 if there is room for none."""
        left = self.num_bytes - 4 * (self.embedding_dim << bits)
        parts = range(self.embedding_dim, 0, -1)
        return next((m for m in parts if packed_size(self.num_embeddings * m, bits) <= left), 0)

    def _candidates(self) -> list[int]:
        """Bits with room for a part, but none where one more would leave parts as they are."""
        parts = {bits: self._parts_of(bits) for bits in range(1, _MOST_BITS + 1)}
        return [
            bits
            for bits, num_parts in parts.items()
            if num_parts and parts.get(bits + 1) != num_parts
        ]

    def _quantized(self, vectors: Tensor, bits: int, **options: Any) -> tuple[Tensor, Tensor]:
        """Codebooks (2^bits, D), and the ids (n, M) that vectors (n, D) have in them."""
        parts = torch.tensor_split(vectors, self._parts_of(bits), dim=1)
        found = [k_means(part, 1 << bits, self.seed, **options) for part in parts]
        return torch.cat([rows for rows, _ in found], 1), torch.stack([ids for _, ids in found], 1)

    def _put_together(self, codebooks: Tensor, codes: Tensor) -> Tensor:
        """The vectors (L, D) of ids (L, M)."""
        numbers = torch.arange(self.embedding_dim, device=codes.device)
        parts = torch.tensor_split(numbers, codes.shape[1])
        part_of = torch.cat([torch.full_like(part, m) for m, part in enumerate(parts)])
        return codebooks.gather(0, codes[:, part_of])
