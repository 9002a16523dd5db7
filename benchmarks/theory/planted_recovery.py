"""One planted matrix, one fit of it, and what of the truth was found."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import process_time
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp
from sklearn.metrics import adjusted_rand_score

from celrec import ClusteredEmbedding, ClusterSchedule
from celrec.core.row_cost import RowCost, spread_of
from celrec.core.statistics import ClusterFisher
from celrec.data.interactions import Interactions
from celrec.data.synthetic import PlantedData, planted_nmf
from celrec.losses import SquaredError
from celrec.models.nmf import NMF
from celrec.training.trainer import Trainer, TrainingOptions

Result = dict[str, Any]
"""What `measure` returns."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One matrix and one fit; the defaults are the headline setting.

    entities : of either table      clusters : planted in either table
    rows : of either table, "auto" or a count
    starts_planted : whether a fixed count starts from the planted tables, see `with_clusters`
    Other fields are those of `planted_nmf`.
    """

    seed: int
    entities: int = 1000
    clusters: int = 10
    observed: float = 0.1
    noise: float = 0.5
    rows: int | Literal["auto"] = "auto"
    starts_planted: bool = False

    @property
    def rank(self) -> int:
        """Five, and at most half of the clusters, so that some rows are not pure."""
        return min(5, (self.clusters + 1) // 2)

    @property
    def name(self) -> str:
        return (
            f"n{self.entities}-k{self.clusters}-seen{self.observed:g}-noise{self.noise:g}"
            f"-rows{self.rows}-{'planted-' * self.starts_planted}seed{self.seed}"
        )

    def data(self) -> PlantedData:
        return planted_nmf(
            self.entities,
            self.entities,
            self.clusters,
            self.clusters,
            rank=self.rank,
            observed=self.observed,
            noise=self.noise,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Series:
    """Settings that differ in one thing.

    axis : what the plot writes below it
    always : what is the same in all of them
    """

    title: str
    axis: str
    varied: str
    values: Sequence[Any]
    seeds: range = range(3)
    always: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, value: Any) -> list[Setting]:
        return [Setting(seed=seed, **{self.varied: value}, **self.always) for seed in self.seeds]

    def all_settings(self) -> list[Setting]:
        return [setting for value in self.values for setting in self.settings(value)]


_FIXED = (2, 4, 6, 8, 9, 10, 11, 12, 14, 16, 20)
SERIES = {
    "headline": Series("The headline setting", "", "clusters", (10,), range(10)),
    "objective": Series(
        "Fixed counts, from the planted tables",
        "rows of either table",
        "rows",
        _FIXED,
        always={"starts_planted": True},
    ),
    "search": Series("Fixed counts, from nothing", "rows of either table", "rows", _FIXED),
    "noise": Series("Noise", "noise / std of scores", "noise", (0.25, 0.5, 1.0, 2.0)),
    "clusters": Series("Planted clusters", "planted clusters", "clusters", (3, 5, 10, 20)),
    "observed": Series("Entries seen", "share", "observed", (0.01, 0.03, 0.1, 0.3)),
    "entities": Series("Size", "users, and items", "entities", (300, 1000, 3000)),
}


@dataclass(frozen=True)
class Tables:
    """Users and items in clusters, found or planted.

    user_of, item_of : int (N,)   cluster of each      users, items : float64 (K, D)   rows
    """

    user_of: np.ndarray
    item_of: np.ndarray
    users: np.ndarray
    items: np.ndarray

    @staticmethod
    def planted(data: PlantedData) -> Tables:
        return Tables(data.user_cluster, data.item_cluster, data.user_rows, data.item_rows)

    @staticmethod
    def found(model: NMF) -> Tables:
        live = []
        for table in (model.user_embedding, model.item_embedding):
            rows, cluster_of = table.cluster_ids().unique(return_inverse=True)
            live += [cluster_of.numpy(), table.weight.detach()[rows].double().numpy()]
        return Tables(live[0], live[2], live[1], live[3])

    @property
    def products(self) -> np.ndarray:
        """The score of every pair of clusters, (K, K)."""
        return self.users @ self.items.T


def measure(setting: Setting) -> Result:
    """Fit one planted matrix and compare the tables with the truth."""
    data = setting.data()
    began = process_time()
    model = refitted(setting, data) if setting.starts_planted else fitted(setting, data)
    seconds = process_time() - began
    found, truth = Tables.found(model), Tables.planted(data)
    variance = data.noise_std**2
    best = best_possible_clusters(data)
    return {
        "setting": asdict(setting),
        "rank": setting.rank,
        "samples": len(data.interactions),
        "fingerprint": data.interactions.fingerprint(),
        "found": [len(found.users), len(found.items)],
        "ari": [
            adjusted_rand_score(data.user_cluster, found.user_of),
            adjusted_rand_score(data.item_cluster, found.item_of),
        ],
        "best_ari": [
            adjusted_rand_score(data.user_cluster, best[0]),
            adjusted_rand_score(data.item_cluster, best[1]),
        ],
        **recovery(found, truth),
        "train_loss": squared_error(found, data.interactions) / variance,
        "unseen_loss": 1 + excess_of_unseen(found, truth, data.interactions) / variance,
        "description": description_length(found, data.interactions),
        "planted_description": description_length(truth, data.interactions),
        "seconds": seconds,
        "where": where(),
    }


def fitted(setting: Setting, planted: PlantedData) -> NMF:
    """Nonnegative factorization with `auto` or fixed counts; the rank is given.

    An epoch is a hundred steps, or more where a step would take more than 1,024 samples. There are
    30 epochs of 102,400 samples; up to 60 of fewer samples, and at least 12 of more. A cluster
    round follows every 200 steps, or every epoch if that is longer.
    """
    width, seed, data = setting.rank, setting.seed, planted.interactions
    model = NMF(
        ClusteredEmbedding(setting.entities, width, max_clusters=setting.rows),
        ClusteredEmbedding(setting.entities, width, max_clusters=setting.rows),
    )
    mean = float(data.label.mean())
    model.reset_parameters(torch.Generator().manual_seed(seed), mean=mean)
    options = TrainingOptions(
        epochs=int(np.clip(30 * 102_400 / len(data), 12, 60)),
        batch_size=min(1024, -(-len(data) // 100)),
        optimizer="adam",
        learning_rate=0.05,
        lr_drop=0.04,
        lr_drop_from=0.6,
        weight_decay=0.0,
    )
    every = 2 if len(data) < 150 * options.batch_size else 1
    rounds = ClusterSchedule(growth_rounds=6, every=every)
    Trainer(model, SquaredError(), options, clusters=rounds, seed=seed).fit(data)
    return model


def refitted(setting: Setting, planted: PlantedData) -> NMF:
    """The same with a fixed count, from the planted tables with so many clusters.

    The start is good and steps are small, so that the end is near the best for the count.
    """
    start = with_clusters(Tables.planted(planted), int(setting.rows), setting.seed)
    users, items = (
        ClusteredEmbedding.from_pretrained(
            torch.tensor(rows, dtype=torch.float32), torch.tensor(cluster_of), freeze=False
        )
        for rows, cluster_of in ((start.users, start.user_of), (start.items, start.item_of))
    )
    model = NMF(users, items)
    options = TrainingOptions(
        epochs=14,
        batch_size=-(-len(planted.interactions) // 100),
        optimizer="adam",
        learning_rate=0.01,
        lr_drop=0.1,
        lr_drop_from=0.6,
        weight_decay=0.0,
    )
    rounds = ClusterSchedule(every=2)
    trainer = Trainer(model, SquaredError(), options, clusters=rounds, seed=setting.seed)
    trainer.fit(planted.interactions)
    return model


def with_clusters(tables: Tables, count: int, seed: int) -> Tables:
    """Tables with `count` clusters each: the most alike are joined, or the largest divided.

    Joined are the two clusters whose scores rise least in squared error; a half of the largest, at
    random, gets a row of its own, which is a copy.
    """
    rng = np.random.default_rng(seed)

    def changed(
        cluster_of: np.ndarray, rows: np.ndarray, others: np.ndarray, other_of: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        cluster_of, weight = cluster_of.copy(), np.bincount(other_of)
        while len(rows) > count:
            size, scores = np.bincount(cluster_of), rows @ others.T
            rise = np.square(scores[:, None] - scores) @ weight
            rise *= size[:, None] * size / (size[:, None] + size)
            np.fill_diagonal(rise, np.inf)
            kept, gone = sorted(np.unravel_index(rise.argmin(), rise.shape))
            rows[kept] = np.average(rows[[kept, gone]], axis=0, weights=size[[kept, gone]])
            rows = np.delete(rows, gone, axis=0)
            cluster_of[cluster_of == gone] = kept
            cluster_of[cluster_of > gone] -= 1
        while len(rows) < count:
            largest = int(np.bincount(cluster_of).argmax())
            members = rng.permutation(np.flatnonzero(cluster_of == largest))
            cluster_of[members[: len(members) // 2]] = len(rows)
            rows = np.concatenate([rows, rows[[largest]]])
        return cluster_of, rows

    user_of, users = changed(tables.user_of, tables.users.copy(), tables.items, tables.item_of)
    item_of, items = changed(tables.item_of, tables.items.copy(), tables.users, tables.user_of)
    return Tables(user_of, item_of, users, items)


def squared_error(tables: Tables, data: Interactions) -> float:
    """Mean over all entries seen."""
    predicted = tables.products[tables.user_of[data.user], tables.item_of[data.item]]
    return float(np.square(predicted - data.label).mean())


def excess_of_unseen(found: Tables, truth: Tables, data: Interactions) -> float:
    """Mean squared difference of found and true scores, over the entries not seen: exact."""
    difference = (
        found.products[np.ix_(found.user_of, found.item_of)]
        - truth.products[np.ix_(truth.user_of, truth.item_of)]
    )
    difference[data.user, data.item] = 0
    return float(np.square(difference).sum() / (difference.size - len(data)))


def best_possible_clusters(data: PlantedData) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest cluster of every user and item for one who knows all but that.

    Known are the rows, the sizes of clusters, the noise, and the clusters of the other table. No
    method can expect more agreement with the truth.
    """
    truth, variance = Tables.planted(data), data.noise_std**2
    best = []
    for losses, cluster_of in zip(
        losses_by_cluster(truth, data.interactions, variance),
        (truth.user_of, truth.item_of),
        strict=True,
    ):
        best.append((losses - np.log(np.bincount(cluster_of))).argmin(1))
    return best[0], best[1]


