"""Ranking all items for a user: by hand, and on data whose best model is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from celrec.data.interactions import Interactions
from celrec.data.vocabulary import Vocabulary
from celrec.metrics import RANKING_METRIC_NAMES, rank_metrics
from celrec.training.ranking import rank_items


class Scores(nn.Module):
    """Predicts what it is given, (users, items)."""

    def __init__(self, scores: object) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores, dtype=torch.float32))

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return self.scores[user, item]


def met(
    pairs: list[tuple[int, int]], num_users: int, num_items: int, label: float = 1.0
) -> Interactions:
    user, item = (list(column) for column in zip(*pairs, strict=True))
    return Interactions(
        user=user,
        item=item,
        label=[label] * len(pairs),
        users=Vocabulary.from_values(range(num_users)),
        items=Vocabulary.from_values(range(num_items)),
    )


def joined(first: Interactions, second: Interactions) -> Interactions:
    return Interactions(
        **{
            name: np.concatenate([getattr(first, name), getattr(second, name)])
            for name in ("user", "item", "label")
        },
        users=first.users,
        items=first.items,
    )


def discount(place: int) -> float:
    return 1 / np.log2(place + 1)


def test_wanted_items_at_the_top_are_perfect() -> None:
    score, is_wanted = np.array([3.0, 1.0, 2.0, 4.0]), np.array([True, False, False, True])
    assert set(rank_metrics(score, is_wanted).values()) == {1.0}


def test_metrics_of_a_ranking_are_those_by_hand() -> None:
    score = -np.arange(12.0)
    is_wanted = np.isin(np.arange(12), (1, 11))  # second and twelfth
    best = discount(1) + discount(2)
    assert rank_metrics(score, is_wanted) == pytest.approx(
        {
            "ndcg": (discount(2) + discount(12)) / best,
            "ndcg_at_10": discount(2) / best,
            "average_precision": (1 / 2 + 2 / 12) / 2,
        }
    )


def test_items_of_equal_score_share_their_places() -> None:
    is_wanted = np.array([False, True, False, False])
    found = rank_metrics(np.array([9.0, 5.0, 5.0, 5.0]), is_wanted)
    assert found["ndcg"] == pytest.approx((discount(2) + discount(3) + discount(4)) / 3)
    assert found["average_precision"] == pytest.approx(1 / 4)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_items_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score, is_wanted = rng.integers(0, 4, 30).astype(float), rng.random(30) < 0.2
    is_wanted[0] = True
    order = rng.permutation(30)
    again = rank_metrics(score[order], is_wanted[order])
    assert again == pytest.approx(rank_metrics(score, is_wanted))


def test_met_items_are_left_out_and_negatives_are_not() -> None:
    model = Scores([[9.0, 8.0, 7.0, 6.0, 5.0]])
    train = met([(0, 0), (0, 1)], 1, 5)
    test = joined(met([(0, 3)], 1, 5), met([(0, 2), (0, 4)], 1, 5, label=0.0))
    negatives = met([(0, 4), (0, 3)], 1, 5, label=0.0)
    found = rank_items(model, joined(train, negatives), test, seed=0)
    assert found.users.tolist() == [0]
    assert found.values["ndcg"].tolist() == pytest.approx([discount(2)])  # behind item 2 alone
    assert found.means()["average_precision"] == 0.5


def test_users_without_anything_to_rank_are_left_out() -> None:
    # 0 has no test positive; 1 met its own in training; 2 has one item left; 3 is ranked.
    train = met([(0, 0), (1, 1), (2, 0), (2, 1), (3, 0)], 4, 3)
    test = joined(met([(1, 1), (2, 2), (3, 2)], 4, 3), met([(0, 1)], 4, 3, label=0.0))
    found = rank_items(Scores(np.zeros((4, 3))), train, test, seed=0)
    assert found.users.tolist() == [3]
    nobody = rank_items(Scores(np.zeros((4, 3))), train, met([(1, 1)], 4, 3), seed=0)
    assert nobody.means() == {**dict.fromkeys(RANKING_METRIC_NAMES), "num_ranked_users": 0}


def planted_taste(num_users: int, num_items: int) -> tuple[np.ndarray, Interactions, Interactions]:
    """Every user likes a fifth of the items, half of them in train; the truth as scores."""
    rng = np.random.default_rng(3)
    likes = np.argsort(rng.random((num_users, num_items)), 1)[:, : num_items // 5]
    truth = np.zeros((num_users, num_items))
    np.put_along_axis(truth, likes, 1.0, 1)
    half = likes.shape[1] // 2
    train, test = (
        met([(u, int(i)) for u in range(num_users) for i in some[u]], num_users, num_items)
        for some in (likes[:, :half], likes[:, half:])
    )
    return truth, train, test


def test_the_planted_taste_ranks_perfectly_and_no_taste_as_chance_does() -> None:
    truth, train, test = planted_taste(130, 40)  # more users than one block
    perfect = rank_items(Scores(truth), train, test, seed=0).means()
    assert perfect == pytest.approx(
        {**dict.fromkeys(RANKING_METRIC_NAMES, 1.0), "num_ranked_users": 130}
    )
    blind = rank_items(Scores(np.zeros((130, 40))), train, test, seed=0)
    # 36 items are left, 4 of them wanted: by chance a place has 4/36 of a wanted item.
    by_chance = sum(discount(p) for p in range(1, 37)) * 4 / 36
    best = sum(discount(p) for p in range(1, 5))
    assert blind.values["ndcg"] == pytest.approx(np.full(130, by_chance / best))


def test_the_same_users_are_drawn_for_every_model_with_a_seed() -> None:
    truth, train, test = planted_taste(80, 40)
    some = [rank_items(Scores(s), train, test, seed=1, max_users=20) for s in (truth, -truth)]
    assert some[0].users.tolist() == some[1].users.tolist()
    assert len(set(some[0].users.tolist())) == 20
    everyone = rank_items(Scores(truth * np.arange(40)), train, test, seed=1)
    few = rank_items(Scores(truth * np.arange(40)), train, test, seed=1, max_users=20)
    assert few.values["ndcg"].tolist() == everyone.values["ndcg"][few.users].tolist()
    other = rank_items(Scores(truth), train, test, seed=2, max_users=20)
    assert other.users.tolist() != some[0].users.tolist()
