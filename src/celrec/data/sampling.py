"""Negative sampling: items that a user did not meet, for data that hold positives only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from celrec.data.interactions import Interactions
from celrec.errors import DataError, check_count, check_number

# Item weights are rounded to integers that sum to about this much, so that drawing is exact.
_WEIGHT_TOTAL = 2**31


def sample_negatives(
    interactions: Interactions,
    *,
    per_positive: int,
    seed: int,
    popularity_power: float = 0.0,
    known: Interactions | None = None,
) -> Interactions:
    """Follow every interaction by items that its user is not known to have met.

    per_positive : m >= 1 negatives for each of the n rows, drawn independently
    seed : >= 0
    popularity_power : an item is drawn in proportion to (its count)^power. 0: all items alike; 1:
        by popularity; 0.75 is usual in between. Above 0, items never seen are never drawn.
    known : more interactions of the same vocabularies whose pairs must not be drawn (for example
        all data, when `interactions` is their train set). Every pair counts, whatever its label.
    returns : (1 + m) n rows: each interaction with label 1, then its negatives with label 0, the
        same user and the same time; `has_drawn_negatives` says so
    raises : DataError if a user has no item left to draw; the message names the user

    Exact, without rejection: known items are cut out of the line of cumulated weights, a point is
    drawn on what is left, and the cuts before it are added back. Cost O((n m + known) log known).

    >>> from celrec.data.vocabulary import Vocabulary
    >>> clicks = Interactions(user=[0, 0], item=[0, 2], label=[1, 1],
    ...     users=Vocabulary.from_values("a"), items=Vocabulary.from_values("xyz"))
    >>> both = sample_negatives(clicks, per_positive=2, seed=0)
    >>> both.item.tolist(), both.label.tolist()
    ([0, 1, 1, 2, 1, 1], [1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    """
    m = check_count("per_positive", per_positive, at_least=1)
    seed = check_count("seed", seed)
    power = check_number("popularity_power", popularity_power, at_least=0)
    known_users, known_items = _known_pairs(interactions, known)
    weights = _integer_weights(interactions.item_counts(), power)
    line = np.concatenate([[0], np.cumsum(weights)])  # item i owns [line[i], line[i + 1])

    # For every known pair, sorted by (user, item): the weight cut out of its user's line before it.
    known_weight = weights[known_items]
    cut_before = np.cumsum(known_weight) - known_weight
    pairs_before = np.searchsorted(known_users, np.arange(interactions.num_users + 1))
    total_cut = np.concatenate([cut_before, [known_weight.sum()]])
    cut_before_user = total_cut[pairs_before]  # (num_users + 1,)
    cut_before -= cut_before_user[known_users]
    room = line[-1] - np.diff(cut_before_user)  # (num_users,)

    users = np.repeat(interactions.user, m)  # (n m,)
    _check_room(interactions, room, pairs_before, users)
    point = np.random.default_rng(seed).integers(0, room[users])
    # How many of the user's known items lie before the point? One search over all users at once.
    stride = int(line[-1]) + 1
    position = known_users * stride + line[known_items] - cut_before
    num_passed = np.searchsorted(position, users * stride + point, side="right")
    point += total_cut[num_passed] - cut_before_user[users]
    negatives = np.searchsorted(line, point, side="right") - 1

    return replace(
        interactions,
        user=np.repeat(interactions.user, m + 1),
        item=np.column_stack([interactions.item, negatives.reshape(-1, m)]).ravel(),
        label=np.tile([1.0] + [0.0] * m, len(interactions)),
        timestamp=(
            None if interactions.timestamp is None else np.repeat(interactions.timestamp, m + 1)
        ),
        has_drawn_negatives=True,
    )


def _known_pairs(
    interactions: Interactions, known: Interactions | None
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct (user, item) pairs, sorted."""
    sources = [interactions]
    if known is not None:
        if known.users != interactions.users or known.items != interactions.items:
            raise DataError(
                f"{known.name} (known) and {interactions.name} have different vocabularies; take "
                "both from the same Interactions"
            )
        sources.append(known)
    pairs = np.unique(
        np.concatenate([source.user * source.num_items + source.item for source in sources])
    )
    return np.divmod(pairs, interactions.num_items)


def _integer_weights(counts: np.ndarray, power: float) -> np.ndarray:
    """Integers in proportion to counts^power, int64 (num_items,), at least 1 for a seen item."""
    if power == 0:
        return np.ones(len(counts), np.int64)
    weights = (counts / counts.max()) ** power
    scaled = np.rint(weights * (_WEIGHT_TOTAL / weights.sum())).astype(np.int64)
    return np.maximum(scaled, counts > 0)


def _check_room(
    interactions: Interactions, room: np.ndarray, pairs_before: np.ndarray, users: np.ndarray
) -> None:
    without = users[room[users] == 0]
    if without.size:
        user = without[0]
        num_known = pairs_before[user + 1] - pairs_before[user]
        raise DataError(
            f"user {interactions.users[user]!r} of {interactions.name} already met {num_known} of "
            f"{interactions.num_items} items and has no other to draw a negative from; leave such "
            "users out (or lower popularity_power to 0 if only unseen items are left)"
        )
