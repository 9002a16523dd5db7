"""Batches and bookmarks: after a kill at any moment, no event is lost and none comes twice."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celrec.data.stream.addresses import open_source
from celrec.data.stream.dead_letters import DeadLetters
from celrec.data.stream.event import CsvLayout, Event, EventFormat
from celrec.data.stream.iterable import IterableSource
from celrec.data.stream.lines import LineFile
from celrec.data.stream.reader import Batch, Bookmark, EventReader
from celrec.data.stream.source import Position, Record, Source
from celrec.errors import ArgumentError, DataError
from tests.data.stream.making import (
    FORMAT,
    all_batches,
    good_events,
    json_line,
    mixed_lines,
    next_batch,
    reader_of,
)

LINES = mixed_lines(31)
GOOD = good_events(LINES)
BATCH = 4


class Stuttering(Source):
    """Another source's records, a few at a time, with pauses; as if it went on forever."""

    def __init__(self, source: Source, seed: int, ends: bool = True) -> None:
        self._source, self._random, self._ends = source, random.Random(seed), ends

    @property
    def layout(self) -> CsvLayout | None:  # type: ignore[override]
        return self._source.layout

    def open(self, position: Position | None = None) -> None:
        self._source.open(position)

    def read(self, most: int) -> list[Record]:
        count = self._random.randint(0, 3)
        return self._source.read(min(count, most)) if count else []

    @property
    def is_finished(self) -> bool:
        return self._ends and self._source.is_finished

    def saved(self, position: Position) -> None:
        self._source.saved(position)

    def close(self) -> None:
        self._source.close()


# --- batches -------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("gbd"), max_size=40), st.integers(1, 7), st.integers(0, 9))
def test_batches_are_cut_by_the_count_of_good_events_alone(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], size: int, seed: int
) -> None:
    """g: good, b: bad, d: dropped. What arrives together does not matter."""
    labels = {"g": 5, "b": None, "d": 3}
    payloads = [{"user": 1, "item": i, "label": labels[kind]} for i, kind in enumerate(kinds)]
    format = EventFormat(positive_from=4, drop_rating=3)
    letters = DeadLetters(tmp_path_factory.mktemp("batches") / "dead.jsonl")
    source = Stuttering(IterableSource(payloads), seed)
    with EventReader(source, format, letters, batch_size=size) as reader:
        batches = all_batches(reader)
        assert reader.read_batch() is None
    good = [i for i, kind in enumerate(kinds) if kind == "g"]
    assert [event.item for batch in batches for event in batch.events] == good
    assert all(len(batch.events) == size for batch in batches[:-1])
    for number, batch in enumerate(batches):
        mark = batch.bookmark
        is_last = number == len(batches) - 1 and len(batch.events) < size
        end = len(kinds) if is_last else good[(number + 1) * size - 1] + 1
        assert mark["position"] == end
        assert mark["num_events"] == kinds[:end].count("g")
        assert mark["num_bad"] == kinds[:end].count("b")
        assert mark["num_dropped"] == kinds[:end].count("d")
    if kinds:
        assert batches[-1].bookmark["position"] == len(kinds)
        assert batches[-1].bookmark["dead_letters"] == letters.path.stat().st_size
    assert letters.counts["label is null"] == kinds.count("b")


def test_a_batch_that_is_not_full_waits_and_nothing_moves_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in LINES[:8]))
    source = LineFile(path, follow=True, wait=0.001)
    with reader_of(source, tmp_path / "dead.jsonl") as reader:
        first = next_batch(reader)
        assert first is None or first.events == GOOD[:4]
        for _ in range(3):
            assert reader.read_batch() is None
            assert reader.bookmark == (first.bookmark if first else None)
        assert reader.num_waiting == len(good_events(LINES[:8])) % BATCH
        with path.open("ab") as file:
            file.write(b"".join(line + b"\n" for line in LINES[8:]))
        second = next_batch(reader)
        assert second is not None
        assert second.events == GOOD[4:8]
        assert not reader.is_finished


def test_bad_records_alone_move_the_bookmark_at_the_end(tmp_path: Path) -> None:
    with reader_of(IterableSource([b"{", b"["]), tmp_path / "dead.jsonl") as reader:
        assert not reader.is_finished
        batch = reader.read_batch()
        assert batch is not None
        assert batch.events == []
        assert batch.bookmark["position"] == 2
        assert batch.bookmark["num_bad"] == 2
        assert reader.is_finished


