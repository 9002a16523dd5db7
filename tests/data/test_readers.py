"""Files become Interactions, whatever their kind; bad ones are named for what they are."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celrec.data.interactions import Interactions
from celrec.data.readers import interactions_from_frame, read_interactions
from celrec.errors import ArgumentError, DataError

ROWS = [(7, 30, 5.0, 100), (2, 9, 3.0, 90), (7, 9, 4.5, 110)]


def assert_holds_rows(interactions: Interactions, rows: list = ROWS) -> None:
    assert interactions.users.decode(interactions.user) == [row[0] for row in rows]
    assert interactions.items.decode(interactions.item) == [row[1] for row in rows]
    assert interactions.label.tolist() == [row[2] for row in rows]
    assert interactions.timestamp is not None
    assert interactions.timestamp.tolist() == [row[3] for row in rows]


def lines(separator: str, *header: str) -> str:
    text = [separator.join(header)] if header else []
    text += [separator.join(map(str, row)) for row in ROWS]
    return "\n".join(text) + "\n"


COLUMNS = ("user", "item", "rating", "timestamp")
ATOMIC = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        ("views.csv", lines(",", *COLUMNS), {"timestamp": "timestamp"}),
        ("VIEWS.CSV", lines(",", *COLUMNS), {"timestamp": "timestamp"}),
        ("views.tsv", lines("\t", *COLUMNS), {"timestamp": "timestamp"}),
        ("views.txt", lines(";", *COLUMNS), {"timestamp": "timestamp", "separator": ";"}),
        ("views.log", lines(" | ", *COLUMNS), {"timestamp": "timestamp", "separator": " | "}),
        ("no_header.csv", lines(","), {"timestamp": "timestamp", "columns": COLUMNS}),
        ("no_header.log", lines("::"), {"timestamp": "timestamp", "columns": COLUMNS}),
        ("u.data", lines("\t"), {}),
        ("u1.base", lines("\t"), {}),
        ("ua.test", lines("\t"), {}),
        ("ratings.dat", lines("::"), {}),
        ("views.inter", lines("\t", *ATOMIC), {}),
        ("views.inter", lines("\t", *ATOMIC), {"user": "user_id", "item": "item_id"}),
        ("bom.csv", "\ufeff" + lines(",", *COLUMNS), {"timestamp": "timestamp"}),
        ("windows.csv", lines(",", *COLUMNS).replace("\n", "\r\n"), {"timestamp": "timestamp"}),
    ],
)
def test_every_kind_of_text_file_holds_the_same_rows(
    tmp_path: Path, name: str, text: str, options: dict
) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8"))
    if name == "no_header.log":
        options = options | {"separator": "::"}
    read = read_interactions(path, **options)
    assert_holds_rows(read)
    assert read.name == name


def test_compressed_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "views.csv.gz"
    path.write_bytes(gzip.compress(lines(",", *COLUMNS).encode()))
    assert_holds_rows(read_interactions(path, timestamp="timestamp"))


def test_only_the_columns_asked_for_matter(tmp_path: Path) -> None:
    path = tmp_path / "wide.parquet"
    wide = pl.DataFrame(ROWS, schema=["who", "what", "stars", "when"], orient="row")
    wide = wide.with_columns(pl.lit([1, 2]).alias("list"), pl.lit(None).alias("nothing"))
    wide.write_parquet(path)
    read = read_interactions(path, user="who", item="what", label="stars", timestamp="when")
    assert_holds_rows(read)
    assert read_interactions(path, user="who", item="what", label="stars").timestamp is None
    assert read_interactions(path, user="who", item="what", label=None).label.tolist() == [1, 1, 1]


@given(
    st.lists(
        st.tuples(
            st.integers(-5, 5),
            st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1),
            st.floats(-1e6, 1e6, width=32),
            st.integers(-(2**40), 2**40),
        ),
        min_size=1,
    )
)
def test_csv_and_parquet_agree_on_any_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list
) -> None:
    folder = tmp_path_factory.mktemp("agree")
    frame = pl.DataFrame(rows, schema=list(COLUMNS), orient="row")
    frame = frame.with_columns(item=pl.lit("x") + pl.col("item"))  # not a number by chance
    frame.write_csv(folder / "rows.csv")
    frame.write_parquet(folder / "rows.parquet")
    of_csv, of_parquet, of_frame = (
        read_interactions(folder / "rows.csv", timestamp="timestamp"),
        read_interactions(folder / "rows.parquet", timestamp="timestamp"),
        interactions_from_frame(frame, timestamp="timestamp"),
    )
    assert of_csv.fingerprint() == of_parquet.fingerprint() == of_frame.fingerprint()


def test_text_ids_become_integers_only_in_their_plain_spelling(tmp_path: Path) -> None:
    def raw_users(*values: str) -> list:
        path = tmp_path / "ids.csv"
        path.write_text("user,item,rating\n" + "".join(f"{value},1,1\n" for value in values))
        return list(read_interactions(path).users)

    assert raw_users("10", "9", " 10") == [9, 10]
    assert raw_users("007", "7") == ["007", "7"]
    assert raw_users("7", "x") == ["7", "x"]
    assert raw_users("1.0", "1") == ["1", "1.0"]
    assert raw_users(str(2**63), "1") == ["1", str(2**63)]


def test_parquet_ids_keep_their_type(tmp_path: Path) -> None:
    path = tmp_path / "ids.parquet"
    frame = pl.DataFrame({"user": [2.0, 10.0], "item": ["10", "9"], "rating": [1, 2]})
    frame.with_columns(pl.col("item").cast(pl.Categorical)).write_parquet(path)
    read = read_interactions(path)
    assert list(read.users) == [2, 10]  # integers with gaps, as pandas writes them
    assert list(read.items) == ["10", "9"]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["2001-09-09", "1970-01-01"], [999_993_600, 0]),
        (["2001-09-09 01:46:40", "1970-01-01 00:00:01"], [1_000_000_000, 1]),
        (["2001-09-09T01:46:40Z", "1970-01-01T00:00:00Z"], [1_000_000_000, 0]),
        (["2001-09-09T03:46:40+02:00", "1970-01-01T00:00:00Z"], [1_000_000_000, 0]),
        (["2001/09/09", "1970/01/02"], [999_993_600, 86_400]),
        (["1000000000", " 5 "], [1_000_000_000, 5]),
        (["0.5", "2"], [0.5, 2.0]),
        (["1970-01-01 00:00:00.250", "1970-01-01"], [0.25, 0.0]),
    ],
)
def test_times_are_numbers_or_dates(tmp_path: Path, times: list, expected: list) -> None:
    path = tmp_path / "times.csv"
    path.write_text("user,item,when\n" + "".join(f"1,1,{time}\n" for time in times))
    read = read_interactions(path, label=None, timestamp="when")
    assert read.timestamp is not None
    assert read.timestamp.tolist() == expected
    is_whole = all(isinstance(time, int) for time in expected)
    assert read.timestamp.dtype == (np.int64 if is_whole else np.float64)


@pytest.mark.parametrize(
    "dtype",
    [pl.Date, pl.Datetime("ms"), pl.Datetime("us"), pl.Datetime("ns", "UTC")],
)
def test_parquet_dates_are_seconds(dtype: pl.DataType) -> None:
    days = pl.Series([0, 11_574]).cast(pl.Int32).cast(pl.Date).cast(dtype)
    frame = pl.DataFrame({"user": [1, 2], "item": [1, 2], "when": days})
    read = interactions_from_frame(frame, label=None, timestamp="when")
    assert read.timestamp is not None
    assert read.timestamp.tolist() == [0, 11_574 * 86_400]


def test_titles_come_from_their_column(tmp_path: Path) -> None:
    path = tmp_path / "titled.csv"
    path.write_text('user,item,rating,name\n1,20,5,\n1,3,4,"Heat, The"\n2,20,3,Speed\n2,4,1,\n')
    read = read_interactions(path, title="name")
    assert list(read.items) == [3, 4, 20]
    assert read.item_titles == ("Heat, The", "4", "Speed")
    assert read_interactions(path).item_titles is None


@pytest.mark.parametrize("ids", [("20", "3", "4"), ("a", "b", "c")])
def test_titles_come_from_the_item_file_of_recbole(tmp_path: Path, ids: tuple) -> None:
    inter, item = tmp_path / "x.inter", tmp_path / "x.item"
    inter.write_text("user_id:token\titem_id:token\trating:float\n" + f"1\t{ids[0]}\t5\n")
    with inter.open("a") as file:
        file.write(f"2\t{ids[1]}\t4\n2\t{ids[2]}\t1\n")
    item.write_text(
        f'year:float\titem_id:token\tmovie_title:token_seq\n1999\t{ids[1]}\t"Heat"\n'
        f"2000\t{ids[0]}\tDie Köchin\n2001\tunseen\tNobody\n",
        encoding="utf-8",
    )
    read = read_interactions(inter, title="movie_title")
    assert read.item_titles is not None
    titles = dict(zip(map(str, read.items), read.item_titles, strict=True))
    assert titles == {ids[0]: "Die Köchin", ids[1]: '"Heat"', ids[2]: ids[2]}
    with pytest.raises(DataError, match=r"x.item has no column 'title' .* 'movie_title'"):
        read_interactions(inter, title="title")
    item.unlink()
    with pytest.raises(DataError, match=r"x.inter has no column 'movie_title' for the title"):
        read_interactions(inter, title="movie_title")


@pytest.mark.parametrize(
    ("name", "rows", "users", "items", "options"),
    [
        ("ml_100k", 100_000, 943, 1_682, {"timestamp": "timestamp", "title": "title"}),
        ("ciao_dvd", 72_665, 17_615, 16_121, {"timestamp": "timestamp"}),
        ("book_crossing", 433_671, 77_805, 185_973, {}),
        ("globo_ctr", 2_989_699, 186_172, 18_243, {"label": "label", "timestamp": "timestamp"}),
    ],
)
def test_real_data_have_their_counts(
    real_file: Callable[[str], Path], name: str, rows: int, users: int, items: int, options: dict
) -> None:
    read = read_interactions(real_file(name), **options)
    assert (len(read), read.num_users, read.num_items) == (rows, users, items)
    if "title" in options:
        assert read.item_titles is not None
        assert read.item_titles[read.items.encode([255])[0]] == "My Best Friend's Wedding"


def test_times_with_gaps_are_refused_by_row(real_file: Callable[[str], Path]) -> None:
    with pytest.raises(DataError, match=r"row \d+ of .* has nothing in column 'timestamp'.*48,606"):
        read_interactions(
            real_file("amazon_video_games_5core_implicit"), label="label", timestamp="timestamp"
        )


# --- bad files -----------------------------------------------------------------------------------


def test_a_misnamed_column_gets_the_nearest_name(tmp_path: Path) -> None:
    path = tmp_path / "views.csv"
    path.write_text("userId,movieId,rating\n1,2,3\n")
    with pytest.raises(DataError, match=r"no column 'user' for the user; did you mean 'userId'"):
        read_interactions(path)
    with pytest.raises(DataError, match=r"no column 'ratng' for the label; .* 'rating'.*label="):
        read_interactions(path, user="userId", item="movieId", label="ratng")
    with pytest.raises(DataError, match=r"no column 'zzz' for the timestamp; known: movieId"):
        read_interactions(path, user="userId", item="movieId", timestamp="zzz")
    path.write_text("user;item;rating\n1;2;3\n")
    with pytest.raises(DataError, match="looks like several: give separator="):
        read_interactions(path)


def csv(*rows: str) -> bytes:
    return "\n".join(["user,item,rating,timestamp", *rows, ""]).encode()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "x.csv is empty"),
        ("x.csv", b"\n\n", "x.csv cannot be read: empty CSV"),
        ("x.csv", csv(), "x.csv has no rows"),
        ("x.parquet", b"", "x.parquet is empty"),
        ("x.parquet", b"PAR1 but no more than this", "x.parquet cannot be read: .*cut short"),
        ("x.csv", csv("1,2,3,4", "1,2,nan,4"), "row 2 of .* has 'nan' in column 'rating'; wanted"),
        ("x.csv", csv("1,2,3,4", "1,2,-inf,4"), "row 2 of .* has '-inf' in column 'rating'"),
        ("x.csv", csv("1,2,1e39,4"), "row 1 of .* has '1e39' in column 'rating'; .* finite"),
        ("x.csv", csv("1,2,good,4", "1,2,,4"), r"row 1 of .* has 'good' .*\(2 of 2 rows"),
        ("x.csv", csv("1,2,3,4", "1,2,,4"), r"row 2 of .* has nothing in column 'rating'"),
        ("x.csv", csv("1,2,3,4", ",2,3,4"), "row 2 of .* has nothing in column 'user'"),
        ("x.csv", csv("1,2,3,4", "1, ,3,4"), "row 2 of .* has nothing in column 'item'"),
        ("x.csv", csv("1,2,3,4", "1,2"), "row 2 of .* has nothing in column 'rating'"),
        ("x.csv", csv("1,2,3,4", "1,2,3,4,5"), "more fields.*is the separator right"),
        ("x.csv", csv("1,2,3,yesterday"), "row 1 of .* has 'yesterday' in column 'timestamp'"),
        ("x.csv", csv("1,2,3,2001-01-01", "1,2,3,02/01/2001"), "row 2 of .* '02/01/2001'"),
        ("x.csv", csv("1,2,3,inf"), "row 1 of .* has 'inf' in column 'timestamp'"),
        ("x.csv", "user,item,rating\nJörg,1,2\n".encode("latin-1"), "convert the file to UTF-8"),
        ("x.dat", b"1::2::3::4\n1::2::3\n", "row 2 of .* has nothing in column 'timestamp'"),
        ("x.dat", b"1::2::3::4\n1::2::3::4::5\n", "row 2 of .* has '4::5' in column 'timestamp'"),
        ("u.data", b"1\t2\t3\t4\n1\t2\tx\t4\n", "row 2 of .* has 'x' in column 'rating'"),
    ],
)
def test_a_bad_file_is_named_for_what_it_is(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    timestamp = "timestamp" if b"timestamp" in content else None
    with pytest.raises(DataError, match=message):
        read_interactions(path, timestamp=timestamp)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_truncated_parquet_file_is_refused(
    tmp_path: Path, real_file: Callable[[str], Path], share: float
) -> None:
    whole = real_file("ciao_dvd").read_bytes()
    path = tmp_path / "cut.parquet"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"cut.parquet cannot be read: .*is the file cut short"):
        read_interactions(path)


def test_a_parquet_file_with_damaged_pages_is_refused(
    tmp_path: Path, real_file: Callable[[str], Path]
) -> None:
    content = bytearray(real_file("ciao_dvd").read_bytes())
    content[1_000:50_000] = bytes(49_000)
    path = tmp_path / "damaged.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged.parquet cannot be read"):
        read_interactions(path)


def test_a_missing_file_or_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.csv does not exist"):
        read_interactions(tmp_path / "nowhere.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder.csv is a folder"):
        read_interactions(tmp_path / "folder.csv")
    with pytest.raises(DataError, match=r"x.xlsx has no ending .* \.csv, \.tsv"):
        read_interactions(tmp_path / "x.xlsx")
    with pytest.raises(ArgumentError, match="separator is ''"):
        read_interactions(tmp_path / "x.csv", separator="")
    with pytest.raises(ArgumentError, match=r"x.parquet is Parquet and names its columns"):
        read_interactions(tmp_path / "x.parquet", columns=["user"])


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user", [1.5, 2.0], "row 1 of the frame has 1.5 in column 'user'"),
        ("user", [1.0, float("nan")], "row 2 of the frame has nan in column 'user'"),
        ("user", [1, None], "row 2 of the frame has nothing in column 'user'"),
        ("item", [[1], [2]], r"column 'item' of the frame is of type List\(Int64\); wanted raw"),
        ("rating", [[1], [2]], "column 'rating' of the frame is of type List.*wanted numbers"),
        ("timestamp", [True, False], "column 'timestamp' of the frame is of type Boolean"),
    ],
)
def test_columns_of_the_wrong_type_are_refused(column: str, values: list, message: str) -> None:
    good = {"user": [1, 2], "item": [1, 2], "rating": [1, 2], "timestamp": [1, 2]}
    with pytest.raises(DataError, match=message):
        interactions_from_frame(pl.DataFrame(good | {column: values}), timestamp="timestamp")


def test_a_frame_without_rows_or_columns_is_refused() -> None:
    with pytest.raises(DataError, match="the frame has no rows"):
        interactions_from_frame(pl.DataFrame({"user": [], "item": [], "rating": []}))
    with pytest.raises(DataError, match="the frame has no column 'rating' for the label"):
        interactions_from_frame(pl.DataFrame({"user": [1], "item": [1]}))
