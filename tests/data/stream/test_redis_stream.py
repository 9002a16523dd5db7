"""Redis streams, on a real server."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from celrec.data.stream.addresses import open_source
from celrec.data.stream.event import Event, EventFormat, TextFields
from celrec.errors import PositionError, SourceError
from tests.data.stream.making import json_line, read_some

STREAM = "clicks"


def add(client: Any, *numbers: int) -> None:
    for number in numbers:
        client.xadd(STREAM, {"user": number, "item": "a", "label": 1}, id=f"{number}-0")


def source_at(url: str, address: str = STREAM, **options: Any) -> Any:
    return open_source(f"{url}/{address}", wait=0.01, **options)


def numbers(records: list[Any]) -> list[int]:
    return [int(position["id"].partition("-")[0]) for _, position in records]


def pending(client: Any) -> list[int]:
    found = client.xpending_range(STREAM, "celrec", "-", "+", 1000)
    return [int(entry["message_id"].partition(b"-")[0]) for entry in found]


def test_entries_come_in_order_and_then_nothing_until_more_arrive(
    redis_url: str, redis_client: Any
) -> None:
    add(redis_client, *range(1, 2501))
    with source_at(redis_url) as source:
        source.open()
        assert numbers(read_some(source, 2500)) == list(range(1, 2501))
        assert source.read(10) == []
        assert source.lag() == 0
        add(redis_client, 2501)
        assert source.lag() == 1
        assert numbers(read_some(source, 1)) == [2501]
        assert not source.is_finished


def test_a_stream_may_begin_after_its_reader(redis_url: str, redis_client: Any) -> None:
    with source_at(redis_url) as source:
        source.open()
        assert source.read(10) == []
        later = threading.Timer(0.05, add, (redis_client, 1))
        later.start()
        assert numbers(read_some(source, 1)) == [1]
        later.join()


def test_fields_are_text_and_one_field_may_hold_json(redis_url: str, redis_client: Any) -> None:
    redis_client.xadd(STREAM, {"user": 7, "item": "007", "label": "1"})
    redis_client.xadd(STREAM, {"event": json_line(3)})
    with source_at(redis_url) as source:
        source.open()
        first, second = (payload for payload, _ in read_some(source, 2))
    assert EventFormat().parse(first) == Event(7, "007", 1.0)
    with source_at(redis_url, f"{STREAM}?field=event") as source:
        source.open()
        first, second = (payload for payload, _ in read_some(source, 2))
    assert isinstance(first, TextFields)  # has no such field: let the format say so
    assert EventFormat().parse(second) == Event(3, "i3", 1.0)


def test_entries_are_acknowledged_when_they_are_saved(redis_url: str, redis_client: Any) -> None:
    add(redis_client, *range(1, 11))
    with source_at(redis_url) as source:
        source.open()
        records = read_some(source, 10)
        assert pending(redis_client) == list(range(1, 11))
        source.saved(records[3][1])
        assert pending(redis_client) == [5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("was_acknowledged", [True, False])
def test_pending_entries_after_the_checkpoint_come_again(
    redis_url: str, redis_client: Any, was_acknowledged: bool
) -> None:
    """Whether the kill came before or after `saved`."""
    add(redis_client, *range(1, 11))
    with source_at(redis_url) as source:
        source.open()
        position = read_some(source, 8)[3][1]
        if was_acknowledged:
            source.saved(position)
    add(redis_client, 11, 12)
    with source_at(redis_url) as source:
        source.open(position)
        assert pending(redis_client) == [5, 6, 7, 8, 9, 10]
        records = read_some(source, 8)
        assert numbers(records) == list(range(5, 13))
        assert source.read(1) == []
        source.saved(records[-1][1])
        assert pending(redis_client) == []


def test_the_checkpoint_is_the_truth_even_if_somebody_acknowledged_more(
    redis_url: str, redis_client: Any
) -> None:
    add(redis_client, *range(1, 11))
    with source_at(redis_url) as source:
        source.open()
        records = read_some(source, 10)
        source.saved(records[-1][1])
    with source_at(redis_url) as source:
        source.open(records[3][1])
        assert numbers(read_some(source, 6)) == [5, 6, 7, 8, 9, 10]
    redis_client.xgroup_destroy(STREAM, "celrec")
    with source_at(redis_url) as source:
        source.open(records[3][1])
        assert numbers(read_some(source, 6)) == [5, 6, 7, 8, 9, 10]
    with source_at(redis_url) as source:
        source.open()  # from the start
        assert read_some(source, 10) == records


# --- what was trimmed ----------------------------------------------------------------------------


def trim(client: Any, first: int) -> None:
    client.xtrim(STREAM, minid=f"{first}-0", approximate=False)


@pytest.mark.parametrize("first", range(1, 12))
def test_entries_trimmed_after_the_position_are_an_error_and_before_it_are_not(
    redis_url: str, redis_client: Any, first: int
) -> None:
    add(redis_client, *range(1, 11))
    with source_at(redis_url) as source:
        source.open()
        position = read_some(source, 10)[3][1]
    trim(redis_client, first)
    with source_at(redis_url) as source:
        if first <= 5:
            source.open(position)
            assert numbers(read_some(source, 6)) == [5, 6, 7, 8, 9, 10]
        else:
            with pytest.raises(PositionError, match=f"{first - 5} entries after it were trimmed"):
                source.open(position)


def test_entries_trimmed_while_they_wait_are_an_error(redis_url: str, redis_client: Any) -> None:
    add(redis_client, 1, 2, 3)
    with source_at(redis_url) as source:
        source.open()
        read_some(source, 3)
        add(redis_client, 4, 5)
        trim(redis_client, 5)
        with pytest.raises(PositionError, match="begins at 5-0, but 3-0 was read last: 1 entries"):
            read_some(source, 1)


def test_a_stream_trimmed_before_its_first_reader_is_read_from_its_start(
    redis_url: str, redis_client: Any
) -> None:
    add(redis_client, *range(1, 11))
    redis_client.xdel(STREAM, "8-0")
    trim(redis_client, 5)
    with source_at(redis_url) as source:
        source.open()
        records = read_some(source, 5)
        assert numbers(records) == [5, 6, 7, 9, 10]
    trim(redis_client, 100)
    add(redis_client, 101)
    with source_at(redis_url) as source:
        source.open(records[-1][1])
        assert numbers(read_some(source, 1)) == [101]


def test_an_entry_deleted_by_hand_stops_nobody_who_read_on(
    redis_url: str, redis_client: Any
) -> None:
    add(redis_client, 1, 2, 3)
    with source_at(redis_url) as source:
        source.open()
        read_some(source, 3)
        add(redis_client, 4, 5)
        redis_client.xdel(STREAM, "4-0")
        (record,) = read_some(source, 1)
        trim(redis_client, 100)
        add(redis_client, 6)
        assert numbers(read_some(source, 1)) == [6]
    with source_at(redis_url) as source:
        source.open(record[1])
        assert numbers(read_some(source, 1)) == [6]


def test_a_stream_made_anew_is_an_error(redis_url: str, redis_client: Any) -> None:
    add(redis_client, 1, 2, 3)
    with source_at(redis_url) as source:
        source.open()
        position = read_some(source, 3)[-1][1]
    redis_client.delete(STREAM)
    with source_at(redis_url) as source, pytest.raises(PositionError, match="is gone"):
        source.open(position)
    add(redis_client, 2)
    with source_at(redis_url) as source, pytest.raises(PositionError, match="made anew"):
        source.open(position)


# --- trouble -------------------------------------------------------------------------------------


def test_a_second_reader_of_the_group_is_noticed(redis_url: str, redis_client: Any) -> None:
    add(redis_client, *range(1, 11))
    with source_at(redis_url) as one, source_at(redis_url) as other:
        one.open()
        read_some(one, 10)
        other.open()
        read_some(other, 1)
        add(redis_client, 11)
        assert numbers(read_some(other, 10)) == list(range(2, 12))
        with pytest.raises(SourceError, match="somebody else reads through it"):
            read_some(one, 1)


def test_a_server_that_is_away_and_a_key_of_another_kind_are_errors(
    redis_url: str, redis_client: Any
) -> None:
    with pytest.raises(SourceError, match="is the server up"):
        source_at("redis://127.0.0.1:1").open()
    redis_client.set(STREAM, "text")
    with source_at(redis_url) as source, pytest.raises(SourceError, match="the key a stream"):
        source.open()


def test_a_position_of_another_source_is_an_error(redis_url: str, redis_client: Any) -> None:
    with source_at(redis_url) as source, pytest.raises(PositionError, match="another source"):
        source.open({"offset": 3})


def test_a_lost_answer_is_an_error_and_the_checkpoint_goes_on(
    redis_url: str, redis_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has delivered the entries, and will not by itself do so again."""
    import redis

    add(redis_client, 1, 2, 3)
    with source_at(redis_url) as source:
        source.open()
        position = read_some(source, 3)[0][1]
        add(redis_client, 4)

        def break_down(*_: Any, **__: Any) -> None:
            monkeypatch.undo()
            raise redis.ConnectionError("the answer was lost")

        monkeypatch.setattr(redis.Connection, "read_response", break_down)
        with pytest.raises(SourceError, match=r"the answer was lost; .* Resume from"):
            source.read(1)
        source.open(position)
        assert numbers(read_some(source, 3)) == [2, 3, 4]


def test_a_connection_that_was_idle_too_long_is_made_again(
    redis_url: str, redis_client: Any
) -> None:
    add(redis_client, 1)
    with source_at(redis_url) as source:
        source.open()
        read_some(source, 1)
        redis_client.client_kill_filter(_type="normal", skipme=True)
        add(redis_client, 2)
        assert numbers(read_some(source, 1)) == [2]
