"""The hashing trick: entities share rows by chance.

The plainest way to shrink a table, and the one most used: an id is hashed to one of a few rows. It
needs no code per entity, learns nothing about who shares with whom, and so shows what choosing
clusters is worth at equal bytes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from celrec.baselines.contract import CompressedEmbedding, whole_rows
from celrec.baselines.hashing import hashed, multiplier_of
from celrec.errors import check_count


class HashedEmbedding(CompressedEmbedding):
    """`torch.nn.Embedding` whose entities share rows by a hash of their id.

    num_rows : R >= 1   rows that the entities share; may exceed N, which wastes some
    seed : another one shares otherwise
    other arguments : as in `CompressedEmbedding`; sparse, device, dtype as in `nn.Embedding`

    Source: Weinberger et al., "Feature hashing for large scale multitask learning", ICML 2009,
    without their sign.

    >>> table = HashedEmbedding(1000, 8, num_rows=16)
    >>> table(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 8])
    >>> table
    HashedEmbedding(1000, 8, num_rows=16)
    """

    kind = "hashed"
    source = "Weinberger et al., ICML 2009"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_rows: int,
        padding_idx: int | None = None,
        *,
        sparse: bool = False,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        self.num_rows = check_count("num_rows", num_rows, at_least=1)
        self.sparse = sparse
        self._multiplier = multiplier_of(seed)
        self.weight = nn.Parameter(
            torch.empty(self.num_rows, self.embedding_dim, device=device, dtype=dtype)
        )
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        return {"num_rows": whole_rows(cls.kind, embedding_dim, num_bytes)}

    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.weight, std=std, generator=generator)

    def row_ids(self, ids: Tensor) -> Tensor:
        """The row of each entity, int64 in [0, num_rows), in the shape of `ids`."""
        return hashed(ids.long(), self.num_rows, self._multiplier)

    def look_up(self, ids: Tensor) -> Tensor:
        row_ids = self.row_ids(ids)
        if self.sparse:
            return F.embedding(row_ids, self.weight, sparse=True)
        return self.weight.index_select(0, row_ids)

    def options(self) -> dict[str, Any]:
        return super().options() | {"num_rows": self.num_rows, "sparse": self.sparse}
