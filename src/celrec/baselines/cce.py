"""Clustered compositional embeddings: hash, train, cluster what was learned, and train again.

A vector is cut in columns, and each column is the sum of two rows: one found by a pointer of the
entity, the other by a hash. Training moves entities apart as far as the hashes let it. Then the
learned columns are clustered with k-means: pointers become the clusters, the first table their
centroids, the second one starts again from zero with fresh hashes. So entities come to share rows
with entities that learned the same, and a full table is never needed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from celrec.baselines.contract import CompressedEmbedding
from celrec.baselines.hashing import hashed, random_multipliers
from celrec.baselines.kmeans import k_means
from celrec.baselines.packed_ids import MOST_BITS, pack_ids, packed_size, rows_within
from celrec.core.codes import bits_for, take_bits
from celrec.errors import ArgumentError, check_count, check_number

_MOST_COLUMNS = 4
_FEW_ROWS = 8  # with fewer in each column, fewer columns do better
_HASH_BYTES = 8
_NUM_PASSES = 10
_ENTITIES_AT_A_TIME = 1 << 16


class ClusteredCompositionalEmbedding(CompressedEmbedding):
    """`torch.nn.Embedding` whose columns are sums of a learned row and a hashed one.

    num_rows : k in [1, 65536], of each column in each of the two tables
    num_columns : c >= 1, a divisor of D
    clusters_until : in [0, 1], the share of epochs after each of which columns are clustered
    other arguments : as in `CompressedEmbedding`

    weight : the rows that pointers find, (c * k, D / c), column by column
    hashed_weight : the rows that hashes find, (c * k, D / c)
    pointers : c ids of rows for every entity, packed in log2 k bits each
    multipliers : of the hash of each column, int64 (c,)

    Source: Tsang and Ahle, "Clustering the sketch: dynamic compression for embedding tables",
    NeurIPS 2023, algorithm 3, with four columns where budget and width allow. Theirs does not count
    the pointers; here they are counted, and take no more bits than they need. Every clustering
    brings clusters closer to the best ones, as they prove for least squares; so there is one after
    every epoch, but for the last third, in which rows settle. The optimizer's moments start anew
    with the tables.

    >>> table = ClusteredCompositionalEmbedding(1000, 8, num_rows=16, num_columns=4)
    >>> table(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 8])
    >>> table.after_epoch(2, num_epochs=8), table.after_epoch(7, num_epochs=8)
    (True, False)
    """

    kind = "cce"
    source = "Tsang and Ahle, NeurIPS 2023"
    codes = ("pointers",)

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_rows: int,
        num_columns: int = _MOST_COLUMNS,
        padding_idx: int | None = None,
        *,
        clusters_until: float = 2 / 3,
        seed: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        self.num_rows = check_count("num_rows", num_rows, at_least=1, at_most=1 << MOST_BITS)
        self.num_columns = check_count("num_columns", num_columns, at_least=1)
        self.clusters_until = check_number("clusters_until", clusters_until, at_least=0, at_most=1)
        if self.embedding_dim % self.num_columns:
            raise ArgumentError(
                f"num_columns is {num_columns}; wanted a divisor of embedding_dim, {embedding_dim}"
            )
        self.bits = bits_for(self.num_rows)
        shape = (self.num_columns * self.num_rows, self.embedding_dim // self.num_columns)
        self.weight = nn.Parameter(torch.empty(shape))
        self.hashed_weight = nn.Parameter(torch.empty(shape))
        first, second = torch.tensor(random_multipliers(2 * self.num_columns, seed)).chunk(2)
        self.pointers: Tensor
        self.multipliers: Tensor
        everyone = torch.arange(self.num_embeddings)
        self.register_buffer(
            "pointers", pack_ids(_hashes(everyone, first, self.num_rows).flatten(), self.bits)
        )
        self.register_buffer("multipliers", second)
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        def needed(num_columns: int) -> int:
            pointers = packed_size(num_columns * num_embeddings, bits_for(_FEW_ROWS))
            return _HASH_BYTES * num_columns + pointers + row_bytes * _FEW_ROWS

        columns = [c for c in range(_MOST_COLUMNS, 1, -1) if embedding_dim % c == 0]
        row_bytes = 2 * 4 * embedding_dim  # one of each table, through all columns
        num_columns = next((c for c in columns if needed(c) <= num_bytes), 1)
        num_rows = rows_within(
            cls.kind,
            num_columns * num_embeddings,
            row_bytes,
            num_bytes,
            most=num_embeddings,
            other_bytes=_HASH_BYTES * num_columns,
        )
        return {"num_rows": num_rows, "num_columns": num_columns}

    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        for rows in (self.weight, self.hashed_weight):
            nn.init.normal_(rows, std=std / 2**0.5, generator=generator)

    def pointed_rows(self, ids: Tensor) -> Tensor:
        """The row of each column that an entity points to, int64 (L, c) in [0, k)."""
        positions = ids.unsqueeze(1) * self.num_columns + self._columns(ids)
        return take_bits(self.pointers, positions, self.bits)

    def hashed_rows(self, ids: Tensor) -> Tensor:
        """The row of each column that an entity hashes to, int64 (L, c) in [0, k)."""
        return _hashes(ids, self.multipliers, self.num_rows)

    def look_up(self, ids: Tensor) -> Tensor:
        first_rows = self.num_rows * self._columns(ids)
        pointed = (self.pointed_rows(ids) + first_rows).flatten()
        hashed = (self.hashed_rows(ids) + first_rows).flatten()
        columns = self.weight.index_select(0, pointed) + self.hashed_weight.index_select(0, hashed)
        return columns.view(len(ids), self.embedding_dim)

    def after_epoch(self, epoch: int, num_epochs: int) -> bool:
        if epoch > self.clusters_until * num_epochs:
            return False
        self._cluster(epoch)
        return True

    def options(self) -> dict[str, Any]:
        return super().options() | {
            "num_rows": self.num_rows,
            "num_columns": self.num_columns,
            "clusters_until": self.clusters_until,
        }

    def _num_rows(self) -> int:
        return self.num_rows

    @torch.no_grad()
    def _cluster(self, epoch: int) -> None:
        """Let pointers and first table be what is learned so far; start the second one anew."""
        everyone = torch.arange(self.num_embeddings, device=self.weight.device)
        vectors = torch.cat([self.look_up(ids) for ids in everyone.split(_ENTITIES_AT_A_TIME)])
        seed = self.seed + epoch
        found = [
            k_means(v, self.num_rows, seed, num_passes=_NUM_PASSES)
            for v in vectors.chunk(self.num_columns, 1)
        ]
        self.weight.copy_(torch.cat([rows for rows, _ in found]))
        pointers = torch.stack([clusters for _, clusters in found], 1)  # (N, c)
        self.pointers.copy_(pack_ids(pointers.flatten(), self.bits))
        self.hashed_weight.zero_()
        self.multipliers.copy_(torch.tensor(random_multipliers(self.num_columns, seed)))

    def _columns(self, ids: Tensor) -> Tensor:
        return torch.arange(self.num_columns, device=ids.device)


def _hashes(ids: Tensor, multipliers: Tensor, num_values: int) -> Tensor:
    """One hash of ids (L,) for each multiplier, int64 (L, c) in [0, num_values)."""
    return torch.stack([hashed(ids, num_values, m) for m in multipliers.tolist()], 1)
