"""Company: what an entity is looked up with, and what that says of its vector."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from celrec import ClusteredEmbedding, ClusterOptimizer
from celrec.core.company import Company, expected_vectors
from celrec.core.personal import PersonalFit, PersonalRule
from celrec.errors import SampleError


def random_matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn_company(num_entities: int, width: int) -> tuple[Company, Tensor, Tensor, Tensor]:
    """Company of entities with 1 to 20 samples each: what was observed, f_e, S_b and S_w."""
    count = torch.arange(num_entities) % 20 + 1
    between, within = (
        mix @ mix.T + 0.1 * torch.eye(width)
        for mix in (random_matrix(width, width, seed=1), 6 * random_matrix(width, width, seed=2))
    )
    own = random_matrix(num_entities, width, seed=3) @ torch.linalg.cholesky(between).T
    slots = torch.arange(num_entities).repeat_interleave(count)
    noise = random_matrix(len(slots), width, seed=4) @ torch.linalg.cholesky(within).T
    vectors = 3 + own[slots] + noise
    company = Company(num_entities + 1, width, vectors)  # one is never observed
    for some in torch.randperm(len(slots), generator=torch.Generator().manual_seed(5)).split(999):
        company.observe(slots[some], vectors[some])
    return company, own, between, within


def test_features_are_the_best_guesses_of_what_entities_keep_company_with() -> None:
    """In coordinates of their own: what they explain of f_e is what the guesses explain."""
    company, own, between, within = drawn_company(8000, 3)
    found = company.features()
    assert (found[-1] == 0).all()
    count = company.count[:-1].double().unsqueeze(1)
    apart = company.sums[:-1] / count - company.sums.sum(0) / company.count.sum()
    wanted = torch.stack(
        [
            between.double() @ torch.linalg.solve(between.double() + within.double() / n, one)
            for n, one in zip(count, apart, strict=True)
        ]
    )
    back = torch.linalg.lstsq(found[:-1].double(), wanted).solution
    left = found[:-1].double() @ back - wanted
    assert left.square().mean() < 0.01 * wanted.square().mean()
    error = (own - wanted).square().mean()
    assert error < 0.9 * (own - apart).square().mean()


def test_the_company_of_few_samples_counts_for_less() -> None:
    company, _, _, _ = drawn_company(8000, 3)
    size = company.features()[:-1].square().sum(1)
    by_count = [float(size[company.count[:-1] == n].mean()) for n in (1, 3, 10, 20)]
    assert by_count == sorted(by_count)
    assert by_count[0] < 0.5 * by_count[-1]


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_company_that_cannot_be_told_apart_says_nothing(offset: float) -> None:
    single = Company(50, 3, torch.empty(0))
    single.observe(torch.arange(50), random_matrix(50, 3) + offset)  # no entity has two samples
    equal = Company(50, 3, torch.empty(0))
    equal.observe(torch.arange(50).repeat(4), torch.full((200, 3), offset))
    alone = Company(1, 3, torch.empty(0))
    alone.observe(torch.zeros(50, dtype=torch.long), random_matrix(50, 3) + offset)
    for company in (single, equal, alone, Company(50, 3, torch.empty(0))):
        found = company.features()
        assert found.shape == company.sums.shape
        assert found.abs().max() < 1e-3


def test_company_that_lies_in_a_plane_can_be_told_apart_within_it() -> None:
    """As at the start of a fit, when vectors are mixes of few rows."""
    company, plane = Company(200, 4, torch.empty(0)), random_matrix(2, 4, seed=1)
    slots = torch.arange(200).repeat(10)
    coordinates = random_matrix(200, 2, seed=2)[slots] + random_matrix(2000, 2, seed=3)
    company.observe(slots, coordinates @ plane + 5)
    found = company.features()
    assert found.isfinite().all()
    assert (found.square().mean(0) > 1e-3).sum() == 2


def test_company_that_differs_by_little_of_its_length_can_be_told_apart() -> None:
    """As after a few steps of training: 64 numbers that are all but equal."""
    slots = torch.arange(60).repeat(40)
    apart = random_matrix(60, 64, seed=1)[slots] + random_matrix(2400, 64, seed=2)
    found = []
    for offset, scale in ((0.0, 1.0), (1.0, 1e-5)):
        company = Company(60, 64, torch.empty(0))
        for some in torch.arange(2400).split(500):
            company.observe(slots[some], offset + scale * apart[some])
        found.append(company.features().square().sum(1))
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0)


def test_company_that_is_not_finite_is_refused() -> None:
    company = Company(2, 2, torch.empty(0))
    company.observe(torch.tensor([0, 0, 1]), torch.tensor([[1.0, 2], [torch.nan, 1], [0, 0]]))
    with pytest.raises(torch.linalg.LinAlgError):
        company.features()


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


def test_samples_that_were_drawn_tell_nothing_of_company(
    data: ChosenItems, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(2)
    mixed = []
    for users, items, labels in data.batches:
        drawn = torch.randint(NUM_ITEMS, (len(users),), generator=generator)
        labels = torch.cat([labels, torch.full((len(users),), torch.nan)])
        mixed.append((users.repeat(2), torch.cat([items, drawn]), labels))

    def has_label(batch: tuple[Tensor, ...]) -> Tensor:
        return ~batch[2].isnan()

    def fitted(**options: Any) -> Dot:
        model, clusters = data.clusters()

        def loss_of_observed(batch: tuple[Tensor, ...]) -> Tensor:
            users, items, labels = batch
            apart = model(users, items) - labels.where(has_label(batch), 0)
            return apart.square() / (2 * 2**2) * has_label(batch)

        clusters.per_sample_loss = loss_of_observed
        clusters.personalize(mixed, rule=RULE, **options)
        return model

    company_told = fitted(is_observed=has_label)
    with monkeypatch.context() as patch:
        patch.setattr(PersonalFit, "_company_of", lambda self, name: [])
        no_company = fitted()
    gained = data.error(no_company) - data.error(company_told)
    assert data.error(no_company) - data.error(fitted()) < 0.8 * gained
    assert gained > 0.1 * data.error(no_company)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda batch: batch[2],
        lambda batch: (batch[2] > 0).unsqueeze(1),
        lambda batch: batch[2][1:] > 0,
    ],
)
def test_what_was_observed_is_a_mask_of_samples(data: ChosenItems, wrong: Any) -> None:
    model, clusters = data.clusters()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SampleError, match=r"is_observed gave torch\..*; wanted torch.bool of sh"):
        clusters.personalize(data.batches, rule=RULE, is_observed=wrong)
    torch.testing.assert_close(model.state_dict(), before)


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
