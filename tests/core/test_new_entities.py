"""Entities that come after training: tables grow in place, and first codes come from features."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from celrec import ClusteredEmbedding, ClusteredEmbeddingBag, memory_report
from celrec.checkpoint import load_arrays, load_frozen, save_frozen
from celrec.core.blend import BlendRule, NearestBlend
from celrec.core.codes import code_bytes
from celrec.core.first_codes import FirstCodes
from celrec.core.mixing import nearest_blend, nearest_blends
from celrec.core.personal import PersonalPlan
from celrec.errors import ArgumentError, EntityIdError
from tests.core.test_blend import blended, shapes, trained

# --- growing -------------------------------------------------------------------------------------


def with_personal(table: ClusteredEmbedding, num_personal: int, seed: int) -> ClusteredEmbedding:
    generator = torch.Generator().manual_seed(seed)
    entities = torch.randperm(table.num_embeddings, generator=generator)[:num_personal]
    offsets = torch.randn(num_personal, table.embedding_dim, generator=generator)
    table.commit_personal(PersonalPlan(entities.sort().values, offsets))
    return table


@given(shapes, st.integers(1, 30), st.sampled_from(["nobody", "some", "everyone"]))
def test_growing_keeps_every_vector_and_adds_the_prior(
    shape: tuple[int, ...], count: int, personal: str
) -> None:
    table, _ = blended(*shape)
    num_entities, width, num_rows, blend_size, seed = shape
    table.prior_sizes = torch.randint(9, table.prior_sizes.shape)
    num_personal = {"nobody": 0, "some": num_entities // 2, "everyone": num_entities}[personal]
    with_personal(table, num_personal, seed)
    before, parameter = table.to_dense(), table.weight
    new = table.add_entities(count)
    assert new == range(num_entities, num_entities + count)
    assert table.weight is parameter
    after = table.to_dense()
    assert torch.equal(after[:num_entities], before)
    assert table.num_personal == num_personal

    share = (table.prior_sizes[:num_rows] + 1).double()
    rows = table.weight.detach()[:num_rows].double()
    size = min(blend_size, num_rows)
    positions, weights = nearest_blend(rows, share @ rows / share.sum(), size)
    wanted = (weights @ rows[positions]).float().expand(count, width)
    torch.testing.assert_close(after[num_entities:], wanted, rtol=0.1, atol=0.5)
    assert torch.equal(after[num_entities:], after[num_entities:][:1].expand(count, width))


@given(shapes, st.integers(1, 300), st.sampled_from(["nobody", "some", "everyone"]))
def test_bytes_of_a_grown_table_are_exact(
    shape: tuple[int, ...], count: int, personal: str
) -> None:
    table, _ = blended(*shape)
    num_personal = {"nobody": 0, "some": shape[0] // 2, "everyone": shape[0]}[personal]
    with_personal(table, num_personal, shape[4])
    table.add_entities(count)
    index = shape[0] + count if num_personal else 0  # one byte each
    memory = table.memory()
    assert memory.code_bytes == (shape[0] + count) * code_bytes(shape[3], 1) + index
    assert memory.full_table_bytes == (shape[0] + count) * shape[1] * 4
    nobody = 1 if num_personal else 0
    assert memory.personal_bytes == (num_personal + nobody) * (shape[1] + 2)


def test_a_grown_table_is_saved_and_frozen_whole(tmp_path: Path) -> None:
    for num_personal in (0, 8, 20):
        table = with_personal(blended(20, 3, 5, 4, seed=1)[0], num_personal, seed=2)
        table.add_entities(3)
        twin = ClusteredEmbedding(23, 3, max_clusters=5)
        twin.load_state_dict(table.state_dict())
        assert torch.equal(twin.to_dense(), table.to_dense())
        save_frozen(nn.Sequential(table), tmp_path / "frozen.safetensors")
        arrays, _ = load_arrays(tmp_path / "frozen.safetensors")
        saved = sum(array.numel() * array.element_size() for array in arrays.values())
        assert saved == memory_report(table).total_bytes
        frozen = load_frozen(tmp_path / "frozen.safetensors")
        thawed = frozen.install(nn.Sequential(ClusteredEmbedding(5, 3, 2)))
        assert torch.equal(thawed(torch.arange(23)), table.to_dense())
        with pytest.raises(RuntimeError, match="size mismatch for codes"):
            ClusteredEmbedding(20, 3, max_clusters=5).load_state_dict(table.state_dict())


def test_a_table_grows_beyond_the_width_of_its_index_of_personal_vectors() -> None:
    table = with_personal(blended(255, 2, 5, 1, seed=1)[0], 255, seed=2)
    before = table.to_dense()
    table.add_entities(1000)  # the index must name 256 lines, nobody's last
    assert table.personal_of.dtype is torch.uint8
    assert torch.equal(table.to_dense()[:255], before)
    other = with_personal(blended(256, 2, 5, 1, seed=1)[0], 256, seed=2)
    other.add_entities(1)
    assert other.personal_of.dtype is torch.int16
    assert not other._offsets(torch.tensor([256])).any()


def test_padding_stays_and_new_entities_count_as_members() -> None:
    table, _ = blended(9, 4, 5, 2, seed=2, padding_idx=-1)
    table.add_entities(4)
    assert table.padding_idx == 8
    assert not table(torch.tensor([8])).any()
    assert int(table.cluster_sizes().sum()) == 12
    bag = ClusteredEmbeddingBag(6, 2, max_clusters=3)
    bag.add_entities(2)
    assert torch.equal(bag(torch.tensor([[7, 0]])), bag(torch.tensor([[0, 0]])))
    with pytest.raises(EntityIdError, match="outside"):
        table(torch.tensor([13]))
    with pytest.raises(ArgumentError, match="count is 0"):
        table.add_entities(0)


def test_a_table_that_grew_goes_on_in_rounds() -> None:
    batches, model, clusters, _ = trained()
    new = model.users.add_entities(2)
    users, items, ratings = batches[0]
    more = [*batches, (torch.full_like(users, new[0]), items, ratings)]
    clusters.round(more)
    clusters.blend(more, m=2)
    assert model.users.codes.shape == (65, 2)
    clusters.personalize(more)
    assert model.users.num_personal == 61


# --- codes from samples --------------------------------------------------------------------------


def test_a_new_entity_comes_near_one_with_the_same_samples() -> None:
    batches, model, clusters, (users, items, ratings, *_) = trained()
    clusters.blend(batches, m=4)
    of_user = users == 5
    new = torch.tensor(model.users.add_entities(2))
    assert torch.equal(model.users(new[:1]), model.users(new[1:]))
    twin = [(torch.full_like(items[of_user], int(new[1])), items[of_user], ratings[of_user])]
    before = model.users.to_dense()
    event = clusters.update_codes("users", new, twin)
    assert event.num_without_data == 1
    after = model.users.to_dense()
    assert torch.equal(after[: new[0]], before[: new[0]])
    assert (after[new[1]] - after[5]).norm() < 0.5 * (before[new[1]] - after[5]).norm()


def test_the_nearest_blend_meets_a_spread_mean_better_than_the_heaviest() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(12, 3, generator=generator)
    posterior = torch.softmax(torch.randn(50, 12, generator=generator).double(), 1)
    table = ClusteredEmbedding.from_pretrained(rows, torch.zeros(50, 4).long(), torch.ones(50, 4))
    mistakes = {}
    for rule in (BlendRule(), NearestBlend()):
        clusters = torch.arange(12).expand(50, -1)
        table.commit_codes(rule.code(torch.arange(50), clusters, posterior, rows, 4))
        mistakes[type(rule)] = (table.to_dense() - posterior.float() @ rows).norm(dim=1)
        own = rule.code(torch.arange(50), clusters.contiguous(), posterior, rows, 4)
        one = rule.code(torch.tensor([7]), clusters[:1], posterior[7:8], rows, 4)
        shared = rule.code(torch.arange(50), clusters, posterior, rows, 4)
        assert torch.equal(own.clusters, shared.clusters)
        assert torch.equal(one.levels[0], shared.levels[7])
    assert mistakes[NearestBlend].mean() < 0.2 * mistakes[BlendRule].mean()
    assert (mistakes[NearestBlend] < mistakes[BlendRule] + 0.02).all()


@given(st.integers(1, 9), st.integers(1, 8), st.integers(0, 999))
def test_blends_of_many_vectors_equal_blends_one_by_one(m: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(9, width, generator=generator).double()
    targets = torch.randn(5, width, generator=generator).double()
    positions, weights = nearest_blends(rows.unsqueeze(0), targets, m)
    torch.testing.assert_close(weights.sum(1), torch.ones(5).double())
    for line, target in enumerate(targets):
        one, its = nearest_blends(rows.unsqueeze(0), target.unsqueeze(0), m)
        torch.testing.assert_close(its[0] @ rows[one[0]], weights[line] @ rows[positions[line]])


def test_more_candidates_than_a_code_holds_are_cut_to_the_heaviest() -> None:
    rows = torch.linspace(0, 1, 300).unsqueeze(1)
    posterior = torch.zeros(2, 300).double()
    posterior[0, 10:20], posterior[1, 290] = 0.1, 1.0
    clusters = torch.arange(300).expand(2, -1)
    plan = NearestBlend().code(torch.arange(2), clusters, posterior, rows, 2)
    mixed = (plan.levels / plan.levels.sum(1, keepdim=True) * rows[plan.clusters, 0]).sum(1)
    torch.testing.assert_close(mixed, (posterior.float() @ rows)[:, 0], rtol=0, atol=0.01)


# --- priors and side features --------------------------------------------------------------------


def with_features(num_entities: int, seed: int) -> tuple[ClusteredEmbedding, Tensor, Tensor]:
    """A table whose clusters follow from two of five features, and the cluster of each."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_entities, 5, generator=generator) * 3 + 100
    cluster_of = 2 * (features[:, 0] > 100).long() + (features[:, 1] > 100)
    rows = torch.tensor([[0.0, 0], [0, 9], [9, 0], [9, 9]])
    return ClusteredEmbedding.from_pretrained(rows, cluster_of), features, cluster_of


