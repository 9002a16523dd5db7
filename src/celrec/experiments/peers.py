"""Peers: recommenders of other packages, run beside our methods in a suite, on the same partitions.

Ratings: scikit-surprise's. Positives only (`task.negatives`): implicit's, whose scores rank and are
no probabilities. What a peer has learned becomes a `FittedPeer`, a model like ours: ids to scores.
It holds the very arrays that its package predicts from, so that their bytes are the peer's size: in
double precision for Surprise, and of any size, for no peer takes a byte budget.

Settings are those of the package's own constructor. Predictions are those of its `predict`: within
the range of the training ratings for Surprise, where ours are not cut off.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from celrec.data.interactions import Interactions
from celrec.errors import ArgumentError, MissingExtraError, nearest_name
from celrec.experiments.config import TaskConfig

Settings = Mapping[str, Any]


class FittedPeer(nn.Module, ABC):
    """What a peer predicts from; (user ids (B,), item ids (B,)) -> scores (B,).

    arrays : by name; frozen parameters, as large as in their package
    met : what it was fitted on. Packages number the users and items that they met, in the order of
        our dense ids; these numbers are their map of raw ids, which counts nowhere
    """

    number_of_user: Tensor
    number_of_item: Tensor

    def __init__(self, arrays: Mapping[str, np.ndarray], met: Met) -> None:
        super().__init__()
        for name, array in arrays.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(array), requires_grad=False))
        self.register_buffer("number_of_user", torch.from_numpy(met.number_of_user))
        self.register_buffer("number_of_item", torch.from_numpy(met.number_of_item))

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        user, item = self.number_of_user[users], self.number_of_item[items]
        return self.score(user.clamp(min=0), item.clamp(min=0), user >= 0, item >= 0)

    @abstractmethod
    def score(self, user: Tensor, item: Tensor, knows_user: Tensor, knows_item: Tensor) -> Tensor:
        """All (B,). user, item : the package's numbers; any where it does not know them."""

    def memory(self) -> dict[str, int]:
        """Bytes to serve: of numbers (table_bytes), of ids (code_bytes), of both."""
        sizes = {True: 0, False: 0}
        for array in self.parameters():
            sizes[array.is_floating_point()] += array.nbytes
        return {
            "table_bytes": sizes[True],
            "code_bytes": sizes[False],
            "personal_bytes": 0,
            "total_bytes": sizes[True] + sizes[False],
        }


@dataclass(frozen=True)
class Met:
    """Training data in the numbers that a package gives to those users and items that they hold.

    user, item : int64 (n,)        label : float64 (n,)
    number_of_user, number_of_item : int64 (num_users,) and (num_items,), -1 for those not met
    """

    user: np.ndarray
    item: np.ndarray
    label: np.ndarray
    number_of_user: np.ndarray
    number_of_item: np.ndarray

    @classmethod
    def of(cls, train: Interactions) -> Met:
        user, item = (
            np.where(counts > 0, np.cumsum(counts > 0) - 1, -1)
            for counts in (train.user_counts(), train.item_counts())
        )
        return cls(user[train.user], item[train.item], train.label.astype(np.float64), user, item)

    @property
    def num_users(self) -> int:
        return int(self.number_of_user.max()) + 1

    @property
    def num_items(self) -> int:
        return int(self.number_of_item.max()) + 1


Fit = Callable[[Interactions, Settings, int], FittedPeer]
"""(training data, settings, seed) -> what it learned."""


@dataclass(frozen=True)
class Peer:
    """A recommender of another package.

    package : its name on the package index        module : its name in Python
    needs_negatives : whether it learns from positives alone; else it predicts ratings
    """

    package: str
    module: str
    needs_negatives: bool
    fit: Fit

    def version(self) -> dict[str, str]:
        """Of its package; empty where that is not installed."""
        try:
            return {self.package: importlib.metadata.version(self.package)}
        except importlib.metadata.PackageNotFoundError:
            return {}

    def check_task(self, task: TaskConfig) -> None:
        """Raise ArgumentError for a task that it cannot learn."""
        is_right = task.negatives is not None if self.needs_negatives else task.kind == "rating"
        if not is_right:
            wanted = "positives only (task.negatives)" if self.needs_negatives else "ratings"
            found = "ratings" if task.kind == "rating" else "likes and dislikes"
            if task.negatives is not None:
                found = "positives only"
            raise ArgumentError(
                f"{self.package} is for {wanted}, but the task is {found}; leave it out of methods"
            )


