"""Blended codes: their vectors, their bytes, and where they come from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from celrec import ClusteredEmbedding, ClusteredEmbeddingBag, ClusterOptimizer, memory_report
from celrec.checkpoint import load_arrays, load_frozen, save_frozen
from celrec.core.blend import BlendRule
from celrec.core.codes import pack_weights, quantize, unpack_weights
from celrec.errors import ArgumentError, EntityIdError
from tests.core.test_cluster_optimizer import DotProduct, planted
from tests.reference import log_prior


def blended(
    num_entities: int, width: int, num_rows: int, blend_size: int, seed: int, **options: Any
) -> tuple[ClusteredEmbedding, Tensor]:
    """A table with random blends, and its vectors by a loop."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, width, generator=generator)
    clusters = torch.randint(num_rows, (num_entities, blend_size), generator=generator)
    levels = torch.randint(16, (num_entities, blend_size), generator=generator)
    levels[:, 0] = 15
    table = ClusteredEmbedding.from_pretrained(rows, clusters, levels.float(), **options)
    dense = torch.stack(
        [
            sum((q / sum(some)) * rows[k] for k, q in zip(ids.tolist(), some.tolist(), strict=True))
            for ids, some in zip(clusters, levels, strict=True)
        ]
    )
    return table, dense


shapes = st.tuples(
    st.integers(20, 40),
    st.integers(1, 9),
    st.integers(2, 20),
    st.integers(1, 9),
    st.integers(0, 99),
)


