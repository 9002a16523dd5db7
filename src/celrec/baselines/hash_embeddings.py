"""Hash embeddings: an entity weighs a few shared rows, chosen by hashes, as it likes.

Every entity has k numbers of its own, its importance parameters. Its vector is the sum of its k
hashed rows, each times its number. So an entity can turn away from a row in which it meets others
that do not suit it, and a popular entity can have a row nearly for itself.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from celrec.baselines.contract import CompressedEmbedding, too_small
from celrec.baselines.double_hash import independent_hashes, picked_rows
from celrec.baselines.hashing import random_multipliers
from celrec.errors import check_count


class WeightedRows(CompressedEmbedding):
    """What hash embeddings have in common: sums of k hashed rows, each times an importance.

    `importance` holds the numbers; whose they are, a subclass says in `importance_of`.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_rows: int,
        padding_idx: int | None,
        *,
        num_hashes: int,
        seed: int,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        self.num_rows = check_count("num_rows", num_rows, at_least=1)
        self.num_hashes = check_count("num_hashes", num_hashes, at_least=1)
        self._multipliers = random_multipliers(self.num_hashes, seed)
        self.weight = nn.Parameter(torch.empty(self.num_rows, self.embedding_dim))
        self.importance: nn.Parameter

    @abstractmethod
    def importance_of(self, ids: Tensor) -> Tensor:
        """What entities (L,) multiply their rows by, (L, k)."""

    def row_ids(self, ids: Tensor) -> Tensor:
        """The rows of entities (L,), int64 (L, k) in [0, R)."""
        return independent_hashes(ids, self.num_rows, self._multipliers)

    def look_up(self, ids: Tensor) -> Tensor:
        rows = picked_rows(self.weight, self.row_ids(ids))  # (L, k, D)
        return (rows * self.importance_of(ids).unsqueeze(2)).sum(1)

    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        # Both factors alike: in our trials this learned best over three orders of magnitude of std.
        root = (std / self.num_hashes**0.5) ** 0.5
        nn.init.normal_(self.weight, std=root, generator=generator)
        nn.init.normal_(self.importance, std=root, generator=generator)

    def options(self) -> dict[str, Any]:
        return super().options() | {"num_rows": self.num_rows, "num_hashes": self.num_hashes}


class HashEmbeddings(WeightedRows):
    """`torch.nn.Embedding` whose entities weigh hashed rows by numbers of their own.

    num_rows : R >= 1   rows that the entities share
    num_hashes : k >= 1   rows of an entity, and its importance parameters
    seed : another one shares otherwise
    other arguments : as in `CompressedEmbedding`

    Source: Svenstrup, Hansen & Winther, "Hash embeddings for efficient word representations",
    NeurIPS 2017, section 3: R x D + N x k numbers, with k = 2 as they mostly have it. Their table
    of importance parameters has as many lines as there are entities, as where they use a
    dictionary; the parameters are not appended to the vector. They draw both factors from normal
    distributions about 0, the importance with less deviation; here both have the same.

    >>> table = HashEmbeddings(1000, 8, num_rows=16)
    >>> table(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 8])
    >>> table
    HashEmbeddings(1000, 8, num_rows=16, num_hashes=2)
    """

    kind = "hash-embeddings"
    source = "Svenstrup et al., NeurIPS 2017"
    personal = ("importance",)

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
        super().__init__(
            num_embeddings, embedding_dim, num_rows, padding_idx, num_hashes=num_hashes, seed=seed
        )
        self.importance = nn.Parameter(torch.empty(self.num_embeddings, self.num_hashes))
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        num_hashes = 2
        num_rows = (num_bytes // 4 - num_hashes * num_embeddings) // embedding_dim
        if num_rows < 1:
            least = 4 * (num_hashes * num_embeddings + embedding_dim)
            raise too_small(cls.kind, num_bytes, least)
        return {"num_rows": num_rows, "num_hashes": num_hashes}

    def importance_of(self, ids: Tensor) -> Tensor:
        return self.importance.index_select(0, ids)
