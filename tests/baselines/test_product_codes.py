"""ProductCodesEmbedding picks codewords by queries, and keeps the picks only."""

import pytest
import torch

from celrec.baselines.product_codes import ProductCodesEmbedding
from celrec.errors import ArgumentError


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(("num_groups", "num_codewords"), [(1, 5), (3, 16), (6, 7)])
def test_a_vector_is_made_of_the_codewords_nearest_to_its_query(num_groups, num_codewords):
    table = ProductCodesEmbedding(40, 6, num_groups, num_codewords)
    found = table(torch.arange(40)).detach()
    width = 6 // num_groups
    for entity in range(40):
        for group in range(num_groups):
            part = slice(group * width, (group + 1) * width)
            query = table.queries[entity, part].detach()
            codewords = table.codewords[group].detach()
            nearest = min(codewords, key=lambda one: float((one - query).square().sum()))
            assert torch.equal(found[entity, part], nearest)


def test_finishing_changes_no_vector_and_lets_the_queries_go():
    table = ProductCodesEmbedding(1000, 8, num_groups=4, num_codewords=13)
    ids = torch.arange(1000)
    before = table(ids).detach()
    table.finish()
    assert torch.equal(table(ids), before)
    assert table.queries.shape == (0, 8)
    memory = table.memory()
    assert memory.code_bytes == 1000 * 4 // 2  # four bits for one of 13
    assert memory.table_bytes == 13 * 8 * 4
    assert memory.total_bytes == memory.code_bytes + memory.table_bytes


def test_the_gradient_at_a_codeword_moves_its_query_too():
    table = ProductCodesEmbedding(5, 4, num_groups=2, num_codewords=3)
    scale = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    (table(torch.tensor([3, 1])) * scale).sum().backward()
    assert torch.equal(table.queries.grad[[3, 1]], scale)
    assert not table.queries.grad[[0, 2, 4]].any()
    total = table.codewords.grad.sum(1).flatten()
    torch.testing.assert_close(total, scale.sum(0))


def test_the_extra_loss_pulls_queries_to_their_codewords_and_not_back():
    table = ProductCodesEmbedding(5, 4, num_groups=2, num_codewords=3)
    vectors = table(torch.tensor([2]))
    distance = table.queries.detach()[2] - vectors.detach()[0]
    table.extra_loss().backward()
    assert table.codewords.grad is None
    torch.testing.assert_close(table.queries.grad[2], 0.05 * 2 * distance)
    assert table.extra_loss() == 0.0, "a look-up counts once"


def test_entities_of_one_kind_come_to_share_their_codes():
    """Sixteen kinds of vectors, in 200 entities, found with one group of 16 codewords."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(16, 4, generator=generator)[torch.arange(200) % 16]
    table = ProductCodesEmbedding(200, 4, num_groups=1, num_codewords=32)
    table.reset_parameters(1.0, generator)
    optimizer = torch.optim.Adam(table.parameters(), lr=0.03)
    ids = torch.arange(200)
    for _ in range(300):
        loss = (table(ids) - target).square().mean() + table.extra_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    table.finish()
    assert (table(ids) - target).square().mean() < 0.1 * target.var()


def test_a_byte_per_entity_goes_into_large_codebooks_where_entities_are_many():
    few = ProductCodesEmbedding.within(3706, 32, 3706 + 128 * 20)
    many = ProductCodesEmbedding.within(200_000, 32, 200_000 + 128 * 256)
    assert (few.num_groups, few.num_codewords) == (2, 16)
    assert (many.num_groups, many.num_codewords) in {(1, 256), (2, 16)}
    with pytest.raises(ArgumentError, match="at least 1011"):
        ProductCodesEmbedding.within(6040, 32, 1010)
    with pytest.raises(ArgumentError, match="divisor of the width 32"):
        ProductCodesEmbedding(100, 32, num_groups=5, num_codewords=4)
