"""Partitions: laws, and agreement with slow versions of the two protocols on real data."""

import itertools
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from celrec.data.interactions import Interactions
from celrec.data.labels import binarize
from celrec.data.partition import (
    Partition,
    by_time,
    leave_last_out,
    random_partition,
    truncated,
)
from celrec.data.readers import read_interactions
from celrec.data.synthetic import planted_clusters
from celrec.errors import ArgumentError, DataError
from tests.data.making import interactions_of, some_interactions


def all_rows(partition: Partition) -> list[int]:
    parts = (partition.train, partition.validation, partition.test)
    return sorted(np.concatenate(parts).tolist())


def contents(interactions: Interactions, rows: np.ndarray) -> list[tuple]:
    """What rows hold, whatever their numbers."""
    part = interactions.take(rows)
    times = np.zeros(len(part)) if part.timestamp is None else part.timestamp
    columns = (part.user, part.item, part.label, times)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


@given(some_interactions(min_rows=20), st.integers(0, 2**32), st.sampled_from([0.1, 0.2, 0.5]))
def test_a_random_partition_uses_every_row_once(
    interactions: Interactions, seed: int, test_share: float
) -> None:
    n = len(interactions)
    partition = random_partition(interactions, seed=seed, test_share=test_share)
    assert all_rows(partition) == list(range(n))
    assert len(partition.test) == n - int(n * (1 - test_share) + 1e-9)
    assert len(partition.validation) == (n - len(partition.test)) // 10


def test_truncated_users_and_items_keep_as_many_events_as_asked() -> None:
    data = planted_clusters(300, 200, 2, 2, num_interactions=20_000, seed=0).interactions
    parts = truncated(data, seed=3, keep=(1, 3, 5))
    assert all_rows(parts) == list(range(len(data)))
    train, merged, test = (
        data.take(rows) for rows in (parts.train, parts.merge_validation().train, parts.test)
    )
    for side, num_entities in (("user", 300), ("item", 200)):
        whole, left, reported = (
            np.bincount(getattr(part, side), minlength=num_entities)
            for part in (data, train, merged)
        )
        is_cut, tests = left <= 5, reported <= 5
        assert is_cut.sum() == 2 * tests.sum() == num_entities // 5  # a tenth each
        assert np.bincount(left[is_cut])[[1, 3, 5]].sum() == is_cut.sum()
        assert np.ptp(np.bincount(left[is_cut])[[1, 3, 5]]) <= 1
        # Of those that validate, the reported run lacks what they share with the tested ones alone.
        events_of_validating = (is_cut & ~tests)[getattr(test, side)].sum()
        assert (whole - reported)[is_cut & ~tests].sum() == events_of_validating
        assert events_of_validating < 0.3 * whole[is_cut & ~tests].sum()
    is_cold = (merged.user_counts()[test.user] <= 5) | (merged.item_counts()[test.item] <= 5)
    assert is_cold.all()


def test_truncation_follows_its_seed_and_leaves_rarely_seen_entities_alone() -> None:
    data = planted_clusters(60, 40, 2, 2, num_interactions=1500, seed=0).interactions
    assert truncated(data, seed=1).test.tolist() == truncated(data, seed=1).test.tolist()
    assert truncated(data, seed=1).test.tolist() != truncated(data, seed=2).test.tolist()
    few = data.take(np.arange(60))  # nobody has more than 5 of 60
    assert few.user_counts().max() <= 5
    with pytest.raises(DataError, match=r"truncated\(.*\) leaves no interaction for test"):
        truncated(few, seed=0)
    with pytest.raises(ArgumentError, match="keep is 0"):
        truncated(data, seed=0, keep=(0,))
    with pytest.raises(ArgumentError, match=r"share is 0\.6"):
        truncated(data, seed=0, share=0.6)


@given(some_interactions(min_rows=10), st.randoms(use_true_random=False), st.integers(0, 100))
def test_the_order_of_the_file_does_not_matter(
    interactions: Interactions, random: object, seed: int
) -> None:
    order = list(range(len(interactions)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = interactions.take(order)
    makers = [lambda data: random_partition(data, seed=seed)]
    if interactions.timestamp is not None:
        makers += [by_time]
    for make in makers:
        before, after = make(interactions), make(shuffled)
        for part in ("train", "validation", "test"):
            rows_before, rows_after = getattr(before, part), getattr(after, part)
            keys = [  # labels of equal (user, item, time) may trade places
                [key[:2] + key[3:] for key in contents(data, rows)] if len(rows) else []
                for data, rows in ((interactions, rows_before), (shuffled, rows_after))
            ]
            assert sorted(keys[0]) == sorted(keys[1])


def slow_leave_last_out(data: Interactions, num_test: int, num_validation: int) -> dict:
    events = defaultdict(list)
    for row in range(len(data)):
        events[data.user[row]].append((data.timestamp[row], data.item[row], row))
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for user in sorted(events):
        rows = [row for *_, row in sorted(events[user])]
        if len(rows) > num_test + num_validation:
            parts["test"] += rows[-num_test:]
            parts["validation"] += rows[len(rows) - num_test - num_validation : -num_test]
            rows = rows[: len(rows) - num_test - num_validation]
        parts["train"] += rows
    return parts


@given(some_interactions(min_rows=20, has_times=True), st.integers(1, 3), st.integers(0, 2))
def test_leave_last_out_agrees_with_a_loop(
    data: Interactions, num_test: int, num_validation: int
) -> None:
    assume(data.user_counts().max() > num_test + num_validation)
    partition = leave_last_out(data, num_test=num_test, num_validation=num_validation)
    expected = slow_leave_last_out(data, num_test, num_validation)
    assert partition.train.tolist() == expected["train"]
    assert partition.validation.tolist() == expected["validation"]
    assert partition.test.tolist() == expected["test"]
    assert all_rows(partition) == list(range(len(data)))


@given(
    some_interactions(min_rows=20, has_times=True),
    st.sampled_from([0.1, 0.3, 0.5]),
    st.sampled_from([0.0, 0.2]),
)
def test_by_time_never_trains_on_the_future(
    data: Interactions, test_share: float, validation_share: float
) -> None:
    partition = by_time(data, test_share=test_share, validation_share=validation_share)
    assert all_rows(partition) == list(range(len(data)))
    assert data.timestamp is not None
    times = [data.timestamp[getattr(partition, p)] for p in ("train", "validation", "test")]
    ends = [(part.min(), part.max()) for part in times if len(part)]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ends))


