"""What every source of events can do."""

from __future__ import annotations

from typing import Any, Protocol, Self

from celrec.data.stream.event import CsvLayout, Payload

Position = Any
"""Where a source stands: a value ready for JSON, which only the source itself reads."""

Record = tuple[Payload, Position]
"""A payload, and the position after it."""


class Source(Protocol):
    """Records in one order, from any position on.

    Made without touching the outside; `open` does. One reader owns a source: two would each get
    half of it. Used with `with`, it is closed at the end.

    layout : how lines of CSV are cut into fields; None while no header was read, and where bytes
        are JSON
    """

    layout: CsvLayout | None = None

    def open(self, position: Position | None = None) -> None:
        """Go to a position.

        position : as `read` gave it, perhaps in an earlier process; None: the start
        raises : PositionError if records after it are gone, or if it belongs to something else;
            SourceError or DataError if the source cannot be opened
        """
        ...

    def read(self, most: int) -> list[Record]:
        """Read the next records.

        most : >= 1
        returns : [] if none arrived within a short wait, or if the source is finished
        raises : PositionError if records were removed before they were read; SourceError if the
            source cannot be read any longer
        """
        ...

    @property
    def is_finished(self) -> bool:
        """Whether no record will ever come again."""
        return False

    def saved(self, position: Position) -> None:
        """Learn that a checkpoint with this position is safely on the disk."""
        return

    def lag(self) -> int | None:
        """Count the records that wait to be read; None where that is not known."""
        return None

    def close(self) -> None:
        """Let go of files and connections."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
