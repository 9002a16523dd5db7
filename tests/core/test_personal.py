"""Personal vectors: how they are packed, how a posterior learns, and what a fit finds."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from celrec import ClusteredEmbedding, ClusteredEmbeddingBag, ClusterOptimizer
from celrec.core.offsets import offset_bytes, offsets_of, quantize_offsets
from celrec.core.personal import (
    PersonalPlan,
    PersonalRule,
    Posterior,
    Spread,
    _moved_prior,
)
from celrec.errors import ArgumentError, LossError
from tests.core.test_blend import blended

SHORT = PersonalRule(epochs=2, warm_epochs=1)


def personal(
    num_entities: int,
    width: int,
    blend_size: int,
    num_personal: int,
    seed: int,
    bits: int = 8,
    **options: Any,
) -> tuple[ClusteredEmbedding, PersonalPlan]:
    """A table with random blends, and offsets of some random entities."""
    table, _ = blended(num_entities, width, 6, blend_size, seed, **options)
    generator = torch.Generator().manual_seed(seed)
    entities = torch.randperm(num_entities, generator=generator)[:num_personal].sort().values
    plan = PersonalPlan(entities, torch.randn(num_personal, width, generator=generator), bits)
    if num_personal:
        table.commit_personal(plan)
    return table, plan


def precision_matrix(width: int, seed: int) -> Tensor:
    root = torch.randn(width, width + 2, generator=torch.Generator().manual_seed(seed))
    return root @ root.T / width + 0.1 * torch.eye(width)


# --- packing -------------------------------------------------------------------------------------


@given(
    st.integers(1, 5).flatmap(
        lambda width: st.lists(
            st.lists(st.floats(-8e6, 8e6, width=32), min_size=width, max_size=width),
            min_size=1,
            max_size=4,
        )
    ),
    st.integers(-60, 0),
)
def test_an_offset_is_packed_to_within_half_its_scale(rows: list[list[float]], power: int) -> None:
    offsets = torch.tensor(rows) * 2.0**power
    levels, scale = quantize_offsets(offsets)
    half = 0.5 * scale.view(torch.float16).double().unsqueeze(1)
    unpacked = offsets_of(levels, scale, offsets.shape[1], torch.float64)
    assert ((unpacked - offsets).abs() <= half * (1 + 1e-6)).all()
    assert (half <= offsets.abs().amax(1, keepdim=True) / 127 / 2 * (1 + 2**-9) + 2**-25).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_four_bits_hold_sevenths_exactly_and_cut_what_hides_the_rest(dtype: torch.dtype) -> None:
    sevenths = torch.tensor([[-7.0, 3.0, 0.0], [1.0, -2.0, 7.0]], dtype=dtype)
    levels, scale = quantize_offsets(sevenths, 4)
    assert (levels.dtype, levels.shape) == (torch.uint8, (2, 2))
    assert torch.equal(offsets_of(levels, scale, 3, dtype), sevenths)
    outlier = torch.cat([torch.full((1, 63), 0.1), torch.ones(1, 1)], 1).to(dtype)
    cut = offsets_of(*quantize_offsets(outlier, 4), 64)
    torch.testing.assert_close(cut[:, :63], outlier[:, :63].float(), rtol=0, atol=0.02)
    assert cut.max() < 0.9  # in sevenths of a one all others would be 0.14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_no_offset_stays_none(dtype: torch.dtype) -> None:
    levels, scale = quantize_offsets(torch.tensor([[0.0, -0.0], [0.5, 0.0]], dtype=dtype))
    assert (levels.dtype, scale.dtype) == (torch.int8, torch.int16)
    assert not offsets_of(levels, scale, 2)[0].any()
    assert offsets_of(levels, scale, 2)[1, 1] == 0
    assert quantize_offsets(torch.zeros(0, 3))[0].shape == (0, 3)


@pytest.mark.parametrize("size", [8.4e6, 1e20, torch.finfo(torch.float32).max])
def test_an_offset_beyond_the_largest_scale_is_cut_to_it(size: float) -> None:
    unpacked = offsets_of(*quantize_offsets(torch.tensor([[size, -size]])), 2)
    torch.testing.assert_close(unpacked, torch.tensor([[65504.0 * 127, -65504.0 * 127]]))


def test_an_offset_below_the_smallest_scale_vanishes() -> None:
    offsets = torch.tensor([[1e-30, -2e-8], [1e-45, 0.0]])
    assert not offsets_of(*quantize_offsets(offsets), 2).any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_offset_that_is_no_number_is_never_packed(value: float) -> None:
    with pytest.raises(AssertionError, match="NaN has no level"):
        quantize_offsets(torch.tensor([[1.0, value]]))


# --- looking up ----------------------------------------------------------------------------------


@given(
    st.integers(8, 40),
    st.integers(1, 9),
    st.integers(1, 5),
    st.floats(0, 1),
    st.integers(0, 99),
    st.sampled_from((4, 8)),
)
def test_a_personal_entity_looks_up_its_blend_plus_its_offset(
    num_entities: int, width: int, blend_size: int, share: float, seed: int, bits: int
) -> None:
    num_personal = round(share * num_entities)
    table, plan = personal(num_entities, width, blend_size, num_personal, seed, bits)
    _, dense = blended(num_entities, width, 6, blend_size, seed)
    for entity, offset in zip(plan.entities.tolist(), plan.offsets, strict=True):
        if bits == 8:
            scale = offset.abs().max() / 127
            dense[entity] += (offset / scale).round() * scale
        else:  # cut where the others gain by it; another test says how
            dense[entity] += offsets_of(*quantize_offsets(offset[None], 4), width)[0]
    ids = torch.arange(num_entities).repeat(2).view(2, -1)
    assert table.num_personal == num_personal
    torch.testing.assert_close(table(ids), dense[ids], rtol=1e-5, atol=0.04)  # of a scale
    torch.testing.assert_close(table.to_dense()[ids], table(ids), rtol=0, atol=0)


@given(
    st.integers(8, 300),
    st.floats(0, 1),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from((4, 8)),
)
def test_personal_bytes_are_one_line_an_entity_and_nobodys(
    num_entities: int, share: float, blend_size: int, width: int, bits: int
) -> None:
    num_personal = round(share * num_entities)
    table, _ = personal(num_entities, width, blend_size, num_personal, seed=1, bits=bits)
    has_all = num_personal == num_entities
    lines = 0 if num_personal == 0 else num_personal + (not has_all)
    assert table.memory().personal_bytes == lines * offset_bytes(width, bits)
    index_bytes = (
        0 if has_all or num_personal == 0 else num_entities * (1 if num_personal < 256 else 2)
    )
    codes = num_entities * (blend_size + (0 if blend_size == 1 else -(-blend_size // 2)))
    assert table.memory().code_bytes == codes + index_bytes


def test_gradients_reach_the_rows_through_personal_vectors() -> None:
    table, _ = personal(20, 4, 3, 7, seed=1, freeze=False)
    plain, _ = blended(20, 4, 6, 3, 1, freeze=False)
    weights = torch.randn(20, 4)
    for one in (table, plain):
        (one(torch.arange(20)) * weights).sum().backward()
    torch.testing.assert_close(table.weight.grad, plain.weight.grad)


@pytest.mark.parametrize("num_personal", [5, 20])
@pytest.mark.parametrize("blend_size", [1, 4])
def test_a_compiled_look_up_of_personal_vectors_is_the_same(
    num_personal: int, blend_size: int
) -> None:
    table, _ = personal(20, 4, blend_size, num_personal, seed=1)
    compiled = torch.compile(table, backend="eager", fullgraph=True)
    ids = torch.tensor([[3, 19], [0, 3]])
    assert torch.equal(compiled(ids), table(ids))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_bag_pools_personal_vectors_as_a_dense_bag_does(mode: str) -> None:
    table, _ = personal(24, 3, 2, 10, seed=3)
    bag = ClusteredEmbeddingBag(24, 3, table.max_clusters, mode=mode)
    bag.load_state_dict(table.state_dict())
    dense = nn.EmbeddingBag.from_pretrained(table.to_dense(), mode=mode)
    ids = torch.arange(72).view(-1, 3) % 24
    torch.testing.assert_close(bag(ids), dense(ids))


def test_padding_stays_zero_under_personal_vectors() -> None:
    table, _ = personal(9, 4, 3, 9, seed=2, padding_idx=3)
    assert not table(torch.tensor([3])).any()
    assert not table.to_dense()[3].any()


def test_vectors_of_another_number_type_keep_their_packed_arrays() -> None:
    table, _ = personal(20, 4, 2, 7, seed=1)
    exact = table.to_dense()
    for dtype, tolerance in ((torch.float16, 0.01), (torch.bfloat16, 0.05), (torch.float64, 1e-6)):
        other = copy.deepcopy(table).to(dtype)
        for name in ("personal_levels", "personal_scale", "personal_of", "codes", "code_weights"):
            assert torch.equal(getattr(other, name), getattr(table, name)), name
            assert getattr(other, name).dtype == getattr(table, name).dtype
        assert other.to_dense().dtype == dtype
        torch.testing.assert_close(other.to_dense().float(), exact, rtol=0, atol=tolerance)


def test_a_copy_does_not_follow_its_original() -> None:
    table, _ = personal(20, 4, 2, 7, seed=1)
    before = table.to_dense()
    copied = copy.deepcopy(table)
    table.harden()
    assert torch.equal(copied.to_dense(), before)


def test_dropping_or_hardening_leaves_the_plain_codes() -> None:
    table, _ = personal(20, 4, 2, 7, seed=1)
    plain, dense = blended(20, 4, 6, 2, 1)
    table.drop_personal()
    assert table.num_personal == 0
    assert table.memory() == plain.memory()
    torch.testing.assert_close(table.to_dense(), dense, rtol=1e-5, atol=1e-5)
    table, _ = personal(20, 4, 2, 7, seed=1)
    table.harden()
    assert (table.num_personal, table.blend_size) == (0, 1)
    assert torch.equal(table.to_dense(), table.weight[plain.cluster_ids()])


def test_state_of_any_personal_vectors_loads_into_any_other() -> None:
    kinds = [(1, 0, 8), (2, 5, 8), (4, 19, 4), (1, 20, 8), (1, 20, 4)]
    tables = [personal(20, 3, m, p, p, bits)[0] for m, p, bits in kinds]
    for source in tables:
        for target in tables:
            into = copy.deepcopy(target)
            into.load_state_dict(source.state_dict())
            assert torch.equal(into.to_dense(), source.to_dense())
            assert into.memory() == source.memory()


# --- covariances ---------------------------------------------------------------------------------


def full_covariances(prior: Tensor, slots: Tensor, gradients: Tensor, count: int) -> Tensor:
    """(P + F_e)^-1 of every entity, by a loop."""
    return torch.stack(
        [
            torch.linalg.inv(prior + gradients[slots == slot].T @ gradients[slots == slot])
            for slot in range(count)
        ]
    )


def spread_times(spread: Spread, slots: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """S_e v_e, as the class describes S_e."""
    return vectors @ spread.basis * spread.variance[slots] @ spread.basis.T


def test_a_spread_remembers_the_share_of_its_information_that_it_is_told() -> None:
    prior, slots = torch.eye(2), torch.tensor([0])
    axis = torch.tensor([[1.0, 0.0]])
    spread = Spread(1, prior)
    for size, memory in ((4.0, 0.0), (2.0, 0.75), (0.0, 1.0)):
        spread.observe(slots, math.sqrt(size) * axis)
        spread.renew(prior, memory)
    information = 0.75 * 4 + 0.25 * 2  # the last pass counted for nothing
    found = spread_times(spread, slots, axis)
    torch.testing.assert_close(found, axis / (1 + information), rtol=1e-5, atol=1e-6)


def test_a_spread_is_the_inverse_of_prior_and_information_where_one_basis_fits_all() -> None:
    """Also once the prior changes, and with it the length of the basis."""
    prior = precision_matrix(4, seed=3)
    spread = Spread(6, prior)
    axes = torch.linalg.inv(spread.basis)  # row i, a gradient: only entry i in the basis
    generator = torch.Generator().manual_seed(0)
    slots = torch.arange(6).repeat(4)
    gradients = axes.repeat_interleave(6, 0) * torch.rand(24, 1, generator=generator) * 3
    vectors = torch.randn(6, 4, generator=generator)
    for factor in (1.0, 0.3, 2.0):
        spread.observe(slots, gradients)
        spread.renew(factor * prior, 0.0 if factor == 1 else 1.0)
        wanted = full_covariances(factor * prior, slots, gradients, 6)
        found = spread_times(spread, torch.arange(6), vectors)
        torch.testing.assert_close(
            found, (wanted @ vectors.unsqueeze(2)).squeeze(2), rtol=1e-3, atol=1e-4
        )
        torch.testing.assert_close(spread.total(), wanted.sum(0), rtol=1e-3, atol=1e-4)


def test_the_spread_of_one_entity_is_exact() -> None:
    """Bases follow the mean Fisher information, which of a single entity is its own."""
    prior = precision_matrix(4, seed=5)
    gradients = torch.randn(30, 4, generator=torch.Generator().manual_seed(2)) * torch.arange(1, 5)
    slots = torch.zeros(30, dtype=torch.long)
    spread = Spread(1, prior)
    for _ in range(2):  # the basis of the first pass knows nothing of its gradients
        spread.observe(slots, gradients)
        spread.renew(prior, 0.0)
    wanted = full_covariances(prior, slots, gradients, 1)
    torch.testing.assert_close(spread.total(), wanted.sum(0), rtol=1e-3, atol=1e-4)


def test_noise_has_the_covariance_of_the_spread() -> None:
    prior = precision_matrix(3, seed=7)
    generator = torch.Generator().manual_seed(0)
    spread = Spread(2, prior)
    spread.observe(torch.tensor([1, 1, 1, 1]), 2 * torch.randn(4, 3, generator=generator))
    spread.renew(prior, 0.0)
    for slot in (0, 1):
        draws = spread.noise(torch.full((40_000,), slot), generator)
        wanted = spread_times(spread, torch.full((3,), slot), torch.eye(3))
        assert draws.mean(0).abs().max() < 0.03 * wanted.diagonal().max().sqrt()
        difference = torch.linalg.matrix_norm(draws.T.cov() - wanted)
        assert difference < 0.05 * torch.linalg.matrix_norm(wanted)


# --- one posterior -------------------------------------------------------------------------------


def a_posterior(counts: list[int], rule: PersonalRule | None = None) -> Posterior:
    """The posterior, noiseless and moving at rate 1, of entities 2, 3, ... of a table of ten."""
    table, _ = blended(10, 3, 6, 2, seed=4)
    entities = torch.arange(2, 2 + len(counts))
    rule = rule or PersonalRule(max_step=1e6)
    posterior = Posterior(table, entities, torch.tensor(counts), rule)
    posterior.rate, posterior.is_moving = 1.0, True
    return posterior


def test_a_full_step_on_one_batch_finds_the_mean_of_the_posterior() -> None:
    """A linear model with unit noise, at residuals of one: its Fisher information is Z^T Z.

    Its features are axes of the shared basis, in which covariances are then exact.
    """
    posterior = a_posterior([6, 1])
    generator = torch.Generator().manual_seed(0)
    entities = torch.tensor([2, 2, 3, 2, 2, 2, 2])
    axes = torch.linalg.inv(posterior.spread.basis)
    features = axes[[0, 0, 1, 1, 2, 2, 1]] * torch.rand(7, 1, generator=generator) * 3
    start, prior = posterior.mean.clone(), posterior.precision
    centre = posterior.prior_mean[0]
    labels = (features * start[entities - 2]).sum(1) + torch.tensor([1.0, -1, 1, 1, -1, 1, -1])
    gradients = features * ((features * start[entities - 2]).sum(1) - labels).unsqueeze(1)
    posterior.is_moving = False
    posterior.learn(entities, gradients)
    assert torch.equal(posterior.mean, start)
    posterior.spread.renew(prior, 0.0)
    posterior.is_moving = True
    posterior.learn(entities, gradients)
    for slot in (0, 1):
        z, y = features[entities == slot + 2], labels[entities == slot + 2]
        wanted = torch.linalg.solve(z.T @ z + prior, z.T @ y + prior @ centre)
        torch.testing.assert_close(posterior.mean[slot], wanted, rtol=1e-4, atol=1e-5)


def test_a_vector_without_one_of_its_samples_is_what_the_others_make_of_it() -> None:
    """A linear model with unit noise, with residuals of one where its posteriors are at rest.

    Its features are axes of the shared basis; entity 5 has no posterior.
    """
    posterior = a_posterior([3, 1])
    generator = torch.Generator().manual_seed(0)
    entities = torch.tensor([2, 2, 3, 2])
    axes = torch.linalg.inv(posterior.spread.basis)
    features = axes[[0, 0, 1, 2]] * torch.rand(4, 1, generator=generator) * 3
    gradients = -features * torch.tensor([[1.0], [-1], [1], [1]])
    posterior.is_moving = False
    posterior.learn(entities, gradients)
    prior = posterior.precision
    posterior.spread.renew(prior, 0.0)
    found = posterior.means_without(entities, gradients)
    for sample, entity in enumerate(entities.tolist()):
        others = (entities == entity) & (torch.arange(4) != sample)
        mean, z = posterior.mean[entity - 2], features[others]
        # At rest, the prior pulls as much as all gradients do; at `wanted`, as those of the others.
        pull = -gradients[entities == entity].sum(0)
        left = pull + gradients[others].sum(0)
        wanted = mean - torch.linalg.solve(prior + z.T @ z, left)
        torch.testing.assert_close(found[sample], wanted, rtol=1e-3, atol=1e-4)
    stranger = torch.tensor([2, 5])
    found = posterior.means_without(stranger, torch.ones(2, 3))[1]
    assert torch.equal(found, posterior.table.look_up(stranger)[1])


def test_the_prior_pulls_once_in_a_pass_however_it_is_cut() -> None:
    """Without gradients, small steps leave exp(-rate) of the distance to the centre."""
    entities = torch.tensor([2, 2, 2, 2, 3, 2, 2, 2, 2])
    for batches in ([entities], entities.split(2), entities.split(1)):
        posterior = a_posterior([8, 1])
        posterior.spread.renew(posterior.precision, 0.0)
        posterior.rate = 1e-3
        apart = posterior.mean - posterior.prior_mean
        for batch in batches:
            posterior.learn(batch, torch.zeros(len(batch), 3))
        left = posterior.mean - posterior.prior_mean
        torch.testing.assert_close(left, (1 - 1e-3) * apart, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_no_step_is_longer_than_the_longest(size: float) -> None:
    posterior = a_posterior([3, 3], PersonalRule(max_step=0.5))
    posterior.spread.renew(posterior.precision, 0.0)
    start = posterior.mean.clone()
    gradients = size * torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    posterior.learn(torch.tensor([2, 3]).repeat(3), gradients)
    step = posterior.mean - start
    length = ((step @ posterior.precision) * step).mean(1).sqrt()
    assert (length <= 0.5 * (1 + 1e-3)).all()
    if size == 1e6:
        torch.testing.assert_close(length, torch.full((2,), 0.5), rtol=1e-3, atol=0)


def test_a_loader_may_use_one_tensor_for_all_batches() -> None:
    posterior = a_posterior([1, 1])
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([2, 3])
    posterior.draw(ids, generator)
    ids.copy_(torch.tensor([3, 2]))
    drawn = posterior.draw(ids, generator)
    assert torch.equal(drawn, posterior.mean[[1, 0]].to(drawn))


def test_an_entity_that_a_batch_repeats_counts_each_time() -> None:
    gradients = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    together, summed = a_posterior([4]), a_posterior([4])
    for posterior in (together, summed):
        posterior.spread.renew(posterior.precision, 0.0)
    together.learn(torch.tensor([2, 2, 2, 2]), gradients)
    summed.count = torch.tensor([1])
    summed.learn(torch.tensor([2]), gradients.sum(0, keepdim=True))
    torch.testing.assert_close(together.mean, summed.mean)
    together.end_pass(memory=0.0, refit_prior=False)
    fisher = sum(torch.outer(g, g) for g in gradients)
    wanted = torch.linalg.inv(fisher + together.precision)
    torch.testing.assert_close(together.spread.total(), wanted, rtol=1e-3, atol=1e-4)


def test_entities_without_a_posterior_keep_the_tables_vectors() -> None:
    posterior = a_posterior([4, 4])
    posterior.spread.renew(posterior.precision, 0.0)
    posterior.is_noisy = True
    before = posterior.mean.clone()
    posterior.learn(torch.tensor([0, 9, 0]), torch.ones(3, 3))
    assert torch.equal(posterior.mean, before)
    ids = torch.tensor([9, 2, 0, 2])
    drawn = posterior.draw(ids, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[[0, 2]], posterior.table.look_up(ids[[0, 2]]))
    assert torch.equal(drawn[1], drawn[3])  # one draw an entity
    assert not torch.equal(drawn[1], before[0])


@given(st.integers(1, 6), st.integers(0, 99))
def test_a_prior_moved_without_acceleration_is_the_em_update(width: int, seed: int) -> None:
    old, new = precision_matrix(width, seed), precision_matrix(width, seed + 1)
    eigenvalues = torch.linalg.eigvals(old.double() @ torch.linalg.inv(new.double())).real
    variance = torch.linalg.inv(new)
    moved = _moved_prior(old, variance, 0.9 * variance, 1.0)
    assert torch.equal(moved, moved.T)
    if eigenvalues.min() > 0.2 and eigenvalues.max() < 5:
        torch.testing.assert_close(moved, new, rtol=1e-3, atol=1e-3)
    change = torch.linalg.eigvals(old.double() @ torch.linalg.inv(moved.double())).real
    torch.testing.assert_close(
        change.sort().values, eigenvalues.sort().values.clamp(0.2, 5), rtol=1e-3, atol=1e-3
    )


def test_an_accelerated_prior_raises_changes_to_the_power_that_data_allow() -> None:
    variance = torch.diag(torch.tensor([1.2, 0.8, 0.8, 100.0]))
    uncertain = torch.diag(torch.tensor([0.99, 0.7, 0.0, 1.0]))
    moved = _moved_prior(torch.eye(4), variance, uncertain, 3.0)
    wanted = torch.tensor([1.2**-3, 0.8 ** (-1 / (1 - 0.49)), 1 / 0.8, 1 / 5])
    torch.testing.assert_close(moved, torch.diag(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("information", [0.1, 1.0, 100.0])
def test_a_prior_settles_where_em_does_and_does_not_swing(information: float) -> None:
    """Where means follow the prior at once; where data say much they need not."""
    scatter = 2.0 + 1 / information  # of best guesses without a prior; the true variance is 2
    precision = torch.tensor([[1.0]])
    for _ in range(60):
        variance = 1 / precision
        trust = information / (information + precision)
        uncertain = (1 - trust) * variance
        precision = _moved_prior(precision, trust**2 * scatter + uncertain, uncertain, 3.0)
    assert float(1 / precision) == pytest.approx(2, rel=0.02)


# --- fits of planted data ------------------------------------------------------------------------


class Regression(nn.Module):
    """Labels are linear in given features, with weights of each user's own."""

    def __init__(self, users: nn.Module) -> None:
        super().__init__()
        self.users = users

    def forward(self, users: Tensor, features: Tensor) -> Tensor:
        return (self.users(users) * features).sum(-1)


