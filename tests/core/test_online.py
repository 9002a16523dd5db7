"""Online embeddings: what a batch does to codes and rows, and what a stream leaves behind."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils._python_dispatch import TorchDispatchMode

from celrec import ClusteredEmbedding, OnlineEmbedding, OnlineLearner, OnlineRule
from celrec.core.online import _explorers, _started
from celrec.core.online_embedding import OnlineCodes
from celrec.errors import (
    ArgumentError,
    CelrecError,
    DtypeError,
    EntityIdError,
    LossError,
    SampleError,
)
from celrec.models.biased_mf import BiasedMF

Batch = tuple[Tensor, Tensor, Tensor]


def learner_of(
    *tables: OnlineEmbedding, lr: float = 0.05, seed: int = 0, **rule: Any
) -> OnlineLearner:
    """Of a BiasedMF with these tables; a batch is users, items, labels of 0 and 1."""
    model = BiasedMF(*tables)

    def loss(batch: Batch) -> Tensor:
        return binary_cross_entropy_with_logits(model(*batch[:2]), batch[2], reduction="none")

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    return OnlineLearner(model, optimizer, loss, OnlineRule(**rule), seed=seed)


def small(max_clusters: int = 4, seed: int = 0, **options: Any) -> OnlineLearner:
    torch.manual_seed(seed)
    rule = {"split_after": 20, **options}
    shape = {"embedding_dim": 6, "max_clusters": max_clusters, "blend_size": 2, "offset_dim": 3}
    users, items = OnlineEmbedding(30, **shape, smoothing=1.5), OnlineEmbedding(20, **shape)
    return learner_of(users, items, **rule)


def planted_batches(
    num_batches: int, *, size: int = 16, seed: int = 0, flip: bool = False
) -> list[Batch]:
    """Users and items of two kinds: like goes with like, unless flipped. No biases."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(num_batches):
        users = torch.randint(30, (size,), generator=generator)
        items = torch.randint(20, (size,), generator=generator)
        labels = ((users % 2 == items % 2) ^ flip).float()
        batches.append((users, items, labels))
    return batches


def state_of(learner: OnlineLearner) -> dict[str, Any]:
    return copy.deepcopy(
        {
            "model": learner.model.state_dict(),
            "optimizer": learner.optimizer.state_dict(),
            "counts": learner.state_dict(),
        }
    )


