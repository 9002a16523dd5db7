"""Addresses: from a line of text to a source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

from celrec.data.stream.event import CsvLayout, EventFormat
from celrec.data.stream.lines import LineFile, StandardInput
from celrec.data.stream.parquet import ParquetSource
from celrec.data.stream.source import Source
from celrec.errors import ArgumentError

_SEPARATORS: dict[str, str | None] = {
    ".csv": ",",
    ".tsv": "\t",
    ".jsonl": None,
    ".ndjson": None,
    ".json": None,
}
_PARQUET = (".parquet", ".pq")


def open_source(
    address: str,
    *,
    format: EventFormat | None = None,
    follow: bool = False,
    separator: str | None = None,
    columns: Sequence[str] | None = None,
    group: str = "celrec",
    wait: float = 0.1,
) -> Source:
    """Make the source that an address names; it is ready to be opened.

    address : a file: .csv, .tsv, .jsonl (.ndjson, .json: an object a line), .parquet (.pq); with
        `separator`, any name. `-` is standard input: JSON lines unless `separator` is given.
        redis://host:port/stream (rediss:// for TLS) reads the entries' own fields; with
        `?field=name`, JSON in that field; with `?db=1`, another database. kafka://host:port/topic,
        or /topic/partition where it has several, reads JSON, or CSV with `columns`; several brokers
        are separated by commas.
    format : what will be read: only these columns of a Parquet file, lines up to this length
    follow : wait for more at the end of a file of lines
    separator : of CSV fields, overruling the name
    columns : names of CSV fields where no header gives them
    group : consumer group of Redis and Kafka
    wait : seconds that a read waits for records
    raises : ArgumentError for an address that is none of these; MissingExtraError where the client
        is not installed

    >>> open_source("events.avro")
    Traceback (most recent call last):
    ...
    celrec.errors.ArgumentError: events.avro has no ending that tells its kind; wanted one of .csv,
    .tsv, .jsonl, .ndjson, .json, .parquet, .pq, or give separator=; or -, redis://, kafka://
    """
    longest = (format or EventFormat()).longest
    scheme = address.partition("://")[0] if "://" in address else ""
    if scheme in ("redis", "rediss"):
        return _redis_source(address, group, wait)
    if scheme == "kafka":
        layout = None if columns is None else CsvLayout(tuple(columns), separator or ",")
        return _kafka_source(address, layout, group, wait)
    if scheme:
        raise ArgumentError(
            f"{address} begins with {scheme}://; wanted redis://, rediss://, kafka://, a file, or -"
        )
    if address == "-":
        return StandardInput(separator=separator, columns=columns, wait=wait, longest=longest)
    path = Path(address)
    ending = path.suffix.lower()
    if separator is None:
        if ending in _PARQUET:
            if follow:
                raise ArgumentError(f"{address} is Parquet, which does not grow; leave follow out")
            return ParquetSource(
                path, columns=None if format is None else list(format.fields.values())
            )
        if ending not in _SEPARATORS:
            packed = ending in (".gz", ".zst", ".bz2", ".xz")
            hint = ". Unpack it, or pipe it into -" if packed else ""
            raise ArgumentError(
                f"{address} has no ending that tells its kind; wanted one of "
                f"{', '.join((*_SEPARATORS, *_PARQUET))}, or give separator=; or -, redis://, "
                f"kafka://{hint}"
            )
        separator = _SEPARATORS[ending]
    return LineFile(
        path, separator=separator, columns=columns, follow=follow, wait=wait, longest=longest
    )


def _redis_source(address: str, group: str, wait: float) -> Source:
    parts = urlsplit(address)
    stream = unquote(parts.path.lstrip("/"))
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if not stream or set(options) - {"field", "db"}:
        raise ArgumentError(
            f"{address} is no address of a Redis stream; wanted redis://host:port/stream, "
            "?field= and ?db= allowed"
        )
    from celrec.data.stream.redis_stream import RedisStream

    url = urlunsplit((parts.scheme, parts.netloc, f"/{options.get('db', '0')}", "", ""))
    return RedisStream(url, stream, field=options.get("field"), group=group, wait=wait)


def _kafka_source(address: str, layout: CsvLayout | None, group: str, wait: float) -> Source:
    parts = urlsplit(address)
    topic, _, partition = parts.path.strip("/").partition("/")
    if not parts.netloc or not topic or (partition and not partition.isdecimal()):
        raise ArgumentError(
            f"{address} is no address of a Kafka topic; wanted kafka://host:port/topic or "
            "kafka://host:port/topic/partition"
        )
    from celrec.data.stream.kafka_topic import KafkaTopic

    return KafkaTopic(
        parts.netloc,
        topic,
        partition=int(partition) if partition else None,
        layout=layout,
        group=group,
        wait=wait,
    )
