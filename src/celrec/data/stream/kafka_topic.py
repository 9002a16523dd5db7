"""A source of the messages of one partition of a Kafka topic.

The partition is assigned, not subscribed to, and sought to the checkpoint's offset. Offsets are
committed after they were saved, so that tools see the lag; they are never read back.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NoReturn

from celrec.data.stream.event import CsvLayout
from celrec.data.stream.source import Position, Record, Source
from celrec.errors import MissingExtraError, PositionError, SourceError

try:
    from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
except ImportError as error:
    raise MissingExtraError(
        "Kafka needs confluent-kafka, which is not installed: pip install 'celrec[kafka]'"
    ) from error


class KafkaTopic(Source):
    """Messages of one partition; the position is the offset of the next.

    servers : host:port, several separated by commas
    partition : None: the only one that the topic has
    layout : of CSV values; None: values are JSON
    group : under which offsets are committed
    wait : seconds that `read` waits for messages
    patience : seconds that `open` waits for the broker
    options : further settings of librdkafka (security.protocol, sasl.username, ...)
    """

    def __init__(
        self,
        servers: str,
        topic: str,
        *,
        partition: int | None = None,
        layout: CsvLayout | None = None,
        group: str = "celrec",
        wait: float = 0.1,
        patience: float = 10.0,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._servers, self._topic, self._wanted_partition = servers, topic, partition
        self._group, self._wait, self._patience = group, wait, patience
        self._options = options or {}
        self.layout = layout
        self._consumer: Consumer | None = None

    def open(self, position: Position | None = None) -> None:
        self.close()
        self._fatal: KafkaError | None = None
        consumer = Consumer(
            {
                "bootstrap.servers": self._servers,
                "group.id": self._group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",  # a trimmed offset is an error, not a jump
                "log_level": 3,
                "error_cb": self._note_error,
                **self._options,
            }
        )
        self._consumer = consumer
        try:
            self._partition = self._find_partition(consumer)
            place = TopicPartition(self._topic, self._partition)
            low, high = consumer.get_watermark_offsets(place, timeout=self._patience)
            self._next_offset = self._offset_of(position, low, high)
            consumer.assign([TopicPartition(self._topic, self._partition, self._next_offset)])
        except KafkaException as error:
            raise SourceError(
                f"the topic {self._topic} at {self._servers} cannot be read: {error}; is the "
                "broker up, and the topic there?"
            ) from error

    def _find_partition(self, consumer: Consumer) -> int:
        about = consumer.list_topics(self._topic, timeout=self._patience).topics[self._topic]
        if about.error is not None:
            raise KafkaException(about.error)
        found = sorted(about.partitions)
        wanted = self._wanted_partition
        if wanted is None and len(found) == 1:
            return int(found[0])
        if wanted is None or wanted not in found:
            chosen = "none is chosen" if wanted is None else f"{wanted} is not one of them"
            raise SourceError(
                f"the topic {self._topic} has the partitions {', '.join(map(str, found))}, and "
                f"{chosen}; a learner reads one: choose it with partition= "
                f"(kafka://host:port/{self._topic}/{found[0]})"
            )
        return wanted

    def _offset_of(self, position: Position | None, low: int, high: int) -> int:
        match position:
            case None:
                return low
            case {"partition": self._partition, "offset": int(offset)} if offset >= 0:
                if offset < low:
                    raise PositionError(
                        f"partition {self._partition} of {self._topic} begins at offset {low:,}, "
                        f"but {offset:,} comes next: {low - offset:,} messages were removed "
                        "unread. Let the topic keep more (retention.ms), and start again without "
                        "the checkpoint"
                    )
                if offset > high:
                    raise PositionError(
                        f"partition {self._partition} of {self._topic} ends at offset {high:,}, "
                        f"but messages up to {offset:,} were read before: the topic was made "
                        "anew; start again without the checkpoint"
                    )
                return offset
        raise PositionError(
            f"position is {position!r}; wanted one that partition {self._partition} of a Kafka "
            f"topic gave. Does the checkpoint belong to another source than {self._topic}?"
        )

    def read(self, most: int) -> list[Record]:
        assert self._consumer is not None, "read before open"
        if self._fatal is not None:
            self._raise(self._fatal)
        records: list[Record] = []
        for message in self._consumer.consume(min(most, 100_000), timeout=self._wait):
            error = message.error()
            if error is not None:
                self._fatal = error
                break
            offset = message.offset()
            assert offset is not None
            self._next_offset = offset + 1
            position = {"partition": self._partition, "offset": self._next_offset}
            records.append((message.value(), position))
        if self._fatal is not None and not records:
            self._raise(self._fatal)
        return records

    def _note_error(self, error: KafkaError) -> None:
        """Of a broker that is away: librdkafka goes on trying, unless the error is fatal."""
        if error.fatal():
            self._fatal = error

    def _raise(self, error: KafkaError) -> NoReturn:
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            raise PositionError(
                f"offset {self._next_offset:,} of partition {self._partition} of {self._topic} is "
                f"no longer there ({error}): messages were removed unread. Let the topic keep "
                "more (retention.ms), and start again without the checkpoint"
            )
        raise SourceError(
            f"the topic {self._topic} at {self._servers} cannot be read any longer: {error}; "
            "resume from the checkpoint"
        )

    def saved(self, position: Position) -> None:
        assert self._consumer is not None, "saved before open"
        place = TopicPartition(self._topic, self._partition, position["offset"])
        with suppress(KafkaException):  # nobody depends on it
            self._consumer.commit(offsets=[place], asynchronous=True)

    def lag(self) -> int | None:
        assert self._consumer is not None, "lag before open"
        place = TopicPartition(self._topic, self._partition)
        _, high = self._consumer.get_watermark_offsets(place, cached=True)
        return max(high - self._next_offset, 0) if high >= 0 else None

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