def assert_same(first: Any, second: Any) -> None:
    """Bit by bit."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_same(first[name], second[name])
    elif isinstance(first, Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


# --- the table -----------------------------------------------------------------------------------


def test_entities_without_events_have_the_mean_row() -> None:
    table = OnlineEmbedding(10, 4, 3)
    table.num_live.fill_(2)
    table.load[:2] = torch.tensor([5.0, 1.0])
    expected = (6 * table.weight[0] + 2 * table.weight[1]) / 8
    assert table(torch.tensor([[0, 9]])).shape == (1, 2, 4)
    torch.testing.assert_close(table(torch.tensor(9)), expected)


def test_vectors_are_blends_and_offsets() -> None:
    table = OnlineEmbedding(10, 4, 3, blend_size=2, offset_dim=1)
    table.num_live.fill_(3)
    table.load[:3] = torch.tensor([1.0, 3.0, 0.0])
    table.clusters[7] = torch.tensor([2, 1])
    table.log_weights[7] = torch.tensor([0.0, -1.0])
    table.offsets[7] = 0.5
    table.counts[7] = 1
    shares = torch.tensor([1.0, 4 * math.exp(-1)])
    shares /= shares.sum()
    expected = shares[0] * table.weight[2] + shares[1] * table.weight[1]
    expected = expected + torch.tensor([0, 0, 0, 0.5])
    torch.testing.assert_close(table(torch.tensor([7]))[0], expected)
    torch.testing.assert_close(table.to_dense()[7], expected.detach())


def test_memory_is_what_is_kept() -> None:
    table = OnlineEmbedding(1000, 16, 300, blend_size=3, offset_dim=5)
    memory = table.memory()
    kept = sum(array.nbytes for array in table.state_dict().values())
    counters = table.num_events.nbytes + table.num_live.nbytes
    assert memory.total_bytes + memory.sleeping_bytes == kept - counters
    assert memory.code_bytes == 1000 * (3 * 2 + 3 * 2 + 2)  # 300 rows: codes of two bytes
    assert memory.personal_bytes == 1000 * 10
    assert memory.table_bytes == 64  # one row in use


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        (torch.tensor([10]), EntityIdError),
        (torch.tensor([-1]), EntityIdError),
        (torch.tensor([1.0]), DtypeError),
    ],
)
def test_ids_are_checked(ids: Tensor, error: type[CelrecError]) -> None:
    with pytest.raises(error):
        OnlineEmbedding(10, 4, 2)(ids)


@pytest.mark.parametrize(
    "options",
    [
        {"blend_size": 0},
        {"blend_size": 65},
        {"offset_dim": 5},
        {"offset_dim": -1},
        {"num_biases": 5},
        {"smoothing": -0.5},
    ],
)
def test_sizes_are_checked(options: dict[str, int]) -> None:
    with pytest.raises(ArgumentError):
        OnlineEmbedding(10, 4, 2, **options)


def test_smoothing_takes_factors_of_blends_and_no_offsets_or_biases() -> None:
    plain = OnlineEmbedding(10, 6, 4, blend_size=2, offset_dim=3)
    smooth = OnlineEmbedding(10, 6, 4, blend_size=2, offset_dim=3, num_biases=2, smoothing=2)
    everybody = torch.arange(10)
    plain.num_live.fill_(4)
    counts = torch.tensor([0, 1, 2, 6, 0, 0, 0, 0, 0, 198.0])
    clusters, log_weights = torch.randint(4, (10, 2)), -torch.rand(10, 2)
    plain.commit(everybody, OnlineCodes(clusters, log_weights, torch.zeros(10, 3), counts))
    smooth.load_state_dict(plain.state_dict())
    known = torch.tensor([0, 1 / 3, 1 / 2, 3 / 4, 0, 0, 0, 0, 0, 0.99])
    wanted = plain.to_dense()
    wanted[:, :4] *= known.unsqueeze(1)
    torch.testing.assert_close(smooth.to_dense(), wanted)
    torch.testing.assert_close(smooth.newcomer(), wanted[0])
    for table in (plain, smooth):
        codes = table.codes_of(everybody)
        codes.offsets[:, 0] = 3.0  # a factor
        before = table.to_dense()
        table.commit(everybody, codes)
        moved = table.to_dense() - before
        torch.testing.assert_close(moved[:, 3], torch.full((10,), 3.0))
        moved[:, 3] = 0
        assert not moved.any()


def test_forgetting_makes_new() -> None:
    learner = small()
    for batch in planted_batches(20):
        learner.learn(batch)
    users = learner.tables["user_embedding"]
    before = users.to_dense()
    users.forget(torch.tensor([3, 4]))
    torch.testing.assert_close(users(torch.tensor([3])), users.newcomer().unsqueeze(0))
    others = [0, 1, 2, *range(5, 30)]
    assert torch.equal(users.to_dense()[others], before[others])
    with pytest.raises(EntityIdError):
        users.forget(torch.tensor([30]))


# --- one batch -----------------------------------------------------------------------------------


@torch.no_grad()
def expected_codes(
    table: OnlineEmbedding,
    ids: Tensor,
    gradients: Tensor,
    rule: OnlineRule,
    learner: OnlineLearner,
) -> dict[int, dict[str, Any]]:
    """What the module's head says a batch does to codes, an entity at a time, in float64."""
    live = table.num_clusters
    prior = table.prior().double()
    rows = table.weight.detach().double()
    curvature = table.curvature.double()
    seen = int(table.num_events) + len(ids)
    rate = min(1.0, len(ids) / min(seen + 10, 2000))
    curvature = curvature + rate * (gradients.double().square().mean(0) - curvature)
    entities = ids.unique()
    codes = table.codes_of(entities)
    explorers = _explorers(_started(codes, prior.float()), table, rule.num_explorers, learner)
    blends = table.blends(codes, table.shares(codes)).double()
    found = {}
    for line, entity in enumerate(entities.tolist()):
        own = gradients[ids == entity].double()
        count = float(codes.counts[line])
        weights = {
            int(k): float(w)
            for k, w in zip(codes.clusters[line], codes.log_weights[line], strict=True)
            if w > -math.inf
        }
        if count == 0:
            popular = prior.argsort(descending=True)[: table.blend_size].tolist()
            weights = dict.fromkeys(popular[:live], 0.0)
        faded = rule.memory ** len(own)
        kept = {k: faded * w for k, w in weights.items()}
        start = min(kept.values())
        if len(kept) < table.blend_size:
            start = sum(kept.values()) / len(kept)
        starts = dict.fromkeys(explorers[line].tolist(), start)
        scores = {}
        evidence = {}
        for k in {**kept, **starts}:
            s = own @ (rows[k] - blends[line])
            evidence[k] = float(-(s + s**2 / 2).sum() / rule.temperature)
        mean = sum(evidence[k] for k in kept) / len(kept)
        for k in evidence:
            scores[k] = kept.get(k, starts.get(k, 0.0)) + evidence[k] - mean
        best = sorted(scores, key=lambda k: -(scores[k] + float(prior[k].log())))
        best = best[: table.blend_size]
        top = max(scores[k] for k in best)
        n = min(count * faded + len(own), 2048)
        last = slice(table.embedding_dim - table.offset_dim, None)
        precision = torch.full((table.offset_dim,), rule.precision, dtype=torch.float64)
        precision[-table.num_biases :] = rule.bias_precision
        step = own.sum(0)[last] / (precision + n * curvature[last])
        found[entity] = {
            "weights": {k: max(scores[k] - top, -30.0) for k in best},
            "offsets": codes.offsets[line].double() - step,
            "count": n,
        }
    return found