NUM_USERS, NUM_UNSEEN, WIDTH, NOISE = 240, 4, 4, 0.7


class PlantedWeights:
    """Users whose weights have a known normal distribution; the last few have no samples."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        num = NUM_USERS + NUM_UNSEEN
        self.centre = torch.tensor([1.0, -0.5, 0.0, 0.5])
        self.deviation = torch.tensor([1.0, 0.6, 0.3, 0.05])
        weights = self.centre + self.deviation * torch.randn(num, WIDTH, generator=generator)
        counts = torch.randint(1, 31, (NUM_USERS,), generator=generator)
        counts[:2] = torch.tensor([1, 30])
        self.weights, self.counts = weights[:NUM_USERS], counts
        users = torch.repeat_interleave(torch.arange(NUM_USERS), counts)
        users = users[torch.randperm(len(users), generator=generator)]
        features = torch.randn(len(users), WIDTH, generator=generator)
        labels = (features * weights[users]).sum(1)
        labels += NOISE * torch.randn(len(users), generator=generator)
        self.users, self.features, self.labels = users, features, labels
        self.batches = list(
            zip(users.split(400), features.split(400), labels.split(400), strict=True)
        )
        # A clustering of the truth with noise, as training would leave it.
        rows = torch.randn(6, WIDTH, generator=generator) * self.deviation + self.centre
        noisy = weights + 0.5 * torch.randn(num, WIDTH, generator=generator)
        self.rows = rows
        self.clusters = torch.cdist(noisy, rows).topk(3, largest=False).indices

    def clusters_of(self, **options: Any) -> tuple[Regression, ClusterOptimizer]:
        table = ClusteredEmbedding.from_pretrained(
            self.rows, self.clusters, torch.tensor([[3.0, 2.0, 1.0]]).expand(len(self.clusters), -1)
        )
        model = Regression(table)

        def per_sample_loss(batch: tuple[Tensor, ...]) -> Tensor:
            return (model(batch[0], batch[1]) - batch[2]).square() / (2 * NOISE**2)

        return model, ClusterOptimizer(model, None, per_sample_loss, **options)

    def error(self, vectors: Tensor) -> float:
        """The mean squared error of predictions for new samples, noise left out."""
        return float((vectors[:NUM_USERS] - self.weights).square().sum(1).mean())

    def ridge(self, precision: Tensor) -> Tensor:
        """Every user's best weights under a normal prior around the planted centre."""
        vectors = []
        for user in range(NUM_USERS):
            z, y = self.features[self.users == user], self.labels[self.users == user]
            z, y = z / NOISE, y / NOISE
            target = z.T @ (y - z @ self.centre)
            vectors.append(self.centre + torch.linalg.pinv(z.T @ z + precision) @ target)
        return torch.stack(vectors)


