"""Synthetic interactions with planted clusters: data whose right answer is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from celrec.data.interactions import Interactions
from celrec.data.vocabulary import Vocabulary
from celrec.errors import ArgumentError, check_count, check_number


@dataclass(frozen=True, eq=False)
class PlantedData:
    """Interactions and the truth behind them.

    interactions : n rows in time order; timestamp is the row number; raw ids are 0..N-1
    user_cluster, item_cluster : int64 (num_users,), (num_items,)   cluster at time 0
    user_cluster_after : int64 (num_users,)   cluster at the end; differs for drifting users only
    changes_at : int64 (num_users,)   from this time on a user is in the later cluster; n = never
    user_rows, item_rows : float64 (K, D)   the vector of every cluster
    score : float64 (n,)   what a perfect model predicts: the rating, or the logit, without noise
    """

    interactions: Interactions
    user_cluster: np.ndarray
    item_cluster: np.ndarray
    user_cluster_after: np.ndarray
    changes_at: np.ndarray
    user_rows: np.ndarray
    item_rows: np.ndarray
    score: np.ndarray


def planted_clusters(
    num_users: int,
    num_items: int,
    num_user_clusters: int,
    num_item_clusters: int,
    *,
    num_interactions: int,
    seed: int,
    width: int = 4,
    signal: float = 1.0,
    noise: float = 0.5,
    popularity_skew: float = 0.0,
    cluster_skew: float = 0.0,
    drift: float = 0.0,
    nonnegative: bool = False,
    task: Literal["rating", "binary"] = "rating",
) -> PlantedData:
    """Draw interactions from a model with K_u x K_i planted clusters.

    Every cluster k has one vector, a_k for users and b_k for items, of D = `width` standard normal
    numbers (their absolute values if `nonnegative`). User u in cluster c and item i in cluster d
    meet with score s = signal (a_c . b_d) / sqrt(D), and with e standard normal the label is

        rating    s + noise e                             (not rounded, not clipped)
        binary    1 with probability sigmoid(s + noise e), else 0

    The user and the item of each interaction are drawn independently, the one of popularity rank r
    (r = 1, 2, ... in random order) with probability proportional to r^(-popularity_skew). Pairs may
    repeat; entities may stay unseen. Cluster k = 0, 1, ... holds a share of the entities
    proportional to (k + 1)^(-cluster_skew), and at least one.

    drift : share in [0, 1] of the users who change to another cluster, picked at random, each at
        its own time, uniform in the middle half of the data
    noise, popularity_skew, cluster_skew : >= 0;  signal : > 0;  seed : >= 0
    raises : ArgumentError, also for more clusters than entities

    >>> data = planted_clusters(100, 50, 4, 3, num_interactions=2000, seed=0)
    >>> data.interactions
    Interactions('planted', 2,000 rows, 100 users, 50 items)
    >>> np.bincount(data.user_cluster).tolist()
    [25, 25, 25, 25]
    """
    n = check_count("num_interactions", num_interactions, at_least=1)
    width = check_count("width", width, at_least=1)
    signal = check_number("signal", signal, above=0)
    noise = check_number("noise", noise, at_least=0)
    drift = check_number("drift", drift, at_least=0, at_most=1)
    if task not in ("rating", "binary"):
        raise ArgumentError(f"task is {task!r}; wanted 'rating' or 'binary'")
    if drift > 0 and num_user_clusters < 2:
        raise ArgumentError(f"drift is {drift:g} but there is one user cluster; wanted at least 2")
    rng = np.random.default_rng(check_count("seed", seed))

    user_cluster = _assign(rng, "user", num_users, num_user_clusters, cluster_skew)
    item_cluster = _assign(rng, "item", num_items, num_item_clusters, cluster_skew)
    user_rows = rng.standard_normal((num_user_clusters, width))
    item_rows = rng.standard_normal((num_item_clusters, width))
    if nonnegative:
        user_rows, item_rows = np.abs(user_rows), np.abs(item_rows)

    user_cluster_after, changes_at = user_cluster.copy(), np.full(num_users, n)
    drifting = rng.permutation(num_users)[: round(drift * num_users)]
    step = rng.integers(1, max(num_user_clusters, 2), size=len(drifting))
    user_cluster_after[drifting] = (user_cluster[drifting] + step) % num_user_clusters
    changes_at[drifting] = rng.integers(n // 4, n - n // 4, size=len(drifting))

    user = rng.choice(num_users, size=n, p=_popularity(rng, num_users, popularity_skew))
    item = rng.choice(num_items, size=n, p=_popularity(rng, num_items, popularity_skew))
    time = np.arange(n)
    cluster_then = np.where(time < changes_at[user], user_cluster[user], user_cluster_after[user])
    products = user_rows @ item_rows.T  # (K_u, K_i)
    score = signal / np.sqrt(width) * products[cluster_then, item_cluster[item]]
    noisy = score + noise * rng.standard_normal(n)
    # P(logistic noise < x) = sigmoid(x)
    label = noisy if task == "rating" else (rng.logistic(size=n) < noisy).astype(float)

    interactions = Interactions(
        user=user,
        item=item,
        label=label,
        users=Vocabulary.from_values(np.arange(num_users)),
        items=Vocabulary.from_values(np.arange(num_items)),
        timestamp=time,
        name="planted",
    )
    return PlantedData(
        interactions,
        user_cluster,
        item_cluster,
        user_cluster_after,
        changes_at,
        user_rows,
        item_rows,
        score,
    )


def _assign(
    rng: np.random.Generator, kind: str, num_entities: int, num_clusters: int, skew: float
) -> np.ndarray:
    """The cluster of every entity, in random order; sizes follow (k + 1)^(-skew)."""
    N = check_count(f"num_{kind}s", num_entities, at_least=1)
    K = check_count(f"num_{kind}_clusters", num_clusters, at_least=1, at_most=N)
    weights = np.arange(1, K + 1) ** -check_number("cluster_skew", skew, at_least=0)
    # One member each; the other N - K by rounded cumulated shares, which sum to N - K.
    ends = np.rint(np.cumsum(weights) / weights.sum() * (N - K)).astype(np.int64)
    sizes = 1 + np.diff(ends, prepend=0)
    return rng.permutation(np.repeat(np.arange(K), sizes))


def _popularity(rng: np.random.Generator, num_entities: int, skew: float) -> np.ndarray:
    """Zipf's law: probabilities proportional to rank^(-skew), ranks in random order."""
    ranks = rng.permutation(num_entities) + 1
    weights = ranks ** -check_number("popularity_skew", skew, at_least=0)
    return weights / weights.sum()
