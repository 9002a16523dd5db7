"""What is an event, and what is poison."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celrec.data.interactions import Interactions
from celrec.data.labels import binarize
from celrec.data.stream.event import CsvLayout, Event, EventFormat, LongRecord, TextFields
from celrec.data.vocabulary import Vocabulary
from celrec.errors import ArgumentError, BadEventError, DataError

FORMAT = EventFormat(timestamp="time")
LAYOUT = CsvLayout(("user", "item", "label", "time"))

GOOD = '{"user": 1, "item": 2, "label": 1, "time": 3}'


def json_with(**changes: str) -> bytes:
    """The good event with some values written differently."""
    values = {"user": "1", "item": "2", "label": "1", "time": "3"} | changes
    return ("{" + ", ".join(f'"{name}": {text}' for name, text in values.items()) + "}").encode()


POISON_IN_JSON = {
    "not JSON": [b"{", b"", b"user,item", b"{'user': 1}", GOOD.encode() + b"}", b"[" * 100_000],
    "not an object": [b"[1, 2]", b"7", b"null", b'"text"'],
    "not UTF-8": [b"\xff\xfe{}", GOOD.encode("utf-16"), b'{"user": "\xe9"}'],
    "record too long": [b" " * (1 << 20) + GOOD.encode()],
    "user is missing": [b"{}", b'{"item": 2, "label": 1, "time": 3}'],
    "item is missing": [b'{"user": 2, "label": 1, "time": 3}'],
    "label is missing": [b'{"user": 2, "item": 1, "time": 3}'],
    "timestamp is missing": [b'{"user": 2, "item": 1, "label": 0}'],
    "user is null": [json_with(user="null")],
    "item is a boolean": [json_with(item="true"), json_with(item="false")],
    "user is not a whole number": [json_with(user="1.5"), json_with(user="NaN")],
    "item is not a whole number": [json_with(item="-Infinity"), json_with(item="1e400")],
    "item is neither integer nor text": [json_with(item="[1]"), json_with(item='{"a": 1}')],
    "user is empty": [json_with(user='""'), json_with(user='" "')],
    "user is beyond 64 bits": [
        json_with(user=str(2**63)),
        json_with(user=str(-(2**63) - 1)),
        json_with(user="1e300"),
    ],
    "item is not Unicode": [json_with(item=r'"\ud800"')],
    "label is null": [json_with(label="null")],
    "label is not a number": [json_with(label='"1"'), json_with(label="[]")],
    "label is NaN or infinite": [
        json_with(label="NaN"),
        json_with(label="1e39"),
        json_with(label="1" * 400),
    ],
    "label is out of range": [json_with(label="2"), json_with(label="0.5"), json_with(label="-1")],
    "timestamp is null": [json_with(time="null")],
    "timestamp is not a number": [json_with(time='"soon"'), json_with(time="true")],
    "timestamp is NaN or infinite": [json_with(time="NaN"), json_with(time="Infinity")],
}
POISON_IN_CSV = {
    "wrong number of fields": [b"1,2,1", b"1,2,1,3,4", b""],
    "not CSV": [b'1,"2,1,3', b'1,"2"x,1,3'],
    "not UTF-8": [b"\xff,2,1,3"],
    "user is empty": [b",2,1,3", b"  ,2,1,3"],
    "label is empty": [b"1,2,,3"],
    "label is not a number": [b"1,2,yes,3", b"1,2,1_0,3"],
    "label is NaN or infinite": [b"1,2,nan,3", b"1,2,inf,3"],
    "label is out of range": [b"1,2,5,3"],
    "timestamp is empty": [b"1,2,1,"],
    "timestamp is not a number": [b"1,2,1,soon"],
    "timestamp is NaN or infinite": [b"1,2,1,nan"],
}


@pytest.mark.parametrize(
    ("reason", "line"), [(reason, line) for reason, many in POISON_IN_JSON.items() for line in many]
)
def test_poison_in_json_has_its_reason(reason: str, line: bytes) -> None:
    with pytest.raises(BadEventError) as caught:
        FORMAT.parse(line)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("reason", "line"), [(reason, line) for reason, many in POISON_IN_CSV.items() for line in many]
)
def test_poison_in_csv_has_its_reason(reason: str, line: bytes) -> None:
    with pytest.raises(BadEventError) as caught:
        FORMAT.parse(line, LAYOUT)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("reason", "payload"),
    [
        ("not an object", None),
        ("not an object", [1, 2, 1, 3]),
        ("record too long", LongRecord(b"{", 10**9)),
        ("record too long", TextFields({b"user": b"1" * (1 << 20)})),
        ("user is null", Event(None, 2, 1.0, 3.0)),  # type: ignore[arg-type]
        ("label is NaN or infinite", Event(1, 2, math.nan, 3.0)),
        ("item is a boolean", {"user": 1, "item": np.True_, "label": 1, "time": 3}),
        ("user is beyond 64 bits", {"user": 10**5000, "item": 1, "label": 1, "time": 3}),
        ("label is not a number", {"user": 1, "item": 1, "label": [10**5000], "time": 3}),
        ("user is missing", TextFields({b"item": b"2"})),
        ("not UTF-8", TextFields({b"user": b"\xff", b"item": b"2", b"label": b"1", b"time": b"3"})),
    ],
)
def test_poison_of_other_kinds_has_its_reason(reason: str, payload: Any) -> None:
    with pytest.raises(BadEventError) as caught:
        FORMAT.parse(payload)
    assert caught.value.reason == reason


def test_a_reason_comes_with_what_was_found() -> None:
    with pytest.raises(BadEventError, match=r"^label is out of range: found 7\.0; wanted 0 or 1$"):
        FORMAT.parse(json_with(label="7"))


IDS = st.integers(-(2**63), 2**63 - 1) | st.text(
    st.characters(codec="utf-8", exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1
).map(str.strip).filter(lambda text: text and not text.lstrip("-").isdecimal())


@given(IDS, IDS, st.booleans(), st.floats(0, 2e9))
def test_an_event_is_the_same_in_every_kind_of_record(
    user: int | str, item: int | str, label: bool, time: float
) -> None:
    values = {"user": user, "item": item, "label": int(label), "time": time}
    quoted = ['"' + str(value).replace('"', '""') + '"' for value in values.values()]
    fields = {name.encode(): str(value).encode() for name, value in values.items()}
    wanted = Event(user, item, float(label), time)
    assert FORMAT.parse(values) == wanted
    assert FORMAT.parse(wanted) == wanted
    assert FORMAT.parse(json.dumps(values).encode()) == wanted
    assert FORMAT.parse(json.dumps(values, indent=2) + "\n") == wanted
    assert FORMAT.parse(",".join(quoted).encode(), LAYOUT) == wanted
    assert FORMAT.parse(TextFields(fields)) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("7", 7),
        ("-7", -7),
        ("0", 0),
        (" 7 ", 7),
        ("007", "007"),
        ("-0", "-0"),
        ("+7", "+7"),
        ("1_0", "1_0"),
        ("7.0", "7.0"),
        ("٣", "٣"),
        (str(2**63 - 1), 2**63 - 1),
        (str(-(2**63)), -(2**63)),
        (str(2**63), str(2**63)),
        ("-", "-"),
    ],
)
def test_text_without_a_type_is_an_integer_in_its_plain_spelling_only(
    text: str, wanted: int | str
) -> None:
    event = FORMAT.parse(f"{text},1,1,1".encode(), LAYOUT)
    assert event is not None
    assert event.user == wanted
    assert type(event.user) is type(wanted)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(7.0, 7), (np.int32(7), 7), (np.float64(7), 7), (np.uint64(7), 7), ("7", "7")],
)
def test_ids_that_have_types_keep_them(value: Any, wanted: int | str) -> None:
    event = EventFormat(label=None).parse({"user": value, "item": 1})
    assert event == Event(wanted, 1, 1.0)
    assert type(event.user) is type(wanted)


@pytest.mark.parametrize(
    "time",
    [
        1577836800,
        1577836800.0,
        "2020-01-01",
        "2020-01-01T00:00:00Z",
        "2020-01-01 01:00:00+01:00",
        date(2020, 1, 1),
        datetime(2020, 1, 1),
        datetime(2020, 1, 1, tzinfo=UTC),
        Decimal(1577836800),
    ],
)
def test_times_are_seconds_or_dates(time: Any) -> None:
    event = FORMAT.parse({"user": 1, "item": 2, "label": True, "time": time})
    assert event == Event(1, 2, 1.0, 1577836800.0)


@given(
    st.lists(st.floats(0, 5, width=32) | st.sampled_from([3.3, 3.0, 0.1, 4]), min_size=2),
    st.sampled_from([3.3, 3.0, 0.1]),
    st.sampled_from([None, 3.3, 2.0]),
)
def test_ratings_become_labels_as_in_files(
    ratings: list[float], positive_from: float, drop: float | None
) -> None:
    names = Vocabulary.from_values("a")
    zeros = [0] * len(ratings)
    data = Interactions(user=zeros, item=zeros, label=ratings, users=names, items=names)
    format = EventFormat(positive_from=positive_from, drop_rating=drop)
    events = [format.parse(Event(1, 2, rating)) for rating in ratings]
    found = [event.label for event in events if event is not None]
    try:
        wanted = binarize(data, positive_from, drop).label.tolist()
    except DataError:  # one class, or none
        assert len(set(found)) <= 1
        return
    assert found == wanted


def test_ratings_outside_the_bounds_are_poison_and_dropped_ones_are_not() -> None:
    stars = EventFormat(kind="rating", lowest=1, highest=5, drop_rating=3)
    assert stars.parse(Event(1, 2, 4.5)) == Event(1, 2, 4.5)
    assert stars.parse(Event(1, 2, 3)) is None
    with pytest.raises(BadEventError, match=r"label is out of range: found 5\.5; wanted 1 to 5"):
        stars.parse(Event(1, 2, 5.5))


def test_a_bad_event_is_bad_even_if_its_rating_would_be_dropped() -> None:
    with pytest.raises(BadEventError, match="user is null"):
        EventFormat(drop_rating=3, positive_from=4).parse({"user": None, "item": 1, "label": 3})


def test_separators_of_several_characters_cut_lines() -> None:
    layout = CsvLayout(("user", "item", "label", "time"), "::")
    assert FORMAT.parse(b'1::"a::1::3\r', layout) == Event(1, '"a', 1.0, 3.0)


def test_a_layout_without_a_field_is_an_error_at_once() -> None:
    with pytest.raises(DataError, match="no column 'time' for the timestamp; did you mean 'times'"):
        FORMAT.parser(CsvLayout(("user", "item", "label", "times")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "rating", "positive_from": 4}, "positive_from makes labels of 0 and 1"),
        ({"kind": "stars"}, "kind is 'stars'"),
        ({"positive_from": math.nan}, "positive_from is nan"),
        ({"lowest": 2, "highest": 1}, "lowest is 2, above highest, 1"),
        ({"longest": 0}, "longest is 0"),
    ],
)
def test_a_format_checks_itself(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        EventFormat(**options)


@given(st.binary(max_size=60) | st.text().map(lambda text: text.encode(errors="ignore")))
def test_any_line_is_an_event_or_poison(line: bytes) -> None:
    for layout in (None, LAYOUT):
        with suppress(BadEventError):
            assert isinstance(FORMAT.parse(line, layout), Event)