def test_features_that_decide_the_cluster_predict_it() -> None:
    table, features, cluster_of = with_features(1200, seed=0)
    first = FirstCodes.fit(table, torch.arange(1000), features[:1000])
    probability = first(features[1000:])
    torch.testing.assert_close(probability.sum(1), torch.ones(200))
    assert (probability.argmax(1) == cluster_of[1000:]).float().mean() > 0.95


def test_features_that_say_nothing_predict_popularity() -> None:
    table, features, cluster_of = with_features(1000, seed=0)
    noise = features[torch.randperm(1000, generator=torch.Generator().manual_seed(1))]
    noise = torch.cat([noise, torch.ones(1000, 1)], 1)  # a column that never varies
    predicted = FirstCodes.fit(table, torch.arange(1000), noise)(noise)
    share = torch.bincount(cluster_of, minlength=4) / 1000
    assert (predicted - share).abs().mean() < 0.05


def test_first_codes_skip_sleeping_rows_and_survive_saving() -> None:
    rows, cluster_of = torch.randn(3, 2), torch.arange(40) % 3
    table = ClusteredEmbedding.from_pretrained(rows, cluster_of, max_clusters=8)
    features = nn.functional.one_hot(cluster_of, 3).float()
    first = FirstCodes.fit(table, torch.arange(40), features)
    assert not first(features)[:, 3:].any()
    again = FirstCodes(3, 8)
    again.load_state_dict(first.state_dict())
    assert torch.equal(again(features), first(features))
    plan = first.plan(table, torch.tensor([4]), features[4:5])
    assert plan.clusters.tolist() == [[1]]


