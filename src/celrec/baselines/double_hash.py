"""Double hashing, or Bloom embeddings: an entity is the sum of a few rows, chosen by hashes.

Under one hash, entities that meet in a row are one and the same from then on. Under two
independent hashes almost no pair of entities meets in both rows, so R rows give about R^2 / 2
different vectors.
Nothing is stored or learned about who shares with whom.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from celrec.baselines.contract import CompressedEmbedding, whole_rows
from celrec.baselines.hashing import mixed, random_multipliers
from celrec.errors import check_count


class DoubleHashEmbedding(CompressedEmbedding):
    """`torch.nn.Embedding` whose vectors are sums of k rows of one table, chosen by hashes.

    num_rows : R >= 1   rows that the entities share
    num_hashes : k >= 1   rows of an entity; two of them may be the same one, by chance 1 in R
    seed : another one shares otherwise
    other arguments : as in `CompressedEmbedding`

    Source: Serrà & Karatzoglou, "Getting deep recommenders fit: Bloom embeddings for sparse binary
    input/output networks", RecSys 2017: the look-up of an item's k bits, in a first layer; and
    Zhang et al., "Model size reduction using frequency based double hashing for recommender
    systems", RecSys 2020: their double hashing with k = 2 and the sum, for all entities alike.

    >>> table = DoubleHashEmbedding(1000, 8, num_rows=16)
    >>> table(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 8])
    >>> table
    DoubleHashEmbedding(1000, 8, num_rows=16, num_hashes=2)
    """

    kind = "double-hash"
    source = "Serrà & Karatzoglou, RecSys 2017; Zhang et al., RecSys 2020"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_rows: int,
        padding_idx: int | None = None,
        *,
        num_hashes: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        self.num_rows = check_count("num_rows", num_rows, at_least=1)
        self.num_hashes = check_count("num_hashes", num_hashes, at_least=1)
        self._multipliers = random_multipliers(self.num_hashes, seed)
        self.weight = nn.Parameter(torch.empty(self.num_rows, self.embedding_dim))
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        return {"num_rows": whole_rows(cls.kind, embedding_dim, num_bytes)}

    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.weight, std=std / self.num_hashes**0.5, generator=generator)

    def row_ids(self, ids: Tensor) -> Tensor:
        """The rows of entities (L,), int64 (L, k) in [0, R)."""
        return independent_hashes(ids, self.num_rows, self._multipliers)

    def look_up(self, ids: Tensor) -> Tensor:
        return picked_rows(self.weight, self.row_ids(ids)).sum(1)

    def options(self) -> dict[str, Any]:
        return super().options() | {"num_rows": self.num_rows, "num_hashes": self.num_hashes}


def independent_hashes(keys: Tensor, num_values: int, multipliers: Sequence[int]) -> Tensor:
    """Several hashes of every key, which say nothing about each other.

    keys : int64 (L,), >= 0      multipliers : k of them, from `random_multipliers`
    returns : int64 (L, k) in [0, num_values)

    >>> independent_hashes(torch.arange(3), 10, random_multipliers(2, seed=0)).shape
    torch.Size([3, 2])
    """
    keys = keys + 1  # a multiple of 0 is 0 under every hash
    return torch.stack([mixed(keys, number) for number in multipliers], 1) % num_values


def picked_rows(weight: Tensor, row_ids: Tensor) -> Tensor:
    """Rows (R, D) at places (L, k): (L, k, D), in one look-up, so that one gradient is made."""
    rows = weight.index_select(0, row_ids.flatten())
    return rows.view(*row_ids.shape, weight.shape[1])
