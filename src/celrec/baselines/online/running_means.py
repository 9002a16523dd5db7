"""How much each user likes and each item is liked, so far: counts, and nothing learned."""

from __future__ import annotations

import torch
from torch import Tensor

from celrec.baselines.online.contract import Events
from celrec.errors import check_count, check_number


class RunningMeans:
    """The logit of the mean label, and how far the user's and the item's mean are from it.

    A mean is pulled to the mean of all events, as by so many more events like them. Counts go to
    2^31 - 1 events of one entity.

    user_smoothing, item_smoothing : > 0, in events

    >>> from types import SimpleNamespace as Events
    >>> means = RunningMeans(2, 1, user_smoothing=1, item_smoothing=1)
    >>> user = torch.tensor([0, 1])
    >>> means.learn(Events(users=user, items=user * 0, labels=torch.tensor([1.0, 0.0])))
    >>> means.predict(Events(users=user, items=user * 0)).tolist()  # log 3 and -log 3
    [1.0986..., -1.0986...]
    """

    def __init__(
        self, num_users: int, num_items: int, *, user_smoothing: float, item_smoothing: float
    ) -> None:
        sizes = (
            check_count("num_users", num_users, at_least=1),
            check_count("num_items", num_items, at_least=1),
        )
        self._smoothing = (
            check_number("user_smoothing", user_smoothing, above=0),
            check_number("item_smoothing", item_smoothing, above=0),
        )
        # events and likes of every user, of every item
        self._counts = tuple(torch.zeros(size, 2, dtype=torch.int32) for size in sizes)
        self._num_events, self._num_likes = 0, 0

    def predict(self, batch: Events) -> Tensor:
        """Logits, float64 (B,)."""
        mean = torch.tensor((self._num_likes + 1) / (self._num_events + 2), dtype=torch.float64)
        logits = -mean.logit()
        for counts, ids, smoothing in zip(
            self._counts, (batch.users, batch.items), self._smoothing, strict=True
        ):
            num_events, num_likes = counts[ids].double().unbind(1)
            logits = logits + ((num_likes + smoothing * mean) / (num_events + smoothing)).logit()
        return logits

    def learn(self, batch: Events) -> None:
        """Count events with their labels, 0 or 1."""
        likes = batch.labels.int()
        new = torch.stack((torch.ones_like(likes), likes), 1)  # (B, 2)
        for counts, ids in zip(self._counts, (batch.users, batch.items), strict=True):
            counts.index_add_(0, ids, new)
        self._num_events += len(likes)
        self._num_likes += int(likes.sum())

    def table_bytes(self) -> int:
        """None: there are no shared rows."""
        return 0

    def state_bytes(self) -> int:
        """Two counts of each entity, and of all events."""
        return sum(counts.nbytes for counts in self._counts) + 2 * 8
