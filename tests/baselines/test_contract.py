"""What holds for every baseline, found in the registry."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor

from celrec.baselines.contract import CompressedEmbedding, Occurrences
from celrec.baselines.registry import all_baselines
from celrec.core.memory import memory_report
from celrec.errors import ArgumentError, DtypeError, EntityIdError

BASELINES = all_baselines()
NUM_ENTITIES, WIDTH = 600, 16
FULL_BYTES = NUM_ENTITIES * WIDTH * 4
SHARES = (0.02, 0.05, 0.1, 0.25, 0.5)

pytestmark = pytest.mark.parametrize("kind", sorted(BASELINES))


def occurrences(num_entities: int = NUM_ENTITIES) -> Occurrences:
    """Ten thousand: early entities occur most, and go with others of their own parity."""
    generator = torch.Generator().manual_seed(0)
    entity = (torch.rand(10_000, generator=generator).square() * num_entities).long()
    other = 2 * torch.randint(0, 50, (10_000,), generator=generator) + entity % 2
    return Occurrences(entity, other, (entity % 2).float(), num_entities, 100)


def made(kind: str, share: float = 0.25, **options: object) -> CompressedEmbedding:
    """A table of some share of the full one's bytes, that has seen data."""
    torch.manual_seed(0)
    table = BASELINES[kind].within(NUM_ENTITIES, WIDTH, int(share * FULL_BYTES), **options)
    table.reset_parameters(0.3, torch.Generator().manual_seed(0))
    table.see(occurrences())
    return table


def trained(kind: str, share: float = 0.25, **options: object) -> CompressedEmbedding:
    """After two epochs of steps towards random vectors, finished."""
    table = made(kind, share, **options)
    fit(table, targets(), num_epochs=2)
    table.finish()
    return table


def targets() -> Tensor:
    return torch.randn(NUM_ENTITIES, WIDTH, generator=torch.Generator().manual_seed(1))


def fit(table: CompressedEmbedding, target: Tensor, num_epochs: int) -> list[float]:
    """Adam on the squared distance to given vectors; the mean loss of every epoch."""
    optimizer = torch.optim.Adam(table.parameters(), lr=0.02)
    losses = []
    for epoch in range(1, num_epochs + 1):
        total = 0.0
        for ids in torch.randperm(len(target), generator=torch.Generator()).split(100):
            loss = (table(ids) - target[ids]).square().mean() + table.extra_loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        losses.append(total)
        if table.after_epoch(epoch, num_epochs):
            optimizer.state.clear()
    return losses


def stored_bytes(table: CompressedEmbedding) -> int:
    return sum(array.numel() * array.element_size() for array in table.state_dict().values())


def smallest(kind: str) -> float:
    """The smallest of SHARES that the method can do."""
    for share in SHARES:
        try:
            BASELINES[kind].within(NUM_ENTITIES, WIDTH, int(share * FULL_BYTES))
        except ArgumentError:
            continue
        return share
    raise AssertionError(f"{kind} cannot be made in half the bytes of a full table")


def test_it_says_where_it_comes_from(kind: str) -> None:
    assert BASELINES[kind].source
    assert BASELINES[kind].__doc__
    assert "Source:" in BASELINES[kind].__doc__


@pytest.mark.parametrize("share", SHARES)
def test_it_stores_what_it_says_and_no_more_than_it_may(kind: str, share: float) -> None:
    if share < smallest(kind):
        with pytest.raises(ArgumentError, match=r"bytes are too few .* at least"):
            made(kind, share)
        return
    table = trained(kind, share)
    found = memory_report(torch.nn.Sequential(table)).tables[0]
    assert found.kind == kind
    assert found.total_bytes == stored_bytes(table)
    assert found.sleeping_bytes == 0
    assert found.total_bytes <= share * FULL_BYTES
    assert found.full_table_bytes == FULL_BYTES


def test_it_makes_use_of_its_bytes(kind: str) -> None:
    small, large = (trained(kind, share).memory().total_bytes for share in (0.25, 0.5))
    assert small > 0.6 * 0.25 * FULL_BYTES or large <= small, "half of the budget lies idle"


def test_arrays_that_count_for_entities_have_a_line_for_each(kind: str) -> None:
    table = trained(kind)
    for name in table.codes:
        array = getattr(table, name)
        assert not array.numel() or not array.is_floating_point(), name
    for name in (*table.codes, *table.personal, *table.training_only, *table.flexible):
        assert isinstance(getattr(table, name), Tensor), name
        assert name in table.state_dict(), f"{name} is not saved, so it cannot count"