@pytest.fixture(scope="module")
def data() -> PlantedWeights:
    return PlantedWeights()


@pytest.fixture(scope="module")
def fitted(data: PlantedWeights) -> tuple[Regression, list[Any]]:
    model, clusters = data.clusters_of()
    return model, clusters.personalize(data.batches)


def test_personal_vectors_come_near_the_best_that_knows_the_prior(
    data: PlantedWeights, fitted: Any
) -> None:
    best = data.error(data.ridge(torch.diag(data.deviation**-2)))
    unshrunk = data.error(data.ridge(torch.zeros(WIDTH, WIDTH)))
    blends = data.error(data.clusters_of()[0].users.to_dense())
    found = data.error(fitted[0].users.to_dense())
    assert found < 1.5 * best
    assert found < 0.4 * unshrunk
    assert found < 0.4 * blends
    model, clusters = data.clusters_of()
    clusters.personalize(data.batches, rule=PersonalRule(epochs=80))
    assert data.error(model.users.to_dense()) < 1.05 * best


def test_entities_with_little_data_stay_nearer_the_centre(
    data: PlantedWeights, fitted: Any
) -> None:
    vectors = fitted[0].users.to_dense()[:NUM_USERS]
    apart = (vectors - vectors.mean(0)).norm(dim=1)
    truly = (data.weights - data.weights.mean(0)).norm(dim=1)
    few, many = data.counts <= 3, data.counts >= 15
    assert (apart / truly)[few].median() < 0.9 * (apart / truly)[many].median()