@pytest.mark.parametrize("seed", range(5))
def test_a_batch_changes_codes_as_the_reference_says(seed: int) -> None:
    learner = small(seed=seed, memory=0.9, temperature=0.7)
    learner.rules["item_embedding"] = OnlineRule(
        split_after=20, num_explorers=1, bias_precision=4.0, precision=1.5
    )
    *warm_up, last = planted_batches(40, seed=seed)
    for batch in warm_up:
        learner.learn(batch)
    # By autograd on plain copies of the vectors: nothing of the learner's own.
    users, items, labels = last
    tables = learner.tables
    vectors = [
        table(ids).detach().requires_grad_()
        for table, ids in zip(tables.values(), (users, items), strict=True)
    ]
    rows = [nn.Embedding.from_pretrained(v, freeze=False) for v in vectors]
    lines = torch.arange(len(users))
    logits = BiasedMF(*rows)(lines, lines)
    binary_cross_entropy_with_logits(logits, labels, reduction="sum").backward()
    wanted = [
        expected_codes(table, ids, row.weight.grad, learner.rules[name], learner)
        for (name, table), ids, row in zip(tables.items(), (users, items), rows, strict=True)
    ]
    learner.learn(last)
    for table, entities in zip(tables.values(), wanted, strict=True):
        for entity, code in entities.items():
            got = table.codes_of(torch.tensor([entity]))
            weights = dict(zip(got.clusters[0].tolist(), got.log_weights[0].tolist(), strict=True))
            weights = {k: w for k, w in weights.items() if w > -math.inf}
            assert weights == pytest.approx(code["weights"], abs=0.02, rel=2e-3)
            assert float(got.counts) == pytest.approx(code["count"], rel=1e-3)
            torch.testing.assert_close(
                got.offsets[0].double(), code["offsets"], atol=2e-3, rtol=2e-3
            )


def test_rows_take_the_gradient_of_the_mean_loss() -> None:
    """Against autograd through the very blend: one step of plain SGD."""
    learner = small()
    for batch in planted_batches(30):
        learner.learn(batch)
    batch = planted_batches(1, seed=5)[0]
    other = copy.deepcopy(learner.model)
    losses = binary_cross_entropy_with_logits(other(*batch[:2]), batch[2])
    losses.backward()
    learner.optimizer = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    learner.rules = dict.fromkeys(learner.tables, OnlineRule(split_after=10**6))
    before = {name: table.weight.detach().clone() for name, table in learner.tables.items()}
    learner.learn(batch)
    for name, table in learner.tables.items():
        gradient = other.get_submodule(name).weight.grad
        torch.testing.assert_close(table.weight.detach(), before[name] - 0.1 * gradient)


