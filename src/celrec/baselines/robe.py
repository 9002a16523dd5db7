"""ROBE: all vectors are read from one circular array, in blocks that begin at hashed places.

There are no rows. An entity's vector is cut into blocks, and each block is a run of neighbouring
numbers of the array that begins anywhere, so that runs of different entities overlap in part. Runs
are fast to read, and the array can have any size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from celrec.baselines.contract import CompressedEmbedding, too_small
from celrec.baselines.hashing import mixed, multiplier_of
from celrec.errors import check_count

_USUAL_BLOCK_SIZE = 2


class RobeEmbedding(CompressedEmbedding):
    """`torch.nn.Embedding` whose vectors are runs of numbers of one circular array.

    num_numbers : Z >= block_size   numbers of the array
    block_size : 1 <= b <= D   numbers of a run, 2 or D if that is less; the last one is cut off
        where b does not divide D
    seed : another one shares otherwise
    other arguments : as in `CompressedEmbedding`

    Source: Desai, Chou & Shrivastava, "Random offset block embedding (ROBE) for compressed
    embedding tables in deep learning recommendation systems", MLSys 2022. Number j of entity i is
    number (h(i, j div b) + j mod b) mod Z of the array. Here a table has an array of its own, where
    the paper has one array for all tables of a model, and a run lies within one vector. Longer runs
    are faster on large arrays, for which the paper has them; short ones learned more in our trials.

    >>> table = RobeEmbedding(1000, 16, num_numbers=100)
    >>> table(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 16])
    >>> table
    RobeEmbedding(1000, 16, num_numbers=100, block_size=2)
    """

    kind = "robe"
    source = "Desai et al., MLSys 2022"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_numbers: int,
        padding_idx: int | None = None,
        *,
        block_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        if block_size is None:
            block_size = min(_USUAL_BLOCK_SIZE, self.embedding_dim)
        self.block_size = check_count(
            "block_size", block_size, at_least=1, at_most=self.embedding_dim
        )
        self.num_numbers = check_count("num_numbers", num_numbers, at_least=self.block_size)
        self.num_blocks = -(-self.embedding_dim // self.block_size)
        self._multiplier = multiplier_of(seed)
        self.array = nn.Parameter(torch.empty(self.num_numbers))
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        least = 4 * min(_USUAL_BLOCK_SIZE, embedding_dim)
        if num_bytes < least:
            raise too_small(cls.kind, num_bytes, least)
        return {"num_numbers": num_bytes // 4}

    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.array, std=std, generator=generator)

    def number_ids(self, ids: Tensor) -> Tensor:
        """Where the numbers of entities (L,) lie in the array, int64 (L, D) in [0, Z)."""
        blocks = torch.arange(self.num_blocks, device=ids.device)
        keys = ids.unsqueeze(1) * self.num_blocks + blocks + 1  # 0 would be hashed to 0
        begins = mixed(keys, self._multiplier) % self.num_numbers  # (L, number of blocks)
        run = torch.arange(self.block_size, device=ids.device)
        places = (begins.unsqueeze(2) + run).flatten(1)[:, : self.embedding_dim]
        return places - self.num_numbers * (places >= self.num_numbers)

    def look_up(self, ids: Tensor) -> Tensor:
        places = self.number_ids(ids).flatten()
        return self.array.index_select(0, places).view(-1, self.embedding_dim)

    def options(self) -> dict[str, Any]:
        return super().options() | {
            "num_numbers": self.num_numbers,
            "block_size": self.block_size,
        }
