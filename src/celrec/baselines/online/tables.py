"""Matrix factorization with biases, learned online: a row for every entity, or for every hash."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from celrec.baselines.hashing import hashed, multiplier_of
from celrec.baselines.online.contract import Events
from celrec.errors import check_count, check_number

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]
"""From parameters to an optimizer that takes sparse gradients: SparseAdam, Adagrad or SGD."""


class BiasedFactors(ABC):
    """log odds of all labels + user bias + item bias + dot product of the factors.

    The rows of users and items are one parameter, so that a batch is one sparse step. Its last
    column is the bias.

    num_user_rows, num_item_rows : >= 1
    optimizer : makes the optimizer
    width : D, the number of factors
    l2 : >= 0   times half the squared length of every vector looked up, bias included, is added to
        the loss of each event
    std : of the factors at the start; biases start at zero
    seed : of the factors
    """

    def __init__(
        self,
        num_user_rows: int,
        num_item_rows: int,
        *,
        optimizer: MakeOptimizer,
        width: int = 32,
        l2: float = 0.0,
        std: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.num_user_rows = check_count("num_user_rows", num_user_rows, at_least=1)
        self.num_item_rows = check_count("num_item_rows", num_item_rows, at_least=1)
        self.width = check_count("width", width, at_least=1)
        self.l2 = check_number("l2", l2, at_least=0)
        self.seed = check_count("seed", seed)
        rows = torch.empty(self.num_user_rows + self.num_item_rows, self.width + 1)
        rows.normal_(std=std, generator=torch.Generator().manual_seed(seed))
        rows[:, -1] = 0
        self.rows = nn.Parameter(rows)
        self.optimizer = optimizer([self.rows])
        self._num_events, self._num_likes = 0, 0

    @abstractmethod
    def row_ids(self, users: Tensor, items: Tensor) -> Tensor:
        """The rows of users and of items, (B,) and (B,) -> int64 (2, B)."""

    @torch.no_grad()
    def predict(self, batch: Events) -> Tensor:
        """Logits (B,)."""
        return self._logits(F.embedding(self.row_ids(batch.users, batch.items), self.rows))

    def learn(self, batch: Events) -> None:
        """One step for the sum of the losses of events with their labels, 0 or 1."""
        self._num_events += len(batch.labels)
        self._num_likes += int(batch.labels.sum())
        # What autograd and the optimizers build is valid; the checks would cost time.
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            row_ids = self.row_ids(batch.users, batch.items)
            vectors = F.embedding(row_ids, self.rows, sparse=True)  # (2, B, D + 1)
            loss = F.binary_cross_entropy_with_logits(
                self._logits(vectors), batch.labels.to(vectors.dtype), reduction="sum"
            )
            if self.l2:
                loss = loss + self.l2 / 2 * vectors.square().sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def table_bytes(self) -> int:
        """The factors; the bias column is left out, as for every method."""
        return self.rows[:, :-1].numel() * self.rows.element_size()

    def state_bytes(self) -> int:
        """Rows, optimizer state and two counts."""
        state = sum(
            value.nbytes
            for values in self.optimizer.state.values()
            for value in values.values()
            if isinstance(value, Tensor)
        )
        return self.rows.nbytes + state + 2 * 8

    def _logits(self, vectors: Tensor) -> Tensor:
        """(2, B, D + 1) -> (B,)."""
        user, item = vectors
        dot = (user[:, :-1] * item[:, :-1]).sum(1)
        odds = torch.tensor((self._num_likes + 1) / (self._num_events - self._num_likes + 1))
        return dot + user[:, -1] + item[:, -1] + odds.log()


class FullTable(BiasedFactors):
    """A row of its own for every user and item.

    Arguments are those of `BiasedFactors`; it has as many rows as there are users and items.

    >>> from functools import partial
    >>> table = FullTable(5, 3, width=4, optimizer=partial(torch.optim.SparseAdam, lr=0.01))
    >>> table.table_bytes(), table.state_bytes()
    (128, 176)
    """

    def row_ids(self, users: Tensor, items: Tensor) -> Tensor:
        return torch.stack((users, items + self.num_user_rows))


class HashedTable(BiasedFactors):
    """Users share a few rows by a hash of their number, and so do items.

    Arguments are those of `BiasedFactors`; another seed shares otherwise.

    Source: Weinberger et al., "Feature hashing for large scale multitask learning", ICML 2009,
    without their sign.
    """

    def row_ids(self, users: Tensor, items: Tensor) -> Tensor:
        user_rows = hashed(users, self.num_user_rows, multiplier_of(2 * self.seed))
        item_rows = hashed(items, self.num_item_rows, multiplier_of(2 * self.seed + 1))
        return torch.stack((user_rows, item_rows + self.num_user_rows))
