"""Low-dimensional vectors: every entity has a narrow vector, widened by one shared projection.

The full table, N x D, is a product of two: N x d of the entities' own, and d x D for all. It is the
plainest way to use fewer numbers per entity, and nothing is shared by chance. It cannot go below
one number per entity, and all vectors lie in one space of d dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from celrec.baselines.contract import CompressedEmbedding, too_small
from celrec.errors import check_count


class LowDimensionalEmbedding(CompressedEmbedding):
    """`torch.nn.Embedding` of entities' own vectors, d wide, times a projection (d, D).

    private_dim : 1 <= d <= D   width of an entity's own vector
    seed : has no effect, as nothing is left to chance
    other arguments : as in `CompressedEmbedding`

    Source: Lan et al., "ALBERT: a lite BERT for self-supervised learning of language
    representations", ICLR 2020, section 3.1, factorized embedding parameterization: N x d + d x D
    numbers; and Ginart et al., "Mixed dimension embeddings with application to memory-efficient
    recommendation systems", ISIT 2021, with one width for all entities.

    >>> table = LowDimensionalEmbedding(1000, 8, private_dim=2)
    >>> table(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 8])
    >>> table
    LowDimensionalEmbedding(1000, 8, private_dim=2)
    """

    kind = "low-dimensional"
    source = "Lan et al., ICLR 2020; Ginart et al., ISIT 2021"
    personal = ("vectors",)

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        private_dim: int,
        padding_idx: int | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        self.private_dim = check_count(
            "private_dim", private_dim, at_least=1, at_most=self.embedding_dim
        )
        self.vectors = nn.Parameter(torch.empty(self.num_embeddings, self.private_dim))
        self.projection = nn.Parameter(torch.empty(self.private_dim, self.embedding_dim))
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        least = 4 * (num_embeddings + embedding_dim)
        private_dim = min(num_bytes // least, embedding_dim)
        if private_dim < 1:
            raise too_small(cls.kind, num_bytes, least)
        return {"private_dim": private_dim}

    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        # Rows of equal length at right angles: none of the d directions is drawn weaker. With this
        # length, a step of an entity's own vector moves its wide one as far as in a full table.
        nn.init.normal_(self.vectors, std=std, generator=generator)
        length = (self.embedding_dim / self.private_dim) ** 0.5
        nn.init.orthogonal_(self.projection, gain=length, generator=generator)

    def look_up(self, ids: Tensor) -> Tensor:
        return self.vectors.index_select(0, ids) @ self.projection

    def options(self) -> dict[str, Any]:
        return super().options() | {"private_dim": self.private_dim}
