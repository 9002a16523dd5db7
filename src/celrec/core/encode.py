"""From clusters to codes under a byte budget.

`Budget` says what the bytes are spent on, best first: a vector of eight bits a number for everyone
with data, or of four; else additive codes of as many levels as there is room for (four bits an
entity each), or of none: hard codes. These are packed in bits where that leaves room for a level.
docs/design/additive-codes.md has the figures that decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from celrec.core.additive import MAX_LEVELS, plan_additive
from celrec.core.blend import CodePlan
from celrec.core.codes import bits_for, code_bytes, code_dtype, packed_bytes, unpack
from celrec.core.embedding import ClusteredTable
from celrec.core.mixing import nearest_blend
from celrec.core.offsets import offset_bytes
from celrec.core.personal import PersonalPlan, Posterior
from celrec.core.recording import SampleLoss, SampleOf
from celrec.core.statistics import StatisticsPass, collect_statistics
from celrec.errors import ArgumentError

BLEND_SIZE = 4
"""Clusters in the blend of an entity, where the budget allows; vectors are fitted from there."""

_CLUSTERS_TRIED = (32, 16, 8, 4, 2)
_ENOUGH_BITS = 24
_BITS_PER_NUMBER = 1.25
_LEAST_ROW_DIM = 4
_ENTITIES_AT_A_TIME = 1 << 16  # weights take this many x K floats


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the bytes of tables are spent on; the same for all of them.

    bits : of each number of everyone's personal vector; None: there are none
    num_levels, level_bits : of additive codes; 0 levels: there are none
    is_packed : whether clusters are kept in as few bits as they need
    blend_size : m, of entities without data where others have vectors
    """

    bits: int | None = None
    num_levels: int = 0
    level_bits: int = 4
    is_packed: bool = False
    blend_size: int = 1

    @staticmethod
    def of(tables: Mapping[str, ClusteredTable], bytes_per_entity: float) -> Budget:
        """Spend `bytes_per_entity` times the entities of all tables.

        raises : ArgumentError if that is less than rows and packed hard codes take
        """
        num_entities = sum(table.num_embeddings for table in tables.values())
        total = int(round(bytes_per_entity * num_entities, 6))  # 0.29 x 100 is below 29
        rows = sum(table.memory().table_bytes for table in tables.values())
        for budget in _best_first():
            if rows + sum(budget.bytes_of(table) for table in tables.values()) <= total:
                return budget
        least = rows + sum(_PACKED.bytes_of(table) for table in tables.values())
        raise _too_small(bytes_per_entity, least, num_entities)

    def bytes_of(self, table: ClusteredTable) -> int:
        """What a table takes beside the rows of its clusters."""
        num_entities, id_bytes = table.num_embeddings, table.codes.element_size()
        if self.is_packed:
            codes = packed_bytes(num_entities, bits_for(table.max_clusters))
        else:
            codes = num_entities * code_bytes(min(self.blend_size, table.num_clusters), id_bytes)
        if self.num_levels:
            level_rows = self.num_levels << self.level_bits
            codes += packed_bytes(num_entities * self.num_levels, self.level_bits)
            codes += level_rows * table.row_dim * table.weight.element_size()
        if self.bits is None:
            return codes
        with_vectors = num_entities * (
            code_bytes(1, id_bytes)
            + code_dtype(num_entities + 1).itemsize  # the index to vectors, at its widest
            + offset_bytes(table.row_dim, self.bits)
        )
        return max(codes, with_vectors)  # a table without data keeps its blends


_PACKED = Budget(is_packed=True)


def _best_first() -> Iterator[Budget]:
    """All budgets; one that comes later is never the better one, and takes fewer bytes if any."""
    for bits in (8, 4):
        yield Budget(bits=bits, blend_size=BLEND_SIZE)
    for num_levels in range(MAX_LEVELS, 0, -1):
        for is_packed in (False, True):
            yield Budget(num_levels=num_levels, is_packed=is_packed)
    for is_packed in (False, True):
        yield Budget(num_levels=1, level_bits=3, is_packed=is_packed)
    yield Budget()
    yield _PACKED


