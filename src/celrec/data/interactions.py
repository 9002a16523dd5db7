"""Interactions: who met which item, with what label, and when. What every part of celrec trains on.

One object holds the rows as arrays of dense ids and the two vocabularies that turn raw ids into
them. It checks itself when made and never changes: its arrays are copies that refuse to be written.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from celrec.data.vocabulary import Vocabulary
from celrec.errors import ArgumentError, DataError, DtypeError, EntityIdError


@dataclass(frozen=True, eq=False, repr=False)
class Interactions:
    """n interactions between users and items.

    user : int64 (n,)        dense user ids, values in [0, num_users)
    item : int64 (n,)        dense item ids, values in [0, num_items)
    label : float32 (n,)     finite: a rating, or 0/1
    users, items : the vocabularies; they may hold entities that no row mentions
    timestamp : int64 or float64 (n,), or None: seconds since 1970 UTC, or any other running number
    item_titles : one title per item, in the order of dense ids, or None
    name : what reports call these data
    has_drawn_negatives : whether rows with label 0 never happened, but were drawn by
        `sample_negatives`; they count for nobody then
    raises : DataError for no rows, arrays of different lengths, or a label or time that is not
        finite; EntityIdError for an id outside its vocabulary; DtypeError for ids that are no
        integers. Each names the row, counted from 0.

    >>> views = Interactions(
    ...     user=[0, 0, 1], item=[0, 1, 1], label=[5, 3, 4],
    ...     users=Vocabulary.from_values(["ann", "bob"]), items=Vocabulary.from_values([10, 20]),
    ... )
    >>> len(views), views.num_users, views.num_items, views.density
    (3, 2, 2, 0.75)
    >>> views.take([2]).items.decode(views.take([2]).item)
    [20]
    """

    user: np.ndarray
    item: np.ndarray
    label: np.ndarray
    users: Vocabulary
    items: Vocabulary
    timestamp: np.ndarray | None = None
    item_titles: tuple[str, ...] | None = None
    name: str = "interactions"
    has_drawn_negatives: bool = False

    def __post_init__(self) -> None:
        num_rows = len(np.asarray(self.user))
        if num_rows == 0:
            raise DataError(f"{self.name} has no rows; wanted at least one interaction")
        for field in ("user", "item", "label", "timestamp"):
            values = getattr(self, field)
            if values is None and field == "timestamp":
                continue
            found = np.asarray(values)
            if found.shape != (num_rows,):
                raise DataError(
                    f"{field} of {self.name} has shape {found.shape}; wanted ({num_rows},), "
                    "one value for every interaction"
                )
            wanted = _wanted_dtype(self.name, field, found)
            object.__setattr__(self, field, _frozen_copy(found, wanted))
        _check_ids(self.name, "user", self.user, len(self.users))
        _check_ids(self.name, "item", self.item, len(self.items))
        _check_finite(self.name, "label", self.label)
        if self.timestamp is not None:
            _check_finite(self.name, "timestamp", self.timestamp)
        if self.item_titles is not None:
            object.__setattr__(self, "item_titles", tuple(self.item_titles))
            if len(self.item_titles) != self.num_items:
                raise DataError(
                    f"{self.name} has {len(self.item_titles)} item titles for {self.num_items} "
                    "items; wanted one for every dense item id"
                )

    def __len__(self) -> int:
        return len(self.user)

    @property
    def num_users(self) -> int:
        """The size of the user vocabulary."""
        return len(self.users)

    @property
    def num_items(self) -> int:
        """The size of the item vocabulary."""
        return len(self.items)

    @property
    def density(self) -> float:
        """Interactions / (users x items); above 1 where pairs repeat often."""
        return len(self) / (self.num_users * self.num_items)

    def user_counts(self) -> np.ndarray:
        """The number of interactions of every user, int64 (num_users,); drawn ones are none."""
        return np.bincount(self._observed(self.user), minlength=self.num_users)

    def item_counts(self) -> np.ndarray:
        """The number of interactions of every item, int64 (num_items,); drawn ones are none."""
        return np.bincount(self._observed(self.item), minlength=self.num_items)

    def _observed(self, ids: np.ndarray) -> np.ndarray:
        return ids[self.label > 0] if self.has_drawn_negatives else ids

    def take(self, index: np.ndarray | list[int]) -> Interactions:
        """Some of the rows, in the order asked for, with the same vocabularies and titles.

        index : int (m,) row numbers in [0, n), repeats allowed; or bool (n,), True = keep
        raises : DataError if no row is left; ArgumentError naming a row number outside [0, n)
        """
        rows = np.asarray(index)
        if rows.size and rows.dtype.kind not in "iub":
            raise DtypeError(f"index is {rows.dtype}; wanted row numbers or a mask of booleans")
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise ArgumentError(f"mask has shape {rows.shape}; wanted ({len(self)},)")
            rows = np.flatnonzero(rows)
        rows = rows.astype(np.int64)
        outside = np.flatnonzero((rows < 0) | (rows >= len(self)))
        if outside.size:
            raise ArgumentError(f"row {rows[outside[0]]} is outside [0, {len(self)})")
        return replace(
            self,
            user=self.user[rows],
            item=self.item[rows],
            label=self.label[rows],
            timestamp=None if self.timestamp is None else self.timestamp[rows],
        )

    def fingerprint(self) -> str:
        """sha256 (hex) of rows and vocabularies: equal on every platform for equal data.

        The order of rows counts; name, titles and what is said of negatives do not.
        """
        digest = hashlib.sha256()
        for field, stored_as in (("user", "<i8"), ("item", "<i8"), ("label", "<f4")):
            digest.update(getattr(self, field).astype(stored_as).tobytes())
        if self.timestamp is not None:
            stored_as = "<i8" if self.timestamp.dtype.kind == "i" else "<f8"
            digest.update(stored_as.encode() + self.timestamp.astype(stored_as).tobytes())
        digest.update((self.users.fingerprint() + self.items.fingerprint()).encode())
        return digest.hexdigest()

    def describe(self) -> str:
        """A few lines for a person: counts, ranges, and how many entities are rarely seen.

        >>> print(Interactions(
        ...     user=[0, 0, 1], item=[0, 1, 1], label=[5, 3, 4], timestamp=[0, 60, 86400],
        ...     users=Vocabulary.from_values("ab"), items=Vocabulary.from_values("xy"), name="tiny",
        ... ).describe())
        tiny: 3 interactions, 2 users, 2 items, density 75%
          labels from 3 to 5, mean 4
          times from 0 to 86,400
          at most 5 interactions: 100% of users, 100% of items
        """
        lines = [
            f"{self.name}: {_plural(len(self), 'interaction')}, "
            f"{_plural(self.num_users, 'user')}, {_plural(self.num_items, 'item')}, "
            f"density {100 * self.density:.3g}%",
            f"  labels from {self.label.min():g} to {self.label.max():g}, "
            f"mean {self.label.mean(dtype=np.float64):.4g}",
            f"  times {_time_range(self.timestamp)}",
            f"  at most 5 interactions: {100 * np.mean(self.user_counts() <= 5):.3g}% of users, "
            f"{100 * np.mean(self.item_counts() <= 5):.3g}% of items",
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return (
            f"Interactions({self.name!r}, {len(self):,} rows, {self.num_users:,} users, "
            f"{self.num_items:,} items)"
        )


def _wanted_dtype(name: str, field: str, found: np.ndarray) -> np.dtype:
    kind = found.dtype.kind
    if field in ("user", "item") and kind not in "iu":
        raise DtypeError(
            f"{field} of {name} is {found.dtype}; wanted integers: dense ids from a Vocabulary"
        )
    if kind not in "iufb":
        raise DtypeError(f"{field} of {name} is {found.dtype}; wanted numbers")
    if field == "label":
        return np.dtype(np.float32)
    if field == "timestamp" and kind == "f":
        return np.dtype(np.float64)
    return np.dtype(np.int64)


def _frozen_copy(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):  # too large for float32 becomes inf, refused by name later
        copy = np.array(values, dtype=dtype, order="C")
    copy.flags.writeable = False
    return copy


def _check_ids(name: str, field: str, ids: np.ndarray, num_entities: int) -> None:
    outside = np.flatnonzero((ids < 0) | (ids >= num_entities))
    if outside.size:
        row = outside[0]
        raise EntityIdError(
            f"{field} {ids[row]} in row {row} of {name} is outside [0, {num_entities}); "
            f"are the ids dense, and encoded by the {field}s' vocabulary?"
        )


def _check_finite(name: str, field: str, values: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        row = bad[0]
        raise DataError(
            f"{field} in row {row} of {name} is {values[row]}, one of {_plural(bad.size, 'row')} "
            "like it; wanted finite numbers: drop or mend such rows"
        )


def _plural(count: int, thing: str) -> str:
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


def _time_range(timestamp: np.ndarray | None) -> str:
    """As dates where the numbers can only be seconds since 1970 (years 1973 to 2100)."""
    if timestamp is None:
        return "unknown"
    first, last = timestamp.min(), timestamp.max()
    if first >= 1e8 and last < 4.1e9:
        days = [datetime.fromtimestamp(float(t), UTC).date().isoformat() for t in (first, last)]
        return f"from {days[0]} to {days[1]} (UTC)"
    return f"from {first:,} to {last:,}"
