"""The history of a run: one JSON object per line, one line per finished epoch.

Lines are appended and flushed to the disk before the epoch's checkpoint is written, so that after a
kill the history is never behind the checkpoint; `truncate_history` cuts off what is ahead of it.
Every line has an integer "epoch", the number of epochs finished, counted from 1. A stream has no
epochs; its lines count windows of events, in "window".

Numbers come back bit for bit. JSON has no NaN and no infinity; they are written as null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from celrec.errors import CheckpointError


def append_history(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line and flush it to the disk; the file is made if it is missing.

    line : ready for JSON, with an integer "epoch" (or "window")
    raises : CheckpointError if the line cannot be written; the file is then as before
    """
    path = Path(path)
    text = json.dumps(_without_nan(line), allow_nan=False) + "\n"
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if path.exists():
            os.truncate(path, size)
        raise CheckpointError(
            f"{path} could not be extended: {error}; free some space, and resume"
        ) from error


def read_history(path: Path, *, unit: str = "epoch") -> list[dict[str, Any]]:
    """Read all lines; a last line that a kill left unfinished is left out.

    unit : what lines count, "epoch" or "window"
    returns : [] if the file does not exist
    raises : CheckpointError naming a line that is no history
    """
    return [line for line, _ in _lines(Path(path), unit)]


def truncate_history(path: Path, num_done: int, *, unit: str = "epoch") -> list[dict[str, Any]]:
    """Keep the first lines, and return them.

    num_done : >= 0, epochs or windows that the checkpoint has finished
    unit : what lines count, "epoch" or "window"
    raises : CheckpointError if the file has not all of these lines, or a damaged one
    """
    path = Path(path)
    kept, end = [], 0
    for line, line_end in _lines(path, unit):
        if line[unit] > num_done:
            break
        kept.append(line)
        end = line_end
    found = [line[unit] for line in kept]
    if found != list(range(1, num_done + 1)):
        raise CheckpointError(
            f"{path} has lines for {unit}s {_listed(found)}, but the checkpoint beside it has "
            f"finished {num_done}; restore the file, or start again in an empty "
            "folder"
        )
    if path.exists():
        os.truncate(path, end)
    return kept


def _lines(path: Path, unit: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Every finished line, and the position in the file where it ends, in bytes."""
    if not path.exists():
        return
    end = 0
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not text.endswith(b"\n"):
            return  # a kill came while it was written
        end += len(text)
        try:
            line = json.loads(text)
            is_history = isinstance(line[unit], int)
        except (ValueError, TypeError, KeyError, RecursionError):
            is_history = False
        if not is_history:
            raise CheckpointError(
                f"line {number} of {path} is no line of a history: {text[:60]!r}; wanted a JSON "
                f'object with an integer "{unit}"'
            )
        yield line, end


def _listed(numbers: list[int]) -> str:
    if len(numbers) < 10:
        return str(numbers)
    return f"{numbers[0]} to {numbers[-1]}, {len(numbers)} in all"


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return value
