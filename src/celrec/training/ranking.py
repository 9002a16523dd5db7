"""How well a model ranks all items for a user, where data hold positives only.

AUC on drawn negatives asks whether a met item beats a few others; ranking asks for its place among
all items that could be shown. It costs about ten milliseconds a user, so a sample of users is
ranked: the same users for every model, given the data and the seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from celrec.data.interactions import Interactions
from celrec.metrics import RANKING_METRIC_NAMES, Metrics, rank_metrics
from celrec.training.evaluation import predict_ids

MAX_USERS = 1000
_BLOCK = 50  # users whose scores are held at a time: 50 x items floats
_BATCH_SIZE = 8192  # vectors that fit the processor's cache


@dataclass(frozen=True)
class Ranking:
    """Ranking metrics of single users.

    users : int64 (n,), ascending; n may be 0
    values : by metric, float64 (n,)
    """

    users: np.ndarray
    values: Mapping[str, np.ndarray]

    def means(self) -> Metrics:
        """Means over users, None without any; and "num_ranked_users"."""
        count = len(self.users)
        means = {name: float(v.mean()) if count else None for name, v in self.values.items()}
        return {**means, "num_ranked_users": count}


def rank_items(
    model: nn.Module,
    train: Interactions,
    test: Interactions,
    *,
    seed: int,
    max_users: int = MAX_USERS,
) -> Ranking:
    """Rank all items but those met in training, for users with test positives.

    model : (user ids (B,), item ids (B,)) -> (B,), called for every pair of a user and an item
    train, test : over the same vocabularies; only rows with label 1 count. A test item that its
        user met in training is no test item
    seed : >= 0; draws `max_users` users where there are more. What is drawn depends on nothing else
        but train and test
    returns : a user with fewer than two items left to rank is not in it
    """
    num_items = test.num_items
    met, wanted = _positive_pairs(train), _positive_pairs(test)
    wanted = np.setdiff1d(wanted, met, assume_unique=True)
    num_met = np.bincount(met // num_items, minlength=test.num_users)
    users = np.unique(wanted // num_items)
    users = users[num_items - num_met[users] >= 2]
    if len(users) > max_users:
        drawn = np.random.default_rng(seed).choice(users, max_users, replace=False)
        users = np.sort(drawn)
    device = next(model.parameters()).device
    items = torch.arange(num_items, device=device)
    found: list[dict[str, float]] = []
    for block in np.split(users, range(_BLOCK, len(users), _BLOCK)):
        user = torch.from_numpy(block).to(device).repeat_interleave(num_items)
        score = predict_ids(model, user, items.repeat(len(block)), batch_size=_BATCH_SIZE)
        for one, scores in zip(block, score.cpu().numpy().reshape(-1, num_items), strict=True):
            is_wanted, may_be_shown = np.zeros(num_items, bool), np.ones(num_items, bool)
            is_wanted[_items_of(one, wanted, num_items)] = True
            may_be_shown[_items_of(one, met, num_items)] = False
            found.append(rank_metrics(scores[may_be_shown], is_wanted[may_be_shown]))
    values = {name: np.array([one[name] for one in found]) for name in RANKING_METRIC_NAMES}
    return Ranking(users, values)


def _positive_pairs(interactions: Interactions) -> np.ndarray:
    """user * I + item of what users met: distinct, ascending."""
    is_met = interactions.label == 1
    return np.unique(
        interactions.user[is_met].astype(np.int64) * interactions.num_items
        + interactions.item[is_met]
    )


def _items_of(user: int, pairs: np.ndarray, num_items: int) -> np.ndarray:
    """The items of one user among ascending pairs."""
    begin, end = np.searchsorted(pairs, (user * num_items, (user + 1) * num_items))
    return pairs[begin:end] - user * num_items