def test_everyone_with_data_gets_a_vector_and_gives_the_blend_back(fitted: Any) -> None:
    model, events = fitted
    (event,) = events
    assert torch.equal(event.entities, torch.arange(NUM_USERS))
    assert (model.users.num_personal, model.users.blend_size) == (NUM_USERS, 1)


def test_unseen_entities_get_the_blend_nearest_to_the_mean(fitted: Any) -> None:
    table = fitted[0].users
    vectors = table.to_dense()
    mean = vectors[:NUM_USERS].mean(0)
    row = table.weight[(table.weight - mean).square().sum(1).argmin()]
    for vector in vectors[NUM_USERS:]:
        torch.testing.assert_close(vector, row)


def test_rows_are_the_means_of_their_members_vectors(fitted: Any) -> None:
    """So that offsets are as short as they can be."""
    table = fitted[0].users
    vectors, clusters = table.to_dense()[:NUM_USERS], table.cluster_ids()[:NUM_USERS]
    for cluster in clusters.unique().tolist():
        members = clusters == cluster
        if members.sum() >= 5:
            mean = vectors[members].mean(0)
            torch.testing.assert_close(table.weight[cluster], mean, rtol=0, atol=0.02)


def test_one_seed_gives_the_same_bits_and_another_does_not(data: PlantedWeights) -> None:
    dense = []
    for seed in (1, 1, 2):
        model, clusters = data.clusters_of(seed=seed)
        clusters.personalize(data.batches, rule=SHORT)
        dense.append(model.users.to_dense())
    assert torch.equal(dense[0], dense[1])
    assert not torch.equal(dense[0], dense[2])


