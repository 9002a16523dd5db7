"""Mixed dimensions: the more popular an entity, the more numbers it has.

Entities are sorted by popularity and cut into a few blocks that are met equally often: the first
holds the few most popular entities, the last the many rare ones. The vectors of a block have a
width that grows with the popularity of its entities, and one matrix for each block projects them to
the width of all. So memory goes where the data are.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from celrec.baselines.contract import CompressedEmbedding, Occurrences, too_small
from celrec.baselines.packed_bits import bits_length, is_one, ones_before, pack_bits
from celrec.core.memory import TableMemory
from celrec.errors import ArgumentError, check_count, check_number

_BLOCK_COUNTS = (8, 4, 2, 1)
_ENTITIES_PER_BLOCK = 7.5  # times D, at least: then projections take about a fifth at most


class MixedDimensionEmbedding(CompressedEmbedding):
    """`torch.nn.Embedding` whose popular entities have more numbers than rare ones.

    num_numbers : >= N + D num_blocks    numbers of all entities and projections together
    num_blocks : 1, 2, 4 or 8, at most N
    temperature : >= 0, how much a block's width grows with popularity; 0 makes all widths equal
    other arguments : as in `CompressedEmbedding`

    The entities of block b, each of which makes up a share p_b of the data, have d_b numbers: the
    integer next below lambda p_b^temperature, in [1, D], with lambda as large as `num_numbers`
    allows. A vector is e P_b / sqrt(d_b), for e (d_b,) and P_b (d_b, D); a block of width D needs
    no projection. What is then left lifts the most popular entities of a block into the one before.
    Before the table `see`s data all entities are taken to be equally popular.

    Stored are the numbers of entities, which count as personal, the projections, and for each
    entity the bits of its block, packed so that its place among the members can be counted
    (packed_bits.py): half a byte or less.

    Source: Ginart et al., "Mixed dimension embeddings with application to memory-efficient
    recommendation systems", ISIT 2021: blocks of equal mass by popularity, widths by their power
    law with temperature 0.3. Departure: they leave the index out of the count.

    >>> table = MixedDimensionEmbedding(1000, 8, num_numbers=2000)
    >>> table(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 8])
    >>> counts = 1000 // torch.arange(1, 1001)
    >>> entity = torch.arange(1000).repeat_interleave(counts)
    >>> table.see(Occurrences(entity, entity, torch.ones(len(entity)), 1000, 1000))
    >>> table.widths_of(torch.tensor([0, 10, 100, 999])).tolist()
    [8, 6, 4, 1]
    """

    kind = "mixed-dimension"
    source = "Ginart et al., ISIT 2021"
    codes = ("planes",)

    planes: Tensor
    blocks: Tensor
    projection_scale: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_numbers: int,
        num_blocks: int = 4,
        padding_idx: int | None = None,
        *,
        temperature: float = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, seed=seed)
        if num_blocks not in _BLOCK_COUNTS or num_blocks > num_embeddings:
            raise ArgumentError(
                f"num_blocks is {num_blocks}; wanted 1, 2, 4 or 8 of them, and at most the number "
                f"of entities, {num_embeddings}"
            )
        self.num_blocks = num_blocks
        least = num_embeddings + embedding_dim * num_blocks
        self.num_numbers = check_count("num_numbers", num_numbers, at_least=least)
        self.temperature = check_number("temperature", temperature, at_least=0)
        # Those of entities come first. How many these are is found in the data.
        self.numbers = nn.Parameter(torch.empty(num_numbers))
        num_planes = num_blocks.bit_length() - 1
        planes = torch.zeros(num_planes, bits_length(num_embeddings), dtype=torch.int32)
        self.register_buffer("planes", planes)
        self.register_buffer("blocks", torch.zeros(num_blocks, 2, dtype=torch.int32))
        self.register_buffer("projection_scale", torch.ones(1))
        self._arrange(torch.ones(num_embeddings))
        self.reset_parameters()

    @classmethod
    def sizes_for(cls, num_embeddings: int, embedding_dim: int, num_bytes: int) -> dict[str, Any]:
        for num_blocks in _BLOCK_COUNTS:
            plane_length = bits_length(num_embeddings)
            index_length = (num_blocks.bit_length() - 1) * plane_length + 2 * num_blocks
            num_numbers = num_bytes // 4 - index_length - 1
            least = num_embeddings + embedding_dim * num_blocks
            is_worth_it = _ENTITIES_PER_BLOCK * embedding_dim * num_blocks <= num_embeddings
            if num_numbers >= least and (is_worth_it or num_blocks == 1):
                num_numbers = min(num_numbers, num_embeddings * embedding_dim)
                num_numbers = max(num_numbers, least)
                return {"num_numbers": num_numbers, "num_blocks": num_blocks}
        raise too_small(cls.kind, num_bytes, 4 * (least + index_length + 1))

    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        """Draw all numbers alike; a constant gives projections the scale that keeps deviations."""
        nn.init.normal_(self.numbers, std=std, generator=generator)
        self.projection_scale.fill_(1 / std if std else 1.0)

    def see(self, occurrences: Occurrences) -> None:
        self._arrange(occurrences.counts() + 1.0)  # so that no share is zero

    def look_up(self, ids: Tensor) -> Tensor:
        blocks = self._blocks()
        places, block_of = self._places_and_blocks(ids)
        order = block_of.argsort(stable=True)
        members = block_of.bincount(minlength=self.num_blocks).tolist()
        wanted = places.index_select(0, order).split(members)
        lengths = [block.num_entities * block.width for block in blocks]
        lengths += [block.num_projected * self.embedding_dim for block in blocks]
        parts = self.numbers.split([*lengths, self.num_numbers - sum(lengths)])
        vectors, first = [], 0
        for number, block in enumerate(blocks):
            rows = parts[number].view(block.num_entities, block.width)
            rows = rows.index_select(0, wanted[number] - first)
            if block.num_projected:
                projection = parts[self.num_blocks + number].view(block.width, self.embedding_dim)
                rows = rows @ (projection * (self.projection_scale / math.sqrt(block.width)))
            vectors.append(rows)
            first += block.num_entities
        return torch.cat(vectors).index_select(0, order.argsort())

    def widths_of(self, ids: Tensor) -> Tensor:
        """How many numbers each entity has, int64 (L,), for ids int64 (L,)."""
        return self.blocks[:, 1].long()[self._places_and_blocks(ids)[1]]

    def memory(self) -> TableMemory:
        """As in `CompressedEmbedding`; the numbers of entities count as personal."""
        memory = super().memory()
        num_own = sum(block.num_entities * block.width for block in self._blocks())
        personal_bytes = num_own * self.numbers.element_size()
        return dataclasses.replace(
            memory,
            table_bytes=memory.table_bytes - personal_bytes,
            personal_bytes=personal_bytes,
        )

    def options(self) -> dict[str, Any]:
        return super().options() | {
            "num_numbers": self.num_numbers,
            "num_blocks": self.num_blocks,
            "temperature": self.temperature,
        }

    def _blocks(self) -> list[_Block]:
        width = self.embedding_dim
        return [_Block(n, d, 0 if d == width else d) for n, d in self.blocks.tolist()]

    def _places_and_blocks(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Of entities, int64 (L,): their place, counted block by block and then by id; the block.

        Each plane holds one bit of the blocks' numbers, from the lowest on, and says where sorting
        by that bit puts an entity that it finds at some place.
        """
        sizes = self.blocks[:, 0].tolist()
        places, block_of = ids, torch.zeros_like(ids)
        for number, plane in enumerate(self.planes):
            num_zeros = sum(size for block, size in enumerate(sizes) if not (block >> number) & 1)
            bit, before = is_one(plane, places), ones_before(plane, places)
            places = torch.where(bit, num_zeros + before, places - before)
            block_of = block_of + (bit.long() << number)
        return places, block_of

    @torch.no_grad()
    def _arrange(self, popularity: Tensor) -> None:
        """Put entities into blocks by their popularity, > 0, (N,)."""
        device = popularity.device
        popularity, by_popularity = popularity.double().sort(descending=True, stable=True)
        sizes = _sizes_of_equal_mass(popularity, self.num_blocks)
        share = torch.stack([part.mean() for part in popularity.split(sizes)])
        sizes, widths = _widths_that_fit(
            sizes, share**self.temperature, self.embedding_dim, self.num_numbers
        )
        self.blocks.copy_(torch.tensor([sizes, widths]).T)
        block_of = torch.empty_like(by_popularity)
        blocks = torch.arange(self.num_blocks, device=device)
        block_of[by_popularity] = blocks.repeat_interleave(torch.tensor(sizes, device=device))
        order = torch.arange(self.num_embeddings, device=device)
        for number, plane in enumerate(self.planes):
            bit = (block_of[order] >> number) & 1 == 1
            plane.copy_(pack_bits(bit))
            order = torch.cat([order[~bit], order[bit]])

    def _num_rows(self) -> int:
        return sum(block.num_projected for block in self._blocks())


