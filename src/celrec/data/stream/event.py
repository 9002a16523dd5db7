"""Events, and how a record of a source becomes one.

A record is what a source hands over: a line of JSON or CSV, a mapping, the fields of a Redis entry.
`EventFormat` says which of its fields mean what. Whatever is no event raises BadEventError with a
reason; nothing is guessed.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

import numpy as np

from celrec.errors import (
    ArgumentError,
    BadEventError,
    DataError,
    check_count,
    check_number,
    nearest_name,
)

LONGEST = 1 << 20
"""Bytes of the longest record that is read, unless said otherwise."""

_LOWEST_ID, _HIGHEST_ID = -(2**63), 2**63 - 1
_LARGEST = float(np.finfo(np.float32).max)  # labels are float32


class Event(NamedTuple):
    """Something that happened between a user and an item.

    user, item : raw ids: integers of 64 bits, or text that is not empty
    label : finite
    timestamp : seconds, finite; None where the stream has no times
    """

    user: int | str
    item: int | str
    label: float
    timestamp: float | None = None


class TextFields(NamedTuple):
    """A record whose fields are text without types, as Redis keeps them."""

    fields: Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class LongRecord:
    """What is left of a record that was too long to keep.

    head : its first bytes
    num_bytes : its whole length, which is also its `len`
    """

    head: bytes
    num_bytes: int

    def __len__(self) -> int:
        return self.num_bytes


Payload = Event | Mapping[str, Any] | bytes | str | TextFields | LongRecord | None
"""What a record holds. Bytes (UTF-8) and text are JSON, or CSV where the source has a layout."""


@dataclass(frozen=True)
class CsvLayout:
    """How lines are cut into fields.

    columns : their names, in order
    separator : one or more characters. Quotes mean something with a comma or semicolon only, and a
        line break is the end of the record even between quotes.
    """

    columns: tuple[str, ...]
    separator: str = ","

    def __post_init__(self) -> None:
        if self.separator == "" or "\n" in self.separator:
            raise ArgumentError(f"separator is {self.separator!r}; wanted one or more characters")

    @classmethod
    def from_header(cls, line: bytes, separator: str, source: str) -> CsvLayout:
        """Read the names of the columns.

        source : how messages name the file
        raises : DataError for a line that is not UTF-8 or not CSV
        """
        try:
            columns = _fields_of_line(line.decode().rstrip("\r\n"), separator)
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(
                f"the first line of {source} names no columns: {error}; wanted their names in "
                f"UTF-8, separated by {separator!r}"
            ) from error
        return cls(tuple(column.strip() for column in columns), separator)


@dataclass(frozen=True, kw_only=True)
class EventFormat:
    """Which fields of a record mean what, and how labels are made.

    user, item : fields of raw ids: integers, text, or floats that are whole. In CSV and Redis,
        where nothing has a type, the plain spelling of an integer of 64 bits is one; the rest
        is text ("007" is).
    label : field of the label; None: every label is 1 (clicks, purchases)
    timestamp : field of the time: seconds, or a date (2020-01-31, 2020-01-31T12:00:00Z, UTC where
        it does not say); None: no times
    kind : "binary" for yes or no, "rating" for numbers
    positive_from : smallest rating that is a yes; None: labels are 0 and 1 as they come. Compared
        in float32, the type of labels, as `binarize` does.
    drop_rating : events with exactly this label are left out, and are not bad
    lowest, highest : ratings outside are bad events; None: no bound
    integers_only : whether an event whose user or item is text is bad
    longest : bytes of the longest record that is read

    >>> stars = EventFormat(label="stars", positive_from=4, drop_rating=3)
    >>> stars.parse(b'{"user": "ann", "item": 7, "stars": 5}')
    Event(user='ann', item=7, label=1.0, timestamp=None)
    >>> stars.parse(b'{"user": "ann", "item": 7, "stars": 3}')    # dropped
    >>> stars.parse(b'{"user": "ann", "item": null, "stars": 5}')
    Traceback (most recent call last):
    ...
    celrec.errors.BadEventError: item is null: found None
    """

    user: str = "user"
    item: str = "item"
    label: str | None = "label"
    timestamp: str | None = None
    kind: Literal["binary", "rating"] = "binary"
    positive_from: float | None = None
    drop_rating: float | None = None
    lowest: float | None = None
    highest: float | None = None
    integers_only: bool = False
    longest: int = LONGEST

    def __post_init__(self) -> None:
        check_count("longest", self.longest, at_least=1)
        for name in ("positive_from", "drop_rating", "lowest", "highest"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), at_least=-_LARGEST, at_most=_LARGEST)
        if self.kind not in ("binary", "rating"):
            raise ArgumentError(f"kind is {self.kind!r}; wanted 'binary' or 'rating'")
        if self.kind == "rating" and self.positive_from is not None:
            raise ArgumentError(
                "positive_from makes labels of 0 and 1, but the kind is rating; choose the kind "
                "binary, or leave it out"
            )
        if self.lowest is not None and self.highest is not None and self.lowest > self.highest:
            raise ArgumentError(f"lowest is {self.lowest:g}, above highest, {self.highest:g}")

    @property
    def fields(self) -> dict[str, str]:
        """The names of the fields that are read, by what they mean."""
        named = {
            "user": self.user,
            "item": self.item,
            "label": self.label,
            "timestamp": self.timestamp,
        }
        return {role: name for role, name in named.items() if name is not None}

    def check_columns(self, columns: Sequence[str], source: str) -> None:
        """Raise DataError if `columns`, those of `source`, lack a field; it names the nearest."""
        for role, name in self.fields.items():
            if name not in columns:
                raise DataError(
                    f"{source} has no column {name!r} for the {role}; "
                    f"{nearest_name(name, columns)}; name the column with {role}="
                )

    def parse(self, payload: Payload, layout: CsvLayout | None = None) -> Event | None:
        """Make an event of one record; None if its rating is dropped.

        layout : of CSV lines; None: bytes are JSON
        raises : BadEventError with the reason; DataError as `parser`
        """
        return self.parser(layout)(payload)

    def parser(self, layout: CsvLayout | None = None) -> Callable[[Payload], Event | None]:
        """`parse` for many records: choices are made once, here.

        raises : DataError if the layout lacks a column
        """
        make_label = self._label_maker()
        read_text = self._json_reader(make_label)
        if layout is not None:
            self.check_columns(layout.columns, "the CSV layout")
            read_text = self._csv_reader(layout, make_label)
        event_of_mapping = self._mapping_reader(make_label)
        longest = self.longest

        def parse(payload: Payload) -> Event | None:
            if isinstance(payload, bytes):
                if len(payload) > longest:
                    raise _too_long(len(payload), longest)
                try:
                    text = payload.decode()
                except UnicodeDecodeError as error:
                    raise BadEventError("not UTF-8", str(error)) from None
                return read_text(text)
            if isinstance(payload, str):
                return read_text(payload)
            if isinstance(payload, Event):
                return _typed_event(*payload, make_label)
            if type(payload) is dict or isinstance(payload, Mapping):
                return event_of_mapping(payload)
            if isinstance(payload, TextFields):
                return self._event_of_text_fields(payload.fields, make_label)
            if isinstance(payload, LongRecord):
                raise _too_long(payload.num_bytes, longest)
            found = "nothing" if payload is None else f"a {type(payload).__name__}"
            raise BadEventError("not an object", f"found {found}; wanted fields with names")

        return _integers_only(parse) if self.integers_only else parse

    # --- kinds of records ------------------------------------------------------------------------

    def _mapping_reader(
        self, make_label: _LabelMaker
    ) -> Callable[[Mapping[str, Any]], Event | None]:
        user_field, item_field, label_field, time_field = (
            self.user,
            self.item,
            self.label,
            self.timestamp,
        )

        def event_of(fields: Mapping[str, Any]) -> Event | None:
            try:
                user, item = fields[user_field], fields[item_field]
                label = 1.0 if label_field is None else fields[label_field]
                time = None if time_field is None else fields[time_field]
            except KeyError:
                raise self._missing(fields) from None
            if time_field is not None and time is None:
                raise BadEventError("timestamp is null", "found None")
            return _typed_event(user, item, label, time, make_label)

        return event_of

    def _json_reader(self, make_label: _LabelMaker) -> Callable[[str], Event | None]:
        decode = json.JSONDecoder().raw_decode
        event_of_mapping = self._mapping_reader(make_label)

        def read(text: str) -> Event | None:
            try:
                fields, end = decode(text)
                if end < len(text):  # white space, which `loads` takes, or an error
                    fields = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise BadEventError("not JSON", str(error)) from None
            if type(fields) is not dict:
                raise BadEventError(
                    "not an object", f"found a {type(fields).__name__}; wanted fields with names"
                )
            return event_of_mapping(fields)

        return read

    def _csv_reader(
        self, layout: CsvLayout, make_label: _LabelMaker
    ) -> Callable[[str], Event | None]:
        separator, num_columns = layout.separator, len(layout.columns)
        user_at, item_at = layout.columns.index(self.user), layout.columns.index(self.item)
        label_at = None if self.label is None else layout.columns.index(self.label)
        time_at = None if self.timestamp is None else layout.columns.index(self.timestamp)

        def read(text: str) -> Event | None:
            try:
                fields = _fields_of_line(text.rstrip("\r\n"), separator)
            except csv.Error as error:
                raise BadEventError("not CSV", str(error)) from None
            if len(fields) != num_columns:
                raise BadEventError(
                    "wrong number of fields", f"found {len(fields)}; wanted {num_columns}"
                )
            label = "1" if label_at is None else fields[label_at]
            time = None if time_at is None else fields[time_at]
            return _text_event(fields[user_at], fields[item_at], label, time, make_label)

        return read

    def _event_of_text_fields(
        self, fields: Mapping[bytes, bytes], make_label: _LabelMaker
    ) -> Event | None:
        num_bytes = sum(len(name) + len(value) for name, value in fields.items())
        if num_bytes > self.longest:
            raise _too_long(num_bytes, self.longest)
        text: dict[str, str] = {}
        try:
            for role, name in self.fields.items():
                text[role] = fields[name.encode()].decode()
        except KeyError:
            raise self._missing({name.decode(errors="replace"): 0 for name in fields}) from None
        except UnicodeDecodeError as error:
            raise BadEventError("not UTF-8", str(error)) from None
        return _text_event(
            text["user"], text["item"], text.get("label", "1"), text.get("timestamp"), make_label
        )

    def _missing(self, fields: Mapping[str, Any]) -> BadEventError:
        role, name = next((r, n) for r, n in self.fields.items() if n not in fields)
        return BadEventError(f"{role} is missing", f"found no field {name!r}")

    # --- labels ----------------------------------------------------------------------------------

    def _label_maker(self) -> _LabelMaker:
        lowest = -math.inf if self.lowest is None else self.lowest
        highest = math.inf if self.highest is None else self.highest
        dropped = None if self.drop_rating is None else np.float32(self.drop_rating)
        positive_from = None if self.positive_from is None else np.float32(self.positive_from)
        is_yes_or_no = self.kind == "binary" and positive_from is None

        def make(label: float) -> float | None:
            if not -_LARGEST <= label <= _LARGEST:
                raise BadEventError("label is NaN or infinite", f"found {label!r}")
            if not lowest <= label <= highest:
                raise BadEventError(
                    "label is out of range", f"found {label!r}; wanted {lowest:g} to {highest:g}"
                )
            if dropped is not None and np.float32(label) == dropped:
                return None
            if positive_from is not None:
                return 1.0 if np.float32(label) >= positive_from else 0.0
            if is_yes_or_no and label != 0 and label != 1:
                raise BadEventError("label is out of range", f"found {label!r}; wanted 0 or 1")
            return label

        # ratings have few values, and float32 scalars are slow
        return make if is_yes_or_no and dropped is None else lru_cache(maxsize=1024)(make)


_LabelMaker = Callable[[float], float | None]


def _integers_only(parse: Callable[[Payload], Event | None]) -> Callable[[Payload], Event | None]:
    def parse_integers(payload: Payload) -> Event | None:
        event = parse(payload)
        if event is not None:
            for role, value in (("user", event.user), ("item", event.item)):
                if type(value) is not int:
                    raise BadEventError(
                        f"{role} is text", f"found {_shortened(value)}; wanted integers"
                    )
        return event

    return parse_integers


def _too_long(num_bytes: int, longest: int) -> BadEventError:
    return BadEventError(
        "record too long", f"found {num_bytes:,} bytes; wanted at most {longest:,}"
    )


def _fields_of_line(text: str, separator: str) -> list[str]:
    if '"' in text and separator in (",", ";"):
        return next(csv.reader([text], delimiter=separator, strict=True), [])
    return text.split(separator)


# --- values that have types ----------------------------------------------------------------------


def _typed_event(
    user: object, item: object, label: object, time: object, make_label: _LabelMaker
) -> Event | None:
    # Almost every id is a plain integer: a check of the exact type, and no call.
    user_id = user if type(user) is int and _LOWEST_ID <= user <= _HIGHEST_ID else _id("user", user)
    item_id = item if type(item) is int and _LOWEST_ID <= item <= _HIGHEST_ID else _id("item", item)
    number = float(label) if isinstance(label, bool) else _number("label", label)
    seconds = None if time is None else _time(time)
    made = make_label(number)
    return None if made is None else Event(user_id, item_id, made, seconds)


def _id(role: str, value: object) -> int | str:
    if isinstance(value, str):
        if not value or value.isspace():
            raise BadEventError(f"{role} is empty", f"found {value!r}")
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise BadEventError(f"{role} is not Unicode", f"found {value!r}, half a character")
        return str(value)
    if value is None:
        raise BadEventError(f"{role} is null", "found None")
    if isinstance(value, bool | np.bool_):
        raise BadEventError(f"{role} is a boolean", f"found {value!r}")
    if isinstance(value, Integral):
        number = int(value)
    elif isinstance(value, Real):
        if not float(value).is_integer():  # nor are NaN and infinity
            raise BadEventError(f"{role} is not a whole number", f"found {value!r}")
        number = int(float(value))
    else:
        raise BadEventError(
            f"{role} is neither integer nor text", f"found a {type(value).__name__}"
        )
    if not _LOWEST_ID <= number <= _HIGHEST_ID:
        raise BadEventError(f"{role} is beyond 64 bits", f"found {_shortened(number)}")
    return number


def _number(role: str, value: object) -> float:
    """A number, perhaps NaN or infinite."""
    if type(value) is float:
        return value
    if value is None:
        raise BadEventError(f"{role} is null", "found None")
    if isinstance(value, bool) or not isinstance(value, int | Real | Decimal):
        raise BadEventError(f"{role} is not a number", f"found {_shortened(value)}")
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


def _time(value: object) -> float:
    if isinstance(value, str):
        return _time_in_date(value)
    if isinstance(value, date):  # datetimes are dates
        return _seconds(value)
    return _finite_time(_number("timestamp", value))


def _finite_time(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise BadEventError("timestamp is NaN or infinite", f"found {seconds!r}")
    return seconds


def _seconds(moment: date) -> float:
    """Seconds since 1970 UTC; what says no time zone is UTC."""
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


# --- values that are text ------------------------------------------------------------------------


def _text_event(
    user: str, item: str, label: str, time: str | None, make_label: _LabelMaker
) -> Event | None:
    user_id, item_id = _id_in_text("user", user), _id_in_text("item", item)
    number = _number_in_text("label", label)
    seconds = None if time is None else _time_in_text(time)
    made = make_label(number)
    return None if made is None else Event(user_id, item_id, made, seconds)


def _id_in_text(role: str, text: str) -> int | str:
    """An integer if the text is the plain spelling of one of 64 bits (so "007" and 7 differ)."""
    if text.isdecimal() and text.isascii() and text[0] != "0" and len(text) < 19:
        return int(text)
    text = text.strip()
    if not text:
        raise BadEventError(f"{role} is empty", "found no text")
    digits = text[1:] if text[0] == "-" else text
    if digits.isdecimal() and digits.isascii() and len(digits) <= 19:
        number = int(text)
        if str(number) == text and _LOWEST_ID <= number <= _HIGHEST_ID:
            return number
    return text


def _number_in_text(role: str, text: str) -> float:
    """A number, perhaps NaN or infinite."""
    try:
        number = float(text)
        if "_" not in text:  # Python reads 1_000, nobody else does
            return number
    except ValueError:
        pass
    if not text.strip():
        raise BadEventError(f"{role} is empty", "found no text")
    raise BadEventError(f"{role} is not a number", f"found {_shortened(text)}")


def _time_in_text(text: str) -> float:
    try:
        seconds = _number_in_text("timestamp", text)
    except BadEventError:
        return _time_in_date(text)
    return _finite_time(seconds)


def _time_in_date(text: str) -> float:
    try:
        return _seconds(datetime.fromisoformat(text.strip()))
    except (ValueError, OverflowError):
        reason = "timestamp is not a number" if text.strip() else "timestamp is empty"
        raise BadEventError(reason, f"found {_shortened(text)}, nor is it a date") from None


def _shortened(value: object) -> str:
    text = shown(value)
    return text if len(text) <= 60 else text[:57] + "..."


def shown(value: object) -> str:
    """The `repr` of a value, whatever it is: an integer of thousands of digits has none.

    >>> shown("a"), shown(10**5000)
    ("'a'", '<int>')
    """
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__}>"
