"""Company: what an entity is looked up with, and what that says of its vector."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from celrec import ClusteredEmbedding, ClusterOptimizer
from celrec.core.company import Company, expected_vectors
from celrec.core.personal import PersonalFit, PersonalRule


def random_matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_features_are_centred_sums_over_the_root_of_the_count() -> None:
    slots, vectors = torch.tensor([0, 2, 0, 0, 2, 3]), random_matrix(6, 3)
    company = Company(5, 3, vectors)
    for some in (slice(0, 4), slice(4, 6)):
        company.observe(slots[some], vectors[some])
    for slot, found in enumerate(company.features()):
        own = vectors[slots == slot] - vectors.mean(0)
        wanted = own.sum(0) / max(1, len(own)) ** 0.5
        torch.testing.assert_close(found, wanted)


def test_what_depends_on_company_alone_is_told_by_it() -> None:
    features = random_matrix(4000, 3)
    weights, centre = random_matrix(3, 2, seed=1), torch.tensor([5.0, -1.0])
    told = expected_vectors(centre + features @ weights, features)
    torch.testing.assert_close(told, centre + features @ weights, rtol=0, atol=0.05)


def test_company_that_says_nothing_leaves_the_mean() -> None:
    vectors = random_matrix(4000, 2, seed=2)
    told = expected_vectors(vectors, random_matrix(4000, 3, seed=3))
    assert (told - vectors.mean(0)).square().mean() < 0.01 * vectors.var()
    for features in (torch.zeros(4000, 3), torch.zeros(4000, 0)):
        torch.testing.assert_close(
            expected_vectors(vectors, features), vectors.mean(0).expand_as(vectors)
        )


def test_a_few_entities_are_not_told_apart_by_company() -> None:
    """Three entities and three numbers: a plain fit would explain them wholly."""
    vectors, features = random_matrix(3, 2, seed=4), random_matrix(3, 3, seed=5)
    apart = vectors - expected_vectors(vectors, features)
    assert apart.square().sum() > 0.3 * (vectors - vectors.mean(0)).square().sum()


# --- in a fit ------------------------------------------------------------------------------------

NUM_USERS, NUM_ITEMS, WIDTH = 300, 60, 3


class Dot(nn.Module):
    """The product of a user's and an item's vector; a second table of users adds its own."""

    def __init__(self, tables: dict[str, ClusteredEmbedding]) -> None:
        super().__init__()
        self.tables = nn.ModuleDict(tables)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        tables = self.tables
        product = (tables["user"](users) * tables["item"](items)).sum(1)
        return product + tables["again"](users).sum(1) if "again" in tables else product


class ChosenItems:
    """Users rate few items, and choose those that they like; two in three are new each time."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.users = torch.randn(NUM_USERS, WIDTH, generator=generator)
        self.items = torch.randn(NUM_ITEMS, WIDTH, generator=generator)
        liking = self.users @ self.items.T
        chosen = torch.multinomial((1.5 * liking).softmax(1), 8, generator=generator)
        users = torch.arange(NUM_USERS).repeat_interleave(8)
        items = chosen.flatten()
        labels = liking[users, items] + 2 * torch.randn(len(users), generator=generator)
        order = torch.randperm(len(users), generator=generator)
        self.batches = [(users[some], items[some], labels[some]) for some in order.split(400)]

    def clusters(self, *more: str) -> tuple[Dot, ClusterOptimizer]:
        sizes = {"user": NUM_USERS, "item": NUM_ITEMS, **dict.fromkeys(more, NUM_USERS)}
        tables = {}
        for number, (name, size) in enumerate(sizes.items()):
            rows = random_matrix(8, WIDTH, seed=number)
            truth = self.items if name == "item" else self.users
            nearest = torch.cdist(truth, rows).argmin(1)
            assert len(truth) == size
            tables[name] = ClusteredEmbedding.from_pretrained(rows, nearest)
        model = Dot(tables)

        def per_sample_loss(batch: tuple[Tensor, ...]) -> Tensor:
            return (model(batch[0], batch[1]) - batch[2]).square() / (2 * 2**2)

        return model, ClusterOptimizer(model, None, per_sample_loss)

    def error(self, model: Dot) -> float:
        """Of all users with all items, noise left out."""
        found = model.tables["user"].to_dense() @ model.tables["item"].to_dense().T
        return float((found - self.users @ self.items.T).square().mean())


@pytest.fixture(scope="module")
def data() -> ChosenItems:
    return ChosenItems()


RULE = PersonalRule(epochs=16, warm_epochs=4)


def test_choices_help_to_know_users_of_few_ratings(
    data: ChosenItems, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, clusters = data.clusters()
    clusters.personalize(data.batches, rule=RULE)
    alone, clusters = data.clusters()
    with monkeypatch.context() as patch:
        patch.setattr(PersonalFit, "_company_of", lambda self, name: [])
        clusters.personalize(data.batches, rule=RULE)
    assert data.error(model) < 0.9 * data.error(alone)


def test_a_second_table_of_the_same_entities_is_no_company(
    data: ChosenItems, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[str]] = {}
    company_of = PersonalFit._company_of

    def told(self: Any, name: str) -> list[str]:
        seen[name] = company_of(self, name)
        return seen[name]

    monkeypatch.setattr(PersonalFit, "_company_of", told)
    data.clusters("again")[1].personalize(data.batches, rule=PersonalRule(epochs=2, warm_epochs=0))
    assert seen == {
        "tables.user": ["tables.item"],
        "tables.item": ["tables.user", "tables.again"],
        "tables.again": ["tables.item"],
    }
