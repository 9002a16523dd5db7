"""EventReader: from a source to batches of events, in a way that can be resumed exactly.

Batches are cut by the count of good events alone, never by time, so a stream is cut in the same
places however fast it comes and however often the learner was killed. A batch brings a bookmark.
Saved together with what was learned from the batch, it makes a new reader go on with the next one:
no event is lost, none comes twice, and the same holds for dead letters.
"""

from __future__ import annotations

import time
from typing import NamedTuple, Self, TypedDict

from celrec.data.stream.dead_letters import DeadLetters
from celrec.data.stream.event import CsvLayout, Event, EventFormat
from celrec.data.stream.source import Position, Source
from celrec.errors import BadEventError, check_count

_PATIENCE = 1.0  # seconds


class Bookmark(TypedDict):
    """Where a stream stands after a batch: a dictionary ready for JSON.

    position : of the source, after the last record of the batch
    dead_letters : length in bytes of the file of dead letters
    num_events, num_bad, num_dropped : records since the start of the stream
    """

    position: Position
    dead_letters: int
    num_events: int
    num_bad: int
    num_dropped: int


class Batch(NamedTuple):
    """Events, and where the stream stands after them.

    events : exactly `batch_size`; fewer, perhaps none, at the end of a finished source
    """

    events: list[Event]
    bookmark: Bookmark


class EventReader:
    """Batches of good events from a source.

    Bad records go to the dead letters, events whose rating is dropped are counted; neither stops
    anything. Both belong to the batch of the next good event.

    source : not yet opened
    dead_letters : cut to where the bookmark was, so without a bookmark emptied
    batch_size : B >= 1, good events in a batch
    bookmark : of an earlier reader; None: the start
    raises : what `source.open` and `dead_letters.resume` raise

    A checkpoint is three steps: `flush()`, then the learner and `batch.bookmark` saved in one file,
    then `saved(bookmark)`.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from celrec.data.stream.iterable import IterableSource
    >>> likes = [{"user": 1, "item": i, "label": 1} for i in (1, 2, None, 3, 4, 5)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     letters = DeadLetters(Path(folder, "dead.jsonl"))
    ...     with EventReader(IterableSource(likes), EventFormat(), letters, batch_size=3) as reader:
    ...         while batch := reader.read_batch():
    ...             print([event.item for event in batch.events], batch.bookmark["position"])
    ...     letters.counts
    [1, 2, 3] 4
    [4, 5] 6
    Counter({'item is null': 1})
    """

    def __init__(
        self,
        source: Source,
        format: EventFormat,
        dead_letters: DeadLetters,
        *,
        batch_size: int,
        bookmark: Bookmark | None = None,
    ) -> None:
        self.source, self.format, self.dead_letters = source, format, dead_letters
        self.batch_size = check_count("batch_size", batch_size, at_least=1)
        self._end: Bookmark = bookmark or {
            "position": None,
            "dead_letters": 0,
            "num_events": 0,
            "num_bad": 0,
            "num_dropped": 0,
        }
        try:
            dead_letters.resume(self._end["dead_letters"])
            source.open(self._end["position"])
        except BaseException:
            self.close()
            raise
        self._position = self._end["position"]
        self._waiting: list[Event] = []
        self._num_bad = self._num_dropped = 0
        self._layout: CsvLayout | None = None
        self._parse = format.parser()

    @property
    def bookmark(self) -> Bookmark:
        """Where the stream stands after the batch that was read last."""
        return self._end

    @property
    def num_waiting(self) -> int:
        """Good events that were read and wait for their batch to be full."""
        return len(self._waiting)

    @property
    def is_finished(self) -> bool:
        """Whether no batch will ever come again."""
        return self.source.is_finished and self._position == self._end["position"]

    def read_batch(self) -> Batch | None:
        """Read the next batch.

        returns : None if the source is finished, or if the batch is not full after about a second
            or as soon as nothing is waiting; the events that are there stay for the next call, and
            a checkpoint may be saved meanwhile, with the `bookmark`
        raises : what `source.read` raises; DataError if a CSV header lacks a field
        """
        give_up = time.monotonic() + _PATIENCE
        while (num_missing := self.batch_size - len(self._waiting)) > 0:
            # Never more than are missing: so the record read last is the batch's last good event.
            if not self._take(num_missing) or time.monotonic() > give_up:
                break
        if len(self._waiting) == self.batch_size or (
            self.source.is_finished and not self.is_finished
        ):
            return self._cut()
        return None

    def _take(self, most: int) -> bool:
        """Read and parse some records; whether any came."""
        records = self.source.read(most)
        if self.source.layout is not self._layout:
            self._layout = self.source.layout
            self._parse = self.format.parser(self._layout)
        parse, keep = self._parse, self._waiting.append
        for payload, position in records:
            try:
                event = parse(payload)
            except BadEventError as error:
                self.dead_letters.append(error, position, payload)
                self._num_bad += 1
                continue
            if event is None:
                self._num_dropped += 1
            else:
                keep(event)
        if records:
            self._position = records[-1][1]
        return bool(records)

    def _cut(self) -> Batch:
        events, self._waiting = self._waiting, []
        self._end = {
            "position": self._position,
            "dead_letters": self.dead_letters.length,
            "num_events": self._end["num_events"] + len(events),
            "num_bad": self._end["num_bad"] + self._num_bad,
            "num_dropped": self._end["num_dropped"] + self._num_dropped,
        }
        self._num_bad = self._num_dropped = 0
        return Batch(events, self._end)

    def flush(self) -> None:
        """Bring the dead letters to the disk: to be done before a checkpoint is written."""
        self.dead_letters.flush()

    def saved(self, bookmark: Bookmark) -> None:
        """Tell the source that a checkpoint with this bookmark is safely on the disk."""
        if bookmark["position"] is not None:
            self.source.saved(bookmark["position"])

    def close(self) -> None:
        """Close the source and the dead letters."""
        self.source.close()
        self.dead_letters.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
