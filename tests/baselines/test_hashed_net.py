"""HashedNets: every number of the table is one of a few, with a hashed sign or without."""

import pytest
import torch

from celrec.baselines.hashed_net import HashedNetEmbedding


@pytest.mark.parametrize("signed", [False, True])
def test_a_number_is_a_shared_one_with_its_sign_if_signed(signed: bool):
    table = HashedNetEmbedding(50, 4, num_numbers=13, signed=signed, seed=3)
    places, signs = (found.tolist() for found in table.places_and_signs(torch.arange(50)))
    numbers = table.numbers.tolist()
    slow = [
        [(signs[i][j] if signed else 1) * numbers[places[i][j]] for j in range(4)]
        for i in range(50)
    ]
    assert torch.equal(table(torch.arange(50)), torch.tensor(slow))


def test_options_remember_the_signs():
    ids = torch.arange(50)
    signed = HashedNetEmbedding(50, 4, num_numbers=13, signed=True)
    again = HashedNetEmbedding(**signed.options())
    again.load_state_dict(signed.state_dict())
    assert torch.equal(again(ids), signed(ids))
    unsigned = HashedNetEmbedding(50, 4, num_numbers=13)
    unsigned.load_state_dict(signed.state_dict())
    assert torch.equal(unsigned(ids).abs(), signed(ids).abs())
    assert not torch.equal(unsigned(ids), signed(ids))


def test_signs_are_even_and_say_nothing_about_places():
    places, signs = HashedNetEmbedding(5000, 8, num_numbers=10).places_and_signs(torch.arange(5000))
    assert set(signs.unique().tolist()) == {-1, 1}
    for place in range(10):
        chosen = signs[places == place].float()
        assert abs(len(chosen) - 4000) < 300
        assert abs(float(chosen.mean())) < 0.06  # four deviations


def test_neighbouring_entities_and_columns_share_by_chance_only():
    places, _ = HashedNetEmbedding(5000, 8, num_numbers=100).places_and_signs(torch.arange(5000))
    for near in (places[1:] == places[:-1], places[:, 1:] == places[:, :-1]):
        assert abs(float(near.float().mean()) - 0.01) < 0.003


def test_inner_products_are_right_on_average_thanks_to_the_signs():
    """Without the signs, the products of ones below would all be positive."""
    table = HashedNetEmbedding(2000, 8, num_numbers=4, signed=True)
    torch.nn.init.ones_(table.numbers)
    vectors = table(torch.arange(2000)).detach()
    products = (vectors[0::2] * vectors[1::2]).sum(1)
    assert abs(float(products.mean())) < 0.4  # four deviations
    assert abs(float(products.var()) - 8) < 2


@pytest.mark.parametrize("num_bytes", [4, 1024, 99_999])
def test_the_numbers_take_the_whole_budget(num_bytes):
    found = HashedNetEmbedding.within(3706, 32, num_bytes).memory()
    assert found.total_bytes == found.table_bytes == num_bytes // 4 * 4
    assert found.num_rows == 0
