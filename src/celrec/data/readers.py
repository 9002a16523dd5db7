"""Readers: from a file to Interactions, with the user's own column names.

`read_interactions` knows CSV, TSV, Parquet, MovieLens (`u.data`, `ratings.dat`) and the atomic
files of RecBole (`.inter` with its `.item`). Files are scanned lazily and only the columns asked
for are kept, so a wide file costs no more than a narrow one. Messages count rows from 1, without
the header.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from celrec.data.interactions import Interactions
from celrec.data.vocabulary import Vocabulary
from celrec.errors import ArgumentError, DataError, nearest_name

_MOVIELENS_COLUMNS = ("user", "item", "rating", "timestamp")


@dataclass(frozen=True)
class _Layout:
    """How a kind of file is laid out.

    separator : None for Parquet
    columns : their names where the file has no header
    defines_times : whether the format itself says which column is the timestamp
    has_types : headers say `name:type` (RecBole)
    """

    separator: str | None
    columns: tuple[str, ...] | None = None
    defines_times: bool = False
    has_types: bool = False


_LAYOUTS = {
    ".csv": _Layout(","),
    ".tsv": _Layout("\t"),
    ".parquet": _Layout(None),
    ".pq": _Layout(None),
    ".inter": _Layout("\t", defines_times=True, has_types=True),
    ".dat": _Layout("::", _MOVIELENS_COLUMNS, defines_times=True),
}
_MOVIELENS_100K = re.compile(r"u\.data|u\w\.(base|test)")
_ATOMIC_NAMES = {"user": "user_id", "item": "item_id"}


def read_interactions(
    path: str | Path,
    *,
    user: str = "user",
    item: str = "item",
    label: str | None = "rating",
    timestamp: str | None = None,
    title: str | None = None,
    separator: str | None = None,
    columns: Sequence[str] | None = None,
    name: str | None = None,
) -> Interactions:
    """Read interactions from a file.

    path : the kind is told by the name: .csv, .tsv, .parquet (.pq); u.data, u1.base, u1.test and
        .dat (MovieLens: no header, columns user, item, rating, timestamp); .inter (RecBole). CSV
        and TSV may be compressed (.csv.gz, .tsv.zst). Any other name needs `separator`.
    user, item : columns of raw ids. Text that is all integers becomes integers. In an .inter file
        `user` and `item` also find `user_id` and `item_id`; types after the colon are left out.
    label : column of ratings or of 0/1; None: every label is 1 (clicks, purchases)
    timestamp : column of times: numbers as they are, dates (2020-01-31, 2020-01-31T12:00:00Z) as
        seconds since 1970 UTC. None: no times, but MovieLens and .inter files give theirs.
    title : column of item titles; for .inter files looked up in the .item file beside it, too
    separator : overrules the name; may have several characters. Quotes mean something with a comma
        or semicolon only.
    columns : the names of all columns in order, for a file without a header
    name : what reports call the data; by default the name of the file
    returns : rows in the order of the file; vocabularies sorted
    raises : DataError for a file that is missing, empty, damaged or not UTF-8, a missing column
        (naming the nearest), and for the first row without id, number or date

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "views.csv")
    ...     _ = path.write_text("who,what,stars\\nann,7,5\\nbob,7,3\\n")
    ...     views = read_interactions(path, user="who", item="what", label="stars")
    >>> views.users.decode(views.user), views.items.decode(views.item), views.label.tolist()
    (['ann', 'bob'], [7, 7], [5.0, 3.0])
    """
    path = Path(path)
    layout = _layout_of(path, separator, columns)
    with _readable(path):
        scan = _scan(path, layout)
        found = scan.collect_schema().names()
    if layout.has_types:
        user, item = (
            _ATOMIC_NAMES.get(column, column) if column not in found else column
            for column in (user, item)
        )
    if timestamp is None and layout.defines_times and "timestamp" in found:
        timestamp = "timestamp"
    item_file = path.with_suffix(".item")
    titles_from_item_file = (
        title is not None and layout.has_types and title not in found and item_file.is_file()
    )
    wanted = {"user": user, "item": item, "label": label, "timestamp": timestamp}
    if not titles_from_item_file:
        wanted["title"] = title
    for role, column in wanted.items():
        _check_column(path, role, column, found)
    with _readable(path):
        needed = list(dict.fromkeys(column for column in wanted.values() if column is not None))
        frame = scan.select(needed).collect(engine="streaming")
    if layout.separator is not None:
        frame = frame.with_columns(_parsed_ids(frame[column]) for column in {user, item})
    if titles_from_item_file and title is not None:
        frame = frame.join(
            _titles_of_item_file(item_file, item, title, frame[item].dtype),
            on=item,
            how="left",
            maintain_order="left",
        )
    return interactions_from_frame(
        frame,
        user=user,
        item=item,
        label=label,
        timestamp=timestamp,
        title=title,
        name=name or path.name,
        source=str(path),
    )


def interactions_from_frame(
    frame: pl.DataFrame,
    *,
    user: str = "user",
    item: str = "item",
    label: str | None = "rating",
    timestamp: str | None = None,
    title: str | None = None,
    name: str = "interactions",
    source: str = "the frame",
) -> Interactions:
    """Make Interactions from a polars frame; arguments and errors as in `read_interactions`.

    source : how messages name the frame
    raises : DataError as `read_interactions`; an item without any title is called by its raw id

    >>> frame = pl.DataFrame({"user": [2, 1], "item": ["b", "a"], "rating": [1, 0]})
    >>> interactions_from_frame(frame).user.tolist()
    [1, 0]
    """
    wanted = {"user": user, "item": item, "label": label, "timestamp": timestamp, "title": title}
    for role, column in wanted.items():
        _check_column(source, role, column, frame.columns)
    if frame.height == 0:
        raise DataError(f"{source} has no rows; wanted at least one interaction")
    raw_users, raw_items = _raw_ids(frame[user], source), _raw_ids(frame[item], source)
    users, items = Vocabulary.from_values(raw_users), Vocabulary.from_values(raw_items)
    titles = None
    if title is not None:
        titles = _title_of_every_item(raw_items, frame[title], items)
    return Interactions(
        user=users.encode(raw_users),
        item=items.encode(raw_items),
        label=np.ones(frame.height) if label is None else _numbers(frame[label], source),
        users=users,
        items=items,
        timestamp=None if timestamp is None else _times(frame[timestamp], source),
        item_titles=titles,
        name=name,
    )


# --- files ---------------------------------------------------------------------------------------


def _layout_of(path: Path, separator: str | None, columns: Sequence[str] | None) -> _Layout:
    is_compressed = path.suffix in (".gz", ".zst")
    suffix = path.with_suffix("").suffix if is_compressed else path.suffix
    layout = _LAYOUTS.get(suffix.lower())
    if _MOVIELENS_100K.fullmatch(path.name):
        layout = _Layout("\t", _MOVIELENS_COLUMNS, defines_times=True)
    if separator is not None:
        if separator == "" or "\n" in separator:
            raise ArgumentError(f"separator is {separator!r}; wanted one or more characters")
        layout = _Layout(separator)
    if layout is None:
        raise DataError(
            f"{path.name} has no ending that tells its kind; wanted u.data or one of "
            f"{', '.join(_LAYOUTS)}, or give separator="
        )
    if layout.separator is None and columns is not None:
        raise ArgumentError(f"{path.name} is Parquet and names its columns itself; leave columns=")
    if columns is not None:
        layout = _Layout(layout.separator, tuple(columns), defines_times=False)
    return layout


def _scan(path: Path, layout: _Layout) -> pl.LazyFrame:
    """A lazy frame of text columns (or of Parquet's own types) under their plain names."""
    if layout.separator is None:
        return pl.scan_parquet(path, glob=False)
    if len(layout.separator) > 1:
        return _scan_lines(path, layout.separator, layout.columns)
    scan = pl.scan_csv(
        path,
        separator=layout.separator,
        has_header=layout.columns is None,
        schema=None if layout.columns is None else dict.fromkeys(layout.columns, pl.String),
        quote_char='"' if layout.separator in ",;" else None,
        infer_schema=False,
        glob=False,
    )
    if layout.has_types:
        scan = scan.rename(lambda column: column.split(":")[0])
    return scan


def _scan_lines(path: Path, separator: str, columns: tuple[str, ...] | None) -> pl.LazyFrame:
    """For a separator of several characters, which polars' own parser does not take."""
    # No data hold a "unit separator", so every line is one field.
    lines = pl.scan_csv(
        path,
        separator="\x1f",
        has_header=False,
        schema={"line": pl.String},
        quote_char=None,
        skip_lines=0 if columns else 1,
        glob=False,
    ).filter(pl.col("line").is_not_null())
    if columns is None:
        with path.open(encoding="utf-8-sig") as file:
            columns = tuple(file.readline().rstrip("\r\n").split(separator))
    if len(columns) == 1:
        return lines.rename({"line": columns[0]})
    # splitn leaves surplus separators in the last field, where they are seen
    fields = pl.col("line").str.splitn(separator, len(columns)).struct.rename_fields(columns)
    return lines.select(fields.alias("fields")).unnest("fields")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what polars and the system say of a bad file into a DataError."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}; wanted a file of interactions")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; wanted a file of interactions")
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "utf-8" in reason:
            remedy = "convert the file to UTF-8 (for example with iconv)"
        elif "more fields" in reason:
            remedy = "a line has more fields than the first; is the separator right?"
        else:
            remedy = "is the file cut short, or of another kind than its name says?"
        raise DataError(f"{path} cannot be read: {reason}; {remedy}") from error


