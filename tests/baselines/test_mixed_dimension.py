"""MixedDimensionEmbedding gives popular entities more numbers."""

import math

import pytest
import torch

from celrec.baselines.contract import Occurrences
from celrec.baselines.mixed_dimension import MixedDimensionEmbedding
from celrec.errors import ArgumentError


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def zipf(num_entities, seed=0):
    """Entities in random order of popularity; the most popular one occurs 2 N times."""
    order = torch.randperm(num_entities, generator=torch.Generator().manual_seed(seed))
    counts = torch.empty(num_entities, dtype=torch.int64)
    counts[order] = 2 * num_entities // torch.arange(1, num_entities + 1)
    entity = torch.arange(num_entities).repeat_interleave(counts)
    return Occurrences(entity, entity, torch.ones(len(entity)), num_entities, num_entities)


def test_vectors_are_an_entitys_numbers_times_its_blocks_projection():
    table = MixedDimensionEmbedding(500, 6, num_numbers=1500, num_blocks=4)
    data = zipf(500)
    table.see(data)
    table.reset_parameters(0.3, torch.Generator().manual_seed(0))
    ids = torch.arange(500)
    widths = table.widths_of(ids)
    by_place = sorted(ids.tolist(), key=lambda e: (-int(data.counts()[e]), e))
    sizes, block_widths = table.blocks.T.tolist()
    numbers = table.numbers.detach()
    expected = torch.empty(500, 6)
    first_row = sum(n * d for n, d in zip(sizes, block_widths, strict=True))
    first_number = 0
    for size, width in zip(sizes, block_widths, strict=True):
        members = sorted(by_place[:size])
        by_place = by_place[size:]
        projection = numbers[first_row : first_row + width * 6].view(width, 6) / 0.3
        for entity in members:
            own = numbers[first_number : first_number + width]
            assert widths[entity] == width
            expected[entity] = own if width == 6 else own @ projection / math.sqrt(width)
            first_number += width
        first_row += 0 if width == 6 else width * 6
    torch.testing.assert_close(table(ids).detach(), expected)


def test_blocks_are_met_equally_often_and_widths_follow_the_power_law():
    table = MixedDimensionEmbedding(20_000, 32, 150_000, num_blocks=8, temperature=0.3)
    data = zipf(20_000)
    table.see(data)
    sizes, widths = table.blocks.T.tolist()
    counts = data.counts().sort(descending=True).values.split(sizes)
    mass = torch.tensor([float(part.sum()) for part in counts]).cumsum(0) / len(data.entity)
    assert (mass[:5] - torch.arange(1, 6) / 8).abs().max() < 0.05  # the first entity's mass is 0.1
    assert widths == sorted(widths, reverse=True)
    growth = torch.tensor([float(part.double().mean()) for part in counts]) ** 0.3
    expected = (growth * widths[4] / growth[4]).clamp(1, 32)
    assert (torch.tensor(widths).float() - expected).abs().max() < 1.5  # a width is an integer
    assert widths[0] > 4 * widths[-1]


@pytest.mark.parametrize("share", [1 / 16, 1 / 4])
@pytest.mark.parametrize("width", [18, 32])
def test_numbers_of_entities_are_personal_and_the_budget_is_spent(width, share):
    num_bytes = int(share * 6040 * width * 4)
    table = MixedDimensionEmbedding.within(6040, width, num_bytes)
    table.see(zipf(6040))
    memory = table.memory()
    own = int(table.widths_of(torch.arange(6040)).sum())
    assert memory.personal_bytes == 4 * own
    assert memory.code_bytes <= 0.43 * 6040 + 200
    assert num_bytes - 4 < memory.total_bytes <= num_bytes
    assert 4 * own > 0.6 * num_bytes


def test_temperature_zero_gives_all_the_same_width():
    table = MixedDimensionEmbedding(1000, 8, 3100, num_blocks=4, temperature=0)
    table.see(zipf(1000))
    assert table.widths_of(torch.arange(1000)).float().std() < 0.6
    assert set(table.blocks[1:, 1].tolist()) == {3 - 1} or len(set(table.blocks[:, 1].tolist())) < 3


def test_every_entity_needs_a_number():
    with pytest.raises(ArgumentError, match="num_numbers is 999"):
        MixedDimensionEmbedding(1000, 8, num_numbers=999, num_blocks=1)
    with pytest.raises(ArgumentError, match="too few"):
        MixedDimensionEmbedding.within(1000, 8, 4000)
    with pytest.raises(ArgumentError, match="num_blocks is 3"):
        MixedDimensionEmbedding(1000, 8, num_numbers=2000, num_blocks=3)
