"""A source of the rows of a Parquet file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from celrec.data.stream.source import Position, Record, Source
from celrec.errors import DataError, PositionError, nearest_name

_ROWS = 1 << 16  # rows in memory at once
_FOOT = 1 << 16  # bytes that a file is known by: its footer says where all its rows are


class ParquetSource(Source):
    """Rows as mappings; the position is how many were read, and a hash of the end of the file.

    Memory holds some ten thousand rows and, while they are decoded, the row group they lie in.

    path : a file that does not change
    columns : the only ones to read; None: all
    """

    def __init__(self, path: str | Path, *, columns: Sequence[str] | None = None) -> None:
        self._path = Path(path)
        self._columns = None if columns is None else list(dict.fromkeys(columns))

    def open(self, position: Position | None = None) -> None:
        try:
            self._digest = _digest(self._path)
            self._scan = pl.scan_parquet(self._path, glob=False)
            found = self._scan.collect_schema().names()
            self._num_rows = int(self._scan.select(pl.len()).collect().item())
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(
                f"{self._path} cannot be read: {error}; wanted a Parquet file"
            ) from error
        for column in self._columns or ():
            if column not in found:
                raise DataError(
                    f"{self._path} has no column {column!r}; {nearest_name(column, found)}"
                )
        self._row = self._row_of(position)
        self._chunk: list[Record] = []
        self._chunk_at = 0

    def _row_of(self, position: Position | None) -> int:
        match position:
            case None:
                return 0
            case {"row": int(row), "foot": str(digest)} if row >= 0:
                if digest != self._digest:
                    raise PositionError(
                        f"{self._path} is not the file that was read before: it was replaced or "
                        "rewritten; restore it, or start again without the checkpoint"
                    )
                return row
        raise PositionError(
            f"position is {position!r}; wanted one that a Parquet file gave. Does the checkpoint "
            f"belong to another source than {self._path}?"
        )

    def read(self, most: int) -> list[Record]:
        if self._chunk_at == len(self._chunk):
            self._chunk, self._chunk_at = self._next_chunk(), 0
        records = self._chunk[self._chunk_at : self._chunk_at + most]
        self._chunk_at += len(records)
        self._row += len(records)
        return records

    def _next_chunk(self) -> list[Record]:
        rows = self._scan.slice(self._row, _ROWS)
        try:
            frame = (rows if self._columns is None else rows.select(self._columns)).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(
                f"{self._path} cannot be read from row {self._row + 1:,} on: {error}; is it "
                "damaged?"
            ) from error
        names, digest = frame.columns, self._digest
        columns = [column.to_list() for column in frame.iter_columns()]
        return [
            (dict(zip(names, values, strict=True)), {"row": row, "foot": digest})
            for row, values in enumerate(zip(*columns, strict=True), start=self._row + 1)
        ]

    @property
    def is_finished(self) -> bool:
        return self._row >= self._num_rows

    def lag(self) -> int | None:
        return self._num_rows - self._row


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _FOOT, 0))
        return hashlib.blake2b(file.read() + str(size).encode(), digest_size=8).hexdigest()
