"""Small streams for the tests of the data layer."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from celrec.data.stream.dead_letters import DeadLetters
from celrec.data.stream.event import Event, EventFormat
from celrec.data.stream.reader import Batch, Bookmark, EventReader
from celrec.data.stream.source import Record, Source

FORMAT = EventFormat(timestamp="time")


def json_line(number: int) -> bytes:
    """Event `number`."""
    event = {"user": number, "item": f"i{number % 7}", "label": number % 2, "time": number + 0.5}
    return json.dumps(event).encode()


def mixed_lines(count: int) -> list[bytes]:
    """Good events, and a bad one at every place from which something could go wrong: alone, in a
    row, first, last, and right before and after the ends of batches."""
    is_bad = {0, 3, 4, 5, 9, 12, 13, count - 2, count - 1}
    return [b"{bad %d" % i if i in is_bad else json_line(i) for i in range(count)]


def read_all(source: Source, position: Any = None, at_once: int = 100) -> list[Record]:
    """All records of a source that ends."""
    records: list[Record] = []
    with source:
        source.open(position)
        while not source.is_finished:
            records += source.read(at_once)
    return records


def read_some(source: Source, count: int, seconds: float = 10.0) -> list[Record]:
    """Exactly `count` records of a source that need not end; fails if they do not come."""
    records: list[Record] = []
    give_up = time.monotonic() + seconds
    while len(records) < count:
        assert time.monotonic() < give_up, f"{len(records)} of {count} records came"
        records += source.read(count - len(records))
    return records


def reader_of(
    source: Source, path: Path, batch_size: int = 4, bookmark: Bookmark | None = None
) -> EventReader:
    return EventReader(source, FORMAT, DeadLetters(path), batch_size=batch_size, bookmark=bookmark)


def next_batch(reader: EventReader, seconds: float = 10.0) -> Batch | None:
    """The next batch; None only when the reader is finished."""
    give_up = time.monotonic() + seconds
    while True:
        batch = reader.read_batch()
        if batch is not None or reader.is_finished:
            return batch
        assert time.monotonic() < give_up, "no batch came"


def all_batches(reader: EventReader) -> list[Batch]:
    batches = []
    while (batch := next_batch(reader)) is not None:
        batches.append(batch)
    return batches


def good_events(lines: list[bytes]) -> list[Event]:
    return [
        Event(e["user"], e["item"], float(e["label"]), e["time"])
        for e in (json.loads(line) for line in lines if not line.startswith(b"{bad"))
    ]