def check_budget(tables: Mapping[str, ClusteredTable], bytes_per_entity: float) -> None:
    """See before training whether a budget will hold rows and packed hard codes.

    A fixed number of clusters is taken as reached. Of "auto" nothing is known yet but the present.
    raises : ArgumentError
    """
    num_entities = sum(table.num_embeddings for table in tables.values())
    least = 0
    for table in tables.values():
        memory = table.memory()
        least += memory.table_bytes + (0 if table.is_auto else memory.sleeping_bytes)
        least += _PACKED.bytes_of(table)
    if bytes_per_entity * num_entities < least:
        raise _too_small(bytes_per_entity, least, num_entities)


def rows_within(
    tables: Sequence[tuple[int, int]], bytes_per_entity: float, row_dim: int | None = None
) -> tuple[int, int]:
    """How many rows to give each table, and how many numbers to a row, to spend a byte budget well.

    Rows are as wide as vectors, or half as wide, a quarter, and so on, down to four numbers: the
    widest whose codes have five bits for every four numbers, or room for everyone's own vector. If
    none has, the one with most bits a number (docs/design/row-width.md).

    tables : (N, D) of each
    row_dim : numbers in a row, if that is settled; tables of narrower vectors take fewer
    returns : K and R
    raises : ArgumentError if not even two clusters fit

    >>> [rows_within([(6040, 32), (3706, 32)], share) for share in (1.28, 2.56, 12.8)]
    [(2, 4), (2, 8), (32, 32)]
    """
    widths = [max(width for _, width in tables)] if row_dim is None else [row_dim]
    while row_dim is None and (half := math.ceil(widths[-1] / 2)) >= _LEAST_ROW_DIM:
        widths.append(half)
    found = {}
    for width in widths:
        narrowed = [(num_entities, min(own, width)) for num_entities, own in tables]
        num_clusters, bits = _clusters_within(narrowed, bytes_per_entity)
        if bits >= _BITS_PER_NUMBER * width:
            return num_clusters, width
        found[bits / width] = num_clusters, width
    return found[max(found)]


def _clusters_within(
    tables: Sequence[tuple[int, int]], bytes_per_entity: float
) -> tuple[int, float]:
    """How many clusters to give each table; and the bits of codes, infinite if vectors are whole.

    So many that codes have most bits, up to 24; among equals the most, up to 32. Bits of levels
    serve as well as bits of clusters, and cost fewer rows; with 24 of them vectors are nearly as
    good as if kept whole (docs/design/additive-codes.md).

    tables : (N, R) of each
    raises : ArgumentError if not even two clusters fit
    """
    best, most_bits = None, -1
    for num_clusters in _CLUSTERS_TRIED:
        if num_clusters > min(num_entities for num_entities, _ in tables):
            continue
        made = {
            str(number): ClusteredTable.from_pretrained(
                torch.zeros(num_clusters, width), torch.arange(num_entities) % num_clusters
            )
            for number, (num_entities, width) in enumerate(tables)
        }
        try:
            budget = Budget.of(made, bytes_per_entity)
        except ArgumentError:
            if num_clusters > 2:
                continue
            raise
        bits = bits_for(num_clusters) + budget.num_levels * budget.level_bits
        if budget.bits is not None:
            return num_clusters, math.inf
        if bits >= _ENOUGH_BITS:
            return num_clusters, bits
        if bits > most_bits:
            best, most_bits = num_clusters, bits
    assert best is not None, "two clusters were tried, or raised"
    return best, most_bits


def _too_small(bytes_per_entity: float, least: int, num_entities: int) -> ArgumentError:
    each = math.ceil(100 * least / num_entities) / 100
    return ArgumentError(
        f"bytes_per_entity is {bytes_per_entity:g}, but rows and hard codes alone take "
        f"{each:.2f} for each of {num_entities} entities; raise it, or take fewer clusters"
    )


