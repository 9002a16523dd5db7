"""Baselines that learn from a stream."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from celrec.baselines.online.river_models import RiverBiasedMF, RiverFM
from celrec.baselines.online.running_means import RunningMeans
from celrec.baselines.online.tables import BiasedFactors, FullTable, HashedTable
from celrec.errors import ArgumentError, LossError, MissingExtraError
from celrec.training.progressive import EventBatch, OnlineMethod, progressive

NUM_USERS, NUM_ITEMS, WIDTH = 40, 30, 4
sparse_adam = partial(torch.optim.SparseAdam, lr=0.05)
adagrad = partial(torch.optim.Adagrad, lr=0.3)
needs_river = pytest.mark.skipif(
    importlib.util.find_spec("river") is None, reason="river is not installed: celrec[river]"
)

MAKERS: dict[str, Callable[[int], OnlineMethod]] = {
    "means": lambda seed: RunningMeans(NUM_USERS, NUM_ITEMS, user_smoothing=4, item_smoothing=4),
    "full, Adam": lambda seed: FullTable(
        NUM_USERS, NUM_ITEMS, width=WIDTH, optimizer=sparse_adam, seed=seed
    ),
    "full, Adagrad": lambda seed: FullTable(
        NUM_USERS, NUM_ITEMS, width=WIDTH, optimizer=adagrad, l2=0.01, seed=seed
    ),
    "hashed": lambda seed: HashedTable(20, 15, width=WIDTH, optimizer=adagrad, seed=seed),
    "river BiasedMF": lambda seed: RiverBiasedMF(lr=0.3, width=WIDTH, seed=seed),
    "river FM": lambda seed: RiverFM(lr=0.3, width=WIDTH, seed=seed),
}
each_method = pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=needs_river if "river" in name else ())
        for name, make in MAKERS.items()
    ],
)


def planted(num_events: int = 3000) -> EventBatch:
    """Users and items with biases: the odds of a yes are the exponential of their sum."""
    rng = np.random.default_rng(3)
    users, items = rng.integers(0, (NUM_USERS, NUM_ITEMS), size=(num_events, 2)).T.copy()
    logits = 2 * rng.normal(size=NUM_USERS)[users] + 2 * rng.normal(size=NUM_ITEMS)[items]
    labels = rng.random(num_events) < 1 / (1 + np.exp(-logits))
    return EventBatch(
        torch.from_numpy(users),
        torch.from_numpy(items),
        torch.from_numpy(labels).float(),
        torch.arange(num_events).double(),
    )


@each_method
def test_every_method_learns_planted_biases(make: Callable[[int], OnlineMethod]) -> None:
    found = progressive(make(0), planted(), batch_size=8)
    # hashed entities share their biases; the true logits have 0.92
    assert found.overall["auc"] > (0.65 if isinstance(make(0), HashedTable) else 0.83)
    assert found.overall["log_loss"] < math.log(2)


@each_method
def test_a_seed_says_all(make: Callable[[int], OnlineMethod]) -> None:
    events = planted(200)
    one, same, other = (progressive(make(seed), events, batch_size=8) for seed in (0, 0, 1))
    assert np.array_equal(one.logits, same.logits)
    assert isinstance(make(0), RunningMeans) == np.array_equal(one.logits, other.logits)


@each_method
def test_predicting_changes_no_prediction(make: Callable[[int], OnlineMethod]) -> None:
    method, events = make(0), planted(100)
    method.learn(events)
    first = method.predict(events)
    assert torch.equal(method.predict(events), first)
    one_by_one = torch.cat([method.predict(event) for event in events.batches(1)])
    torch.testing.assert_close(one_by_one, first)


def test_running_means_worked_out_by_hand() -> None:
    means = RunningMeans(2, 2, user_smoothing=2, item_smoothing=1)
    events = EventBatch(
        torch.tensor([0, 0, 1]),
        torch.tensor([0, 1, 1]),
        torch.tensor([1.0, 1.0, 0.0]),
        torch.arange(3).double(),
    )
    assert means.predict(events).tolist() == [0, 0, 0]
    means.learn(events)
    mean = 3 / 5  # one yes and one no are added
    of_user = [(2 + 2 * mean) / (2 + 2), (0 + 2 * mean) / (1 + 2)]
    of_item = [(1 + mean) / (1 + 1), (1 + mean) / (2 + 1)]
    logit = [
        math.log(user / (1 - user)) + math.log(item / (1 - item)) - math.log(mean / (1 - mean))
        for user, item in ((of_user[u], of_item[i]) for u, i in ((0, 0), (0, 1), (1, 1)))
    ]
    assert means.predict(events).tolist() == pytest.approx(logit)
    assert means.state_bytes() == 2 * 2 * (4 + 4) + 16


@pytest.mark.parametrize("optimizer", [sparse_adam, adagrad])
def test_a_full_table_is_what_dense_embeddings_learn(
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
) -> None:
    """Against the plain sum over events, dense gradients, and an optimizer for rows in use."""
    table = FullTable(NUM_USERS, NUM_ITEMS, width=WIDTH, optimizer=optimizer, l2=0.1)
    events = planted(64)
    rows = nn.Parameter(table.rows.detach().clone())
    dense = optimizer([rows])
    num_events = num_likes = 0
    for batch in events.batches(16):
        num_events, num_likes = num_events + 16, num_likes + int(batch.labels.sum())
        odds = math.log((num_likes + 1) / (num_events - num_likes + 1))
        loss = torch.zeros(())
        for user, item, label in zip(batch.users, batch.items, batch.labels, strict=True):
            u, v = rows[user], rows[NUM_USERS + item]
            z = u[:WIDTH] @ v[:WIDTH] + u[WIDTH] + v[WIDTH] + odds
            loss = loss + nn.functional.binary_cross_entropy_with_logits(z, label)
            loss = loss + 0.05 * (u @ u + v @ v)
        (gradient,) = torch.autograd.grad(loss, rows)
        with torch.sparse.check_sparse_tensor_invariants(enable=True):
            rows.grad = gradient.to_sparse(1)
            dense.step()
        table.learn(batch)
    torch.testing.assert_close(table.rows, rows)


def kept_bytes(method: BiasedFactors) -> int:
    """Every tensor that an object holds, found without its help; and two counts."""
    found = {id(method.rows): method.rows.nbytes}
    for state in method.optimizer.state_dict()["state"].values():
        found |= {id(v): v.nbytes for v in state.values() if isinstance(v, torch.Tensor)}
    return sum(found.values()) + 16


def test_state_bytes_are_what_is_kept() -> None:
    events = planted(32)
    num_rows = NUM_USERS + NUM_ITEMS
    adam = FullTable(NUM_USERS, NUM_ITEMS, width=WIDTH, optimizer=sparse_adam)
    assert adam.table_bytes() == num_rows * WIDTH * 4
    assert adam.state_bytes() == num_rows * (WIDTH + 1) * 4 + 16
    adam.learn(events)
    assert adam.state_bytes() == kept_bytes(adam) == 3 * num_rows * (WIDTH + 1) * 4 + 16
    second = FullTable(NUM_USERS, NUM_ITEMS, width=WIDTH, optimizer=adagrad)
    assert second.state_bytes() == kept_bytes(second) >= 2 * num_rows * (WIDTH + 1) * 4 + 16
    hashed = HashedTable(5, 3, width=WIDTH, optimizer=sparse_adam)
    hashed.learn(events)
    assert hashed.table_bytes() == 8 * WIDTH * 4
    assert hashed.state_bytes() == kept_bytes(hashed) == 3 * 8 * (WIDTH + 1) * 4 + 16


def test_hashes_share_rows_and_users_share_none_with_items() -> None:
    table = HashedTable(5, 3, width=WIDTH, optimizer=sparse_adam)
    users, items = table.row_ids(torch.arange(1000), torch.arange(1000))
    assert users.unique().tolist() == [0, 1, 2, 3, 4]
    assert items.unique().tolist() == [5, 6, 7]
    again = HashedTable(5, 3, width=WIDTH, optimizer=sparse_adam, seed=1)
    assert not torch.equal(again.row_ids(torch.arange(1000), torch.arange(1000))[0], users)


@needs_river
def test_rivers_figures_are_its_own() -> None:
    """Event by event, as river's users write it."""
    from river import facto, optim, reco

    events = planted(200)
    mf = reco.BiasedMF(
        n_factors=WIDTH,
        bias_optimizer=optim.SGD(0.1),
        latent_optimizer=optim.SGD(0.1),
        latent_initializer=optim.initializers.Normal(sigma=0.1, seed=5),
        loss=optim.losses.Log(),
    )
    fm = facto.FMClassifier(
        n_factors=WIDTH,
        weight_optimizer=optim.SGD(0.1),
        latent_optimizer=optim.SGD(0.1),
        latent_initializer=optim.initializers.Normal(sigma=0.1, seed=5),
        intercept_lr=0.1,
    )
    expected = []
    for user, item, label in zip(
        events.users.tolist(), events.items.tolist(), events.labels.tolist(), strict=True
    ):
        x = {"user": str(user), "item": str(item)}
        expected.append((mf.predict_one(user, item), fm.predict_proba_one(x)[True]))
        mf.learn_one(user, item, label)
        fm.learn_one(x, bool(label))
    our_mf = RiverBiasedMF(lr=0.1, width=WIDTH, seed=5)
    our_fm = RiverFM(lr=0.1, width=WIDTH, seed=5)
    found_mf, found_fm = (
        progressive(method, events, batch_size=1, after=0).logits for method in (our_mf, our_fm)
    )
    assert found_mf.tolist() == [z for z, _ in expected]
    assert (1 / (1 + np.exp(-found_fm))).tolist() == pytest.approx([p for _, p in expected])
    # it keeps those that it met, in double precision
    met = len(events.users.unique()) + len(events.items.unique())
    assert our_mf.table_bytes() == our_fm.table_bytes() == 8 * WIDTH * met
    assert our_mf.state_bytes() == 8 * (WIDTH + 1) * met + 16
    assert our_fm.state_bytes() == 8 * (WIDTH + 1) * met + 8


@needs_river
def test_a_river_model_that_diverges_is_named_by_its_predictions() -> None:
    with pytest.raises(LossError, match=r"the prediction for event \d+ is .*; lower the learning"):
        progressive(RiverBiasedMF(lr=1e6, l2=1.0, width=WIDTH), planted(), batch_size=32)


def test_a_missing_river_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("river", *(name for name in sys.modules if name.startswith("river."))):
        monkeypatch.setitem(sys.modules, name, None)
    for make in (RiverBiasedMF, RiverFM):
        with pytest.raises(MissingExtraError, match=r"pip install celrec\[river\]"):
            make(lr=0.1)


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ArgumentError, match="user_smoothing"):
        RunningMeans(2, 2, user_smoothing=0, item_smoothing=1)
    with pytest.raises(ArgumentError, match="num_item_rows"):
        FullTable(2, 0, optimizer=sparse_adam)
    with pytest.raises(ArgumentError, match="l2"):
        HashedTable(2, 2, optimizer=sparse_adam, l2=-1.0)