def test_each_pass_tells_its_mean_loss(data: PlantedWeights) -> None:
    _, clusters = data.clusters_of()
    with torch.no_grad():
        start = torch.cat([clusters.per_sample_loss(batch) for batch in data.batches]).mean()
    told: list[float] = []
    clusters.personalize(data.batches, rule=SHORT, after_pass=told.append)
    assert len(told) == 1 + SHORT.warm_epochs + 2 + SHORT.epochs
    assert told[0] == pytest.approx(float(start), rel=1e-5)
    assert told[2] < told[0]


def test_a_round_afterwards_hardens_and_drops_personal_vectors(data: PlantedWeights) -> None:
    model, clusters = data.clusters_of()
    clusters.personalize(data.batches, rule=SHORT)
    assert model.users.num_personal
    clusters.round(data.batches)
    assert (model.users.num_personal, model.users.blend_size) == (0, 1)
    assert torch.equal(model.users.to_dense(), model.users.weight[model.users.cluster_ids()])


def test_personalizing_again_starts_from_the_codes(data: PlantedWeights) -> None:
    model, clusters = data.clusters_of()
    clusters.personalize(data.batches)
    once = data.error(model.users.to_dense())
    clusters.personalize(data.batches)
    assert data.error(model.users.to_dense()) < 1.1 * once


