"""Files of lines and standard input: every line once, from any position on, however it arrives."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celrec.data.stream.event import CsvLayout, LongRecord
from celrec.data.stream.lines import LineFile, LineSplitter, StandardInput
from celrec.errors import ArgumentError, DataError, PositionError
from tests.data.stream.making import json_line, read_all, read_some

LINES = [json_line(number) for number in range(300)]  # more than the bytes a file is known by
TEXT = b"\n".join(LINES) + b"\n"


@given(st.lists(st.sampled_from([b"a", b"\n", b"bcd"])).map(b"".join), st.data())
def test_lines_do_not_depend_on_the_pieces_they_come_in(text: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    splitter = LineSplitter(longest=4)
    found = []
    for start, end in pairwise([0, *cuts, len(text)]):
        found += splitter.feed(text[start:end])
    found += splitter.end()
    *ended, rest = text.split(b"\n")
    wanted = [*ended, rest] if rest else ended
    assert found == [
        line if len(line) <= 4 else LongRecord(line[:1024], len(line)) for line in wanted
    ]


@given(st.lists(st.integers(0, 5000), min_size=1))
def test_memory_is_bounded_in_a_line_of_any_length(lengths: list[int]) -> None:
    splitter = LineSplitter(longest=2000)
    for length in lengths:
        splitter.feed(b"x" * length)
        assert len(splitter._rest) <= 2000
    (record,) = splitter.feed(b"\nnext")
    assert len(record) == sum(lengths)
    assert isinstance(record, LongRecord) == (sum(lengths) > 2000)
    assert splitter.feed(b"\n") == [b"next"]


# --- files ---------------------------------------------------------------------------------------


def test_a_file_resumes_after_every_record(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(TEXT)
    records = read_all(LineFile(path))
    assert [payload for payload, _ in records] == LINES
    ends = list(accumulate(len(line) + 1 for line in LINES))
    assert [position["offset"] for _, position in records] == ends
    for count in range(0, len(records), 7):
        assert read_all(LineFile(path), records[count][1]) == records[count + 1 :]


def test_blank_lines_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n\xef\xbb\xbf\n\r\n" + LINES[0] + b"\r\n\n\n" + LINES[1])
    first, second, third = read_all(LineFile(path))
    assert (first[0], second[0], third[0]) == (b"\xef\xbb\xbf", LINES[0] + b"\r", LINES[1])
    assert read_all(LineFile(path), second[1]) == [third]


def test_a_byte_order_mark_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_bytes(b"\xef\xbb\xbfuser,item\r\n1,2\r\n3,4\r\n")
    source = LineFile(path, separator=",")
    records = read_all(source)
    assert [payload for payload, _ in records] == [b"1,2\r", b"3,4\r"]
    assert source.layout == CsvLayout(("user", "item"))
    again = LineFile(path, separator=",")
    assert read_all(again, records[0][1]) == records[1:]
    assert again.layout == CsvLayout(("user", "item"))


def test_given_columns_stand_for_the_header(tmp_path: Path) -> None:
    path = tmp_path / "events.tsv"
    path.write_bytes(b"1\t2\n")
    source = LineFile(path, separator="\t", columns=["user", "item"])
    assert [payload for payload, _ in read_all(source)] == [b"1\t2"]
    assert source.layout == CsvLayout(("user", "item"), "\t")


def test_a_long_line_is_one_record_and_the_next_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"x" * 1_000_000 + b"\n" + LINES[0] + b"\n")
    first, second = read_all(LineFile(path, longest=5000))
    assert first[0] == LongRecord(b"x" * 1024, 1_000_000)
    assert second[0] == LINES[0]
    assert read_all(LineFile(path, longest=5000), first[1]) == [second]


def test_an_empty_file_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.touch()
    assert read_all(LineFile(path, separator=",")) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff,b\n1,2\n", "names no columns"), (b"x" * 200 + b"\n1,2\n", "has 200 bytes")],
)
def test_a_bad_header_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "events.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_all(LineFile(path, separator=",", longest=100))


def test_what_is_no_file_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(DataError, match="cannot be read"):
            read_all(LineFile(path))


def test_columns_without_a_separator_are_an_error() -> None:
    with pytest.raises(ArgumentError, match="whose lines are JSON"):
        LineFile("events.jsonl", columns=["user"])


# --- files that changed --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 50, 200])
def test_a_file_that_was_cut_or_replaced_is_an_error(tmp_path: Path, count: int) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(TEXT)
    position = read_all(LineFile(path))[count - 1][1]
    path.write_bytes(TEXT[: position["offset"] - 1])
    with pytest.raises(PositionError, match=f"but {position['offset']:,} were read"):
        read_all(LineFile(path), position)
    path.write_bytes(TEXT.replace(b'"label": 0', b'"label": 1'))
    with pytest.raises(PositionError, match="does not begin as it did"):
        read_all(LineFile(path), position)
    path.write_bytes(TEXT[: position["offset"]] + b"more\n")
    assert [payload for payload, _ in read_all(LineFile(path), position)] == [b"more"]


@pytest.mark.parametrize("position", [7, {"offset": -1, "head": ""}, {"row": 3}, "7"])
def test_a_position_of_another_source_is_an_error(tmp_path: Path, position: object) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(TEXT)
    with pytest.raises(PositionError, match="belong to another source"):
        read_all(LineFile(path), position)


def test_a_last_line_that_was_continued_after_it_was_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"first\nsec")
    position = read_all(LineFile(path))[-1][1]
    path.write_bytes(b"first\nsecond\n")
    with pytest.raises(PositionError, match="has been continued since"):
        read_all(LineFile(path), position)
    path.write_bytes(b"first\nsec\nthird\n")
    assert [payload for payload, _ in read_all(LineFile(path), position)] == [b"third"]


# --- growing files -------------------------------------------------------------------------------


def test_a_half_written_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.touch()
    with LineFile(path, follow=True, wait=0.001) as source, path.open("ab", 0) as writer:
        source.open()
        assert source.read(10) == []
        seen = []
        for start in range(0, 200, 9):
            writer.write(TEXT[start : start + 9])
            for _ in range(3):
                seen += source.read(10)
        assert [payload for payload, _ in seen] == LINES[: TEXT[: start + 9].count(b"\n")]
        assert not source.is_finished
        writer.write(TEXT[start + 9 :])
        seen += read_some(source, len(LINES) - len(seen))
        assert [payload for payload, _ in seen] == LINES
        assert source.read(10) == []
    assert read_all(LineFile(path)) == seen


def test_a_header_may_come_late(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.touch()
    with LineFile(path, separator=",", follow=True, wait=0.001) as source:
        source.open()
        assert source.read(1) == []
        path.write_bytes(b"user,item\n1,2\n")
        assert [payload for payload, _ in read_some(source, 1)] == [b"1,2"]
        assert source.layout == CsvLayout(("user", "item"))


@pytest.mark.parametrize("how", ["cut", "rotated", "rewritten", "rewritten longer"])
def test_a_followed_file_that_changes_is_an_error(tmp_path: Path, how: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(TEXT)
    with LineFile(path, follow=True, wait=0.001) as source:
        source.open()
        read_some(source, len(LINES))
        if how == "cut":
            os.truncate(path, 5000)
        elif how == "rotated":
            path.rename(tmp_path / "events.jsonl.1")
            assert source.read(1) == []  # a new one may come
            path.write_bytes(TEXT)
        elif how == "rewritten":
            path.write_bytes(b"x" * 5000)
        else:
            path.write_bytes(b"x" * 50_000)
        with pytest.raises(PositionError, match="cut or replaced while it was followed"):
            source.read(1)


def test_lag_of_a_file_is_about_the_lines_left(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"0123456789\n" * 100_000)
    with LineFile(path) as source:
        source.open()
        assert source.lag() is None
        source.read(1000)
        assert source.lag() == 99_000


# --- standard input ------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The ends of a pipe: to read from, and to write to; closed at the end."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


class Pipe:
    """The file that standard input would be."""

    def __init__(self, descriptor: int) -> None:
        self.fileno = lambda: descriptor


def test_lines_of_a_pipe_come_as_they_arrive(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    source = StandardInput(file=Pipe(reading), wait=0.001)  # type: ignore[arg-type]
    source.open()
    assert source.read(5) == []
    os.write(writing, b"one\ntw")
    assert source.read(5) == [(b"one", 1)]
    assert source.read(5) == []
    os.write(writing, b"o\n\nthree")
    assert source.read(5) == [(b"two", 2)]
    assert not source.is_finished
    os.close(writing)
    assert source.read(5) == [(b"three", 4)]
    assert source.is_finished
    assert source.read(5) == []


@pytest.mark.parametrize("count", [0, 1, 150, 299])
def test_a_pipe_resumes_after_the_lines_that_were_read(tmp_path: Path, count: int) -> None:
    path = tmp_path / "events.csv"
    path.write_bytes(b"user,item\n\n" + TEXT)
    with path.open("rb") as file:
        records = read_all(StandardInput(separator=",", file=file))
    assert [payload for payload, _ in records] == LINES
    with path.open("rb") as file:
        source = StandardInput(separator=",", file=file)
        assert read_all(source, records[count][1]) == records[count + 1 :]
        assert source.layout == CsvLayout(("user", "item"))


def test_a_pipe_larger_than_its_buffer_arrives_whole(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    text = TEXT * 20

    def write() -> None:
        with open(writing, "wb", closefd=False) as file:
            file.write(text)
        os.close(writing)

    writer = threading.Thread(target=write)
    writer.start()
    records = read_all(StandardInput(file=Pipe(reading)))  # type: ignore[arg-type]
    writer.join()
    assert [payload for payload, _ in records] == LINES * 20


def test_a_pipe_that_ends_before_the_position_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"one\ntwo\n")
    with path.open("rb") as file, pytest.raises(PositionError, match="ends after 2 lines, but 3"):
        read_all(StandardInput(file=file), 3)
