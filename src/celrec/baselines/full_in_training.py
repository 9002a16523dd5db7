"""What baselines share that train a full table and compress it afterwards."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from celrec.baselines.contract import CompressedEmbedding


class FullInTraining(CompressedEmbedding):
    """A table with a vector of its own for every entity until `finish`, compressed from then on.

    A baseline fills in `compress`, as in `CompressedEmbedding`, and `served`.

    weight : the vectors (N, D) in training; no lines afterwards
    """

    training_only: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        self.weight = nn.Parameter(torch.empty(self.num_embeddings, self.embedding_dim))

    @abstractmethod
    def served(self, ids: Tensor) -> Tensor:
        """The vectors (L, D) of entities, int64 (L,), from what `compress` made."""

    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.weight, std=std, generator=generator)

    def look_up(self, ids: Tensor) -> Tensor:
        if self.is_finished:
            return self.served(ids)
        return self.weight.index_select(0, ids)