def test_one_sample_is_enough_to_fit() -> None:
    table = ClusteredEmbedding(5, 3, max_clusters=2)

    def per_sample_loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return (table(batch[0]).sum(1) - batch[1]).square() / 2

    clusters = ClusterOptimizer(table, None, per_sample_loss)
    clusters.personalize([(torch.tensor([3]), torch.tensor([2.0]))], rule=SHORT)
    assert table.num_personal == 1
    assert table.to_dense().isfinite().all()


def test_without_a_sample_nothing_happens(data: PlantedWeights) -> None:
    model, clusters = data.clusters_of()
    before = copy.deepcopy(model.state_dict())
    assert clusters.personalize([]) == []
    assert_same_state(model, before)


# --- the model around the tables -----------------------------------------------------------------


def assert_same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


class Failing:
    """A loss that goes wrong after some calls."""

    def __init__(self, loss: Any, num_good: int, fail: Any) -> None:
        self.loss, self.left, self.fail = loss, num_good, fail

    def __call__(self, batch: Any) -> Tensor:
        self.left -= 1
        losses: Tensor = self.loss(batch)
        return losses if self.left >= 0 else self.fail(losses)


def stop(losses: Tensor) -> Tensor:
    raise KeyError("the label is gone")


@pytest.mark.parametrize("num_good", [0, 5, 26, 100])
@pytest.mark.parametrize(
    ("fail", "error", "message"),
    [
        (stop, KeyError, "the label is gone"),
        (lambda losses: losses * math.nan, LossError, "nan for sample 0"),
        (lambda losses: losses + (0 * losses).sqrt(), LossError, "gradient|nan"),
    ],
)
def test_a_failing_loss_leaves_everything_as_it_was(
    data: PlantedWeights, num_good: int, fail: Any, error: Any, message: str
) -> None:
    model, clusters = data.clusters_of()
    clusters.per_sample_loss = Failing(clusters.per_sample_loss, num_good, fail)
    before = copy.deepcopy(model.state_dict())
    model.train()
    model.users.eval()
    with pytest.raises(error, match=message):
        clusters.personalize(data.batches)
    assert_same_state(model, before)
    assert model.users.probe is None
    assert (model.training, model.users.training) == (True, False)