def test_the_order_within_a_batch_does_not_matter() -> None:
    one, two = small(), small()
    for batch in planted_batches(30):
        order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
        one.learn(batch)
        two.learn(tuple(part[order] for part in batch))
    for name, table in one.tables.items():
        dense = two.tables[name].to_dense()
        torch.testing.assert_close(table.to_dense(), dense, atol=5e-3, rtol=0)


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    learner = small()
    batches = planted_batches(5)
    for batch in batches:
        learner.learn(batch)
    before = state_of(learner)
    users, items, labels = batches[0]
    with pytest.raises(LossError, match="after 80 events"):
        learner.learn((users, items, labels.masked_fill(labels == 1, math.nan)))
    assert_same(state_of(learner), before)
    learner.per_sample_loss = lambda batch: batch[2].mean()
    with pytest.raises(LossError, match="one loss for each sample"):
        learner.learn(batches[0])


def bag_loss(table: OnlineEmbedding) -> Callable[[Tensor], Tensor]:
    return lambda ids: (table(ids).sum((1, 2)) - 1).square()


def test_an_entity_that_a_sample_asks_for_twice_has_one_event() -> None:
    torch.manual_seed(0)
    table = OnlineEmbedding(9, 3, 2)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    learner = OnlineLearner(table, optimizer, bag_loss(table))
    learner.learn(torch.tensor([[4, 4, 5], [4, 6, 6]]))
    assert table.counts.tolist() == [0, 0, 0, 0, 2, 1, 1, 0, 0]
    assert int(table.num_events) == 4


def test_look_ups_without_samples_are_refused() -> None:
    table = OnlineEmbedding(9, 3, 2)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)

    def loss(ids: Tensor) -> Tensor:
        return table(ids.flatten()).view(*ids.shape, 3).sum((1, 2))

    ids = torch.tensor([[4, 4, 5], [4, 6, 6]])
    with pytest.raises(SampleError):
        OnlineLearner(table, optimizer, loss).learn(ids)
    learner = OnlineLearner(
        table, optimizer, loss, sample_of={"": lambda flat: flat.new_tensor([0, 0, 0, 1, 1, 1])}
    )
    learner.learn(ids)
    assert table.counts.tolist() == [0, 0, 0, 0, 2, 1, 1, 0, 0]
    with pytest.raises(ArgumentError, match="nobody"):
        OnlineLearner(table, optimizer, loss, sample_of={"nobody": lambda flat: flat})
    with pytest.raises(ArgumentError, match="nobody"):
        OnlineLearner(table, optimizer, loss, {"nobody": OnlineRule()})
    with pytest.raises(ArgumentError, match="no OnlineEmbedding"):
        OnlineLearner(nn.Linear(2, 2), optimizer, loss)


def test_a_table_that_a_batch_does_not_ask_is_left_alone() -> None:
    learner = small()
    learner.per_sample_loss = lambda users: learner.tables["user_embedding"](users).sum(1)
    items = learner.tables["item_embedding"]
    before = copy.deepcopy(items.state_dict())
    learner.learn(torch.tensor([1, 2]))
    del before["weight"]  # weight decay reaches it
    assert_same({name: items.state_dict()[name] for name in before}, before)


class _Largest(TorchDispatchMode):
    """The most numbers that any new tensor had, the table's own arrays apart."""

    def __init__(self, tables: list[OnlineEmbedding]) -> None:
        super().__init__()
        self.known = {part.data_ptr() for table in tables for part in table.state_dict().values()}
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.data_ptr() not in self.known:
            self.largest = max(self.largest, found.numel())
        return found


def test_no_work_grows_with_the_number_of_entities() -> None:
    tables = [OnlineEmbedding(n, 6, 4, blend_size=2, offset_dim=3) for n in (50_000, 40_000)]
    learner = learner_of(*tables)
    with _Largest(tables) as mode:
        for batch in planted_batches(2):
            learner.learn(batch)
    assert 16 * 6 <= mode.largest < 5000


# --- a stream ------------------------------------------------------------------------------------


def error_of(learner: OnlineLearner, batches: list[Batch]) -> float:
    """The share of labels that are predicted wrongly."""
    with torch.no_grad():
        wrong = [((learner.model(u, i) > 0) != (y > 0.5)).float().mean() for u, i, y in batches]
    return float(torch.stack(wrong).mean())