def losses_by_cluster(
    tables: Tables, data: Interactions, variance: float
) -> tuple[np.ndarray, np.ndarray]:
    """What all samples of an entity would lose in each cluster of its table: (N, K), in nats."""

    def losses(
        entity: np.ndarray, num_entities: int, other: np.ndarray, products: np.ndarray
    ) -> np.ndarray:
        columns = [
            np.bincount(entity, (line[other] - data.label) ** 2, minlength=num_entities)
            for line in products
        ]
        return np.stack(columns, 1) / (2 * variance)

    user_of, item_of = tables.user_of, tables.item_of
    return (
        losses(data.user, len(user_of), item_of[data.item], tables.products),
        losses(data.item, len(item_of), user_of[data.user], tables.products.T),
    )


def description_length(tables: Tables, data: Interactions) -> float:
    """The description length of data and both tables, as core/description_length.py has it.

    In nats, at the noise variance that fits best. Names of clusters cost -log share, less what
    comes back of it where an entity is undecided; rows cost what core/row_cost.py says.
    """
    n, variance = len(data), squared_error(tables, data)
    length = n / 2 * (np.log(2 * np.pi * variance) + 1)
    samples = np.zeros(tables.products.shape)  # of each pair of clusters
    np.add.at(samples, (tables.user_of[data.user], tables.item_of[data.item]), 1)
    user_losses, item_losses = losses_by_cluster(tables, data, variance)
    return float(
        length
        + names_cost(user_losses, tables.user_of, data.user)
        + names_cost(item_losses, tables.item_of, data.item)
        + rows_cost(tables.users, tables.items, samples, variance)
        + rows_cost(tables.items, tables.users, samples.T, variance)
    )


