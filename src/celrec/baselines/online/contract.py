"""What an online baseline needs to know of the events it is given."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Events(Protocol):
    """A batch of B events; `training.progressive.EventBatch` is one.

    users, items : int64 (B,)   entity numbers, in [0, num_users) and [0, num_items)
    labels : float (B,)         0 or 1; unknown, NaN, while they are to be predicted
    """

    @property
    def users(self) -> Tensor: ...

    @property
    def items(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...