class Deep(nn.Module):
    """A network over the vectors of one user and of a bag of items."""

    def __init__(self) -> None:
        super().__init__()
        self.users = ClusteredEmbedding(30, 4, max_clusters=5)
        self.items = ClusteredEmbeddingBag(20, 4, max_clusters=5, mode="mean", padding_idx=0)
        self.spare = ClusteredEmbedding(10, 4, max_clusters=3)
        self.head = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1))
        self.bias = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, users: Tensor, bags: Tensor) -> Tensor:
        both = torch.cat([self.users(users), self.items(bags)], 1)
        return self.head(both).squeeze(1) * self.frozen + self.bias

    def others(self) -> list[nn.Parameter]:
        return [*self.head.parameters(), self.bias]


def deep(**options: Any) -> tuple[Deep, ClusterOptimizer, list[Any]]:
    torch.manual_seed(0)
    model = Deep()
    for table in (model.users, model.items):
        generator = torch.Generator().manual_seed(1)
        clusters = torch.randint(5, (table.num_embeddings,), generator=generator)
        table.load_state_dict(
            type(table)
            .from_pretrained(torch.randn(5, 4, generator=generator), clusters, padding_idx=0)
            .state_dict()
        )
    users, bags = torch.randint(29, (600,)), torch.randint(20, (600, 3))
    labels = torch.randn(30)[users] + torch.randn(20)[bags].mean(1) + 0.3 * torch.randn(600)

    def per_sample_loss(batch: tuple[Tensor, ...]) -> Tensor:
        return (model(batch[0], batch[1]) - batch[2]).square().float() / 0.4

    batches = list(zip(users.split(150), bags.split(150), labels.split(150), strict=True))
    return model, ClusterOptimizer(model, None, per_sample_loss, **options), batches


