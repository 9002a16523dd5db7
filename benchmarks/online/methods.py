"""The methods that are compared on streams: what each is made of, and the settings it may choose.

Another method joins by a line in METHODS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.online.ours import OursOnline
from celrec.baselines.online.river_models import RiverBiasedMF, RiverFM
from celrec.baselines.online.running_means import RunningMeans
from celrec.baselines.online.tables import FullTable, HashedTable
from celrec.training.progressive import OnlineMethod

Settings = Mapping[str, Any]
WIDTH = 32


@dataclass(frozen=True)
class Method:
    """A method of the comparison.

    title : in tables
    grid : the settings to choose from, on the first tenth of a stream; about eight for each method
    make : (num_users, num_items, settings, seed) -> a new learner
    """

    title: str
    grid: tuple[Settings, ...]
    make: Callable[[int, int, Settings, int], OnlineMethod]


def grid(**values: tuple[Any, ...]) -> tuple[Settings, ...]:
    """All combinations."""
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


def ours(part: int, num_users: int, num_items: int, settings: Settings, seed: int) -> OnlineMethod:
    return OursOnline(num_users, num_items, width=WIDTH, part=part, settings=settings, seed=seed)


def means(num_users: int, num_items: int, settings: Settings, seed: int) -> OnlineMethod:
    return RunningMeans(num_users, num_items, **settings)


def full(
    optimizer: Any, num_users: int, num_items: int, settings: Settings, seed: int
) -> OnlineMethod:
    return FullTable(
        num_users,
        num_items,
        width=WIDTH,
        optimizer=partial(optimizer, lr=settings["lr"]),
        l2=settings["l2"],
        seed=seed,
    )


def hashed(
    entities_per_row: int, num_users: int, num_items: int, settings: Settings, seed: int
) -> OnlineMethod:
    return HashedTable(
        -(-num_users // entities_per_row),
        -(-num_items // entities_per_row),
        width=WIDTH,
        optimizer=partial(torch.optim.SparseAdam, lr=settings["lr"]),
        l2=settings["l2"],
        seed=seed,
    )


def river_mf(num_users: int, num_items: int, settings: Settings, seed: int) -> OnlineMethod:
    return RiverBiasedMF(width=WIDTH, seed=seed, **settings)


def river_fm(num_users: int, num_items: int, settings: Settings, seed: int) -> OnlineMethod:
    return RiverFM(width=WIDTH, seed=seed, **settings)


HASHED_GRID = grid(lr=(0.01, 0.03, 0.1), l2=(0.0, 0.03, 0.1))

OUR_GRID = grid(
    lr=(0.005, 0.01),
    bias_precision=(0.7, 1.5),
    user_bias_precision=(1.5, 5.0),
    split_after=(2000,),
)

METHODS: dict[str, Method] = {
    "ours_5": Method("CEL-Lite, 1/5", OUR_GRID, partial(ours, 5)),
    "ours_10": Method("CEL-Lite, 1/10", OUR_GRID, partial(ours, 10)),
    "ours_20": Method("CEL-Lite, 1/20", OUR_GRID, partial(ours, 20)),
    "means": Method(
        "running means",
        grid(user_smoothing=(16, 64, 256), item_smoothing=(4, 16, 64)),
        means,
    ),
    "full_adam": Method(
        "full table + biases, SparseAdam",
        grid(lr=(0.01, 0.03, 0.1), l2=(0.0, 0.01, 0.03)),
        partial(full, torch.optim.SparseAdam),
    ),
    "full_adagrad": Method(
        "full table + biases, Adagrad",
        grid(lr=(0.1, 0.2, 0.4), l2=(0.0, 0.01, 0.03)),
        partial(full, torch.optim.Adagrad),
    ),
    "hashed_10": Method("hashed, 10 entities a row", HASHED_GRID, partial(hashed, 10)),
    "hashed_30": Method("hashed, 30 entities a row", HASHED_GRID, partial(hashed, 30)),
    "hashed_100": Method("hashed, 100 entities a row", HASHED_GRID, partial(hashed, 100)),
    "river_mf": Method("river BiasedMF", grid(lr=(0.1, 0.3, 0.6), l2=(0.0, 0.01, 0.03)), river_mf),
    "river_fm": Method("river FM", grid(lr=(0.1, 0.3, 0.6), l2=(0.0, 0.01, 0.03)), river_fm),
}
