"""Models hold to their formulas, take any embedding layer, and build none."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from celrec.baselines.hashed import HashedEmbedding
from celrec.core.embedding import ClusteredEmbedding
from celrec.errors import ArgumentError
from celrec.models.biased_mf import BiasedMF
from celrec.models.gmf import GMF
from celrec.models.neumf import NeuMF
from celrec.models.nmf import NMF

MODELS = [GMF, BiasedMF, NMF, NeuMF]
NUM_USERS, NUM_ITEMS, FACTORS = 7, 5, 3


def full(num_entities, width):
    return nn.Embedding(num_entities, width)


def clustered(num_entities, width):
    table = ClusteredEmbedding(num_entities, width, max_clusters=3)
    table.cluster_of.copy_(torch.arange(num_entities) % 3)
    return table


def hashed(num_entities, width):
    return HashedEmbedding(num_entities, width, num_rows=3)


def build(model, make_layer=full, seed=0):
    torch.manual_seed(seed)
    layers = {
        name: make_layer(NUM_USERS if "user" in name else NUM_ITEMS, width)
        for name, width in model.layer_widths(FACTORS).items()
    }
    return model(**layers), layers


def all_pairs():
    pairs = torch.cartesian_prod(torch.arange(NUM_USERS), torch.arange(NUM_ITEMS))
    return pairs[:, 0], pairs[:, 1]


def slow_prediction(model, user, item):
    """One pair at a time, from the formulas."""
    if isinstance(model, NeuMF):
        product = [a * b for a, b in zip(model.gmf_user(user), model.gmf_item(item), strict=True)]
        hidden = torch.cat([model.mlp_user(user), model.mlp_item(item)])
        for layer in model.mlp:
            if isinstance(layer, nn.Linear):
                hidden = torch.relu(layer.weight @ hidden + layer.bias)
        both = torch.cat([torch.stack(product), hidden])
        return model.output.weight[0] @ both + model.output.bias[0]
    a, b = model.user_embedding(user), model.item_embedding(item)
    num_factors = FACTORS if isinstance(model, BiasedMF) else len(a)
    total = sum(a[f] * b[f] for f in range(num_factors))
    if isinstance(model, BiasedMF):
        total = total + a[FACTORS] + b[FACTORS + 1] + model.offset
    return total


@pytest.mark.parametrize("make_layer", [full, clustered, hashed])
@pytest.mark.parametrize("model_class", MODELS)
def test_prediction_follows_the_formula_with_any_layer(model_class, make_layer):
    model, _ = build(model_class, make_layer)
    if isinstance(model, BiasedMF):
        model.set_offset(3.5)
    user, item = all_pairs()
    expected = torch.stack([slow_prediction(model, u, i) for u, i in zip(user, item, strict=True)])
    torch.testing.assert_close(model(user, item), expected)


@given(data=st.data(), model_class=st.sampled_from(MODELS))
def test_a_batch_equals_its_samples_one_by_one(data, model_class):
    size = data.draw(st.integers(1, 9))
    user = torch.tensor(data.draw(st.lists(st.integers(0, 6), min_size=size, max_size=size)))
    item = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size)))
    model, _ = build(model_class)
    one_by_one = [model(user[k : k + 1], item[k : k + 1]) for k in range(size)]
    torch.testing.assert_close(model(user, item), torch.cat(one_by_one))


@pytest.mark.parametrize("model_class", MODELS)
def test_model_keeps_the_layers_it_was_given(model_class):
    model, layers = build(model_class)
    rows = {name: layer.weight.clone() for name, layer in layers.items()}
    build_again = model_class(**layers)
    for name, layer in layers.items():
        assert getattr(model, name) is layer
        assert getattr(build_again, name) is layer
        assert torch.equal(layer.weight, rows[name]), "a pretrained layer must not be redrawn"


@pytest.mark.parametrize("model_class", MODELS)
def test_every_layer_gets_a_gradient(model_class):
    model, layers = build(model_class)
    model(*all_pairs()).square().sum().backward()
    for layer in layers.values():
        assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("model_class", MODELS)
def test_layer_names_are_the_arguments_and_say_whose_they_are(model_class):
    names = list(model_class.layer_widths(FACTORS))
    assert names == list(inspect.signature(model_class).parameters)[: len(names)]
    assert all(("user" in name) != ("item" in name) for name in names)


@pytest.mark.parametrize("model_class", MODELS)
def test_same_generator_draws_the_same_parameters(model_class):
    first, _ = build(model_class, seed=1)
    second, _ = build(model_class, seed=2)
    for model in (first, second):
        model.reset_parameters(torch.Generator().manual_seed(5))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_drawing_rows_keeps_the_padding_row_zero():
    model = GMF(nn.Embedding(4, 2, padding_idx=1), nn.Embedding(4, 2))
    model.reset_parameters()
    assert torch.equal(model.user_embedding.weight[1], torch.zeros(2))
    assert (model.item_embedding.weight[0] > 0).all()


@pytest.mark.parametrize("model_class", [GMF, BiasedMF, NMF])
def test_layers_of_different_width_are_refused(model_class):
    with pytest.raises(ArgumentError, match=r"'user_embedding': 4, 'item_embedding': 5"):
        model_class(nn.Embedding(3, 4), nn.Embedding(3, 5))


def test_layer_without_a_width_is_refused():
    with pytest.raises(ArgumentError, match="a Linear has no embedding_dim"):
        GMF(nn.Linear(2, 2), nn.Embedding(3, 4))


def test_biased_mf_needs_room_for_biases():
    with pytest.raises(ArgumentError, match="width 2; wanted at least 3"):
        BiasedMF(nn.Embedding(3, 2), nn.Embedding(3, 2))


def test_biased_mf_starts_near_its_offset_and_saves_it():
    model, _ = build(BiasedMF)
    model.reset_parameters()
    model.set_offset(3.5)
    assert (model(*all_pairs()) - 3.5).abs().max() < 0.3
    assert model.state_dict()["offset"] == 3.5
    with pytest.raises(ArgumentError, match="offset is nan"):
        model.set_offset(float("nan"))


def test_neumf_without_hidden_layers_is_refused():
    with pytest.raises(ArgumentError, match=r"hidden is \(\)"):
        NeuMF(*(nn.Embedding(3, 2) for _ in range(4)), hidden=())


def test_nmf_starts_nonnegative_around_the_mean_asked_for():
    model = NMF(nn.Embedding(300, 16), nn.Embedding(300, 16))
    model.reset_parameters(torch.Generator().manual_seed(0), mean=3.5)
    assert (model.user_embedding.weight >= 0).all()
    mean = model(torch.arange(300), torch.arange(300)).detach().mean()
    assert abs(float(mean) - 3.5) < 0.2


@pytest.mark.parametrize("make_layer", [full, clustered, hashed])
def test_projection_keeps_parameters_and_training_alive(make_layer):
    """Projected steps fit a nonnegative matrix, and rows are nonnegative after each of them."""
    torch.manual_seed(0)
    model = NMF(make_layer(NUM_USERS, 2), make_layer(NUM_ITEMS, 2))
    model.reset_parameters(torch.Generator().manual_seed(3))
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    user, item = all_pairs()
    with torch.no_grad():
        truth, _ = build(NMF, lambda n, d: make_layer(n, 2), seed=4)
        truth.project_()
        label = truth(user, item)
    losses = []
    for _ in range(400):
        loss = (model(user, item) - label).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.project_()
        losses.append(loss.item())
        assert all((p >= 0).all() for p in model.parameters())
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert losses[-1] < 0.02 * losses[0]
