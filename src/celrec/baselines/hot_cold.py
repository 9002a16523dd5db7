"""Rows of their own for the hottest entities; all others share rows by a hash.

Few entities make most of the look-ups, and a collision with one of those costs most. So the larger
part of the memory goes to rows that belong to one entity each, and the rest to rows that the
others share by chance. Which entities are hot is learned: the importance of an entity is the sum of
the lengths of its gradients, and after every epoch the most important ones have the rows. One that
becomes hot starts from the row that it shared.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from celrec.baselines.contract import CompressedEmbedding, Occurrences, too_small
from celrec.baselines.hashing import hashed, multiplier_of
from celrec.baselines.packed_bits import pack_set, places_in_set, set_length
from celrec.errors import check_count

_HOT_SHARE = 0.7  # of the bytes
_FORGETTING = 0.5  # times the importance, after every epoch
_MUST_EXCEED = 2.0  # times the importance of a hot entity, to take its row


class HotColdEmbedding(CompressedEmbedding):
    """`torch.nn.Embedding` whose hot entities have rows of their own, and whose others share.

    num_hot : H in [0, N]   entities with a row of their own
    num_rows : R >= 1   rows that the others share
    other arguments : as in `CompressedEmbedding`

    Stored are both tables and the set of hot entities (packed_bits.py); their rows are in its
    order. Hot are at first the entities that occur most in the data that the table `see`s, or the
    first ones if it sees none.

    Source: Zhang et al., "CAFE: Towards compact, adaptive, and fast embedding for large-scale
    recommendation models", SIGMOD 2024: importance by gradient norms, one table of exclusive and
    one of hashed embeddings, migration between them, 70 % of the memory for the hot ones.
    Departures: importance is summed exactly, in an array that training alone needs, where the
    paper estimates it in a sketch; entities migrate between epochs; and a hot entity gives its row
    up to one of twice its importance only, for one that shares a row has larger gradients because
    it shares: without this, entities moved to and fro, and the table was worse than with the most
    frequent entities for good.

    >>> table = HotColdEmbedding(1000, 8, num_hot=10, num_rows=5)
    >>> table(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 8])
    >>> table.hot_ids().tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    kind = "hot-cold"
    source = "Zhang et al., SIGMOD 2024"
    codes = ("hot_entities",)
    personal = ("hot",)
    training_only = ("slot_of", "importance")

    hot_entities: Tensor
    slot_of: Tensor
    importance: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_hot: int,
        num_rows: int,
        padding_idx: int | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        self.num_hot = check_count("num_hot", num_hot, at_most=num_embeddings)
        self.num_rows = check_count("num_rows", num_rows, at_least=1)
        self._multiplier = multiplier_of(seed)
        self.hot = nn.Parameter(torch.empty(num_hot, embedding_dim))
        self.weight = nn.Parameter(torch.empty(num_rows, embedding_dim))
        length = set_length(num_hot, num_embeddings)
        self.register_buffer("hot_entities", torch.zeros(length, dtype=torch.int32))
        # While training, an entity keeps its line of `hot` as long as it is hot: -1 has none.
        slot_of = torch.arange(num_embeddings, dtype=torch.int32)
        self.register_buffer("slot_of", slot_of.masked_fill(slot_of >= num_hot, -1))
        self.register_buffer("importance", torch.zeros(num_embeddings))
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        row_bytes = 4 * embedding_dim
        if num_bytes < row_bytes:
            raise too_small(cls.kind, num_bytes, row_bytes)
        set_bytes = 4 * set_length(num_embeddings, num_embeddings)
        limit = int(_HOT_SHARE * num_bytes)
        num_hot = max(limit // (row_bytes + 4), (limit - set_bytes) // row_bytes)
        num_hot = min(num_hot, num_embeddings)
        left = num_bytes - num_hot * row_bytes - 4 * set_length(num_hot, num_embeddings)
        num_rows = max(1, left // row_bytes)
        return {"num_hot": num_hot, "num_rows": num_rows}

    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.hot, std=std, generator=generator)
        nn.init.normal_(self.weight, std=std, generator=generator)

    def look_up(self, ids: Tensor) -> Tensor:
        if self.is_finished:
            slots = places_in_set(self.hot_entities, ids, self.num_embeddings)
        else:
            slots = self.slot_of.index_select(0, ids).long()
        lines = torch.where(slots >= 0, slots, self.num_hot + self.row_ids(ids))
        vectors = torch.cat([self.hot, self.weight]).index_select(0, lines)
        if vectors.requires_grad and not self.is_finished:
            importance = self.importance

            def add_importance(gradients: Tensor) -> None:
                importance.index_add_(0, ids, gradients.norm(dim=1).to(importance.dtype))

            vectors.register_hook(add_importance)
        return vectors

    def row_ids(self, ids: Tensor) -> Tensor:
        """The shared row of each entity, int64 in [0, R), in the shape of `ids`; hot ones too."""
        return hashed(ids.long(), self.num_rows, self._multiplier)

    def hot_ids(self) -> Tensor:
        """The hot entities, int64 (H,), sorted."""
        ids = torch.arange(self.num_embeddings, device=self.hot.device)
        if self.is_finished:
            return ids[places_in_set(self.hot_entities, ids, self.num_embeddings) >= 0]
        return ids[self.slot_of >= 0]

    @torch.no_grad()
    def see(self, occurrences: Occurrences) -> None:
        self._make_hot(occurrences.counts())  # whose rows are as good as any, before training

    @torch.no_grad()
    def after_epoch(self, epoch: int, num_epochs: int) -> bool:
        is_hot = self.slot_of >= 0
        risen = self._make_hot(torch.where(is_hot, _MUST_EXCEED, 1.0) * self.importance)
        self.hot[self.slot_of[risen].long()] = self.weight[self.row_ids(risen)]
        self.importance *= _FORGETTING
        return len(risen) > 0

    def compress(self) -> None:
        ids = self.hot_ids()
        self.hot.copy_(self.hot[self.slot_of[ids].long()])
        self.hot_entities.copy_(pack_set(ids, self.num_embeddings))

    def options(self) -> dict[str, Any]:
        return super().options() | {"num_hot": self.num_hot, "num_rows": self.num_rows}

    def _make_hot(self, importance: Tensor) -> Tensor:
        """Let the most important entities be hot; those that rise get lines of those that fall.

        importance : (N,) of any real type
        returns : int64, the entities that were not hot before
        """
        was_hot = self.slot_of >= 0
        is_hot = torch.zeros_like(was_hot)
        is_hot[importance.argsort(descending=True, stable=True)[: self.num_hot]] = True
        risen = (is_hot & ~was_hot).nonzero().flatten()
        fallen = (was_hot & ~is_hot).nonzero().flatten()
        self.slot_of[risen] = self.slot_of[fallen]
        self.slot_of[fallen] = -1
        return risen
