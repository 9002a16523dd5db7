"""Kafka, on the mock cluster of librdkafka."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from celrec.data.stream.addresses import open_source
from celrec.data.stream.event import Event, EventFormat
from celrec.errors import PositionError, SourceError
from tests.data.stream.making import json_line, read_some

Kafka = tuple[str, Callable[[str, list[bytes]], None]]
LINES = [json_line(number) for number in range(300)]


def source_at(kafka: Kafka, topic: str, **options: Any) -> Any:
    return open_source(f"kafka://{kafka[0]}/{topic}/0", wait=0.05, **options)


def test_a_partition_resumes_after_every_message(kafka: Kafka) -> None:
    kafka[1]("resumed", LINES)
    with source_at(kafka, "resumed") as source:
        source.open()
        records = read_some(source, 300)
        assert source.read(5) == []
        assert not source.is_finished
    assert [payload for payload, _ in records] == LINES
    assert [position["offset"] for _, position in records] == list(range(1, 301))
    for count in (0, 150, 298):
        with source_at(kafka, "resumed") as source:
            source.open(records[count][1])
            assert read_some(source, 299 - count) == records[count + 1 :]
    with source_at(kafka, "resumed") as source:
        source.open(records[-1][1])
        assert source.read(5) == []
        kafka[1]("resumed", [b"more"])
        assert [payload for payload, _ in read_some(source, 1)] == [b"more"]


def committed_in(source: Any, topic: str) -> int:
    from confluent_kafka import TopicPartition

    place = TopicPartition(topic, 0)
    return int(source._consumer.committed([place], timeout=10)[0].offset)


def test_offsets_are_committed_when_saved_and_never_read_back(kafka: Kafka) -> None:
    kafka[1]("saved", LINES[:10])
    with source_at(kafka, "saved") as source:
        source.open()
        records = read_some(source, 10)
        source.saved(records[3][1])
        give_up = time.monotonic() + 10
        while committed_in(source, "saved") != 4:
            assert time.monotonic() < give_up, "the offset was never committed"
    with source_at(kafka, "saved") as source:
        source.open()
        assert read_some(source, 10) == records


def test_lag_counts_the_messages_that_wait(kafka: Kafka) -> None:
    kafka[1]("lag", LINES[:10])
    with source_at(kafka, "lag") as source:
        source.open()
        read_some(source, 3)
        assert source.lag() == 7


def test_values_may_be_csv_or_nothing(kafka: Kafka) -> None:
    kafka[1]("csv", [b"1,a,1", None])  # type: ignore[list-item]
    with source_at(kafka, "csv", columns=["user", "item", "label"]) as source:
        source.open()
        first, second = (payload for payload, _ in read_some(source, 2))
        assert EventFormat().parse(first, source.layout) == Event(1, "a", 1.0)
        assert second is None


def fill_and_trim(kafka: Kafka, topic: str) -> None:
    """Ten messages, then so much that the mock, which keeps 5 MiB, lets go of the first of them."""
    kafka[1](topic, LINES[:10])
    for _ in range(9):
        kafka[1](topic, [b"x" * 700_000])


def test_an_offset_that_is_not_there_is_an_error(kafka: Kafka) -> None:
    fill_and_trim(kafka, "trimmed")
    with source_at(kafka, "trimmed") as source:
        source.open()
        first = read_some(source, 1)[0][1]["offset"] - 1
        assert 0 < first < 19
        with pytest.raises(PositionError, match=f"begins at offset {first}, but {first - 1} comes"):
            source.open({"partition": 0, "offset": first - 1})
        source.open({"partition": 0, "offset": first})
        assert read_some(source, 1)[0][1] == {"partition": 0, "offset": first + 1}
        with pytest.raises(PositionError, match="ends at offset 19, but messages up to 20"):
            source.open({"partition": 0, "offset": 20})
        with pytest.raises(PositionError, match="another source"):
            source.open({"partition": 1, "offset": 3})


def test_an_offset_that_goes_while_it_waits_is_an_error(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    from confluent_kafka import Consumer

    class Late(Consumer):
        """Answers as the broker did before it trimmed."""

        def get_watermark_offsets(self, *_: Any, **__: Any) -> tuple[int, int]:
            return 0, 10

    fill_and_trim(kafka, "gone")
    monkeypatch.setattr("celrec.data.stream.kafka_topic.Consumer", Late)
    with source_at(kafka, "gone") as source:
        source.open({"partition": 0, "offset": 3})
        with pytest.raises(PositionError, match="offset 3 of partition 0 of gone is no longer"):
            read_some(source, 1)


def test_a_topic_of_several_partitions_needs_one_chosen(kafka: Kafka) -> None:
    kafka[1]("several", LINES[:1])
    with (
        open_source(f"kafka://{kafka[0]}/several") as source,
        pytest.raises(SourceError, match=r"the partitions 0, 1, 2, 3, and none is chosen"),
    ):
        source.open()
    with (
        open_source(f"kafka://{kafka[0]}/several/9") as source,
        pytest.raises(SourceError, match="9 is not one of them"),
    ):
        source.open()


def test_a_broker_that_is_away_is_an_error() -> None:
    kafka_topic = pytest.importorskip("celrec.data.stream.kafka_topic")
    source = kafka_topic.KafkaTopic("127.0.0.1:1", "clicks", patience=0.2)
    with source, pytest.raises(SourceError, match="is the broker up"):
        source.open()