def names_cost(losses: np.ndarray, cluster_of: np.ndarray, entity: np.ndarray) -> float:
    """What it takes to name the clusters of all entities with data, less what comes back.

    losses : (N, K)      cluster_of : (N,)      entity : (n,) of each sample
    """
    has_data = np.bincount(entity, minlength=len(cluster_of)) > 0
    members = np.bincount(cluster_of[has_data], minlength=losses.shape[1])
    share = np.maximum(members, 0.5) / has_data.sum()
    taken = np.take_along_axis(losses, cluster_of[:, None], 1).squeeze(1)
    return float((-logsumexp(np.log(share) - losses, axis=1) - taken)[has_data].sum())


def rows_cost(rows: np.ndarray, others: np.ndarray, samples: np.ndarray, variance: float) -> float:
    """What the rows (K, D) of a table cost, given the rows (L, D) of the other.

    samples : (K, L) of each pair of clusters
    """
    curvature = np.einsum("kl,ld,le->kde", samples, others, others) / variance
    count = torch.tensor(samples.sum(1))
    spread = spread_of(torch.tensor(rows))
    cost = RowCost.of(ClusterFisher(torch.tensor(curvature), count), spread, len(rows))
    precision = cost.precision(torch.arange(len(rows)), count)
    return float(cost.total(precision.sum(0), spread))


