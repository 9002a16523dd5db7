"""A stream's folder: what is learned from it, and where it goes on.

- `stream.json`: source, format and settings, for people and for the report
- `checkpoint.safetensors`: the learner, and the position of the source after the last event that it
  has learned: one file, replaced whole
- `history.jsonl`: a line for each window of events
- `dead_letters.jsonl`: records that are no events

The checkpoint is the truth. Whoever goes on from it cuts history and dead letters to where they
were when it was saved, and sets the source to its position. So a stream that was killed at any
moment goes on and ends with the same bits, in all of these files, as one that was not, on the same
machine with the same versions.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from celrec.checkpoint import load_state, save_state
from celrec.data.stream.addresses import open_source
from celrec.data.stream.dead_letters import DeadLetters
from celrec.data.stream.event import EventFormat
from celrec.data.stream.reader import Bookmark, EventReader
from celrec.data.stream.source import Source
from celrec.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    check_count,
    check_number,
)
from celrec.experiments.run import versions, write_text
from celrec.history import append_history, truncate_history
from celrec.training.online import StreamLearner, StreamSettings
from celrec.training.stream_progress import StreamProgress, StreamStatus

STREAM_FILE = "stream.json"
CHECKPOINT_FILE = "checkpoint.safetensors"
HISTORY_FILE = "history.jsonl"
DEAD_LETTERS_FILE = "dead_letters.jsonl"
_LOCK_FILE = "lock"
_FILES = (STREAM_FILE, CHECKPOINT_FILE, HISTORY_FILE, DEAD_LETTERS_FILE)

_VERSION = 1  # of what a checkpoint holds
_BETWEEN_STATUSES = 0.5  # seconds; the lag may be a question to a server


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """All that must be the same for a checkpoint to be of this stream.

    address, separator, columns, group : as `open_source` takes them
    format : which fields of a record mean what. Where ids are integers, others are bad events
    settings : how it is learned
    threads : >= 1, of the processor: other numbers round otherwise
    """

    address: str
    format: EventFormat = field(default_factory=EventFormat)
    settings: StreamSettings = field(default_factory=StreamSettings)
    separator: str | None = None
    columns: tuple[str, ...] | None = None
    group: str = "celrec"
    threads: int = 1

    def __post_init__(self) -> None:
        check_count("threads", self.threads, at_least=1)
        if self.format.kind != "binary":
            raise ArgumentError("a stream is learned from yes and no; wanted the kind binary")
        wanted = self.settings.ids == "integer"
        if self.format.integers_only != wanted:
            format = dataclasses.replace(self.format, integers_only=wanted)
            object.__setattr__(self, "format", format)

    def source(self, *, follow: bool = False) -> Source:
        """The source, not yet opened."""
        return open_source(
            self.address,
            format=self.format,
            follow=follow,
            separator=self.separator,
            columns=self.columns,
            group=self.group,
        )

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        values = dataclasses.asdict(self) | {"settings": self.settings.as_dict()}
        return values | {"columns": None if self.columns is None else list(self.columns)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StreamConfig:
        """The one that had this `as_dict`.

        raises : ArgumentError naming what is wrong; KeyError or TypeError where parts are missing,
            or unknown
        """
        columns = values["columns"]
        parts = {
            "format": EventFormat(**values["format"]),
            "settings": StreamSettings.from_dict(values["settings"]),
            "columns": None if columns is None else tuple(columns),
        }
        return cls(**{**values, **parts})


@dataclass(frozen=True)
class StreamResult:
    """Where a stream stands.

    figures : of `StreamLearner.figures`
    bookmark : after the last event learned
    dead_letters : by reason
    is_finished : whether the source has no more
    """

    figures: dict[str, Any]
    bookmark: Bookmark
    dead_letters: dict[str, int]
    is_finished: bool


def saved_config(folder: Path) -> StreamConfig | None:
    """The configuration that a folder's stream goes on with; None if it has no checkpoint.

    raises : CheckpointError where it is damaged, or of another version
    """
    path = folder / STREAM_FILE
    if not (folder / CHECKPOINT_FILE).exists():
        return None
    try:
        return _config_of(json.loads(path.read_text(encoding="utf-8"))["config"], path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path} is missing or damaged: {error!r}; restore it, or start again in another folder"
        ) from error


def learn_stream(
    config: StreamConfig,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    follow: bool = False,
    max_events: int | None = None,
    checkpoint_events: int | None = None,
    checkpoint_seconds: float | None = 30.0,
    should_stop: Callable[[], bool] = lambda: False,
    progress: StreamProgress | None = None,
    source: Source | None = None,
    command: Sequence[str] = (),
) -> StreamResult:
    """Learn a stream, from its start or from where its folder's checkpoint stands.

    resume : go on from the checkpoint; where there is none, begin
    overwrite : throw away what the folder holds
    follow : wait for more at the end of a file
    max_events : stop when so many have been learned since the start of the stream, at the end of
        a batch
    checkpoint_events, checkpoint_seconds : save after so many events, and after so many seconds,
        whichever comes first; None: not for this reason. It is also saved at the end.
    should_stop : asked after every batch, and at least about once a second
    source : read instead of the address, which then is a name only; not yet opened
    command : kept for the record
    raises : ConfigError if the folder holds something else; CheckpointError if the checkpoint is
        damaged, or of another configuration; any error of source and learner. The last checkpoint
        is then where to go on.
    """
    if max_events is not None:
        check_count("max_events", max_events, at_least=1)
    if checkpoint_events is not None:
        check_count("checkpoint_events", checkpoint_events, at_least=1)
    if checkpoint_seconds is not None:
        check_number("checkpoint_seconds", checkpoint_seconds, at_least=0)
    torch.set_num_threads(config.threads)
    if source is None:
        source = config.source(follow=follow)
    with _locked(folder):
        checkpoint = _prepare(config, folder, resume, overwrite)
        learner = StreamLearner(config.settings)
        bookmark = None
        if checkpoint is not None:
            learner.load_state_dict(checkpoint["learner"])
            bookmark = checkpoint["bookmark"]
        else:
            facts = {
                "config": config.as_dict(),
                "command": list(command),
                "versions": versions(("celrec", "torch", "numpy")),
            }
            write_text(folder / STREAM_FILE, json.dumps(facts, indent=2))
        truncate_history(folder / HISTORY_FILE, learner.num_windows, unit="window")
        letters = DeadLetters(folder / DEAD_LETTERS_FILE)
        with EventReader(
            source,
            config.format,
            letters,
            batch_size=config.settings.batch_size,
            bookmark=bookmark,
        ) as reader:
            loop = _Loop(config, folder, learner, reader, progress)
            loop.run(max_events, checkpoint_events, checkpoint_seconds, should_stop)
            return StreamResult(
                figures=learner.figures(),
                bookmark=reader.bookmark,
                dead_letters=dict(letters.counts),
                is_finished=reader.is_finished,
            )


class _Loop:
    """Batches, history, checkpoints, and what a person sees of them."""

    def __init__(
        self,
        config: StreamConfig,
        folder: Path,
        learner: StreamLearner,
        reader: EventReader,
        progress: StreamProgress | None,
    ) -> None:
        self.config, self.folder = config, folder
        self.learner, self.reader, self.progress = learner, reader, progress
        self.saved_position = reader.bookmark
        self.saved_at = self.shown_at = monotonic()
        self.shown_events = learner.num_events

    def run(
        self,
        max_events: int | None,
        checkpoint_events: int | None,
        checkpoint_seconds: float | None,
        should_stop: Callable[[], bool],
    ) -> None:
        learner, reader = self.learner, self.reader
        if self.progress is not None:
            self.progress.start()
        try:
            while not should_stop() and (max_events is None or learner.num_events < max_events):
                batch = reader.read_batch()
                if batch is not None:
                    self.learn(batch.events, batch.bookmark)
                elif reader.is_finished:
                    break
                num_unsaved = learner.num_events - self.saved_position["num_events"]
                now = monotonic()
                if (checkpoint_events is not None and num_unsaved >= checkpoint_events) or (
                    checkpoint_seconds is not None and now - self.saved_at >= checkpoint_seconds
                ):
                    self.save()
                if self.progress is not None and now - self.shown_at >= _BETWEEN_STATUSES:
                    self.progress.on_status(self.status())
            self.save()
            if self.progress is not None:
                self.progress.on_status(self.status())
        finally:
            if self.progress is not None:
                self.progress.stop()

    def learn(self, events: Sequence[Any], bookmark: Bookmark) -> None:
        before = self.learner.num_windows
        self.learner.learn(events)
        if self.learner.num_windows > before:
            counts = {"dead_letters": bookmark["num_bad"], "dropped": bookmark["num_dropped"]}
            line = {"window": self.learner.num_windows, **self.learner.figures(), **counts}
            append_history(self.folder / HISTORY_FILE, line)

    def save(self) -> None:
        """Save if there is anything new. The order matters: the source may forget what is saved."""
        bookmark = self.reader.bookmark
        self.saved_at = monotonic()
        if bookmark == self.saved_position and (self.folder / CHECKPOINT_FILE).exists():
            return
        self.reader.flush()
        state = {
            "version": _VERSION,
            "config": self.config.as_dict(),
            "bookmark": dict(bookmark),
            "learner": self.learner.state_dict(),
        }
        save_state(self.folder / CHECKPOINT_FILE, state, kind="stream")
        self.reader.saved(bookmark)
        self.saved_position, self.saved_at = bookmark, monotonic()

    def status(self) -> StreamStatus:
        now, num_events = monotonic(), self.learner.num_events
        rate = (num_events - self.shown_events) / max(now - self.shown_at, 1e-9)
        self.shown_at, self.shown_events = now, num_events
        return StreamStatus(
            figures=self.learner.figures(),
            memory=self.learner.memory(),
            events_per_second=rate,
            lag=self.reader.source.lag(),
            dead_letters=self.reader.dead_letters.counts.total(),
        )


def _prepare(
    config: StreamConfig, folder: Path, resume: bool, overwrite: bool
) -> dict[str, Any] | None:
    """The checkpoint to go on from; None to begin, in a folder without traces of another."""
    if resume and (folder / CHECKPOINT_FILE).exists():
        return _read_checkpoint(folder, config)
    found = [name for name in _FILES if (folder / name).exists()]
    if found and not (resume or overwrite):
        raise ConfigError(
            f"{folder} holds a stream already ({', '.join(found)}); go on with it (--resume), "
            "begin anew (--overwrite), or choose another folder"
        )
    if not found and any(path.name != _LOCK_FILE for path in folder.iterdir()):
        raise ConfigError(f"{folder} holds something else; choose an empty or a new folder")
    for name in found:
        (folder / name).unlink()
    return None


def _read_checkpoint(folder: Path, config: StreamConfig) -> dict[str, Any]:
    path = folder / CHECKPOINT_FILE
    checkpoint: dict[str, Any] = load_state(path, kind="stream")
    version = checkpoint.get("version") if isinstance(checkpoint, dict) else None
    if version != _VERSION:
        raise CheckpointError(
            f"{path} is a checkpoint of version {version}, and this celrec reads {_VERSION}; go on "
            "with the celrec that saved it, or start again in another folder"
        )
    _check_same(folder, _config_of(checkpoint["config"], path), config)
    return checkpoint


def _config_of(values: Mapping[str, Any], path: Path) -> StreamConfig:
    try:
        return StreamConfig.from_dict(values)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the configuration in {path} cannot be read: {error}; was it saved by another version "
            "of celrec?"
        ) from error


def _check_same(folder: Path, saved: StreamConfig, asked: StreamConfig) -> None:
    """Raise CheckpointError naming the first thing that differs."""
    for name, value in _flat(saved.as_dict()).items():
        wanted = _flat(asked.as_dict())[name]
        if value != wanted:
            raise CheckpointError(
                f"the stream in {folder} has {name} {value!r}, but {wanted!r} is asked for; leave "
                "that out to go on with it, or start another stream in another folder"
            )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": part for inner, part in _flat(value).items()}
        else:
            flat[name] = value
    return flat


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep others out of the folder; a lock dies with its process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK_FILE).open("a")
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be used: {error}; choose another") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"another process learns into {folder}; stop it, or choose another folder"
            ) from error
        yield
