"""What a person sees while a model trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from celrec.core.events import Event
from celrec.errors import MissingExtraError
from celrec.losses import Task
from celrec.metrics import Metrics


@dataclass(frozen=True)
class EpochReport:
    """What one epoch did.

    epoch : epochs finished, counted from 1
    train_loss : mean training loss over the epoch, before its round; penalties left out
    validation : as from `metrics.evaluate`, or None
    clusters : live clusters by table name; empty without clustered tables
    table_bytes, total_bytes : of all tables, as `memory_report` counts them
    events : what the round after this epoch changed
    """

    epoch: int
    learning_rate: float
    train_loss: float
    validation: Metrics | None
    clusters: dict[str, int]
    table_bytes: int
    total_bytes: int
    events: tuple[Event, ...]

    def as_line(self) -> dict[str, Any]:
        """The epoch's line in history.jsonl: nothing in it depends on the clock."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return fields | {"events": [event.summary() for event in self.events]}


class Progress(Protocol):
    """Follows a run. Silence is the default; a notebook or a service may bring its own."""

    def start(self, *, num_epochs: int, num_finished: int, num_batches: int, task: Task) -> None:
        """Training starts, or resumes after `num_finished` epochs."""
        ...

    def on_batch(self, epoch: int, batch: int) -> None:
        """An optimizer step is done; epoch and batch are counted from 1."""
        ...

    def on_epoch(self, report: EpochReport) -> None:
        """An epoch is done and saved."""
        ...

    def on_encoding(self, num_done: int, num_passes: int) -> None:
        """Codes are being made, after the last epoch: passes over the data done, and to do."""
        ...

    def stop(self) -> None:
        """Training has ended, or failed, or was interrupted."""
        ...


class Silence:
    """Shows nothing."""

    def start(self, *, num_epochs: int, num_finished: int, num_batches: int, task: Task) -> None:
        pass

    def on_batch(self, epoch: int, batch: int) -> None:
        pass

    def on_epoch(self, report: EpochReport) -> None:
        pass

    def on_encoding(self, num_done: int, num_passes: int) -> None:
        pass

    def stop(self) -> None:
        pass


class RichProgress:
    """A progress bar on the terminal: epoch, loss, validation figure, clusters and bytes.

    console : a rich Console; by default one on standard error, which leaves standard output to
        results
    """

    def __init__(self, console: Any = None) -> None:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar
        except ImportError as error:
            raise MissingExtraError(
                "the progress bar needs rich, which is not installed: pip install celrec[train]"
            ) from error

        self._bar = Bar(
            TextColumn("{task.fields[stage]}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
        )
        self._num_batches = self._num_epochs = 1
        self._is_training = True
        self._figure = "auc"

    def start(self, *, num_epochs: int, num_finished: int, num_batches: int, task: Task) -> None:
        self._num_batches = num_batches
        self._num_epochs = num_epochs
        self._is_training = True
        self._figure = "auc" if task == "binary" else "mse"
        self._row = self._bar.add_task(
            "training",
            total=num_epochs * num_batches,
            completed=num_finished * num_batches,
            stage=self._stage(num_finished),
            figures="",
        )
        self._bar.start()

    def on_batch(self, epoch: int, batch: int) -> None:
        # The bar redraws on its own clock; telling it costs a few microseconds.
        completed = (epoch - 1) * self._num_batches + batch
        self._bar.update(self._row, completed=completed, stage=self._stage(epoch))

    def on_epoch(self, report: EpochReport) -> None:
        figures = [f"loss {report.train_loss:.4f}"]
        if report.validation is not None:
            figures.append(f"{self._figure} {report.validation[self._figure]:.4f}")
        if report.clusters:
            figures.append(" + ".join(map(str, report.clusters.values())) + " clusters")
        figures.append(f"{report.total_bytes:,} bytes")
        self._bar.update(self._row, figures=" · ".join(figures))

    def on_encoding(self, num_done: int, num_passes: int) -> None:
        if self._is_training:
            self._is_training = False
            self._bar.reset(self._row, total=num_passes, stage="making codes")
        self._bar.update(self._row, completed=num_done)

    def _stage(self, epoch: int) -> str:
        return f"epoch {epoch}/{self._num_epochs}"

    def stop(self) -> None:
        self._bar.stop()