def _check_column(source: str | Path, role: str, column: str | None, found: Sequence[str]) -> None:
    if column is None or column in found:
        return
    option = "time" if role == "timestamp" else role
    hint = ""
    if len(found) == 1 and re.search(r"[,;|\t]", found[0]):
        hint = ". The only column looks like several: give separator="
    raise DataError(
        f"{source} has no column {column!r} for the {role}; {nearest_name(column, found)}; "
        f"name the column with {role}= (--{option}-col on the command line){hint}"
    )


def _titles_of_item_file(path: Path, item: str, title: str, dtype: pl.DataType) -> pl.DataFrame:
    """Item and title of every line of a RecBole .item file; raw ids of the given type."""
    with _readable(path):
        frame = _scan(path, _LAYOUTS[".inter"]).collect(engine="streaming")
    for role, column in (("item", item), ("title", title)):
        _check_column(path, role, column, frame.columns)
    ids = frame[item].str.strip_chars().cast(dtype, strict=False)
    return frame.select(title).with_columns(ids).drop_nulls(item).unique(item, keep="first")


# --- columns -------------------------------------------------------------------------------------


def _parsed_ids(text: pl.Series) -> pl.Series:
    """Integers if every value is one in its plain spelling (so "007" and "7" stay apart)."""
    text = text.str.strip_chars().replace("", None)
    integers = text.cast(pl.Int64, strict=False)
    is_plain = (integers.cast(pl.String) == text).fill_null(False) | text.is_null()
    return integers if is_plain.all() else text


