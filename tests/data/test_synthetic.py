"""Planted data have the structure that they say they have."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celrec.data.synthetic import PlantedData, planted_clusters, planted_nmf
from celrec.errors import ArgumentError


def planted(**options: object) -> PlantedData:
    plain = {"num_interactions": 5_000, "seed": 0}
    return planted_clusters(40, 30, 4, 3, **(plain | options))  # type: ignore[arg-type]


@given(st.integers(1, 30), st.integers(1, 30), st.data(), st.sampled_from([0.0, 1.0, 2.0]))
def test_every_cluster_has_a_member(
    num_users: int, num_items: int, data: st.DataObject, skew: float
) -> None:
    num_user_clusters = data.draw(st.integers(1, num_users))
    num_item_clusters = data.draw(st.integers(1, num_items))
    made = planted_clusters(
        num_users,
        num_items,
        num_user_clusters,
        num_item_clusters,
        num_interactions=10,
        seed=1,
        cluster_skew=skew,
    )
    user_sizes = np.bincount(made.user_cluster, minlength=num_user_clusters)
    item_sizes = np.bincount(made.item_cluster, minlength=num_item_clusters)
    for sizes, total in ((user_sizes, num_users), (item_sizes, num_items)):
        assert sizes.sum() == total
        assert (sizes >= 1).all()
        if skew == 0:
            assert sizes.max() - sizes.min() <= 1
    assert made.user_rows.shape == (num_user_clusters, 4)
    assert made.item_rows.shape == (num_item_clusters, 4)


def test_labels_without_noise_are_the_scores_of_the_clusters() -> None:
    made = planted(noise=0.0, signal=2.0, width=5)
    data = made.interactions
    expected = [
        2 * made.user_rows[made.user_cluster[u]] @ made.item_rows[made.item_cluster[i]] / 5**0.5
        for u, i in zip(data.user, data.item, strict=True)
    ]
    np.testing.assert_allclose(made.score, expected, rtol=1e-12)
    np.testing.assert_allclose(data.label, made.score, rtol=1e-6)


def test_noise_has_the_stated_size() -> None:
    made = planted(noise=0.7, num_interactions=50_000)
    rest = made.interactions.label - made.score
    assert abs(rest.mean()) < 0.02
    assert abs(rest.std() - 0.7) < 0.02


def test_entities_lie_around_their_cluster_as_far_as_stated() -> None:
    made = planted_clusters(
        5000, 4000, 1, 1, num_interactions=200_000, seed=0, noise=0.0, spread=0.5, width=4
    )
    own = (made.user_rows**2).sum() + (made.item_rows**2).sum()
    expected = (0.25 * own + 0.0625 * 4) / 4  # variance of (a + x / 2) . (b + y / 2) / sqrt(4)
    assert abs(made.score.var() / expected - 1) < 0.1
    pairs = made.interactions.user * 4000 + made.interactions.item
    _, first, again = np.unique(pairs, return_index=True, return_inverse=True)
    assert len(first) < len(pairs)
    np.testing.assert_array_equal(made.score, made.score[first][again])


def test_binary_labels_come_up_as_the_logits_say() -> None:
    made = planted(task="binary", noise=0.0, signal=2.0, num_interactions=100_000)
    assert set(made.interactions.label.tolist()) == {0.0, 1.0}
    assert made.score.min() < -1
    assert made.score.max() > 1
    for logit in np.unique(made.score):  # one for every pair of clusters
        labels = made.interactions.label[made.score == logit]
        expected = 1 / (1 + np.exp(-logit))
        assert abs(labels.mean() - expected) < 4 * (0.25 / len(labels)) ** 0.5


def test_popularity_follows_zipfs_law() -> None:
    made = planted_clusters(
        50, 200, 2, 2, num_interactions=200_000, seed=0, popularity_skew=1.0
    ).interactions
    counts = np.sort(made.item_counts())[::-1]
    expected = 1 / np.arange(1, 201)
    expected *= len(made) / expected.sum()
    np.testing.assert_allclose(counts[:20], expected[:20], rtol=0.1)
    even = planted_clusters(50, 200, 2, 2, num_interactions=200_000, seed=0).interactions
    assert even.item_counts().max() < 1.2 * even.item_counts().min()


def test_cluster_sizes_follow_their_skew() -> None:
    made = planted_clusters(
        1_003, 30, 3, 3, num_interactions=10, seed=0, cluster_skew=1.0
    )  # 1/1 : 1/2 : 1/3 of the thousand beyond one each
    assert np.bincount(made.user_cluster).tolist() == [546, 274, 183]


@pytest.mark.parametrize("drift", [0.0, 0.25, 1.0])
def test_the_stated_share_of_users_drifts_in_the_middle_of_the_data(drift: float) -> None:
    made = planted(drift=drift, noise=0.0)
    n = len(made.interactions)
    changed = made.user_cluster != made.user_cluster_after
    assert changed.sum() == round(drift * 40)
    assert (made.changes_at[~changed] == n).all()
    assert ((made.changes_at[changed] >= n // 4) & (made.changes_at[changed] < n - n // 4)).all()
    data = made.interactions
    is_later = np.arange(n) >= made.changes_at[data.user]
    cluster = np.where(is_later, made.user_cluster_after[data.user], made.user_cluster[data.user])
    products = made.user_rows @ made.item_rows.T / 2
    np.testing.assert_allclose(made.score, products[cluster, made.item_cluster[data.item]])


def test_nonnegative_rows_give_nonnegative_scores() -> None:
    made = planted(nonnegative=True)
    assert (made.user_rows >= 0).all()
    assert (made.item_rows >= 0).all()
    assert (made.score > 0).all()


def test_the_seed_decides_everything() -> None:
    assert planted().interactions.fingerprint() == planted().interactions.fingerprint()
    assert planted().interactions.fingerprint() != planted(seed=1).interactions.fingerprint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_interactions": 0}, "num_interactions is 0"),
        ({"width": 0}, "width is 0"),
        ({"noise": -1.0}, "noise is -1"),
        ({"spread": -1.0}, "spread is -1"),
        ({"signal": 0.0}, "signal is 0; wanted a finite number above 0"),
        ({"drift": 1.5}, "drift is 1.5"),
        ({"popularity_skew": -1}, "popularity_skew is -1"),
        ({"cluster_skew": float("inf")}, "cluster_skew is inf"),
        ({"task": "ranking"}, "task is 'ranking'; wanted 'rating' or 'binary'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        planted(**options)


def test_more_clusters_than_entities_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"num_user_clusters is 5; wanted .* from 1 to 4"):
        planted_clusters(4, 4, 5, 2, num_interactions=10, seed=0)
    with pytest.raises(ArgumentError, match="there is one user cluster"):
        planted_clusters(4, 4, 1, 2, num_interactions=10, seed=0, drift=0.5)


# --- nonnegative matrices ------------------------------------------------------------------------


def planted_matrix(**options: object) -> PlantedData:
    plain = {"rank": 3, "seed": 0}
    return planted_nmf(120, 90, 4, 5, **(plain | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
def test_each_factor_is_alone_in_one_row_of_either_table(seed: int) -> None:
    made = planted_matrix(seed=seed)
    for rows, K in ((made.user_rows, 4), (made.item_rows, 5)):
        assert rows.shape == (K, 3)
        assert (rows >= 0).all()
        pure = rows[(rows > 0).sum(1) == 1]
        assert sorted(pure.argmax(1).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("seed", range(5))
def test_clusters_of_a_matrix_are_as_far_apart_as_asked(seed: int) -> None:
    made = planted_matrix(seed=seed, separation=0.5)
    scores = (made.user_rows @ made.item_rows.T)[np.ix_(made.user_cluster, made.item_cluster)]
    for lines, cluster_of in ((scores, made.user_cluster), (scores.T, made.item_cluster)):
        first = [lines[cluster_of == k][0] for k in np.unique(cluster_of)]
        for k, line in enumerate(first):
            for other in first[:k]:
                assert np.square(line - other).mean() ** 0.5 >= 0.499 * scores.std()


def test_the_largest_cluster_of_a_matrix_is_as_many_times_the_smallest() -> None:
    made = planted_nmf(150, 60, 5, 3, rank=2, size_ratio=5, seed=0)
    assert np.bincount(made.user_cluster).tolist() == [10, 20, 30, 40, 50]
    even = planted_nmf(150, 60, 5, 3, rank=2, size_ratio=1, seed=0)
    assert np.bincount(even.user_cluster).tolist() == [30] * 5
    assert np.bincount(
        planted_nmf(2, 2, 2, 2, rank=1, observed=1, seed=0).user_cluster
    ).tolist() == [1, 1]


def test_entries_of_a_matrix_are_seen_once_and_as_many_as_asked() -> None:
    made = planted_matrix(observed=0.25)
    data = made.interactions
    assert len(set(zip(data.user.tolist(), data.item.tolist(), strict=True))) == len(data)
    assert abs(len(data) / (120 * 90) - 0.25) < 0.02
    assert abs(np.corrcoef(np.arange(len(data)), data.user)[0, 1]) < 0.1  # in random order
    assert len(planted_matrix(observed=1.0).interactions) == 120 * 90


def test_noise_of_a_matrix_is_in_units_of_its_scores() -> None:
    made = planted_matrix(noise=0.5, observed=1.0)
    rest = made.interactions.label - made.score
    assert made.noise_std == pytest.approx(0.5 * made.score.std(), rel=1e-6)  # all entries are seen
    assert rest.std() == pytest.approx(made.noise_std, rel=0.03)
    exact = planted_matrix(noise=0.0)
    np.testing.assert_allclose(exact.interactions.label, exact.score, rtol=1e-6)


def test_the_seed_decides_a_matrix() -> None:
    first, second = planted_matrix().interactions, planted_matrix(seed=1).interactions
    assert first.fingerprint() == planted_matrix().interactions.fingerprint()
    assert first.fingerprint() != second.fingerprint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 5}, "num_user_clusters is 4; wanted an integer of at least 5"),
        ({"observed": 0.0}, "observed is 0"),
        ({"observed": 1.1}, "observed is 1.1"),
        ({"noise": -1.0}, "noise is -1"),
        ({"size_ratio": 0.5}, "size_ratio is 0.5"),
        ({"separation": -1.0}, "separation is -1"),
        ({"separation": 9.0}, "separation is 9, and 1000 draws .* wanted less"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments_of_a_matrix_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        planted_matrix(**options)


def test_a_matrix_of_one_cluster_has_scores_that_are_all_the_same() -> None:
    made = planted_nmf(10, 10, 1, 1, rank=1, seed=0)
    assert len(set(made.score.tolist())) == 1
    assert made.noise_std == 0
