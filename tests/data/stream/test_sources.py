"""Iterables, Parquet files, and addresses of sources."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from celrec.data.stream.addresses import open_source
from celrec.data.stream.event import CsvLayout, Event, EventFormat
from celrec.data.stream.iterable import IterableSource
from celrec.data.stream.lines import LineFile, StandardInput
from celrec.data.stream.parquet import ParquetSource
from celrec.errors import ArgumentError, DataError, PositionError
from tests.data.stream.making import read_all


def test_an_iterable_resumes_after_every_record() -> None:
    events = [Event(1, number, 1.0) for number in range(20)]
    records = read_all(IterableSource(events), at_once=3)
    assert records == list(zip(events, range(1, 21), strict=True))
    for count in range(21):
        assert read_all(IterableSource(iter(events)), count) == records[count:]


def test_an_iterable_is_read_no_further_than_asked() -> None:
    taken = []
    source = IterableSource({"user": taken.append(i) or i} for i in range(10))
    source.open()
    source.read(3)
    assert taken == [0, 1, 2]


@pytest.mark.parametrize(
    ("position", "message"), [(4, "ends after 3 records, but 4"), ("3", "wanted a count")]
)
def test_an_iterable_without_the_position_is_an_error(position: Any, message: str) -> None:
    with pytest.raises(PositionError, match=message):
        IterableSource([{}, {}, {}]).open(position)


# --- Parquet -------------------------------------------------------------------------------------


def parquet_file(path: Path, num_rows: int = 1000, **columns: Any) -> Path:
    frame = pl.DataFrame({"user": range(num_rows), "item": ["a"] * num_rows, **columns})
    frame.write_parquet(path, row_group_size=300)
    return path


def test_rows_of_parquet_resume_after_every_record(tmp_path: Path) -> None:
    path = parquet_file(tmp_path / "events.parquet")
    records = read_all(ParquetSource(path))
    assert [payload for payload, _ in records] == [{"user": i, "item": "a"} for i in range(1000)]
    for count in range(0, 1000, 83):
        assert read_all(ParquetSource(path), records[count][1]) == records[count + 1 :]


def test_rows_of_parquet_come_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celrec.data.stream.parquet._ROWS", 64)
    source = ParquetSource(parquet_file(tmp_path / "events.parquet"))
    source.open()
    seen = []
    while not source.is_finished:
        assert source.lag() == 1000 - len(seen)
        seen += source.read(50)
        assert len(source._chunk) <= 64
    assert [payload["user"] for payload, _ in seen] == list(range(1000))


def test_parquet_of_any_column_types_becomes_events(tmp_path: Path) -> None:
    path = parquet_file(
        tmp_path / "events.parquet",
        2,
        stars=pl.Series([4, None], dtype=pl.Float32),
        time=[datetime(2020, 1, 1), None],
        unused=[[1], [2]],
    )
    format = EventFormat(label="stars", timestamp="time", positive_from=4)
    records = read_all(open_source(str(path), format=format))
    assert format.parse(records[0][0]) == Event(0, "a", 1.0, 1577836800.0)
    assert set(records[1][0]) == {"user", "item", "stars", "time"}


def test_a_parquet_file_that_was_replaced_is_an_error(tmp_path: Path) -> None:
    path = parquet_file(tmp_path / "events.parquet")
    position = read_all(ParquetSource(path))[3][1]
    parquet_file(path, 1001)
    with pytest.raises(PositionError, match="is not the file that was read before"):
        ParquetSource(path).open(position)
    with pytest.raises(PositionError, match="belong to another source"):
        ParquetSource(path).open(3)


def test_parquet_without_a_column_and_no_parquet_are_errors(tmp_path: Path) -> None:
    path = parquet_file(tmp_path / "events.parquet")
    with pytest.raises(DataError, match="no column 'usr'; did you mean 'user'"):
        ParquetSource(path, columns=["usr"]).open()
    path.write_bytes(b"no Parquet")
    with pytest.raises(DataError, match="wanted a Parquet file"):
        ParquetSource(path).open()
    with pytest.raises(DataError, match="wanted a Parquet file"):
        ParquetSource(tmp_path / "none.parquet").open()


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("events.csv", b"user,item,label\n1,a,1\n"),
        ("events.tsv", b"user\titem\tlabel\n1\ta\t1\n"),
        ("events.jsonl", b'{"user": 1, "item": "a", "label": 1}\n'),
        ("EVENTS.NDJSON", b'{"user": 1, "item": "a", "label": 1}\n'),
    ],
)
def test_files_are_told_by_their_names(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    source = open_source(str(path))
    ((payload, _),) = read_all(source)
    assert EventFormat().parse(payload, source.layout) == Event(1, "a", 1.0)


def test_a_separator_overrules_the_name(tmp_path: Path) -> None:
    path = tmp_path / "ratings.dat"
    path.write_bytes(b"1::a::1\n")
    source = open_source(str(path), separator="::", columns=["user", "item", "label"])
    ((payload, _),) = read_all(source)
    assert EventFormat().parse(payload, source.layout) == Event(1, "a", 1.0)


def test_the_dash_is_standard_input() -> None:
    assert isinstance(open_source("-"), StandardInput)
    assert isinstance(open_source("events.jsonl", follow=True), LineFile)


def test_servers_are_told_by_their_scheme() -> None:
    pytest.importorskip("redis")
    pytest.importorskip("confluent_kafka")
    redis = open_source("redis://me:secret@host:6379/clicks?field=event&db=2", group="g")
    assert vars(redis) | {
        "_url": "redis://me:secret@host:6379/2",
        "_stream": "clicks",
        "_field": "event",
        "_group": "g",
    } == vars(redis)
    kafka = open_source("kafka://a:9092,b:9092/clicks/3", columns=["user", "item", "label"])
    assert vars(kafka) | {
        "_servers": "a:9092,b:9092",
        "_topic": "clicks",
        "_wanted_partition": 3,
        "layout": CsvLayout(("user", "item", "label")),
    } == vars(kafka)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("events.avro", "no ending that tells its kind"),
        ("events.csv.gz", "pipe it into -"),
        ("s3://bucket/events.csv", "begins with s3://"),
        ("redis://host:6379", "no address of a Redis stream"),
        ("redis://host:6379/clicks?fild=a", "no address of a Redis stream"),
        ("kafka://host:9092/", "no address of a Kafka topic"),
        ("kafka:///clicks", "no address of a Kafka topic"),
        ("kafka://host:9092/clicks/first", "no address of a Kafka topic"),
    ],
)
def test_what_is_no_address_is_an_error(address: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        open_source(address)


def test_parquet_is_not_followed() -> None:
    with pytest.raises(ArgumentError, match="does not grow"):
        open_source("events.parquet", follow=True)


@pytest.mark.parametrize(
    ("address", "package", "module"),
    [
        ("redis://host/clicks", "redis", "celrec.data.stream.redis_stream"),
        ("kafka://host/clicks", "confluent_kafka", "celrec.data.stream.kafka_topic"),
    ],
)
def test_a_missing_client_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, address: str, package: str, module: str
) -> None:
    import sys

    from celrec.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    extra = address.partition(":")[0]
    with pytest.raises(MissingExtraError, match=rf"pip install 'celrec\[{extra}\]'"):
        open_source(address)