@pytest.mark.parametrize("seed", range(2))
def test_clusters_alone_find_planted_kinds(seed: int) -> None:
    """Two kinds of users, two of items; codes of two clusters, and no offsets."""
    likes = torch.tensor([[0.9, 0.4], [0.2, 0.6]])
    torch.manual_seed(seed)
    tables = [OnlineEmbedding(n, 6, 4, blend_size=2, offset_dim=0) for n in (30, 20)]
    learner = learner_of(*tables, split_after=50)
    for _ in range(700):
        users, items = torch.randint(30, (16,)), torch.randint(20, (16,))
        probability = likes[users % 2, items % 2]
        learner.learn((users, items, torch.bernoulli(probability)))
    users, items = torch.cartesian_prod(torch.arange(30), torch.arange(20)).unbind(1)
    with torch.no_grad():
        error = learner.model(users, items).sigmoid() - likes[users % 2, items % 2]
    assert float(error.square().mean().sqrt()) < 0.12  # of one rate for all: 0.26
    assert tables[0].num_clusters == 4


def test_fading_follows_a_drift_sooner() -> None:
    """Of entities whose rate falls from 0.8 to 0.2: how far off they are 20 events later."""
    errors = {}
    for memory in (1.0, 0.9):
        torch.manual_seed(0)
        table = OnlineEmbedding(50, 1, 1)

        def loss(labels: Tensor, table: OnlineEmbedding = table) -> Tensor:
            logits = table(torch.arange(50))[:, 0]
            return binary_cross_entropy_with_logits(logits, labels, reduction="none")

        optimizer = torch.optim.SGD(table.parameters(), lr=0)
        learner = OnlineLearner(table, optimizer, loss, OnlineRule(memory=memory))
        for rate in [0.8] * 200 + [0.2] * 20:
            learner.learn(torch.bernoulli(torch.full((50,), rate)))
        errors[memory] = float((table.to_dense().sigmoid() - 0.2).abs().mean())
    assert errors[0.9] < 0.2 < 0.3 < errors[1.0]


