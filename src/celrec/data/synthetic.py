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
    noise_std : >= 0, standard deviation of the noise that was added to the score, in its units
    """

    interactions: Interactions
    user_cluster: np.ndarray
    item_cluster: np.ndarray
    user_cluster_after: np.ndarray
    changes_at: np.ndarray
    user_rows: np.ndarray
    item_rows: np.ndarray
    score: np.ndarray
    noise_std: float


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
    spread: float = 0.0,
    popularity_skew: float = 0.0,
    cluster_skew: float = 0.0,
    drift: float = 0.0,
    nonnegative: bool = False,
    task: Literal["rating", "binary"] = "rating",
) -> PlantedData:
    """Draw interactions from a model with K_u x K_i planted clusters.

    Every cluster k has one vector, a_k for users and b_k for items, of D = `width` standard normal
    numbers (their absolute values if `nonnegative`). User u in cluster c and item i in cluster d
    have the vectors v_u = a_c + spread x_u and w_i = b_d + spread y_i, where x_u and y_i are
    standard normal and their own. They meet with score s = signal (v_u . w_i) / sqrt(D), and with e
    standard normal the label is

        rating    s + noise e                             (not rounded, not clipped)
        binary    1 with probability sigmoid(s + noise e), else 0

    The user and the item of each interaction are drawn independently, the one of popularity rank r
    (r = 1, 2, ... in random order) with probability proportional to r^(-popularity_skew). Pairs may
    repeat; entities may stay unseen. Cluster k = 0, 1, ... holds a share of the entities
    proportional to (k + 1)^(-cluster_skew), and at least one.

    drift : share in [0, 1] of the users who change to another cluster, picked at random, each at
        its own time, uniform in the middle half of the data
    noise, spread, popularity_skew, cluster_skew : >= 0;  signal : > 0;  seed : >= 0
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
    spread = check_number("spread", spread, at_least=0)
    drift = check_number("drift", drift, at_least=0, at_most=1)
    if task not in ("rating", "binary"):
        raise ArgumentError(f"task is {task!r}; wanted 'rating' or 'binary'")
    if drift > 0 and num_user_clusters < 2:
        raise ArgumentError(f"drift is {drift:g} but there is one user cluster; wanted at least 2")
    rng = np.random.default_rng(check_count("seed", seed))

    skew = check_number("cluster_skew", cluster_skew, at_least=0)

    def assigned(kind: str, num_entities: int, num_clusters: int) -> np.ndarray:
        shares = np.arange(1, num_clusters + 1) ** -skew
        return _assign(rng, kind, num_entities, num_clusters, shares)

    user_cluster = assigned("user", num_users, num_user_clusters)
    item_cluster = assigned("item", num_items, num_item_clusters)
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
    user_vector, item_vector = user_rows[cluster_then], item_rows[item_cluster[item]]  # (n, D)
    if spread > 0:
        user_vector += spread * rng.standard_normal((num_users, width))[user]
        item_vector += spread * rng.standard_normal((num_items, width))[item]
    score = signal / np.sqrt(width) * np.vecdot(user_vector, item_vector)
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
        noise,
    )


