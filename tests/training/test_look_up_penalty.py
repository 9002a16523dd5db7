"""The penalty equals its formula, for any table and an unmodified model."""

import pytest
import torch
from torch import nn

from celrec.baselines.hashed import HashedEmbedding
from celrec.core.embedding import ClusteredEmbedding
from celrec.models.gmf import GMF
from celrec.models.neumf import NeuMF
from celrec.training.look_up_penalty import LookUpPenalty

USER, ITEM = torch.tensor([0, 1, 1, 4]), torch.tensor([2, 2, 0, 1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Embedding(5, 3),
        lambda: ClusteredEmbedding(5, 3, max_clusters=2),
        lambda: HashedEmbedding(5, 3, 2),
    ],
    ids=["full", "clustered", "hashed"],
)
@pytest.mark.parametrize("model_class", [GMF, NeuMF])
def test_penalty_and_its_gradient_follow_the_formula(make, model_class):
    names = list(model_class.layer_widths(3))
    layers = {name: make() for name in names}
    model = model_class(**layers)
    with LookUpPenalty(model, 0.7) as penalty:
        model(USER, ITEM)
        found = penalty.take()
    found.backward()
    gradients = {name: layer.weight.grad.clone() for name, layer in layers.items()}
    model.zero_grad()
    expected = 0.7 * sum(
        layer(USER if "user" in name else ITEM).square().sum(-1).mean()
        for name, layer in layers.items()
    )
    expected.backward()
    torch.testing.assert_close(found, expected)
    for name, layer in layers.items():
        torch.testing.assert_close(gradients[name], layer.weight.grad)


def test_each_batch_has_its_own_penalty():
    model = GMF(nn.Embedding(5, 3), nn.Embedding(5, 3))
    with LookUpPenalty(model, 1.0) as penalty:
        model(USER, ITEM)
        first = penalty.take()
        assert penalty.take() == 0.0
        model(USER, ITEM)
        assert torch.equal(penalty.take(), first)


def test_nothing_is_left_on_the_model_afterwards():
    model = GMF(nn.Embedding(5, 3), nn.Embedding(5, 3))
    with LookUpPenalty(model, 1.0) as penalty, pytest.raises(IndexError):
        model(USER + 100, ITEM)
    assert penalty.take() == 0.0
    assert not any(module._forward_hooks for module in model.modules())


def test_weight_zero_listens_to_nothing():
    model = GMF(nn.Embedding(5, 3), nn.Embedding(5, 3))
    with LookUpPenalty(model, 0.0) as penalty:
        model(USER, ITEM)
        assert not any(module._forward_hooks for module in model.modules())
        assert penalty.take() == 0.0