def fit_peer(name: str, train: Interactions, settings: Settings, seed: int) -> FittedPeer:
    """Train a peer, in one thread.

    settings : of its constructor; what is not named has the package's default
    raises : MissingExtraError without its package; TypeError for a setting that it does not have
    """
    peer = PEERS[name]
    try:
        importlib.import_module(peer.module)
    except ImportError as error:
        raise MissingExtraError(
            f"{peer.package} is not installed: pip install 'celrec[peers]' ({error})"
        ) from error
    return peer.fit(train, settings, seed)


# --- Surprise: ratings ---------------------------------------------------------------------------


class _Ratings(FittedPeer):
    """The arrays of an algorithm of surprise, by its own names, and what all of them share.

    Predictions are cut off at the ends of the training ratings.
    """

    def __init__(
        self, algorithm: Any, names: tuple[str, ...], met: Met, **more: np.ndarray
    ) -> None:
        super().__init__({name: getattr(algorithm, name) for name in names} | more, met)
        self.mean = float(algorithm.trainset.global_mean)
        self.low, self.high = algorithm.trainset.rating_scale

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return super().forward(users, items).clamp(self.low, self.high)


class _Factors(_Ratings):
    """mean + b_u + b_i + p_u . q_i, or parts of it.

    An unknown entity's part is left out; without biases the mean is all that is left.
    """

    def user_vectors(self, user: Tensor) -> Tensor:
        return self.get_parameter("pu")[user]

    def score(self, user: Tensor, item: Tensor, knows_user: Tensor, knows_item: Tensor) -> Tensor:
        arrays = dict(self.named_parameters())
        base = torch.full(user.shape, self.mean, dtype=torch.float64, device=user.device)
        score = torch.zeros_like(base)
        if "bu" in arrays:
            base = base + arrays["bu"][user] * knows_user + arrays["bi"][item] * knows_item
            score = base
        if "pu" in arrays:
            score = score + (self.user_vectors(user) * arrays["qi"][item]).sum(1)
        return torch.where(knows_user & knows_item, score, base)


class _FactorsPlusPlus(_Factors):
    """SVD++: to p_u comes the sum of y_j over the items that u rated / the root of their number.

    These lists count, as ids of 4 bytes: surprise predicts from them. (One could add the sums to
    p_u for good, and be left with the size of SVD.)
    """

    sums: Tensor

    def __init__(self, algorithm: Any, names: tuple[str, ...], met: Met) -> None:
        counts = np.bincount(met.user)
        rated = met.item[np.argsort(met.user, kind="stable")].astype(np.int32)
        starts = (np.cumsum(counts) - counts).astype(np.int32)
        super().__init__(algorithm, names, met, rated=rated, rated_from=starts)
        sums = nn.functional.embedding_bag(
            torch.from_numpy(rated), self.get_parameter("yj"), torch.from_numpy(starts), mode="sum"
        )  # (users, D)
        self.register_buffer("sums", sums / torch.from_numpy(np.sqrt(counts))[:, None])

    def user_vectors(self, user: Tensor) -> Tensor:
        return super().user_vectors(user) + self.sums[user]


class _CoClusters(_Ratings):
    """The mean of the co-cluster, and how far user and item are above those of their clusters."""

    def score(self, user: Tensor, item: Tensor, knows_user: Tensor, knows_item: Tensor) -> Tensor:
        arrays = dict(self.named_parameters())
        user_cluster, item_cluster = arrays["cltr_u"][user], arrays["cltr_i"][item]
        score = (
            arrays["avg_cocltr"][user_cluster, item_cluster]
            + arrays["user_mean"][user]
            - arrays["avg_cltr_u"][user_cluster]
            + arrays["item_mean"][item]
            - arrays["avg_cltr_i"][item_cluster]
        )
        return torch.where(knows_user & knows_item, score, self.mean)


def trainset_of(met: Met) -> Any:
    """Training data as surprise's Trainset; inner and raw ids are the same."""
    from surprise import Trainset

    ratings_of_user: dict[int, list[tuple[int, float]]] = defaultdict(list)
    ratings_of_item: dict[int, list[tuple[int, float]]] = defaultdict(list)
    columns = (met.user.tolist(), met.item.tolist(), met.label.tolist())
    for user, item, label in zip(*columns, strict=True):
        ratings_of_user[user].append((item, label))
        ratings_of_item[item].append((user, label))
    return Trainset(
        ratings_of_user,
        ratings_of_item,
        met.num_users,
        met.num_items,
        len(met.label),
        (float(met.label.min()), float(met.label.max())),
        {user: user for user in ratings_of_user},
        {item: item for item in ratings_of_item},
    )