def planted_nmf(
    num_users: int,
    num_items: int,
    num_user_clusters: int,
    num_item_clusters: int,
    *,
    seed: int,
    rank: int = 5,
    observed: float = 0.1,
    noise: float = 0.5,
    size_ratio: float = 5.0,
    separation: float = 0.3,
) -> PlantedData:
    """Draw some entries of a nonnegative matrix of known rank, clusters and factors.

    User u in cluster c and item i in cluster d have the score a_c . b_d, where the rows a and b
    have D = `rank` nonnegative factors, and the label is the score + normal noise. Each entry is
    seen with probability `observed`, once, in random order.

    *Rows.* Of each table, `rank` clusters at random are pure: each has another single factor, of
    size sqrt(D). The other rows are absolute normal numbers. With pure rows on both sides the
    factors are unique up to their order and a scale each, (a s, b / s); without them there are
    others that fit as well (Huang, Sidiropoulos and Swami, IEEE Transactions on Signal Processing
    2014).

    *Sizes* of clusters 0, 1, ... grow in equal steps from 1 to `size_ratio`, in shares.

    noise : >= 0, standard deviation of the noise over that of all scores
    size_ratio : >= 1      observed : in (0, 1]      seed : >= 0
    separation : >= 0   rows are drawn again until the scores of any two clusters of a table differ
        by at least so much, root mean square over the other table's entities, over the standard
        deviation of all scores: without it the nearest two may be too alike for anybody to tell
    raises : ArgumentError, also for fewer clusters than `rank`, or if a thousand draws are not
        separated so far; DataError if no entry happens to be seen

    >>> data = planted_nmf(200, 100, 4, 3, rank=3, observed=0.5, seed=0)
    >>> data.interactions
    Interactions('planted-nmf', 9,950 rows, 200 users, 100 items)
    >>> np.bincount(data.user_cluster).tolist()
    [17, 39, 61, 83]
    """
    rank = check_count("rank", rank, at_least=1)
    observed = check_number("observed", observed, above=0, at_most=1)
    noise = check_number("noise", noise, at_least=0)
    separation = check_number("separation", separation, at_least=0)
    growth = check_number("size_ratio", size_ratio, at_least=1) - 1
    rng = np.random.default_rng(check_count("seed", seed))
    for kind, count in (("user", num_user_clusters), ("item", num_item_clusters)):
        check_count(f"num_{kind}_clusters", count, at_least=rank)

    def assigned(kind: str, num_entities: int, num_clusters: int) -> np.ndarray:
        shares = 1 + growth * np.linspace(0, 1, num_clusters)
        beyond_one = num_entities * shares / shares.sum() - 1  # _assign gives everyone one
        return _assign(rng, kind, num_entities, num_clusters, np.maximum(beyond_one, 1e-9))

    user_cluster = assigned("user", num_users, num_user_clusters)
    item_cluster = assigned("item", num_items, num_item_clusters)
    user_share = np.bincount(user_cluster) / num_users
    item_share = np.bincount(item_cluster) / num_items
    for _ in range(_MAX_DRAWS):
        user_rows = _rows_with_pure_ones(rng, num_user_clusters, rank)
        item_rows = _rows_with_pure_ones(rng, num_item_clusters, rank)
        products = user_rows @ item_rows.T  # (K_u, K_i)
        mean = user_share @ products @ item_share
        std = float(np.sqrt(user_share @ (products - mean) ** 2 @ item_share))
        nearest = min(_nearest(products, item_share), _nearest(products.T, user_share))
        if nearest >= separation * std:
            break
    else:
        raise ArgumentError(
            f"separation is {separation:g}, and {_MAX_DRAWS} draws of {num_user_clusters} + "
            f"{num_item_clusters} rows were not so far apart; wanted less, or fewer clusters"
        )

    is_seen = rng.random((num_users, num_items)) < observed
    user, item = np.nonzero(is_seen)
    order = rng.permutation(len(user))
    user, item = user[order], item[order]
    score = products[user_cluster[user], item_cluster[item]]
    interactions = Interactions(
        user=user,
        item=item,
        label=score + noise * std * rng.standard_normal(len(user)),
        users=Vocabulary.from_values(np.arange(num_users)),
        items=Vocabulary.from_values(np.arange(num_items)),
        timestamp=np.arange(len(user)),
        name="planted-nmf",
    )
    return PlantedData(
        interactions,
        user_cluster,
        item_cluster,
        user_cluster.copy(),
        np.full(num_users, len(user)),
        user_rows,
        item_rows,
        score,
        noise * std,
    )


_MAX_DRAWS = 1000


def _rows_with_pure_ones(rng: np.random.Generator, num_clusters: int, rank: int) -> np.ndarray:
    """Nonnegative rows (K, D); in D of them, at random, there is one factor, another in each."""
    rows = np.abs(rng.standard_normal((num_clusters, rank)))
    rows[rng.permutation(num_clusters)[:rank]] = np.sqrt(rank) * np.eye(rank)
    return rows


def _nearest(products: np.ndarray, share: np.ndarray) -> float:
    """The least root mean square difference of two lines of (K, L), columns weighted; or inf."""
    apart = np.sqrt(np.square(products[:, None] - products) @ share)  # (K, K)
    return float(apart[~np.eye(len(products), dtype=bool)].min(initial=np.inf))


def _assign(
    rng: np.random.Generator, kind: str, num_entities: int, num_clusters: int, weights: np.ndarray
) -> np.ndarray:
    """The cluster of every entity, in random order; sizes go with the weights (K,)."""
    N = check_count(f"num_{kind}s", num_entities, at_least=1)
    K = check_count(f"num_{kind}_clusters", num_clusters, at_least=1, at_most=N)
    # One member each; the other N - K by rounded cumulated shares, which sum to N - K.
    ends = np.rint(np.cumsum(weights) / weights.sum() * (N - K)).astype(np.int64)
    sizes = 1 + np.diff(ends, prepend=0)
    return rng.permutation(np.repeat(np.arange(K), sizes))


def _popularity(rng: np.random.Generator, num_entities: int, skew: float) -> np.ndarray:
    """Zipf's law: probabilities proportional to rank^(-skew), ranks in random order."""
    ranks = rng.permutation(num_entities) + 1
    weights = ranks ** -check_number("popularity_skew", skew, at_least=0)
    return weights / weights.sum()
