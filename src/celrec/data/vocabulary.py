"""Vocabulary: raw ids (anything hashable) <-> dense ids 0..N-1.

Integers and strings, which is what files hold, are kept in polars and encoded without a Python
loop: a million look-ups take a fraction of a second. Any other hashable value works too, through a
dictionary. A vocabulary never changes once made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl

from celrec.errors import ArgumentError, DataError, EntityIdError


class Vocabulary:
    """The raw ids of N entities, in the order of their dense ids.

    Make one with `from_values` or `from_frame`.

    >>> users = Vocabulary.from_values([30, 7, 30])
    >>> len(users), users[0], 30 in users
    (2, 7, True)
    >>> users.encode([30, 7, 30])
    array([1, 0, 1])
    >>> users.decode([1, 0])
    [30, 7]
    """

    # Either a series of integers or strings, or a dictionary raw id -> dense id.
    _series: pl.Series | None
    _dense_id: dict[Hashable, int]
    _objects: tuple[Hashable, ...]

    def __init__(self, distinct: pl.Series | Sequence[Hashable]) -> None:
        """distinct : the raw ids, no two equal; position = dense id. Prefer `from_values`."""
        self._series, self._objects, self._dense_id = None, (), {}
        if isinstance(distinct, pl.Series):
            self._series = distinct.alias("raw_id")
        else:
            self._objects = tuple(distinct)
            self._dense_id = {value: i for i, value in enumerate(self._objects)}

    @classmethod
    def from_values(cls, values: Iterable[Hashable] | np.ndarray | pl.Series) -> Vocabulary:
        """Collect the distinct values.

        values : any number of hashable raw ids, repeats allowed
        returns : dense ids follow the sorted values (integers by size, strings by code point)
            where values can be sorted, else the order of first appearance. Equal values are one
            entity, as in a dictionary (1 and 1.0 are equal; 1 and "1" are not).
        raises : DataError where a value is missing (None or NaN)

        >>> Vocabulary.from_values(["b", "a", "b"]).decode([0, 1])
        ['a', 'b']
        >>> Vocabulary.from_values([("b", 2), "a"]).decode([0, 1])    # cannot be sorted
        [('b', 2), 'a']
        """
        series = _as_series(values)
        if series is not None:
            _refuse_missing(series.is_null().to_numpy())
            return cls(series.unique().sort())
        objects = _as_list(values)
        _refuse_missing(np.array([value is None or value != value for value in objects], bool))
        distinct = list(dict.fromkeys(objects))
        try:
            distinct.sort()
        except TypeError:
            distinct = list(dict.fromkeys(objects))
        return cls(distinct)

    def encode(
        self,
        values: Iterable[Hashable] | np.ndarray | pl.Series,
        unknown: Literal["error", "minus_one"] = "error",
    ) -> np.ndarray:
        """Turn raw ids into dense ids.

        values : n raw ids
        unknown : "minus_one" gives -1 for a raw id that is not here; "error" raises
        returns : int64 (n,), values in [0, N), or -1
        raises : DataError naming the first unknown value and its position

        >>> Vocabulary.from_values(["a", "b"]).encode(["b", "z"], unknown="minus_one")
        array([ 1, -1])
        """
        if unknown not in ("error", "minus_one"):
            raise ArgumentError(f"unknown is {unknown!r}; wanted 'error' or 'minus_one'")
        if not isinstance(values, np.ndarray | pl.Series):
            values = list(values)
        ids = self._look_up(values)
        if unknown == "error" and (ids < 0).any():
            first = int(np.flatnonzero(ids < 0)[0])
            raise DataError(
                f"value {values[first]!r} at position {first} is not among the "
                f"{len(self)} raw ids {self._sample()}; pass unknown='minus_one' to get -1 for it"
            )
        return ids

    def decode(self, ids: Iterable[int] | np.ndarray) -> list[Any]:
        """Turn dense ids back into raw ids.

        ids : int (n,), values in [0, N)
        raises : EntityIdError naming an id outside [0, N)
        """
        index = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
        if index.size == 0:
            return []
        if index.dtype.kind not in "iu":
            raise EntityIdError(f"dense ids are {index.dtype}; wanted integers in [0, {len(self)})")
        outside = np.flatnonzero((index < 0) | (index >= len(self)))
        if outside.size:
            raise EntityIdError(
                f"dense id {index[outside[0]]} at position {outside[0]} is outside [0, {len(self)})"
            )
        if self._series is not None:
            return self._series.gather(index.astype(np.int64)).to_list()
        return [self._objects[i] for i in index.tolist()]

    def extended(self, values: Iterable[Hashable] | np.ndarray | pl.Series) -> Vocabulary:
        """A vocabulary with new raw ids behind the old ones, whose dense ids stay.

        values : any number of raw ids; known ones and repeats count once. New ones follow in the
            order of first appearance, as `ClusteredEmbedding.add_entities` numbers them
        raises : DataError where a value is missing (None or NaN)

        >>> users = Vocabulary.from_values(["ann", "bob"])
        >>> later = users.extended(["cleo", "bob", "abe"])
        >>> len(later) - len(users), later.encode(["bob", "cleo", "abe"])
        (2, array([1, 2, 3]))
        """
        if not isinstance(values, np.ndarray | pl.Series):
            values = list(values)
        listed = _as_list(values)
        _refuse_missing(np.array([value is None or value != value for value in listed], bool))
        is_new = self._look_up(values) < 0
        fresh = list(dict.fromkeys(listed[i] for i in np.flatnonzero(is_new)))
        series = _as_series(fresh)
        if self._series is not None and series is not None and series.dtype == self._series.dtype:
            return Vocabulary(pl.concat([self._series, series.alias("raw_id")]))
        everything = [*self, *fresh]
        series = _as_series(everything)
        return Vocabulary(everything if series is None else series)

    def to_frame(self) -> pl.DataFrame:
        """The raw ids as a frame with one column, `raw_id` (integers or strings), N rows.

        raises : DataError where raw ids are neither integers nor strings: no file holds them

        >>> Vocabulary.from_frame(Vocabulary.from_values([3, 1]).to_frame()).decode([0, 1])
        [1, 3]
        """
        if self._series is None:
            raise DataError(
                f"the raw ids {self._sample()} are neither all integers nor all strings, so they "
                "cannot be written to a file; turn them into strings before building the vocabulary"
            )
        return self._series.to_frame()

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, column: str = "raw_id") -> Vocabulary:
        """Take the raw ids of a frame in the frame's order; the inverse of `to_frame`.

        raises : DataError where the column is missing, repeats a value or lacks one
        """
        if column not in frame.columns:
            raise DataError(f"the frame has no column {column!r}; it has {frame.columns}")
        series = _as_series(frame[column])
        if series is None:
            raise DataError(
                f"column {column!r} is of type {frame[column].dtype}; wanted integers or strings"
            )
        _refuse_missing(series.is_null().to_numpy())
        if series.n_unique() != len(series):
            repeated = series.filter(series.is_duplicated())[0]
            raise DataError(f"column {column!r} holds {repeated!r} more than once; raw ids differ")
        return cls(series)

    def fingerprint(self) -> str:
        """sha256 (hex) of the raw ids in order; the same on every platform.

        Raw ids that are neither integers nor strings enter by their `repr`.
        """
        digest = hashlib.sha256()
        if self._series is None:
            _update_with_texts(digest, b"objects", [repr(value) for value in self._objects])
        elif self._series.dtype == pl.String:
            _update_with_texts(digest, b"strings", self._series.to_list())
        else:
            unsigned = self._series.dtype == pl.UInt64
            digest.update(b"unsigned" if unsigned else b"integers")
            digest.update(self._series.to_numpy().astype("<u8" if unsigned else "<i8").tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._objects) if self._series is None else len(self._series)

    def __getitem__(self, dense_id: int) -> Any:
        return self.decode([dense_id])[0]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._objects if self._series is None else self._series.to_list())

    def __contains__(self, value: Hashable) -> bool:
        return bool(self._look_up([value])[0] >= 0)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        if self is other:
            return True
        return len(self) == len(other) and self.fingerprint() == other.fingerprint()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} raw ids: {self._sample()})"

    def _sample(self) -> str:
        few = ", ".join(repr(value) for value in self.decode(range(min(3, len(self)))))
        return few + (", ..." if len(self) > 3 else "")

    def _look_up(self, values: list[Hashable] | np.ndarray | pl.Series) -> np.ndarray:
        """Dense ids (n,), -1 where unknown."""
        queries = None if self._series is None else _as_series(values)
        if self._series is None or queries is None:  # value by value
            dense_id = self._dense_id or {value: i for i, value in enumerate(self)}
            found = [dense_id.get(value, -1) for value in _as_list(values)]
            return np.array(found, np.int64)
        known = self._series
        if (queries.dtype == pl.String) != (known.dtype == pl.String):
            return np.full(len(queries), -1, np.int64)
        if queries.dtype != known.dtype:  # Int64 and UInt64
            queries, known = queries.cast(pl.Int128), known.cast(pl.Int128)
        table = known.to_frame().with_row_index("dense_id")
        joined = pl.DataFrame({"raw_id": queries}).join(
            table, on="raw_id", how="left", maintain_order="left"
        )
        return joined["dense_id"].cast(pl.Int64).fill_null(-1).to_numpy(writable=True)


def _as_series(values: Iterable[Hashable] | np.ndarray | pl.Series) -> pl.Series | None:
    """Integers as Int64 (UInt64 where they need it), strings as String, all else as None."""
    if isinstance(values, pl.Series):
        is_text = values.dtype in (pl.Categorical, pl.Enum)
        series = values.cast(pl.String) if is_text else values
    elif isinstance(values, np.ndarray) and values.dtype.kind in "iuU":
        series = pl.Series(values)
    else:
        values = _as_list(values)
        kinds = {type(value) for value in values}
        integers = all(issubclass(kind, int | np.integer) and kind is not bool for kind in kinds)
        if not integers and kinds - {str, np.str_}:
            return None
        try:
            series = pl.Series(values, dtype=pl.Int128 if integers else pl.String)
        except (OverflowError, TypeError, UnicodeEncodeError):
            return None  # integers beyond 128 bits, strings that are not valid Unicode
    if series.dtype.is_integer():
        return _narrowest(series)
    return series if series.dtype == pl.String else None


def _as_list(values: Iterable[Hashable] | np.ndarray | pl.Series) -> list[Any]:
    """Python values, so that numpy's scalars do not leak into the raw ids."""
    if isinstance(values, np.ndarray):
        return values.tolist()
    return values.to_list() if isinstance(values, pl.Series) else list(values)


def _narrowest(integers: pl.Series) -> pl.Series | None:
    """Int64, else UInt64 (hashes above 2^63), so that equal ids have equal types; else None."""
    smallest, largest = integers.min(), integers.max()
    if not isinstance(smallest, int) or not isinstance(largest, int):  # no values
        return integers.cast(pl.Int64)
    if smallest >= -(2**63) and largest < 2**63:
        return integers.cast(pl.Int64)
    return integers.cast(pl.UInt64) if smallest >= 0 and largest < 2**64 else None


def _refuse_missing(is_missing: np.ndarray) -> None:
    if is_missing.any():
        raise DataError(
            f"value {int(is_missing.argmax())} of {len(is_missing)} (counted from 0) has no raw id "
            "(None or NaN); drop such rows or give them an id of their own"
        )


def _update_with_texts(digest: hashlib._Hash, kind: bytes, texts: list[str]) -> None:
    """Hash strings one after the other; their lengths keep ("ab", "c") from ("a", "bc")."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    digest.update(kind)
    digest.update(np.array([len(text) for text in encoded], "<i8").tobytes())
    digest.update(b"".join(encoded))
