"""The hashing trick: entities share rows by chance.

The plainest way to shrink a table, and the one most used: an id is hashed to one of a few rows. It
needs no code per entity, learns nothing about who shares with whom, and so shows what choosing
clusters is worth at equal bytes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from celrec.core.memory import TableMemory
from celrec.errors import ArgumentError, DtypeError, EntityIdError, check_count

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: multiples of it spread evenly (Knuth 6.4)


class HashedEmbedding(nn.Module):
    """`torch.nn.Embedding` whose entities share rows by a hash of their id.

    num_embeddings : N >= 1     number of entities
    embedding_dim : D >= 1      width of a vector
    num_rows : R >= 1           rows that the entities share; may exceed N, which wastes some
    padding_idx, sparse, device, dtype : as in `nn.Embedding`
    seed : >= 0, another seed shares otherwise
    raises : ArgumentError; EntityIdError, DtypeError when looked up

    Source: Weinberger et al., "Feature hashing for large scale multitask learning", ICML 2009,
    without their sign.

    >>> table = HashedEmbedding(1000, 8, num_rows=16)
    >>> table(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 8])
    >>> table
    HashedEmbedding(1000, 8, num_rows=16)
    """

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
        super().__init__()
        self.num_embeddings = check_count("num_embeddings", num_embeddings, at_least=1)
        self.embedding_dim = check_count("embedding_dim", embedding_dim, at_least=1)
        self.num_rows = check_count("num_rows", num_rows, at_least=1)
        self.seed = check_count("seed", seed)
        self.sparse = sparse
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ArgumentError(
                    f"padding_idx is {padding_idx}; wanted an entity, in "
                    f"[{-num_embeddings}, {num_embeddings})"
                )
            padding_idx %= num_embeddings
        self.padding_idx = padding_idx
        # Odd, so that no two ids collide before the rows are chosen.
        self._multiplier = _signed_64(_GOLDEN * (2 * self.seed + 1))
        self.weight = nn.Parameter(
            torch.empty(self.num_rows, self.embedding_dim, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every row from N(0, 1), as `torch.nn.Embedding` does."""
        nn.init.normal_(self.weight)

    def row_ids(self, ids: Tensor) -> Tensor:
        """The row of each entity, int64 in [0, num_rows), in the shape of `ids`."""
        mixed = (ids.long() * self._multiplier) >> 32  # the high bits depend on all low ones
        return mixed % self.num_rows

    def forward(self, input: Tensor) -> Tensor:
        """Look up vectors: ids int32 or int64 of any shape (*) give floats of shape (*, D)."""
        self._check(input)
        row_ids = self.row_ids(input.reshape(-1))
        if self.sparse:
            vectors = F.embedding(row_ids, self.weight, sparse=True)
        else:
            vectors = self.weight.index_select(0, row_ids)
        vectors = vectors.view(*input.shape, self.embedding_dim)
        if self.padding_idx is not None:
            vectors = vectors.masked_fill((input == self.padding_idx).unsqueeze(-1), 0.0)
        return vectors

    def memory(self) -> TableMemory:
        """The bytes that serving needs: the rows, and nothing per entity."""
        size = self.weight.element_size()
        return TableMemory(
            name="",
            kind="hashed",
            num_entities=self.num_embeddings,
            width=self.embedding_dim,
            num_rows=self.num_rows,
            table_bytes=self.num_rows * self.embedding_dim * size,
            code_bytes=0,
            personal_bytes=0,
            full_table_bytes=self.num_embeddings * self.embedding_dim * size,
        )

    def extra_repr(self) -> str:
        text = f"{self.num_embeddings}, {self.embedding_dim}, num_rows={self.num_rows}"
        if self.padding_idx is not None:
            text += f", padding_idx={self.padding_idx}"
        if self.seed:
            text += f", seed={self.seed}"
        return text + (", sparse=True" if self.sparse else "")

    def _check(self, ids: Tensor) -> None:
        """A hash would turn any id into a row: a wrong one must be caught before."""
        if ids.dtype not in (torch.int64, torch.int32):
            raise DtypeError(f"ids has type {ids.dtype}; wanted torch.int64 or torch.int32")
        if torch.compiler.is_compiling() or not ids.numel():
            return
        low, high = ids.aminmax()
        if low < 0 or high >= self.num_embeddings:
            flat = ids.reshape(-1)
            outside = ((flat < 0) | (flat >= self.num_embeddings)).nonzero().flatten()
            raise EntityIdError(
                f"id {int(flat[outside[0]])} at position {int(outside[0])} of the look-up is "
                f"outside [0, {self.num_embeddings}), the entities of this table; was the table "
                "made for another vocabulary?"
            )


def _signed_64(number: int) -> int:
    """The low 64 bits, as the int64 that has them."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >= 1 << 63 else number
