"""What a person sees while a stream is learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

from celrec.errors import MissingExtraError
from celrec.training.online import StreamMemory

_BETWEEN_LINES = 10.0  # seconds


@dataclass(frozen=True)
class StreamStatus:
    """How a stream is doing.

    figures : of `StreamLearner.figures`
    events_per_second : since the last status
    lag : records that wait to be read; None where that is not known
    dead_letters : records that are no events, so far
    """

    figures: dict[str, Any]
    memory: StreamMemory
    events_per_second: float
    lag: int | None
    dead_letters: int

    def parts(self) -> dict[str, str]:
        """What to show, by name."""
        figures, memory = self.figures, self.memory
        clusters, entities = figures["clusters"], figures["entities"]
        return {
            "events": f"{figures['num_events']:,}",
            "events/s": f"{self.events_per_second:,.0f}",
            "AUC": f"{_shown(figures['auc'])} (running means {_shown(figures['means_auc'])})",
            "log loss": f"{_shown(figures['log_loss'])} ({_shown(figures['means_log_loss'])})",
            "clusters": " + ".join(f"{count} of {side}s" for side, count in clusters.items()),
            "entities": " + ".join(f"{count:,} {side}s" for side, count in entities.items()),
            "bytes": f"{memory.used:,} of {memory.budget:,}, id maps {memory.maps:,}",
            "lag": "unknown" if self.lag is None else f"{self.lag:,}",
            "dead letters": f"{self.dead_letters:,}",
        }


class StreamProgress(Protocol):
    """Follows a stream. A notebook or a service may bring its own."""

    def start(self) -> None:
        """Learning starts."""
        ...

    def on_status(self, status: StreamStatus) -> None:
        """Comes every half second or so, and once at the end."""
        ...

    def stop(self) -> None:
        """Learning has ended, or failed."""
        ...


class LiveStream:
    """A small table on the terminal that keeps itself up to date.

    console : a rich Console
    """

    def __init__(self, console: Any) -> None:
        try:
            from rich.live import Live
        except ImportError as error:
            raise MissingExtraError(
                "the live display needs rich, which is not installed: pip install celrec[train]"
            ) from error
        self._live = Live(console=console, refresh_per_second=4)

    def start(self) -> None:
        self._live.start()

    def on_status(self, status: StreamStatus) -> None:
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for name, value in status.parts().items():
            table.add_row(f"[dim]{name}[/dim]", value)
        self._live.update(table)

    def stop(self) -> None:
        self._live.stop()


class StreamLines:
    """A line every ten seconds, for logs.

    say : takes a line
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def start(self) -> None:
        self._due = monotonic() + _BETWEEN_LINES

    def on_status(self, status: StreamStatus) -> None:
        if monotonic() >= self._due:
            self._due += _BETWEEN_LINES
            self._say(", ".join(f"{name} {value}" for name, value in status.parts().items()))

    def stop(self) -> None:
        pass


def _shown(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:.4f}"