def total_loss(clusters: ClusterOptimizer, batches: list[Any]) -> float:
    with torch.no_grad():
        return float(torch.cat([clusters.per_sample_loss(batch) for batch in batches]).mean())


def test_a_bag_gets_personal_vectors_and_its_padding_none() -> None:
    model, clusters, batches = deep()
    before = total_loss(clusters, batches)
    head = copy.deepcopy(model.head.state_dict())
    events = clusters.personalize(batches)
    assert [event.table for event in events] == ["users", "items"]
    assert torch.equal(events[1].entities, torch.arange(1, 20))
    assert total_loss(clusters, batches) < 0.5 * before
    padding = model.items(torch.zeros(1, 3, dtype=torch.long))
    assert not padding.any()
    assert not model.items.to_dense()[0].any()
    assert_same_state(model.head, head)  # no optimizer, no training


def test_a_table_that_is_never_looked_up_is_left_alone() -> None:
    for encode in (False, True):
        model, clusters, batches = deep()
        before = copy.deepcopy(model.spare.state_dict())
        if encode:
            events = clusters.encode(batches, 10.0, rule=SHORT)
            assert model.users.num_personal + model.items.num_personal > 0
        else:
            events = clusters.personalize(batches, rule=SHORT)
        assert {event.table for event in events if event.kind == "personal"} <= {"users", "items"}
        assert model.spare.num_personal == 0
        assert torch.equal(model.spare.weight, before["weight"])


def test_other_parameters_learn_along_and_rows_are_left_to_the_vectors() -> None:
    """Neither decay nor momentum nor gradients from before reach rows through the optimizer."""
    results = []
    for with_rows in (False, True):
        model, clusters, batches = deep()
        head = copy.deepcopy(model.head.state_dict())
        optimizer = torch.optim.SGD(model.others(), lr=0.05, momentum=0.9)
        if with_rows:
            rows = [model.users.weight, model.items.weight, model.spare.weight]
            optimizer.add_param_group({"params": rows, "lr": 1.0, "weight_decay": 0.5})
            for row in rows:
                row.grad = torch.ones_like(row)
        clusters.optimizer = optimizer
        clusters.encode(batches, 10.0, rule=SHORT)
        results.append(copy.deepcopy(model.state_dict()))
        assert not torch.equal(model.head[0].weight, head["0.weight"])
        assert model.bias != 0
        assert model.frozen == 1
        assert all(parameter.grad is None for parameter in model.parameters())
    assert_same_state(model, results[0])


def test_training_the_rest_lowers_the_loss_further() -> None:
    rule = PersonalRule(epochs=6)
    losses = []
    for trains in (False, True):
        model, clusters, batches = deep()
        if trains:
            clusters.optimizer = torch.optim.Adam(model.others(), lr=0.01)
        clusters.personalize(batches, rule=rule)
        losses.append(total_loss(clusters, batches))
    assert losses[1] < losses[0]


def test_parameters_that_the_optimizer_does_not_hold_stay() -> None:
    model, clusters, batches = deep()
    clusters.optimizer = torch.optim.Adam([model.bias], lr=0.01)
    head = copy.deepcopy(model.head.state_dict())
    clusters.personalize(batches, rule=SHORT)
    assert_same_state(model.head, head)
    assert model.head[0].weight.grad is None
    assert model.bias != 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_number_type_is_fitted_as_well(dtype: torch.dtype) -> None:
    model, clusters, batches = deep()
    model.to(dtype)
    before = total_loss(clusters, batches)
    clusters.personalize(batches)
    assert total_loss(clusters, batches) < 0.6 * before
    assert model.users.to_dense().dtype == dtype


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"warm_epochs": -1}, "warm_epochs is -1"),
        ({"looseness": 0.0}, "looseness is 0"),
        ({"rate": 1.5}, "rate is 1.5"),
        ({"last_rate": 0.0}, "last_rate is 0"),
        ({"max_step": math.inf}, "max_step is inf"),
        ({"memory": 1.1}, "memory is 1.1"),
        ({"acceleration": 0.5}, "acceleration is 0.5"),
    ],
)
def test_a_setting_out_of_range_is_named(setting: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        PersonalRule(**setting)