def test_a_header_without_a_field_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_bytes(b"usr,item,label,time\n1,2,1,3\n")
    with (
        reader_of(open_source(str(path)), tmp_path / "dead.jsonl") as reader,
        pytest.raises(DataError, match="no column 'user' for the user; did you mean 'usr'"),
    ):
        reader.read_batch()


def test_a_batch_of_none_is_an_error(tmp_path: Path) -> None:
    with (
        DeadLetters(tmp_path / "dead.jsonl") as letters,
        pytest.raises(ArgumentError, match="batch_size is 0"),
    ):
        EventReader(IterableSource([]), FORMAT, letters, batch_size=0)


# --- kills ---------------------------------------------------------------------------------------


def iterable(_: Path) -> Source:
    return IterableSource(LINES)


def json_file(folder: Path) -> Source:
    path = folder / "events.jsonl"
    path.write_bytes(b"\n".join(LINES))
    return LineFile(path)


def csv_file(folder: Path) -> Source:
    path = folder / "events.csv"
    good = iter(GOOD)
    rows = ["bad" if b"bad" in line else ",".join(map(str, next(good))) for line in LINES]
    path.write_text("\n".join(["user,item,label,time", *rows]) + "\n")
    return open_source(str(path))


def parquet_file(folder: Path) -> Source:
    path = folder / "events.parquet"
    rows = [event._asdict() for event in GOOD]
    rows[2]["user"] = rows[9]["user"] = None
    pl.DataFrame(rows).rename({"timestamp": "time"}).write_parquet(path)
    return open_source(str(path), format=FORMAT)


class KilledError(Exception):
    """Stands for SIGKILL: nothing is done after it."""


class Counting(Stuttering):
    """Counts the records it hands over, and is killed when it has handed over enough."""

    def __init__(self, source: Source, seed: int, kill_after: int | None) -> None:
        super().__init__(source, seed)
        self.kill_after, self.num_records = kill_after, 0

    def read(self, most: int) -> list[Record]:
        if self.num_records == self.kill_after:
            raise KilledError
        left = most if self.kill_after is None else self.kill_after - self.num_records
        records = super().read(min(most, left))
        self.num_records += len(records)
        return records


class Learner:
    """Learns every event by appending it; saves after every other batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint: tuple[list[Event], Bookmark | None] = ([], None)

    def run(self, source: Source, *, save_early: bool = False, until: float = math.inf) -> None:
        """Until the source ends, so many events are learned, or the kill comes.

        save_early : also when a batch is not full yet
        """
        learned, bookmark = list(self.checkpoint[0]), self.checkpoint[1]
        reader = reader_of(source, self.folder / "dead.jsonl", BATCH, bookmark)
        try:
            while not reader.is_finished and len(learned) < until:
                batch = reader.read_batch()
                if batch is not None:
                    learned += batch.events
                if save_early or len(learned) % (2 * BATCH) == 0:
                    reader.flush()
                    self.checkpoint = (list(learned), json.loads(json.dumps(reader.bookmark)))
                    reader.saved(self.checkpoint[1])  # type: ignore[arg-type]
            self.checkpoint = (learned, reader.bookmark)
        finally:
            reader.close()  # writes nothing


@pytest.mark.parametrize("save_early", [False, True])
@pytest.mark.parametrize("make", [iterable, json_file, csv_file, parquet_file])
def test_a_kill_at_any_record_changes_nothing(
    tmp_path: Path, make: Callable[[Path], Source], save_early: bool
) -> None:
    undisturbed = Learner(tmp_path)
    whole = Counting(make(tmp_path), 0, None)
    undisturbed.run(whole)
    assert undisturbed.checkpoint[0] == [
        event for event in GOOD if make is not parquet_file or event not in (GOOD[2], GOOD[9])
    ]
    letters = (tmp_path / "dead.jsonl").read_bytes()
    for kill_after in range(whole.num_records + 1):
        learner = Learner(tmp_path)
        kills = 0
        # A kill after so many records each time; a later run gets further, or it would never end.
        for attempt in range(100):
            source = Counting(make(tmp_path), kill_after + attempt, kill_after + 3 * attempt)
            try:
                learner.run(source, save_early=save_early)
                break
            except KilledError:
                kills += 1
        assert kills or kill_after == whole.num_records
        assert learner.checkpoint == undisturbed.checkpoint
        assert (tmp_path / "dead.jsonl").read_bytes() == letters


def test_a_kill_at_any_entry_of_redis_changes_nothing(
    tmp_path: Path, redis_url: str, redis_client: Any
) -> None:
    wanted = good_events(LINES)[: len(GOOD) // BATCH * BATCH]
    for line in LINES:
        redis_client.xadd("events", {"event": line})
    for kill_after in range(1, len(LINES)):
        redis_client.xgroup_destroy("events", "celrec")
        learner = Learner(tmp_path)
        for attempt in range(100):
            source = open_source(f"{redis_url}/events?field=event", wait=0.001)
            with suppress(KilledError):
                killed = Counting(source, attempt, kill_after + 3 * attempt)
                learner.run(killed, until=len(wanted))
                break
        assert learner.checkpoint[0] == wanted
        bookmark = learner.checkpoint[1]
        assert bookmark is not None
        assert bookmark["num_events"] == len(wanted)


# A learner whose state is a hash of all it learned, in order: one event lost, doubled or swapped
# would change it.
LEARNER = """
import hashlib, json, os, sys
from pathlib import Path
from celrec.data.stream.addresses import open_source
from celrec.data.stream.dead_letters import DeadLetters
from celrec.data.stream.event import EventFormat
from celrec.data.stream.reader import EventReader

