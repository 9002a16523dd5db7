"""Compositional embeddings: a vector is put together from short pieces of independent tables.

The width is cut into c pieces, and each piece has a table and a hash of its own. Entities that meet
in one table are likely to part in the others, so R rows in each of the tables, which take as much
as R full rows, give R^c different vectors. Nothing is stored or learned about who shares.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from celrec.baselines.contract import CompressedEmbedding, whole_rows
from celrec.baselines.double_hash import independent_hashes
from celrec.baselines.hashing import random_multipliers
from celrec.errors import check_count


class CompositionalEmbedding(CompressedEmbedding):
    """`torch.nn.Embedding` whose vectors are joined from c short rows, chosen by hashes.

    num_rows : R >= 1   rows of each table
    num_tables : 1 <= c <= D, 4 or D if that is less; their widths sum to D and differ by 1 at most
    seed : another one shares otherwise
    other arguments : as in `CompressedEmbedding`

    Source: Shi et al., "Compositional embeddings using complementary partitions for
    memory-efficient recommendation systems", KDD 2020, with concatenation; with independent hashes
    in place of partitions, as the baseline CE, c = 4, of Tsang & Ahle, "Clustering the sketch:
    dynamic compression for embedding tables", NeurIPS 2023.

    >>> table = CompositionalEmbedding(1000, 18, num_rows=16)
    >>> table(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 18])
    >>> table
    CompositionalEmbedding(1000, 18, num_rows=16, num_tables=4)
    """

    kind = "compositional"
    source = "Shi et al., KDD 2020; Tsang & Ahle, NeurIPS 2023"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_rows: int,
        padding_idx: int | None = None,
        *,
        num_tables: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        self.num_rows = check_count("num_rows", num_rows, at_least=1)
        if num_tables is None:
            num_tables = min(4, self.embedding_dim)
        self.num_tables = check_count(
            "num_tables", num_tables, at_least=1, at_most=self.embedding_dim
        )
        self._multipliers = random_multipliers(self.num_tables, seed)
        # The tables stand side by side: columns [0, D / c) are the first one's, and so on.
        self.weight = nn.Parameter(torch.empty(self.num_rows, self.embedding_dim))
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        return {"num_rows": whole_rows(cls.kind, embedding_dim, num_bytes)}

    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.weight, std=std, generator=generator)

    def row_ids(self, ids: Tensor) -> Tensor:
        """The row of entities (L,) in each table, int64 (L, c) in [0, R)."""
        return independent_hashes(ids, self.num_rows, self._multipliers)

    def table_of_columns(self) -> Tensor:
        """Whose each of the D columns is, int64 (D,) in [0, c).

        >>> CompositionalEmbedding(1000, 18, num_rows=16).table_of_columns().bincount()
        tensor([5, 4, 5, 4])
        """
        columns = torch.arange(self.embedding_dim, device=self.weight.device)
        return columns * self.num_tables // self.embedding_dim

    def look_up(self, ids: Tensor) -> Tensor:
        rows = self.row_ids(ids)[:, self.table_of_columns()]  # (L, D)
        columns = torch.arange(self.embedding_dim, device=ids.device)
        places = rows * self.embedding_dim + columns  # one number at a time, in one look-up
        return self.weight.flatten().index_select(0, places.flatten()).view_as(places)

    def options(self) -> dict[str, Any]:
        return super().options() | {"num_rows": self.num_rows, "num_tables": self.num_tables}
