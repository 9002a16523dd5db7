"""CEL-Lite among the methods that are compared on streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from celrec.core.online import OnlineRule
from celrec.core.online_embedding import OnlineEmbedding
from celrec.training.online_factors import OnlineFactors
from celrec.training.progressive import EventBatch

MOST_ROWS = 64
SMOOTHING = (2, 0)  # of users and items
ITEM_MEMORY = 0.995

CODES = {5: (8, 20), 10: (4, 10), 20: (2, 4)}
"""Clusters of a code, and numbers of an offset, where tables may take 1/5, 1/10 and 1/20."""


class OursOnline:
    """Two online tables that take at most a part of what full tables with SparseAdam keep.

    part : 1/part of (width + 1) numbers of 4 bytes, three times, for each entity
    settings : "lr", "user_bias_precision", and options of OnlineRule
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        *,
        width: int,
        part: int,
        settings: Mapping[str, Any],
        smoothing: tuple[float, float] = SMOOTHING,
        seed: int,
    ) -> None:
        blend_size, offset_dim = CODES[part]
        budget = (num_users + num_items) * (width + 1) * 4 * 3 // part
        rule = dict(settings)
        learning_rate, user_bias_precision = rule.pop("lr"), rule.pop("user_bias_precision")
        of_users = OnlineRule(**{**rule, "bias_precision": user_bias_precision})
        rules = {
            "user_embedding": of_users,
            "item_embedding": OnlineRule(**rule, memory=ITEM_MEMORY),
        }

        def factors(rows: int) -> OnlineFactors:
            sizes = {"embedding_dim": width + 2, "max_clusters": rows}
            sizes |= {"blend_size": blend_size, "offset_dim": offset_dim}
            users, items = (
                OnlineEmbedding(n, **sizes, smoothing=c)
                for n, c in zip((num_users, num_items), smoothing, strict=True)
            )
            return OnlineFactors(users, items, learning_rate=learning_rate, rule=rules, seed=seed)

        one, two = factors(1).nbytes, factors(2).nbytes
        rows = min(MOST_ROWS, 1 + (budget - one) // (two - one))
        self.factors = factors(rows)
        assert self.factors.nbytes <= budget

    def predict(self, batch: EventBatch) -> Tensor:
        return self.factors.predict(batch.users, batch.items)

    def learn(self, batch: EventBatch) -> None:
        self.factors.learn(batch.users, batch.items, batch.labels)

    def table_bytes(self) -> int:
        return sum(table.weight.nbytes for table in self.factors.tables)

    def state_bytes(self) -> int:
        return self.factors.nbytes