def test_stopping_and_resuming_changes_no_bit() -> None:
    batches = planted_batches(60)
    whole = small(max_clusters=5)
    for batch in batches:
        whole.learn(batch)
    first = small(max_clusters=5)
    for batch in batches[:25]:
        first.learn(batch)
    saved = state_of(first)
    resumed = small(max_clusters=5, seed=7)
    resumed.seed = 0
    resumed.model.load_state_dict(saved["model"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["counts"])
    for batch in batches[25:]:
        resumed.learn(batch)
    assert_same(state_of(resumed), state_of(whole))
    assert whole.num_splits > 4


def test_a_split_goes_along_the_direction_of_gradients() -> None:
    learner = small(max_clusters=2, split_after=50, spread=0.25)
    users = learner.tables["user_embedding"]
    for batch in planted_batches(3):
        learner.learn(batch)
    assert users.num_clusters == 1
    row, direction = users.weight[0].detach().clone(), users.direction[0].clone()
    assert float(direction.norm()) == pytest.approx(1)
    users.served[0] = 50
    moments = learner.optimizer.state[users.weight]["exp_avg"]
    moments[0] = 7
    learner._split(users, learner.rules["user_embedding"])
    assert users.num_clusters == 2
    torch.testing.assert_close(users.weight[0].detach(), row - 0.25 * direction)
    torch.testing.assert_close(users.weight[1].detach(), row + 0.25 * direction)
    assert users.relative[:2].tolist() == [1, 0]
    assert moments[1].eq(7).all()
    assert learner.num_splits == 1


def test_where_no_row_is_left_an_idle_one_is_given_up() -> None:
    learner = small(max_clusters=3)
    users = learner.tables["user_embedding"]
    users.num_live.fill_(3)
    users.load[:] = torch.tensor([50.0, 40.0, 20.0])
    users.served[0] = 30
    before = users.weight.detach().clone()
    learner._split(users, learner.rules["user_embedding"])  # all are busy
    assert (learner.num_splits, learner.num_given_up) == (0, 0)
    assert torch.equal(users.weight, before)
    assert float(users.served[0]) == 0
    users.load[2] = 0.1
    users.served[0] = 30
    learner._split(users, learner.rules["user_embedding"])
    assert (learner.num_splits, learner.num_given_up) == (1, 1)
    assert torch.equal(users.weight[1], before[1])
    assert not torch.equal(users.weight[2], before[2])


def test_oja_finds_the_main_direction_of_gradients() -> None:
    torch.manual_seed(0)
    table = OnlineEmbedding(50, 8, 1, offset_dim=0)
    main = torch.randn(8)
    main /= main.norm()
    optimizer = torch.optim.SGD(table.parameters(), lr=0)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        ids, forces = batch
        return (table(ids) * forces).sum(1)

    learner = OnlineLearner(table, optimizer, loss)
    for _ in range(200):
        forces = 2 * torch.randn(16, 1) * main + 0.5 * torch.randn(16, 8)
        learner.learn((torch.randint(50, (16,)), forces))
    assert abs(float(table.direction[0] @ main)) > 0.95


def test_explorers_are_all_clusters_in_turn() -> None:
    learner = small()
    users = learner.tables["user_embedding"]
    users.num_live.fill_(4)
    held = users.codes_of(torch.arange(30))
    drawn = set()
    for _ in range(20):
        learner.num_events += 16
        drawn |= set(_explorers(held, users, 2, learner)[:, 1].tolist())
    assert drawn == {0, 1, 2, 3}


# --- rounds and streams --------------------------------------------------------------------------


def trained_in_rounds(blend_size: int, num_personal: int = 0) -> ClusteredEmbedding:
    from tests.core.test_personal import personal

    return personal(40, 8, blend_size, num_personal, seed=3)[0]


@pytest.mark.parametrize("blend_size", [1, 4])
def test_what_rounds_trained_goes_on_with_the_same_vectors(blend_size: int) -> None:
    table = trained_in_rounds(blend_size)
    counts = torch.arange(40) % 7
    online = OnlineEmbedding.from_clustered(table, counts, max_clusters=9)
    met = counts > 0
    torch.testing.assert_close(online.to_dense()[met], table.to_dense()[met], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(online.to_dense()[0], online.newcomer().detach())
    assert online.max_clusters == 9


def test_personal_vectors_keep_their_last_numbers() -> None:
    table = trained_in_rounds(4, num_personal=40)
    online = OnlineEmbedding.from_clustered(table, torch.ones(40), offset_dim=8)
    torch.testing.assert_close(online.to_dense(), table.to_dense(), atol=5e-3, rtol=2e-3)
    online = OnlineEmbedding.from_clustered(table, torch.ones(40), offset_dim=3)
    torch.testing.assert_close(
        online.to_dense()[:, 5:], table.to_dense()[:, 5:], atol=5e-3, rtol=2e-3
    )


def test_a_stream_goes_back_to_rounds() -> None:
    learner = small(max_clusters=5)
    for batch in planted_batches(60):
        learner.learn(batch)
    users = learner.tables["user_embedding"]
    users.forget(torch.tensor([4]))
    table = users.to_clustered()
    spread = float(users.weight.detach().std())
    torch.testing.assert_close(table.to_dense(), users.to_dense(), atol=0.25 * spread, rtol=0.05)
    assert table.num_clusters == users.num_clusters
    again = OnlineEmbedding.from_clustered(table, users.counts, offset_dim=3, smoothing=1.5)
    torch.testing.assert_close(again.to_dense(), table.to_dense(), atol=0.02, rtol=0.05)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"counts": torch.ones(39)}, "counts"),
        ({"counts": -torch.ones(40)}, "counts"),
        ({"max_clusters": 2}, "max_clusters is 2"),
    ],
)
def test_tables_that_cannot_go_on_are_refused(change: dict[str, Any], words: str) -> None:
    arguments = {"counts": torch.ones(40), **change}
    with pytest.raises(ArgumentError, match=words):
        OnlineEmbedding.from_clustered(trained_in_rounds(2), **arguments)
    with pytest.raises(ArgumentError, match="padding"):
        OnlineEmbedding.from_clustered(ClusteredEmbedding(5, 4, 2, padding_idx=0), torch.ones(5))