address, folder, total = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
saved = folder / "checkpoint.json"
state, bookmark = json.loads(saved.read_text()) if saved.exists() else ("", None)
format = EventFormat(timestamp="time")
letters = DeadLetters(folder / "dead.jsonl")
source = open_source(address, wait=0.01)
with EventReader(source, format, letters, batch_size=7, bookmark=bookmark) as reader:
    while reader.bookmark["num_events"] < total and not reader.is_finished:
        batch = reader.read_batch()
        for event in batch.events if batch else ():
            state = hashlib.sha256(f"{state}{event}".encode()).hexdigest()
        reader.flush()
        partial = folder / "checkpoint.partial"
        partial.write_text(json.dumps([state, reader.bookmark]))
        os.replace(partial, saved)
        reader.saved(reader.bookmark)
"""


def run_learner(address: str, folder: Path, total: int, kill_after: float | None) -> bool:
    """Run it in a process of its own; whether it got to the end.

    kill_after : seconds from its first checkpoint of this run
    """
    folder.mkdir(exist_ok=True)
    saved = folder / "checkpoint.json"
    before = saved.stat().st_mtime_ns if saved.exists() else 0
    command = [sys.executable, "-c", LEARNER, address, str(folder), str(total)]
    with subprocess.Popen(command) as process:
        if kill_after is not None:
            while process.poll() is None and (
                not saved.exists() or saved.stat().st_mtime_ns == before
            ):
                time.sleep(0.001)
            time.sleep(kill_after)
            process.kill()
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode == 0


@pytest.mark.parametrize("kind", ["file", "redis"])
def test_a_killed_process_ends_as_one_that_was_not(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    lines = [b"{bad" if number % 50 == 2 else json_line(number) for number in range(2000)]
    if kind == "file":
        address = str(tmp_path / "events.jsonl")
        Path(address).write_bytes(b"\n".join(lines) + b"\n")
    else:
        client = request.getfixturevalue("redis_client")
        address = f"{request.getfixturevalue('redis_url')}/events?field=event"
        with client.pipeline(transaction=False) as together:
            for line in lines:
                together.xadd("events", {"event": line})
            together.execute()
    total = len(good_events(lines)) // 7 * 7
    assert run_learner(address, tmp_path / "undisturbed", total, None)
    moments = random.Random(0)
    kills = 0
    for _ in range(3):
        kills += not run_learner(address, tmp_path / "killed", total, moments.uniform(0, 0.05))
    assert kills
    run_learner(address, tmp_path / "killed", total, None)
    for name in ("checkpoint.json", "dead.jsonl"):
        wanted = (tmp_path / "undisturbed" / name).read_bytes()
        assert (tmp_path / "killed" / name).read_bytes() == wanted


def test_events_are_the_same_from_a_file_from_redis_and_from_kafka(
    tmp_path: Path, redis_url: str, redis_client: Any, kafka: Any
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(LINES) + b"\n")
    for line in LINES:
        redis_client.xadd("events", {"event": line})
    kafka[1]("events", LINES)
    found: list[list[Batch | None]] = []
    for address in (
        str(path),
        f"{redis_url}/events?field=event",
        f"kafka://{kafka[0]}/events/0",
    ):
        with reader_of(open_source(address, wait=0.05), tmp_path / "dead.jsonl") as reader:
            found.append([next_batch(reader) for _ in range(len(GOOD) // BATCH)])
    events = [[batch.events for batch in batches if batch] for batches in found]
    assert events[0] == events[1] == events[2]
    assert list(chain(*events[0])) == GOOD[: len(GOOD) // BATCH * BATCH]