def test_ids_of_any_shape(kind: str) -> None:
    table = trained(kind)
    for shape in [(), (0,), (5,), (2, 3), (2, 0, 2)]:
        ids = torch.randint(0, NUM_ENTITIES, shape, generator=torch.Generator().manual_seed(0))
        assert table(ids).shape == (*shape, WIDTH)
        assert torch.equal(table(ids.int()), table(ids))
    ids = torch.arange(NUM_ENTITIES)
    together = table(ids)
    torch.testing.assert_close(torch.cat([table(one) for one in ids.split(1)]), together)


def test_padding_is_zero_and_gets_no_gradient(kind: str) -> None:
    table = made(kind, padding_idx=-1)
    assert table.padding_idx == NUM_ENTITIES - 1
    vectors = table(torch.tensor([NUM_ENTITIES - 1, 0]))
    assert bool((vectors[0] == 0).all())
    table(torch.tensor([NUM_ENTITIES - 1])).square().sum().backward()
    for name, parameter in table.named_parameters():
        if parameter.grad is not None:
            assert not parameter.grad.to_dense().any(), name


def test_wrong_ids_are_named(kind: str) -> None:
    table = made(kind)
    with pytest.raises(EntityIdError, match=rf"id {NUM_ENTITIES} at position 1"):
        table(torch.tensor([0, NUM_ENTITIES]))
    with pytest.raises(EntityIdError, match=r"id -1 at position 0"):
        table(torch.tensor([-1]))
    with pytest.raises(DtypeError, match="float32"):
        table(torch.zeros(2))


def test_the_first_vectors_have_the_deviation_asked_for(kind: str) -> None:
    table = made(kind, 0.5)
    ids = torch.arange(NUM_ENTITIES)
    for scale in (1.0, 0.1):
        table.init_scale = scale
        table.reset_parameters(0.3, torch.Generator().manual_seed(0))
        found = float(table(ids).detach().std())
        assert 0.1 * scale < found < 0.9 * scale
    plain = table(ids).detach()
    table.start = 2.0
    moved = table(ids).detach() - plain
    torch.testing.assert_close(moved[:, 0], torch.full((NUM_ENTITIES,), 2.0))
    assert not moved[:, 1:].any()


def test_the_same_generator_draws_the_same_table(kind: str) -> None:
    ids = torch.arange(NUM_ENTITIES)
    assert torch.equal(made(kind)(ids), made(kind)(ids))
    assert torch.equal(trained(kind)(ids), trained(kind)(ids))


def test_it_learns(kind: str) -> None:
    """Vectors of two groups, known by the entities' parity, as in the data that it has seen."""
    directions = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(2))
    target = directions[torch.arange(NUM_ENTITIES) % 2]
    table = made(kind, 0.5)
    fit(table, target, num_epochs=40)
    table.finish()
    error = (table(torch.arange(NUM_ENTITIES)).detach() - target).square().mean()
    nothing = target.square().mean()
    assert error < 0.6 * nothing, f"{error:.3f} are left of {nothing:.3f}"


def test_a_finished_table_is_saved_whole(kind: str) -> None:
    table = trained(kind)
    options = json.loads(json.dumps(table.options()))
    other = BASELINES[kind](**options)
    other.load_state_dict(table.state_dict())
    ids = torch.arange(NUM_ENTITIES)
    assert other.is_finished
    assert torch.equal(other(ids), table(ids))
    assert torch.equal(copy.deepcopy(table)(ids), table(ids))


def test_a_table_in_training_is_saved_whole(kind: str) -> None:
    """What follows a checkpoint is what would have followed without it."""
    table = made(kind)
    fit(table, targets(), num_epochs=1)
    other = BASELINES[kind](**table.options())
    other.load_state_dict(copy.deepcopy(table.state_dict()))
    ids = torch.arange(NUM_ENTITIES)
    assert torch.equal(other(ids), table(ids))
    for one in (table, other):
        one.after_epoch(2, 2)
        one.finish()
    assert torch.equal(other(ids), table(ids))


def test_its_picture_names_its_class(kind: str) -> None:
    assert repr(made(kind)).startswith(f"{BASELINES[kind].__name__}({NUM_ENTITIES}, {WIDTH}")
