"""Interactions check themselves, never change, and say what they are."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celrec.data.interactions import Interactions
from celrec.data.vocabulary import Vocabulary
from celrec.errors import ArgumentError, DataError, DtypeError, EntityIdError
from tests.data.making import interactions_of, some_interactions


def tiny(**changes: object) -> Interactions:
    fields = {
        "user": np.array([0, 1, 1]),
        "item": np.array([2, 0, 2]),
        "label": np.array([5.0, 3.0, 1.0]),
        "timestamp": np.array([10, 20, 30]),
        "users": Vocabulary.from_values(["ann", "bob"]),
        "items": Vocabulary.from_values([7, 8, 9]),
        "item_titles": ("x", "y", "z"),
    }
    return Interactions(**(fields | changes))  # type: ignore[arg-type]


@given(some_interactions(), st.data())
def test_take_gives_the_rows_asked_for(interactions: Interactions, data: st.DataObject) -> None:
    row = st.integers(0, len(interactions) - 1)
    rows = data.draw(st.lists(row, min_size=1, max_size=20))
    taken = interactions.take(rows)
    assert taken.user.tolist() == [interactions.user[row] for row in rows]
    assert taken.item.tolist() == [interactions.item[row] for row in rows]
    assert taken.label.tolist() == [interactions.label[row] for row in rows]
    if interactions.timestamp is not None:
        assert taken.timestamp is not None
        assert taken.timestamp.tolist() == [interactions.timestamp[row] for row in rows]
    assert taken.users is interactions.users
    assert taken.items is interactions.items


@given(some_interactions())
def test_a_mask_takes_what_its_row_numbers_take(interactions: Interactions) -> None:
    mask = interactions.label >= interactions.label.max()
    by_mask, by_rows = interactions.take(mask), interactions.take(np.flatnonzero(mask))
    assert by_mask.fingerprint() == by_rows.fingerprint()


@given(some_interactions())
def test_counts_sum_to_the_rows(interactions: Interactions) -> None:
    assert interactions.user_counts().sum() == len(interactions)
    assert interactions.item_counts().sum() == len(interactions)
    assert len(interactions.user_counts()) == interactions.num_users
    assert len(interactions.item_counts()) == interactions.num_items


def test_types_are_settled_and_values_kept() -> None:
    made = tiny(user=[0, 1, 1], label=[5, 3, 1], timestamp=[0.5, 1.0, 2.0])
    assert (made.user.dtype, made.item.dtype) == (np.int64, np.int64)
    assert made.label.dtype == np.float32
    assert made.timestamp is not None
    assert made.timestamp.dtype == np.float64
    assert made.label.tolist() == [5, 3, 1]
    assert made.timestamp.tolist() == [0.5, 1.0, 2.0]


def test_nothing_can_be_changed() -> None:
    labels = np.array([5.0, 3.0, 1.0], np.float32)
    made = tiny(label=labels)
    labels[0] = 4  # the caller's array stays the caller's
    assert made.label[0] == 5
    for field in ("user", "item", "label", "timestamp"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(made, field)[0] = 0
    with pytest.raises(FrozenInstanceError):
        made.name = "other"  # type: ignore[misc]


def test_the_fingerprint_sees_every_value_but_no_name() -> None:
    changed = [
        tiny(),
        tiny(user=np.array([1, 1, 1])),
        tiny(item=np.array([2, 1, 2])),
        tiny(label=np.array([5.0, 3.0, 2.0])),
        tiny(timestamp=np.array([10, 20, 31])),
        tiny(timestamp=np.array([10.0, 20.0, 30.0])),
        tiny(timestamp=None),
        tiny(users=Vocabulary.from_values(["ann", "eve"])),
        tiny(items=Vocabulary.from_values([7, 8, 10])),
        tiny().take([1, 0, 2]),
    ]
    prints = [interactions.fingerprint() for interactions in changed]
    assert len(set(prints)) == len(prints)
    assert tiny(name="other", item_titles=None).fingerprint() == prints[0]


def test_the_fingerprint_is_the_same_everywhere() -> None:
    assert tiny().fingerprint().startswith("267eca18e360")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"user": [], "item": [], "label": []}, DataError, "has no rows"),
        ({"item": [0, 1]}, DataError, r"item of interactions has shape \(2,\); wanted \(3,\)"),
        ({"label": [[1], [2], [3]]}, DataError, r"label .* has shape \(3, 1\)"),
        ({"user": [0, 2, 1]}, EntityIdError, r"user 2 in row 1 .* outside \[0, 2\)"),
        ({"item": [0, 1, -1]}, EntityIdError, r"item -1 in row 2 .* outside \[0, 3\)"),
        ({"user": [0.0, 1.0, 1.0]}, DtypeError, "user of interactions is float64"),
        ({"user": ["a", "b", "b"]}, DtypeError, "wanted integers: dense ids"),
        ({"label": ["5", "3", "1"]}, DtypeError, "label of interactions is <U1; wanted numbers"),
        ({"label": [5, np.nan, np.inf]}, DataError, "label in row 1 .* is nan, one of 2 rows"),
        ({"label": [5, 1e300, 1]}, DataError, "label in row 1 .* is inf"),
        ({"timestamp": [1, 2, np.inf]}, DataError, "timestamp in row 2 .* is inf, one of 1 row "),
        ({"item_titles": ("x",)}, DataError, "1 item titles for 3 items"),
    ],
)
def test_bad_rows_are_refused_by_name(changes: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        tiny(**changes)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ([], DataError, "has no rows"),
        ([False] * 3, DataError, "has no rows"),
        ([0, 3], ArgumentError, r"row 3 is outside \[0, 3\)"),
        ([-1], ArgumentError, r"row -1 is outside \[0, 3\)"),
        ([True], ArgumentError, r"mask has shape \(1,\); wanted \(3,\)"),
        ([0.0], DtypeError, "index is float64"),
    ],
)
def test_taking_what_is_not_there_is_refused(index: list, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        tiny().take(index)


def test_description_counts_the_rarely_seen() -> None:
    rows = [(0, item, 1, 1e9 + item) for item in range(6)] + [(1, 0, 5, 1.6e9)]
    text = interactions_of(rows, num_users=4).describe()
    assert "7 interactions, 4 users, 6 items, density 29.2%" in text
    assert "labels from 1 to 5, mean 1.571" in text
    assert "from 2001-09-09 to 2020-09-13 (UTC)" in text
    assert "at most 5 interactions: 75% of users, 100% of items" in text
    assert "times unknown" in replace(interactions_of(rows), timestamp=None).describe()
    assert repr(tiny()) == "Interactions('interactions', 3 rows, 2 users, 3 items)"
