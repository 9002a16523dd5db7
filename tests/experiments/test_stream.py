"""A stream's folder: whatever happens, it ends as if nothing had happened."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from celrec.data.stream.event import EventFormat
from celrec.data.stream.iterable import IterableSource
from celrec.errors import ArgumentError, CheckpointError, ConfigError, PositionError
from celrec.experiments.stream import (
    CHECKPOINT_FILE,
    DEAD_LETTERS_FILE,
    HISTORY_FILE,
    STREAM_FILE,
    StreamConfig,
    learn_stream,
    saved_config,
)
from celrec.history import read_history
from celrec.training.stream_progress import StreamStatus
from tests.data.stream.conftest import kafka, redis_client, redis_url
from tests.training.stream_making import TINY, json_line, learned, planted_events, write_lines

__all__ = ["kafka", "redis_client", "redis_url"]  # fixtures

FORMAT = EventFormat(timestamp="time", longest=2000)
EVENTS = planted_events(176)
LINES = [json_line(event) for event in EVENTS]

POISON: dict[str, list[bytes]] = {
    "not JSON": [b"{bad", b"user,item,label", b"[" * 1999, b'{"user": 1} {"user": 2}'],
    "not UTF-8": [b'{"user": "\xff\xfe"}', b"\x80\x81"],
    "not an object": [b"[1, 2, 3]", b"null", b"17"],
    "user is missing": [b'{"item": 1, "label": 1, "time": 1}'],
    "item is missing": [b'{"user": 1, "label": 1, "time": 1}'],
    "label is missing": [b'{"user": 1, "item": 1, "time": 1}'],
    "timestamp is missing": [b'{"user": 1, "item": 1, "label": 1}'],
    "user is null": [b'{"user": null, "item": 1, "label": 1, "time": 1}'],
    "item is a boolean": [b'{"user": 1, "item": true, "label": 1, "time": 1}'],
    "user is empty": [b'{"user": " ", "item": 1, "label": 1, "time": 1}'],
    "user is not a whole number": [b'{"user": 1.5, "item": 1, "label": 1, "time": 1}'],
    "item is beyond 64 bits": [b'{"user": 1, "item": 9223372036854775808, "label": 1, "time": 1}'],
    "item is neither integer nor text": [b'{"user": 1, "item": [1], "label": 1, "time": 1}'],
    "user is not Unicode": [b'{"user": "\\ud800", "item": 1, "label": 1, "time": 1}'],
    "label is NaN or infinite": [
        b'{"user": 1, "item": 1, "label": NaN, "time": 1}',
        b'{"user": 1, "item": 1, "label": -1e999, "time": 1}',
    ],
    "label is out of range": [b'{"user": 1, "item": 1, "label": 0.5, "time": 1}'],
    "label is not a number": [b'{"user": 1, "item": 1, "label": "1", "time": 1}'],
    "timestamp is NaN or infinite": [b'{"user": 1, "item": 1, "label": 1, "time": Infinity}'],
    "timestamp is not a number": [b'{"user": 1, "item": 1, "label": 1, "time": "noon"}'],
    "record too long": [b'{"user": "' + b"x" * 3000 + b'"}'],
}


class KilledError(Exception):
    """Stands for SIGKILL: nothing is saved after it."""


def config_of(address: object, **changes: Any) -> StreamConfig:
    settings = dataclasses.replace(TINY, **changes)
    return StreamConfig(address=str(address), format=FORMAT, settings=settings)


def kill_after(num_batches: int) -> Callable[[], bool]:
    """A `should_stop` that kills."""
    left = num_batches

    def should_stop() -> bool:
        nonlocal left
        left -= 1
        if left < 0:
            raise KilledError
        return False

    return should_stop


def with_bad_lines(lines: list[bytes]) -> list[bytes]:
    """Bad records first, last, alone and in a row, about the ends of batches."""
    mixed = [b"{bad"]
    for number, line in enumerate(lines):
        mixed += [line, *[b"{bad %d" % number] * (number % 7 // 5 * (number % 3 + 1))]
    return mixed


def files_of(folder: Path) -> dict[str, bytes]:
    names = (CHECKPOINT_FILE, HISTORY_FILE, DEAD_LETTERS_FILE)
    return {name: (folder / name).read_bytes() for name in names}


# --- kills ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 24])
def test_a_kill_after_any_batch_changes_no_bit(tmp_path: Path, every: int) -> None:
    path = write_lines(tmp_path / "events.jsonl", with_bad_lines(LINES))
    config = config_of(path, window=16)
    result = learn_stream(config, tmp_path / "whole", checkpoint_events=every)
    assert result.is_finished
    assert result.figures["num_events"] == len(EVENTS)
    assert result.bookmark["num_bad"] == sum(result.dead_letters.values()) > 40
    wanted = files_of(tmp_path / "whole")
    num_batches = len(EVENTS) // TINY.batch_size
    for first_kill in range(0, num_batches, 2 if every > 1 else 5):
        folder = tmp_path / f"killed-{first_kill}"
        num_kills = 0
        while True:
            try:
                # Each run gets further, or it would never end.
                stop = kill_after(first_kill + 2 * num_kills)
                learn_stream(config, folder, resume=True, checkpoint_events=every, should_stop=stop)
                break
            except KilledError:
                num_kills += 1
        assert num_kills > 0
        assert files_of(folder) == wanted


def test_saving_often_or_seldom_changes_nothing(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "events.jsonl", LINES)
    for number, options in enumerate(
        [
            {"checkpoint_events": 1},
            {"checkpoint_events": 50, "checkpoint_seconds": None},
            {"checkpoint_seconds": 0},
            {"checkpoint_seconds": None},
        ]
    ):
        learn_stream(config_of(path), tmp_path / str(number), **options)  # type: ignore[arg-type]
        assert files_of(tmp_path / str(number)) == files_of(tmp_path / "0")


def test_a_stream_that_is_stopped_goes_on(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "events.jsonl", LINES)
    learn_stream(config_of(path), tmp_path / "whole")
    part = learn_stream(config_of(path), tmp_path / "parts", max_events=81)
    assert part.figures["num_events"] == 88  # to the end of the batch
    assert not part.is_finished
    again = learn_stream(config_of(path), tmp_path / "parts", resume=True, max_events=81)
    assert again.figures == part.figures
    answers = iter([False, True])
    stopped = learn_stream(
        config_of(path), tmp_path / "parts", resume=True, should_stop=lambda: next(answers)
    )
    assert stopped.figures["num_events"] == 96
    learn_stream(config_of(path), tmp_path / "parts", resume=True)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_all_sources_teach_the_same(
    tmp_path: Path, redis_url: str, redis_client: Any, kafka: Any
) -> None:
    lines = with_bad_lines(LINES)
    broker, write = kafka
    write("same-events", lines)
    for line in lines:
        redis_client.xadd("same-events", {"event": line})
    addresses = {
        "file": str(write_lines(tmp_path / "events.jsonl", lines)),
        "redis": f"{redis_url}/same-events?field=event",
        "kafka": f"kafka://{broker}/same-events/0",
    }
    for name, address in addresses.items():
        for events in (40, 80, len(EVENTS)):  # stopped twice
            learn_stream(config_of(address), tmp_path / name, resume=True, max_events=events)
    for name in addresses:
        assert learned(tmp_path / name) == learned(tmp_path / "file")
        history = (tmp_path / name / HISTORY_FILE).read_bytes()
        assert history == (tmp_path / "file" / HISTORY_FILE).read_bytes()


@pytest.mark.parametrize("kind", ["redis", "kafka"])
def test_a_kill_changes_nothing_where_a_server_keeps_count(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    """After a kill the server believes that more was read than the checkpoint knows."""
    lines = with_bad_lines(LINES)
    if kind == "redis":
        client = request.getfixturevalue("redis_client")
        for line in lines:
            client.xadd("killed", {"event": line})
        address = f"{request.getfixturevalue('redis_url')}/killed?field=event"
    else:
        broker, write = request.getfixturevalue("kafka")
        write("killed", lines)
        address = f"kafka://{broker}/killed/0"
    config = config_of(address)
    path = write_lines(tmp_path / "events.jsonl", lines)
    learn_stream(config_of(path), tmp_path / "whole", max_events=len(EVENTS))
    for num_batches in (5, 1, 9):
        with pytest.raises(KilledError):
            learn_stream(
                config,
                tmp_path / "killed",
                resume=True,
                checkpoint_events=24,
                should_stop=kill_after(num_batches),
            )
    learn_stream(config, tmp_path / "killed", resume=True, max_events=len(EVENTS))
    assert learned(tmp_path / "killed") == learned(tmp_path / "whole")


# --- poison --------------------------------------------------------------------------------------


def test_a_thousand_poison_records_leave_no_trace_in_what_is_learned(tmp_path: Path) -> None:
    kinds = [(reason, line) for reason, some in POISON.items() for line in some]
    poison = [kinds[number % len(kinds)] for number in range(1000)]
    lines, left = [], list(LINES)
    for number, (_, line) in enumerate(poison):
        lines.append(line)
        if number % 5 == 4 and left:
            lines.append(left.pop(0))
    lines += left
    assert len(POISON) >= 12
    poisoned = write_lines(tmp_path / "poisoned.jsonl", lines)
    clean = write_lines(tmp_path / "clean.jsonl", LINES)
    learn_stream(config_of(clean), tmp_path / "clean")
    found = learn_stream(config_of(poisoned), tmp_path / "poisoned")
    assert learned(tmp_path / "poisoned") == learned(tmp_path / "clean")
    letters = [
        json.loads(line)
        for line in (tmp_path / "poisoned" / DEAD_LETTERS_FILE).read_text().splitlines()
    ]
    assert [letter["reason"] for letter in letters] == [reason for reason, _ in poison]
    assert found.dead_letters == Counter(reason for reason, _ in poison)
    assert found.bookmark["num_bad"] == 1000
    assert all(letter["position"]["offset"] > 0 for letter in letters)


def test_texts_are_dead_letters_where_ids_are_integers(tmp_path: Path) -> None:
    source = IterableSource([*LINES[:5], b'{"user": 1, "item": 2, "label": 1, "time": 3}'])
    config = config_of("events", ids="integer")
    found = learn_stream(config, tmp_path / "out", source=source)
    assert found.dead_letters == {"item is text": 5}
    assert found.figures["num_events"] == 1


# --- history and progress ------------------------------------------------------------------------


def test_history_has_a_line_for_each_window(tmp_path: Path) -> None:
    source = IterableSource([b"{bad", *LINES])
    learn_stream(config_of("events"), tmp_path / "out", source=source)
    lines = read_history(tmp_path / "out" / HISTORY_FILE, unit="window")
    assert [line["window"] for line in lines] == [1, 2, 3, 4]
    assert [line["num_events"] for line in lines] == [40, 80, 120, 160]
    assert [line["time"] for line in lines] == [39.0, 79.0, 119.0, 159.0]
    assert all(line["dead_letters"] == 1 for line in lines)
    assert all(0 < line["used_bytes"] <= TINY.max_bytes for line in lines)


class Watching:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def start(self) -> None:
        self.seen.append("start")

    def on_status(self, status: StreamStatus) -> None:
        self.seen.append(status)

    def stop(self) -> None:
        self.seen.append("stop")


def test_progress_is_told_how_it_stands(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "events.jsonl", [*LINES, b"{bad"])
    watching = Watching()
    learn_stream(config_of(path), tmp_path / "out", progress=watching)
    assert watching.seen[0] == "start"
    assert watching.seen[-1] == "stop"
    status = watching.seen[-2]
    assert status.figures["num_events"] == len(EVENTS)
    assert (status.lag, status.dead_letters) == (0, 1)
    assert status.parts()["dead letters"] == "1"


def test_progress_is_stopped_when_the_stream_breaks(tmp_path: Path) -> None:
    watching = Watching()
    with pytest.raises(KilledError):
        learn_stream(
            config_of("events"),
            tmp_path / "out",
            source=IterableSource(LINES),
            progress=watching,
            should_stop=kill_after(2),
        )
    assert watching.seen[-1] == "stop"


# --- folders -------------------------------------------------------------------------------------


def test_what_is_in_a_folder_is_not_overwritten_by_mistake(tmp_path: Path) -> None:
    config, out = config_of("events"), tmp_path / "out"
    learn_stream(config, out, source=IterableSource(LINES))
    before = files_of(out)
    with pytest.raises(ConfigError, match="holds a stream already"):
        learn_stream(config, out, source=IterableSource(LINES))
    assert files_of(out) == before
    learn_stream(config, out, source=IterableSource(LINES[:16]), overwrite=True)
    assert read_history(out / HISTORY_FILE, unit="window") == []
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(ConfigError, match="holds something else; choose an empty"):
            learn_stream(config, tmp_path / "other", source=IterableSource(LINES), resume=resume)


def test_two_learners_do_not_share_a_folder(tmp_path: Path) -> None:
    config, out = config_of("events"), tmp_path / "out"

    def second() -> bool:
        learn_stream(config, out, source=IterableSource(LINES), resume=True)
        return False

    with pytest.raises(ConfigError, match="another process learns into"):
        learn_stream(config, out, source=IterableSource(LINES), should_stop=second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": dataclasses.replace(TINY, rows=7)}, "has settings.rows 6, but 7 is asked"),
        ({"format": EventFormat(longest=2000)}, "has format.timestamp 'time', but None is asked"),
        ({"address": "other"}, "has address 'events', but 'other' is asked for"),
        ({"threads": 2}, "has threads 1, but 2 is asked for"),
    ],
)
def test_a_checkpoint_of_another_stream_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    config = config_of("events")
    learn_stream(config, tmp_path / "out", source=IterableSource(LINES))
    before = files_of(tmp_path / "out")
    other = dataclasses.replace(config, **change)
    with pytest.raises(CheckpointError, match=message):
        learn_stream(other, tmp_path / "out", source=IterableSource(LINES), resume=True)
    assert files_of(tmp_path / "out") == before


def test_another_source_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "events.jsonl", LINES)
    learn_stream(config_of(path), tmp_path / "out")
    write_lines(path, LINES[40:])
    with pytest.raises(PositionError):
        learn_stream(config_of(path), tmp_path / "out", resume=True)


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, out = config_of("events"), tmp_path / "out"
    learn_stream(config, out, source=IterableSource(LINES))
    monkeypatch.setattr("celrec.experiments.stream._VERSION", 2)
    with pytest.raises(CheckpointError, match="of version 1, and this celrec reads 2"):
        learn_stream(config, out, source=IterableSource(LINES), resume=True)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"config": {"address": 1}}'])
def test_a_damaged_description_is_a_checkpoint_error(tmp_path: Path, content: bytes) -> None:
    config, out = config_of("events"), tmp_path / "out"
    assert saved_config(out) is None
    learn_stream(config, out, source=IterableSource(LINES))
    assert saved_config(out) == config
    (out / STREAM_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"stream\.json"):
        saved_config(out)


def test_ratings_are_no_task_of_a_stream() -> None:
    with pytest.raises(ArgumentError, match="wanted the kind binary"):
        StreamConfig(address="events", format=EventFormat(kind="rating"))