def test_a_prior_decides_without_samples_and_yields_to_many() -> None:
    batches, model, clusters, (users, items, ratings, *_) = trained()
    clusters.blend(batches, m=4)
    table = model.users
    live = table.live_clusters()
    distance = (table(torch.tensor([5])) - table.weight[live]).norm(dim=1)
    wrong = int(live[distance.argmax()])
    new = torch.tensor(table.add_entities(2)).flip(0)
    prior = torch.full((2, table.max_clusters), 0.01)
    prior[0, wrong] = 1.0
    clusters.update_codes("users", new, [], prior=prior)
    assert int(table.cluster_ids()[new[0]]) == wrong
    of_user = users == 5
    ids = torch.full_like(items[of_user], int(new[0]))
    clusters.update_codes("users", new, [(ids, items[of_user], ratings[of_user])], prior=prior)
    assert (table(new[:1]) - table(torch.tensor([5]))).norm() < 0.5 * (
        table.weight[wrong] - table(torch.tensor([5]))
    ).norm()


def test_the_table_s_own_prior_given_by_hand_changes_nothing() -> None:
    batches, model, clusters, _ = trained()
    clusters.blend(batches, m=3)
    table = model.users
    theirs = [tuple(part[batch[0] < 9] for part in batch) for batch in batches]
    some = torch.tensor([8, 2, 60])
    by_hand = copy.deepcopy(model.state_dict())
    clusters.update_codes("users", some, theirs)
    wanted = table(some)
    model.load_state_dict(by_hand)
    share = ((table.prior_sizes + 1) * (table.born_at >= 0)).double()
    clusters.update_codes("users", some, theirs, prior=share.expand(3, -1))
    torch.testing.assert_close(table(some), wanted, rtol=0.05, atol=0.05)


def test_mistakes_are_named() -> None:
    table, features, _ = with_features(30, seed=0)
    everyone = torch.arange(30)
    with pytest.raises(ArgumentError, match=r"features has shape \(29, 5\); wanted \(30, F\)"):
        FirstCodes.fit(table, everyone, features[1:])
    broken = features.clone()
    broken[3, 0] = torch.nan
    with pytest.raises(ArgumentError, match="line 3 of features has NaN"):
        FirstCodes.fit(table, everyone, broken)
    with pytest.raises(ArgumentError, match="wanted 10 or more"):
        FirstCodes.fit(table, everyone[:4], features[:4])
    first = FirstCodes.fit(table, everyone, features)
    with pytest.raises(ArgumentError, match=r"wanted \(30, 5\)"):
        first(features[:, :3])
    with pytest.raises(EntityIdError, match="id 30"):
        first.plan(table, torch.tensor([30]), features[:1])

    batches, model, clusters, _ = trained()
    clusters.blend(batches, m=2)
    before = copy.deepcopy(model.state_dict())
    some: Any = torch.tensor([1, 2])
    with pytest.raises(ArgumentError, match=r"prior has shape \(2, 3\)"):
        clusters.update_codes("users", some, batches, prior=torch.ones(2, 3))
    bad = torch.ones(2, 6)
    bad[1, 2] = -1
    with pytest.raises(ArgumentError, match="line 1 of prior"):
        clusters.update_codes("users", some, batches, prior=bad)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