@given(some_interactions(min_rows=15), st.integers(0, 100))
def test_merged_validation_trains_and_the_test_set_stays(data: Interactions, seed: int) -> None:
    partition = random_partition(data, seed=seed)
    merged = partition.merge_validation()
    assert merged.train.tolist() == [*partition.train, *partition.validation]
    assert merged.validation.size == 0
    assert merged.test.tolist() == partition.test.tolist()
    assert merged.name == partition.name


@pytest.mark.parametrize(("name", "seed"), [("ml_100k", 0), ("ml_100k", 3), ("ml_1m", 1)])
def test_the_rating_protocol_is_followed_to_the_letter(
    real_file: Callable[[str], Path], name: str, seed: int
) -> None:
    frame = pl.read_parquet(real_file(name)).select("user", "item", "rating", "timestamp")
    frame = frame.sort("timestamp", "user", "item")  # raw ids
    n = frame.height
    permutation = np.random.default_rng(seed).permutation(n)
    development = permutation[: int(0.8 * n)]
    num_validation = len(development) // 10
    expected = {
        "train": development[: len(development) - num_validation],
        "validation": development[len(development) - num_validation :],
        "test": permutation[int(0.8 * n) :],
    }
    data = read_interactions(real_file(name), timestamp="timestamp")
    partition = random_partition(data, seed=seed)
    for part, rows in expected.items():
        found = data.take(getattr(partition, part))
        wanted = frame[rows]
        assert found.users.decode(found.user) == wanted["user"].to_list()
        assert found.items.decode(found.item) == wanted["item"].to_list()
        assert found.label.tolist() == wanted["rating"].to_list()


@pytest.mark.parametrize("name", ["ml_100k", "ml_1m"])
def test_the_gmf_protocol_is_followed_to_the_letter(
    real_file: Callable[[str], Path], name: str
) -> None:
    frame = (
        pl.read_parquet(real_file(name))
        .filter(pl.col("rating") != 3)
        .sort("user", "timestamp", "item")
        .with_columns(left=pl.len().over("user") - pl.int_range(pl.len()).over("user"))
    )
    data = binarize(read_interactions(real_file(name), timestamp="timestamp"), 4, drop=3)
    partition = leave_last_out(data)
    for part, wanted in (
        ("train", frame.filter(pl.col("left") > 3)),
        ("validation", frame.filter(pl.col("left") == 3)),
        ("test", frame.filter(pl.col("left") <= 2)),
    ):
        found = data.take(getattr(partition, part))
        assert found.users.decode(found.user) == wanted["user"].to_list()
        assert found.items.decode(found.item) == wanted["item"].to_list()
        assert found.label.tolist() == (wanted["rating"] >= 4).cast(pl.Int8).to_list()
    assert len(partition.test) == 2 * data.num_users


def test_a_user_with_few_events_only_trains() -> None:
    rows = [(0, 0, 1, t) for t in range(4)] + [(1, 0, 1, t) for t in range(3)] + [(2, 0, 1, 0)]
    partition = leave_last_out(interactions_of(rows))
    assert partition.train.tolist() == [0, 4, 5, 6, 7]
    assert partition.validation.tolist() == [1]
    assert partition.test.tolist() == [2, 3]


def test_impossible_partitions_are_refused() -> None:
    few = interactions_of([(0, 0, 1, 0), (0, 1, 1, 1)])
    without_times = interactions_of([(0, 0, 1, 0), (0, 1, 1, 1)], has_times=False)
    with pytest.raises(DataError, match=r"by_time needs times and .*name their column"):
        by_time(without_times)
    with pytest.raises(DataError, match="leave_last_out needs times"):
        leave_last_out(without_times)
    with pytest.raises(DataError, match=r"leave_last_out\(.*\) leaves no interaction for test"):
        leave_last_out(few)
    with pytest.raises(DataError, match=r"random\(.*\) leaves no interaction for train"):
        random_partition(few, seed=0, test_share=0.9)
    with pytest.raises(ArgumentError, match="test_share is 0; wanted"):
        by_time(few, test_share=0)
    with pytest.raises(ArgumentError, match="below 1: something must train"):
        random_partition(few, seed=0, test_share=1.0)
    with pytest.raises(ArgumentError, match="num_test is 0"):
        leave_last_out(few, num_test=0)
    with pytest.raises(ArgumentError, match="seed is -1"):
        random_partition(few, seed=-1)
    with pytest.raises(DataError, match="uses row 1 more than once"):
        Partition(train=np.array([0, 1]), validation=np.array([1]), test=np.array([2]))
