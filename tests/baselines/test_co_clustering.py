"""CoClusteredEmbedding: entities that go with the same others share a row."""

from __future__ import annotations

import torch

from celrec.baselines.co_clustering import CoClusteredEmbedding
from celrec.baselines.contract import Occurrences

NUM_ENTITIES, NUM_OTHERS, NUM_GROUPS = 120, 40, 4
GROUP = torch.arange(NUM_ENTITIES) % NUM_GROUPS


def planted(noise: float = 0.1) -> Occurrences:
    """Entities of a group meet the others of that group, but for some share of noise."""
    generator = torch.Generator().manual_seed(0)
    entity = torch.randint(0, NUM_ENTITIES, (4000,), generator=generator)
    inside = NUM_GROUPS * torch.randint(0, NUM_OTHERS // NUM_GROUPS, (4000,), generator=generator)
    anyone = torch.randint(0, NUM_OTHERS, (4000,), generator=generator)
    is_noise = torch.rand(4000, generator=generator) < noise
    other = torch.where(is_noise, anyone, inside + GROUP[entity])
    return Occurrences(entity, other, torch.ones(4000), NUM_ENTITIES, NUM_OTHERS)


def pairs(rows: torch.Tensor) -> set[tuple[int, int]]:
    """Which group has which row."""
    return set(zip(GROUP.tolist(), rows.tolist(), strict=True))


def test_planted_communities_are_found() -> None:
    table = CoClusteredEmbedding(NUM_ENTITIES, 8, num_rows=NUM_GROUPS)
    table.see(planted())
    assert len(pairs(table.row_ids(torch.arange(NUM_ENTITIES)))) == NUM_GROUPS


def test_a_label_of_zero_makes_no_edge() -> None:
    """Sampled negatives at random would drown the communities."""
    seen = planted(noise=0)
    generator = torch.Generator().manual_seed(1)
    entity = torch.cat(
        [seen.entity, torch.randint(0, NUM_ENTITIES, (40_000,), generator=generator)]
    )
    other = torch.cat([seen.other, torch.randint(0, NUM_OTHERS, (40_000,), generator=generator)])
    label = torch.cat([seen.label, torch.zeros(40_000)])
    table = CoClusteredEmbedding(NUM_ENTITIES, 8, num_rows=NUM_GROUPS)
    table.see(Occurrences(entity, other, label, NUM_ENTITIES, NUM_OTHERS))
    assert len(pairs(table.row_ids(torch.arange(NUM_ENTITIES)))) == NUM_GROUPS


def test_without_any_positive_label_all_occurrences_are_edges() -> None:
    seen = planted()
    table = CoClusteredEmbedding(NUM_ENTITIES, 8, num_rows=NUM_GROUPS)
    table.see(
        Occurrences(seen.entity, seen.other, 0 * seen.label, NUM_ENTITIES, NUM_OTHERS),
    )
    assert len(pairs(table.row_ids(torch.arange(NUM_ENTITIES)))) == NUM_GROUPS


def test_entities_that_were_never_met_share_a_row() -> None:
    seen = planted()
    table = CoClusteredEmbedding(NUM_ENTITIES + 50, 8, num_rows=NUM_GROUPS + 1)
    table.see(
        Occurrences(seen.entity, seen.other, seen.label, NUM_ENTITIES + 50, NUM_OTHERS),
    )
    assert len(table.row_ids(NUM_ENTITIES + torch.arange(50)).unique()) == 1


def test_training_moves_rows_and_no_entity() -> None:
    table = CoClusteredEmbedding(NUM_ENTITIES, 8, num_rows=NUM_GROUPS)
    table.see(planted())
    ids = torch.arange(NUM_ENTITIES)
    before = table.row_ids(ids)
    table(ids).sum().backward()
    assert table.weight.grad is not None
    members = torch.bincount(before, minlength=NUM_GROUPS).float()
    torch.testing.assert_close(table.weight.grad[:, 0], members)
    assert not table.after_epoch(1, 3)
    assert torch.equal(table.row_ids(ids), before)


def test_it_stores_its_rows_and_an_id_for_each_entity() -> None:
    table = CoClusteredEmbedding(1000, 8, num_rows=16)
    table.see(Occurrences(*torch.zeros(2, 5).long(), torch.ones(5), 1000, 3))
    memory = table.memory()
    assert (memory.table_bytes, memory.code_bytes, memory.num_rows) == (16 * 8 * 4, 500, 16)
