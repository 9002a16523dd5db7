"""DeepHashEmbedding computes vectors from hashes, and stores a network only."""

import pytest
import torch
import torch.nn.functional as F

from celrec.baselines import deep_hash
from celrec.baselines.deep_hash import DeepHashEmbedding, encoded, num_parameters
from celrec.baselines.hashing import random_multipliers


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_vectors_are_those_of_a_network_with_mish():
    table = DeepHashEmbedding(50, 3, num_hashes=6, hidden_width=5, num_layers=2)
    ids = torch.tensor([7, 49, 7])
    x = encoded(ids, torch.tensor(random_multipliers(6, seed=0)))
    for number in (0, 2):
        x = table.network[number](x)
        x = x * torch.tanh(F.softplus(x))  # Misra 2020
    torch.testing.assert_close(table(ids), table.network[4](x))


def test_encodings_are_uniform_and_tell_all_entities_apart():
    codes = encoded(torch.arange(5000), torch.tensor(random_multipliers(32, seed=1)))
    assert codes.min() >= -1
    assert codes.max() < 1
    assert float(codes.mean()) == pytest.approx(0, abs=0.01)
    assert float(codes.var()) == pytest.approx(1 / 3, rel=0.02)
    assert len(codes[:, :2].unique(dim=0)) == 5000
    between_hashes = torch.corrcoef(codes.T).fill_diagonal_(0)
    between_entities = torch.corrcoef(codes[:300]).fill_diagonal_(0)
    assert between_hashes.abs().max() < 0.08  # 5.6 deviations of chance
    assert between_entities.abs().max() < 0.9


def test_only_the_network_is_stored():
    """The paper's k h + (L - 1) h^2 + h D, and the biases."""
    table = DeepHashEmbedding(1000, 32, num_hashes=64, hidden_width=16, num_layers=3)
    expected = (64 * 16 + 16) + 2 * (16 * 16 + 16) + (16 * 32 + 32)
    assert num_parameters(64, 16, 3, width=32) == expected
    assert table.memory().total_bytes == 4 * expected
    assert all(name.startswith("network.") for name in table.state_dict())


def test_encodings_that_are_not_kept_are_the_same(monkeypatch):
    kept = DeepHashEmbedding(300, 4, num_hashes=16, hidden_width=4, seed=5)
    monkeypatch.setattr(deep_hash, "_ENCODINGS_KEPT", 0)
    computed = DeepHashEmbedding(300, 4, num_hashes=16, hidden_width=4, seed=5)
    computed.load_state_dict(kept.state_dict())
    assert kept.encodings is not None
    assert computed.encodings is None
    assert torch.equal(computed(torch.arange(300)), kept(torch.arange(300)))


@pytest.mark.parametrize("num_rows", [8, 64, 1024])
def test_first_vectors_are_centred_and_have_the_deviation_asked_for(num_rows):
    table = DeepHashEmbedding.within(6040, 32, num_rows * 128)
    assert 0.95 < table.memory().total_bytes / (num_rows * 128) <= 1
    table.reset_parameters(0.1, torch.Generator().manual_seed(0))
    vectors = table(torch.arange(6040)).detach()
    assert float(vectors.std()) == pytest.approx(0.1, rel=0.1)
    assert vectors.mean(0).abs().max() < 0.02


def test_large_tables_have_as_many_hashes_as_in_the_paper():
    table = DeepHashEmbedding.within(10**6, 32, 4 * 10**6)
    assert table.num_hashes == 1024
    assert table.hidden_width > 400