def recovery(found: Tables, truth: Tables) -> dict[str, Any]:
    """How near found rows are to planted ones, up to the order and the scale of factors.

    Each planted cluster is compared with the found cluster that shares most members with it, one to
    one; with zeros if none is left.

    returns : factor_cosine : the mean over factors and tables of the cosine between found and
            planted factor, over clusters; 1 is perfect
        row_error : |found - planted| / |planted| over both tables, each factor at its best scale
        block_error : the same of the scores of all pairs of clusters, which need no order or scale
        planted_rows, found_rows : (2 K, D), users' and then items', in the same order and scale
    """
    users = aligned(found.users, found.user_of, truth.user_of)
    items = aligned(found.items, found.item_of, truth.item_of)
    cosines = (cosine_of_columns(truth.users, users) + cosine_of_columns(truth.items, items)) / 2
    planted, order = linear_sum_assignment(cosines, maximize=True)
    users, items = users[:, order], items[:, order]
    # a s fits the users' factor best, b / s the items': s is the geometric mean of both.
    up = (truth.users * users).sum(0) * np.square(items).sum(0)
    down = (truth.items * items).sum(0) * np.square(users).sum(0)
    scale = np.sqrt(np.divide(up, down, out=np.ones_like(up), where=(up > 0) & (down > 0)))
    found_rows = np.concatenate([users * scale, items / scale])
    planted_rows = np.concatenate([truth.users, truth.items])
    return {
        "factor_cosine": float(cosines[planted, order].mean()),
        "row_error": relative_error(found_rows, planted_rows),
        "block_error": relative_error(users @ items.T, truth.products),
        "planted_rows": planted_rows.round(4).tolist(),
        "found_rows": found_rows.round(4).tolist(),
    }


def aligned(rows: np.ndarray, found_of: np.ndarray, planted_of: np.ndarray) -> np.ndarray:
    """Found rows in the order of the planted clusters that they share most members with."""
    shared = np.zeros((planted_of.max() + 1, len(rows)))
    np.add.at(shared, (planted_of, found_of), 1)
    planted, match = linear_sum_assignment(shared, maximize=True)
    result = np.zeros((len(shared), rows.shape[1]))
    result[planted] = rows[match]
    return result


def cosine_of_columns(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Between all columns of two matrices, (D, D); 0 where one is zero."""
    lengths = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)
    return a.T @ b / np.where(lengths > 0, lengths, 1)


def relative_error(found: np.ndarray, planted: np.ndarray) -> float:
    return float(np.linalg.norm(found - planted) / np.linalg.norm(planted))


def where() -> str:
    """The commit, the libraries and the machine that a figure comes from."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return f"commit {commit or 'unknown'}, torch {torch.__version__}, {platform.machine()}"
