"""A source of whatever Python can iterate over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from celrec.data.stream.event import Payload
from celrec.data.stream.source import Position, Record, Source
from celrec.errors import PositionError


class IterableSource(Source):
    """Records from an iterable; the position is how many were read.

    payloads : Events, mappings, or lines of JSON as bytes. To resume, give the same ones again:
        those before the position are skipped.

    >>> from celrec.data.stream.event import Event
    >>> source = IterableSource([Event(1, 2, 1.0), Event(1, 3, 0.0)])
    >>> source.open(1)
    >>> source.read(10)
    [(Event(user=1, item=3, label=0.0, timestamp=None), 2)]
    """

    def __init__(self, payloads: Iterable[Payload]) -> None:
        self._payloads = payloads
        self._iterator: Iterator[Payload] = iter(())
        self._num_read = 0
        self._is_finished = False

    def open(self, position: Position | None = None) -> None:
        num_read = 0 if position is None else position
        if type(num_read) is not int or num_read < 0:
            raise PositionError(f"position is {position!r}; wanted a count, as an iterable gives")
        self._iterator = iter(self._payloads)
        skipped = sum(1 for _ in islice(self._iterator, num_read))
        if skipped < num_read:
            raise PositionError(
                f"the iterable ends after {skipped:,} records, but {num_read:,} were read from it "
                "before; give the same one again"
            )
        self._num_read, self._is_finished = num_read, False

    def read(self, most: int) -> list[Record]:
        payloads = list(islice(self._iterator, most))
        records = list(
            zip(payloads, range(self._num_read + 1, self._num_read + most + 1), strict=False)
        )
        self._num_read += len(payloads)
        self._is_finished = len(payloads) < most
        return records

    @property
    def is_finished(self) -> bool:
        return self._is_finished
