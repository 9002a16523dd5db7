"""Biased matrix factorization over two online tables: the model that streams learn by default."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from celrec.checkpoint import load_model_state, load_optimizer_state
from celrec.core.online import OnlineLearner, OnlineRule
from celrec.core.online_embedding import OnlineEmbedding
from celrec.models.biased_mf import BiasedMF

_MOMENTS = 2  # that AdamW keeps of every number
_STEP_BYTES = 4  # and its count of steps


class OnlineFactors:
    """log odds of all labels + user bias + item bias + dot product of the factors.

    users, items : tables of one width, the last two numbers of which are biases
    learning_rate : > 0, of AdamW on their rows
    rule : how codes learn, or by the names "user_embedding" and "item_embedding"
    seed : of the rows at the start, whose biases are zero, and of explorers

    >>> users, items = OnlineEmbedding(9, 6, 2), OnlineEmbedding(5, 6, 2)
    >>> factors = OnlineFactors(users, items)
    >>> user, item = torch.tensor([8, 0]), torch.tensor([4, 1])
    >>> factors.learn(user, item, torch.tensor([1.0, 0.0]))
    >>> like, dislike = factors.predict(user, item).tolist()
    >>> like > dislike
    True
    """

    def __init__(
        self,
        users: OnlineEmbedding,
        items: OnlineEmbedding,
        *,
        learning_rate: float = 0.01,
        rule: OnlineRule | Mapping[str, OnlineRule] | None = None,
        seed: int = 0,
    ) -> None:
        self.tables = (users, items)
        self.model = BiasedMF(users, items)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for table in self.tables:
                table.draw(0.1, generator)
                table.weight[:, -2:] = 0
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=learning_rate, weight_decay=0.0
        )
        self.learner = OnlineLearner(self.model, self.optimizer, self._losses, rule, seed=seed)
        self._num_likes = 0

    @property
    def num_events(self) -> int:
        """Events learned so far."""
        return self.learner.num_events

    @torch.no_grad()
    def predict(self, users: Tensor, items: Tensor) -> Tensor:
        """Logits of label 1: ids (B,) and (B,) -> (B,)."""
        return self.model(users, items)

    def learn(self, users: Tensor, items: Tensor, labels: Tensor) -> None:
        """Learn from a batch.

        labels : float (B,), 0 or 1
        raises : LossError for a loss that is not finite; nothing has been learned then
        """
        self.learner.learn((users, items, labels))
        self._num_likes += int(labels.sum())
        # One event of each kind beside, so that the odds are never 0.
        likes, others = self._num_likes + 1, self.num_events - self._num_likes + 1
        self.model.set_offset(math.log(likes / others))

    def _losses(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        users, items, labels = batch
        return binary_cross_entropy_with_logits(self.model(users, items), labels, reduction="none")

    @property
    def nbytes(self) -> int:
        """Everything that is kept, the optimizer's state included. It never grows."""
        return self.model.offset.nbytes + sum(map(table_bytes, self.tables))

    def state_dict(self) -> dict[str, Any]:
        """Everything that going on needs. Arrays are the model's own, not copies."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "learner": self.learner.state_dict(),
            "num_likes": self._num_likes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a `state_dict`.

        raises : CheckpointError if it is of another model
        """
        load_model_state(self.model, state["model"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.learner.load_state_dict(state["learner"])
        self._num_likes = int(state["num_likes"])


def table_bytes(table: OnlineEmbedding) -> int:
    """Bytes of a table, and of what the optimizer of an `OnlineFactors` keeps of it."""
    rows = table.max_clusters * row_bytes_of(table)
    return rows + _STEP_BYTES + sum(buffer.nbytes for buffer in table.buffers())


def row_bytes_of(table: OnlineEmbedding) -> int:
    """Bytes of a row, and of its optimizer."""
    return table.embedding_dim * table.weight.element_size() * (1 + _MOMENTS)
