"""From clusters to codes under a byte budget: blends for all, personal vectors for some.

`Budget` says what the bytes are spent on. The first go to blends, for four clusters in place of one
are worth more than anything else (six bytes an entity); what is left goes to personal vectors of
four bits a number, in the order of what each is expected to gain. Where every entity with data gets
a vector of its own, blends are given back, and numbers have eight bits if that fits as well:
docs/results/codes.md has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from celrec.core.blend import CodePlan
from celrec.core.codes import code_bytes, code_dtype
from celrec.core.embedding import ClusteredTable
from celrec.core.mixing import nearest_blend
from celrec.core.offsets import offset_bytes
from celrec.core.personal import PersonalPlan, Posterior, expected_gains
from celrec.core.recording import SampleLoss, SampleOf
from celrec.core.statistics import StatisticsPass, collect_statistics
from celrec.errors import ArgumentError

BLEND_SIZE = 4
"""Clusters in the blend of an entity, where the budget allows."""

_ENTITIES_AT_A_TIME = 1 << 16  # weights take this many x K floats


@dataclass(frozen=True)
class Budget:
    """What tables may take, and what it is spent on.

    blend_size : m, the same for all tables
    vector_bytes : what is left for personal vectors and the index to them; None where it is enough
        for everyone, given that blends are given back
    bits : of each number of a personal vector
    """

    blend_size: int
    vector_bytes: int | None
    bits: int

    @staticmethod
    def of(tables: Mapping[str, ClusteredTable], bytes_per_entity: float) -> Budget:
        """Spend `bytes_per_entity` times the entities of all tables.

        raises : ArgumentError if that is less than rows and hard codes take
        """
        num_entities = sum(table.num_embeddings for table in tables.values())
        total = int(round(bytes_per_entity * num_entities, 6))  # 0.29 x 100 is below 29
        rows = sum(table.memory().table_bytes for table in tables.values())

        def code_bytes_of(table: ClusteredTable, blend_size: int) -> int:
            return code_bytes(min(blend_size, table.num_clusters), table.codes.element_size())

        def left_with(blend_size: int) -> int:
            codes = sum(
                table.num_embeddings * code_bytes_of(table, blend_size) for table in tables.values()
            )
            return total - rows - codes

        def bytes_of_everyone(bits: int) -> int:
            return sum(
                table.num_embeddings
                * max(
                    offset_bytes(table.embedding_dim, bits) + _index_bytes(table),
                    # a table without data keeps its blends
                    code_bytes_of(table, BLEND_SIZE) - code_bytes_of(table, 1),
                )
                for table in tables.values()
            )

        for bits in (8, 4):
            if left_with(1) >= bytes_of_everyone(bits):
                return Budget(BLEND_SIZE, None, bits)
        if left_with(BLEND_SIZE) >= 0:
            return Budget(BLEND_SIZE, left_with(BLEND_SIZE), 4)
        for blend_size in range(BLEND_SIZE - 1, 0, -1):
            if left_with(blend_size) >= 0:
                return Budget(blend_size, 0, 4)  # else more bytes could mean fewer vectors
        raise _too_small(bytes_per_entity, total - left_with(1), num_entities)


def check_budget(tables: Mapping[str, ClusteredTable], bytes_per_entity: float) -> None:
    """See before training whether a budget will hold rows and hard codes.

    A fixed number of clusters is taken as reached. Of "auto" nothing is known yet but the present.
    raises : ArgumentError
    """
    num_entities = sum(table.num_embeddings for table in tables.values())
    least = 0
    for table in tables.values():
        memory = table.memory()
        least += memory.table_bytes + (0 if table.is_auto else memory.sleeping_bytes)
        least += table.num_embeddings * table.codes.element_size()
    if bytes_per_entity * num_entities < least:
        raise _too_small(bytes_per_entity, least, num_entities)


def _too_small(bytes_per_entity: float, least: int, num_entities: int) -> ArgumentError:
    each = math.ceil(100 * least / num_entities) / 100
    return ArgumentError(
        f"bytes_per_entity is {bytes_per_entity:g}, but rows and hard codes alone take "
        f"{each:.2f} for each of {num_entities} entities; raise it, or take fewer clusters"
    )


def choose_personal(
    tables: Mapping[str, ClusteredTable],
    found: Mapping[str, StatisticsPass],
    vector_bytes: int | None,
    bits: int = 8,
) -> dict[str, Tensor]:
    """Who gets a vector of its own: the largest expected gain per byte first, over all tables.

    found : statistics of every table at its present vectors
    vector_bytes : for offsets and the index to them; None: everyone with data gets one
    bits : of each number of an offset
    returns : by table, int64 (P,) ascending
    """
    entities = {name: found[name].statistics.entities for name in tables}
    if vector_bytes is None:
        return entities
    gains, costs, owners = [], [], []
    for number, (name, table) in enumerate(tables.items()):
        statistics = found[name].statistics
        vectors = table.look_up(statistics.entities).detach().float()
        variance = (vectors - vectors.mean(0)).square().mean().clamp_min(1e-12)
        cost = offset_bytes(table.embedding_dim, bits)
        gains.append(expected_gains(statistics, variance.expand(table.embedding_dim)) / cost)
        costs.append(torch.full_like(statistics.entities, cost))
        owners.append(torch.full_like(statistics.entities, number))
        vector_bytes -= table.num_embeddings * _index_bytes(table) + cost  # and nobody's line
    order = torch.cat(gains).argsort(descending=True, stable=True)
    chosen = order[torch.cat(costs)[order].cumsum(0) <= vector_bytes]
    owner, entity = torch.cat(owners)[chosen], torch.cat(list(entities.values()))[chosen]
    return {name: entity[owner == number].sort().values for number, name in enumerate(tables)}


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


def _index_bytes(table: ClusteredTable) -> int:
    """What the index to personal vectors takes for each entity, at its widest."""
    return code_dtype(table.num_embeddings + 1).itemsize


def statistics_of(
    tables: Mapping[str, ClusteredTable], loss: SampleLoss, sample_of: Mapping[str, SampleOf]
) -> dict[str, StatisticsPass]:
    """One pass per table at its present vectors."""
    found = {}
    for name, table in tables.items():
        loss.look_at(name, sample_of.get(name))
        found[name] = collect_statistics(table, loss)
    return found
