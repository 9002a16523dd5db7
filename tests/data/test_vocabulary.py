"""Laws of Vocabulary."""

import time

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celrec.data.vocabulary import Vocabulary
from celrec.errors import ArgumentError, DataError, EntityIdError

integers = st.integers(-(2**63), 2**63 - 1)
hashables = st.one_of(
    st.integers(),
    st.text(),
    st.booleans(),
    st.floats(allow_nan=False),
    st.binary(),
    st.tuples(st.integers(), st.text()),
    st.frozensets(st.integers()),
)


@given(st.one_of(*(st.lists(kind) for kind in (integers, st.text(), hashables))))
def test_decode_undoes_encode(values: list) -> None:
    vocabulary = Vocabulary.from_values(values)
    ids = vocabulary.encode(values)
    assert ids.dtype == np.int64
    assert vocabulary.decode(ids) == values
    assert len(vocabulary) == len(set(values))
    assert all(value in vocabulary for value in values)


@given(
    st.one_of(
        st.tuples(st.lists(kind), st.lists(kind)) for kind in (integers, st.text(), hashables)
    )
)
def test_an_extended_vocabulary_keeps_dense_ids_and_appends(both: tuple[list, list]) -> None:
    old, new = both
    vocabulary = Vocabulary.from_values(old)
    extended = vocabulary.extended(new)
    fresh = list(dict.fromkeys(value for value in new if value not in set(old)))
    assert list(extended) == [*vocabulary, *fresh]
    assert extended.encode(old).tolist() == vocabulary.encode(old).tolist()
    assert extended.extended(old) == extended


def test_a_missing_value_extends_no_vocabulary() -> None:
    with pytest.raises(DataError, match="value 1 of 2"):
        Vocabulary.from_values([3]).extended([4, None])


@given(st.lists(hashables), st.lists(hashables))
def test_encode_agrees_with_a_dictionary(known: list, queries: list) -> None:
    vocabulary = Vocabulary.from_values(known)
    dense_id = {value: i for i, value in enumerate(vocabulary)}
    expected = [dense_id.get(value, -1) for value in queries]
    assert vocabulary.encode(queries, unknown="minus_one").tolist() == expected


@given(st.one_of(st.lists(integers), st.lists(st.text())))
def test_dense_ids_follow_the_sorted_values(values: list) -> None:
    assert list(Vocabulary.from_values(values)) == sorted(set(values))


@given(st.one_of(st.lists(st.integers(0, 2**64 - 1)), st.lists(st.text())))
def test_a_frame_holds_integers_and_strings(values: list) -> None:
    vocabulary = Vocabulary.from_values(values)
    again = Vocabulary.from_frame(vocabulary.to_frame())
    assert again == vocabulary
    assert list(again) == list(vocabulary)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64, np.uint64])
def test_the_type_of_integers_does_not_matter(dtype: type) -> None:
    plain = Vocabulary.from_values([5, 3, 100])
    typed = Vocabulary.from_values(np.array([5, 3, 100], dtype))
    assert typed == plain
    assert typed.encode(np.array([100, 3], dtype)).tolist() == [2, 0]
    assert typed.encode(pl.Series([100, 3])).tolist() == [2, 0]
    assert [type(value) for value in typed] == [int] * 3


def test_numpy_and_polars_texts_are_plain_texts() -> None:
    expected = Vocabulary.from_values(["b", "a"])
    for values in (np.array(["b", "a"]), pl.Series(["b", "a"], dtype=pl.Categorical)):
        assert Vocabulary.from_values(values) == expected
        assert expected.encode(values).tolist() == [1, 0]


def test_what_cannot_be_sorted_keeps_the_order_of_first_appearance() -> None:
    assert list(Vocabulary.from_values(["b", 2, "a", 2])) == ["b", 2, "a"]


def test_a_number_and_its_text_are_two_entities() -> None:
    numbers = Vocabulary.from_values([1, 2])
    assert "1" not in numbers
    assert numbers.encode(["1"], unknown="minus_one").tolist() == [-1]
    assert len(Vocabulary.from_values([1, "1"])) == 2


def test_fingerprint_sees_values_order_and_type() -> None:
    prints = [
        Vocabulary.from_frame(pl.DataFrame({"raw_id": values})).fingerprint()
        for values in ([1, 2], [2, 1], [1, 3], ["1", "2"], ["12", ""], ["", "12"])
    ]
    assert len(set(prints)) == len(prints)


def test_fingerprint_is_the_same_everywhere() -> None:
    # Written down once: a change breaks the comparison of runs made elsewhere or earlier.
    assert Vocabulary.from_values([1, 2]).fingerprint().startswith("a7e7e552ab4a")
    assert Vocabulary.from_values(["a", "ü"]).fingerprint().startswith("551d9b2cf632")


def test_no_values_make_an_empty_vocabulary() -> None:
    empty = Vocabulary.from_values([])
    assert (len(empty), list(empty), empty.decode([])) == (0, [], [])
    assert empty.encode([]).tolist() == []


@pytest.mark.parametrize("values", [[1, None], [None], [1.0, float("nan")], pl.Series([1, None])])
def test_a_missing_raw_id_is_refused_by_position(values: list) -> None:
    with pytest.raises(DataError, match=r"value \d of \d \(counted from 0\) has no raw id"):
        Vocabulary.from_values(values)


def test_an_unknown_value_is_named_with_its_position() -> None:
    with pytest.raises(DataError, match=r"value 'z' at position 1 is not among the 2 raw ids"):
        Vocabulary.from_values(["a", "b"]).encode(["a", "z"])
    with pytest.raises(DataError, match=r"value 9 at position 0 is not among the 2 raw ids 1, 2"):
        Vocabulary.from_values([1, 2]).encode([9])
    with pytest.raises(ArgumentError, match="unknown is 'ignore'"):
        Vocabulary.from_values([1, 2]).encode([1], unknown="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize("dense_id", [-1, 2])
def test_a_dense_id_out_of_range_is_named(dense_id: int) -> None:
    vocabulary = Vocabulary.from_values(["a", "b"])
    with pytest.raises(EntityIdError, match=rf"dense id {dense_id} at position 0.*\[0, 2\)"):
        vocabulary.decode([dense_id])
    with pytest.raises(EntityIdError, match="wanted integers"):
        vocabulary.decode([0.5])  # type: ignore[list-item]


def test_only_integers_and_strings_go_into_a_frame() -> None:
    with pytest.raises(DataError, match="neither all integers nor all strings"):
        Vocabulary.from_values([("a", 1)]).to_frame()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"id": [1]}), "no column 'raw_id'"),
        (pl.DataFrame({"raw_id": [1, 1]}), "holds 1 more than once"),
        (pl.DataFrame({"raw_id": [1.5]}), "of type Float64"),
        (pl.DataFrame({"raw_id": [1, None]}), "value 1 of 2"),
    ],
)
def test_a_frame_that_is_no_vocabulary_is_refused(frame: pl.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Vocabulary.from_frame(frame)


@pytest.mark.parametrize("as_text", [False, True])
def test_a_million_ids_take_no_python_loop(as_text: bool) -> None:
    values = pl.Series(np.random.default_rng(0).integers(0, 10**9, 1_000_000))
    if as_text:
        values = values.cast(pl.String)
    start = time.perf_counter()
    vocabulary = Vocabulary.from_values(values)
    ids = vocabulary.encode(values)
    assert time.perf_counter() - start < 5  # a third of a second when the machine is idle
    some = np.arange(0, len(values), 997)
    assert vocabulary.decode(ids[some]) == values.gather(some).to_list()