@dataclass(frozen=True)
class _Block:
    """Entities of equal width; `num_projected` is that, or 0 where it needs no projection."""

    num_entities: int
    width: int
    num_projected: int


def _sizes_of_equal_mass(popularity: Tensor, num_blocks: int) -> list[int]:
    """Cut entities, most popular first, into blocks of equal mass and at least one member each.

    >>> _sizes_of_equal_mass(torch.tensor([4.0, 2.0, 1.0, 1.0]), num_blocks=2)
    [1, 3]
    """
    mass = popularity.cumsum(0)
    number = torch.arange(num_blocks - 1, device=mass.device)
    ends = torch.searchsorted(mass, mass[-1] * (number + 1) / num_blocks, right=True)
    ends = (ends - number).clamp(1, len(popularity) - num_blocks + 1)
    if num_blocks > 1:
        ends = ends.cummax(0).values + number
    bounds = [0, *ends.tolist(), len(popularity)]
    return torch.tensor(bounds).diff().tolist()


def _widths_that_fit(
    sizes: list[int], growth: Tensor, width: int, num_numbers: int
) -> tuple[list[int], list[int]]:
    """Widths of blocks in proportion to `growth`, (k,), as large as numbers last.

    What is then left gives the first blocks one number more, and lifts entities into the block
    before.

    returns : sizes and widths

    >>> _widths_that_fit([10, 100], torch.tensor([4.0, 1.0]), width=8, num_numbers=250)
    ([18, 92], [8, 1])
    """

    def needed(widths: list[int]) -> int:
        own = sum(n * d for n, d in zip(sizes, widths, strict=True))
        return own + width * sum(d for d in widths if d < width)

    growth = growth / growth[0]
    steps = torch.arange(1, width + 1, device=growth.device).unsqueeze(1) / growth
    tried = steps.flatten().sort().values.unsqueeze(1) * growth  # (k D, k): where a width changes
    candidates = (tried + 1e-9).floor().clamp(1, width).long().tolist()
    widths = [1] * len(sizes)
    for candidate in candidates:
        if needed(candidate) <= num_numbers:
            widths = candidate
    for block in range(len(sizes)):
        more = [d + 1 if number == block else d for number, d in enumerate(widths)]
        if more[block] <= width and needed(more) <= num_numbers:
            widths = more
    left = num_numbers - needed(widths)
    sizes = list(sizes)
    for block in range(len(sizes) - 1, 0, -1):
        cost = widths[block - 1] - widths[block]
        if cost > 0:
            num_lifted = min(left // cost, sizes[block] - 1)
            sizes[block] -= num_lifted
            sizes[block - 1] += num_lifted
            left -= num_lifted * cost
    return sizes, widths
