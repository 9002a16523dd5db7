"""Negatives are never known, and come up as often as they should."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from celrec.data.interactions import Interactions
from celrec.data.sampling import sample_negatives
from celrec.errors import ArgumentError, DataError
from tests.data.making import interactions_of, some_interactions


def known_items(interactions: Interactions) -> dict[int, set[int]]:
    known: dict[int, set[int]] = {user: set() for user in range(interactions.num_users)}
    for user, item in zip(interactions.user.tolist(), interactions.item.tolist(), strict=True):
        known[user].add(item)
    return known


def can_be_drawn(interactions: Interactions, power: float) -> dict[int, set[int]]:
    seen = interactions.item_counts() > 0
    items = set(np.flatnonzero(seen | (power == 0)).tolist())
    return {user: items - known for user, known in known_items(interactions).items()}


@given(
    some_interactions(), st.integers(1, 4), st.sampled_from([0.0, 0.75, 1.0]), st.integers(0, 99)
)
def test_a_negative_is_never_known(
    positives: Interactions, per_positive: int, power: float, seed: int
) -> None:
    allowed = can_be_drawn(positives, power)
    assume(all(allowed[user] for user in positives.user.tolist()))
    both = sample_negatives(positives, per_positive=per_positive, seed=seed, popularity_power=power)
    m = per_positive + 1
    assert len(both) == m * len(positives)
    assert both.user.tolist() == np.repeat(positives.user, m).tolist()
    assert both.item[::m].tolist() == positives.item.tolist()
    assert both.label.reshape(-1, m).tolist() == [[1.0] + [0.0] * per_positive] * len(positives)
    if positives.timestamp is not None:
        assert both.timestamp is not None
        assert both.timestamp.tolist() == np.repeat(positives.timestamp, m).tolist()
    assert both.has_drawn_negatives
    assert both.take(np.arange(len(both))).has_drawn_negatives
    for counted in ("user_counts", "item_counts"):
        assert getattr(both, counted)().tolist() == getattr(positives, counted)().tolist()
    for user, item, label in zip(
        both.user.tolist(), both.item.tolist(), both.label.tolist(), strict=True
    ):
        assert label == 1 or item in allowed[user]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_negatives_come_in_proportion_to_popularity(power: float) -> None:
    # User 0 met items 0 and 3; item i = 0..5 has 1, 2, 3, 4, 5, 0 interactions.
    rows = [(0, 0, 1, 0), (0, 3, 1, 0)]
    rows += [(user, item, 1, 0) for item in range(5) for user in range(1, item + (item != 3) + 1)]
    rows = [row for row in rows if row != (1, 0, 1, 0)]
    positives = interactions_of(rows, num_items=6)
    counts = positives.item_counts()
    assert counts.tolist() == [1, 2, 3, 4, 5, 0]
    both = sample_negatives(positives, per_positive=50_000, seed=1, popularity_power=power)
    drawn = both.item[(both.user == 0) & (both.label == 0)]
    found = np.bincount(drawn, minlength=6) / len(drawn)
    expected = np.where(np.isin(np.arange(6), [0, 3]), 0.0, counts.astype(float) ** power)
    if power > 0:
        expected[5] = 0
    expected /= expected.sum()
    # 100,000 draws: a standard deviation is at most 0.0016
    np.testing.assert_allclose(found, expected, atol=0.008)
    assert (found[expected == 0] == 0).all()


def test_the_seed_decides() -> None:
    rows = [(user, item, 1, 0) for user in range(20) for item in range(5)]
    positives = interactions_of(rows, num_items=100)

    def drawn(seed: int) -> list[int]:
        return sample_negatives(positives, per_positive=2, seed=seed).item.tolist()

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def test_other_known_pairs_are_not_drawn() -> None:
    everything = interactions_of([(0, item, item % 2, 0) for item in range(9)], num_items=10)
    train = everything.take([0, 1])
    both = sample_negatives(train, per_positive=3, seed=0, known=everything)
    assert set(both.item[both.label == 0].tolist()) == {9}


def test_a_user_who_met_everything_is_named() -> None:
    positives = interactions_of([(0, 0, 1, 0), (1, 0, 1, 0), (1, 1, 1, 0)], num_items=2)
    with pytest.raises(DataError, match="user 1 of interactions already met 2 of 2 items"):
        sample_negatives(positives, per_positive=1, seed=0)
    # Item 2 is left for user 1, but nobody ever met it.
    positives = interactions_of([(0, 0, 1, 0), (1, 0, 1, 0), (1, 1, 1, 0)], num_items=3)
    assert len(sample_negatives(positives, per_positive=1, seed=0)) == 6
    with pytest.raises(DataError, match="user 1 of interactions already met 2 of 3 items"):
        sample_negatives(positives, per_positive=1, seed=0, popularity_power=1)


def test_bad_arguments_are_refused() -> None:
    positives = interactions_of([(0, 0, 1, 0)], num_items=3)
    with pytest.raises(ArgumentError, match="per_positive is 0"):
        sample_negatives(positives, per_positive=0, seed=0)
    with pytest.raises(ArgumentError, match="popularity_power is -1"):
        sample_negatives(positives, per_positive=1, seed=0, popularity_power=-1)
    other = interactions_of([(0, 0, 1, 0)], num_items=4)
    with pytest.raises(DataError, match="have different vocabularies"):
        sample_negatives(positives, per_positive=1, seed=0, known=other)


def test_a_large_catalogue_is_no_trouble() -> None:
    rng = np.random.default_rng(0)
    n, num_users, num_items = 200_000, 100_000, 1_000_000
    positives = interactions_of(
        np.column_stack(
            [rng.integers(0, num_users, n), rng.zipf(1.3, n) % num_items, np.ones(n), np.ones(n)]
        ).astype(int),
        num_users=num_users,
        num_items=num_items,
    )
    both = sample_negatives(positives, per_positive=2, seed=0, popularity_power=0.75)
    known = positives.user * num_items + positives.item
    drawn = (both.user * num_items + both.item)[both.label == 0]
    assert not np.isin(drawn, known).any()