@torch.no_grad()
def commit_levels(
    posterior: Posterior, count: Tensor, budget: Budget, generator: torch.Generator
) -> None:
    """Give a table additive codes of its posterior's means.

    Entities without data are coded as the mean of those with data.

    count : int64 (N,)   samples of every entity
    """
    table = posterior.table
    mean = posterior.mean.mean(0)
    vectors = mean.repeat(table.num_embeddings, 1)
    vectors[posterior.entities] = posterior.mean
    plan = plan_additive(
        vectors,
        (count + 1).sqrt(),
        posterior.spread.mean_fisher,
        unpack(table.cluster_of),
        table.weight.detach(),
        num_levels=budget.num_levels,
        bits=budget.level_bits,
        generator=generator,
    )
    table.commit_additive(plan, is_packed=budget.is_packed)


@torch.no_grad()
def commit_vectors(posterior: Posterior, count: Tensor) -> PersonalPlan:
    """Give a table the vectors of its posterior: rows follow them, offsets hold the rest.

    Where every entity with data has a vector of its own, blends are given back.

    While vectors were fitted all tables' coordinates may have turned together. Rows are set so that
    the blends of entities with a vector are nearest to these, and those of entities without one
    stay where they were. Entities without data get the blend nearest to the mean of all with data.

    count : int64 (N,)   samples of every entity
    """
    table = posterior.table
    seen = count.nonzero().flatten()
    target = posterior.means_of(seen)  # (S, D)
    table.drop_personal()
    if len(posterior.entities) == len(seen):
        table.harden()
    live = table.live_clusters()
    table.weight[live] = nearest_rows(table, seen, target)[live].to(table.weight.dtype)

    unseen = (count == 0).nonzero().flatten()
    if unseen.numel():
        clusters, weights = nearest_blend(
            table.weight[live].to(target.dtype), target.mean(0), table.blend_size
        )
        table.commit_codes(CodePlan.shared(unseen, live[clusters], weights))
    offsets = posterior.mean - table.look_up(posterior.entities)
    plan = PersonalPlan(posterior.entities, offsets, posterior.rule.bits)
    table.commit_personal(plan)
    return plan


def nearest_rows(table: ClusteredTable, entities: Tensor, vectors: Tensor) -> Tensor:
    """The rows, (K_max, D), whose blends are nearest to given vectors, in least squares.

    entities : int64 (E,)      vectors : (E, D)
    A row that the entities do not determine stays near where it is.
    """
    num_rows = table.max_clusters
    rows = table.weight.detach().to(vectors.dtype)
    square = torch.zeros(num_rows, num_rows, dtype=torch.float64, device=vectors.device)
    product = torch.zeros(num_rows, vectors.shape[1], dtype=torch.float64, device=vectors.device)
    for some, theirs in zip(
        entities.split(_ENTITIES_AT_A_TIME), vectors.split(_ENTITIES_AT_A_TIME), strict=True
    ):
        clusters, weights = table.code_of(some)
        if weights is None:
            weights = torch.ones_like(clusters, dtype=torch.float32)
        spread = torch.zeros(len(some), num_rows, dtype=torch.float64, device=vectors.device)
        spread.scatter_add_(1, clusters, weights.double())
        square.addmm_(spread.T, spread)
        product.addmm_(spread.T, theirs.double() - spread @ rows.double())
    ridge = 1e-3 * square.diagonal().mean() + 1e-9
    square.diagonal().add_(ridge)
    return rows + torch.linalg.solve(square, product).to(rows)


def statistics_of(
    tables: Mapping[str, ClusteredTable], loss: SampleLoss, sample_of: Mapping[str, SampleOf]
) -> dict[str, StatisticsPass]:
    """One pass per table at its present vectors."""
    found = {}
    for name, table in tables.items():
        loss.look_at(name, sample_of.get(name))
        found[name] = collect_statistics(table, loss)
    return found
