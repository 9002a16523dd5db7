"""Sources of lines: files that may still grow, and standard input. JSON or CSV, one record a line.

Lines are found in pieces of bytes, so memory is bounded however long a line is. Blank lines are no
records. A half-written last line waits for its end; when no end will come, it is a line as it is.
"""

from __future__ import annotations

import hashlib
import os
import select
import sys
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from celrec.data.stream.event import LONGEST, CsvLayout, LongRecord
from celrec.data.stream.source import Position, Record, Source
from celrec.errors import ArgumentError, DataError, PositionError, SourceError, check_count

_PIECE = 1 << 18  # bytes read at once
_HEAD = 4096  # bytes that a file is known by
_KEPT = 1024  # bytes that are kept of a line that is too long
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Line = bytes | LongRecord


class LineSplitter:
    """Pieces of bytes in, whole lines out.

    longest : bytes of the longest line that is kept whole

    >>> splitter = LineSplitter(longest=4)
    >>> splitter.feed(b"ab"), splitter.feed(b"c\\nlong line\\nrest"), splitter.end()
    ([], [b'abc', LongRecord(head=b'long line', num_bytes=9)], [b'rest'])
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._rest = b""
        self._num_cut = 0  # bytes of the rest that were not kept

    def feed(self, piece: bytes) -> list[Line]:
        """Take the next bytes, and return the lines that they end, without their line breaks."""
        *ended, self._rest = (self._rest + piece).split(b"\n")
        lines: list[Line] = list(ended)
        if ended:
            lines[0] = self._line(ended[0], self._num_cut)
            lines[1:] = [
                self._line(line) if len(line) > self._longest else line for line in ended[1:]
            ]
            self._num_cut = 0
        if len(self._rest) > max(self._longest, _KEPT):
            self._num_cut += len(self._rest) - _KEPT
            self._rest = self._rest[:_KEPT]
        return lines

    def end(self) -> list[Line]:
        """Return what is left: at most one line, which no line break ended."""
        lines = [self._line(self._rest, self._num_cut)] if self._rest else []
        self._rest, self._num_cut = b"", 0
        return lines

    def _line(self, line: bytes, num_cut: int = 0) -> Line:
        num_bytes = len(line) + num_cut
        return line if num_bytes <= self._longest else LongRecord(line[:_KEPT], num_bytes)


class _Lines(Source):
    """What files and pipes share: the layout, and lines that are ready to be read."""

    def __init__(
        self,
        name: str,
        separator: str | None,
        columns: Sequence[str] | None,
        wait: float,
        longest: int,
    ) -> None:
        if columns is not None and separator is None:
            raise ArgumentError(
                f"columns are given for {name}, whose lines are JSON: give separator=, or leave "
                "the columns out"
            )
        self.name = name
        self._separator, self._given_columns, self._wait = separator, columns, wait
        self._longest = check_count("longest", longest, at_least=1)
        self._restart()

    def _restart(self) -> None:
        self.layout = None
        if self._separator is not None and self._given_columns is not None:
            self.layout = CsvLayout(tuple(self._given_columns), self._separator)
        self._splitter = LineSplitter(self._longest)
        self._ready: deque[Record] = deque()
        self._is_at_end = False

    @property
    def _waits_for_header(self) -> bool:
        return self._separator is not None and self.layout is None

    def _read_header(self, line: Line) -> None:
        if isinstance(line, LongRecord):
            raise DataError(
                f"the first line of {self.name} has {line.num_bytes:,} bytes; wanted the names "
                f"of columns in at most {self._longest:,}"
            )
        assert self._separator is not None
        self.layout = CsvLayout.from_header(line, self._separator, self.name)

    def read(self, most: int) -> list[Record]:
        has_waited = False
        while len(self._ready) < most and not self._is_at_end:
            lines = self._next_lines(0.0 if self._ready or has_waited else self._wait)
            if lines is None:
                break
            has_waited = True
            self._make_ready(lines)
        records = list(islice(self._ready, most))
        for _ in records:
            self._ready.popleft()
        return records

    @abstractmethod
    def _next_lines(self, wait: float) -> list[Line] | None:
        """The lines that the next piece ends; None if nothing arrived. Sets `_is_at_end`."""

    @abstractmethod
    def _make_ready(self, lines: Sequence[Line]) -> None:
        """Read the header off the lines, if it is awaited, and put what follows into `_ready`."""

    @property
    def is_finished(self) -> bool:
        return self._is_at_end and not self._ready


def _without_mark(line: Line) -> Line:
    return line.removeprefix(_BYTE_ORDER_MARK) if isinstance(line, bytes) else line


def _is_blank(line: Line) -> bool:
    return not line or line == b"\r"


class LineFile(_Lines):
    """Lines of a file; the position is how many bytes were read, and a hash of the first of them.

    path : a file of UTF-8; a byte order mark is left out
    separator : of CSV fields; None: lines are JSON
    columns : names of the CSV fields of a file without a header; None: the first line names them
    follow : whether to wait for more at the end, as `tail -f` does. A file that is replaced or cut
        meanwhile is an error.
    wait : seconds that `read` waits for more
    longest : bytes of the longest line that is kept whole
    """

    def __init__(
        self,
        path: str | Path,
        *,
        separator: str | None = None,
        columns: Sequence[str] | None = None,
        follow: bool = False,
        wait: float = 0.1,
        longest: int = LONGEST,
    ) -> None:
        super().__init__(str(path), separator, columns, wait, longest)
        self._path, self._follow = Path(path), follow
        self._file: BinaryIO | None = None

    def open(self, position: Position | None = None) -> None:
        offset, digest = _file_position(position, self.name)
        self.close()
        self._restart()
        try:
            # unbuffered, so that the end of a growing file is seen anew each time
            self._file = self._path.open("rb", buffering=0)
            size = os.fstat(self._file.fileno()).st_size
            self._head = os.pread(self._file.fileno(), min(offset, _HEAD), 0)
        except OSError as error:
            raise DataError(f"{self.name} cannot be read: {error}; wanted a file") from error
        if size < offset:
            raise PositionError(
                f"{self.name} has {size:,} bytes, but {offset:,} were read from it before: it was "
                "cut or replaced; restore it, or start again without the checkpoint"
            )
        if digest != _digest(self._head):
            raise PositionError(
                f"{self.name} does not begin as it did when it was read before: it was replaced; "
                "restore it, or start again without the checkpoint"
            )
        self._offset, self._digest = offset, digest
        self._num_records = self._num_record_bytes = 0
        if offset:
            self._check_line_break()
            if self._waits_for_header:
                self._read_header(self._first_line())
            self._file.seek(offset)

    def _next_lines(self, wait: float) -> list[Line] | None:
        assert self._file is not None, "read before open"
        try:
            piece = self._file.read(_PIECE)
            if self._follow:
                self._check_unchanged()
        except OSError as error:
            raise SourceError(f"{self.name} cannot be read any longer: {error}") from error
        if piece:
            return self._splitter.feed(piece)
        if self._follow:
            time.sleep(wait)
            return None
        self._is_at_end = True
        return self._splitter.end()

    def _make_ready(self, lines: Sequence[Line]) -> None:
        offset, digest, num_before = self._offset, self._digest, len(self._ready)
        num_breaks = 0 if self._is_at_end else 1  # the last line of all has none
        for line in lines:
            is_first = offset == 0
            offset += len(line) + num_breaks
            if len(self._head) < _HEAD:
                digest = self._digest_until(offset)
            if is_first:
                line = _without_mark(line)
            if _is_blank(line):
                continue
            if self._waits_for_header:
                self._read_header(line)
            else:
                self._ready.append((line, {"offset": offset, "head": digest}))
        self._num_records += len(self._ready) - num_before
        self._num_record_bytes += offset - self._offset
        self._offset, self._digest = offset, digest

    def lag(self) -> int | None:
        """Estimate the lines that wait to be read, from the mean length of those that were."""
        if self._file is None or not self._num_records:
            return None
        num_bytes = max(os.fstat(self._file.fileno()).st_size - self._offset, 0)
        return len(self._ready) + round(num_bytes * self._num_records / self._num_record_bytes)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _digest_until(self, offset: int) -> str:
        """The hash of the first bytes of the file, as far as they were read."""
        assert self._file is not None
        self._head = os.pread(self._file.fileno(), min(offset, _HEAD), 0)
        return _digest(self._head)

    def _first_line(self) -> Line:
        assert self._file is not None
        splitter = LineSplitter(self._longest)
        self._file.seek(0)
        while True:
            piece = self._file.read(_PIECE)
            for line in splitter.feed(piece) if piece else splitter.end():
                if not _is_blank(line):
                    return _without_mark(line)
            if not piece:
                return b""

    def _check_line_break(self) -> None:
        """A last line without a line break may have been continued after it was read."""
        assert self._file is not None
        around = os.pread(self._file.fileno(), 2, self._offset - 1)
        if len(around) == 2 and around[0:1] != b"\n" and around[1:2] not in (b"\n", b"\r"):
            raise PositionError(
                f"the line of {self.name} that was read last, up to byte {self._offset:,}, has "
                "been continued since; read growing files with follow=True, and start again "
                "without the checkpoint"
            )

    def _check_unchanged(self) -> None:
        assert self._file is not None
        status = os.fstat(self._file.fileno())
        try:
            now = self._path.stat()
        except FileNotFoundError:
            now = status  # deleted; perhaps another one comes
        is_same_file = (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino)
        head = os.pread(self._file.fileno(), len(self._head), 0)
        if not is_same_file or status.st_size < self._file.tell() or head != self._head:
            raise PositionError(
                f"{self.name} was cut or replaced while it was followed, {self._offset:,} bytes "
                "were read from it; start again without the checkpoint, or restore the file"
            )


class StandardInput(_Lines):
    """Lines of a pipe; the position is how many were read, blank ones and the header included.

    To resume, give the same lines again: those before the position are skipped.

    separator, columns, wait, longest : as for `LineFile`
    file : a binary file with a file descriptor; None: standard input
    """

    def __init__(
        self,
        *,
        separator: str | None = None,
        columns: Sequence[str] | None = None,
        file: BinaryIO | None = None,
        wait: float = 0.1,
        longest: int = LONGEST,
    ) -> None:
        super().__init__("standard input", separator, columns, wait, longest)
        self._file = file

    def open(self, position: Position | None = None) -> None:
        num_lines = 0 if position is None else position
        if type(num_lines) is not int or num_lines < 0:
            raise PositionError(
                f"position is {position!r}; wanted a count of lines, as standard input gives"
            )
        self._restart()
        self._num_to_skip, self._num_lines = num_lines, 0
        self._descriptor = (self._file or sys.stdin).fileno()

    def _next_lines(self, wait: float) -> list[Line] | None:
        if not select.select([self._descriptor], [], [], wait)[0]:
            return None
        try:
            piece = os.read(self._descriptor, _PIECE)
        except OSError as error:
            raise SourceError(f"standard input cannot be read any longer: {error}") from error
        if piece:
            return self._splitter.feed(piece)
        self._is_at_end = True
        return self._splitter.end()

    def _make_ready(self, lines: Sequence[Line]) -> None:
        for line in lines:
            if self._num_lines == 0:
                line = _without_mark(line)
            self._num_lines += 1
            if _is_blank(line):
                continue
            if self._waits_for_header:
                self._read_header(line)
            elif self._num_lines > self._num_to_skip:
                self._ready.append((line, self._num_lines))
        if self._is_at_end and self._num_lines < self._num_to_skip:
            raise PositionError(
                f"standard input ends after {self._num_lines:,} lines, but {self._num_to_skip:,} "
                "were read from it before; give the same lines again"
            )


def _digest(head: bytes) -> str:
    return hashlib.blake2b(head, digest_size=8).hexdigest()


def _file_position(position: Position | None, name: str) -> tuple[int, str]:
    match position:
        case None:
            return 0, _digest(b"")
        case {"offset": int(offset), "head": str(digest)} if offset >= 0:
            return offset, digest
    raise PositionError(
        f"position is {position!r}; wanted one that a file of lines gave. Does the checkpoint "
        f"belong to another source than {name}?"
    )