@given(shapes)
def test_a_blend_looks_up_the_weighted_mean_of_its_rows(shape: tuple[int, ...]) -> None:
    table, dense = blended(*shape)
    ids = torch.arange(shape[0]).repeat(2).view(2, -1)
    torch.testing.assert_close(table(ids), dense[ids], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(table.to_dense(), dense, rtol=1e-5, atol=1e-5)


@given(
    st.integers(1, 9).flatmap(
        lambda m: st.lists(
            st.lists(st.floats(0, 1), min_size=m, max_size=m).filter(any), min_size=1, max_size=9
        )
    )
)
def test_weights_sum_to_one_after_quantization(weights: list[list[float]]) -> None:
    levels = quantize(torch.tensor(weights, dtype=torch.float64))
    unpacked = unpack_weights(pack_weights(levels), len(weights[0]))
    torch.testing.assert_close(unpacked.sum(1), torch.ones(len(weights)), rtol=0, atol=1e-6)
    again = quantize(unpacked)
    assert len(weights[0]) == 1 or torch.equal(again, levels)


@given(shapes, st.sampled_from(["sum", "mean", "max"]))
def test_a_bag_pools_blends_as_a_dense_bag_does(shape: tuple[int, ...], mode: str) -> None:
    table, _ = blended(*shape)
    bag = ClusteredEmbeddingBag(shape[0], shape[1], table.max_clusters, mode=mode)
    bag.load_state_dict(table.state_dict())
    dense = nn.EmbeddingBag.from_pretrained(table.to_dense(), mode=mode)
    ids = torch.arange(3 * shape[0]).view(-1, 3) % shape[0]
    torch.testing.assert_close(bag(ids), dense(ids), rtol=1e-5, atol=1e-5)


def test_rows_get_the_weighted_gradients_of_a_blend() -> None:
    table, _ = blended(20, 4, 6, 3, seed=1, freeze=False)
    ids = torch.tensor([3, 3, 7])
    clusters, weights = table.code_of(ids)
    assert weights is not None
    weight = table.weight.detach().clone().requires_grad_()
    (weight[clusters] * weights.unsqueeze(-1)).sum(1).square().sum().backward()
    table(ids).square().sum().backward()
    torch.testing.assert_close(table.weight.grad, weight.grad)


def test_a_compiled_blend_looks_up_the_same() -> None:
    table, dense = blended(20, 4, 6, 4, seed=1)
    compiled = torch.compile(table, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(torch.arange(20)), dense, rtol=1e-5, atol=1e-5)


def test_padding_stays_zero_under_blends() -> None:
    table, dense = blended(9, 4, 5, 4, seed=2, padding_idx=3)
    assert not table(torch.tensor([3])).any()
    torch.testing.assert_close(table(torch.tensor([4])), dense[4:5], rtol=1e-5, atol=1e-5)


# --- coding a model's entities -------------------------------------------------------------------


def trained(
    num_users: int = 60, num_items: int = 40, unseen: int = 3
) -> tuple[Any, DotProduct, ClusterOptimizer, Any]:
    """A model on planted data with hard codes; the last `unseen` users have no samples."""
    torch.manual_seed(0)
    data = planted(num_users, num_items, 4, noise=0.5, seed=1)
    users, items, ratings = data[:3]
    model = DotProduct(
        ClusteredEmbedding(num_users + unseen, 4, max_clusters=6),
        ClusteredEmbedding(num_items, 4, max_clusters=6),
    )
    for table in (model.users, model.items):
        nn.init.uniform_(table.weight, 0, 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    def per_sample_loss(batch: tuple[Tensor, ...]) -> Tensor:
        return (model(batch[0], batch[1]) - batch[2]).square() / 0.5

    clusters = ClusterOptimizer(model, optimizer, per_sample_loss)
    clusters.schedule = type(clusters.schedule)(growth_rounds=4)
    batches = list(zip(users.split(256), items.split(256), ratings.split(256), strict=True))
    for _ in range(8):
        for batch in batches:
            optimizer.zero_grad()
            per_sample_loss(batch).mean().backward()
            optimizer.step()
        clusters.round(batches)
    return batches, model, clusters, data


def test_a_blend_of_one_equals_hard_codes_bit_for_bit() -> None:
    batches, model, clusters, _ = trained()
    before = copy.deepcopy(model)
    assert clusters.blend(batches, m=1) == []
    for table, was in ((model.users, before.users), (model.items, before.items)):
        ids = torch.arange(table.num_embeddings)
        assert torch.equal(table(ids), was(ids))
        assert torch.equal(table.codes, was.codes)
        assert table.memory().code_bytes == was.memory().code_bytes


def test_codes_are_the_posterior_of_true_losses() -> None:
    batches, model, clusters, (users, items, ratings, *_) = trained()
    clusters.blend_rule = BlendRule(temperature=2.0)
    hard = copy.deepcopy(model)
    clusters.blend(batches, m=2)
    table = hard.users
    sizes = table.cluster_sizes()
    sizes[table.cluster_ids()[-3:]] -= 1  # without data, without a vote
    live = table.live_clusters()
    prior = log_prior(sizes[live].tolist())
    for user in (0, 17, 59):
        of_user = users == user
        item_vectors = hard.items(items[of_user])
        objective = torch.tensor(
            [
                ((item_vectors @ table.weight[k] - ratings[of_user]) ** 2 / 0.5).sum().item() - p
                for k, p in zip(live.tolist(), prior, strict=True)
            ]
        )
        best = torch.softmax(-objective / 2, 0).topk(2)
        found, weights = model.users.code_of(torch.tensor([user]))
        assert weights is not None
        assert int(found[0, 0]) == int(live[best.indices[0]])
        wanted = best.values / best.values.sum()
        torch.testing.assert_close(weights[0], wanted.float(), rtol=0, atol=1 / 20)


def test_entities_without_data_get_the_prior() -> None:
    batches, model, clusters, _ = trained()
    clusters.blend_rule = BlendRule(temperature=1.0)
    events = clusters.blend(batches, m=6)
    assert [event.num_without_data for event in events] == [3, 0]
    assert int(model.users.prior_sizes.sum()) == 60
    sizes = (model.users.prior_sizes + 1) * (model.users.born_at >= 0)
    mean_row = (sizes / sizes.sum()) @ model.users.weight.detach()
    mistake = (model.users(torch.tensor([60, 61, 62])) - mean_row).norm(dim=1)
    assert mistake.max() < 0.05 * model.users.weight.norm(dim=1).max()


def test_folding_in_the_training_data_reproduces_the_codes() -> None:
    batches, model, clusters, _ = trained()
    hard_items = copy.deepcopy(model.items.state_dict())
    clusters.blend(batches, m=3)
    blended_items = copy.deepcopy(model.items.state_dict())
    before = copy.deepcopy(model.state_dict())
    some = torch.tensor([59, 0, 31, 61])

    # As when the codes were made: the users' against hard items, the items' against blended users.
    clusters.update_rule = clusters.blend_rule
    model.items.load_state_dict(hard_items)
    theirs = [tuple(part[torch.isin(batch[0], some)] for part in batch) for batch in batches]
    model.users.codes[some] = 0  # whatever stood there does not matter
    event = clusters.update_codes("users", some, theirs)
    assert event.num_without_data == 1
    model.items.load_state_dict(blended_items)
    clusters.update_codes("items", torch.arange(40), batches)

    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_more_samples_of_a_new_entity_lower_its_loss_on_others() -> None:
    batches, model, clusters, (users, items, ratings, *_) = trained()
    clusters.blend(batches, m=4)
    of_user = users == 5
    items, ratings = items[of_user], ratings[of_user]
    new = torch.full_like(items, 62)
    errors = []
    for num_known in (0, 3, 30):
        known = [(new[:num_known], items[:num_known], ratings[:num_known])]
        clusters.update_codes("users", torch.tensor([62]), known if num_known else [])
        with torch.no_grad():
            rest = model(new[30:], items[30:]) - ratings[30:]
        errors.append(float(rest.square().mean()))
    assert errors[2] < errors[0]
    assert min(errors[1:]) < 0.7 * errors[0]


def test_a_short_list_of_candidates_finds_nearly_the_same_codes() -> None:
    batches, model, clusters, _ = trained()
    clusters.blend(batches, m=2)
    every = model.users.cluster_ids()
    clusters.blend_rule = BlendRule(num_candidates=3)
    clusters.blend(batches, m=2)
    assert (model.users.cluster_ids() == every).float().mean() > 0.9


def test_a_round_after_a_blend_starts_from_the_heaviest_clusters() -> None:
    batches, model, clusters, _ = trained()
    clusters.blend(batches, m=3)
    clusters.round(batches)
    assert model.users.blend_size == 1
    assert clusters.blend(batches, m=2)[0].blend_size == 2


def test_several_look_ups_per_sample_are_coded_by_estimates() -> None:
    torch.manual_seed(0)
    bag = ClusteredEmbeddingBag(30, 4, max_clusters=4, mode="mean")
    nn.init.normal_(bag.weight, std=0.1)
    ids = torch.randint(30, (1200, 3))
    wanted = (ids < 10).float().mean(1) + 0.3 * torch.randn(1200)

    def per_sample_loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return (bag(batch[0]).sum(1) - batch[1]).square() / 0.18

    optimizer = torch.optim.Adam(bag.parameters(), lr=0.02)
    clusters = ClusterOptimizer(bag, optimizer, per_sample_loss)
    batches = list(zip(ids.split(100), wanted.split(100), strict=True))
    for _ in range(12):
        for batch in batches:
            optimizer.zero_grad()
            per_sample_loss(batch).mean().backward()
            optimizer.step()
        clusters.round(batches)
    clusters.blend(batches, m=2)
    likely = bag.to_dense().sum(1)
    assert likely[:10].min() > likely[10:].max()


# --- keeping and counting ------------------------------------------------------------------------


@settings(max_examples=25)
@given(shapes)
def test_bytes_reported_equal_bytes_saved(tmp_path_factory: Any, shape: tuple[int, ...]) -> None:
    table, _ = blended(*shape)
    path: Path = tmp_path_factory.mktemp("frozen") / "frozen.safetensors"
    model = nn.Sequential(table)
    save_frozen(model, path)
    arrays, _ = load_arrays(path)
    saved = sum(array.numel() * array.element_size() for array in arrays.values())
    report = memory_report(model)
    assert saved == report.total_bytes
    m = shape[3]
    assert report.code_bytes == shape[0] * (m + (0 if m == 1 else -(-m // 2)))
    thawed = load_frozen(path).install(nn.Sequential(ClusteredEmbedding(5, shape[1], 2)))
    assert torch.equal(thawed(torch.arange(shape[0])), model(torch.arange(shape[0])))


def test_state_of_any_blend_size_loads_into_any_other() -> None:
    tables = [blended(12, 3, 5, m, seed=m, freeze=False)[0] for m in (1, 2, 5)]
    for source in tables:
        for target in tables:
            into = copy.deepcopy(target)
            into.load_state_dict(source.state_dict())
            assert torch.equal(into(torch.arange(12)), source(torch.arange(12)))


def test_a_wide_table_packs_blends_into_two_bytes_an_id() -> None:
    clusters = torch.tensor([[299, 0, 1, 2], [7, 258, 9, 0]]).repeat(150, 1)
    table = ClusteredEmbedding.from_pretrained(torch.randn(300, 2), clusters, torch.ones(300, 4))
    assert table.memory().code_bytes == 300 * (4 * 2 + 2)
    torch.testing.assert_close(table(torch.tensor([1])), table.weight[[7, 258, 9, 0]].mean(0, True))


# --- mistakes ------------------------------------------------------------------------------------


def test_mistakes_are_named() -> None:
    batches, _, clusters, _ = trained()
    with pytest.raises(ArgumentError, match="m is 0; wanted an integer from 1 to 64"):
        clusters.blend(batches, m=0)
    with pytest.raises(ArgumentError, match="table is 'user'; did you mean 'users'"):
        clusters.update_codes("user", torch.tensor([1]), batches)
    with pytest.raises(EntityIdError, match=r"id 63 .* outside"):
        clusters.update_codes("users", torch.tensor([1, 63]), batches)
    with pytest.raises(ArgumentError, match="twice"):
        clusters.update_codes("users", torch.tensor([1, 1]), batches)
    with pytest.raises(ArgumentError, match="weights is None"):
        ClusteredEmbedding.from_pretrained(torch.eye(2), torch.tensor([[0, 1], [1, 0]]))
    with pytest.raises(ArgumentError, match="entity 1 has weights"):
        ClusteredEmbedding.from_pretrained(
            torch.eye(2), torch.tensor([[0, 1], [1, 0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        )
