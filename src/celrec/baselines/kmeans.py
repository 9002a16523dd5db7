"""k-means, as several baselines need it: seeded, bounded in time, and exact about its results."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from celrec.errors import MissingExtraError

_MOST_PASSES = 25
_POINTS_PER_CLUSTER = 64  # more sharpen the centroids little
_FEW_DISTANCES = 1 << 22  # of points to centroids in one pass
_MANY_DISTANCES = 1 << 27  # about a second
_DISTANCES_AT_A_TIME = 1 << 24


def k_means(
    vectors: Tensor,
    num_clusters: int,
    seed: int,
    *,
    weights: Tensor | None = None,
    start: Tensor | None = None,
    num_passes: int = _MOST_PASSES,
) -> tuple[Tensor, Tensor]:
    """Cluster vectors around their means.

    vectors : float (n, d), n >= 1
    num_clusters : K >= 1; centroids beyond n are zero and have no members
    weights : >= 0, float (n,), of the vectors; None: all the same
    start : centroids (K, d) to go on from; None: k-means++. Not used in two steps
    num_passes : >= 1, at most
    returns : centroids (K, d) and the nearest one of every vector, int64 (n,)
    raises : MissingExtraError without scikit-learn

    Centroids are fitted to a sample where vectors are many. Where clusters are so many, too, that
    this takes minutes, vectors are clustered in two steps: coarsely, and then each of these
    clusters by itself, into its share of centroids.

    >>> rows, clusters = k_means(torch.tensor([[0.0], [1.0], [9.0]]), 2, seed=0)
    >>> rows[clusters].flatten().tolist()
    [0.5, 0.5, 9.0]
    """
    points = vectors.detach().float().cpu().numpy()
    weight = None if weights is None else weights.detach().double().cpu().numpy()
    first = None if start is None else start.detach().float().cpu().numpy()
    num_points = len(points)
    num_fitted = min(num_clusters, num_points)
    enough = max(_FEW_DISTANCES // num_fitted, _POINTS_PER_CLUSTER * num_fitted)
    if min(num_points, enough) * num_fitted > _MANY_DISTANCES:
        rows, clusters = _in_two_steps(points, num_fitted, seed, weight, num_passes)
    else:
        some = np.arange(num_points)
        if num_points > enough:
            some = np.random.default_rng(seed).choice(num_points, enough, replace=False)
        rows = _fit(
            points[some],
            num_fitted,
            seed,
            weight=None if weight is None else weight[some],
            start=None if first is None else first[:num_fitted],
            num_passes=num_passes,
        )
        clusters = nearest(torch.from_numpy(points), torch.from_numpy(rows)).numpy()
    centroids = vectors.detach().new_zeros(num_clusters, vectors.shape[1])
    centroids[:num_fitted] = torch.from_numpy(rows).to(centroids)
    return centroids, torch.from_numpy(clusters).to(vectors.device)


def nearest(vectors: Tensor, rows: Tensor) -> Tensor:
    """The nearest row of every vector, int64 (n,) in [0, K), for (n, d) and (K, d).

    >>> nearest(torch.tensor([[0.1], [0.9]]), torch.tensor([[1.0], [0.0]])).tolist()
    [1, 0]
    """
    half = rows.square().sum(1) / 2
    parts = vectors.split(max(1, _DISTANCES_AT_A_TIME // rows.shape[0]))
    return torch.cat([torch.addmm(half, part, rows.T, alpha=-1).argmin(1) for part in parts])


def _fit(
    points: np.ndarray,
    num_clusters: int,
    seed: int,
    *,
    weight: np.ndarray | None,
    num_passes: int,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """The centroids of points, float32 (num_clusters, d)."""
    try:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise MissingExtraError(
            "k-means needs scikit-learn, which is not installed: pip install celrec[train]"
        ) from error

    means = KMeans(
        num_clusters,
        init="k-means++" if start is None else start,
        n_init=1,
        max_iter=num_passes,
        random_state=seed % (1 << 32),
    )
    with warnings.catch_warnings():  # of fewer distinct points than clusters; that may be
        warnings.simplefilter("ignore", ConvergenceWarning)
        means.fit(points, sample_weight=weight)
    return np.asarray(means.cluster_centers_, dtype=np.float32)


def _in_two_steps(
    points: np.ndarray, num_clusters: int, seed: int, weight: np.ndarray | None, num_passes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Centroids and the cluster of every point, by clusters within clusters."""
    num_coarse = round(num_clusters**0.5)
    coarse = k_means(
        torch.from_numpy(points),
        num_coarse,
        seed,
        weights=None if weight is None else torch.from_numpy(weight),
        num_passes=num_passes,
    )[1].numpy()
    clusters = np.empty(len(points), dtype=np.int64)
    found: list[np.ndarray] = []
    num_found = 0
    for cluster, share in enumerate(_shares(np.bincount(coarse), num_clusters)):
        members = np.flatnonzero(coarse == cluster)
        if not len(members):
            continue
        rows = _fit(
            points[members],
            share,
            seed,
            weight=None if weight is None else weight[members],
            num_passes=num_passes,
        )
        inside = nearest(torch.from_numpy(points[members]), torch.from_numpy(rows)).numpy()
        clusters[members] = num_found + inside
        found.append(rows)
        num_found += share
    return np.concatenate(found), clusters


def _shares(members: np.ndarray, num_clusters: int) -> list[int]:
    """Divide clusters among groups by their members, at least one for any group that has some.

    members : int (G,), at least `num_clusters` together
    returns : G shares, none larger than its group; they sum to `num_clusters`
    """
    ends = np.cumsum(members) * num_clusters // members.sum()
    shares = np.diff(ends, prepend=0)
    for group in np.flatnonzero((shares == 0) & (members > 0)):
        shares[shares.argmax()] -= 1
        shares[group] = 1
    return [int(share) for share in shares]
