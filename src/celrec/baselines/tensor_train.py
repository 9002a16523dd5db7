"""A tensor train: the table as a product of three small tensors, the cores.

Entities are numbered by three digits, (i, j, k), and the columns of a vector by three digits too.
Every digit of an entity picks one slice of its core, and the product of the three slices, as
matrices, is the entity's vector. So N rows are spelled with about 3 N^(1/3) slices. Entities whose
ids agree in a digit share that slice; no two share all three, so all have vectors of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from celrec.baselines.contract import CompressedEmbedding, too_small
from celrec.errors import ArgumentError, check_count

_SMALLEST_DRAWN = 2.0  # standard deviations, as in TT-Rec
_WHOLE_TABLE_PAYS = 16  # times as many entities as ids: one large product beats many small ones
_LARGEST_RATIO = 1.5  # of the two ranks


class TensorTrainEmbedding(CompressedEmbedding):
    """`torch.nn.Embedding` whose table is a tensor train of three cores.

    With N <= n1 n2 n3, D <= d1 d2 d3 and ranks R1, R2, the cores have shapes (n1, d1, R1),
    (n2, R1, d2, R2) and (n3, R2, d3), and the vector of entity e = (i n2 + j) n3 + k is

        x_e[a, b, c] = sum over r, s of  G1[i, a, r] G2[j, r, b, s] G3[k, s, c]

    with its columns (a, b, c) in a line; those beyond D are left out.

    ranks : (R1, R2), each >= 1; more than n1 d1 and n3 d3 of them would be idle
    other arguments : as in `CompressedEmbedding`

    Source: Yin et al., "TT-Rec: Tensor train compression for deep learning recommendation models",
    MLSys 2021, after Hrinchuk et al., "Tensorized embedding layers", 2019. Departures: R1 and R2
    may differ, so that a budget is spent. What a look-up computes once for several entities
    (products of two cores, or all vectors where there are few) changes its speed only.

    >>> table = TensorTrainEmbedding(1000, 8, ranks=(3, 3))
    >>> table(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 8])
    >>> table.row_factors, table.column_factors
    ((10, 10, 10), (2, 2, 2))
    """

    kind = "tensor-train"
    source = "Yin et al., MLSys 2021"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        ranks: Sequence[int],
        padding_idx: int | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        if len(ranks) != 2:
            raise ArgumentError(f"ranks is {tuple(ranks)}; wanted two of them, for three cores")
        self.ranks = (
            check_count("ranks[0]", ranks[0], at_least=1),
            check_count("ranks[1]", ranks[1], at_least=1),
        )
        self.row_factors = row_factors(num_embeddings)
        self.column_factors = column_factors(embedding_dim)
        (n1, n2, n3), (d1, d2, d3) = self.row_factors, self.column_factors
        R1, R2 = self.ranks
        self.first = nn.Parameter(torch.empty(n1, d1, R1))
        self.second = nn.Parameter(torch.empty(n2, R1, d2, R2))
        self.third = nn.Parameter(torch.empty(n3, R2, d3))
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        rows, columns = row_factors(num_embeddings), column_factors(embedding_dim)
        least = 4 * num_parameters(rows, columns, (1, 1))
        if num_bytes < least:
            raise too_small(cls.kind, num_bytes, least)
        ranks = _largest_ranks(rows, columns, num_bytes // 4)
        return {"ranks": ranks}

    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        """Draw the cores from the tails of a normal distribution, which keeps products from zero.

        Source: Yin et al. 2021, section 3.3, "sampled Gaussian": the product of several normal
        numbers is close to zero too often, unless those are redrawn that are small themselves.
        """
        each = (std / math.sqrt(self.ranks[0] * self.ranks[1])) ** (1 / 3)
        for core in (self.first, self.second, self.third):
            core.copy_(_tails(core.shape, generator) * each)

    def digits(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The slice of each core that an entity uses, int64 in the shape of `ids`."""
        _, n2, n3 = self.row_factors
        ids = ids.long()
        return ids // (n2 * n3), ids // n3 % n2, ids % n3

    def look_up(self, ids: Tensor) -> Tensor:
        n1, n2, n3 = self.row_factors
        if n1 * n2 * n3 <= _WHOLE_TABLE_PAYS * len(ids):
            return self._all_vectors().index_select(0, ids)
        i, j, k = self.digits(ids)
        pairs, pair_of = (i * n2 + j).unique(return_inverse=True)
        heads = self._products_of_two(pairs).index_select(0, pair_of)  # (L, d1 d2, R2)
        vectors = torch.bmm(heads, self.third.index_select(0, k))
        return vectors.flatten(1)[:, : self.embedding_dim]

    def options(self) -> dict[str, Any]:
        return super().options() | {"ranks": list(self.ranks)}

    def _all_vectors(self) -> Tensor:
        """The whole table, (n1 n2 n3, D)."""
        n3, R2, d3 = self.third.shape
        heads = self._all_products_of_two()  # (n1 n2, d1 d2, R2)
        vectors = heads.reshape(-1, R2) @ self.third.transpose(0, 1).reshape(R2, -1)
        vectors = vectors.view(*heads.shape[:2], n3, d3).transpose(1, 2)
        return vectors.reshape(len(heads) * n3, -1)[:, : self.embedding_dim]

    def _products_of_two(self, pairs: Tensor) -> Tensor:
        """The products of slices of the first two cores, (P, d1 d2, R2), for pairs i n2 + j."""
        n1, n2, _ = self.row_factors
        if 2 * len(pairs) > n1 * n2:  # one large product beats many small ones
            return self._all_products_of_two().index_select(0, pairs)
        first = self.first.index_select(0, pairs // n2)  # (P, d1, R1)
        second = self.second.flatten(2).index_select(0, pairs % n2)  # (P, R1, d2 R2)
        d1, d2, _ = self.column_factors
        return torch.bmm(first, second).view(len(pairs), d1 * d2, self.ranks[1])

    def _all_products_of_two(self) -> Tensor:
        """The same for all pairs: (n1 n2, d1 d2, R2)."""
        n1, d1, R1 = self.first.shape
        n2, _, d2, R2 = self.second.shape
        every = self.first.reshape(-1, R1) @ self.second.transpose(0, 1).reshape(R1, -1)
        every = every.view(n1, d1, n2, d2 * R2).transpose(1, 2)
        return every.reshape(n1 * n2, d1 * d2, R2)


def row_factors(num_embeddings: int) -> tuple[int, int, int]:
    """Three about equal numbers, in order, whose product is at least N and hardly more.

    >>> row_factors(6040), row_factors(5)
    ((18, 18, 19), (2, 2, 2))
    """
    n1 = max(1, round(num_embeddings ** (1 / 3)))
    n2 = max(1, round(math.sqrt(num_embeddings / n1)))
    n1, n2, n3 = sorted((n1, n2, -(-num_embeddings // (n1 * n2))))
    return n1, n2, n3


def column_factors(width: int) -> tuple[int, int, int]:
    """Three about equal numbers, in order, whose product is at least D and hardly more.

    >>> column_factors(32), column_factors(18), column_factors(7)
    ((2, 4, 4), (2, 3, 3), (2, 2, 2))
    """
    limit = math.ceil(width ** (1 / 3)) + 1
    found = [
        (d1, d2, -(-width // (d1 * d2)))
        for d1 in range(1, limit + 1)
        for d2 in range(d1, width + 1)
        if d2 <= -(-width // (d1 * d2))
    ]
    return min(found, key=lambda f: (max(f[0] * f[1] * f[2], 1.15 * width), sum(f)))


def num_parameters(
    rows: tuple[int, int, int], columns: tuple[int, int, int], ranks: tuple[int, int]
) -> int:
    """n1 d1 R1 + n2 R1 d2 R2 + n3 R2 d3.

    >>> num_parameters((10, 10, 10), (2, 2, 2), (3, 3))
    300
    """
    (n1, n2, n3), (d1, d2, d3), (R1, R2) = rows, columns, ranks
    return n1 * d1 * R1 + n2 * R1 * d2 * R2 + n3 * R2 * d3


def _largest_ranks(
    rows: tuple[int, int, int], columns: tuple[int, int, int], limit: int
) -> tuple[int, int]:
    """The ranks that make most of so many parameters, and are about equal.

    More than n1 d1 or n3 d3 of them are never useful.
    """
    (n1, n2, n3), (d1, d2, d3) = rows, columns
    found = [(1, 1)]
    for R1 in range(1, n1 * d1 + 1):
        left = limit - n1 * d1 * R1
        R2 = min(left // (n2 * d2 * R1 + n3 * d3), n3 * d3, int(_LARGEST_RATIO * R1) + 1)
        if R2 < 1:
            break
        if R1 <= _LARGEST_RATIO * R2 + 1:
            found.append((R1, R2))
    return max(found, key=lambda ranks: num_parameters(rows, columns, ranks))


def _tails(shape: torch.Size, generator: torch.Generator | None) -> Tensor:
    """Normal numbers beyond 2 standard deviations on either side, scaled to variance 1."""
    normal = torch.distributions.Normal(0.0, 1.0)
    beyond = float(1 - normal.cdf(torch.tensor(_SMALLEST_DRAWN)))
    density = math.exp(-(_SMALLEST_DRAWN**2) / 2) / math.sqrt(2 * math.pi)
    variance = 1 + _SMALLEST_DRAWN * density / beyond
    share = torch.rand(shape, generator=generator).clamp_min(1e-6) * beyond
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return -normal.icdf(share) * sign / math.sqrt(variance)
