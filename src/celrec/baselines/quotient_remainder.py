"""The quotient-remainder trick: an entity's vector is the product of a few rows, no two alike.

An id is divided by a small number c. The remainder chooses a row of a first table, the quotient one
of a second, and the vector is their product, number by number. Entities share rows of either table,
but no two share both, for quotient and remainder give the id back. Where the bytes are too few for
two tables, the id is written in more digits, and every digit has its table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from celrec.baselines.contract import CompressedEmbedding, too_small
from celrec.baselines.double_hash import picked_rows
from celrec.errors import ArgumentError, check_count


class QuotientRemainderEmbedding(CompressedEmbedding):
    """`torch.nn.Embedding` whose vectors are products of rows, one for every digit of the id.

    sizes : rows of each table, >= 1 each, with a product of at least N. With two, the first is the
        divisor c and the second holds the quotients; with more, an id has one digit of each, the
        lowest first (mixed radix)
    seed : has no effect, as nothing is left to chance
    other arguments : as in `CompressedEmbedding`
    raises : ArgumentError if the sizes do not tell all entities apart

    Source: Shi et al., "Compositional embeddings using complementary partitions for
    memory-efficient recommendation systems", KDD 2020: algorithm 2 and, for more than two tables,
    the generalized quotient-remainder partitions; composed by multiplication. As in the code that
    came with it, the quotients have the large table: c entities collide in each of its rows. Its
    rows are drawn about 0 and the others about 1, so that training starts near to plain sharing of
    rows; in that code all are drawn from one positive range.

    >>> table = QuotientRemainderEmbedding(1000, 8, sizes=[4, 250])
    >>> table(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 8])
    >>> table
    QuotientRemainderEmbedding(1000, 8, sizes=[4, 250])
    """

    kind = "quotient-remainder"
    source = "Shi et al., KDD 2020"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        sizes: Sequence[int],
        padding_idx: int | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        self.sizes = [check_count("a table's size", size, at_least=1) for size in sizes]
        if not self.sizes or math.prod(self.sizes) < self.num_embeddings:
            raise ArgumentError(
                f"tables of {self.sizes} rows have {math.prod(self.sizes)} combinations, too few "
                f"for {self.num_embeddings} entities; wanted a product of at least that"
            )
        self.weight = nn.Parameter(torch.empty(sum(self.sizes), self.embedding_dim))
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        bytes_of_a_row = 4 * embedding_dim
        sizes = sizes_within(num_embeddings, num_bytes // bytes_of_a_row)
        if sizes is None:
            fewest = next(rows for rows in count(1) if sizes_within(num_embeddings, rows))
            raise too_small(cls.kind, num_bytes, fewest * bytes_of_a_row)
        return {"sizes": sizes}

    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        *small, large = self.weight.split(self.sizes)
        noise = 0.5 / max(1, len(small)) ** 0.5
        for table in small:
            nn.init.normal_(table, mean=1.0, std=noise, generator=generator)
        std /= (1 + noise**2) ** (0.5 * len(small))
        nn.init.normal_(large, std=std, generator=generator)

    def row_ids(self, ids: Tensor) -> Tensor:
        """The rows of entities (L,), int64 (L, number of tables); tables follow one another."""
        row_ids, before = [], 0
        for size in self.sizes:
            row_ids.append(ids % size + before)
            ids = ids // size
            before += size
        return torch.stack(row_ids, 1)

    def look_up(self, ids: Tensor) -> Tensor:
        first, *others = picked_rows(self.weight, self.row_ids(ids)).unbind(1)  # (L, D) each
        return math.prod(others, start=first)

    def options(self) -> dict[str, Any]:
        return super().options() | {"sizes": self.sizes}


def sizes_within(num_entities: int, num_rows: int) -> list[int] | None:
    """The fewest tables that tell all entities apart with so many rows; None if there are none.

    The small ones are as small as can be, and about equal, so that the large one, the last, has
    the most rows.

    >>> sizes_within(1000, 300), sizes_within(1000, 50), sizes_within(1000, 10)
    ([4, 250], [5, 5, 40], None)
    """
    for num_small in range(num_entities.bit_length()):
        for total in range(2 * num_small, num_rows):
            each, more = divmod(total, max(1, num_small))
            small = [each] * (num_small - more) + [each + 1] * more
            large = -(-num_entities // math.prod(small))
            if total + large <= num_rows:
                return [*small, large]
            if not num_small or large == 1:
                break  # a larger total cannot help
    return None
