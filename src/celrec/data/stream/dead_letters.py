"""Dead letters: the records that are no events, kept in a file of JSON lines.

A line has the "reason" (the same words for all records of the kind), the "detail", the "position"
after the record, and the "payload". Nothing of it is lost: text is text, a mapping an object; what
JSON cannot hold is {"base64": ...} or {"repr": ...}. Of a record that was too long to keep there is
the beginning.
"""

from __future__ import annotations

import base64
import errno
import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from celrec.data.stream.event import Event, LongRecord, TextFields, shown
from celrec.errors import BadEventError, CheckpointError


class DeadLetters:
    """A file of records that are no events.

    path : made if it is missing; CheckpointError if it cannot be
    counts : records by reason, of those that `resume` found and those appended since

    A checkpoint saves the length of the file; `resume` cuts off what came after it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.counts: Counter[str] = Counter()
        try:
            self._file = self.path.open("ab", buffering=0)
        except OSError as failure:
            raise self._cannot_extend(failure) from failure
        self._length = self._file.tell()
        self._is_on_disk = False

    @property
    def length(self) -> int:
        """The length of the file in bytes."""
        return self._length

    def append(self, error: BadEventError, position: Any, payload: object) -> None:
        """Write a record down. It can be read at once, and is safe after the next `flush`.

        error : what is wrong with it
        position : of the source, after the record
        raises : CheckpointError if it cannot be written
        """
        letter = {
            "reason": error.reason,
            "detail": error.detail,
            "position": position,
            "payload": _as_json(payload),
        }
        line = json.dumps(letter, allow_nan=False).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as failure:
            raise self._cannot_extend(failure) from failure
        self._length += len(line)
        self._is_on_disk = False
        self.counts[error.reason] += 1

    def flush(self) -> int:
        """Bring the file to the disk, and return its length in bytes.

        raises : CheckpointError if it cannot be written
        """
        if not self._is_on_disk:
            try:
                os.fsync(self._file.fileno())
            except OSError as failure:
                raise self._cannot_extend(failure) from failure
            self._is_on_disk = True
        return self._length

    def resume(self, length: int) -> None:
        """Cut the file to the length that a checkpoint saved, and count its reasons anew.

        length : >= 0, bytes
        raises : CheckpointError if the file is shorter, or what is left holds no dead letters
        """
        found = self.path.stat().st_size
        if found < length:
            raise CheckpointError(
                f"{self.path} has {found:,} bytes, but the checkpoint beside it knows "
                f"{length:,}; restore the file, or start again in an empty folder"
            )
        self._file.truncate(length)
        self._length, self._is_on_disk = length, False
        self.counts.clear()
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    self.counts[json.loads(line)["reason"]] += 1
                except (ValueError, TypeError, KeyError) as error:
                    raise CheckpointError(
                        f"line {number} of {self.path} is no dead letter: {line[:60]!r}; wanted a "
                        'JSON object with a "reason". Restore the file, or start again in an '
                        "empty folder"
                    ) from error

    def close(self) -> None:
        """Close the file; what is not flushed may still be lost with the power."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _cannot_extend(self, failure: OSError) -> CheckpointError:
        return CheckpointError(
            f"{self.path} could not be extended: {failure}; free some space, and resume"
        )


def _as_json(value: object) -> Any:
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if value.bit_length() < 10_000 else {"repr": hex(value)}
        case float():
            return value if math.isfinite(value) else {"repr": shown(value)}
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                return {"base64": base64.b64encode(value).decode()}
        case LongRecord():
            return {"head": _as_json(value.head), "num_bytes": value.num_bytes}
        case TextFields():
            return _as_json(value.fields)
        case Event():
            return _as_json(value._asdict())
        case Mapping() if all(isinstance(name, str | bytes) for name in value):
            return {_name(name): _as_json(part) for name, part in value.items()}
        case list() | tuple():
            return [_as_json(part) for part in value]
    return {"repr": shown(value)}


def _name(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode(errors="backslashreplace")
