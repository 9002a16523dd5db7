"""k-means after training: the plainest way from a full table to a few rows.

A full table is trained, and then its vectors are clustered. Every entity keeps the id of its
cluster, the table the centroids. The loss of training knows nothing of the clusters, and the
clusters nothing of the loss: a vector moves as far as its centroid is, wherever that leads.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from celrec.baselines.full_in_training import FullInTraining
from celrec.baselines.kmeans import k_means
from celrec.baselines.packed_ids import MOST_BITS, pack_ids, packed_size, rows_within
from celrec.core.codes import bits_for, take_bits
from celrec.errors import check_count


class KMeansEmbedding(FullInTraining):
    """`torch.nn.Embedding`, full in training, whose entities share centroids once it is finished.

    num_rows : K in [1, 65536]   centroids
    seed : of k-means
    other arguments : as in `CompressedEmbedding`

    rows : the centroids (K, D)      packed : the ids of entities' centroids, in few bits

    Source: Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory
    1982; started as in Arthur and Vassilvitskii, "k-means++", SODA 2007.

    >>> table = KMeansEmbedding(1000, 8, num_rows=16)
    >>> table.finish()
    >>> table(torch.arange(1000)).unique(dim=0).shape, table.memory().total_bytes
    (torch.Size([16, 8]), 1012)
    """

    kind = "k-means"
    source = "Lloyd, IEEE TIT 1982"
    codes: ClassVar[tuple[str, ...]] = ("packed",)

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_rows: int,
        padding_idx: int | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        self.num_rows = check_count("num_rows", num_rows, at_least=1, at_most=1 << MOST_BITS)
        self.bits = bits_for(self.num_rows)
        self.rows: Tensor
        self.packed: Tensor
        self.register_buffer("rows", torch.zeros(self.num_rows, self.embedding_dim))
        packed = torch.zeros(packed_size(self.num_embeddings, self.bits), dtype=torch.uint8)
        self.register_buffer("packed", packed)
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        num_rows = rows_within(
            cls.kind, num_embeddings, 4 * embedding_dim, num_bytes, most=num_embeddings
        )
        return {"num_rows": num_rows}

    def compress(self) -> None:
        rows, clusters = k_means(self.weight, self.num_rows, self.seed)
        self.rows.copy_(rows)
        self.packed.copy_(pack_ids(clusters, self.bits))

    def row_ids(self, ids: Tensor) -> Tensor:
        """The centroid of each entity, int64 in [0, num_rows), for int64 (L,)."""
        return take_bits(self.packed, ids, self.bits)

    def served(self, ids: Tensor) -> Tensor:
        return self.rows.index_select(0, self.row_ids(ids))

    def options(self) -> dict[str, Any]:
        return super().options() | {"num_rows": self.num_rows}

    def _num_rows(self) -> int:
        return self.num_rows
