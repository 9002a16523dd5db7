"""Weighted hashing: hash embeddings in which the importance parameters are shared by hashes too.

An entity's vector is the sum of k hashed rows, each times a number, and these numbers are hashed as
well, from a second array. So no entity has anything of its own: the method works with any number of
bytes, and yet entities that meet in all their rows hardly ever have the same vector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from celrec.baselines.contract import too_small
from celrec.baselines.double_hash import independent_hashes
from celrec.baselines.hash_embeddings import WeightedRows
from celrec.baselines.hashing import random_multipliers
from celrec.errors import check_count


class WeightedHashEmbedding(WeightedRows):
    """`torch.nn.Embedding` whose entities weigh hashed rows by hashed numbers.

    num_rows : R >= 1   rows that the entities share
    num_importances : Z >= 1   numbers that they share
    num_hashes : k >= 1   rows of an entity, and numbers that it multiplies them by
    seed : another one shares otherwise
    other arguments : as in `CompressedEmbedding`

    Source: Svenstrup, Hansen & Winther, "Hash embeddings for efficient word representations",
    NeurIPS 2017, section 3, without a dictionary. There, entities whose ids collide in the table of
    importance parameters are one; here each of the k numbers has a hash of its own, as in the
    weighted hash of the comparison that came with Tsang & Ahle, "Clustering the sketch: dynamic
    compression for embedding tables", NeurIPS 2023. That one spends as much on numbers as on rows;
    `within` spends three times as much, and k is 4 instead of 2: both learned more at equal bytes.

    >>> table = WeightedHashEmbedding(1000, 8, num_rows=16, num_importances=200)
    >>> table(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 8])
    >>> table
    WeightedHashEmbedding(1000, 8, num_rows=16, num_hashes=4, num_importances=200)
    """

    kind = "weighted-hash"
    source = "Svenstrup et al., NeurIPS 2017; Tsang & Ahle, NeurIPS 2023"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_rows: int,
        num_importances: int,
        padding_idx: int | None = None,
        *,
        num_hashes: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(
            num_embeddings, embedding_dim, num_rows, padding_idx, num_hashes=num_hashes, seed=seed
        )
        self.num_importances = check_count("num_importances", num_importances, at_least=1)
        drawn = random_multipliers(2 * self.num_hashes, seed)  # the first k of them are the rows'
        self._importance_multipliers = drawn[self.num_hashes :]
        self.importance = nn.Parameter(torch.empty(self.num_importances))
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        numbers = num_bytes // 4
        if numbers <= embedding_dim:
            raise too_small(cls.kind, num_bytes, 4 * (embedding_dim + 1))
        a_quarter, half = numbers // 4 // embedding_dim, numbers // 2 // embedding_dim
        num_rows = max(a_quarter, min(half, 4), 1)  # fewer rows than 4 span too little
        return {"num_rows": num_rows, "num_importances": numbers - num_rows * embedding_dim}

    def importance_ids(self, ids: Tensor) -> Tensor:
        """Which numbers entities (L,) multiply their rows by, int64 (L, k) in [0, Z)."""
        return independent_hashes(ids, self.num_importances, self._importance_multipliers)

    def importance_of(self, ids: Tensor) -> Tensor:
        return self.importance.index_select(0, self.importance_ids(ids).flatten()).view(
            -1, self.num_hashes
        )

    def options(self) -> dict[str, Any]:
        return super().options() | {"num_importances": self.num_importances}