def _raw_ids(column: pl.Series, source: str) -> pl.Series:
    missing = column.is_null()
    if column.dtype.is_float():
        missing |= column.is_nan()
    if missing.any():
        raise _row_error(source, column, missing, "an integer or a text that names the entity")
    if column.dtype.is_float():  # pandas turns integers with gaps into floats
        integers = column.cast(pl.Int64, strict=False)
        broken = (integers.cast(pl.Float64) != column.cast(pl.Float64)).fill_null(True)
        if broken.any():
            raise _row_error(source, column, broken, "an integer or a text that names the entity")
        return integers
    if column.dtype in (pl.Categorical, pl.Enum):
        return column.cast(pl.String)
    if not column.dtype.is_integer() and column.dtype != pl.String:
        raise DataError(
            f"column {column.name!r} of {source} is of type {column.dtype}; wanted raw ids: "
            "integers or text"
        )
    return column


def _numbers(column: pl.Series, source: str) -> np.ndarray:
    text = column.str.strip_chars() if column.dtype == pl.String else column
    try:
        numbers = text.cast(pl.Float64, strict=False)
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"column {column.name!r} of {source} is of type {column.dtype}; wanted numbers"
        ) from error
    # beyond float32, the type of labels, is infinite too
    bad = ~numbers.cast(pl.Float32).is_finite().fill_null(False)
    if bad.any():
        raise _row_error(source, column, bad, "a finite number")
    return numbers.to_numpy()


def _times(column: pl.Series, source: str) -> np.ndarray:
    """int64 where all times are whole numbers, else float64."""
    times = _parsed_times(column) if column.dtype == pl.String else column
    if times.dtype == pl.Date:
        times = times.cast(pl.Datetime("us"))
    if times.dtype == pl.Datetime:
        microseconds = times.dt.epoch("us")
        is_whole = (microseconds % 1_000_000 == 0).all()
        times = microseconds // 1_000_000 if is_whole else microseconds / 1e6
    if not times.dtype.is_numeric():
        raise DataError(
            f"column {column.name!r} of {source} is of type {column.dtype}; wanted numbers or dates"
        )
    bad = times.is_null() | ~times.is_finite().fill_null(True)
    if bad.any():
        wanted = "a number, or a date such as 2020-01-31 or 2020-01-31T12:00:00Z"
        raise _row_error(source, column, bad, wanted)
    return times.to_numpy()


def _parsed_times(text: pl.Series) -> pl.Series:
    """Integers, numbers or dates, whichever fails in the fewest rows; nulls where it fails."""
    text = text.str.strip_chars()
    numbers = text.cast(pl.Float64, strict=False)
    # Year first only: 02/01/2020 is two different days in two countries.
    is_date = text.str.contains(r"^\d{4}[-/]\d").fill_null(False)
    if is_date.sum() > numbers.count():
        return text.set(~is_date, None).str.to_datetime(strict=False, time_zone="UTC")
    integers = text.cast(pl.Int64, strict=False)
    return numbers if integers.null_count() > numbers.null_count() else integers


def _row_error(source: str, column: pl.Series, bad: pl.Series, wanted: str) -> DataError:
    row = bad.arg_max() or 0
    found = "nothing" if column[row] is None else repr(column[row])
    return DataError(
        f"row {row + 1} of {source} has {found} in column {column.name!r}; wanted {wanted} "
        f"({bad.sum():,} of {len(bad):,} rows are like this: mend or drop them)"
    )


def _title_of_every_item(
    raw_items: pl.Series, titles: pl.Series, items: Vocabulary
) -> tuple[str, ...]:
    """The first title that any row gives an item; its raw id where none does."""
    known = items.to_frame()
    rows = pl.DataFrame(
        {"raw_id": raw_items.cast(known["raw_id"].dtype), "title": titles.cast(pl.String)}
    ).drop_nulls()
    first = rows.unique("raw_id", keep="first", maintain_order=True)
    named = known.join(first, on="raw_id", how="left", maintain_order="left")
    return tuple(named.select(pl.col("title").fill_null(pl.col("raw_id").cast(pl.String)))["title"])
