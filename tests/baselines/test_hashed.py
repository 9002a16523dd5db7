"""HashedEmbedding is an nn.Embedding whose rows are tied by a hash."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from celrec.baselines.hashed import HashedEmbedding
from celrec.core.memory import memory_report
from celrec.errors import ArgumentError, DtypeError, EntityIdError


def tied(table):
    """The nn.Embedding that a hashed table stands for."""
    rows = table.row_ids(torch.arange(table.num_embeddings))
    dense = nn.Embedding.from_pretrained(
        table.weight.detach()[rows].clone(), freeze=False, padding_idx=table.padding_idx
    )
    if table.padding_idx is not None:
        dense.weight.data[table.padding_idx] = 0
    return dense, rows


@given(data=st.data())
def test_forward_and_backward_equal_an_embedding_with_tied_rows(data):
    num_entities = data.draw(st.integers(1, 30))
    table = HashedEmbedding(
        num_entities,
        data.draw(st.integers(1, 4)),
        data.draw(st.integers(1, 40)),
        padding_idx=data.draw(st.none() | st.integers(-num_entities, num_entities - 1)),
        sparse=data.draw(st.booleans()),
        seed=data.draw(st.integers(0, 9)),
    )
    dense, rows = tied(table)
    shape = data.draw(st.sampled_from([(), (0,), (5,), (2, 3), (2, 0, 2)]))
    ids = torch.randint(0, num_entities, shape, generator=torch.Generator().manual_seed(0))
    found, expected = table(ids), dense(ids)
    assert found.shape == expected.shape
    assert torch.equal(found, expected)

    scale = torch.linspace(1, 2, found.numel()).view(found.shape)
    (found * scale).sum().backward()
    (expected * scale).sum().backward()
    summed = torch.zeros_like(table.weight.data).index_add_(0, rows, dense.weight.grad)
    torch.testing.assert_close(table.weight.grad.to_dense(), summed)


@given(st.integers(1, 64), st.integers(0, 50))
def test_entities_are_spread_evenly_over_rows(num_rows, seed):
    table = HashedEmbedding(100 * num_rows, 1, num_rows, seed=seed)
    members = torch.bincount(table.row_ids(torch.arange(100 * num_rows)), minlength=num_rows)
    assert members.sum() == 100 * num_rows
    assert members.min() >= 50
    assert members.max() <= 200


def test_the_seed_decides_who_shares():
    ids = torch.arange(1000)
    rows = [HashedEmbedding(1000, 1, 10, seed=seed).row_ids(ids) for seed in (0, 0, 1)]
    assert torch.equal(rows[0], rows[1])
    pairs = torch.combinations(ids[:200])
    together = [row[pairs[:, 0]] == row[pairs[:, 1]] for row in rows]
    again = (together[0] & together[2]).sum() / together[0].sum()
    assert again < 0.3, "another seed must not share the same pairs again"


def test_neighbouring_ids_do_not_share_in_step():
    """ids k and k + R share a row under plain modulo; popular neighbours would all collide."""
    rows = HashedEmbedding(10_000, 1, 16).row_ids(torch.arange(10_000))
    assert (rows[:-16] == rows[16:]).float().mean() < 0.2


@pytest.mark.parametrize("bad_id", [-1, 10, 2**40])
def test_id_out_of_range_names_id_position_and_size(bad_id):
    table = HashedEmbedding(10, 2, 4)
    with pytest.raises(EntityIdError, match=rf"id {bad_id} at position 3 .* \[0, 10\)"):
        table(torch.tensor([[0, 9], [1, bad_id]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int16])
def test_ids_of_another_type_are_refused(dtype):
    with pytest.raises(DtypeError, match=str(dtype)):
        HashedEmbedding(10, 2, 4)(torch.zeros(3, dtype=dtype))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_embeddings": 0}, "num_embeddings is 0"),
        ({"embedding_dim": 0}, "embedding_dim is 0"),
        ({"num_rows": 0}, "num_rows is 0"),
        ({"padding_idx": 10}, r"padding_idx is 10; wanted .* \[-10, 10\)"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_argument_is_named(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        HashedEmbedding(**{"num_embeddings": 10, "embedding_dim": 2, "num_rows": 4} | arguments)


def test_memory_counts_rows_and_no_codes():
    (found,) = memory_report(nn.Sequential(HashedEmbedding(1000, 8, 16))).tables
    assert (found.kind, found.name, found.num_rows) == ("hashed", "0", 16)
    assert (found.table_bytes, found.code_bytes, found.total_bytes) == (512, 0, 512)
    assert found.full_table_bytes == 32_000


def test_copies_and_saved_states_look_up_the_same():
    table = HashedEmbedding(50, 3, 7, padding_idx=2, seed=3)
    other = HashedEmbedding(50, 3, 7, padding_idx=2, seed=3)
    other.load_state_dict(table.state_dict())
    ids = torch.arange(50)
    assert torch.equal(copy.deepcopy(table)(ids), table(ids))
    assert torch.equal(other(ids), table(ids))
    assert torch.equal(table(ids.int()), table(ids))


def test_dtype_and_device_follow():
    table = HashedEmbedding(50, 3, 7, dtype=torch.float64)
    assert table(torch.tensor([1])).dtype == torch.float64
    assert table.to(torch.bfloat16)(torch.tensor([1])).dtype == torch.bfloat16
    assert HashedEmbedding(5, 3, 7, device="meta").weight.is_meta


def test_a_training_step_moves_only_rows_looked_up():
    table = HashedEmbedding(50, 3, 7)
    before = table.weight.detach().clone()
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    table(torch.tensor([4, 4, 9])).sum().backward()
    optimizer.step()
    moved = (table.weight.detach() != before).any(1).nonzero().flatten().tolist()
    assert moved == sorted(set(table.row_ids(torch.tensor([4, 9])).tolist()))