def _svd(train: Interactions, settings: Settings, seed: int) -> FittedPeer:
    from surprise import SVD

    return _with_or_without_biases(SVD(random_state=seed, **settings), Met.of(train))


def _nmf(train: Interactions, settings: Settings, seed: int) -> FittedPeer:
    from surprise import NMF

    return _with_or_without_biases(NMF(random_state=seed, **settings), Met.of(train))


def _with_or_without_biases(algorithm: Any, met: Met) -> FittedPeer:
    names = ("bu", "bi", "pu", "qi") if algorithm.biased else ("pu", "qi")
    return _Factors(algorithm.fit(trainset_of(met)), names, met)


def _svdpp(train: Interactions, settings: Settings, seed: int) -> FittedPeer:
    """Cached ratings train the same numbers in less time."""
    from surprise import SVDpp

    met = Met.of(train)
    algorithm = SVDpp(**{"random_state": seed, "cache_ratings": True, **settings})
    return _FactorsPlusPlus(algorithm.fit(trainset_of(met)), ("bu", "bi", "pu", "qi", "yj"), met)


def _co_clustering(train: Interactions, settings: Settings, seed: int) -> FittedPeer:
    """Surprise takes ratings as whole numbers here: 3.5 counts as 3."""
    from surprise import CoClustering

    met = Met.of(train)
    algorithm = CoClustering(random_state=seed, **settings).fit(trainset_of(met))
    clusters = ("cltr_u", "cltr_i", "avg_cltr_u", "avg_cltr_i", "avg_cocltr")
    return _CoClusters(algorithm, (*clusters, "user_mean", "item_mean"), met)


def _baseline(train: Interactions, settings: Settings, seed: int) -> FittedPeer:
    """Biases alone; nothing is drawn. Settings are those of surprise's `bsl_options`."""
    from surprise import BaselineOnly

    for name in settings:  # surprise would pass over it
        if name not in _BASELINE_SETTINGS:
            raise TypeError(f"no setting {name!r}; {nearest_name(name, _BASELINE_SETTINGS)}")
    met = Met.of(train)
    algorithm = BaselineOnly(bsl_options=dict(settings), verbose=False)
    return _Factors(algorithm.fit(trainset_of(met)), ("bu", "bi"), met)


_BASELINE_SETTINGS = ("method", "n_epochs", "reg_u", "reg_i", "reg", "learning_rate")


# --- implicit: positives -------------------------------------------------------------------------


class _Products(FittedPeer):
    """p_u . q_i: higher for what is liked more, on no scale; 0 for the unknown."""

    def score(self, user: Tensor, item: Tensor, knows_user: Tensor, knows_item: Tensor) -> Tensor:
        product = (
            self.get_parameter("user_factors")[user] * self.get_parameter("item_factors")[item]
        )
        return torch.where(knows_user & knows_item, product.sum(1), 0.0)


def _fit_implicit(
    make: Callable[..., Any], train: Interactions, settings: Settings, seed: int
) -> FittedPeer:
    """From the positives alone: implicit has ways of its own to use what it does not see."""
    import scipy.sparse
    from threadpoolctl import threadpool_limits

    met = Met.of(train.take(train.label > 0))
    matrix = scipy.sparse.csr_matrix(
        (np.ones(len(met.user), np.float32), (met.user, met.item)),
        shape=(met.num_users, met.num_items),
    )
    with threadpool_limits(1, "blas"):
        model = make(num_threads=1, random_state=seed, **settings)
        model.fit(matrix, show_progress=False)
    return _Products({"user_factors": model.user_factors, "item_factors": model.item_factors}, met)


def _als(train: Interactions, settings: Settings, seed: int) -> FittedPeer:
    from implicit.cpu.als import AlternatingLeastSquares

    return _fit_implicit(AlternatingLeastSquares, train, settings, seed)


def _bpr(train: Interactions, settings: Settings, seed: int) -> FittedPeer:
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    return _fit_implicit(BayesianPersonalizedRanking, train, settings, seed)


PEERS: dict[str, Peer] = {
    "surprise-svd": Peer("scikit-surprise", "surprise", False, _svd),
    "surprise-svdpp": Peer("scikit-surprise", "surprise", False, _svdpp),
    "surprise-nmf": Peer("scikit-surprise", "surprise", False, _nmf),
    "surprise-co-clustering": Peer("scikit-surprise", "surprise", False, _co_clustering),
    "surprise-baseline": Peer("scikit-surprise", "surprise", False, _baseline),
    "implicit-als": Peer("implicit", "implicit", True, _als),
    "implicit-bpr": Peer("implicit", "implicit", True, _bpr),
}
