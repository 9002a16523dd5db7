"""A source of the entries of a Redis stream, read through a consumer group.

The checkpoint is the truth, not the group. Opening sets the group to the checkpoint's position, so
what was delivered after it, and perhaps is pending, is delivered again, first of all. Entries are
acknowledged once they are saved, for others to see.

Redis trims a stream without asking who has read it. But it counts the entries that were ever added,
and the position counts those that were read. Where the first entry left is after the position, and
fewer are left than were added since, some were lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

from celrec.data.stream.event import Payload, TextFields
from celrec.data.stream.source import Position, Record, Source
from celrec.errors import MissingExtraError, PositionError, SourceError

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError as error:
    raise MissingExtraError(
        "Redis streams need redis, which is not installed: pip install 'celrec[redis]'"
    ) from error

_ENTRIES = 1000  # delivered at once
_START = "0-0"


class RedisStream(Source):
    """Entries of a Redis stream (Redis 7 or newer).

    url : of the server, as redis-py takes it: redis://localhost:6379, rediss://, unix://
    stream : its key; made if it is missing
    field : the field of an entry that holds the event as JSON; None: the entry's own fields are
        the event's, and all are text
    group : the consumer group, made if it is missing. One learner, one group: `read` raises
        SourceError when somebody else reads through it.
    consumer : name within the group
    wait : seconds that `read` waits for entries
    """

    def __init__(
        self,
        url: str,
        stream: str,
        *,
        field: str | None = None,
        group: str = "celrec",
        consumer: str = "learner",
        wait: float = 0.1,
    ) -> None:
        self._url, self._stream, self._field = url, stream, field
        self._group, self._consumer, self._wait = group, consumer, wait
        self._client: Any = None

    def open(self, position: Position | None = None) -> None:
        self.close()
        last_id, num_read = _redis_position(position, self._stream)
        # No retries: a repeated XREADGROUP would go on after entries whose answer was lost.
        self._client = redis.Redis.from_url(
            self._url, protocol=2, retry=Retry(NoBackoff(), 0), health_check_interval=0
        )
        self._ready: deque[Record] = deque()
        with self._errors():
            if position is not None and not self._client.exists(self._stream):
                raise PositionError(
                    f"the stream {self._stream} is gone, but entries up to {last_id} were read "
                    "from it before; restore it, or start again without the checkpoint"
                )
            try:
                self._client.xgroup_create(self._stream, self._group, id=_START, mkstream=True)
            except redis.ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise
            about = self._client.xinfo_stream(self._stream)
            if "entries-added" not in about:
                raise SourceError(
                    f"the Redis at {self._url} is older than 7.0; wanted 7.0 or newer"
                )
            if position is None:
                num_read = about["entries-added"] - about["length"]
            self._last_id, self._num_read = last_id, num_read
            self._num_added = about["entries-added"]
            self._check_nothing_is_lost(about)
            self._acknowledge(last_id)
            self._client.xgroup_setid(
                self._stream, self._group, last_id, entries_read=self._num_read
            )

    def read(self, most: int) -> list[Record]:
        if not self._ready:
            with self._errors():
                if not self._deliver():
                    self._client.xread(
                        {self._stream: self._last_id},
                        count=1,
                        block=max(round(self._wait * 1000), 1),
                    )
                    self._deliver()
        records = list(islice(self._ready, most))
        for _ in records:
            self._ready.popleft()
        return records

    def saved(self, position: Position) -> None:
        with self._errors():
            self._acknowledge(_redis_position(position, self._stream)[0])

    def lag(self) -> int | None:
        with self._errors():
            self._num_added = self._client.xinfo_stream(self._stream)["entries-added"]
        return max(self._num_added - self._num_read, 0) + len(self._ready)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _deliver(self) -> bool:
        """Get the next entries ready; whether there were any.

        What is lost can only be seen in the same transaction.
        """
        with self._client.pipeline(transaction=True) as together:
            together.xinfo_stream(self._stream)
            together.xinfo_groups(self._stream)
            together.xreadgroup(self._group, self._consumer, {self._stream: ">"}, count=_ENTRIES)
            about, groups, delivered = together.execute()
        self._check_group_is_ours(groups)
        self._check_nothing_is_lost(about)
        entries = delivered[0][1] if delivered else []
        if len(entries) < _ENTRIES:
            # All is read now. The count was behind if entries were deleted by hand.
            self._num_read = about["entries-added"] - len(entries)
        for entry_id, fields in entries:
            self._num_read += 1
            self._last_id = entry_id.decode()
            position = {"id": self._last_id, "read": self._num_read}
            self._ready.append((self._payload(fields), position))
        return bool(entries)

    def _payload(self, fields: Mapping[bytes, bytes]) -> Payload:
        if self._field is not None:
            return fields.get(self._field.encode(), TextFields(fields))
        return TextFields(fields)

    def _check_group_is_ours(self, groups: list[Mapping[str, Any]]) -> None:
        name = self._group.encode()
        at = next((group["last-delivered-id"] for group in groups if group["name"] == name), None)
        if at != self._last_id.encode():
            raise SourceError(
                f"the consumer group {self._group} of the stream {self._stream} stands at {at!r}, "
                f"but {self._last_id} was read last: somebody else reads through it; give each "
                "learner a group of its own, and resume"
            )

    def _check_nothing_is_lost(self, about: Mapping[str, Any]) -> None:
        num_added, num_left = about["entries-added"], about["length"]
        first, newest = about["first-entry"], about["last-generated-id"]
        if _id_order(newest) < _id_order(self._last_id) or num_added < self._num_read:
            raise PositionError(
                f"the newest entry of the stream {self._stream} is {newest.decode()}, but "
                f"{self._last_id} was read before: the stream was made anew; start again without "
                "the checkpoint"
            )
        if first is not None and _id_order(first[0]) <= _id_order(self._last_id):
            return
        num_lost = num_added - self._num_read - num_left
        if num_lost > 0:
            begins = "is empty" if first is None else f"begins at {first[0].decode()}"
            raise PositionError(
                f"the stream {self._stream} {begins}, but {self._last_id} was read last: "
                f"{num_lost:,} entries after it were trimmed unread. Let the stream keep more "
                "(MAXLEN, MINID), and start again without the checkpoint"
            )

    def _acknowledge(self, until_id: str) -> None:
        """Acknowledge all entries up to an id, whoever they were delivered to."""
        while True:
            pending = self._client.xpending_range(
                self._stream, self._group, "-", until_id, count=_ENTRIES
            )
            if not pending:
                return
            self._client.xack(
                self._stream, self._group, *[entry["message_id"] for entry in pending]
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what redis-py raises into a SourceError."""
        try:
            yield
        except redis.RedisError as error:
            raise SourceError(
                f"the stream {self._stream} at {self._url} cannot be read: {error}; is the server "
                "up, and the key a stream? Resume from the checkpoint"
            ) from error


def _redis_position(position: Position | None, stream: str) -> tuple[str, int]:
    match position:
        case None:
            return _START, 0
        case {"id": str(last_id), "read": int(num_read)}:
            return last_id, num_read
    raise PositionError(
        f"position is {position!r}; wanted one that a Redis stream gave. Does the checkpoint "
        f"belong to another source than the stream {stream}?"
    )


def _id_order(entry_id: str | bytes) -> tuple[int, int]:
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    milliseconds, _, sequence = text.partition("-")
    return int(milliseconds), int(sequence or 0)
